"""The type of a parsed JSON object, and access to the objects in a JSON value of unknown type."""

from typing import Any

#: A parsed JSON object. Its numbers are `int` or `Decimal`, so that they keep their digits.
JsonObject = dict[str, Any]


def objects(value: Any) -> list[JsonObject]:
    """Return the objects in a list and skip its other items; return no objects if `value` is not a list."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
