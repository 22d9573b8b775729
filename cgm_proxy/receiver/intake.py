"""The way of a submission from its request to its answer, without HTTP: so it is the same now and, if it is kept, later."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, TypeVar, TypeVarTuple

from multidict import CIMultiDict

from cgm_proxy.core.codec.json_body import Buffer, Format, encode
from cgm_proxy.core.http.base_urls import BaseUrls
from cgm_proxy.core.issues import RequestRefused, operation_outcome, refuse
from cgm_proxy.core.json_values import JsonObject
from cgm_proxy.core.rest import confirmed
from cgm_proxy.core.submission import detection, model, reply
from cgm_proxy.core.submission.detection import Endpoint
from cgm_proxy.core.submission.dialects import Dialect
from cgm_proxy.core.submission.model import Submission
from cgm_proxy.observability import metrics
from cgm_proxy.observability.logs import log
from cgm_proxy.offload import IN_THREAD_BYTES, offload
from cgm_proxy.receiver.parsing import BodyParser
from cgm_proxy.receiver.story import Finished, Submissions
from cgm_proxy.settings.loading import Settings
from cgm_proxy.upstream.client import Requester

#: The message of the cancellation when a submitter deletes its kept submission.
CANCELLED = "cancelled by its submitter"

#: Statuses that tell of the upstream's failure, not of the submission.
FAILURES = frozenset({502, 503, 504})

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


@dataclass(frozen=True, slots=True)
class SubmissionRequest:
    """The request of a submission, all but its body; `fields` are the header fields that its requests upstream carry."""

    target: Endpoint
    request_id: str
    preferred: reply.Return
    format: Format | None
    content_encoding: str
    if_none_exist: str | None
    fields: tuple[tuple[str, str], ...]

    @property
    def submitter(self) -> Requester:
        """Give on whose behalf the upstream is asked."""
        return Requester(CIMultiDict([*self.fields, ("X-Request-ID", self.request_id)]))


@dataclass(frozen=True, slots=True)
class SubmissionResponse:
    """An answer that is not yet written; `size` says roughly how many bytes it will have."""

    status: int
    content: JsonObject | None
    headers: Mapping[str, str] = field(default_factory=dict)
    failed: bool = False
    """Whether the upstream failed, so that the same submission may fare better later."""
    size: int = 0

    @classmethod
    def refusal(cls, refused: RequestRefused) -> "SubmissionResponse":
        """Make the answer to a refused submission."""
        return cls(refused.status, operation_outcome(refused.issues), refused.headers, refused.status in FAILURES)


#: Keeps a submission and tells so, or gives None: it is answered now.
Later = Callable[[Submission], Awaitable[SubmissionResponse | None]]


class Intake:
    """Take submissions in; the story of each is told by `Submissions`."""

    def __init__(self, settings: Settings, parser: BodyParser, submissions: Submissions) -> None:
        self._limits = settings.limits
        self._content = settings.detection == "content"
        self._public = settings.listen.public_url
        self._localize = BaseUrls.of(settings.listen.public_url, settings.upstream.url).localize
        self._parser = parser
        self._submissions = submissions

    async def open(self, raw: Buffer, target: Endpoint, content_encoding: str) -> tuple[JsonObject, Dialect | None]:
        """Parse a body and tell its dialect, None for what is no submission; raises `RequestRefused`."""
        document = await self._parser.parse(raw, content_encoding)
        if target == "operation":
            document = model.operation_bundle(document)
        return document, await offload(_weight(raw, content_encoding), self._dialect, document, target)

    async def take(
        self, asked: SubmissionRequest, document: JsonObject, dialect: Dialect, raw: bytearray, later: Later
    ) -> SubmissionResponse:
        """Take a submission, or let `later` keep it; log and count what became of it. A refusal is an answer too."""
        size = _weight(raw, asked.content_encoding)
        started = perf_counter()
        fields: dict[str, Any] = {"request_id": asked.request_id, "dialect": dialect.id, "outcome": "failed"}
        with metrics.IN_FLIGHT.track_inprogress(), metrics.SUBMISSION_SECONDS.time():
            try:
                submission = await offload(size, self._submission, asked, document, dialect)
                if kept := await later(submission):
                    fields |= {"outcome": "kept", "entries": len(submission.entries)}
                    return kept
                raw.clear()  # the entries hold what is needed of it
                finished = await self._submissions.take(submission, asked.submitter, asked.preferred)
                fields |= {"outcome": finished.outcome, "entries": len(finished.answers)}
                return await offload(size, self._told, finished, asked.preferred, size)
            except RequestRefused as refused:
                outcome = "failed" if refused.status >= 500 else "refused"
                fields |= {"outcome": outcome, "status": refused.status, "rule": refused.issues[0].rule}
                return SubmissionResponse.refusal(refused)
            except asyncio.CancelledError as cancelled:
                if CANCELLED in cancelled.args:
                    fields["outcome"] = "cancelled"
                raise
            finally:
                metrics.SUBMISSIONS.labels(dialect.id, fields["outcome"]).inc()
                log("submission", **fields, seconds=round(perf_counter() - started, 3))

    def _dialect(self, document: JsonObject, target: Endpoint) -> Dialect | None:
        if target == "operation":
            return detection.operation_dialect(document)
        tagged = detection.tagged_dialect(document) if target == "base" else None
        return tagged or (detection.content_dialect(document) if self._content else None)

    def _submission(self, asked: SubmissionRequest, document: JsonObject, dialect: Dialect) -> Submission:
        if asked.format is None:
            text = "Content-Type is none of FHIR's; send application/fhir+json or application/fhir+xml"
            raise refuse(415, "content-type", text, code="not-supported")
        if asked.target == "create":
            return model.submission_from_resource(document, dialect, self._localize, asked.if_none_exist)
        return model.submission_from_bundle(document, dialect, asked.target, self._localize, self._limits)

    def _told(self, finished: Finished, preferred: reply.Return, size: int) -> SubmissionResponse:
        judgement, answers = finished.judgement, finished.answers
        relayed = any(answer.relayed is not None for answer in answers)  # sent once more, it would be stored once more
        failed = finished.outcome == "failed" and not relayed
        if judgement.submission.interaction != "create":
            return SubmissionResponse(200, reply.bundle(judgement, answers, preferred), failed=failed, size=size)
        answer, stored = answers[0], answers[0].stored
        if answer.relayed is not None:  # in observe mode
            stored = next(iter(confirmed.confirmation(encode({"entry": [answer.relayed]}), 1) or ()), None)
        told = operation_outcome(answer.issues) if answer.issues or preferred == "OperationOutcome" else None
        shown = stored.resource if stored and preferred == "representation" else None
        headers = {"Location": f"{self._public}/{stored.location}"} if stored else {}
        headers |= {"ETag": stored.etag} if stored and stored.etag else {}
        headers |= {"WWW-Authenticate": answer.authenticate} if answer.authenticate else {}
        return SubmissionResponse(answer.status, shown or told, headers, failed, size)


def _weight(raw: Buffer, content_encoding: str) -> int:
    """Say how many bytes there are to work on; what is compressed may be any number."""
    return IN_THREAD_BYTES if content_encoding else len(raw)
