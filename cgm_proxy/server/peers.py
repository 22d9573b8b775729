"""The other replicas, each of which keeps submissions of its own: a poll that reaches the wrong one goes to the right one.

A submission's id begins with the name of the replica that keeps it. Only names of our own set are asked for, which differ
from ours in their number: what else stands in an id leads nowhere. Who may have an answer is decided where it is given.
"""

import re
from urllib.parse import quote

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from cgm_proxy.core.issues import refuse
from cgm_proxy.core.submission import async_pattern
from cgm_proxy.server.request_bodies import RETRY_AFTER
from cgm_proxy.settings import loading
from cgm_proxy.upstream.client import Requester

#: Marks a poll that comes from another replica: it goes no further.
FROM_PEER = "X-CGM-Proxy-Peer"

#: Longest silence of another replica (seconds).
READ_TIMEOUT = 60.0

#: Header fields of its answer that are passed on.
_KEPT = (
    "Content-Type",
    "Content-Length",
    "Cache-Control",
    "Expires",
    "Retry-After",
    "X-Progress",
    "Allow",
    "WWW-Authenticate",
)


class Peers:
    """Know which replica keeps a submission, and ask it."""

    def __init__(self, limits: loading.JobSettings, session: aiohttp.ClientSession) -> None:
        self._own = limits.replica or ""
        self._template = limits.peers
        self._names = re.compile(re.escape(self._own.rstrip("0123456789")) + "[0-9]{1,5}")
        self._session = session

    def url(self, request: web.BaseRequest, name: str) -> str | None:
        """Give the status URL at the other replica that keeps a submission; None where it is ours to answer."""
        replica = name.rpartition(".")[0]
        if (
            not self._template
            or replica == self._own
            or not self._names.fullmatch(replica)
            or FROM_PEER in request.headers
        ):
            return None
        query = request.raw_path.partition("?")[2]
        place = (
            f"{self._template.replace('{replica}', replica)}/{async_pattern.STATUS_OPERATION}/{quote(name, safe='')}"
        )
        return f"{place}?{query}" if query else place

    async def ask(self, request: web.BaseRequest, url: str, submitter: Requester) -> web.StreamResponse:
        """Pass a poll on, and its answer back; raises `RequestRefused` (503) where the other replica can't be reached."""
        headers = CIMultiDict(submitter.headers)
        headers.update({FROM_PEER: self._own, "Accept": request.headers.get("Accept", "*/*")})
        timeout = aiohttp.ClientTimeout(total=None, connect=5, sock_read=READ_TIMEOUT)
        asked = self._session.request(
            request.method, URL(url, encoded=True), headers=headers, timeout=timeout, allow_redirects=False
        )
        response: web.StreamResponse | None = None
        try:
            async with asked as answer:
                kept = {field: answer.headers[field] for field in _KEPT if field in answer.headers}
                response = web.StreamResponse(status=answer.status, headers=kept)
                await response.prepare(request)
                async for piece in answer.content.iter_any():
                    await response.write(piece)
        except (aiohttp.ClientError, TimeoutError) as fault:
            if response is None:
                text = "the replica that keeps this submission can't be reached now; try again"
                raise refuse(503, "async-replica", text, code="transient", Retry_After=RETRY_AFTER) from fault
            if request.transport:
                request.transport.abort()
        return response
