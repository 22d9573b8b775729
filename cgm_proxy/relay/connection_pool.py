"""Connections to the upstream: aiohttp's pool and protocol, with a moment of patience for answers in small pieces.

Tomcat, and so HAPI, writes a small chunked answer in up to five segments within some 50 microseconds. Parsed and passed on
one by one they cost several times the CPU of one. So the first bytes of a chunked answer wait for its end, not longer
than `GATHER_SECONDS`, and reach the parser together. What is gathered is never looked into, only at its end: a wrong
guess costs a moment, no byte.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Final, cast

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ClientRequest
from aiohttp.connector import Connection
from aiohttp.helpers import _EXC_SENTINEL as _NO_CAUSE
from aiohttp.http import RawResponseMessage
from aiohttp.streams import StreamReader
from yarl import URL

from cgm_proxy.relay import http_options

#: How long the first segments of a chunked answer wait for its last one (seconds).
GATHER_SECONDS: Final = 0.01
#: An answer that is larger than this is not small: it streams (bytes).
_GATHERED: Final = 2**15
_LAST_CHUNK: Final = b"0\r\n\r\n"
_CHUNKED: Final = b"transfer-encoding: chunked"
#: Idle connections are dropped before the upstream does (seconds): Tomcat's default is 20, Jetty's 30.
_IDLE_SECONDS: Final = 15.0


#: The head of an answer, and its body to come.
Head = tuple[RawResponseMessage, StreamReader]


class Gathering(ResponseHandler):
    """A connection's protocol that gathers the segments of a small chunked answer before they are parsed."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._segments: list[bytes] = []
        self._size = 0
        self._gathers = False
        self._release: asyncio.TimerHandle | None = None
        #: Called once, when the first bytes of the next answer have been parsed, or when there will be none.
        self.on_answer: Callable[[], None] | None = None

    def set_response_params(self, *, skip_payload: bool = False, **rest: Any) -> None:
        """Prepare for the next answer: it may be gathered, unless it has no body that could end."""
        self._gathers = not skip_payload
        super().set_response_params(skip_payload=skip_payload, **rest)

    def send(self, data: bytes) -> None:
        """Write a request's first bytes; raises `aiohttp.ServerDisconnectedError` if the connection has ended."""
        transport = self.transport
        if transport is None or transport.is_closing():
            raise aiohttp.ServerDisconnectedError
        transport.write(data)

    def data_received(self, data: bytes) -> None:
        """Take a segment: to the parser at once, unless it is part of an answer that is gathered."""
        if not self._gathers:
            super().data_received(data)
            if self.on_answer is not None:
                self._tell()
            return
        self._segments.append(data)
        self._size += len(data)
        if data.endswith(_LAST_CHUNK) or self._size > _GATHERED:
            self._parse()
        elif self._release is None:
            if _CHUNKED in data.lower():
                self._release = self._loop.call_later(GATHER_SECONDS, self._parse)
            else:
                self._parse()

    def eof_received(self) -> None:
        """Let what has come be parsed before the end is."""
        self._parse()
        super().eof_received()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Let what has come be parsed before the loss is known."""
        self._parse()
        super().connection_lost(exc)

    def set_exception(self, exc: BaseException, exc_cause: BaseException = _NO_CAUSE) -> None:
        """Fail the exchange, and let who waits for its answer know."""
        super().set_exception(exc, exc_cause)
        self._tell()

    def whole(self) -> Head | None:
        """Give the answer if it is here as a whole, and leave it where it is."""
        if len(self._buffer) != 1 or self._exception is not None:
            return None
        head: Head = self._buffer[0][0]
        return head if head[0].code >= 200 and head[1].is_eof() else None

    def taken(self) -> None:
        """Forget the answer: it has been taken."""
        self._buffer.clear()

    def _tell(self) -> None:
        told, self.on_answer = self.on_answer, None
        if told is not None:
            told()

    def _parse(self) -> None:
        self._gathers = False
        if self._release is not None:
            self._release.cancel()
            self._release = None
        if self._segments:
            gathered = b"".join(self._segments)
            self._segments.clear()
            self._size = 0
            super().data_received(gathered)
        self._tell()


class _Connector(aiohttp.TCPConnector):
    """aiohttp's connector, with our protocol."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(limit=0, keepalive_timeout=_IDLE_SECONDS)
        self._factory = cast("partial[ResponseHandler]", partial(Gathering, loop=loop))


class Pool:
    """The connections to one upstream, kept and made anew as requests need them."""

    def __init__(self, url: str, connect_timeout: float, read_timeout: float) -> None:
        self._loop = loop = asyncio.get_running_loop()
        self._connector = _Connector(loop)
        self._route = ClientRequest("GET", URL(url, encoded=True), loop=loop)
        self._spare: deque[tuple[Connection, float]] = deque()
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout)
        self._parameters = {
            "read_until_eof": True,
            "auto_decompress": False,
            "read_timeout": read_timeout,
            "max_line_size": http_options.LINE,
            "max_field_size": http_options.FIELD,
            "max_headers": http_options.FIELDS,
        }

    async def take(self, *, bodiless: bool) -> tuple[Connection, Gathering]:
        """Take a connection for one exchange; `bodiless` says that the answer will be a head alone.

        One that was sent bytes that nobody had asked for is dropped: they would answer the wrong request. Raises
        `aiohttp.ClientConnectorError` or `aiohttp.ConnectionTimeoutError`.
        """
        while (kept := self.kept(bodiless=bodiless)) is None:
            try:
                connection = await self._connector.connect(self._route, [], self._timeout)
            except TimeoutError as fault:
                raise aiohttp.ConnectionTimeoutError from fault
            self._spare.append((connection, self._loop.time()))
        return kept

    def kept(self, *, bodiless: bool) -> tuple[Connection, Gathering] | None:
        """Take a connection that is open already, the one used last."""
        while self._spare:
            connection, since = self._spare.pop()
            protocol = connection.protocol
            if isinstance(protocol, Gathering) and self._usable(protocol, since):
                protocol.set_response_params(skip_payload=bodiless, **self._parameters)
                return connection, protocol
            connection.close()
        return None

    def _usable(self, protocol: Gathering, since: float) -> bool:
        fresh = self._loop.time() - since < _IDLE_SECONDS
        return fresh and protocol.is_connected() and not protocol.should_close

    def give_back(self, connection: Connection) -> None:
        """Keep a connection after a whole exchange, unless it ends; close the one that was idle for too long."""
        now = self._loop.time()
        protocol = connection.protocol
        if protocol is None or protocol.should_close:
            connection.close()
        else:
            self._spare.append((connection, now))
        while self._spare and now - self._spare[0][1] > _IDLE_SECONDS:
            self._spare.popleft()[0].close()

    async def close(self) -> None:
        """Close all connections."""
        while self._spare:
            self._spare.pop()[0].close()
        await self._connector.close()
