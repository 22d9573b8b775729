"""The streaming relay: what is no submission goes to the upstream and back, byte for byte and in pieces.

Connections come from aiohttp's pool (`pool`) and messages are read by aiohttp's parser, but without `ClientSession`,
whose work for one request (header dictionaries, cookies, redirects, timers) costs more than the rest.

What a relay must change, and nothing else is changed:

- hop-by-hop fields and framing belong to each connection (RFC 9110, 7.6.1); trailer fields are dropped (6.5.1);
- `Host` is the upstream's; `Forwarded`, `X-Forwarded-*` and `Via` are said anew: the public base of the settings
  decides host, port, scheme and prefix, never a field that the client sent; the peer is appended to X-Forwarded-For;
- `Location`, `Content-Location` and FHIR links to the upstream's base become public (`core.links`, `answer`);
- `Expect: 100-continue` is the upstream's to answer; an upgrade is refused.

Faults before the first byte of an answer are `RequestRefused`: 503 when the upstream cannot be reached, 502 when it
breaks off or answers with nonsense, 504 when it stays silent. After the first byte the client's connection is reset, so
that half an answer never looks whole. Only GET, HEAD and OPTIONS without a body are sent a second time, once, when a
connection of the pool had just died.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator
from functools import lru_cache
from typing import Final, NamedTuple

import aiohttp
from aiohttp import web
from aiohttp.connector import Connection
from aiohttp.http import HttpProcessingError, RawRequestMessage, StreamWriter
from aiohttp.streams import EofStream, StreamReader

from cgm_proxy.core.codec.json_body import Buffer
from cgm_proxy.core.http import header_fields
from cgm_proxy.core.http.base_urls import BaseUrls
from cgm_proxy.core.issues import RequestRefused, refuse
from cgm_proxy.observability.stream_stats import StreamStats
from cgm_proxy.relay.connection_pool import Gathering, Head, Pool
from cgm_proxy.relay.response_writer import ResponseWriter, StreamedResponse
from cgm_proxy.settings.loading import Settings

#: A known body up to this size goes out in one piece with its head (bytes).
_SMALL: Final = 2**16
#: How long a client that expects `100 Continue` waits for the upstream's word before its body is asked for (seconds).
_CONTINUE_SECONDS: Final = 1.0

_DROPPED: Final = header_fields.HOP_BY_HOP | header_fields.CLAIMED | {b"host"}
_WITHOUT_EXPECT: Final = _DROPPED | {b"expect"}
_REPEATABLE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_BROKEN: Final = (aiohttp.ClientError, HttpProcessingError, EofStream, TimeoutError, ValueError)
_GONE: Final = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)


#: What a fault of the upstream is to the client; the first row that fits counts (RFC 9110, 15.6.3 to 15.6.5).
_FAULTS: Final = (
    (
        (aiohttp.ClientSSLError, ssl.SSLError),
        502,
        "upstream-tls",
        "The FHIR server's TLS certificate or handshake failed.",
    ),
    (
        (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError),
        503,
        "upstream-unreachable",
        "The FHIR server cannot be reached; try again.",
    ),
    ((TimeoutError,), 504, "upstream-silent", "The FHIR server did not answer in time."),
    ((Exception,), 502, "upstream-broke-off", "The FHIR server broke off before it had answered."),
)


class _Asked(NamedTuple):
    """A request as it goes upstream: its head, a body that is known, and how the client's is streamed."""

    method: str
    head: bytes
    body: Buffer | None
    streamed: bool
    chunked: bool
    expects: bool

    @property
    def repeatable(self) -> bool:
        """Tell whether asking twice is the same as asking once."""
        return self.method in _REPEATABLE and not self.streamed and not self.body


class Begun(NamedTuple):
    """A request that has gone upstream already: its head, and the connection on which its answer will come."""

    message: RawRequestMessage
    connection: Connection
    protocol: Gathering
    started: float


class Relay:
    """Pass requests through to the upstream; it owns the connections that this takes."""

    def __init__(self, settings: Settings, traffic: StreamStats | None = None) -> None:
        self.traffic = traffic or StreamStats()
        self.bases = BaseUrls.of(settings.listen.public_url, settings.upstream.url)
        self._read_timeout = settings.upstream.read_timeout
        self._connect_timeout = settings.upstream.connect_timeout
        #: Exchanges that were begun on the short way (see `express`), by the client's connection.
        self.begun: dict[object, Begun] = {}
        self.answer = ResponseWriter(self.bases, self.traffic)
        self._address = _address(self.bases)
        self._said_for = lru_cache(maxsize=1024)(self._said_for_peer)

    async def start(self) -> None:
        """Make the pool of connections; none is opened before it is needed, so the upstream may start later."""
        self._loop = asyncio.get_running_loop()
        self.pool = Pool(self.bases.upstream.url, self._connect_timeout, self._read_timeout)

    async def close(self) -> None:
        """Close all connections to the upstream."""
        await self.pool.close()

    async def pass_through(self, request: web.BaseRequest, *, body: Buffer | None = None) -> web.StreamResponse:
        """Send a request upstream and its answer back.

        `body` is the raw body where somebody has read it already: it goes upstream byte for byte. Raises
        `RequestRefused` before the first byte of an answer, and `ConnectionError` when the client has left.
        """
        asked = self._asked(request, body)
        self.traffic.in_flight += 1
        try:
            return await self._tried(request, asked)
        except RequestRefused as refusal:
            self.traffic.faults[refusal.issues[0].rule] += 1
            raise
        finally:
            self.traffic.in_flight -= 1

    async def _tried(self, request: web.BaseRequest, asked: _Asked) -> web.StreamResponse:
        try:
            try:
                return await self._exchange(request, asked)
            except _GONE:
                if not asked.repeatable:
                    raise
                return await self._exchange(request, asked)
        except web.RequestPayloadError as fault:
            raise refuse(400, "malformed-body", "The request's body ends early or is not framed as it says.") from fault
        except _BROKEN as fault:
            if request.transport is None or request.transport.is_closing():
                raise ConnectionResetError("the client has left") from fault
            raise _refusal(fault) from fault

    async def _exchange(self, request: web.BaseRequest, asked: _Asked) -> StreamedResponse:
        """Ask once, on one connection, which goes back to the pool only after a whole dialogue."""
        begun = self._begun_for(request)
        connection, protocol = begun or await self.pool.take(bodiless=asked.method == "HEAD")
        upload: asyncio.Task[None] | None = None
        whole = False
        try:
            started = self._loop.time()
            early = None if begun else await self._ask(request, asked, protocol)
            if asked.streamed and early is None:
                upload = self._loop.create_task(self._upload(request, asked, protocol))
            head = early or await _final(protocol)
            self.traffic.count_response(head[0].code, self._loop.time() - started)
            sent = upload.done() if upload else not asked.streamed
            reply = await self.answer.deliver(request, head, protocol, keep_alive=sent)
            whole = reply.whole and sent
            return reply
        finally:
            if upload:
                upload.cancel()
            if whole:
                self.pool.give_back(connection)
            else:
                connection.close()

    def _begun_for(self, request: web.BaseRequest) -> tuple[Connection, Gathering] | None:
        """Take over an exchange that the short way has begun for this request, and for no other."""
        begun = self.begun.pop(request.protocol, None)
        if begun is None:
            return None
        if begun.message.raw_headers is request.raw_headers:
            return begun.connection, begun.protocol
        begun.connection.close()
        return None

    async def _ask(self, request: web.BaseRequest, asked: _Asked, protocol: Gathering) -> Head | None:
        """Send the head, with a small body; give an answer that comes before a body that waits for `100 Continue`."""
        protocol.send(asked.head)
        self.traffic.bytes_up += len(asked.head)
        if asked.expects:
            return await self._early(request, protocol)
        if not asked.streamed:
            protocol.start_timeout()
        return None

    async def _early(self, request: web.BaseRequest, protocol: Gathering) -> Head | None:
        """Wait for the upstream's word on a body to come, not for ever (RFC 9110, 10.1.1); pass a `100` on."""
        try:
            async with asyncio.timeout(_CONTINUE_SECONDS):
                message, payload = await protocol.read()
        except TimeoutError:
            message = None
        if message is not None and message.code >= 200:
            return message, payload
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return None

    async def _upload(self, request: web.BaseRequest, asked: _Asked, protocol: Gathering) -> None:
        """Send the body as it comes, at the upstream's pace; a fault of it wakes who waits for the answer."""
        writer = StreamWriter(protocol, self._loop)
        if asked.chunked:
            writer.enable_chunking()
        try:
            async for piece in _pieces(request.content, asked.body):
                async with asyncio.timeout(self._read_timeout):
                    await writer.write(piece)
            await writer.write_eof()
            protocol.start_timeout()
        except aiohttp.ClientConnectionResetError:
            pass  # the upstream closed: its answer, or that there is none, is for the reader to find
        except (ConnectionError, TimeoutError, web.RequestPayloadError) as fault:
            protocol.set_exception(fault)
        finally:
            self.traffic.bytes_up += writer.output_size

    def _asked(self, request: web.BaseRequest, body: Buffer | None) -> _Asked:
        """Write the request's head for the upstream, and say how its body goes."""
        coding = request.headers.get("Transfer-Encoding", "")
        _check(request, coding)
        streamed = request.body_exists if body is None else len(body) > _SMALL
        waits = request.headers.get("Expect", "").lower() == "100-continue"
        expects = waits and streamed and body is None
        fields = self._fields(request.raw_headers, answered=waits and not expects)
        head = [self._opening(request.method, request.raw_path, fields), self._said(request, request.remote)]
        if coding:
            head.append(b"Transfer-Encoding: chunked\r\n" if body is None else b"Content-Length: %d\r\n" % len(body))
        head += (b"\r\n", b"" if streamed or not body else bytes(body))
        return _Asked(request.method, b"".join(head), body, streamed, bool(coding) and body is None, expects)

    def bodiless(self, message: RawRequestMessage, peer: str | None) -> bytes:
        """Write a request without a body for the upstream."""
        fields = self._fields(message.raw_headers, answered=False)
        return b"%b%b\r\n" % (self._opening(message.method, message.path, fields), self._said(message, peer))

    def _opening(self, method: str, path: str, fields: list[tuple[bytes, bytes]]) -> bytes:
        target = self.bases.upstream_target(path).encode("utf-8", "surrogateescape")
        return b"%b %b HTTP/1.1\r\n%b" % (method.encode(), target, header_fields.lines(fields))

    def _fields(self, fields: header_fields.Fields, *, answered: bool) -> list[tuple[bytes, bytes]]:
        """List the fields that go upstream; an expectation that is `answered` here does not."""
        dropped = _WITHOUT_EXPECT if answered else _DROPPED
        if not self.answer.upstream_links:
            return header_fields.end_to_end(fields, dropped)
        return [*header_fields.end_to_end(fields, dropped | {b"accept-encoding"}), (b"Accept-Encoding", b"identity")]

    def _said_for_peer(self, peer: str) -> bytes:
        return self._address + header_fields.lines(header_fields.forwarded(peer, self.bases.public, ()))

    def _said(self, request: web.BaseRequest | RawRequestMessage, remote: str | None) -> bytes:
        """Say where the request goes, by whom it was asked and by what public address (RFC 7239; RFC 9110, 7.6.3)."""
        peer = remote or "unknown"
        if "X-Forwarded-For" not in request.headers:
            return self._said_for(peer)
        claimed = (text for name, text in request.raw_headers if name.lower() == b"x-forwarded-for")
        return self._address + header_fields.lines(header_fields.forwarded(peer, self.bases.public, claimed))


def _address(bases: BaseUrls) -> bytes:
    """Write the fields that are the same for every request."""
    public = bases.public
    prefix = [(b"X-Forwarded-Prefix", public.path.encode())] if public.path != bases.upstream.path else []
    return header_fields.lines(
        [
            (b"Host", bases.upstream.authority.encode()),
            (b"Via", b"1.1 cgm-proxy"),
            (b"X-Forwarded-Host", public.authority.encode()),
            (b"X-Forwarded-Proto", public.scheme.encode()),
            (b"X-Forwarded-Port", str(public.port).encode()),
            *prefix,
        ]
    )


def _check(request: web.BaseRequest, coding: str) -> None:
    """Refuse what cannot be relayed: tunnels, and bodies whose coding would be lost on the way."""
    if request.method == "CONNECT" or "websocket" in request.headers.get("Upgrade", "").lower():
        raise refuse(501, "no-upgrade", "Tunnels and protocol upgrades are not supported here.", code="not-supported")
    if coding and coding.strip().lower() != "chunked":
        text = "The only Transfer-Encoding understood here is `chunked`."
        raise refuse(501, "transfer-encoding", text, code="not-supported")


async def _final(protocol: Gathering) -> Head:
    """Wait for the answer; interim ones (1xx) before it are dropped."""
    while True:
        message, payload = await protocol.read()
        if message.code >= 200:
            return message, payload
        if message.code == 101:
            raise HttpProcessingError(message="the upstream switched protocols unasked")
        protocol.start_timeout()


async def _pieces(content: StreamReader, body: Buffer | None) -> AsyncIterator[Buffer]:
    """Give a body piece by piece: one that was read already, else the client's as it comes."""
    if body is not None:
        for start in range(0, len(body), _SMALL):
            yield body[start : start + _SMALL]
        return
    while piece := await content.readany():
        yield piece


def _refusal(fault: BaseException) -> RequestRefused:
    """Say what went wrong upstream, without a word of the request."""
    status, rule, text = next(row[1:] for row in _FAULTS if isinstance(fault, row[0]))
    return refuse(status, rule, text, code="timeout" if status == 504 else "transient")
