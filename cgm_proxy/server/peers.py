"""The other replicas. Each keeps submissions of its own, so a poll that reaches the wrong replica is forwarded.

The id of a kept submission begins with the name of the replica that keeps it. A poll is forwarded only to a name of the
same set of replicas, which differs from this one's in its number; any other id is answered here. The replica that
keeps a submission decides who may read its result.
"""

import re
from urllib.parse import quote

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from cgm_proxy.core.issues import unavailable
from cgm_proxy.core.submission import async_pattern
from cgm_proxy.settings import loading
from cgm_proxy.upstream.client import Requester

#: Marks a poll that another replica has forwarded; it is not forwarded again.
FORWARDED_BY = "X-CGM-Proxy-Peer"

#: Longest time without a byte from another replica (seconds).
READ_TIMEOUT = 60.0

#: Fields of another replica's response that are passed on.
_PASSED_ON = (
    "Content-Type",
    "Content-Length",
    "Cache-Control",
    "Expires",
    "Retry-After",
    "X-Progress",
    "Allow",
    "WWW-Authenticate",
)


class Replicas:
    """Recognises submissions that another replica keeps, and forwards polls to it."""

    def __init__(self, jobs: loading.JobSettings, session: aiohttp.ClientSession) -> None:
        self._own_name = jobs.replica or ""
        self._url_template = jobs.peers
        self._names = re.compile(re.escape(self._own_name.rstrip("0123456789")) + "[0-9]{1,5}")
        self._session = session

    def status_url(self, request: web.BaseRequest, submission_id: str) -> str | None:
        """Return the status URL at the replica that keeps a submission, None if this one has to answer."""
        replica = submission_id.rpartition(".")[0]
        if (
            not self._url_template
            or replica == self._own_name
            or not self._names.fullmatch(replica)
            or FORWARDED_BY in request.headers
        ):
            return None
        base = self._url_template.replace("{replica}", replica)
        url = f"{base}/{async_pattern.STATUS_OPERATION}/{quote(submission_id, safe='')}"
        query = request.raw_path.partition("?")[2]
        return f"{url}?{query}" if query else url

    async def forward(self, request: web.BaseRequest, url: str, requester: Requester) -> web.StreamResponse:
        """Forward a poll and stream the response back; raises `RequestRefused` (503) if the replica can't be reached."""
        headers = CIMultiDict(requester.headers)
        headers.update({FORWARDED_BY: self._own_name, "Accept": request.headers.get("Accept", "*/*")})
        timeout = aiohttp.ClientTimeout(total=None, connect=5, sock_read=READ_TIMEOUT)
        poll = self._session.request(
            request.method, URL(url, encoded=True), headers=headers, timeout=timeout, allow_redirects=False
        )
        response: web.StreamResponse | None = None
        try:
            async with poll as answer:
                fields = {name: answer.headers[name] for name in _PASSED_ON if name in answer.headers}
                response = web.StreamResponse(status=answer.status, headers=fields)
                await response.prepare(request)
                async for piece in answer.content.iter_any():
                    await response.write(piece)
        except (aiohttp.ClientError, TimeoutError) as fault:
            if response is None:
                text = "the replica that keeps this submission can't be reached now; try again"
                raise unavailable("async-replica", text) from fault
            if request.transport:
                request.transport.abort()  # so that half a result does not look complete
        return response
