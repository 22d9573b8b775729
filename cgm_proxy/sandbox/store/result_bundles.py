"""Bundles of search results and of histories, and their pages.

A search with more than one page is cached with the keys of all its matches. Its `next` links (`[base]?_getpages=...`, as
HAPI's) page through what was found at first, even if resources are written in the meantime. The oldest searches leave the
cache first; a link to one that is gone is answered with 410.
"""

import uuid
from collections import OrderedDict
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode

from cgm_proxy.core.codec.json_body import decode
from cgm_proxy.core.json_values import JsonObject
from cgm_proxy.sandbox.store import time_spans
from cgm_proxy.sandbox.store.database import Database, Version
from cgm_proxy.sandbox.store.outcomes import StoreError
from cgm_proxy.sandbox.store.search import SearchQuery

#: Searches in the cache.
MAX_SEARCHES = 1000

#: The tag of a resource of which a response shows only a part.
SUBSETTED = {
    "system": "http://terminology.hl7.org/CodeSystem/v3-ObservationValue",
    "code": "SUBSETTED",
    "display": "Resource encoded in summary mode",
}


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The keys of a search's matches, and when it was made (milliseconds since 1970)."""

    query: SearchQuery
    keys: list[int]
    time: int = field(default_factory=time_spans.now)
    id: str = field(default_factory=lambda: str(uuid.uuid4()))


class SearchCache:
    """The searches with more than one page."""

    def __init__(self, max_searches: int = MAX_SEARCHES) -> None:
        self._results: OrderedDict[str, SearchResult] = OrderedDict()
        self._max_searches = max_searches

    def add(self, result: SearchResult) -> None:
        """Store a search for its next pages."""
        self._results[result.id] = result
        while len(self._results) > self._max_searches:
            self._results.popitem(last=False)

    def get(self, search_id: str) -> SearchResult:
        """Return a search; raise StoreError (410) if it is not in the cache."""
        if search_id not in self._results:
            raise StoreError(410, f'HAPI-0417: Search ID "{search_id}" does not exist and may have expired')
        return self._results[search_id]


def search_bundle(
    database: Database, base: str, result: SearchResult, self_url: str, offset: int, count: int
) -> JsonObject:
    """Return one page of a search's matches, with links to the next and the previous page."""
    query, total = result.query, len(result.keys)
    bundle: JsonObject = {
        "resourceType": "Bundle",
        "id": result.id,
        "meta": {"lastUpdated": time_spans.format_instant(result.time)},
    }
    if query.counts_only:
        bundle["meta"]["tag"] = [SUBSETTED]
        return bundle | {"type": "searchset", "total": total}
    links = [{"relation": "self", "url": self_url}]
    if offset + count < total:
        links.append({"relation": "next", "url": _page_url(base, result, offset + count, count)})
    if offset:
        links.append({"relation": "previous", "url": _page_url(base, result, max(0, offset - count), count)})
    known_total = {"total": total} if query.total or offset + count >= total else {}
    versions = database.current(result.keys[offset : offset + count])
    entries = [_match_entry(base, version, query) for version in versions]
    return bundle | {"type": "searchset"} | known_total | {"link": links} | ({"entry": entries} if entries else {})


def history_bundle(base: str, reference: str, versions: list[Version], query: SearchQuery) -> JsonObject:
    """Return one page of the versions of a resource."""
    start, stop = query.offset, query.offset + query.count
    url = f"{base}/{reference}/_history"
    links = [{"relation": "self", "url": url}]
    if stop < len(versions):
        links.append({"relation": "next", "url": f"{url}?_count={query.count}&_offset={stop}"})
    return {
        "resourceType": "Bundle",
        "id": str(uuid.uuid4()),
        "meta": {"lastUpdated": time_spans.format_instant(time_spans.now())},
        "type": "history",
        "total": len(versions),
        "link": links,
        "entry": [_version_entry(base, version) for version in versions[start:stop]],
    }


def status_line(status: int) -> str:
    """Return a status as in `entry.response.status`: `201 Created`."""
    return f"{status} {HTTPStatus(status).phrase}"


def _page_url(base: str, result: SearchResult, offset: int, count: int) -> str:
    page = {"_getpages": result.id, "_getpagesoffset": offset, "_count": count, "_bundletype": "searchset"}
    return f"{base}?{urlencode(page)}"


def _match_entry(base: str, version: Version, query: SearchQuery) -> JsonObject:
    resource: Any = _subset(version, query.elements) if query.elements else version.content
    return {"fullUrl": f"{base}/{version.reference}", "resource": resource, "search": {"mode": "match"}}


def _subset(version: Version, elements: frozenset[str]) -> JsonObject:
    resource = decode(version.body or b"{}")
    names = {element.split(".")[-1] for element in elements} - {"resourceType", "id", "meta"}
    meta = {**resource["meta"], "tag": [*resource["meta"].get("tag", []), SUBSETTED]}
    return {"resourceType": version.type, "id": version.id, "meta": meta} | {
        name: value for name, value in resource.items() if name in names
    }


def _version_entry(base: str, version: Version) -> JsonObject:
    status = 201 if version.number == 1 else 200
    content = {} if version.body is None else {"resource": version.content}
    return {
        "fullUrl": f"{base}/{version.reference}",
        **content,
        "request": {"method": version.method, "url": version.location},
        "response": {"status": status_line(status), "etag": f'W/"{version.number}"'},
    }
