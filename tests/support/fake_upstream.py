"""A scripted upstream: the embedded store, with faults injected before or after the store has committed.

Requests pass on to the store, except those that a scene is about. A scene has acts; each act handles one of these requests.
It may answer in place of the store (`before`), or let the store carry out the request and change the response (`after`).
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
class ReceivedRequest:
    """A request as the upstream received it."""

    method: str
    path: str
    """The path below the base, without the query."""
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
        """The type of a Bundle that was posted to the base; "" for any other request."""
        if str(self) != "POST ":
            return ""
        try:
            return str(self.json.get("type"))
        except msgspec.DecodeError:
            return ""


@dataclass(frozen=True)
class FakeResponse:
    """The response to a request."""

    status: int
    headers: CIMultiDict[str]
    body: bytes


About = Callable[[ReceivedRequest], bool]
#: Passes the request on to the store and returns its response.
PassOn = Callable[[], Awaitable[FakeResponse]]
#: Handles one request; returns None if it has broken the connection.
Act = Callable[[web.BaseRequest, PassOn], Awaitable[FakeResponse | None]]


def transactions(request: ReceivedRequest) -> bool:
    return request.bundle == "transaction"


def batches(request: ReceivedRequest) -> bool:
    return request.bundle == "batch"


def searches(kind: str, parameter: str = "") -> About:
    return lambda request: str(request) == f"POST {kind}/_search" and parameter in request.body.decode()


def gets(path: str) -> About:
    return lambda request: request.method == "GET" and request.path.startswith(path)


def holding(*texts: str) -> About:
    """Return a predicate for transactions and batches that contain all of the texts."""
    return lambda request: bool(request.bundle) and all(text in request.body.decode() for text in texts)


def before(status: int, content: Any = None, **headers: str) -> Act:
    """Answer in place of the store, which never receives the request."""
    return lambda _request, _pass: _completed(_response(status, content, headers))


def after(status: int, content: Any = None, **headers: str) -> Act:
    """Let the store carry out the request, and answer something else."""

    async def act(_request: web.BaseRequest, pass_on: PassOn) -> FakeResponse:
        await pass_on()
        return _response(status, content, headers)

    return act


def changed(change: Callable[[Any], Any]) -> Act:
    """Let the store carry out the request, and answer what `change` returns for the response: bytes, or a document."""

    async def act(_request: web.BaseRequest, pass_on: PassOn) -> FakeResponse:
        response = await pass_on()
        content = change(decode(response.body))
        return FakeResponse(
            response.status, response.headers, content if isinstance(content, bytes) else encode(content)
        )

    return act


def reset(*, committed: bool) -> Act:
    """Reset the connection, before or after the store has carried out the request."""

    async def act(request: web.BaseRequest, pass_on: PassOn) -> None:
        if committed:
            await pass_on()
        reset_connection(request)

    return act


def closed(*, committed: bool) -> Act:
    """Close the connection without a response, as a server does when it stops."""

    async def act(request: web.BaseRequest, pass_on: PassOn) -> None:
        if committed:
            await pass_on()
        request.transport.close()

    return act


def half(*, framed: bool = True) -> Act:
    """Let the store carry out the request, and close the connection in the middle of the response."""

    async def act(request: web.BaseRequest, pass_on: PassOn) -> None:
        response = await pass_on()
        size = len(response.body)
        length = b"Content-Length: %d\r\n" % size if framed else b"Connection: close\r\n"
        request.transport.write(b"HTTP/1.1 200 OK\r\n%b\r\n%b" % (length, response.body[: size // 2]))
        await asyncio.sleep(0.02)
        request.transport.close()

    return act


def silent(*, committed: bool) -> Act:
    """Never answer."""

    async def act(_request: web.BaseRequest, pass_on: PassOn) -> None:
        if committed:
            await pass_on()
        await asyncio.Event().wait()  # until the client disconnects, which cancels this

    return act


@dataclass
class Gate:
    """Hold a request, or with `late` its response, until the test sets `opened`; `reached` is set when one is held."""

    late: bool = False
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    opened: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, _request: web.BaseRequest, pass_on: PassOn) -> FakeResponse:
        response = await pass_on() if self.late else None
        self.reached.set()
        await asyncio.wait_for(self.opened.wait(), 20)
        return response or await pass_on()


async def untouched(_request: web.BaseRequest, pass_on: PassOn) -> FakeResponse:
    """Let the store answer."""
    return await pass_on()


async def _completed(response: FakeResponse) -> FakeResponse:
    return response


def _response(status: int, content: Any, headers: dict[str, str]) -> FakeResponse:
    fields = CIMultiDict({name.replace("_", "-"): value for name, value in headers.items()})
    if content is None:
        content = {"resourceType": "OperationOutcome", "issue": [{"severity": "error", "code": "exception"}]}
    return FakeResponse(status, fields, content if isinstance(content, bytes) else encode(content))


def reset_connection(request: web.BaseRequest) -> None:
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
    """`url` is its base, `store` the base of the store behind it, `seen` the requests that it received, in order."""

    store: str
    session: aiohttp.ClientSession
    url: str = ""
    seen: list[ReceivedRequest] = field(default_factory=list)
    scenes: list[Scene] = field(default_factory=list)

    def script(self, about: About, *acts: Act) -> None:
        """Use each act for one of the requests for which `about` is true; later ones pass on to the store."""
        self.scenes.append(Scene(about, list(acts)))

    def always(self, about: About, act: Act) -> None:
        """Use the act for all such requests that no other scene takes."""
        self.scenes.append(Scene(about, _Endless(act)))

    def received(self, about: About) -> list[ReceivedRequest]:
        return [request for request in self.seen if about(request)]

    @property
    def dialogue(self) -> list[str]:
        """The requests in order, each as its method, its path below the base and the Bundle's type."""
        return [f"{request}{request.bundle}" for request in self.seen]

    @property
    def unplayed(self) -> list[Scene]:
        return [scene for scene in self.scenes if scene.acts and not isinstance(scene.acts, _Endless)]

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        path, _, query = request.raw_path.partition("?")
        received = ReceivedRequest(request.method, path.removeprefix("/fhir").strip("/"), query, request.headers, body)
        self.seen.append(received)
        act = next((scene.acts.pop(0) for scene in self.scenes if scene.acts and scene.about(received)), untouched)
        response = await act(request, lambda: self._pass_on(request, body))
        if response is None:
            return web.Response(status=500)
        framing = {*_FRAMING, "content-encoding"}  # aiohttp has inflated what the store compressed
        headers = {name: value for name, value in response.headers.items() if name.lower() not in framing}
        return web.Response(status=response.status, headers=CIMultiDict(headers), body=response.body)

    async def _pass_on(self, request: web.BaseRequest, body: bytes) -> FakeResponse:
        url = self.store.removesuffix("/fhir") + request.raw_path
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _FRAMING}
        async with self.session.request(request.method, url, data=body, headers=headers) as response:
            return FakeResponse(response.status, CIMultiDict(response.headers), await response.read())


_FRAMING = frozenset({"content-length", "transfer-encoding", "connection", "date", "server", "host"})


class _Endless(list[Act]):
    def __init__(self, act: Act) -> None:
        super().__init__([act])

    def pop(self, _index: Any = -1) -> Act:
        return self[0]


@asynccontextmanager
async def fake_upstream() -> AsyncIterator[FakeUpstream]:
    """Serve a store in memory, and the fake in front of it. At the end every act must have been used."""
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
