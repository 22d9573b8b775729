"""Work on a kept submission: the response that it would have had at once becomes its result."""

import msgspec

from cgm_proxy.core.codec.json_body import encode
from cgm_proxy.core.issues import RequestRefused, refuse
from cgm_proxy.core.submission import async_pattern
from cgm_proxy.core.submission.model import Submission
from cgm_proxy.jobs.job_queue import JobResult
from cgm_proxy.offload import offload
from cgm_proxy.receiver.intake import Intake, SubmissionRequest, SubmissionResponse


class Worker:
    """Hands kept submissions to the intake, as if they had just been sent."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake

    async def work(self, request: bytes, body: bytearray) -> JobResult:
        """Return the result of a submission, given its request and its body as they were stored."""
        response = await self._response(msgspec.json.decode(request, type=SubmissionRequest), body)
        bundle = async_pattern.result_bundle(response.status, response.content, response.headers)
        return JobResult(await offload(response.size, encode, bundle), response.failed)

    async def _response(self, request: SubmissionRequest, body: bytearray) -> SubmissionResponse:
        try:
            document, dialect = await self._intake.recognise(body, request.target, request.content_encoding)
        except RequestRefused as refused:
            return SubmissionResponse.refusal(refused)
        if dialect is None:  # the settings have changed since it was stored
            text = "the receiver's settings have changed, and this is no submission any more; send it again"
            return SubmissionResponse.refusal(refuse(422, "async-settings", text, code="business-rule"))
        return await self._intake.take(request, document, dialect, body, _answer_now)


async def _answer_now(_: Submission) -> None:
    """Never defer; answer now."""
