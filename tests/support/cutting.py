"""A relay before an HTTP server, on TCP, that cuts connections or holds answers up at the point of an exchange it is told.

It knows of HTTP/1.1 just enough: a request's head, its Content-Length, and that no client asks again before it is answered.
"""

import asyncio
import re
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from urllib.parse import urlsplit

#: Bytes read at once, and in a request's head at most.
PIECE = 1 << 16

_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)", re.IGNORECASE)


class Point(StrEnum):
    """Where an exchange is disturbed. Its client's connection is reset there, unless the answer is held up."""

    BEFORE = "before the request"
    """Nothing of it reaches the server."""
    WITHIN = "within the request"
    """Half of its body does."""
    LATE = "the request comes late"
    """The client is cut off first, and the server gets the request a while later."""
    WORKING = "before the answer"
    """The server has it, and goes on."""
    ANSWERED = "at the answer"
    """The server is done, and nothing of its answer arrives."""
    HALF = "within the answer"
    """Half of what the server says first does."""
    HELD = "the answer is held up"
    """All of it does, a while later."""


@dataclass
class CuttingRelay:
    """Relays to the server at `target`, a base URL; what a client abandons is given to the server all the same."""

    target: str
    instead: tuple[bytes, bytes] = (b"", b"")
    """What in a request's body is replaced by what, of the same length."""
    cuts: Counter[Point] = field(default_factory=Counter)
    """What was done."""
    under_way: int = 0
    """Bundles that the server has been given and has not begun to answer, or is about to be given."""
    port: int = 0
    wanted: deque[tuple[Point, float]] = field(default_factory=deque)
    """What is still to be done, to one Bundle each; and how much later comes what is late or held up (seconds)."""
    _serving: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{urlsplit(self.target).path}"

    def is_bundle(self, head: bytes) -> bool:
        path = urlsplit(self.target).path.encode()
        return re.match(rb"POST %b/? HTTP" % re.escape(path), head) is not None

    def next(self) -> tuple[Point | None, float]:
        """Give what is to be done to a Bundle, and count it."""
        if not self.wanted:
            return None, 0.0
        point, seconds = self.wanted.popleft()
        self.cuts[point] += 1
        return point, seconds

    def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Relay a client's exchanges in the background."""
        task = asyncio.create_task(self._serve(reader, writer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def stop(self) -> None:
        """End all connections."""
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Relay until either side is gone."""
        there = urlsplit(self.target)
        try:
            server = await asyncio.open_connection(there.hostname, there.port)
            try:
                await _Connection(self, reader, writer, *server).relay()
            finally:
                server[1].transport.abort()
        except OSError:
            pass  # the server is down, or gone
        finally:
            writer.transport.abort()


@dataclass
class _Connection:
    """A client's connection, and the one to the server that belongs to it."""

    on: CuttingRelay
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    server_reader: asyncio.StreamReader
    server_writer: asyncio.StreamWriter
    asked: bool = False
    """Whether the server owes an answer to a Bundle."""
    point: Point | None = None
    seconds: float = 0.0

    async def relay(self) -> None:
        """Relay both ways until the server hangs up, or the client does and what it asked is answered."""
        answers = asyncio.create_task(self._answers())
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                await self._requests()
            if self.asked:
                await answers
        finally:
            answers.cancel()
            await asyncio.wait([answers])
            self._settle()

    async def _requests(self) -> None:
        while True:
            head = await self.reader.readuntil(b"\r\n\r\n")
            length = _LENGTH.search(head)
            body = await self.reader.readexactly(int(length[1]) if length else 0)
            if self.on.instead[0]:
                body = body.replace(*self.on.instead)
            if not self.on.is_bundle(head):
                self.server_writer.write(head + body)
            elif not await self._ask(head, body):
                return

    async def _ask(self, head: bytes, body: bytes) -> bool:
        """Give the server a Bundle, or what it is to have of it; whether the client may ask again."""
        self.point, self.seconds = self.on.next()
        if self.point is Point.BEFORE:
            return False
        self.asked = self.point is not Point.WITHIN
        self.on.under_way += self.asked
        if self.point is Point.LATE:
            self.writer.transport.abort()
            await asyncio.sleep(self.seconds)
        self.server_writer.write(head + (body if self.asked else body[: len(body) // 2]))
        await self.server_writer.drain()
        if self.point is Point.WORKING:
            self.writer.transport.abort()
        return self.point not in {Point.WITHIN, Point.LATE, Point.WORKING}

    async def _answers(self) -> None:
        """Pass on what the server says; whatever it begins with after a Bundle is that one's answer."""
        with suppress(OSError):
            while piece := await self.server_reader.read(PIECE):
                point = self.point if self.asked else None
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
        self.on.under_way -= self.asked
        self.asked = False


@asynccontextmanager
async def cutting_relay(target: str, instead: tuple[bytes, bytes] = (b"", b"")) -> AsyncIterator[CuttingRelay]:
    """Run a relay to `target` in this event loop."""
    relay = CuttingRelay(target, instead=instead)
    server = await asyncio.start_server(relay.serve, "127.0.0.1", 0, limit=PIECE)
    relay.port = server.sockets[0].getsockname()[1]
    try:
        yield relay
    finally:
        server.close()
        await relay.stop()
