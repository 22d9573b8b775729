"""Write resources as HTTP answers, in the format that the client asked for."""

from collections.abc import Mapping
from urllib.parse import parse_qs

from aiohttp import web

from cgm_proxy.core import body, xml
from cgm_proxy.core.body import CONTENT_TYPES, Format
from cgm_proxy.core.errors import Json, RequestRefused, operation_outcome

#: Values of `_format` beside media types (https://hl7.org/fhir/R4/http.html#parameters).
_SHORT: Mapping[str, Format] = {"json": "json", "xml": "xml"}


def wanted_format(request: web.BaseRequest, otherwise: Format = "json") -> Format:
    """Tell the format to answer in: `_format`, else the best of Accept, else the one that the request came in."""
    for value in parse_qs(request.raw_path.partition("?")[2]).get("_format", ()):
        if found := _SHORT.get(value) or body.media_type(value.replace(" ", "+")):
            return found
    accepted = request.headers.get("Accept", "").split(",")
    ranked = [(_quality(part), found) for part in accepted if (found := body.media_type(part))]
    return max(ranked, key=lambda pair: pair[0])[1] if ranked else otherwise


def _quality(part: str) -> float:
    _, separator, value = part.replace(" ", "").partition(";q=")
    try:
        return float(value.partition(";")[0]) if separator else 1.0
    except ValueError:
        return 0.0


def resource(request: web.BaseRequest, status: int, content: Json | None, **more: str | None) -> web.Response:
    """Answer with a resource, or with none; `more` are header fields, written with `_` for `-`."""
    made = wanted_format(request, body.media_type(request.headers.get("Content-Type", "")) or "json")
    headers = {name.replace("_", "-"): value for name, value in more.items() if value is not None}
    if content is None:
        return web.Response(status=status, headers=headers)
    data = xml.to_xml(content) if made == "xml" else body.encode(content)
    return web.Response(
        status=status, headers=headers | {"Content-Type": f"{CONTENT_TYPES[made]};charset=utf-8"}, body=data
    )


def refusal(request: web.BaseRequest, refused: RequestRefused, request_id: str | None = None) -> web.Response:
    """Answer with the OperationOutcome of a refused request."""
    fields = {name.replace("-", "_"): value for name, value in refused.headers.items()}
    return resource(request, refused.status, operation_outcome(refused.issues), X_Request_ID=request_id, **fields)
