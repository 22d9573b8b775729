"""The connections of the public port: how many there may be, and how long and with how much each may keep the proxy waiting.

aiohttp closes a connection that is idle between two requests. It has no limits for a head that never ends, for a body or a
reader that trickles, for heads ahead of their turn, and for the number of connections; those are here.
"""

import asyncio
import logging
import resource
from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_exceptions import LineTooLong
from aiohttp.streams import StreamReader

from cgm_proxy.observability.logs import log
from cgm_proxy.observability.metrics import CONNECTIONS, CONNECTIONS_CLOSED
from cgm_proxy.relay.http_options import MAX_LINE, SERVER_OPTIONS
from cgm_proxy.settings.schema import SettingsError
from cgm_proxy.settings.sections import ListenSettings

#: Open files that are not for connections of the public port: those upstream for submissions and for writes that go on without
#: their clients, to a shared cache, of the operations port, and the program's own.
RESERVED_FILES: Final = 128
#: Most connections by default, and fewest.
DEFAULT_CONNECTIONS, FEWEST_CONNECTIONS = 1024, 16

#: Longest head of a request (bytes): the longest target, the longest token, and as much again for the other fields.
MAX_HEAD: Final = 2**18
#: Most bytes of later requests that are read before the current one is answered.
MAX_AHEAD: Final = 2**14
#: Slowest pace at which a client may send a body or read a response, after `listen.client_timeout` (bytes per second).
SLOWEST: Final = 1024
#: How often connections are examined (seconds).
SWEEP_SECONDS: Final = 1.0
#: How often it is logged that there are too many connections (seconds).
LOG_SECONDS: Final = 60.0

_FULL: Final = "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\n"
_LATE: Final = "HTTP/1.1 408 Request Timeout\r\n"
_LARGE: Final = "HTTP/1.1 431 Request Header Fields Too Large\r\n"
_END: Final = b"Content-Length: 0\r\nConnection: close\r\n\r\n"


def connection_limit(configured: int) -> int:
    """Return how many connections there may be; each may need a second one to the upstream.

    Raises `SettingsError` if the process may not open as many files as that takes.
    """
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    possible = 2**20 if files == resource.RLIM_INFINITY else max((files - RESERVED_FILES) // 2, FEWEST_CONNECTIONS)
    if configured > possible:
        needed = 2 * configured + RESERVED_FILES
        text = f"{configured} connections need {needed} open files, and this process may have {files}"
        raise SettingsError(f"listen.connections: {text}; set at most {possible}, or raise the limit (ulimit -n)")
    return configured or min(possible, DEFAULT_CONNECTIONS)


class ClientConnection(web.RequestHandler):
    """A connection. It knows whether a request is in progress, and how long the client has kept the proxy waiting."""

    def __init__(self, server: "PublicServer", loop: asyncio.AbstractEventLoop, **options: Any) -> None:
        super().__init__(server, loop=loop, **options)
        self._clock = loop.time
        self.since = loop.time()
        """When it was opened, or its last request ended."""
        self.served = False
        self.busy = False
        """Whether a request is in progress."""
        self.content: StreamReader | None = None
        """The body of the last request; the rest of it may come after its response."""
        self.writer: AbstractStreamWriter | None = None
        self.head_began: float | None = None
        """When the first byte of a head came that is not complete."""
        self.waited = 0.0
        """How long the client is behind the slowest pace with sending the current body, or with reading the response (seconds)."""
        self._moved = 0
        self._head_complete = False
        self._head_bytes = 0
        self._head_tail = b""
        self._ahead = 0

    def data_received(self, data: bytes) -> None:
        """Count what comes, and pass it to the parser unless it is too much."""
        in_head = self.content is None or self.content.is_eof()
        if in_head and self.busy:
            self._ahead += len(data)
            if self._ahead > MAX_AHEAD:
                self.close()  # after the current response; whatever else comes is dropped
        elif in_head and data and not self._head_complete and self._head_is_too_long(data):
            self.end(_LARGE, "head")
            return
        super().data_received(data)

    def _head_is_too_long(self, data: bytes) -> bool:
        if self.head_began is None:
            self.head_began = self._clock()
        text = self._head_tail + (data if self._head_bytes else data.lstrip(b"\r\n"))
        end = text.find(b"\r\n\r\n")
        self._head_complete = end >= 0
        self._head_bytes += (end if end >= 0 else len(text)) - len(self._head_tail)
        self._head_tail = text[-3:]
        return self._head_bytes > MAX_HEAD

    def begin(self, request: web.BaseRequest) -> None:
        """Record that a request has begun: its head is complete."""
        self.busy, self.served = True, True
        self.content, self.writer = request.content, request.writer
        self.head_began, self._head_complete, self._head_bytes, self._head_tail = None, False, 0, b""
        self.waited, self._moved, self._ahead = 0.0, 0, 0

    def finish(self) -> None:
        """Record that the request has been handled; the response may still be on its way."""
        self.busy, self.since = False, self._clock()
        if self._ahead:  # a part of the next head, which is not counted twice
            self.head_began = self.since

    def keeps_waiting(self, transport: asyncio.Transport, seconds: float, patience: float) -> bool:
        """Whether the client has been too slow, `seconds` after this was asked last."""
        unread = transport.get_write_buffer_size()
        receiving = self.content is not None and not self.content.is_eof() and transport.is_reading()
        if not (unread or receiving):
            return False
        moved = self.content.total_bytes if self.content else 0
        moved += self.writer.output_size - unread if self.writer else 0
        progress = max(moved - self._moved, 0)
        self._moved = moved
        self.waited = max(self.waited + seconds - progress / SLOWEST, 0.0)
        return self.waited > patience

    def end(self, answer: str, reason: str) -> None:
        """Close the connection with an answer, because its client did something wrong."""
        CONNECTIONS_CLOSED.labels(reason).inc()
        if self.transport is not None:
            self.transport.write(answer.encode() + _END)
        self.force_close()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer a request that could not be parsed or handled; a target or field that is too long has a status of its own."""
        if isinstance(exc, LineTooLong):
            status = 414 if MAX_LINE in exc.args else 431
        return super().handle_error(request, status, exc, message)


class PublicServer(web.Server):
    """aiohttp's server with bounds on connections."""

    def __init__(
        self, handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]], listen: ListenSettings, limit: int
    ) -> None:
        self._limit = limit
        self._patience = listen.client_timeout
        self._handler = handler
        self._options = SERVER_OPTIONS | {"keepalive_timeout": listen.idle_timeout}
        self._open: dict[ClientConnection, asyncio.Transport] = {}
        self._logged = -LOG_SECONDS
        super().__init__(self._handle, **self._options)

    def __call__(self) -> ClientConnection:
        """Return the protocol of a new connection."""
        options = {name: value for name, value in self._options.items() if name != "handler_cancellation"}
        return ClientConnection(self, asyncio.get_running_loop(), **options)

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        """Take a connection in; if there are too many, end one that waits for a request, or else this one."""
        super().connection_made(handler, transport)
        connection = cast("ClientConnection", handler)
        self._open[connection] = transport
        if len(self._open) > self._limit:
            self._make_room(connection)
        CONNECTIONS.set(len(self._open))

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        """Forget a connection."""
        super().connection_lost(handler, exc)
        connection = cast("ClientConnection", handler)
        self._open.pop(connection, None)
        connection.content = connection.writer = None  # no cycle that holds a request
        CONNECTIONS.set(len(self._open))

    async def sweep(self) -> None:
        """End the connections of clients that are too slow, until cancelled."""
        clock = asyncio.get_running_loop().time
        before = clock()
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            now = clock()
            for connection, transport in list(self._open.items()):
                began = connection.head_began
                if not connection.busy and began is not None and now - began > self._patience:
                    connection.end(_LATE, "head")
                elif connection.keeps_waiting(transport, now - before, self._patience):
                    CONNECTIONS_CLOSED.labels("slow").inc()
                    transport.abort()
            before = now

    def _make_room(self, newest: ClientConnection) -> None:
        """End the connection that has waited longest for a request, first among those that never had one."""
        idle = [c for c, t in self._open.items() if not c.busy and c is not newest and not t.get_write_buffer_size()]
        victim = min(idle, key=lambda c: (c.served, c.since), default=None)
        if victim:
            CONNECTIONS_CLOSED.labels("idle").inc()
            self._open.pop(victim).abort()
        else:
            newest.end(_FULL, "refused")
        now = asyncio.get_running_loop().time()
        if now - self._logged >= LOG_SECONDS:
            self._logged = now
            log("too many connections", logging.WARNING, limit=self._limit, refused=victim is None)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        connection = cast("ClientConnection", request.protocol)
        connection.begin(request)
        try:
            return await self._handler(request)
        finally:
            connection.finish()
