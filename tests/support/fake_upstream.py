"""A scripted upstream: the embedded store, with faults injected before or after the store has committed.

Requests pass on to the store unless a scene is waiting for them. A scene takes each request that it is about, in turn, and
does something to it: never lets it reach the store (`before`), or lets the store do it and spoils the answer (`after`).
"""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

import aiohttp
import msgspec
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy

from cgm_proxy.core.codec.json_body import decode, encode
from cgm_proxy.sandbox.store.app import make_app


@dataclass(frozen=True)
class Asked:
    """A request as the upstream got it."""

    method: str
    path: str
    """Below the base, without the query."""
    query: str
    headers: CIMultiDictProxy[str]
    body: bytes

    def __str__(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def json(self) -> Any:
        return decode(self.body)

    @property
    def form(self) -> dict[str, list[str]]:
        return parse_qs(self.body.decode())

    @property
    def bundle(self) -> str:
        """The type of the Bundle that was posted to the base, or ""."""
        if str(self) != "POST ":
            return ""
        try:
            return str(self.json.get("type"))
        except msgspec.DecodeError:
            return ""


@dataclass(frozen=True)
class Given:
    """The answer to a request."""

    status: int
    headers: CIMultiDict[str]
    body: bytes


About = Callable[[Asked], bool]
Pass = Callable[[], Awaitable[Given]]
#: Does something to one request, for which it may ask the store; None where there is nothing left to answer.
Act = Callable[[web.BaseRequest, Pass], Awaitable[Given | None]]


def transactions(asked: Asked) -> bool:
    return asked.bundle == "transaction"


def batches(asked: Asked) -> bool:
    return asked.bundle == "batch"


def searches(kind: str, parameter: str = "") -> About:
    return lambda asked: str(asked) == f"POST {kind}/_search" and parameter in asked.body.decode()


def gets(path: str) -> About:
    return lambda asked: asked.method == "GET" and asked.path.startswith(path)


def holding(*texts: str) -> About:
    """Transactions that hold all of the texts."""
    return lambda asked: transactions(asked) and all(text in asked.body.decode() for text in texts)


def before(status: int, content: Any = None, **headers: str) -> Act:
    """Answer instead of the store, which never sees the request."""
    return lambda _request, _pass: _done(_given(status, content, headers))


def after(status: int, content: Any = None, **headers: str) -> Act:
    """Let the store do it, and answer something else."""

    async def act(_request: web.BaseRequest, pass_on: Pass) -> Given:
        await pass_on()
        return _given(status, content, headers)

    return act


def changed(change: Callable[[Any], Any]) -> Act:
    """Let the store do it and answer what `change` makes of its answer: bytes, or a document."""

    async def act(_request: web.BaseRequest, pass_on: Pass) -> Given:
        given = await pass_on()
        made = change(decode(given.body))
        return Given(given.status, given.headers, made if isinstance(made, bytes) else encode(made))

    return act


def reset(*, committed: bool) -> Act:
    """Break the connection, before or after the store has done it."""

    async def act(request: web.BaseRequest, pass_on: Pass) -> None:
        if committed:
            await pass_on()
        _break(request)

    return act


def closed(*, committed: bool) -> Act:
    """Close the connection without an answer, as a server does that stops."""

    async def act(request: web.BaseRequest, pass_on: Pass) -> None:
        if committed:
            await pass_on()
        request.transport.close()

    return act


def half(*, framed: bool = True) -> Act:
    """Let the store do it, and break off in the middle of the answer."""

    async def act(request: web.BaseRequest, pass_on: Pass) -> None:
        given = await pass_on()
        size = len(given.body)
        length = b"Content-Length: %d\r\n" % size if framed else b"Connection: close\r\n"
        request.transport.write(b"HTTP/1.1 200 OK\r\n%b\r\n%b" % (length, given.body[: size // 2]))
        await asyncio.sleep(0.02)
        request.transport.close()

    return act


def silent(*, committed: bool) -> Act:
    """Never answer."""

    async def act(_request: web.BaseRequest, pass_on: Pass) -> None:
        if committed:
            await pass_on()
        await asyncio.Event().wait()  # until the client leaves, which cancels this

    return act


@dataclass
class Gate:
    """Hold a request, or with `late` its answer, until the test opens it; `reached` tells that one stands before it."""

    late: bool = False
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    opened: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, _request: web.BaseRequest, pass_on: Pass) -> Given:
        given = await pass_on() if self.late else None
        self.reached.set()
        await asyncio.wait_for(self.opened.wait(), 20)
        return given or await pass_on()


async def untouched(_request: web.BaseRequest, pass_on: Pass) -> Given:
    """Let the store answer."""
    return await pass_on()


async def _done(given: Given) -> Given:
    return given


def _given(status: int, content: Any, headers: dict[str, str]) -> Given:
    fields = CIMultiDict({name.replace("_", "-"): value for name, value in headers.items()})
    if content is None:
        content = {"resourceType": "OperationOutcome", "issue": [{"severity": "error", "code": "exception"}]}
    return Given(status, fields, content if isinstance(content, bytes) else encode(content))


def _break(request: web.BaseRequest) -> None:
    """Send a TCP reset instead of a proper end."""
    sock = request.transport.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    request.transport.abort()


@dataclass
class Scene:
    about: About
    acts: list[Act]


@dataclass
class FakeUpstream:
    """`url` is its base, `store` the base of the store behind; `seen` are the requests that came, in order."""

    store: str
    session: aiohttp.ClientSession
    url: str = ""
    seen: list[Asked] = field(default_factory=list)
    scenes: list[Scene] = field(default_factory=list)

    def script(self, about: About, *acts: Act) -> None:
        """Do each act to one of the requests that `about` is true of; later ones pass."""
        self.scenes.append(Scene(about, list(acts)))

    def always(self, about: About, act: Act) -> None:
        """Do it to all such requests that no scene takes."""
        self.scenes.append(Scene(about, _Endless(act)))

    def of(self, about: About) -> list[Asked]:
        return [asked for asked in self.seen if about(asked)]

    @property
    def dialogue(self) -> list[str]:
        """What was asked, in order: method and path below the base, and the Bundle's type."""
        return [f"{asked}{asked.bundle}" for asked in self.seen]

    @property
    def unplayed(self) -> list[Scene]:
        return [scene for scene in self.scenes if scene.acts and not isinstance(scene.acts, _Endless)]

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        path, _, query = request.raw_path.partition("?")
        asked = Asked(request.method, path.removeprefix("/fhir").strip("/"), query, request.headers, body)
        self.seen.append(asked)
        act = next((scene.acts.pop(0) for scene in self.scenes if scene.acts and scene.about(asked)), untouched)
        given = await act(request, lambda: self._pass_on(request, body))
        if given is None:
            return web.Response(status=500)
        framing = {*_FRAMING, "content-encoding"}  # what the store has compressed was inflated on the way
        kept = {name: value for name, value in given.headers.items() if name.lower() not in framing}
        return web.Response(status=given.status, headers=CIMultiDict(kept), body=given.body)

    async def _pass_on(self, request: web.BaseRequest, body: bytes) -> Given:
        url = self.store.removesuffix("/fhir") + request.raw_path
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _FRAMING}
        async with self.session.request(request.method, url, data=body, headers=headers) as answer:
            return Given(answer.status, CIMultiDict(answer.headers), await answer.read())


_FRAMING = frozenset({"content-length", "transfer-encoding", "connection", "date", "server", "host"})


class _Endless(list[Act]):
    def __init__(self, act: Act) -> None:
        super().__init__([act])

    def pop(self, _index: Any = -1) -> Act:
        return self[0]


@asynccontextmanager
async def fake_upstream() -> AsyncIterator[FakeUpstream]:
    """Serve a store in memory, and the fake before it; at the end every scene must have been played."""
    behind, session = web.AppRunner(make_app(), access_log=None), aiohttp.ClientSession()
    fake = FakeUpstream(f"{await _listen(behind)}/fhir", session)
    front = web.ServerRunner(
        web.Server(fake, access_log=None, handler_cancellation=True, auto_decompress=False), shutdown_timeout=0.2
    )
    fake.url = f"{await _listen(front)}/fhir"
    try:
        yield fake
        assert not fake.unplayed
    finally:
        await front.cleanup()
        await session.close()
        await behind.cleanup()


async def _listen(runner: web.BaseRunner) -> str:
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    return f"http://127.0.0.1:{runner.addresses[0][1]}"
