"""A relay between a scripted upstream and a raw client: both sides of each dialogue are bytes."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field

import msgspec
from aiohttp import web

from cgm_proxy.core.issues import RequestRefused, operation_outcome
from cgm_proxy.relay.http_options import SERVER_OPTIONS
from cgm_proxy.relay.relay import Relay
from cgm_proxy.settings.loading import ListenSettings, Settings, UpstreamSettings

#: Long enough for a loaded machine, short enough for a test that hangs (seconds).
TIMEOUT = 20.0


@dataclass
class Message:
    """A request or a response as it was on the wire."""

    line: bytes
    fields: list[tuple[bytes, bytes]]
    body: bytes = b""
    head: bytes = b""

    def all(self, name: str) -> list[bytes]:
        return [value for key, value in self.fields if key.lower() == name.lower().encode()]

    @property
    def status(self) -> int:
        return int(self.line.split(b" ")[1])

    def json(self):
        return msgspec.json.decode(self.body)


async def read_head(reader: asyncio.StreamReader) -> Message:
    head = await reader.readuntil(b"\r\n\r\n")
    line, *rest = head[:-4].split(b"\r\n")
    return Message(line, [tuple(text.split(b": ", 1)) for text in rest], head=head)


async def read_body(reader: asyncio.StreamReader, message: Message) -> bytes:
    if message.all("Transfer-Encoding"):
        body = b""
        while size := int(await reader.readline(), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        assert await reader.readline() == b"\r\n"
        return body
    if length := message.all("Content-Length"):
        return await reader.readexactly(int(length[0]))
    return await reader.read() if message.line.startswith(b"HTTP/") else b""


Script = Callable[[Message, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class FakeUpstream:
    """Answers each request by the next of `answers`, the last one for ever.

    An answer is bytes, sent after the whole request, or a script, run after the request's head.
    """

    answers: list[bytes | Script]
    seen: list[Message] = field(default_factory=list)
    connections: int = 0
    port: int = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with closing(writer):
            try:
                while True:
                    await self._dialogue(reader, writer)
            except (asyncio.IncompleteReadError, ConnectionError):
                return

    async def _dialogue(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        message = await read_head(reader)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        self.seen.append(message)
        if not isinstance(answer, bytes):
            await answer(message, reader, writer)
            return
        message.body = await read_body(reader, message)
        writer.write(answer)
        await writer.drain()
        if b"Connection: close" in answer:
            raise ConnectionResetError


@dataclass
class World:
    port: int
    upstream: FakeUpstream
    relay: Relay
    server: web.Server

    async def ask(self, request: bytes) -> Message:
        """Send a request on a connection of its own."""
        async with self.client() as (reader, writer):
            return await talk(reader, writer, request)

    @asynccontextmanager
    async def client(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=2**20)
        with closing(writer):
            yield reader, writer


async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> Message:
    """Send a request and read the complete response."""
    async with asyncio.timeout(TIMEOUT):
        writer.write(request)
        answer = await read_head(reader)
        if not request.startswith(b"HEAD") and answer.status not in {204, 304}:
            answer.body = await read_body(reader, answer)
    return answer


async def until(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds, and fail if it never does."""
    async with asyncio.timeout(TIMEOUT):
        while not condition():  # noqa: ASYNC110 -- there is no event to wait for
            await asyncio.sleep(0.01)


def serving(relay: Relay, read_before: bool = False):
    """Return a handler like the proxy's own: refusals become OperationOutcomes."""

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        try:
            return await relay.pass_through(request, body=await request.read() if read_before else None)
        except RequestRefused as refusal:
            outcome = msgspec.json.encode(operation_outcome(refusal.issues))
            return web.Response(
                status=refusal.status, headers=refusal.headers, body=outcome, content_type="application/fhir+json"
            )

    return handle


@asynccontextmanager
async def listening(make_protocol: Callable[[], asyncio.BaseProtocol]) -> AsyncIterator[int]:
    """Listen on a free port of the loopback interface and return it."""
    server = await asyncio.get_running_loop().create_server(make_protocol, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        if isinstance(make_protocol, web.Server):
            await make_protocol.shutdown(1)


@asynccontextmanager
async def between(
    *answers: bytes | Script,
    public: str = "http://public.example/fhir",
    path: str = "/fhir",
    url: str = "",
    read_before: bool = False,
    **upstream: float,
) -> AsyncIterator[World]:
    """Start an upstream that gives `answers` under `path` and a relay in front of it, both on free ports.

    With `read_before`, the handler reads each body before the relay gets it.
    """
    fake = FakeUpstream(list(answers))
    behind = await asyncio.start_server(fake, "127.0.0.1", 0, limit=2**20)
    fake.port = behind.sockets[0].getsockname()[1]
    relay = Relay(
        Settings(
            listen=ListenSettings(public_url=public),
            upstream=UpstreamSettings(url=url or f"http://127.0.0.1:{fake.port}{path}", **upstream),
        )
    )
    await relay.start()
    server = web.Server(serving(relay, read_before), **SERVER_OPTIONS)
    async with listening(server) as port:
        yield World(port, fake, relay, server)
    await relay.close()
    behind.close()
