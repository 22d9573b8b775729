"""The public port: what happens to each request, and the handlers that carry it out.

`decide` is the only place where that is decided. Submissions go to `receiver.intake`, everything else to `relay`.
"""

import asyncio
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote_plus

from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy

from cgm_proxy.cache.backends import Namespace
from cgm_proxy.cache.cache import Cache
from cgm_proxy.cache.writes import affected_by_bundle, affected_by_write
from cgm_proxy.core.codec import bodies
from cgm_proxy.core.codec.fhir_xml import FhirXml
from cgm_proxy.core.codec.json_body import Buffer
from cgm_proxy.core.http.base_urls import BaseUrls
from cgm_proxy.core.http.header_fields import METHOD_OVERRIDES, client_address, submitter_fields
from cgm_proxy.core.issues import RequestRefused, refuse, release_frames
from cgm_proxy.core.json_values import JsonObject
from cgm_proxy.core.rest.capability_statement import add_receiver, publish
from cgm_proxy.core.submission import async_pattern, reply
from cgm_proxy.core.submission.detection import MAX_PATH, Endpoint, path_segments, submission_endpoint
from cgm_proxy.core.submission.dialects import Dialect
from cgm_proxy.core.submission.model import Submission
from cgm_proxy.observability.logs import log
from cgm_proxy.offload import offload
from cgm_proxy.receiver.intake import Intake, SubmissionRequest, SubmissionResponse
from cgm_proxy.relay.relay import Relay
from cgm_proxy.server.async_status import AsyncStatus
from cgm_proxy.server.fhir_responses import FhirResponses, busy
from cgm_proxy.server.request_bodies import RequestBodies
from cgm_proxy.settings.loading import Settings
from cgm_proxy.upstream.client import Requester, UpstreamClient

#: Methods that can change what is stored.
WRITES: Final = frozenset({"POST", "PUT", "PATCH", "DELETE"})
#: A parameter with which some servers let a client use another method, in a query or in a form; any of its letters may be escaped.
_METHOD_PARAMETER: Final = re.compile(
    r"(?:^|[?&;])(?:_|%5f)(?:m|%[46]d)(?:e|%[46]5)(?:t|%[57]4)(?:h|%[46]8)(?:o|%[46]f)(?:d|%[46]4)=([^&;#]*)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class AnswerStatus:
    """Answer for a submission that is kept for later."""

    submission_id: str


@dataclass(frozen=True, slots=True)
class Inspect:
    """Read the body: take it in if it is a submission, else pass it through and invalidate what its entries change."""

    endpoint: Endpoint


@dataclass(frozen=True, slots=True)
class StreamWrite:
    """Pass the request through, and invalidate what any of the methods may change at this path."""

    methods: frozenset[str]
    path: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AnswerMetadata:
    """Answer with the upstream's CapabilityStatement and what this proxy adds to it."""


@dataclass(frozen=True, slots=True)
class Stream:
    """Pass the request through."""


Decision = AnswerStatus | Inspect | StreamWrite | AnswerMetadata | Stream


def decide(
    method: str,
    target: str,
    headers: CIMultiDictProxy[str],
    bases: BaseUrls,
    *,
    by_content: bool,
    keeps_submissions: bool,
) -> Decision:
    """Return what happens to a request, by the first row that matches; paths match in any spelling (`detection`).

    | request                                                               | decision         |
    |-----------------------------------------------------------------------|------------------|
    | any method, [base]/$cgm-submission-status/ID, if submissions are kept | `AnswerStatus`   |
    | POST [base] or [base]/$submit-cgm-bundle                              | `Inspect`        |
    | POST [base]/TYPE of a type that is judged, with `detection: content`  | `Inspect`        |
    | any other POST, PUT, PATCH or DELETE                                  | `StreamWrite`    |
    | GET [base]/metadata                                                   | `AnswerMetadata` |
    | anything else                                                         | `Stream`         |

    A request with a method override counts as a write: by its own method and by each one that the override names. Raises
    `RequestRefused`: 414 for a path that is too long, 400 for one that servers could read in too many ways.
    """
    if len(target) > MAX_PATH and (length := len(target.partition("?")[0])) > MAX_PATH:
        text = f"the path has {length} characters, and at most {MAX_PATH} are accepted; shorten it"
        raise refuse(414, "path-too-long", text, code="too-long")
    base = bases.upstream.path
    if keeps_submissions and (submission_id := async_pattern.status_id(target, bases.upstream_target, base)):
        return AnswerStatus(submission_id)
    overrides = [value for name in METHOD_OVERRIDES for value in headers.getall(name, ())]
    if "?" in target:
        overrides += map(unquote_plus, _METHOD_PARAMETER.findall(target))
    if overrides or method.upper() in WRITES:  # lenient servers accept lower case
        upstream_target = bases.upstream_target(target)
        methods = frozenset(name.strip().upper() for name in ",".join([method, *overrides]).split(","))
        if "POST" in methods and (endpoint := submission_endpoint(upstream_target, (base,), content=by_content)):
            return Inspect(endpoint)
        path = tuple(path_segments(upstream_target))
        is_form = "form-urlencoded" in headers.get("Content-Type", "").lower()
        if is_form and path[-1:] != ("_search",):
            methods |= {"PUT"}  # the form may name another method
        return StreamWrite(methods, path)
    if method == "GET" and "metadata" in target:
        segments = path_segments(bases.upstream_target(target))
        if segments == [*path_segments(base), "metadata"]:
            return AnswerMetadata()
    return Stream()


#: A client's request id is used only if it is safe to log.
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9_.:\-]{1,64}")

#: Fields of the upstream's response that stay with a changed CapabilityStatement.
_METADATA_FIELDS: Final = (
    "Content-Type",
    "Date",
    "Last-Modified",
    "WWW-Authenticate",
    "Retry-After",
    "X-Powered-By",
    "Cache-Control",
)


#: Statuses of the relay's own refusals after which the upstream has nothing of the request.
_NOTHING_SENT: Final = frozenset({501, 503})
#: How long a write that the upstream accepted for later (202) is taken to go on: its end is not reported (seconds).
_LATER_SECONDS: Final = 900.0
#: Most writes that go on without their clients, and the longest body in memory that one of them may hold (bytes).
_UNATTENDED_WRITES: Final = 32
_UNATTENDED_BODY: Final = 2**20


class FrontDoor:
    """Handles every request of the public port."""

    def __init__(
        self,
        settings: Settings,
        relay: Relay,
        upstream: UpstreamClient,
        intake: Intake,
        cache: Cache,
        xml: FhirXml,
        responses: FhirResponses,
        async_status: AsyncStatus | None = None,
    ) -> None:
        self._by_content = settings.detection == "content"
        self._max_in_flight = settings.limits.in_flight
        self._bases = relay.bases
        self._relay = relay
        self._upstream = upstream
        self._intake = intake
        self._cache = cache
        self._xml = xml
        self._responses = responses
        self._async_status = async_status
        #: The profiles that the CapabilityStatement lists, by resource type.
        self.profiles: Mapping[str, Sequence[str]] = {}
        self._bodies = RequestBodies(settings)
        self._in_flight: set[asyncio.Task[web.StreamResponse]] = set()
        self._unattended: set[asyncio.Task[web.StreamResponse]] = set()

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        """Handle one request; a refusal becomes an OperationOutcome."""
        try:
            decision = decide(
                request.method,
                request.raw_path,
                request.headers,
                self._bases,
                by_content=self._by_content,
                keeps_submissions=self._async_status is not None,
            )
            match decision:
                case AnswerStatus(submission_id) if self._async_status is not None:
                    requester = Requester(CIMultiDict(self._upstream_fields(request)))
                    return await self._async_status.answer(request, submission_id, requester)
                case Inspect(endpoint):
                    return await self._inspect(request, endpoint)
                case StreamWrite(methods, path):
                    return await self._write(request, affected_by_write(methods, path))
                case AnswerMetadata():
                    return await self._answer_metadata(request)
                case _:
                    return await self._relay.pass_through(request)
        except RequestRefused as refused:
            request_id = _request_id(request)
            log("refused", request_id=request_id, status=refused.status, rule=refused.issues[0].rule)
            return self._responses.refusal(request, refused, request_id)
        finally:
            release_frames(request.content.exception())  # aiohttp keeps it if the client disconnects or breaks off

    async def drain(self, seconds: float) -> bool:
        """Wait until the submissions and unattended writes in flight are finished; after `seconds` the others are cancelled.

        Return whether all submissions were finished. One that was cancelled may be sent again safely.
        """
        deadline = asyncio.get_running_loop().time() + seconds
        while tasks := self._in_flight | self._unattended:
            remaining = deadline - asyncio.get_running_loop().time()
            done, unfinished = await asyncio.wait(tasks, timeout=max(remaining, 0))
            if not done:
                finished = not self._in_flight
                for task in unfinished:
                    task.cancel()
                await asyncio.wait(unfinished)
                return finished
        return True

    async def _write(
        self, request: web.BaseRequest, affected: frozenset[Namespace], *, body: Buffer | None = None
    ) -> web.StreamResponse:
        """Pass a write through, to its end even if its client disconnects: until then, what it changes is not trusted."""
        if not affected:
            return await self._relay.pass_through(request, body=body)
        write = asyncio.create_task(self._pass_write(request, affected, body))
        try:
            return await asyncio.shield(write)
        except asyncio.CancelledError:
            if len(self._unattended) < _UNATTENDED_WRITES and len(body or b"") <= _UNATTENDED_BODY:
                self._unattended.add(write)
                write.add_done_callback(self._unattended.discard)
            else:
                write.cancel()
            raise

    async def _pass_write(
        self, request: web.BaseRequest, affected: frozenset[Namespace], body: Buffer | None
    ) -> web.StreamResponse:
        """Pass a write through; if its end is not seen, the upstream may still be at work on it."""
        async with self._cache.invalidating(affected) as invalidation:
            invalidation.linger = self._cache.unseen_seconds
            try:
                response = await self._relay.pass_through(request, body=body)
            except RequestRefused as refused:
                if refused.status in _NOTHING_SENT:
                    invalidation.linger = 0.0
                raise
            if response.complete:
                invalidation.linger = _LATER_SECONDS if response.status == 202 else 0.0
            return response

    async def _inspect(self, request: web.BaseRequest, endpoint: Endpoint) -> web.StreamResponse:
        """Read a body. A submission is taken in, in a task of its own; anything else passes through as it came."""
        async with self._bodies.reading(request) as raw:
            if (not raw or raw.isspace()) and endpoint != "operation":
                return await self._relay.pass_through(request, body=raw)
            document, dialect = await self._intake.recognise(raw, endpoint, request.headers.get("Content-Encoding", ""))
            if dialect is None:
                affected = await offload(len(raw), affected_by_bundle, document)
                return await self._write(request, affected, body=raw)
            submission = SubmissionRequest(
                target=endpoint,
                request_id=_request_id(request),
                preferred=reply.preferred_return(_preferences(request)),
                format=bodies.media_type(request.headers.get("Content-Type", "")),
                content_encoding=request.headers.get("Content-Encoding", ""),
                if_none_exist=request.headers.get("If-None-Exist"),
                fields=self._upstream_fields(request),
            )
            if len(self._in_flight) >= self._max_in_flight:
                raise busy()
            task = asyncio.ensure_future(self._submit(request, submission, document, dialect, raw))
            self._in_flight.add(task)
            task.add_done_callback(self._in_flight.discard)
            return await asyncio.shield(task)  # the submission goes on if its submitter disconnects

    async def _submit(
        self,
        request: web.BaseRequest,
        submission: SubmissionRequest,
        document: JsonObject,
        dialect: Dialect,
        raw: bytearray,
    ) -> web.StreamResponse:
        """Take a submission in, or keep it for later if its submitter prefers that."""

        async def defer(parsed: Submission) -> SubmissionResponse | None:
            if not (self._async_status and parsed.patient and async_pattern.prefers_async(_preferences(request))):
                return None
            return await self._async_status.keep(request, parsed.patient, submission, raw)

        response = await self._intake.take(submission, document, dialect, raw, defer)
        return await self._responses.submission(request, response, submission.request_id)

    async def _answer_metadata(self, request: web.BaseRequest) -> web.StreamResponse:
        """Return the upstream's CapabilityStatement with the public base and this proxy's abilities."""
        query = request.raw_path.partition("?")[2]
        requester = Requester(CIMultiDict(self._upstream_fields(request, errors="replace")))
        status, headers, data = await self._upstream.metadata(query, request.headers.get("Accept", "*/*"), requester)
        sent_format = bodies.media_type(headers.get("Content-Type", ""))
        if status == 200 and sent_format:
            try:
                statement = publish(bodies.parse(data, self._xml), self._bases.public_url)
            except RequestRefused:
                pass  # a faulty statement is passed on unchanged
            else:
                statement = add_receiver(statement, asynchronous=self._async_status is not None, profiles=self.profiles)
                data = self._responses.encode(statement, sent_format)
        fields = {name: headers[name] for name in _METADATA_FIELDS if name in headers}
        return web.Response(status=status, headers=fields, body=data)

    def _upstream_fields(self, request: web.BaseRequest, *, errors: str = "strict") -> tuple[tuple[str, str], ...]:
        """Return the header fields for the requests that are made from this one: the submitter's, and its address.

        They go upstream as UTF-8. A value in another encoding would be changed by that, and the upstream might take the
        requester for another: raises `RequestRefused` (400) unless `errors` is a decoder's error handler.
        """
        fields = (
            *submitter_fields(request.raw_headers),
            *client_address(request.remote, self._bases.public, request.raw_headers),
        )
        try:
            b";".join(value for _, value in request.raw_headers).decode(errors=errors)  # also those used only here
            return tuple((name.decode(), value.decode(errors=errors)) for name, value in fields)
        except UnicodeDecodeError as error:
            text = "a header field is not UTF-8; send it in ASCII or UTF-8, or leave it out"
            raise refuse(400, "header-encoding", text) from error


def _preferences(request: web.BaseRequest) -> str:
    return ",".join(request.headers.getall("Prefer", ()))


def _request_id(request: web.BaseRequest) -> str:
    """Return the client's request id, or a new one if it has none that is safe to log."""
    given = request.headers.get("X-Request-ID", "")
    return given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
