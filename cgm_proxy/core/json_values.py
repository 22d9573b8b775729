"""JSON as FHIR uses it: the type of an object, and the objects in a list of anything."""

from typing import Any

#: A parsed JSON object; its numbers are `Decimal` or `int`, so that they keep their digits.
JsonObject = dict[str, Any]


def objects(value: Any) -> list[JsonObject]:
    """Return the objects in a list, without what is not an object; anything but a list holds none."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
