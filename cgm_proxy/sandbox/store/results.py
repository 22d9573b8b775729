"""Bundles of search results and of histories, and their pages.

A search that has more than one page is remembered with the keys of all its matches, so that its `next` links
(`[base]?_getpages=...`, as HAPI's) walk through what was found then, whatever is written meanwhile. The oldest are
forgotten, and all of them with the process: such a link answers 410.
"""

import uuid
from collections import OrderedDict
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode

from cgm_proxy.core.json_values import JsonObject
from cgm_proxy.sandbox.store import moments, wire
from cgm_proxy.sandbox.store.faults import Refused
from cgm_proxy.sandbox.store.moments import instant
from cgm_proxy.sandbox.store.search import Query
from cgm_proxy.sandbox.store.store import Store, Version

__all__ = ["Found", "Pages", "history", "instant", "searchset", "status_line"]

#: Searches that are remembered for their further pages.
REMEMBERED = 1000

#: The tag of a resource that an answer shows in part.
SUBSETTED = {
    "system": "http://terminology.hl7.org/CodeSystem/v3-ObservationValue",
    "code": "SUBSETTED",
    "display": "Resource encoded in summary mode",
}


@dataclass(frozen=True, slots=True)
class Found:
    """What a search found, when it was made."""

    query: Query
    keys: list[int]
    at: int = field(default_factory=moments.now)
    id: str = field(default_factory=lambda: str(uuid.uuid4()))


class Pages:
    """The searches with further pages."""

    def __init__(self, most: int = REMEMBERED) -> None:
        self._found: OrderedDict[str, Found] = OrderedDict()
        self._most = most

    def remember(self, found: Found) -> None:
        """Keep a search for its next pages."""
        self._found[found.id] = found
        while len(self._found) > self._most:
            self._found.popitem(last=False)

    def recall(self, search_id: str) -> Found:
        """Give a search back; raises Refused (410) when it is forgotten."""
        if search_id not in self._found:
            text = f'HAPI-0417: Search ID "{search_id}" does not exist and may have expired'
            raise Refused(410, text)
        return self._found[search_id]


def searchset(store: Store, base: str, found: Found, self_url: str, offset: int, count: int) -> JsonObject:
    """Give one page of what was found, with links to the pages beside it."""
    query, total = found.query, len(found.keys)
    bundle: JsonObject = {"resourceType": "Bundle", "id": found.id, "meta": {"lastUpdated": instant(found.at)}}
    if query.counts_only:
        bundle["meta"]["tag"] = [SUBSETTED]
        return bundle | {"type": "searchset", "total": total}
    shown = found.keys[offset : offset + count]
    links = [{"relation": "self", "url": self_url}]
    if offset + count < total:
        links.append({"relation": "next", "url": _page(base, found, offset + count, count)})
    if offset:
        links.append({"relation": "previous", "url": _page(base, found, max(0, offset - count), count)})
    known = {"total": total} if query.total or offset + count >= total else {}
    entries = [_entry(base, version, query) for version in store.current(shown)]
    return bundle | {"type": "searchset"} | known | {"link": links} | ({"entry": entries} if entries else {})


def history(base: str, reference: str, versions: list[Version], query: Query) -> JsonObject:
    """Give one page of the versions of a resource."""
    start, stop = query.offset, query.offset + query.count
    url = f"{base}/{reference}/_history"
    links = [{"relation": "self", "url": url}]
    if stop < len(versions):
        links.append({"relation": "next", "url": f"{url}?_count={query.count}&_offset={stop}"})
    head: JsonObject = {
        "resourceType": "Bundle",
        "id": str(uuid.uuid4()),
        "meta": {"lastUpdated": instant(moments.now())},
    }
    entries = [_past(base, version) for version in versions[start:stop]]
    return head | {"type": "history", "total": len(versions), "link": links, "entry": entries}


def status_line(status: int) -> str:
    """Write a status as `entry.response.status` has it: `201 Created`."""
    return f"{status} {HTTPStatus(status).phrase}"


def _page(base: str, found: Found, offset: int, count: int) -> str:
    page = {"_getpages": found.id, "_getpagesoffset": offset, "_count": count, "_bundletype": "searchset"}
    return f"{base}?{urlencode(page)}"


def _entry(base: str, version: Version, query: Query) -> JsonObject:
    resource: Any = _subset(version, query.elements) if query.elements else version.content
    return {"fullUrl": f"{base}/{version.reference}", "resource": resource, "search": {"mode": "match"}}


def _subset(version: Version, elements: frozenset[str]) -> JsonObject:
    resource = wire.decode(version.body or b"{}")
    names = {element.split(".")[-1] for element in elements} - {"resourceType", "id", "meta"}
    meta = {**resource["meta"], "tag": [*resource["meta"].get("tag", []), SUBSETTED]}
    return {"resourceType": version.type, "id": version.id, "meta": meta} | {
        name: value for name, value in resource.items() if name in names
    }


def _past(base: str, version: Version) -> JsonObject:
    status = 201 if version.number == 1 else 200
    shown = {} if version.body is None else {"resource": version.content}
    return {
        "fullUrl": f"{base}/{version.reference}",
        **shown,
        "request": {"method": version.method, "url": version.location},
        "response": {"status": status_line(status), "etag": f'W/"{version.number}"'},
    }
