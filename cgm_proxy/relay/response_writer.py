"""Sends the upstream's response to the client: first the head, then the body as it comes, with its links made public.

An upstream that honours X-Forwarded-* links to the public base by itself; then no byte of a body changes, and its framing
stays. Where a FHIR body still links to the upstream's own base, the links are rewritten while the body streams through.
Compressed and partial (206) bodies pass as they are. Therefore an upstream that was seen to ignore X-Forwarded-* is asked
for uncompressed responses (`ResponseWriter.upstream_links`), and its FHIR bodies lose their Content-Length.
"""

import asyncio
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

import aiohttp
from aiohttp import web
from aiohttp.http import HttpProcessingError, HttpVersion, HttpVersion11, RawResponseMessage
from aiohttp.streams import StreamReader

from cgm_proxy.core.http import header_fields
from cgm_proxy.core.http.base_urls import BaseUrls, LinkRewriter
from cgm_proxy.core.http.header_fields import Field
from cgm_proxy.core.issues import release_frames
from cgm_proxy.observability.stream_stats import StreamStats
from cgm_proxy.relay.connection_pool import GatheringProtocol, RawResponse

_FHIR_TEXT: Final = frozenset({"application/fhir+json", "application/fhir+xml", "application/json", "application/xml"})
_LOCATIONS: Final = frozenset({b"location", b"content-location"})
#: A Content-Length beside a chunked body is void (RFC 9112, 6.3).
_DROPPED_IF_CHUNKED: Final = header_fields.HOP_BY_HOP | {b"content-length"}
_WITHOUT_BODY: Final = frozenset({204, 304})
_UPSTREAM_FAULTS: Final = (aiohttp.ClientError, HttpProcessingError, TimeoutError)
#: SO_LINGER with no time: closing resets the connection, which no client takes for the end of a body.
_RESET: Final = struct.pack("ii", 1, 0)


class StreamedResponse(web.StreamResponse):
    """A response that has been sent already; aiohttp finishes it without adding a byte.

    `complete` is whether all of it came, so that the upstream's connection can be used again.
    """

    def __init__(self, status: int, *, keep_alive: bool, complete: bool) -> None:
        super().__init__(status=status)
        self.complete = complete
        self._keep_client = keep_alive

    @property
    def prepared(self) -> bool:
        """True, because the head has been sent."""
        return True

    @property
    def keep_alive(self) -> bool:
        """Whether the client's connection can carry another request."""
        return self._keep_client

    async def prepare(self, request: web.BaseRequest) -> None:
        """Do nothing: the head has been sent."""

    async def write_eof(self, data: bytes = b"") -> None:
        """Do nothing: the body has been sent."""


class Framing(NamedTuple):
    """How the client recognises the end of a body (RFC 9112, 6.3), and whether its connection stays open after it."""

    chunked: bool
    keep_alive: bool
    http10: bool

    @classmethod
    def of(cls, version: HttpVersion, *, sized: bool, keep_alive: bool) -> "Framing":
        """Choose the length where there is one, else chunks, else (HTTP/1.0) the end of the connection."""
        http10 = version < HttpVersion11
        return cls(chunked=not sized and not http10, keep_alive=keep_alive and (sized or not http10), http10=http10)

    @property
    def connection(self) -> bytes:
        """The `Connection` field, or nothing where it is the version's default."""
        if self.keep_alive:
            return b"Connection: keep-alive\r\n" if self.http10 else b""
        return b"" if self.http10 else b"Connection: close\r\n"


class ResponseWriter:
    """Sends responses to clients."""

    def __init__(self, bases: BaseUrls, stats: StreamStats) -> None:
        self._bases = bases
        self._stats = stats
        #: Whether the upstream was seen to link to its own base in spite of X-Forwarded-*.
        self.upstream_links = False

    async def send(
        self, request: web.BaseRequest, response: RawResponse, protocol: GatheringProtocol, *, keep_alive: bool
    ) -> StreamedResponse:
        """Send a response: in one piece if its body is here already, else as it comes.

        If the client has disconnected, the response is still read to its end, because the upstream may be at work until then; a
        caller that need not wait for that cancels the task. Raises `ValueError` if the head must not be passed on.
        """
        message, payload = response
        keep_alive = keep_alive and request.keep_alive
        fields = self._client_fields(message)
        try:
            if payload.is_eof():
                return await self._send_at_once(request, message, fields, payload.read_nowait(), keep_alive=keep_alive)
            with _failing_if_lost(protocol, payload):
                try:
                    return await self._send_in_pieces(request, message, fields, payload, keep_alive=keep_alive)
                except ConnectionError:
                    return StreamedResponse(message.code, keep_alive=False, complete=await _read_to_end(payload))
        except ConnectionError:
            return StreamedResponse(message.code, keep_alive=False, complete=True)
        finally:
            self._stats.bytes_down += request.writer.output_size
            release_frames(payload.exception())

    async def _send_at_once(
        self,
        request: web.BaseRequest,
        message: RawResponseMessage,
        fields: list[Field],
        body: bytes,
        *,
        keep_alive: bool,
    ) -> StreamedResponse:
        if body and self._may_link(message) and self._bases.link_mark in body:
            rewriter = LinkRewriter(self._bases)
            body = rewriter.feed(body) + rewriter.finish()
            self.upstream_links = self.upstream_links or rewriter.found
            length = str(len(body)).encode()
            fields = [(name, length if name.lower() == b"content-length" else value) for name, value in fields]
        bodiless = request.method == "HEAD" or message.code in _WITHOUT_BODY
        framing = Framing.of(request.version, sized=bodiless or _sized(message), keep_alive=keep_alive)
        if framing.chunked:
            body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
        head = _head(message, fields, framing, chunked=message.chunked if bodiless else framing.chunked)
        await request.writer.write(head + body)
        return StreamedResponse(message.code, keep_alive=framing.keep_alive, complete=True)

    async def _send_in_pieces(
        self,
        request: web.BaseRequest,
        message: RawResponseMessage,
        fields: list[Field],
        payload: StreamReader,
        *,
        keep_alive: bool,
    ) -> StreamedResponse:
        sized = _sized(message)
        rewriter = LinkRewriter(self._bases) if self._may_link(message) and (self.upstream_links or not sized) else None
        if rewriter and sized:
            fields, sized = [field for field in fields if field[0].lower() != b"content-length"], False
        framing = Framing.of(request.version, sized=sized, keep_alive=keep_alive)
        writer = request.writer
        await writer.write(_head(message, fields, framing, chunked=framing.chunked))
        if framing.chunked:
            writer.enable_chunking()
        try:
            while piece := await payload.readany():
                await writer.write(rewriter.feed(piece) if rewriter else piece)
            await writer.write_eof(rewriter.finish() if rewriter else b"")
        except ConnectionError:  # the client's; those of the upstream are other exceptions
            raise
        except _UPSTREAM_FAULTS:
            if _reset_client(request):
                self._stats.faults["upstream-broken"] += 1
            return StreamedResponse(message.code, keep_alive=False, complete=False)
        self.upstream_links = self.upstream_links or (rewriter is not None and rewriter.found)
        return StreamedResponse(message.code, keep_alive=framing.keep_alive, complete=True)

    def _client_fields(self, message: RawResponseMessage) -> list[Field]:
        """Return the fields that go to the client, with public locations."""
        dropped = _DROPPED_IF_CHUNKED if message.chunked else header_fields.HOP_BY_HOP
        fields = header_fields.end_to_end(message.raw_headers, dropped)
        if not self._bases.differ or not ("Location" in message.headers or "Content-Location" in message.headers):
            return fields
        public = [
            (name, self._bases.public_location(value) if name.lower() in _LOCATIONS else value)
            for name, value in fields
        ]
        self.upstream_links = self.upstream_links or public != fields
        return public

    def _may_link(self, message: RawResponseMessage) -> bool:
        """Whether a body is uncompressed FHIR, which may contain links to the upstream's base."""
        if not self._bases.differ or message.code == 206 or "Content-Encoding" in message.headers:
            return False
        return message.headers.get("Content-Type", "").partition(";")[0].strip().lower() in _FHIR_TEXT


async def _read_to_end(payload: StreamReader) -> bool:
    """Read a body and discard it; return whether all of it came."""
    try:
        while await payload.readany():
            pass
    except _UPSTREAM_FAULTS:
        return False
    return True


def _sized(message: RawResponseMessage) -> bool:
    return not message.chunked and "Content-Length" in message.headers


def _head(message: RawResponseMessage, fields: list[Field], framing: Framing, *, chunked: bool) -> bytes:
    return b"HTTP/1.1 %d %b\r\n%b%b%b\r\n" % (
        message.code,
        message.reason.encode("utf-8", "surrogateescape"),
        header_fields.encode(fields),
        b"Transfer-Encoding: chunked\r\n" if chunked else b"",
        framing.connection,
    )


@contextmanager
def _failing_if_lost(protocol: GatheringProtocol, payload: StreamReader) -> Iterator[None]:
    """Make the body fail when its connection is lost.

    After a malformed chunk, aiohttp's parser closes the connection without an exception for the body's reader.
    """

    def fail(_: object) -> None:
        if not payload.is_eof() and payload.exception() is None:
            payload.set_exception(aiohttp.ClientPayloadError("the body is malformed"))

    closed = protocol.closed
    if closed is None:
        fail(None)
        closed = asyncio.Future()
    closed.add_done_callback(fail)
    try:
        yield
    finally:
        closed.remove_done_callback(fail)


def _reset_client(request: web.BaseRequest) -> bool:
    """Reset the client's connection; return whether the client was still connected."""
    transport = request.transport
    if transport is None or transport.is_closing():
        return False
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    transport.abort()
    return True
