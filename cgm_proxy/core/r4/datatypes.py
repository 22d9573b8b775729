"""What the specification says in prose about single data types, as far as the HL7 validator checks it."""

import base64
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from cgm_proxy.core.json_values import JsonObject, nested_objects, objects
from cgm_proxy.core.r4.findings import Fault
from cgm_proxy.core.r4.primitives import STEP, base64_fault, fault, show
from cgm_proxy.core.r4.uris import SEARCH, SYSTEMS, UUID, absolute

#: The beginning of a full URI, an absolute URL, and a URL that ends with a resource's type and id.
SCHEME_OF = re.compile(r"[A-Za-z][A-Za-z0-9_\[\]]*:")
ABSOLUTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:.+")
RESTFUL = re.compile(r"https?://.+/([A-Z][A-Za-z]+)/([A-Za-z0-9\-.]{1,64})")

#: Systems that prescribe the form of an identifier's value: a URI, or a UUID.
ANY_URI, ANY_UUID = URI_SYSTEMS = ("urn:ietf:rfc:3986", "https://tools.ietf.org/html/rfc4122")

#: Relations of links between the pages of a search.
PAGES = ("first", "previous", "next", "last")


def _attachment(data: JsonObject) -> Iterator[Fault]:
    """Check that data and hash are base64, and compare the data with its hash and size.

    https://hl7.org/fhir/R4/datatypes.html#Attachment
    """
    for name in ("data", "hash"):
        text = data.get(name)
        if isinstance(text, str) and text and (expected := base64_fault(text)) and not fault("base64Binary", text):
            yield "r4-value", name, f"is {show(text)}; R4 requires {expected}"
    text = data.get("data")
    if not isinstance(text, str) or not text or not data.keys() & {"size", "hash"} or base64_fault(text):
        return
    size = len(text) // 4 * 3 - text.count("=", -2)
    if "size" in data and data["size"] != size:
        yield "r4-attachment-size", "size", f"is {show(data['size'])}; the data has {size} bytes"
    if "hash" in data and data["hash"] != _sha_1(text):
        yield "r4-attachment-hash", "hash", "is not the SHA-1 of the data in base64"


def _sha_1(text: str) -> str:
    """Return the SHA-1 of the bytes that `text` encodes in base64, in base64, too."""
    digest = hashlib.sha1(usedforsecurity=False)
    for start in range(0, len(text), STEP):
        digest.update(base64.b64decode(text[start : start + STEP]))
    return base64.b64encode(digest.digest()).decode()


def _bundle(data: JsonObject) -> Iterator[Fault]:
    """Check the links, and the fullUrl and references of each entry.

    https://hl7.org/fhir/R4/bundle.html#bundle-unique and https://hl7.org/fhir/R4/bundle.html#references
    """
    yield from _links(data)
    seen: dict[Any, int] = {}
    posted = data.get("type") in ("transaction", "batch")
    for index, entry in enumerate(objects(data.get("entry"))):
        url, resource = entry.get("fullUrl"), entry.get("resource")
        path = f"entry[{index}].fullUrl"
        if url is None and (not posted or any(not text.startswith("#") for text in _references(resource))):
            yield "r4-full-url", f"entry[{index}]", "has no fullUrl, which its references need to be understood"
        if not isinstance(url, str):
            continue
        yield from _relative_references(index, resource, posted=posted)
        if expected := _full_url_fault(url, resource if isinstance(resource, dict) else {}):
            yield "r4-full-url", path, f"is {show(url)}; {expected}"
        if seen.setdefault(url, index) != index:
            yield "bdl-7", path, f"is {show(url)}, the same as that of entry[{seen[url]}]; give every entry its own"


def _links(data: JsonObject) -> Iterator[Fault]:
    """Check that no link repeats, and that only search results and histories link to pages.

    https://hl7.org/fhir/R4/bundle.html
    """
    paged, seen = data.get("type") in ("searchset", "history"), set[str]()
    for index, link in enumerate(objects(data.get("link"))):
        relation, path = link.get("relation"), f"link[{index}].relation"
        if relation in PAGES and not paged:
            yield "r4-link", path, f"is {show(relation)}; only a searchset or history has pages"
        elif relation in ("self", *PAGES) and relation in seen:
            yield "r4-link", path, f"is {show(relation)} a second time; leave one of them out"
        if isinstance(relation, str):
            seen.add(relation)


def _relative_references(index: int, resource: Any, *, posted: bool) -> Iterator[Fault]:
    """Check that an entry's relative references are Type/id or, in a batch or transaction, a search."""
    for text in _references(resource):
        if text.startswith("#") or absolute(text) or text.count("/") in {1, 3} or (posted and SEARCH.fullmatch(text)):
            continue
        message = f"refers to {show(text)}; in a Bundle R4 requires Type/id or a URL"
        yield "r4-reference", f"entry[{index}].resource", message


def _references(value: Any) -> Iterator[str]:
    for item in nested_objects(value):
        if isinstance(item.get("reference"), str):
            yield item["reference"]


def _full_url_fault(url: str, resource: JsonObject) -> str | None:
    if not ABSOLUTE.fullmatch(url):
        return "R4 requires an absolute URL"
    if url.startswith("urn:uuid:") and not UUID.fullmatch(url.removeprefix("urn:uuid:")):
        return "R4 requires a lower-case UUID after urn:uuid:"
    restful = RESTFUL.fullmatch(url)
    if restful and resource and (restful[1], restful[2]) != (resource.get("resourceType"), resource.get("id")):
        return f"it must end with /{resource.get('resourceType')}/{resource.get('id')}, the resource's type and id"
    return None


def _extension(data: JsonObject) -> Iterator[Fault]:
    """Check ext-1: an extension has either extensions or a value."""
    valued = any(key.lstrip("_").startswith("value") for key in data)
    if valued == ("extension" in data):
        yield "ext-1", "", "must have either a value[x] or extensions, and not both"


def _identifier(data: JsonObject) -> Iterator[Fault]:
    """Check the system of an identifier, and the form that the system prescribes for its value."""
    system, value = data.get("system"), data.get("value")
    if isinstance(system, str) and system and not system.startswith((*SYSTEMS, "ldap:")):
        yield "r4-value", "system", f"is {show(system)}; R4 requires an absolute URI"
    if not isinstance(value, str) or not value:
        return
    if system == ANY_URI and not SCHEME_OF.match(value):
        yield "r4-value", "value", f"is {show(value)}; with the system {ANY_URI} it must be a full URI"
    if system == ANY_UUID and not UUID.fullmatch(value.removeprefix("urn:uuid:")):
        yield "r4-value", "value", f"is {show(value)}; with the system {ANY_UUID} it must be a UUID"


def _meta(data: JsonObject) -> Iterator[Fault]:
    """Check that no security label repeats."""
    seen: set[tuple[str, str]] = set()
    for index, label in enumerate(objects(data.get("security"))):
        key = (str(label.get("system")), str(label.get("code")))
        if key in seen:
            text = f"is {key[0]}#{key[1]} a second time; leave one of them out"
            yield "r4-duplicate-label", f"security[{index}]", text
        seen.add(key)


#: The checks by the name of the type; each yields the faults of an object of that type.
TYPE_CHECKS: Mapping[str, Callable[[JsonObject], Iterator[Fault]]] = {
    "Attachment": _attachment,
    "Bundle": _bundle,
    "Extension": _extension,
    "Identifier": _identifier,
    "Meta": _meta,
}
