"""A TCP relay in front of an HTTP server that resets connections or delays responses at chosen points of an exchange.

It understands just enough of HTTP/1.1: the head of a request, its Content-Length, and that a client sends no request before
the last one is answered.
"""

import asyncio
import re
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from urllib.parse import urlsplit

#: Bytes that are read at once; also the largest head of a request.
PIECE = 1 << 16

_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)", re.IGNORECASE)


class Point(StrEnum):
    """Where an exchange is disturbed. The client's connection is reset there, unless the response is delayed."""

    BEFORE = "before the request"
    """Nothing of the request reaches the server."""
    WITHIN = "within the request"
    """Half of the request's body reaches the server."""
    LATE = "the request comes late"
    """The client's connection is reset first, and the server gets the request some time later."""
    WORKING = "before the response"
    """The server has the request and continues to work on it."""
    ANSWERED = "at the response"
    """The server has carried out the request, and nothing of its response arrives."""
    HALF = "within the response"
    """Half of the first piece of the response arrives."""
    HELD = "the response is delayed"
    """All of the response arrives, some time later."""


@dataclass
class CuttingRelay:
    """Relays to the server at `target`, a base URL. A request whose client has gone still reaches the server whole."""

    target: str
    replacement: tuple[bytes, bytes] = (b"", b"")
    """A text in the bodies of requests, and the text of the same length that replaces it."""
    cuts: Counter[Point] = field(default_factory=Counter)
    """How often an exchange was disturbed at each point."""
    in_flight: int = 0
    """Bundles that the server has received, or is about to receive, and has not begun to answer."""
    port: int = 0
    pending: deque[tuple[Point, float]] = field(default_factory=deque)
    """Disturbances still to come, each for one Bundle; the number is the delay of what is late or delayed (seconds)."""
    _connections: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{urlsplit(self.target).path}"

    def is_bundle(self, head: bytes) -> bool:
        path = urlsplit(self.target).path.encode()
        return re.match(rb"POST %b/? HTTP" % re.escape(path), head) is not None

    def next(self) -> tuple[Point | None, float]:
        """Return the disturbance of the next Bundle, and count it."""
        if not self.pending:
            return None, 0.0
        point, seconds = self.pending.popleft()
        self.cuts[point] += 1
        return point, seconds

    def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Relay a client's exchanges in the background."""
        task = asyncio.create_task(self._serve(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def stop(self) -> None:
        """End all connections."""
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Relay until either side disconnects."""
        address = urlsplit(self.target)
        try:
            server = await asyncio.open_connection(address.hostname, address.port)
            try:
                await _Connection(self, reader, writer, *server).relay()
            finally:
                server[1].transport.abort()
        except OSError:
            pass  # the server is down, or has disconnected
        finally:
            writer.transport.abort()


@dataclass
class _Connection:
    """A client's connection, together with the one to the server."""

    owner: CuttingRelay
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    server_reader: asyncio.StreamReader
    server_writer: asyncio.StreamWriter
    waiting: bool = False
    """Whether the server has yet to answer a Bundle."""
    point: Point | None = None
    seconds: float = 0.0

    async def relay(self) -> None:
        """Relay both ways until the server disconnects, or the client does and its last Bundle is answered."""
        responses = asyncio.create_task(self._relay_responses())
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                await self._relay_requests()
            if self.waiting:
                await responses
        finally:
            responses.cancel()
            await asyncio.wait([responses])
            self._settle()

    async def _relay_requests(self) -> None:
        while True:
            head = await self.reader.readuntil(b"\r\n\r\n")
            length = _LENGTH.search(head)
            body = await self.reader.readexactly(int(length[1]) if length else 0)
            if self.owner.replacement[0]:
                body = body.replace(*self.owner.replacement)
            if not self.owner.is_bundle(head):
                self.server_writer.write(head + body)
            elif not await self._relay_bundle(head, body):
                return

    async def _relay_bundle(self, head: bytes, body: bytes) -> bool:
        """Send a Bundle, or a part of it, to the server; return whether the client may send another request."""
        self.point, self.seconds = self.owner.next()
        if self.point is Point.BEFORE:
            return False
        self.waiting = self.point is not Point.WITHIN
        self.owner.in_flight += self.waiting
        if self.point is Point.LATE:
            self.writer.transport.abort()
            await asyncio.sleep(self.seconds)
        self.server_writer.write(head + (body if self.waiting else body[: len(body) // 2]))
        await self.server_writer.drain()
        if self.point is Point.WORKING:
            self.writer.transport.abort()
        return self.point not in {Point.WITHIN, Point.LATE, Point.WORKING}

    async def _relay_responses(self) -> None:
        """Pass on what the server sends. The first piece after a Bundle is the beginning of its response."""
        with suppress(OSError):
            while piece := await self.server_reader.read(PIECE):
                point = self.point if self.waiting else None
                self._settle()
                if point is Point.HELD:
                    await asyncio.sleep(self.seconds)
                if point is Point.HALF:
                    piece = piece[: len(piece) // 2]
                if point is not Point.ANSWERED:
                    self.writer.write(piece)
                    await self.writer.drain()
                if point in {Point.HALF, Point.ANSWERED}:
                    break
        self.writer.transport.abort()

    def _settle(self) -> None:
        self.owner.in_flight -= self.waiting
        self.waiting = False


@asynccontextmanager
async def cutting_relay(target: str, replacement: tuple[bytes, bytes] = (b"", b"")) -> AsyncIterator[CuttingRelay]:
    """Run a relay to `target` in this event loop."""
    relay = CuttingRelay(target, replacement)
    server = await asyncio.start_server(relay.serve, "127.0.0.1", 0, limit=PIECE)
    relay.port = server.sockets[0].getsockname()[1]
    try:
        yield relay
    finally:
        server.close()
        await relay.stop()
