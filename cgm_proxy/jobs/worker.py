"""Works on one kept submission: what its answer would have been becomes the result."""

import msgspec

from cgm_proxy.core.codec.json_body import encode
from cgm_proxy.core.issues import RequestRefused, refuse
from cgm_proxy.core.submission import async_pattern
from cgm_proxy.core.submission.model import Submission
from cgm_proxy.jobs.job_queue import JobResult
from cgm_proxy.offload import offload
from cgm_proxy.receiver.intake import Intake, SubmissionRequest, SubmissionResponse


class Worker:
    """Takes in submissions that were kept, as if they came now."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake

    async def work(self, kept: bytes, raw: bytearray) -> JobResult:
        """Return the result of a submission, given its request and its body as they were kept."""
        response = await self._response(msgspec.json.decode(kept, type=SubmissionRequest), raw)
        bundle = async_pattern.result_bundle(response.status, response.content, response.headers)
        return JobResult(await offload(response.size, encode, bundle), response.failed)

    async def _response(self, request: SubmissionRequest, raw: bytearray) -> SubmissionResponse:
        try:
            document, dialect = await self._intake.open(raw, request.target, request.content_encoding)
        except RequestRefused as refused:
            return SubmissionResponse.refusal(refused)
        if dialect is None:  # it was a submission when it was kept
            text = "by the receiver's settings of today this is no submission; send it again"
            return SubmissionResponse.refusal(refuse(422, "async-settings", text, code="business-rule"))
        return await self._intake.take(request, document, dialect, raw, _answer_now)


async def _answer_now(_: Submission) -> None:
    """Never defer; answer now."""
