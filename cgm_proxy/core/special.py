"""What the specification says in prose about single data types, and the HL7 validator checks."""

import base64
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from cgm_proxy.core.extensions import Fault
from cgm_proxy.core.primitives import ABSOLUTE_URI, fault, show
from cgm_proxy.core.scope import Json, resources_of


def _attachment(data: Json) -> Iterator[Fault]:
    """Check size and hash against the data (https://hl7.org/fhir/R4/datatypes.html#Attachment)."""
    text = data.get("data")
    if not isinstance(text, str) or fault("base64Binary", text):
        return
    raw = base64.b64decode(text)
    if "size" in data and data["size"] != len(raw):
        yield "r4-attachment-size", "size", f"is {show(data['size'])}; the data has {len(raw)} bytes"
    if "hash" in data and data["hash"] != base64.b64encode(hashlib.sha1(raw, usedforsecurity=False).digest()).decode():
        yield "r4-attachment-hash", "hash", "is not the SHA-1 of the data in base64"


UUID = re.compile(r"urn:uuid:[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
ABSOLUTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:.+")
RESTFUL = re.compile(r"https?://.+/([A-Z][A-Za-z]+)/([A-Za-z0-9\-.]{1,64})")


def _bundle(data: Json) -> Iterator[Fault]:
    """Check the entries' fullUrls (https://hl7.org/fhir/R4/bundle.html#bundle-unique, #references)."""
    seen: dict[Any, int] = {}
    posted = data.get("type") in {"transaction", "batch"}
    for index, entry in enumerate(resources_of(data.get("entry"))):
        url, resource = entry.get("fullUrl"), entry.get("resource")
        where = f"entry[{index}].fullUrl"
        if url is None and (not posted or any(not text.startswith("#") for text in _references(resource))):
            yield "r4-full-url", f"entry[{index}]", "has no fullUrl, by which its references could be understood"
        if not isinstance(url, str):
            continue
        if wrong := _full_url(url, resource if isinstance(resource, dict) else {}):
            yield "r4-full-url", where, f"is {show(url)}; {wrong}"
        if seen.setdefault(url, index) != index:
            yield "bdl-7", where, f"is {show(url)}, as entry[{seen[url]}] has; every entry wants its own"


def _references(value: Any) -> Iterator[str]:
    todo = [value]
    while todo:
        item = todo.pop()
        if isinstance(item, dict):
            if isinstance(item.get("reference"), str):
                yield item["reference"]
            todo.extend(item.values())
        elif isinstance(item, list):
            todo.extend(item)


def _full_url(url: str, resource: Json) -> str | None:
    if not ABSOLUTE.fullmatch(url):
        return "R4 wants an absolute URL"
    if url.startswith("urn:uuid:") and not UUID.fullmatch(url):
        return "R4 wants a lower-case UUID after urn:uuid:"
    restful = RESTFUL.fullmatch(url)
    if restful and resource and (restful[1], restful[2]) != (resource.get("resourceType"), resource.get("id")):
        return f"it must end with /{resource.get('resourceType')}/{resource.get('id')}, the resource's type and id"
    return None


def _extension(data: Json) -> Iterator[Fault]:
    """Check ext-1: extensions or a value, not both and not neither."""
    valued = any(key.lstrip("_").startswith("value") for key in data)
    if valued == ("extension" in data):
        yield "ext-1", "", "must have either a value[x] or extensions, not both and not neither"


def _unit_system(data: Json) -> Iterator[Fault]:
    """Check that the system of a unit's code is an absolute URI."""
    system = data.get("system")
    if "code" in data and isinstance(system, str) and not fault("uri", system) and not system.startswith(ABSOLUTE_URI):
        yield "r4-value", "system", f"is {show(system)}; R4 wants an absolute URI"


def _literal(data: Json) -> Iterator[Fault]:
    """Check that a literal reference is one word."""
    reference = data.get("reference")
    if isinstance(reference, str) and re.search(r"\s", reference):
        yield "r4-reference", "reference", f"is {show(reference)}; R4 wants a URL without spaces"


QUANTITIES = ("Quantity", "SimpleQuantity", "MoneyQuantity", "Age", "Count", "Distance", "Duration")
SPECIAL: Mapping[str, Callable[[Json], Iterator[Fault]]] = {
    **dict.fromkeys(QUANTITIES, _unit_system),
    "Reference": _literal,
    "Attachment": _attachment,
    "Bundle": _bundle,
    "Extension": _extension,
}
