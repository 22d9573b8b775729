"""What the specification says in prose about single data types, and the HL7 validator checks."""

import base64
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from cgm_proxy.core.json_values import JsonObject, objects
from cgm_proxy.core.r4.extensions import Fault
from cgm_proxy.core.r4.primitives import base64_fault, fault, show
from cgm_proxy.core.r4.uris import SEARCH, SYSTEMS, UUID, absolute


def _attachment(data: JsonObject) -> Iterator[Fault]:
    """Check that data and hash can be read, and both and the size against one another.

    https://hl7.org/fhir/R4/datatypes.html#Attachment
    """
    for name in ("data", "hash"):
        text = data.get(name)
        if isinstance(text, str) and text and not fault("base64Binary", text) and (wrong := base64_fault(text)):
            yield "r4-value", name, f"is {show(text)}; R4 wants {wrong}"
    text = data.get("data")
    if not isinstance(text, str) or not text or base64_fault(text):
        return
    raw = base64.b64decode(text)
    if "size" in data and data["size"] != len(raw):
        yield "r4-attachment-size", "size", f"is {show(data['size'])}; the data has {len(raw)} bytes"
    if "hash" in data and data["hash"] != base64.b64encode(hashlib.sha1(raw, usedforsecurity=False).digest()).decode():
        yield "r4-attachment-hash", "hash", "is not the SHA-1 of the data in base64"


#: What makes a text a full URI.
SCHEME_OF = re.compile(r"[A-Za-z][A-Za-z0-9_\[\]]*:")
ABSOLUTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:.+")
RESTFUL = re.compile(r"https?://.+/([A-Z][A-Za-z]+)/([A-Za-z0-9\-.]{1,64})")


def _bundle(data: JsonObject) -> Iterator[Fault]:
    """Check the entries' fullUrls (https://hl7.org/fhir/R4/bundle.html#bundle-unique, #references)."""
    yield from _links(data)
    seen: dict[Any, int] = {}
    posted = data.get("type") in ("transaction", "batch")
    for index, entry in enumerate(objects(data.get("entry"))):
        url, resource = entry.get("fullUrl"), entry.get("resource")
        where = f"entry[{index}].fullUrl"
        if url is None and (not posted or any(not text.startswith("#") for text in _references(resource))):
            yield "r4-full-url", f"entry[{index}]", "has no fullUrl, by which its references could be understood"
        if not isinstance(url, str):
            continue
        yield from _relative(index, resource, posted=posted)
        if wrong := _full_url(url, resource if isinstance(resource, dict) else {}):
            yield "r4-full-url", where, f"is {show(url)}; {wrong}"
        if seen.setdefault(url, index) != index:
            yield "bdl-7", where, f"is {show(url)}, as entry[{seen[url]}] has; every entry wants its own"


#: Links between a search's pages.
PAGES = ("first", "previous", "next", "last")


def _links(data: JsonObject) -> Iterator[Fault]:
    """Check that a link is there once, and that only what has pages links to them (https://hl7.org/fhir/R4/bundle.html)."""
    paged, seen = data.get("type") in ("searchset", "history"), list[Any]()
    for index, link in enumerate(objects(data.get("link"))):
        relation = link.get("relation")
        if relation in PAGES and not paged:
            yield "r4-link", f"link[{index}].relation", f"is {show(relation)}; only what is searched has pages"
        elif relation in ("self", *PAGES) and relation in seen:
            yield "r4-link", f"link[{index}].relation", f"is {show(relation)} once more; leave one of them out"
        seen.append(relation)


def _relative(index: int, resource: Any, *, posted: bool) -> Iterator[Fault]:
    """Check that an entry's relative references are Type/id, or a search where it is posted."""
    for text in _references(resource):
        if text.startswith("#") or absolute(text) or text.count("/") in {1, 3} or (posted and SEARCH.fullmatch(text)):
            continue
        yield (
            "r4-reference",
            f"entry[{index}].resource",
            f"refers to {show(text)}; in a Bundle R4 wants Type/id or a URL",
        )


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


def _full_url(url: str, resource: JsonObject) -> str | None:
    if not ABSOLUTE.fullmatch(url):
        return "R4 wants an absolute URL"
    if url.startswith("urn:uuid:") and not UUID.fullmatch(url.removeprefix("urn:uuid:")):
        return "R4 wants a lower-case UUID after urn:uuid:"
    restful = RESTFUL.fullmatch(url)
    if restful and resource and (restful[1], restful[2]) != (resource.get("resourceType"), resource.get("id")):
        return f"it must end with /{resource.get('resourceType')}/{resource.get('id')}, the resource's type and id"
    return None


def _extension(data: JsonObject) -> Iterator[Fault]:
    """Check ext-1: extensions or a value, not both and not neither."""
    valued = any(key.lstrip("_").startswith("value") for key in data)
    if valued == ("extension" in data):
        yield "ext-1", "", "must have either a value[x] or extensions, not both and not neither"


#: Systems of identifiers that say what the value must be: a URI, or a UUID.
ANY_URI, ANY_UUID = URI_SYSTEMS = ("urn:ietf:rfc:3986", "https://tools.ietf.org/html/rfc4122")


def _identifier(data: JsonObject) -> Iterator[Fault]:
    """Check the system of an identifier, and that what is said to be a URI is one."""
    system, value = data.get("system"), data.get("value")
    if isinstance(system, str) and system and not system.startswith((*SYSTEMS, "ldap:")):
        yield "r4-value", "system", f"is {show(system)}; R4 wants an absolute URI"
    if not isinstance(value, str) or not value:
        return
    if system == ANY_URI and not SCHEME_OF.match(value):
        yield "r4-value", "value", f"is {show(value)}; with the system {ANY_URI} it must be a full URI"
    if system == ANY_UUID and not UUID.fullmatch(value.removeprefix("urn:uuid:")):
        yield "r4-value", "value", f"is {show(value)}; with the system {ANY_UUID} it must be a UUID"


def _meta(data: JsonObject) -> Iterator[Fault]:
    """Check that security labels are a set."""
    seen: set[tuple[str, str]] = set()
    for index, label in enumerate(objects(data.get("security"))):
        key = (str(label.get("system")), str(label.get("code")))
        if key in seen:
            yield "r4-duplicate-label", f"security[{index}]", f"is {key[0]}#{key[1]} once more; leave one of them out"
        seen.add(key)


SPECIAL: Mapping[str, Callable[[JsonObject], Iterator[Fault]]] = {
    "Identifier": _identifier,
    "Meta": _meta,
    "Attachment": _attachment,
    "Bundle": _bundle,
    "Extension": _extension,
}
