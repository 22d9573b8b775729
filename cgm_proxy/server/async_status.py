"""The URLs under which submissions that are answered later can be asked for, as FHIR's asynchronous pattern wants them.

An answer is for who may read the patient upstream now, by the check that a submission passes too. The id alone is not
enough, for URLs end up in logs; nor is a token that was good when the submission came, for it may have been revoked. A
submitter's token may expire meanwhile: the next one is as good. That costs the upstream one small read a poll.
"""

import asyncio
import time
from email.utils import formatdate

from aiohttp import web

from cgm_proxy.core.codec import json_body
from cgm_proxy.core.issues import RequestRefused, refuse
from cgm_proxy.core.submission import async_pattern
from cgm_proxy.jobs.job_queue import JobQueue
from cgm_proxy.jobs.sqlite_store import JobStatus, StoreFailed, StoreFull
from cgm_proxy.offload import offload
from cgm_proxy.receiver.intake import SubmissionRequest, SubmissionResponse
from cgm_proxy.server import fhir_responses
from cgm_proxy.server.peers import Peers
from cgm_proxy.server.request_bodies import RETRY_AFTER
from cgm_proxy.upstream.client import Requester, UpstreamClient

#: Answers are for who asked, and change.
_NOT_STORED = {"Cache-Control": "no-store"}


class AsyncStatus:
    """Keep submissions and answer who asks for them."""

    def __init__(self, jobs: JobQueue, peers: Peers, upstream: UpstreamClient, public_url: str) -> None:
        self._jobs = jobs
        self._peers = peers
        self._upstream = upstream
        self._place = f"{public_url}/{async_pattern.STATUS_OPERATION}"
        self._converting = asyncio.Lock()

    async def keep(
        self, request: web.BaseRequest, patient: str, asked: SubmissionRequest, raw: json_body.Buffer
    ) -> SubmissionResponse | None:
        """Keep a submission; None where its patient does not exist upstream: it is refused at once.

        Raises `RequestRefused`: the upstream's 401 or 403 for who may not read the patient, 503 where there is no room.
        """
        async_pattern.refuse_files(request.query)
        if not await self._upstream.patient(patient, asked.requester):
            return None
        made = fhir_responses.wanted_format(request, asked.format or "json")
        try:
            name = await self._jobs.accept(patient, made, json_body.encode(asked), raw)
        except (StoreFull, StoreFailed) as fault:
            raise _no_room(fault) from fault
        headers = {"Content-Location": f"{self._place}/{name}", "Preference-Applied": "respond-async"}
        return SubmissionResponse(
            202,
            async_pattern.accepted_outcome(),
            headers | {"Retry-After": str(async_pattern.poll_interval(0))} | _NOT_STORED,
        )

    async def answer(self, request: web.BaseRequest, name: str, submitter: Requester) -> web.StreamResponse:
        """Answer a poll with 202 or the result, a DELETE by forgetting; raises `RequestRefused` (404, 405, 503)."""
        if request.method not in {"GET", "HEAD", "DELETE"}:
            text = "the status of a submission can be read (GET) and deleted (DELETE)"
            raise refuse(405, "async-method", text, code="not-supported", Allow="GET, HEAD, DELETE")
        if url := self._peers.url(request, name):
            return await self._peers.ask(request, url, submitter)
        try:
            kept = await self._jobs.find(name)
            if kept is None or not await self._upstream.patient(kept.patient, submitter):
                raise async_pattern.unknown_status()
            if request.method == "DELETE":
                await self._jobs.delete(name)
                return fhir_responses.resource(request, 202, async_pattern.deleted_outcome(), **_NOT_STORED)
            if kept.expires is None:
                return _waiting(kept)
            return await self._result(request, name, kept, kept.expires)
        except StoreFailed as fault:
            raise _no_room(fault) from fault

    async def _result(self, request: web.BaseRequest, name: str, kept: JobStatus, expires: float) -> web.StreamResponse:
        made = fhir_responses.wanted_format(request, "xml" if kept.format == "xml" else "json")
        headers = _NOT_STORED | fhir_responses.content_type(made) | {"Expires": formatdate(expires, usegmt=True)}
        if made == "xml":
            async with self._converting:  # one at a time: it takes several times the result's size
                data = b"".join([piece async for piece in self._jobs.result(name)])
                if len(data) < kept.size:
                    raise async_pattern.unknown_status()  # it was removed meanwhile
                return web.Response(headers=headers, body=await offload(len(data), _as_xml, data))
        response = web.StreamResponse(headers=headers | {"Content-Length": str(kept.size)})
        await response.prepare(request)
        if request.method != "HEAD":
            await self._send(request, response, name, kept.size)
        return response

    async def _send(self, request: web.BaseRequest, response: web.StreamResponse, name: str, size: int) -> None:
        """Send a result as it is read; break off where it is removed meanwhile, so that half of it never looks whole."""
        async for piece in self._jobs.result(name):
            await response.write(piece)
            size -= len(piece)
        if size and request.transport:
            request.transport.abort()


def _waiting(kept: JobStatus) -> web.Response:
    progress = "in progress" if kept.attempts else f"waiting, {kept.ahead} before it"
    pause = async_pattern.poll_interval(time.time() - kept.created)
    return web.Response(status=202, headers=_NOT_STORED | {"X-Progress": progress, "Retry-After": str(pause)})


def _as_xml(data: bytes) -> bytes:
    return fhir_responses.written(json_body.decode(data), "xml")


def _no_room(fault: Exception) -> RequestRefused:
    full = isinstance(fault, StoreFull)
    what = "too many submissions wait" if full else "submissions can't be kept now"
    text = f"{what}; try again, or send it without Prefer: respond-async"
    return refuse(503, "async-full" if full else "async-store", text, code="transient", Retry_After=RETRY_AFTER)
