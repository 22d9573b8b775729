"""The HTTP side of the store: a FHIR R4 server for JSON only, for the demo and for tests.

Statuses, headers and the texts of errors are HAPI's. The store has no PATCH, operations, XML, type and system histories,
or _include, and only the search parameters that are listed in `search_parameters`.
"""

from collections.abc import AsyncIterator
from dataclasses import replace
from email.utils import formatdate
from uuid import uuid4

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler

from cgm_proxy.core.codec.bodies import media_type
from cgm_proxy.core.codec.json_body import decode, encode
from cgm_proxy.core.json_values import JsonObject
from cgm_proxy.sandbox.store import bundles
from cgm_proxy.sandbox.store.database import Database, Version
from cgm_proxy.sandbox.store.interactions import StoreRequest, StoreResponse
from cgm_proxy.sandbox.store.outcomes import StoreError, unreadable
from cgm_proxy.sandbox.store.result_bundles import search_bundle
from cgm_proxy.sandbox.store.routes import StoreServer, parse_request, perform
from cgm_proxy.sandbox.store.search import parse_number

#: Largest accepted body after decompression (bytes).
BODY_BYTES = 256 * 2**20

_BASE_PATH = "/fhir"
#: HAPI's names of the operations that have a resource as body.
_OPERATIONS = {"POST": "CREATE", "PUT": "UPDATE"}
_SERVER: web.AppKey[StoreServer] = web.AppKey("server", StoreServer)


def make_app(path: str | None = None) -> web.Application:
    """Return the server, whose base is /fhir; it stores in memory, or durably in the SQLite file at `path`."""
    app = web.Application(client_max_size=BODY_BYTES, middlewares=[_answer_errors])

    async def open_database(app: web.Application) -> AsyncIterator[None]:
        database = Database(path)
        app[_SERVER] = StoreServer(database)
        yield
        database.close()

    app.cleanup_ctx.append(open_database)
    app.router.add_route("*", _BASE_PATH + "{path:(/.*)?}", _handle)
    return app


@web.middleware
async def _answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        response = await handler(request)
    except StoreError as error:
        response = _json(error.status, error.outcome())
        if error.location:
            response.headers["Location"] = f"{_base(request)}/{error.location}"
    except web.HTTPException as error:
        response = _json(error.status, StoreError(error.status, error.reason).outcome())
    response.headers["X-Request-ID"] = request.headers.get("X-Request-ID") or uuid4().hex[:16]
    return response


async def _handle(http: web.Request) -> web.Response:
    _check_accept(http)
    body = await http.read()
    path, server, base = http.match_info["path"], http.app[_SERVER], _base(http)
    if not path.strip("/") and http.method == "POST":
        bundle = _read_resource(http, body, "Bundle")
        response = bundles.process(server, bundle, base, representation=_preferred_return(http) == "representation")
        location = f"{base}/Bundle/{response['id']}"
        return _json(200, response, {"Location": location, "Content-Location": location})
    if not path.strip("/") and "_getpages" in http.query and http.method == "GET":
        return _json(200, _page(server, http, base))
    request = _parse(http, body)
    return _render(http, request, perform(server, request, base), base)


def _check_accept(http: web.Request) -> None:
    """Raise StoreError (406) for a client that accepts only XML."""
    accepted = [media_type(part) for part in http.headers.get("Accept", "*/*").split(",")]
    parameter = http.query.get("_format", "")
    if "xml" in parameter or (all(format_ == "xml" for format_ in accepted) and not parameter):
        raise StoreError(406, "This store answers in JSON only: accept application/fhir+json", code="not-supported")


def _parse(http: web.Request, body: bytes) -> StoreRequest:
    """Return the request for an interaction, from the path as it was sent, the headers and the body."""
    method = "GET" if http.method == "HEAD" else http.method
    path = http.raw_path.partition("?")[0].removeprefix(_BASE_PATH)
    query_string = http.rel_url.raw_query_string
    if http.content_type == "application/x-www-form-urlencoded" and method == "POST":
        form = body.decode(errors="replace")
        return parse_request(method, path, "&".join(part for part in (query_string, form) if part))
    request = replace(
        parse_request(method, path, query_string),
        if_none_exist=http.headers.get("If-None-Exist"),
        if_match=http.headers.get("If-Match"),
    )
    if method not in _OPERATIONS or request.endpoint == "search":
        return request
    return replace(request, resource=_read_resource(http, body, request.type))


def _read_resource(http: web.Request, body: bytes, resource_type: str) -> JsonObject:
    """Return the resource in the body; raise StoreError (415 for XML, else 400) for anything but JSON of this type."""
    operation = _OPERATIONS[http.method]
    if "Content-Type" not in http.headers:
        text = f'This is required for "{operation}" operation'
        raise StoreError(400, f"HAPI-0448: No Content-Type header was provided in the request. {text}")
    if media_type(http.content_type) == "xml":
        raise StoreError(415, "This store reads JSON only: send application/fhir+json", code="not-supported")
    if media_type(http.content_type) != "json":
        text = f'HAPI-0449: Incorrect Content-Type header value of "{http.headers["Content-Type"]}" was provided'
        text = f'{text} in the request. A FHIR Content-Type is required for "{operation}" operation'
        raise StoreError(400, text)
    try:
        resource = decode(body)
    except msgspec.DecodeError as error:
        raise unreadable(f"HAPI-1861: Failed to parse JSON encoded FHIR content: {error}") from None
    except RecursionError:
        raise unreadable("HAPI-1861: Failed to parse JSON encoded FHIR content: nested too deeply") from None
    found = resource.get("resourceType")
    if not isinstance(found, str):
        raise unreadable("HAPI-1838: Invalid JSON content detected, missing required element: 'resourceType'")
    if found != resource_type:
        raise unreadable(f'HAPI-1814: Incorrect resource type found, expected "{resource_type}" but found "{found}"')
    return resource


def _page(server: StoreServer, http: web.Request, base: str) -> JsonObject:
    result = server.searches.get(http.query["_getpages"])
    offset = parse_number("_getpagesoffset", http.query.get("_getpagesoffset"), 0)
    count = parse_number("_count", http.query.get("_count"), result.query.count)
    return search_bundle(server.database, base, result, f"{base}?{http.query_string}", offset, count)


def _render(http: web.Request, request: StoreRequest, response: StoreResponse, base: str) -> web.Response:
    """Return the HTTP response to one interaction."""
    if response.content is not None:
        return _json(response.status, response.content)
    version, is_write, preferred = response.version, response.outcome is not None, _preferred_return(http)
    headers = _version_headers(version, base) if version else {}
    if version and not is_write and f'"{version.number}"' in http.headers.get("If-None-Match", ""):
        return web.Response(status=304, headers={"ETag": headers["ETag"]})
    if version and is_write and request.method == "POST":
        headers["Location"] = headers["Content-Location"]
    if is_write and (request.method == "DELETE" or preferred == "OperationOutcome"):
        return _json(response.status, response.outcome, headers)
    if is_write and preferred == "minimal":
        return web.Response(status=response.status, headers=headers)
    return _json(response.status, version.content if version else response.outcome, headers)


def _version_headers(version: Version, base: str) -> dict[str, str]:
    headers = {"Content-Location": f"{base}/{version.location}"}
    if version.body is None:
        return headers
    modified = formatdate(version.updated // 1000, usegmt=True)
    return headers | {"ETag": f'W/"{version.number}"', "Last-Modified": modified}


def _preferred_return(http: web.Request) -> str:
    """Return the value of `Prefer: return=...`; HAPI's default is the representation, but not in Bundles."""
    preferences = [part.strip() for part in http.headers.get("Prefer", "").split(";")]
    values = [preference.removeprefix("return=") for preference in preferences if "return=" in preference]
    return values[0] if values else ""


def _base(http: web.Request) -> str:
    """Return the base URL.

    X-Forwarded-* headers change it, as with HAPI's ApacheProxyAddressStrategy, which takes the first item of each.
    """
    proto, host, port, prefix = (
        http.headers.get(f"X-Forwarded-{name}", "").split(",")[0].strip()
        for name in ("Proto", "Host", "Port", "Prefix")
    )
    authority = host or (http.host.rsplit(":", 1)[0] if proto else http.host)
    if port:
        authority = f"{authority.rsplit(':', 1)[0]}:{port}"
    return f"{proto or 'http'}://{authority}{(prefix or _BASE_PATH).rstrip('/')}"


def _json(status: int, content: object, headers: dict[str, str] | None = None) -> web.Response:
    content_type = {"Content-Type": "application/fhir+json;charset=UTF-8"}
    return web.Response(status=status, body=encode(content), headers=content_type | (headers or {}))
