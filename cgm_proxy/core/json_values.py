"""The type of a parsed JSON object, and access to the objects in a JSON value of unknown type."""

from collections.abc import Iterator
from typing import Any

#: A parsed JSON object. Its numbers are `int` or `Decimal`, so that they keep their digits.
JsonObject = dict[str, Any]


def objects(value: Any) -> list[JsonObject]:
    """Return the objects in a list and skip its other items; return no objects if `value` is not a list."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def nested_objects(value: Any) -> Iterator[JsonObject]:
    """Yield every object in a value, itself included, in no particular order."""
    remaining = [value]
    while remaining:
        item = remaining.pop()
        if isinstance(item, dict):
            yield item
            remaining.extend(item.values())
        elif isinstance(item, list):
            remaining.extend(item)
