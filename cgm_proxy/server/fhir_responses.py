"""Write resources as HTTP answers, in the format that the client asked for."""

import re
from collections.abc import Mapping
from functools import partial
from urllib.parse import parse_qs

from aiohttp import web

from cgm_proxy.core.codec import fhir_xml, json_body
from cgm_proxy.core.codec.json_body import CONTENT_TYPES, Format
from cgm_proxy.core.issues import RequestRefused, operation_outcome
from cgm_proxy.core.json_values import JsonObject
from cgm_proxy.offload import offload
from cgm_proxy.receiver.intake import SubmissionResponse

#: Values of `_format` beside media types (https://hl7.org/fhir/R4/http.html#parameters).
_SHORT: Mapping[str, Format] = {"json": "json", "xml": "xml"}

#: Ranges of media types that leave the choice to the server.
_ANY = frozenset({"*/*", "application/*"})
_WEIGHT = re.compile(r"0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?")


def wanted_format(request: web.BaseRequest, otherwise: Format = "json") -> Format:
    """Tell the format to answer in: `_format`, else the best of Accept, else the one that the request came in."""
    for value in parse_qs(request.raw_path.partition("?")[2]).get("_format", ()):
        if found := _SHORT.get(value) or json_body.media_type(value.replace(" ", "+")):
            return found
    accepted = ",".join(request.headers.getall("Accept", ())).split(",")
    named = [(_quality(part), 1, found) for part in accepted if (found := json_body.media_type(part))]
    anything = [(_quality(part), 0, otherwise) for part in accepted if part.partition(";")[0].strip() in _ANY]
    best = max((*named, *anything), key=lambda ranked: ranked[:2], default=(0.0, 0, otherwise))
    return best[2] if best[0] else otherwise


def _quality(part: str) -> float:
    """Read a weight (RFC 9110, 12.4.2); what is none makes the least of a choice."""
    _, separator, value = part.replace(" ", "").lower().partition(";q=")
    weight = value.partition(";")[0]
    return (float(weight) if _WEIGHT.fullmatch(weight) else 0.0) if separator else 1.0


def resource(request: web.BaseRequest, status: int, content: JsonObject | None, **more: str | None) -> web.Response:
    """Answer with a resource, or with none; `more` are header fields, written with `_` for `-`."""
    made = wanted_format(request, json_body.media_type(request.headers.get("Content-Type", "")) or "json")
    headers = {name.replace("_", "-"): value for name, value in more.items() if value is not None}
    if content is None:
        return web.Response(status=status, headers=headers)
    return web.Response(status=status, headers=headers | content_type(made), body=written(content, made))


def written(content: JsonObject, made: Format) -> bytes:
    """Write a resource in a format; it may hold what only serialises to JSON's values."""
    data = json_body.encode(content)
    return fhir_xml.to_xml(json_body.decode(data)) if made == "xml" else data


def content_type(made: Format) -> dict[str, str]:
    """Give the header field that names a format."""
    return {"Content-Type": f"{CONTENT_TYPES[made]};charset=utf-8"}


def refusal(request: web.BaseRequest, refused: RequestRefused, request_id: str | None = None) -> web.Response:
    """Answer with the OperationOutcome of a refused request."""
    fields = {name.replace("-", "_"): value for name, value in refused.headers.items()}
    return resource(request, refused.status, operation_outcome(refused.issues), X_Request_ID=request_id, **fields)


async def told(request: web.BaseRequest, told: SubmissionResponse, request_id: str) -> web.Response:
    """Answer with what became of a submission; a large answer is written in a thread."""
    headers = {name.replace("-", "_"): value for name, value in told.headers.items()}
    return await offload(
        told.size, partial(resource, request, told.status, told.content, X_Request_ID=request_id, **headers)
    )
