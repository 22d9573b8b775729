"""From a method and a path to an interaction (https://hl7.org/fhir/R4/http.html)."""

from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote

from cgm_proxy.core.json_values import JsonObject
from cgm_proxy.sandbox.store import capability, interactions, search
from cgm_proxy.sandbox.store.faults import Refused
from cgm_proxy.sandbox.store.interactions import Request, StoreResponse
from cgm_proxy.sandbox.store.parameters import RESOURCE_TYPES
from cgm_proxy.sandbox.store.results import Found, Pages, searchset
from cgm_proxy.sandbox.store.store import Store


@dataclass(frozen=True, slots=True)
class Server:
    """What the interactions work on."""

    store: Store
    pages: Pages = field(default_factory=Pages)


def request_of(
    method: str,
    path: str,
    query: str = "",
    resource: JsonObject | None = None,
    if_none_exist: str | None = None,
    if_match: str | None = None,
) -> Request:
    """Read the path below the base (`Patient/1/_history/2`); raises Refused on what no interaction has."""
    parts = [unquote(part) for part in path.split("/") if part]
    shape, names = _shape(method, parts, path)
    pairs = tuple(parse_qsl(query, keep_blank_values=True))
    kind, resource_id, version = (names.get(name, "") for name in ("type", "id", "version"))
    request = Request(method, kind, resource_id, version, shape, pairs, query, resource or {}, if_none_exist, if_match)
    if request.type and request.type not in RESOURCE_TYPES:
        raise interactions.unknown_type(request.type)
    return request


def perform(server: Server, request: Request, base: str) -> StoreResponse:
    """Carry out one interaction; `base` is the server's URL in the answer."""
    found = _INTERACTIONS.get((request.method, request.shape))
    if found is None:
        raise _unsupported(request.method, request.reference)
    return found(server, request, base)


def _shape(method: str, parts: list[str], path: str) -> tuple[str, dict[str, str]]:
    match parts:
        case []:
            text = "HAPI-0287: This is the base URL of FHIR server. Unable to handle this request, as it does not contain a"
            raise Refused(400, f"{text} resource type or operation name.")
        case ["metadata"]:
            return "metadata", {}
        case [kind, "_search"]:
            return "search", {"type": kind}
        case [kind] if not kind.startswith(("$", "_")):
            return "type", {"type": kind}
        case [kind, resource_id] if not resource_id.startswith(("$", "_")):
            return "instance", {"type": kind, "id": resource_id}
        case [kind, resource_id, "_history"]:
            return "history", {"type": kind, "id": resource_id}
        case [kind, resource_id, "_history", version]:
            return "version", {"type": kind, "id": resource_id, "version": version}
    raise _unsupported(method, path.strip("/"))


def _unsupported(method: str, path: str) -> Refused:
    text = f"Invalid request: The FHIR endpoint on this server does not know how to handle {method} operation[{path}]"
    return Refused(501 if method == "PATCH" else 400, f"{text} with parameters [[]]", code="not-supported")


def _search(server: Server, request: Request, base: str) -> StoreResponse:
    query = search.parse(request.type, request.query)
    found = Found(query, query.keys(server.store))
    if query.offset + query.count < len(found.keys) and not query.counts_only:
        server.pages.remember(found)
    asked = "/_search" if request.method == "POST" else f"?{request.condition}" if request.condition else ""
    url = f"{base}/{request.type}{asked}"
    return StoreResponse(200, content=searchset(server.store, base, found, url, query.offset, query.count))


def _create(server: Server, request: Request, _base: str) -> StoreResponse:
    return interactions.write(server.store, request)


def _create_with_id(_server: Server, request: Request, _base: str) -> StoreResponse:
    text = f'HAPI-0365: Can not create resource with ID "{request.id}", ID must not be supplied on a create (POST)'
    raise Refused(400, f"{text} operation (use an HTTP PUT / update operation if you wish to supply an ID)")


def _update(server: Server, request: Request, _base: str) -> StoreResponse:
    found = request.resource.get("id")
    if found is None:
        text = "HAPI-0419: Can not update resource, resource body must contain an ID element for update (PUT) operation"
        raise Refused(400, text)
    if found != request.id:
        text = (
            "HAPI-0420: Can not update resource, resource body must contain an ID element which matches the request URL"
        )
        detail = f'for update (PUT) operation - Resource body ID of "{found}" does not match URL ID of "{request.id}"'
        raise Refused(400, f"{text} {detail}")
    return interactions.write(server.store, request)


def _update_match(server: Server, request: Request, _base: str) -> StoreResponse:
    if not request.condition:
        text = "HAPI-0418: Can not update resource, request URL must contain an ID element for update (PUT) operation"
        raise Refused(400, f"{text} (it must be of the form [base]/[resource type]/[id])")
    return interactions.write(server.store, request)


def _delete(server: Server, request: Request, _base: str) -> StoreResponse:
    return interactions.delete(server.store, request)


def _read(server: Server, request: Request, _base: str) -> StoreResponse:
    return interactions.read(server.store, request)


def _history(server: Server, request: Request, base: str) -> StoreResponse:
    return interactions.history(server.store, request, base)


def _metadata(_server: Server, _request: Request, base: str) -> StoreResponse:
    return StoreResponse(200, content=capability.statement(base))


_INTERACTIONS: dict[tuple[str, str], Callable[[Server, Request, str], StoreResponse]] = {
    ("GET", "metadata"): _metadata,
    ("GET", "type"): _search,
    ("GET", "search"): _search,
    ("POST", "search"): _search,
    ("POST", "type"): _create,
    ("POST", "instance"): _create_with_id,
    ("PUT", "instance"): _update,
    ("PUT", "type"): _update_match,
    ("DELETE", "instance"): _delete,
    ("DELETE", "type"): _delete,
    ("GET", "instance"): _read,
    ("GET", "version"): _read,
    ("GET", "history"): _history,
}
