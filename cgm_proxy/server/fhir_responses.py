"""Responses with a FHIR resource, in the format that the client asks for."""

import re
from collections.abc import Mapping
from functools import partial
from typing import Final
from urllib.parse import parse_qs

from aiohttp import web

from cgm_proxy.core.codec import bodies, json_body
from cgm_proxy.core.codec.bodies import CONTENT_TYPES, Format
from cgm_proxy.core.codec.fhir_xml import FhirXml
from cgm_proxy.core.issues import RETRY_AFTER, RequestRefused, operation_outcome, release_frames, unavailable
from cgm_proxy.core.json_values import JsonObject
from cgm_proxy.offload import offload
from cgm_proxy.receiver.intake import SubmissionResponse

#: Values of `_format` that are not media types (https://hl7.org/fhir/R4/http.html#parameters).
_FORMAT_NAMES: Final[Mapping[str, Format]] = {"json": "json", "xml": "xml"}

#: Media ranges that leave the choice to the server.
_ANY_TYPE: Final = frozenset({"*/*", "application/*"})
#: How many media ranges of a request are read; browsers send about ten.
_MEDIA_RANGES: Final = 64
_WEIGHT: Final = re.compile(r"0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?")


def busy() -> RequestRefused:
    """Return the 503 for a submission for which there is no room now."""
    text = f"too many submissions are being processed; send this one again in {RETRY_AFTER} seconds"
    return unavailable("busy", text, code="throttled")


def response_format(request: web.BaseRequest, default: Format) -> Format:
    """Return the format that the client asks for: by `_format`, else by Accept, else the default.

    In Accept, the greatest weight counts; between equal weights, a named format comes before a range such as `*/*`.
    """
    for value in parse_qs(request.raw_path.partition("?")[2]).get("_format", ()):
        if named := _FORMAT_NAMES.get(value) or bodies.media_type(value.replace(" ", "+")):
            return named
    best: tuple[float, bool, Format] = (0.0, False, default)
    for media_range in ",".join(request.headers.getall("Accept", ())).split(",", _MEDIA_RANGES)[:_MEDIA_RANGES]:
        accepted = bodies.media_type(media_range)
        if accepted or media_range.partition(";")[0].strip() in _ANY_TYPE:
            best = max(best, (_weight(media_range), accepted is not None, accepted or default), key=lambda row: row[:2])
    return best[2] if best[0] else default


def _weight(media_range: str) -> float:
    """Return the weight of a media range (RFC 9110, 12.4.2), 0 if it is malformed."""
    _, separator, value = media_range.replace(" ", "").lower().partition(";q=")
    weight = value.partition(";")[0]
    return (float(weight) if _WEIGHT.fullmatch(weight) else 0.0) if separator else 1.0


def content_type(chosen: Format) -> dict[str, str]:
    """Return the header field that names a format."""
    return {"Content-Type": f"{CONTENT_TYPES[chosen]};charset=utf-8"}


class FhirResponses:
    """Builds responses in JSON or XML."""

    def __init__(self, xml: FhirXml) -> None:
        self._xml = xml

    def encode(self, content: JsonObject, chosen: Format) -> bytes:
        """Return a resource as a body; `content` may hold values that only become JSON when they are serialised."""
        data = json_body.encode(content)
        return self._xml.to_xml(json_body.decode(data)) if chosen == "xml" else data

    def resource(
        self, request: web.BaseRequest, status: int, content: JsonObject | None, headers: Mapping[str, str]
    ) -> web.Response:
        """Return a response with a resource, or without a body; by default in the format of the request's body."""
        if content is None:
            return web.Response(status=status, headers=headers)
        chosen = response_format(request, bodies.media_type(request.headers.get("Content-Type", "")) or "json")
        return web.Response(
            status=status, headers={**headers, **content_type(chosen)}, body=self.encode(content, chosen)
        )

    def refusal(self, request: web.BaseRequest, refused: RequestRefused, request_id: str) -> web.Response:
        """Return the response to a refused request: an OperationOutcome."""
        release_frames(refused)
        headers = {"X-Request-ID": request_id, **refused.headers}
        return self.resource(request, refused.status, operation_outcome(refused.issues), headers)

    async def submission(self, request: web.BaseRequest, response: SubmissionResponse, request_id: str) -> web.Response:
        """Return the response to a submission; a large one is serialised in a thread."""
        headers = {"X-Request-ID": request_id, **response.headers}
        return await offload(response.size, partial(self.resource, request, response.status, response.content, headers))
