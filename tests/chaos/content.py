"""What a resource says, as text that is equal for equal content: from the sent resource alone, not by the proxy's identity."""

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from hashlib import sha256
from typing import Any

from cgm_proxy.core.json_values import JsonObject

#: Codes of single readings; any other resource is known by its whole content.
READINGS = frozenset({"99504-3", "14745-4", "105272-9"})

#: What a server or the proxy adds to a resource, and what a submitter only needs within a Bundle.
ADDED = frozenset({"id", "meta"})
STAMP = "urn:ietf:rfc:3986"

#: From a reference to the resource that it means, or None.
Resolve = Callable[[str], JsonObject | None]


def key(resource: JsonObject, resolve: Resolve) -> str:
    """Name what must be stored once: a reading by patient, code, instant, value and device, all else by its content."""
    codes = [coding.get("code") for coding in resource.get("code", {}).get("coding", ())]
    if not READINGS.isdisjoint(codes) and "valueQuantity" in resource:
        quantity = resource["valueQuantity"]
        instant = datetime.fromisoformat(resource["effectiveDateTime"]).astimezone(UTC).isoformat()
        value = f"{_number(quantity['value'])} {quantity['unit']}"
        device = _meant(resource["device"]["reference"], resolve) if "device" in resource else "no device"
        return f"reading of {resource['subject']['reference']}: {codes[0]} {instant} {value}, {device}"
    content = sha256(_text(resource, resolve, _number).encode()).hexdigest()[:16]
    start = resource.get("effectivePeriod", {}).get("start", "")
    return " ".join([resource["resourceType"], *codes[:1], start, f"with content {content}"])


def digits(resource: JsonObject, resolve: Resolve) -> str:
    """Write all of the content, with each number's digits as they stand, and the profiles that it claims."""
    profiles = resource.get("meta", {}).get("profile")
    return f"{profiles} {_text(resource, resolve, str)}"


def references(value: Any) -> Iterator[str]:
    """Give all references in a resource."""
    if isinstance(value, dict):
        if isinstance(reference := value.get("reference"), str):
            yield reference
        value = list(value.values())
    for each in value if isinstance(value, list) else ():
        yield from references(each)


def _text(resource: JsonObject, resolve: Resolve, number: Callable[[Any], str]) -> str:
    content = {name: value for name, value in resource.items() if name not in ADDED}
    content["identifier"] = [i for i in content.get("identifier", ()) if i.get("system") != STAMP]
    return json.dumps(_plain(content, resolve, number), sort_keys=True)


def _plain(value: Any, resolve: Resolve, number: Callable[[Any], str]) -> Any:
    if isinstance(value, dict):
        return {
            name: _meant(each, resolve) if name == "reference" else _plain(each, resolve, number)
            for name, each in value.items()
        }
    if isinstance(value, list):
        return [_plain(each, resolve, number) for each in value]
    return number(value) if isinstance(value, int | Decimal) and not isinstance(value, bool) else value


def _meant(reference: str, resolve: Resolve) -> str:
    """Say what a reference means, in words of content: a device by its serial number, a patient by where it is stored."""
    target = resolve(reference)
    if target is None or target["resourceType"] == "Patient":
        return reference
    return f"device {target['serialNumber']}" if target["resourceType"] == "Device" else key(target, resolve)


def _number(value: int | Decimal) -> str:
    return f"{Decimal(value).normalize():f}"
