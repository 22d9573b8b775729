"""Which cached values a streamed write may invalidate: a create changes no other resource, an operation may change any."""

from collections.abc import Iterable, Sequence
from typing import Final

from cgm_proxy.cache.backends import Namespace
from cgm_proxy.core.json_values import JsonObject, objects
from cgm_proxy.core.submission.detection import MAX_PATH, path_segments
from cgm_proxy.core.submission.model import ParsedEntries

#: Resource types whose stored entries are cached, and those that a patient's orders depend on; in lower case, because some
#: servers accept any case.
_KNOWN_TYPES: Final = frozenset({"observation", "diagnosticreport", "device"})
_ORDER_TYPES: Final = frozenset({"servicerequest", "patient"})

#: Methods that change nothing.
_READS: Final = frozenset({"GET", "HEAD", "OPTIONS"})

_EVERYTHING: Final[frozenset[Namespace]] = frozenset({"known", "orders"})


def affected_by_write(methods: Iterable[str], path: Sequence[str]) -> frozenset[Namespace]:
    """Return what a streamed write by any of the methods may change; `path` holds its path's segments.

    Several methods are possible because a request may override its own.
    """
    return frozenset(namespace for method in methods for namespace in _affected(method.upper(), path))


def affected_by_bundle(bundle: JsonObject) -> frozenset[Namespace]:
    """Return what a streamed Bundle may change."""
    affected: frozenset[Namespace] = frozenset()
    entries = bundle.get("entry")
    for entry in objects(entries.outlines if isinstance(entries, ParsedEntries) else entries):
        request, resource = entry.get("request"), entry.get("resource")
        request = request if isinstance(request, dict) else {}
        method, url = str(request.get("method")).upper(), str(request.get("url"))
        # HAPI creates by the resource's type, whatever the URL says.
        resource_type = str(resource.get("resourceType")) if isinstance(resource, dict) else ""
        path = [resource_type, *path_segments(url[:MAX_PATH])]
        affected |= _EVERYTHING if len(url) > MAX_PATH and method != "GET" else _affected(method, path)
        if affected == _EVERYTHING:
            break
    return affected


def _affected(method: str, path: Sequence[str]) -> frozenset[Namespace]:
    if method in _READS or (method == "POST" and [*path[-1:]] == ["_search"]):
        return frozenset()
    # A server can be set up to delete the resources that reference a deleted one, too.
    if method == "DELETE" or any(segment.startswith("$") for segment in path):
        return _EVERYTHING
    names = {segment.lower() for segment in path}
    affected: set[Namespace] = set()
    if not names.isdisjoint(_ORDER_TYPES):
        affected.add("orders")
    if method != "POST" and not names.isdisjoint(_KNOWN_TYPES):
        affected.add("known")
    return frozenset(affected)
