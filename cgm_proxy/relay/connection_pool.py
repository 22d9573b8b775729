"""Connections to the upstream: aiohttp's pool and parser, and a protocol that gathers small chunked responses.

Tomcat, and so HAPI, writes a small chunked response in up to five segments within some 50 microseconds. To parse and pass
them on one by one costs several times the CPU of one. So the first bytes of a chunked response wait for its end, at most
`GATHER_SECONDS`, and reach the parser together. Nothing is decided by the content of the gathered bytes, only by their
end: a wrong guess costs a moment, never a byte.

This module uses parts of aiohttp below its public API: `ResponseHandler`, `ClientRequest`, the connector's factory and the
protocol's buffer. That is why pyproject.toml limits aiohttp to one minor version.
"""

import asyncio
from collections import deque
from functools import partial
from typing import Any, Final, cast

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ClientRequest
from aiohttp.connector import Connection
from aiohttp.http import RawResponseMessage
from aiohttp.streams import StreamReader
from yarl import URL

from cgm_proxy.relay import http_options

#: Longest time that the first segments of a chunked response wait for its last one (seconds).
GATHER_SECONDS: Final = 0.01
#: A response that is larger than this is not gathered, but streams (bytes).
_MAX_GATHERED: Final = 2**15
_LAST_CHUNK: Final = b"0\r\n\r\n"
_CHUNKED: Final = b"transfer-encoding: chunked"
#: An idle connection is closed after this time (seconds), before the upstream does it: Tomcat's default is 20, Jetty's 30.
_IDLE_SECONDS: Final = 15.0

#: The parsed head of an upstream response, and the reader of its body.
RawResponse = tuple[RawResponseMessage, StreamReader]


class GatheringProtocol(ResponseHandler):
    """The protocol of a connection; it gathers the segments of a small chunked response before they are parsed."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._segments: list[bytes] = []
        self._gathered_size = 0
        self._gathering = False
        self._gather_timer: asyncio.TimerHandle | None = None

    def set_response_params(self, *, skip_payload: bool = False, **rest: Any) -> None:
        """Prepare for the next response; one without a body has no last chunk to wait for."""
        self._gathering = not skip_payload
        super().set_response_params(skip_payload=skip_payload, **rest)

    def send(self, data: bytes) -> None:
        """Write the first bytes of a request; raises `aiohttp.ServerDisconnectedError` if the connection has ended."""
        transport = self.transport
        if transport is None or transport.is_closing():
            raise aiohttp.ServerDisconnectedError
        transport.write(data)

    def data_received(self, data: bytes) -> None:
        """Pass a segment to the parser, or keep it while a chunked response is gathered."""
        if not self._gathering:
            super().data_received(data)
            return
        self._segments.append(data)
        self._gathered_size += len(data)
        if data.endswith(_LAST_CHUNK) or self._gathered_size > _MAX_GATHERED:
            self._parse_gathered()
        elif self._gather_timer is None:
            if _CHUNKED in data.lower():
                self._gather_timer = self._loop.call_later(GATHER_SECONDS, self._parse_gathered)
            else:
                self._parse_gathered()

    def eof_received(self) -> None:
        """Parse what has been gathered, then handle the end."""
        self._parse_gathered()
        super().eof_received()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Parse what has been gathered, then handle the loss."""
        self._parse_gathered()
        super().connection_lost(exc)

    def _parse_gathered(self) -> None:
        self._gathering = False
        if self._gather_timer is not None:
            self._gather_timer.cancel()
            self._gather_timer = None
        if self._segments:
            data = b"".join(self._segments)
            self._segments.clear()
            self._gathered_size = 0
            super().data_received(data)


class _Connector(aiohttp.TCPConnector):
    """aiohttp's connector, with our protocol."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(limit=0, keepalive_timeout=_IDLE_SECONDS)
        self._factory = cast("partial[ResponseHandler]", partial(GatheringProtocol, loop=loop))


class ConnectionPool:
    """The connections to one upstream. There is no limit: each exchange has its own."""

    def __init__(self, url: str, connect_timeout: float, read_timeout: float) -> None:
        self._loop = loop = asyncio.get_running_loop()
        self._connector = _Connector(loop)
        self._route = ClientRequest("GET", URL(url, encoded=True), loop=loop)
        self._idle: deque[tuple[Connection, float]] = deque()
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout)
        self._response_params = {
            "read_until_eof": True,
            "auto_decompress": False,
            "read_timeout": read_timeout,
            "max_line_size": http_options.MAX_LINE,
            "max_field_size": http_options.MAX_FIELD,
            "max_headers": http_options.MAX_FIELDS,
        }

    async def acquire(self, *, bodiless: bool) -> tuple[Connection, GatheringProtocol]:
        """Return a connection for one exchange: the idle one that was used last, or a new one.

        `bodiless` is whether the response will have no body (HEAD). A connection on which bytes came unasked is closed
        (`should_close`): they would answer the wrong request. Raises `aiohttp.ClientConnectorError` or
        `aiohttp.ConnectionTimeoutError`.
        """
        while self._idle:
            connection, since = self._idle.pop()
            protocol = cast("GatheringProtocol | None", connection.protocol)
            if (
                protocol is not None
                and self._loop.time() - since < _IDLE_SECONDS
                and protocol.is_connected()
                and not protocol.should_close
            ):
                break
            connection.close()
        else:
            try:
                connection = await self._connector.connect(self._route, [], self._timeout)
            except TimeoutError as fault:
                raise aiohttp.ConnectionTimeoutError from fault
            protocol = cast("GatheringProtocol", connection.protocol)
        protocol.set_response_params(skip_payload=bodiless, **self._response_params)
        return connection, protocol

    def release(self, connection: Connection) -> None:
        """Take back a connection after a complete exchange, and close those that have been idle for too long."""
        now = self._loop.time()
        protocol = connection.protocol
        if protocol is None or protocol.should_close:
            connection.close()
        else:
            self._idle.append((connection, now))
        while self._idle and now - self._idle[0][1] > _IDLE_SECONDS:
            self._idle.popleft()[0].close()

    async def close(self) -> None:
        """Close all connections."""
        while self._idle:
            self._idle.pop()[0].close()
        await self._connector.close()
