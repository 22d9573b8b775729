"""Read the bodies that have to be looked at, within limits of size, time and of what all of them may hold at once."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from cgm_proxy.core.codec import json_body
from cgm_proxy.core.codec.json_body import Buffer
from cgm_proxy.core.issues import refuse
from cgm_proxy.core.json_values import JsonObject
from cgm_proxy.core.submission import reader
from cgm_proxy.core.submission.model import localizer
from cgm_proxy.observability.stream_stats import GivingWay, StreamStats
from cgm_proxy.settings.loading import Settings

#: Bodies larger than this are parsed in a thread (bytes).
PARSED_IN_THREAD = 2**18

#: Seconds after which a submitter who was turned away for lack of room may come again.
RETRY_AFTER = "5"


class RequestBodies:
    """Read and parse bodies; it knows how many bytes are held, and turns away what would be too many."""

    def __init__(self, settings: Settings, traffic: StreamStats) -> None:
        self._limits = settings.limits
        self._traffic = traffic
        self._patience = settings.upstream.read_timeout
        self._room = settings.limits.body_bytes * settings.limits.in_flight
        self._localize = localizer(settings.listen.public_url, settings.upstream.url)

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

    async def parse(self, raw: Buffer, content_encoding: str) -> JsonObject:
        """Inflate and parse a body as `document.read` does; a large one in a thread, so that streamed traffic goes on."""
        if len(raw) < PARSED_IN_THREAD and not content_encoding:
            return self._read(raw)
        return await asyncio.to_thread(self._inflated, raw, content_encoding)

    def _inflated(self, raw: Buffer, content_encoding: str) -> JsonObject:
        inflated = json_body.inflate(raw, content_encoding, self._limits.body_bytes)
        return self._read(inflated, GivingWay(self._traffic))

    def _read(self, data: Buffer, between: GivingWay | None = None) -> JsonObject:
        return reader.read(data, self._limits.depth, self._localize, self._limits.entries, between)

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
