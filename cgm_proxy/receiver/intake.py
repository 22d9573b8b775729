"""From the request of a submission to its response, without HTTP: the same for a submission that is kept for later."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from multidict import CIMultiDict

from cgm_proxy.core.codec.bodies import Format
from cgm_proxy.core.codec.json_body import Buffer, encode
from cgm_proxy.core.issues import RequestRefused, operation_outcome, refuse, release_frames
from cgm_proxy.core.json_values import JsonObject
from cgm_proxy.core.rest.responses import stored_by_transaction
from cgm_proxy.core.submission import detection, model, reply
from cgm_proxy.core.submission.detection import Endpoint
from cgm_proxy.core.submission.dialects import Dialect
from cgm_proxy.core.submission.model import Submission
from cgm_proxy.observability import metrics
from cgm_proxy.observability.logs import log
from cgm_proxy.offload import IN_THREAD_BYTES, offload
from cgm_proxy.receiver.parsing import BodyParser
from cgm_proxy.receiver.story import Receipt, Receiver
from cgm_proxy.settings.loading import Settings
from cgm_proxy.upstream.client import Requester

#: The message of the cancellation when a submitter deletes its kept submission.
CANCELLED = "cancelled by its submitter"

#: Statuses of a failure of the upstream, for which the submission is not to blame.
FAILURES = frozenset({502, 503, 504})


@dataclass(frozen=True, slots=True)
class SubmissionRequest:
    """The request of a submission without its body; `fields` are the header fields that are sent upstream with it."""

    target: Endpoint
    request_id: str
    preferred: reply.Return
    format: Format | None
    content_encoding: str
    if_none_exist: str | None
    fields: tuple[tuple[str, str], ...]

    @property
    def requester(self) -> Requester:
        """The requester on whose behalf the upstream is asked."""
        return Requester(CIMultiDict([*self.fields, ("X-Request-ID", self.request_id)]))


@dataclass(frozen=True, slots=True)
class SubmissionResponse:
    """The response to a submission, not yet serialised; `size` is roughly its number of bytes."""

    status: int
    content: JsonObject | None
    headers: Mapping[str, str] = field(default_factory=dict)
    failed: bool = False
    """Whether the upstream failed, so that the same submission may succeed later."""
    size: int = 0

    @classmethod
    def refusal(cls, refused: RequestRefused) -> "SubmissionResponse":
        """Return the response to a refused submission."""
        release_frames(refused)
        return cls(refused.status, operation_outcome(refused.issues), refused.headers, refused.status in FAILURES)


#: Keeps a submission for later and returns the response that says so; returns None if it is to be answered now.
Defer = Callable[[Submission], Awaitable[SubmissionResponse | None]]


class Intake:
    """Takes submissions in, and logs and counts their outcomes."""

    def __init__(self, settings: Settings, parser: BodyParser, receiver: Receiver) -> None:
        self._limits = settings.limits
        self._by_content = settings.detection == "content"
        self._public = settings.listen.public_url
        self._localize = settings.bases.localize
        self._parser = parser
        self._receiver = receiver

    async def recognise(
        self, raw: Buffer, target: Endpoint, content_encoding: str
    ) -> tuple[JsonObject, Dialect | None]:
        """Parse a body and recognise its dialect, None if it is no submission; raises `RequestRefused`."""
        document = await self._parser.parse(raw, content_encoding)
        if target == "operation":
            document = model.operation_bundle(document)
        return document, await offload(_size(raw, content_encoding), self._dialect, document, target)

    async def take(
        self, request: SubmissionRequest, document: JsonObject, dialect: Dialect, raw: bytearray, defer: Defer
    ) -> SubmissionResponse:
        """Receive a submission, or let `defer` keep it for later; return the response, which may be a refusal.

        `raw`, the body, is emptied when it is no longer needed: the entries hold their own bytes.
        """
        size = _size(raw, request.content_encoding)
        started = perf_counter()
        logged: dict[str, Any] = {"request_id": request.request_id, "dialect": dialect.id, "outcome": "failed"}
        with metrics.IN_FLIGHT.track_inprogress(), metrics.SUBMISSION_SECONDS.time():
            try:
                submission = await offload(size, self._submission, request, document, dialect)
                if deferred := await defer(submission):
                    logged |= {"outcome": "kept", "entries": len(submission.entries)}
                    return deferred
                raw.clear()
                receipt = await self._receiver.receive(submission, request.requester, request.preferred)
                logged |= {"outcome": receipt.outcome, "entries": len(receipt.responses)}
                return await offload(size, self._response, receipt, request.preferred, size)
            except RequestRefused as refused:
                outcome = "failed" if refused.status >= 500 else "refused"
                logged |= {"outcome": outcome, "status": refused.status, "rule": refused.issues[0].rule}
                return SubmissionResponse.refusal(refused)
            except asyncio.CancelledError as cancelled:
                if CANCELLED in cancelled.args:
                    logged["outcome"] = "cancelled"
                raise
            finally:
                metrics.SUBMISSIONS.labels(dialect.id, logged["outcome"]).inc()
                log("submission", **logged, seconds=round(perf_counter() - started, 3))

    def _dialect(self, document: JsonObject, target: Endpoint) -> Dialect | None:
        if target == "operation":
            return detection.operation_dialect(document)
        tagged = detection.tagged_dialect(document) if target == "base" else None
        return tagged or (detection.content_dialect(document) if self._by_content else None)

    def _submission(self, request: SubmissionRequest, document: JsonObject, dialect: Dialect) -> Submission:
        if request.format is None:
            text = "Content-Type is not a FHIR type; send application/fhir+json or application/fhir+xml"
            raise refuse(415, "content-type", text, code="not-supported")
        if request.target == "create":
            return model.submission_from_resource(document, dialect, self._localize, request.if_none_exist)
        return model.submission_from_bundle(document, dialect, request.target, self._localize, self._limits)

    def _response(self, receipt: Receipt, preferred: reply.Return, size: int) -> SubmissionResponse:
        judgement, responses = receipt.judgement, receipt.responses
        # An entry that was passed through would be stored again if the submission were sent again.
        passed_through = any(each.passed_through is not None for each in responses)
        failed = receipt.outcome == "failed" and not passed_through
        if judgement.submission.interaction != "create":
            bundle = reply.response_bundle(judgement, responses, preferred)
            return SubmissionResponse(200, bundle, failed=failed, size=size)
        response, stored = responses[0], responses[0].stored
        if response.passed_through is not None:  # in observe mode
            written = encode({"entry": [response.passed_through]})
            stored = next(iter(stored_by_transaction(written, 1) or ()), None)
        explained = response.issues or preferred == "OperationOutcome"
        outcome = operation_outcome(response.issues) if explained else None
        resource = stored.resource if stored and preferred == "representation" else None
        headers = {"Location": f"{self._public}/{stored.location}"} if stored else {}
        headers |= {"ETag": stored.etag} if stored and stored.etag else {}
        headers |= {"WWW-Authenticate": response.authenticate} if response.authenticate else {}
        return SubmissionResponse(response.status, resource or outcome, headers, failed, size)


def _size(raw: Buffer, content_encoding: str) -> int:
    """Return the number of bytes to work on; a compressed body may hold any number."""
    return IN_THREAD_BYTES if content_encoding else len(raw)
