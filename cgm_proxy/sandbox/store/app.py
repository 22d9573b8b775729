"""The HTTP face of the store: a FHIR R4 server, JSON only, for the demo and for tests.

What it supports it answers as HAPI does: statuses, headers and the texts of refusals. It leaves out PATCH, operations,
XML, type and system histories, _include and the search parameters that `parameters.py` does not list.
"""

from collections.abc import AsyncIterator
from email.utils import formatdate
from uuid import uuid4

from aiohttp import web
from aiohttp.typedefs import Handler

from cgm_proxy.core.json_values import JsonObject
from cgm_proxy.sandbox.store import bundles, results, routes, search, wire
from cgm_proxy.sandbox.store.faults import Refused
from cgm_proxy.sandbox.store.interactions import Request, StoreResponse
from cgm_proxy.sandbox.store.store import Store, Version

#: Largest body taken, after inflating (bytes).
BODY_BYTES = 256 * 2**20

_JSON = frozenset({"application/fhir+json", "application/json", "application/json+fhir", "text/json"})
_XML = frozenset({"application/fhir+xml", "application/xml", "text/xml", "application/xml+fhir"})
_BASE_PATH = "/fhir"
_OPERATIONS = {"POST": "CREATE", "PUT": "UPDATE"}
_SERVER: web.AppKey[routes.Server] = web.AppKey("server", routes.Server)


def make_app(path: str | None = None) -> web.Application:
    """Make the server with its base at /fhir; it stores in memory, or durably in the SQLite file at `path`."""
    app = web.Application(client_max_size=BODY_BYTES, middlewares=[_refusing])

    async def opened(app: web.Application) -> AsyncIterator[None]:
        store = Store(path)
        app[_SERVER] = routes.Server(store)
        yield
        store.close()

    app.cleanup_ctx.append(opened)
    app.router.add_route("*", _BASE_PATH + "{path:(/.*)?}", _handle)
    return app


@web.middleware
async def _refusing(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        response = await handler(request)
    except Refused as refused:
        response = _json(refused.status, refused.outcome())
        if refused.location:
            response.headers["Location"] = f"{_base(request)}/{refused.location}"
    except web.HTTPException as fault:
        response = _json(fault.status, Refused(fault.status, fault.reason).outcome())
    response.headers["X-Request-ID"] = request.headers.get("X-Request-ID") or uuid4().hex[:16]
    return response


async def _handle(http: web.Request) -> web.Response:
    _check_acceptable(http)
    body = await http.read()
    path, server, base = http.match_info["path"], http.app[_SERVER], _base(http)
    if not path.strip("/") and http.method == "POST":
        return _process(server, http, wire.resource_of(_checked(http, body), "Bundle"), base)
    if not path.strip("/") and "_getpages" in http.query and http.method == "GET":
        return _json(200, _page(server, http, base))
    request = _request(http, body)
    return _respond(http, request, routes.perform(server, request, base), base)


def _request(http: web.Request, body: bytes) -> Request:
    """Read the interaction from the path as it was sent, the headers and the body."""
    method = "GET" if http.method == "HEAD" else http.method
    path = http.raw_path.partition("?")[0].removeprefix(_BASE_PATH)
    query = http.rel_url.raw_query_string
    if http.content_type == "application/x-www-form-urlencoded" and method == "POST":
        query = "&".join(part for part in (query, body.decode(errors="replace")) if part)
        return routes.request_of(method, path, query)
    request = routes.request_of(
        method, path, query, if_none_exist=http.headers.get("If-None-Exist"), if_match=http.headers.get("If-Match")
    )
    if method not in _OPERATIONS or request.shape == "search":
        return request
    resource = wire.resource_of(_checked(http, body), request.type)
    return routes.request_of(
        method, path, query, resource, if_none_exist=request.if_none_exist, if_match=request.if_match
    )


def _checked(http: web.Request, body: bytes) -> bytes:
    """Give the body if it is declared as JSON; raises Refused (415 for XML, else 400 as HAPI)."""
    if "Content-Type" not in http.headers:
        text = f'This is required for "{_OPERATIONS[http.method]}" operation'
        raise Refused(400, f"HAPI-0448: No Content-Type header was provided in the request. {text}")
    if http.content_type in _XML:
        raise Refused(415, "This store reads JSON only: send application/fhir+json", code="not-supported")
    if http.content_type not in _JSON:
        text = f'HAPI-0449: Incorrect Content-Type header value of "{http.headers["Content-Type"]}" was provided'
        text = f'{text} in the request. A FHIR Content-Type is required for "{_OPERATIONS[http.method]}" operation'
        raise Refused(400, text)
    return body


def _check_acceptable(http: web.Request) -> None:
    """Raise Refused (406) for a client that takes XML only."""
    accepted = {part.split(";")[0].strip() for part in http.headers.get("Accept", "*/*").split(",")}
    wanted = http.query.get("_format", "")
    if "xml" in wanted or (accepted <= _XML and not wanted):
        raise Refused(406, "This store answers in JSON only: accept application/fhir+json", code="not-supported")


def _process(server: routes.Server, http: web.Request, bundle: JsonObject, base: str) -> web.Response:
    answer = bundles.process(server, bundle, base, representation=_preferred(http) == "representation")
    location = f"{base}/Bundle/{answer['id']}"
    return _json(200, answer, {"Location": location, "Content-Location": location})


def _page(server: routes.Server, http: web.Request, base: str) -> JsonObject:
    found = server.pages.recall(http.query["_getpages"])
    offset = search.number("_getpagesoffset", http.query.get("_getpagesoffset"), 0)
    count = search.number("_count", http.query.get("_count"), found.query.count)
    return results.searchset(server.store, base, found, f"{base}?{http.query_string}", offset, count)


def _respond(http: web.Request, request: Request, answer: StoreResponse, base: str) -> web.Response:
    version, wrote = answer.version, answer.outcome is not None
    headers = _headers(version, base) if version else {}
    if answer.content is not None:
        return _json(answer.status, answer.content)
    if version and not wrote and _is_current(http, version):
        return web.Response(status=304, headers={"ETag": headers["ETag"]})
    if version and wrote and request.method == "POST":
        headers["Location"] = headers["Content-Location"]
    if wrote and (request.method == "DELETE" or _preferred(http) == "OperationOutcome"):
        return _json(answer.status, answer.outcome, headers)
    if wrote and _preferred(http) == "minimal":
        return web.Response(status=answer.status, headers=headers)
    return _json(answer.status, version.content if version else answer.outcome, headers)


def _headers(version: Version, base: str) -> dict[str, str]:
    headers = {"Content-Location": f"{base}/{version.location}"}
    if version.body is None:
        return headers
    modified = formatdate(version.updated // 1000, usegmt=True)
    return headers | {"ETag": f'W/"{version.number}"', "Last-Modified": modified}


def _is_current(http: web.Request, version: Version) -> bool:
    known = http.headers.get("If-None-Match", "")
    return f'"{version.number}"' in known


def _preferred(http: web.Request) -> str:
    """Give what `Prefer: return=...` asks for; HAPI's default is the representation, but not in Bundles."""
    wanted = [
        part.strip().removeprefix("return=") for part in http.headers.get("Prefer", "").split(";") if "return=" in part
    ]
    return wanted[0] if wanted else ""


def _base(http: web.Request) -> str:
    """Give the base URL, by X-Forwarded-* as HAPI's ApacheProxyAddressStrategy reads them (the first of each list)."""
    proto, host, port, prefix = (
        http.headers.get(f"X-Forwarded-{name}", "").split(",")[0].strip()
        for name in ("Proto", "Host", "Port", "Prefix")
    )
    authority = host or (http.host.rsplit(":", 1)[0] if proto else http.host)
    if port:
        authority = f"{authority.rsplit(':', 1)[0]}:{port}"
    return f"{proto or 'http'}://{authority}{(prefix or _BASE_PATH).rstrip('/')}"


def _json(status: int, content: object, headers: dict[str, str] | None = None) -> web.Response:
    typed = {"Content-Type": "application/fhir+json;charset=UTF-8"}
    return web.Response(status=status, body=wire.encode(content), headers=typed | (headers or {}))
