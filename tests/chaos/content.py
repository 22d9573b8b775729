"""Keys of resources: texts that are equal if the content is equal.

They are computed from the resource as it was sent, independently of the identity that the proxy computes.
"""

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from hashlib import sha256
from typing import Any

from cgm_proxy.core.json_values import JsonObject

#: Codes of single readings. The key of any other resource depends on its whole content.
READINGS = frozenset({"99504-3", "14745-4", "105272-9"})

#: Elements that a server or the proxy adds or changes, or that have a meaning only in a Bundle.
ADDED = frozenset({"id", "meta"})
STAMP = "urn:ietf:rfc:3986"

#: Returns the resource that a reference means, or None.
Resolve = Callable[[str], JsonObject | None]


def key(resource: JsonObject, resolve: Resolve) -> str:
    """Return the key of what must be stored once: a reading's patient, code, instant, value and device, or else the content."""
    codes = [coding.get("code") for coding in resource.get("code", {}).get("coding", ())]
    if not READINGS.isdisjoint(codes) and "valueQuantity" in resource:
        quantity = resource["valueQuantity"]
        instant = datetime.fromisoformat(resource["effectiveDateTime"]).astimezone(UTC).isoformat()
        value = f"{_number(quantity['value'])} {quantity['unit']}"
        device = _target(resource["device"]["reference"], resolve) if "device" in resource else "no device"
        return f"reading of {resource['subject']['reference']}: {codes[0]} {instant} {value}, {device}"
    content = sha256(_text(resource, resolve, _number).encode()).hexdigest()[:16]
    start = resource.get("effectivePeriod", {}).get("start", "")
    return " ".join([resource["resourceType"], *codes[:1], start, f"with content {content}"])


def digits(resource: JsonObject, resolve: Resolve) -> str:
    """Return the whole content with the digits of each number, and the profiles that the resource claims."""
    profiles = resource.get("meta", {}).get("profile")
    return f"{profiles} {_text(resource, resolve, str)}"


def references(value: Any) -> Iterator[str]:
    """Yield all references in a resource."""
    if isinstance(value, dict):
        if isinstance(reference := value.get("reference"), str):
            yield reference
        value = list(value.values())
    for item in value if isinstance(value, list) else ():
        yield from references(item)


def _text(resource: JsonObject, resolve: Resolve, number: Callable[[Any], str]) -> str:
    content = {name: value for name, value in resource.items() if name not in ADDED}
    identifiers = content.get("identifier", ())
    content["identifier"] = [identifier for identifier in identifiers if identifier.get("system") != STAMP]
    return json.dumps(_plain(content, resolve, number), sort_keys=True)


def _plain(value: Any, resolve: Resolve, number: Callable[[Any], str]) -> Any:
    if isinstance(value, dict):
        return {
            name: _target(item, resolve) if name == "reference" else _plain(item, resolve, number)
            for name, item in value.items()
        }
    if isinstance(value, list):
        return [_plain(item, resolve, number) for item in value]
    return number(value) if isinstance(value, int | Decimal) and not isinstance(value, bool) else value


def _target(reference: str, resolve: Resolve) -> str:
    """Return a text for what a reference means: a device's serial number, a patient's reference, or a resource's key."""
    target = resolve(reference)
    if target is None or target["resourceType"] == "Patient":
        return reference
    return f"device {target['serialNumber']}" if target["resourceType"] == "Device" else key(target, resolve)


def _number(value: int | Decimal) -> str:
    return f"{Decimal(value).normalize():f}"
