"""HTTP in and out: what is a submission goes through its story, all else through the relay."""

import asyncio
import re
import secrets
from collections.abc import Coroutine
from typing import Any

from aiohttp import web
from multidict import CIMultiDict

from cgm_proxy.cache.cache import Cache
from cgm_proxy.core.codec import json_body
from cgm_proxy.core.http.header_fields import FORWARDING, HOP_BY_HOP, client_address, end_to_end
from cgm_proxy.core.issues import RequestRefused, refuse
from cgm_proxy.core.json_values import JsonObject
from cgm_proxy.core.rest.capability_statement import add_receiver, publish
from cgm_proxy.core.submission import async_pattern, detection, reply
from cgm_proxy.core.submission.detection import Endpoint
from cgm_proxy.core.submission.dialects import Dialect
from cgm_proxy.core.submission.model import Submission
from cgm_proxy.jobs.worker import Worker
from cgm_proxy.observability.logs import log
from cgm_proxy.receiver.intake import Intake, SubmissionRequest, SubmissionResponse
from cgm_proxy.receiver.parsing import BodyParser
from cgm_proxy.receiver.story import Receiver
from cgm_proxy.relay.relay import Relay
from cgm_proxy.server import fhir_responses
from cgm_proxy.server.async_status import AsyncStatus
from cgm_proxy.server.request_bodies import RETRY_AFTER, RequestBodies
from cgm_proxy.settings.loading import Settings
from cgm_proxy.upstream.client import Requester, UpstreamClient

#: Fields that belong to one request's body or answer, and not to the requests that are made from it; nor may a submitter
#: make something else of these, which may carry the service token, by a method override.
_OWN = (
    HOP_BY_HOP
    | FORWARDING
    | frozenset(
        b"host expect digest repr-digest want-digest want-repr-digest accept range prefer accept-encoding cache-control "
        b"pragma x-request-id x-http-method x-http-method-override x-method-override".split()
    )
)

#: Fields about content and conditions, which belong to one request as well.
_OWN_PREFIXES = (b"content-", b"if-")

#: Request ids that are taken over from a client; others could carry anything into the logs.
_REQUEST_ID = re.compile(r"[A-Za-z0-9_.:\-]{1,64}")

#: Fields by which some servers let a client call another method than the request line's.
_OVERRIDES = ("X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override")

#: What of the upstream's answer to `metadata` stays beside a changed body.
_KEPT = ("Content-Type", "Date", "Last-Modified", "WWW-Authenticate", "Retry-After", "X-Powered-By", "Cache-Control")


class FrontDoor:
    """Answer every request of the public port."""

    def __init__(
        self,
        settings: Settings,
        relay: Relay,
        upstream: UpstreamClient,
        receiver: Receiver,
        memory: Cache,
        status: AsyncStatus | None = None,
    ) -> None:
        self._limits = settings.limits
        self._content = settings.detection == "content"
        self._bases = relay.bases
        self._public = relay.bases.public
        self._base = relay.bases.upstream.path
        self._target = relay.bases.upstream_target
        self._relay = relay
        self._upstream = upstream
        self._memory = memory
        self._bodies = RequestBodies(settings)
        self._intake = Intake(settings, BodyParser(settings, relay.traffic), receiver)
        self._status = status
        self.work = Worker(self._intake).work
        self._working: set[asyncio.Task[web.StreamResponse]] = set()

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request; a refusal becomes an OperationOutcome."""
        try:
            if self._status and (name := async_pattern.status_id(request.raw_path, self._target, self._base)):
                return await self._status.answer(request, name, Requester(CIMultiDict(self._fields(request))))
            if request.method in {"POST", "PUT", "PATCH", "DELETE"} or any(
                name in request.headers for name in _OVERRIDES
            ):
                return await self._write(request)
            if request.method == "GET" and "metadata" in request.raw_path:
                path = detection.path_segments(self._target(request.raw_path))
                if path == [*detection.path_segments(self._base), "metadata"]:
                    return await self._metadata(request)
            return await self._relay.pass_through(request)
        except RequestRefused as refused:
            request_id = _request_id(request)
            log("refused", request_id=request_id, status=refused.status, rule=refused.issues[0].rule)
            return fhir_responses.refusal(request, refused, request_id)

    async def drain(self, seconds: float) -> bool:
        """Wait so long until the submissions under way are finished; those that are not then are given up.

        Tell whether all were finished. What is given up may be sent again safely.
        """
        deadline = asyncio.get_running_loop().time() + seconds
        while self._working:
            left = deadline - asyncio.get_running_loop().time()
            done, late = await asyncio.wait(self._working, timeout=max(left, 0))
            if not done:
                for task in late:
                    task.cancel()
                await asyncio.wait(late)
                return False
        return True

    async def _write(self, request: web.BaseRequest) -> web.StreamResponse:
        raw = self._target(request.raw_path)
        methods = {request.method, *(request.headers.get(name, request.method) for name in _OVERRIDES)}
        for method in methods:
            if target := detection.submission_endpoint(method, raw, (self._base,), content=self._content):
                return await self._inspect(request, target)
        async with self._memory.invalidating_write(map(str.upper, methods), detection.path_segments(raw)):
            return await self._relay.pass_through(request)

    async def _metadata(self, request: web.BaseRequest) -> web.StreamResponse:
        """Pass the CapabilityStatement through, with what this proxy adds to the upstream's abilities."""
        query = request.raw_path.partition("?")[2]
        accept = request.headers.get("Accept", "*/*")
        submitter = Requester(CIMultiDict(self._fields(request, "replace")))
        status, headers, data = await self._upstream.metadata(query, accept, submitter)
        made = json_body.media_type(headers.get("Content-Type", ""))
        if status == 200 and made:
            data = self._with_receiver(data, made)
        kept = {name: headers[name] for name in _KEPT if name in headers}
        return web.Response(status=status, headers=kept, body=data)

    def _with_receiver(self, data: bytes, made: json_body.Format) -> bytes:
        """Add what this proxy does to a CapabilityStatement; what can't be read is the upstream's own affair."""
        try:
            statement = publish(json_body.parse(data, self._limits.depth), self._bases.public_url)
        except RequestRefused:
            return data
        return fhir_responses.written(add_receiver(statement, asynchronous=self._status is not None), made)

    async def _inspect(self, request: web.BaseRequest, target: Endpoint) -> web.StreamResponse:
        """Read a body, tell whether it is a submission, and answer it or let it pass as it came."""
        async with self._bodies.reading(request) as raw:
            if (not raw or raw.isspace()) and target != "operation":
                return await self._relay.pass_through(request, body=raw)
            document, dialect = await self._intake.open(raw, target, request.headers.get("Content-Encoding", ""))
            if dialect is None:
                async with self._memory.invalidating_bundle(document):
                    return await self._relay.pass_through(request, body=raw)
            return await self._shielded(self._submit(request, self._asked(request, target), document, dialect, raw))

    async def _shielded(self, work: Coroutine[Any, Any, web.StreamResponse]) -> web.StreamResponse:
        """Do a submission to its end, even if its submitter hangs up."""
        if len(self._working) >= self._limits.in_flight:
            work.close()
            raise refuse(
                503, "busy", "too many submissions at once; try again", code="throttled", Retry_After=RETRY_AFTER
            )
        task = asyncio.ensure_future(work)
        self._working.add(task)
        task.add_done_callback(self._working.discard)
        return await asyncio.shield(task)

    async def _submit(
        self, request: web.BaseRequest, asked: SubmissionRequest, document: JsonObject, dialect: Dialect, raw: bytearray
    ) -> web.StreamResponse:
        """Take a submission, now or later, and write its answer."""

        async def later(submission: Submission) -> SubmissionResponse | None:
            if not (self._status and submission.patient and async_pattern.prefers_async(_preferences(request))):
                return None
            return await self._status.keep(request, submission.patient, asked, raw)

        told = await self._intake.take(asked, document, dialect, raw, later)
        return await fhir_responses.told(request, told, asked.request_id)

    def _asked(self, request: web.BaseRequest, target: Endpoint) -> SubmissionRequest:
        return SubmissionRequest(
            target,
            _request_id(request),
            reply.preferred_return(_preferences(request)),
            json_body.media_type(request.headers.get("Content-Type", "")),
            request.headers.get("Content-Encoding", ""),
            request.headers.get("If-None-Exist"),
            self._fields(request),
        )

    def _fields(self, request: web.BaseRequest, errors: str = "strict") -> tuple[tuple[str, str], ...]:
        """Give the header fields that a request's own requests upstream carry: its own, and where it came from.

        They go upstream as UTF-8. What is in another encoding would become something else, and who asks somebody else:
        raises `RequestRefused` (400), unless `errors` says otherwise.
        """
        client = client_address(request.remote, self._public, request.raw_headers)
        try:
            b"".join(value + b";" for _, value in request.raw_headers).decode(errors=errors)
            return tuple(
                (name.decode(), value.decode(errors=errors))
                for name, value in (*end_to_end(request.raw_headers, _OWN), *client)
                if not name.lower().startswith(_OWN_PREFIXES)
            )
        except UnicodeDecodeError as error:
            text = "a header field is not UTF-8; send it in ASCII or UTF-8, or leave it out"
            raise refuse(400, "header-encoding", text) from error


def _preferences(request: web.BaseRequest) -> str:
    return ",".join(request.headers.getall("Prefer", ()))


def _request_id(request: web.BaseRequest) -> str:
    """Take a client's request id if it can't carry anything into the logs, else make one."""
    given = request.headers.get("X-Request-ID", "")
    return given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
