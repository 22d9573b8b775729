"""Read the bodies that have to be looked at, within limits of size, time and of what all of them may hold at once."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from cgm_proxy.core.codec import json_body
from cgm_proxy.core.issues import refuse
from cgm_proxy.settings.loading import Settings

#: Seconds after which a submitter who was turned away for lack of room may come again.
RETRY_AFTER = "5"


class RequestBodies:
    """Read and parse bodies; it knows how many bytes are held, and turns away what would be too many."""

    def __init__(self, settings: Settings) -> None:
        self._limits = settings.limits
        self._patience = settings.upstream.read_timeout
        self._room = settings.limits.body_bytes * settings.limits.in_flight

    @asynccontextmanager
    async def reading(self, request: web.BaseRequest) -> AsyncIterator[bytearray]:
        """Read a raw body, as it was sent, and count what is made of it as held for as long as the context lasts.

        Raises `RequestRefused`: 413 over the limit, 408 for silence, 503 where all bodies together are too many, 400 for
        one that is cut short.
        """
        if (request.content_length or 0) > self._limits.body_bytes:
            raise json_body.too_large(self._limits.body_bytes)
        if request.headers.get("Expect", "").lower() == "100-continue":
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        raw = bytearray()
        before = 0
        deadline = asyncio.get_running_loop().time() + self._limits.seconds
        try:
            while part := await self._part(request, deadline):
                raw += part
                self._room -= len(raw) - before
                before = len(raw)
                self._check(before)
            yield raw
        finally:
            self._room += before

    async def _part(self, request: web.BaseRequest, deadline: float) -> bytes:
        """Read what has arrived; neither silence nor a body that trickles on for ever is waited out."""
        left = deadline - asyncio.get_running_loop().time()
        try:
            return await asyncio.wait_for(request.content.readany(), min(left, self._patience))
        except TimeoutError as error:
            raise refuse(
                408, "body-timeout", "the body did not arrive in time; send it again", code="timeout"
            ) from error
        except web.RequestPayloadError as error:
            raise refuse(
                400, "malformed-body", "the body ends early or is not framed as it says; send it again"
            ) from error

    def _check(self, size: int) -> None:
        if size > self._limits.body_bytes:
            raise json_body.too_large(self._limits.body_bytes)
        if self._room < 0:
            raise refuse(
                503, "busy", "too many submissions at once; try again", code="throttled", Retry_After=RETRY_AFTER
            )
