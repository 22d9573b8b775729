"""The streaming relay: a request goes to the upstream and its response back, byte for byte and piece by piece.

Connections come from aiohttp's pool (`connection_pool`) and messages are read by aiohttp's parser, but without
`ClientSession`, whose work for one request (header dictionaries, cookies, redirects, timers) costs more than the rest.

The relay changes what a relay must change, and nothing else:

- Hop-by-hop fields and framing belong to each connection (RFC 9110, 7.6.1); trailer fields are dropped (6.5.1).
- `Host` is the upstream's, and a `Via` is added. `Forwarded` and `X-Forwarded-*` are written anew
  (`core.http.header_fields`): host, port, scheme and prefix come from the public base URL of the settings, never from a
  field that the client sent.
- `Location`, `Content-Location` and FHIR links to the upstream's base become public (`response_writer`).
- An expected `100 Continue` is left to the upstream; an upgrade is refused.

A fault before the first byte of a response raises `RequestRefused`: 503 if the upstream can't be reached, 502 if it closes
the connection or its response is not HTTP, 504 if it does not answer in time. After the first byte the client's connection
is reset, so that half a response never looks complete. Only GET, HEAD and OPTIONS without a body are sent a second time,
once, if the connection had just been closed by the upstream.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable
from functools import lru_cache
from typing import Final, NamedTuple

import aiohttp
from aiohttp import web
from aiohttp.http import HttpProcessingError, StreamWriter
from aiohttp.streams import EofStream, StreamReader

from cgm_proxy.core.codec.json_body import Buffer
from cgm_proxy.core.http import header_fields
from cgm_proxy.core.issues import RequestRefused, refuse
from cgm_proxy.observability.stream_stats import StreamStats
from cgm_proxy.relay.connection_pool import ConnectionPool, GatheringProtocol, RawResponse
from cgm_proxy.relay.response_writer import ResponseWriter, StreamedResponse
from cgm_proxy.settings.loading import Settings
from cgm_proxy.upstream.faults import refusal_of

#: Size of a piece of a body that is in memory already; one of at most this size is sent together with its head (bytes).
_PIECE: Final = 2**16
#: How long a client that expects `100 Continue` waits for the upstream's decision before it gets one (seconds).
_CONTINUE_SECONDS: Final = 1.0

_DROPPED: Final = header_fields.HOP_BY_HOP | header_fields.FORWARDING | {b"host"}
_REPEATABLE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_UPSTREAM_FAULTS: Final = (aiohttp.ClientError, HttpProcessingError, EofStream, TimeoutError, ValueError)
_CONNECTION_LOST: Final = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)


class _UpstreamRequest(NamedTuple):
    """A request as it goes upstream.

    `head` ends with the body if that is small and in memory. `streamed` is whether the body follows in pieces: from
    `body` if it is in memory, else from the client.
    """

    method: str
    head: bytes
    body: Buffer | None
    streamed: bool
    chunked: bool
    expects_continue: bool

    @property
    def repeatable(self) -> bool:
        """Whether the request can be sent twice without another effect than once."""
        return self.method in _REPEATABLE_METHODS and not self.streamed and not self.body


class Relay:
    """Passes requests through to the upstream; owns the connections for that."""

    def __init__(self, settings: Settings, stats: StreamStats | None = None) -> None:
        self.stats = stats or StreamStats()
        self.bases = bases = settings.bases
        self._connect_timeout = settings.upstream.connect_timeout
        self._read_timeout = settings.upstream.read_timeout
        self._response_writer = ResponseWriter(bases, self.stats)
        self._address_fields = header_fields.encode(
            [
                (b"Host", bases.upstream.authority.encode()),
                (b"Via", b"1.1 cgm-proxy"),
                *header_fields.public_address(bases),
            ]
        )
        self._client_fields = lru_cache(maxsize=1024)(self._encode_client_fields)

    async def start(self) -> None:
        """Create the connection pool; it connects when a request needs it, so the upstream may start later."""
        self._loop = asyncio.get_running_loop()
        self._pool = ConnectionPool(self.bases.upstream.url, self._connect_timeout, self._read_timeout)

    async def close(self) -> None:
        """Close all connections to the upstream."""
        await self._pool.close()

    async def pass_through(self, request: web.BaseRequest, *, body: Buffer | None = None) -> StreamedResponse:
        """Send a request upstream and its response back.

        `body` is the raw body if it has been read already; it goes upstream byte for byte. Raises `RequestRefused` before
        the first byte of a response, and `ConnectionError` when the client has disconnected before it.
        """
        upstream_request = self._upstream_request(request, body)
        self.stats.in_flight += 1
        try:
            try:
                return await self._exchange(request, upstream_request)
            except _CONNECTION_LOST:
                if not upstream_request.repeatable:
                    raise
                return await self._exchange(request, upstream_request)
        except web.RequestPayloadError as fault:
            text = "the body ends early or is not framed as its header fields declare; send it again"
            raise self._count(refuse(400, "malformed-body", text)) from fault
        except _UPSTREAM_FAULTS as fault:
            if request.transport is None or request.transport.is_closing():
                raise ConnectionResetError("the client has disconnected") from fault
            raise self._count(refusal_of(fault)) from fault
        finally:
            self.stats.in_flight -= 1

    def _count(self, refusal: RequestRefused) -> RequestRefused:
        self.stats.faults[refusal.issues[0].rule] += 1
        return refusal

    async def _exchange(self, request: web.BaseRequest, upstream_request: _UpstreamRequest) -> StreamedResponse:
        """Send the request once, on one connection, which goes back to the pool only after a complete exchange."""
        connection, protocol = await self._pool.acquire(bodiless=upstream_request.method == "HEAD")
        upload: asyncio.Task[None] | None = None
        reusable = False
        try:
            started = self._loop.time()
            protocol.send(upstream_request.head)
            self.stats.bytes_up += len(upstream_request.head)
            response: RawResponse | None = None
            if upstream_request.expects_continue:
                response = await self._response_before_body(request, protocol)
            if not upstream_request.streamed:
                protocol.start_timeout()
            elif response is None:
                upload = self._loop.create_task(self._upload(request, upstream_request, protocol))
            response = response or await _final_response(protocol)
            self.stats.count_response(response[0].code, self._loop.time() - started)
            uploaded = upload.done() if upload else not upstream_request.streamed
            sent = await self._response_writer.send(request, response, protocol, keep_alive=uploaded)
            reusable = sent.complete and uploaded
            return sent
        finally:
            if upload:
                upload.cancel()
            if reusable:
                self._pool.release(connection)
            else:
                connection.close()

    async def _response_before_body(self, request: web.BaseRequest, protocol: GatheringProtocol) -> RawResponse | None:
        """Wait for the upstream's answer to `Expect: 100-continue`, but not for ever (RFC 9110, 10.1.1).

        Return a final response. If there is none, or an interim one, tell the client to send its body.
        """
        try:
            async with asyncio.timeout(_CONTINUE_SECONDS):
                message, payload = await protocol.read()
            if message.code >= 200:
                return message, payload
        except TimeoutError:
            pass
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return None

    async def _upload(
        self, request: web.BaseRequest, upstream_request: _UpstreamRequest, protocol: GatheringProtocol
    ) -> None:
        """Send the body as it comes, at the upstream's pace; a fault becomes the result of waiting for the response."""
        writer = StreamWriter(protocol, self._loop)
        if upstream_request.chunked:
            writer.enable_chunking()
        try:
            async for piece in _pieces(request.content, upstream_request.body):
                async with asyncio.timeout(self._read_timeout):
                    await writer.write(piece)
            await writer.write_eof()
            protocol.start_timeout()
        except aiohttp.ClientConnectionResetError:
            pass  # the upstream closed the connection; its response, or the lack of one, is found by the reader
        except (ConnectionError, TimeoutError, web.RequestPayloadError) as fault:
            protocol.set_exception(fault)
        finally:
            self.stats.bytes_up += writer.output_size

    def _upstream_request(self, request: web.BaseRequest, body: Buffer | None) -> _UpstreamRequest:
        """Write the request for the upstream; raises `RequestRefused` (501) if it can't be relayed."""
        if request.method == "CONNECT" or "websocket" in request.headers.get("Upgrade", "").lower():
            text = "tunnels and protocol upgrades are not supported here; send a plain HTTP request"
            raise refuse(501, "no-upgrade", text, code="not-supported")
        coding = request.headers.get("Transfer-Encoding", "")
        if coding and coding.strip().lower() != "chunked":
            text = "the only Transfer-Encoding that is supported here is chunked; send the body with it, or with a Content-Length"
            raise refuse(501, "transfer-encoding", text, code="not-supported")
        streamed = request.body_exists if body is None else len(body) > _PIECE
        chunked = bool(coding) and body is None
        dropped = _DROPPED
        added: list[header_fields.Field] = []
        expects_continue = request.headers.get("Expect", "").lower() == "100-continue"
        if expects_continue and (not streamed or body is not None):  # there is nothing to wait for
            expects_continue = False
            dropped |= {b"expect"}
        if self._response_writer.upstream_links:
            dropped |= {b"accept-encoding"}
            added = [(b"Accept-Encoding", b"identity")]
        target = self.bases.upstream_target(request.raw_path).encode("utf-8", "surrogateescape")
        fields = header_fields.end_to_end(request.raw_headers, dropped) + added
        head = [
            b"%b %b HTTP/1.1\r\n" % (request.method.encode(), target),
            header_fields.encode(fields),
            self._address_fields,
            self._encode_client_fields(request.remote, request.raw_headers)
            if "X-Forwarded-For" in request.headers
            else self._client_fields(request.remote),
        ]
        if chunked:
            head.append(b"Transfer-Encoding: chunked\r\n")
        elif coding and body is not None:
            head.append(b"Content-Length: %d\r\n" % len(body))
        head.append(b"\r\n")
        if body and not streamed:
            head.append(bytes(body))
        return _UpstreamRequest(request.method, b"".join(head), body, streamed, chunked, expects_continue)

    def _encode_client_fields(self, peer: str | None, received: Iterable[header_fields.Field] = ()) -> bytes:
        return header_fields.encode(header_fields.client_address(peer, self.bases.public, received))


async def _final_response(protocol: GatheringProtocol) -> RawResponse:
    """Wait for the response; interim ones (1xx) before it are dropped."""
    while True:
        message, payload = await protocol.read()
        if message.code >= 200:
            return message, payload
        if message.code == 101:
            raise HttpProcessingError(message="the upstream switched protocols without a request to do so")
        protocol.start_timeout()


async def _pieces(content: StreamReader, body: Buffer | None) -> AsyncIterator[Buffer]:
    """Yield the pieces of a body: of `body` if it has been read already, else of the client's `content` as it comes."""
    if body is not None:
        for start in range(0, len(body), _PIECE):
            yield body[start : start + _PIECE]
        return
    while piece := await content.readany():
        yield piece
