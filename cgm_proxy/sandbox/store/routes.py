"""The interaction that a method and a path name (https://hl7.org/fhir/R4/http.html)."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from urllib.parse import parse_qsl, unquote

from cgm_proxy.sandbox.store import capability, interactions
from cgm_proxy.sandbox.store.database import Database
from cgm_proxy.sandbox.store.interactions import StoreRequest, StoreResponse
from cgm_proxy.sandbox.store.outcomes import StoreError
from cgm_proxy.sandbox.store.result_bundles import SearchCache, SearchResult, search_bundle
from cgm_proxy.sandbox.store.search import parse_search
from cgm_proxy.sandbox.store.search_parameters import RESOURCE_TYPES


@dataclass(frozen=True, slots=True)
class StoreServer:
    """The state that the interactions work on."""

    database: Database
    searches: SearchCache = field(default_factory=SearchCache)


def parse_request(method: str, path: str, query_string: str = "") -> StoreRequest:
    """Return the request for a path below the base, for example `Patient/1/_history/2`; its resource is still to be set.

    Raises StoreError if no interaction has such a path.
    """
    request = _parse_path(method, path)
    if request.type and request.type not in RESOURCE_TYPES:
        raise interactions.unknown_type(request.type)
    query = tuple(parse_qsl(query_string, keep_blank_values=True))
    return replace(request, query=query, query_string=query_string)


def perform(server: StoreServer, request: StoreRequest, base: str) -> StoreResponse:
    """Carry out one interaction; `base` is the server's URL in the response."""
    interaction = _INTERACTIONS.get((request.method, request.endpoint))
    if interaction is None:
        raise _unsupported(request.method, request.reference)
    return interaction(server, request, base)


def _parse_path(method: str, path: str) -> StoreRequest:
    match [unquote(part) for part in path.split("/") if part]:
        case []:
            text = "HAPI-0287: This is the base URL of FHIR server. Unable to handle this request, as it does not contain a"
            raise StoreError(400, f"{text} resource type or operation name.")
        case ["metadata"]:
            return StoreRequest(method, "metadata")
        case [resource_type, "_search"]:
            return StoreRequest(method, "search", resource_type)
        case [resource_type] if not resource_type.startswith(("$", "_")):
            return StoreRequest(method, "type", resource_type)
        case [resource_type, resource_id] if not resource_id.startswith(("$", "_")):
            return StoreRequest(method, "instance", resource_type, resource_id)
        case [resource_type, resource_id, "_history"]:
            return StoreRequest(method, "history", resource_type, resource_id)
        case [resource_type, resource_id, "_history", version]:
            return StoreRequest(method, "version", resource_type, resource_id, version)
    raise _unsupported(method, path.strip("/"))


def _unsupported(method: str, path: str) -> StoreError:
    text = f"Invalid request: The FHIR endpoint on this server does not know how to handle {method} operation[{path}]"
    return StoreError(501 if method == "PATCH" else 400, f"{text} with parameters [[]]", code="not-supported")


def _search(server: StoreServer, request: StoreRequest, base: str) -> StoreResponse:
    query = parse_search(request.type, request.query)
    result = SearchResult(query, query.keys(server.database))
    if query.offset + query.count < len(result.keys) and not query.counts_only:
        server.searches.add(result)
    self_url = f"{base}/{request.type}"
    if request.method == "POST":
        self_url += "/_search"
    elif request.query_string:
        self_url += f"?{request.query_string}"
    content = search_bundle(server.database, base, result, self_url, query.offset, query.count)
    return StoreResponse(200, content=content)


def _create(server: StoreServer, request: StoreRequest, _base: str) -> StoreResponse:
    return interactions.write(server.database, request)


def _create_with_id(_server: StoreServer, request: StoreRequest, _base: str) -> StoreResponse:
    text = f'HAPI-0365: Can not create resource with ID "{request.id}", ID must not be supplied on a create (POST)'
    raise StoreError(400, f"{text} operation (use an HTTP PUT / update operation if you wish to supply an ID)")


def _update(server: StoreServer, request: StoreRequest, _base: str) -> StoreResponse:
    body_id = request.resource.get("id")
    if body_id is None:
        text = "HAPI-0419: Can not update resource, resource body must contain an ID element for update (PUT) operation"
        raise StoreError(400, text)
    if body_id != request.id:
        text = (
            "HAPI-0420: Can not update resource, resource body must contain an ID element which matches the request URL"
        )
        detail = f'for update (PUT) operation - Resource body ID of "{body_id}" does not match URL ID of "{request.id}"'
        raise StoreError(400, f"{text} {detail}")
    return interactions.write(server.database, request)


def _update_match(server: StoreServer, request: StoreRequest, _base: str) -> StoreResponse:
    if not request.query_string:
        text = "HAPI-0418: Can not update resource, request URL must contain an ID element for update (PUT) operation"
        raise StoreError(400, f"{text} (it must be of the form [base]/[resource type]/[id])")
    return interactions.write(server.database, request)


def _delete(server: StoreServer, request: StoreRequest, _base: str) -> StoreResponse:
    return interactions.delete(server.database, request)


def _read(server: StoreServer, request: StoreRequest, _base: str) -> StoreResponse:
    return interactions.read(server.database, request)


def _history(server: StoreServer, request: StoreRequest, base: str) -> StoreResponse:
    return interactions.history(server.database, request, base)


def _metadata(_server: StoreServer, _request: StoreRequest, base: str) -> StoreResponse:
    return StoreResponse(200, content=capability.statement(base))


_INTERACTIONS: dict[tuple[str, str], Callable[[StoreServer, StoreRequest, str], StoreResponse]] = {
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
