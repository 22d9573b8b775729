"""The upstream's answer on its way to the client: head first, then the body as it comes, its links made public.

An upstream that reads X-Forwarded-* links to the public base by itself: then no byte of a body changes and its framing
stays. Where the upstream's own base still turns up in links of a FHIR body, they are rewritten while they stream by. A
compressed body passes as it is, and so does a partial one (206); therefore an upstream that was seen to ignore
X-Forwarded-* is asked for uncompressed answers (`Answer.upstream_links`), and its bodies lose their Content-Length.
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
from cgm_proxy.observability.stream_stats import StreamStats
from cgm_proxy.relay.connection_pool import Gathering, Head

_FHIR_TEXT: Final = frozenset({"application/fhir+json", "application/fhir+xml", "application/json", "application/xml"})
_LINKS: Final = frozenset({b"location", b"content-location"})
_VOID_LENGTH: Final = header_fields.HOP_BY_HOP | {b"content-length"}
_BODILESS: Final = frozenset({204, 304})
_BROKEN: Final = (aiohttp.ClientError, HttpProcessingError, TimeoutError)
_Fields = list[tuple[bytes, bytes]]
#: SO_LINGER on, no time: closing resets the connection, which no client takes for the end of a body.
_RESET: Final = struct.pack("ii", 1, 0)


class StreamedResponse(web.StreamResponse):
    """An answer that is on the wire already: aiohttp finishes it without adding a byte.

    `whole` tells whether all of it came, so that the upstream's connection can be used again.
    """

    def __init__(self, status: int, *, keep_alive: bool, whole: bool) -> None:
        super().__init__(status=status)
        self.whole = whole
        self._reusable = keep_alive

    @property
    def prepared(self) -> bool:
        """Tell that the head is sent."""
        return True

    @property
    def keep_alive(self) -> bool:
        """Tell whether the client's connection can carry another request."""
        return self._reusable

    async def prepare(self, request: web.BaseRequest) -> None:
        """Do nothing: the head is sent."""

    async def write_eof(self, data: bytes = b"") -> None:
        """Do nothing: the body is sent."""


class ResponseWriter:
    """Deliver answers to clients."""

    def __init__(self, bases: BaseUrls, traffic: StreamStats) -> None:
        self._bases = bases
        self._traffic = traffic
        #: Whether the upstream was seen to link to its own base in spite of X-Forwarded-*.
        self.upstream_links = False

    async def deliver(
        self, request: web.BaseRequest, head: Head, protocol: Gathering, *, keep_alive: bool
    ) -> StreamedResponse:
        """Send an answer whose head has come: in one piece if its body is here already, else as it comes.

        Raises `ConnectionError` if the client has left, `ValueError` if the head must not be passed on.
        """
        message, payload = head
        keep_alive = keep_alive and request.keep_alive
        try:
            if payload.is_eof():
                written, framing = self.whole(request.method, request.version, head, keep_alive=keep_alive)
                await request.writer.write(written)
                return StreamedResponse(message.code, keep_alive=framing.keep_alive, whole=True)
            with _noticing(protocol, payload):
                return await self._send_pieces(request, message, self._fields(message), payload, keep_alive=keep_alive)
        finally:
            self._traffic.bytes_down += request.writer.output_size

    def whole(self, method: str, version: HttpVersion, head: Head, *, keep_alive: bool) -> tuple[bytes, "Framing"]:
        """Write an answer whose body is here as a whole; raises `ValueError` if its head must not be passed on."""
        message, payload = head
        fields, body = self._fields(message), payload.read_nowait()
        if body and self._may_link(message):
            body, fields = self._public_body(body, fields)
        bodiless = method == "HEAD" or message.code in _BODILESS
        framing = Framing.of(version, sized=bodiless or _sized(message), keep_alive=keep_alive)
        written = _head(message, fields, framing, chunked=message.chunked if bodiless else framing.chunked)
        return written + (_only_chunk(body) if framing.chunked else body), framing

    async def _send_pieces(
        self,
        request: web.BaseRequest,
        message: RawResponseMessage,
        fields: _Fields,
        payload: StreamReader,
        *,
        keep_alive: bool,
    ) -> StreamedResponse:
        sized = _sized(message)
        rewriter = LinkRewriter(self._bases) if self._may_link(message) and (self.upstream_links or not sized) else None
        if rewriter and sized:
            fields, sized = [field for field in fields if field[0].lower() != b"content-length"], False
        framing = Framing.of(request.version, sized=sized, keep_alive=keep_alive)
        await request.writer.write(_head(message, fields, framing, chunked=framing.chunked))
        if framing.chunked:
            request.writer.enable_chunking()
        whole = await self._copy(request, payload, rewriter)
        return StreamedResponse(message.code, keep_alive=framing.keep_alive and whole, whole=whole)

    async def _copy(self, request: web.BaseRequest, payload: StreamReader, rewriter: LinkRewriter | None) -> bool:
        """Copy a body as it comes; cut the client off if it breaks in the middle, and tell whether all of it came."""
        writer = request.writer
        try:
            while piece := await payload.readany():
                await writer.write(rewriter.feed(piece) if rewriter else piece)
            await writer.write_eof(rewriter.finish() if rewriter else b"")
        except _BROKEN:
            if _cut(request):
                self._traffic.faults["upstream-broke-off"] += 1
            return False
        self._learn(seen=rewriter is not None and rewriter.found)
        return True

    def _fields(self, message: RawResponseMessage) -> _Fields:
        """List the fields for the client; a Content-Length beside a chunked body is void (RFC 9112, 6.3)."""
        dropped = _VOID_LENGTH if message.chunked else header_fields.HOP_BY_HOP
        fields = header_fields.end_to_end(message.raw_headers, dropped)
        if not self._bases.differ or not ("Location" in message.headers or "Content-Location" in message.headers):
            return fields
        public = [(name, self._bases.public_location(text) if name.lower() in _LINKS else text) for name, text in fields]
        self._learn(seen=public != fields)
        return public

    def _may_link(self, message: RawResponseMessage) -> bool:
        """Tell whether a body is FHIR in plain text, where links to the upstream's base may stand."""
        if not self._bases.differ or message.code == 206 or "Content-Encoding" in message.headers:
            return False
        return message.headers.get("Content-Type", "").partition(";")[0].strip().lower() in _FHIR_TEXT

    def _public_body(self, body: bytes, fields: _Fields) -> tuple[bytes, _Fields]:
        if self._bases.link_mark not in body:
            return body, fields
        rewriter = LinkRewriter(self._bases)
        public = rewriter.feed(body) + rewriter.finish()
        self._learn(seen=rewriter.found)
        length = str(len(public)).encode()
        return public, [(name, length if name.lower() == b"content-length" else text) for name, text in fields]

    def _learn(self, *, seen: bool) -> None:
        self.upstream_links = self.upstream_links or seen


class Framing(NamedTuple):
    """How an answer's body ends for its client (RFC 9112, 6.3), and whether the connection outlives it."""

    chunked: bool
    keep_alive: bool
    old: bool

    @classmethod
    def of(cls, version: HttpVersion, *, sized: bool, keep_alive: bool) -> "Framing":
        """Choose: a length where there is one, else chunks, else for HTTP/1.0 the end of the connection."""
        old = version < HttpVersion11
        return cls(chunked=not sized and not old, keep_alive=keep_alive and (sized or not old), old=old)

    @property
    def connection(self) -> bytes:
        """Give the Connection field where HTTP's default does not say it."""
        if self.keep_alive:
            return b"Connection: keep-alive\r\n" if self.old else b""
        return b"" if self.old else b"Connection: close\r\n"


def _sized(message: RawResponseMessage) -> bool:
    return not message.chunked and "Content-Length" in message.headers


def _head(message: RawResponseMessage, fields: _Fields, framing: Framing, *, chunked: bool) -> bytes:
    return b"HTTP/1.1 %d %b\r\n%b%b%b\r\n" % (
        message.code,
        message.reason.encode("utf-8", "surrogateescape"),
        header_fields.lines(fields),
        b"Transfer-Encoding: chunked\r\n" if chunked else b"",
        framing.connection,
    )


@contextmanager
def _noticing(protocol: Gathering, payload: StreamReader) -> Iterator[None]:
    """Break a body off when its connection is lost: of a malformed chunk, aiohttp's parser tells no reader."""

    def lost(_: object) -> None:
        if not payload.is_eof() and payload.exception() is None:
            payload.set_exception(aiohttp.ClientPayloadError("the body is malformed"))

    closed = protocol.closed
    if closed is None:
        lost(None)
        closed = asyncio.Future()
    closed.add_done_callback(lost)
    try:
        yield
    finally:
        closed.remove_done_callback(lost)


def _only_chunk(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"


def _cut(request: web.BaseRequest) -> bool:
    """Reset the client's connection; tell whether the client was still there."""
    transport = request.transport
    if transport is None or transport.is_closing():
        return False
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    transport.abort()
    return True
