"""Reads the bodies of inspected requests, within limits of size, of time, and of memory for all of them together."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from cgm_proxy.core.codec import bodies
from cgm_proxy.core.issues import refuse
from cgm_proxy.server.fhir_responses import busy
from cgm_proxy.settings.loading import Settings


class RequestBodies:
    """Reads bodies and knows how much memory they take; refuses those for which there is no room."""

    def __init__(self, settings: Settings) -> None:
        self._max_bytes = settings.limits.body_bytes
        self._max_seconds = settings.limits.seconds
        self._read_timeout = settings.upstream.read_timeout
        #: Bytes that all bodies together may still take.
        self._room = settings.limits.body_bytes * settings.limits.in_flight

    @asynccontextmanager
    async def reading(self, request: web.BaseRequest) -> AsyncIterator[bytearray]:
        """Read a body as it was sent; its size counts until the context ends.

        Raises `RequestRefused`: 413 above the limit, 408 if the body does not arrive in time, 503 if there is no room for
        it, 400 if it ends early.
        """
        if (request.content_length or 0) > self._max_bytes:
            raise bodies.too_large(self._max_bytes)
        if request.headers.get("Expect", "").lower() == "100-continue":
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        raw = bytearray()
        counted = 0
        deadline = asyncio.get_running_loop().time() + self._max_seconds
        try:
            while piece := await self._read_piece(request, deadline):
                raw += piece
                self._room -= len(piece)
                counted += len(piece)
                if counted > self._max_bytes:
                    raise bodies.too_large(self._max_bytes)
                if self._room < 0:
                    raise busy()
            yield raw
        finally:
            self._room += counted

    async def _read_piece(self, request: web.BaseRequest, deadline: float) -> bytes:
        """Wait for the next bytes, until the read timeout or the deadline of the whole body, whichever is earlier."""
        remaining = deadline - asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(min(remaining, self._read_timeout)):
                return await request.content.readany()
        except TimeoutError as error:
            text = "the body did not arrive in time; send it again"
            raise refuse(408, "body-timeout", text, code="timeout") from error
        except web.RequestPayloadError as error:
            text = "the body ends early or is not framed as its header fields declare; send it again"
            raise refuse(400, "malformed-body", text) from error
