"""Read what a FHIR server answers to searches and transactions; a server, or a gateway before it, may answer anything.

What does not fit is left out of a search and is no confirmation of a transaction: nothing here raises.
"""

import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any
from urllib.parse import quote, unquote

import msgspec

from cgm_proxy.core.codec.json_body import decode
from cgm_proxy.core.json_values import JsonObject, objects
from cgm_proxy.core.submission.plan import Stored

#: A location's end, relative to the base: type, id and version (https://hl7.org/fhir/R4/http.html#create).
LOCATION = re.compile(r"(?:^|/)([A-Z][A-Za-z]*/[A-Za-z0-9\-.]{1,64}(?:/_history/[A-Za-z0-9\-._~=]{1,64})?)$")

#: What an ETag may be made of (RFC 9110, 8.8.3); HAPI writes the bare version in transaction-responses.
ETAG = re.compile(r'(?:W/)?"[\x21\x23-\x7e]*"')
VERSION = re.compile(r"[\x21\x23-\x7e]+")

#: The ETag of a first version.
FIRST = 'W/"1"'

#: What stands for itself in the query of a link; all else is percent-encoded.
_IN_QUERY = "!$%&'()*+,-./:;=?@_~|"


class _Response(msgspec.Struct, gc=False):
    """What is read of `Bundle.entry.response`; the outcome, most of its text, is passed over."""

    status: Any = None
    location: Any = None
    etag: Any = None


class _Answered(msgspec.Struct, gc=False):
    """An entry of a transaction-response."""

    response: _Response
    resource: Any = None


class _Responses(msgspec.Struct):
    """A transaction-response."""

    entry: list[_Answered]


_responses = msgspec.json.Decoder(_Responses, float_hook=Decimal)


def document(data: bytes) -> JsonObject | None:
    """Parse an answer's body, or give None where it is not a JSON object."""
    try:
        return decode(data)
    except (msgspec.DecodeError, ValueError, ArithmeticError, RecursionError):
        return None


def resources(page: JsonObject, kind: str) -> Iterator[JsonObject]:
    """Give the resources of one type that a searchset holds, without outcomes and whatever was included."""
    for entry in objects(page.get("entry")):
        resource = entry.get("resource")
        if isinstance(resource, dict) and resource.get("resourceType") == kind and location_of(resource):
            yield resource


def next_page(page: JsonObject, kind: str) -> str | None:
    """Give the link to a search's next page as path and query below the base, wherever the link itself points."""
    urls = [link.get("url") for link in objects(page.get("link")) if link.get("relation") == "next"]
    if not urls or not isinstance(url := urls[0], str):
        return None
    path, _, query = url.partition("#")[0].partition("?")
    steps = [unquote(step) for step in path.split("/") if step]
    below = "/".join(steps[steps.index(kind) :]) if kind in steps else ""
    return (f"/{quote(below)}" if below else "") + "?" + quote(query, safe=_IN_QUERY)


def location_of(resource: JsonObject) -> Stored | None:
    """Give where a resource that was read or found is stored, or None where it has no id."""
    name = resource.get("id")
    place = LOCATION.fullmatch(f"{resource.get('resourceType')}/{name}")
    if not isinstance(name, str) or not place:
        return None
    meta = resource.get("meta")
    version = meta.get("versionId") if isinstance(meta, dict) else None
    if not isinstance(version, str) or not LOCATION.fullmatch(f"{place[1]}/_history/{version}"):
        return Stored(place[1])
    return Stored(f"{place[1]}/_history/{version}", f'W/"{version}"')


def about(resource: JsonObject) -> str | None:
    """Give the reference to whom a resource is about, or None where it names nobody."""
    for name in ("subject", "patient"):
        element = resource.get(name)
        if isinstance(element, dict) and isinstance(reference := element.get("reference"), str):
            return reference
    return None


def confirmation(data: bytes, count: int) -> list[Stored] | None:
    """Read a transaction-response to `count` conditional creates: 201 or 200, and a location, for each; else None."""
    try:
        entries = _responses.decode(data).entry
    except (msgspec.DecodeError, ValueError, ArithmeticError, RecursionError):
        return None
    found = [
        one for e in entries if (one := _stored(e.response.status, e.response.location, e.response.etag, e.resource))
    ]
    return found if len(found) == len(entries) == count else None


def stored(entry: Any) -> Stored | None:
    """Read an entry of a response Bundle: where it is stored; None where it does not say that."""
    response = entry.get("response") if isinstance(entry, dict) else None
    if not isinstance(response, dict):
        return None
    return _stored(response.get("status"), response.get("location"), response.get("etag"), entry.get("resource"))


def _stored(said: Any, location: Any, tag: Any, resource: Any) -> Stored | None:
    status, place = str(said)[:3], LOCATION.search(str(location))
    if status not in {"200", "201"} or place is None:
        return None
    return Stored(place[1], etag(tag), status == "201", resource if isinstance(resource, dict) else None)


def etag(value: Any) -> str | None:
    """Give an ETag that may stand in a header field, also from a bare version; None for anything else."""
    if value == "1":  # HAPI's, of what is new: one string for all
        return FIRST
    if not isinstance(value, str) or ETAG.fullmatch(value):
        return value if isinstance(value, str) else None
    return f'W/"{value}"' if VERSION.fullmatch(value) else None
