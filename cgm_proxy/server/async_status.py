"""The status URLs of submissions that are kept for later, as FHIR's asynchronous pattern describes them.

A result is given to those who may read the patient upstream now, by the same check that a submission passes. The id alone
is not enough, because URLs end up in logs. Nor is the token with which the submission came: it may have been revoked, or
have expired, in which case the submitter's next token does as well. The check costs the upstream one small read per poll.
"""

import asyncio
import time
from email.utils import formatdate

from aiohttp import web

from cgm_proxy.core.codec import json_body
from cgm_proxy.core.codec.bodies import Format
from cgm_proxy.core.issues import RequestRefused, refuse, unavailable
from cgm_proxy.core.submission import async_pattern
from cgm_proxy.jobs.job_queue import JobQueue, owner_hash
from cgm_proxy.jobs.sqlite_store import JobStatus, StoreFailed, StoreFull
from cgm_proxy.offload import offload
from cgm_proxy.receiver.intake import SubmissionRequest, SubmissionResponse
from cgm_proxy.server.fhir_responses import FhirResponses, content_type, response_format
from cgm_proxy.server.peers import Replicas
from cgm_proxy.upstream.client import Requester, UpstreamClient

#: Responses depend on the requester, and change.
_NO_STORE = {"Cache-Control": "no-store"}


class AsyncStatus:
    """Keeps submissions for later, and answers requests for their status."""

    def __init__(
        self, jobs: JobQueue, replicas: Replicas, upstream: UpstreamClient, responses: FhirResponses, public_url: str
    ) -> None:
        self._jobs = jobs
        self._replicas = replicas
        self._upstream = upstream
        self._responses = responses
        self._base = f"{public_url}/{async_pattern.STATUS_OPERATION}"
        self._converting = asyncio.Lock()

    async def keep(
        self, request: web.BaseRequest, patient: str, submission: SubmissionRequest, raw: json_body.Buffer
    ) -> SubmissionResponse | None:
        """Keep a submission; return None if its patient does not exist upstream, because then it is refused at once.

        Raises `RequestRefused`: the upstream's 401 or 403 if the requester may not read the patient, and 503 if there is
        no room.
        """
        async_pattern.refuse_files(request.query)
        if not await self._upstream.exists(patient, submission.requester):
            return None
        result_format = response_format(request, submission.format or "json")
        try:
            submission_id = await self._jobs.accept(
                patient, result_format, json_body.encode(submission), raw, submission.requester.credentials
            )
        except (StoreFull, StoreFailed) as fault:
            raise _not_kept(fault) from fault
        headers = {
            "Content-Location": f"{self._base}/{submission_id}",
            "Preference-Applied": "respond-async",
            "Retry-After": str(async_pattern.poll_interval(0)),
            **_NO_STORE,
        }
        return SubmissionResponse(202, async_pattern.accepted_outcome(), headers)

    async def answer(self, request: web.BaseRequest, submission_id: str, requester: Requester) -> web.StreamResponse:
        """Answer GET and HEAD with 202 or the result, and carry out DELETE; raises `RequestRefused` (404, 405, 503)."""
        if request.method not in {"GET", "HEAD", "DELETE"}:
            text = "the status of a submission can be read (GET) and deleted (DELETE)"
            raise refuse(405, "async-method", text, code="not-supported", Allow="GET, HEAD, DELETE")
        if url := self._replicas.status_url(request, submission_id):
            return await self._replicas.forward(request, url, requester)
        try:
            status = await self._jobs.find(submission_id)
            if status is None or not await self._upstream.exists(status.patient, requester):
                raise async_pattern.unknown_status()
            if request.method == "DELETE":
                await self._jobs.delete(submission_id)
                return self._responses.resource(request, 202, async_pattern.deleted_outcome(), _NO_STORE)
            if status.expires is not None:
                own = status.owner == owner_hash(submission_id, requester.credentials)
                return await self._result(request, submission_id, status, status.expires, own=own)
        except StoreFailed as fault:
            raise _not_kept(fault) from fault
        pause = async_pattern.poll_interval(time.time() - status.created)
        progress = "in progress" if status.attempts else f"waiting, {status.ahead} before it"
        return web.Response(status=202, headers={"X-Progress": progress, "Retry-After": str(pause), **_NO_STORE})

    async def _result(
        self, request: web.BaseRequest, submission_id: str, status: JobStatus, expires: float, *, own: bool
    ) -> web.StreamResponse:
        """Send a result: in JSON piece by piece as it is read from the store; in XML, or without its resources, as a whole.

        The resources are only for the credentials that the submission came with (`own`).
        """
        chosen: Format = response_format(request, "xml" if status.format == "xml" else "json")
        headers = {**_NO_STORE, **content_type(chosen), "Expires": formatdate(expires, usegmt=True)}
        if chosen == "xml" or not own:
            async with self._converting:  # one at a time: it takes several times the result's size
                data = b"".join([piece async for piece in self._jobs.result(submission_id)])
                if len(data) < status.size:
                    raise async_pattern.unknown_status()  # it has been removed meanwhile
                return web.Response(headers=headers, body=await offload(len(data), self._converted, data, chosen, own))
        response = web.StreamResponse(headers={**headers, "Content-Length": str(status.size)})
        await response.prepare(request)
        if request.method == "HEAD":
            return response
        remaining = status.size
        async for piece in self._jobs.result(submission_id):
            await response.write(piece)
            remaining -= len(piece)
        if remaining and request.transport:  # it has been removed meanwhile, and half of it must not look complete
            request.transport.abort()
        return response

    def _converted(self, data: bytes, chosen: Format, own: bool) -> bytes:  # noqa: FBT001 -- offload passes positions
        result = json_body.decode(data)
        return self._responses.encode(result if own else async_pattern.without_resources(result), chosen)


def _not_kept(fault: StoreFull | StoreFailed) -> RequestRefused:
    cure = "try again, or send it without Prefer: respond-async"
    if isinstance(fault, StoreFull):
        return unavailable("async-full", f"too many submissions are waiting; {cure}")
    return unavailable("async-store", f"submissions can't be kept now; {cure}")
