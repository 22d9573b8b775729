"""The public port under attack: long paths, slow and many connections, clients that leave, and other people's authority."""

import asyncio
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import urlsplit

import pytest
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy
from support import servers
from support.client import Response
from support.fake_upstream import (
    Act,
    FakeResponse,
    Gate,
    PassOn,
    ReceivedRequest,
    before,
    gets,
    half,
    reset,
    searches,
    silent,
)
from support.later import raw
from support.proxying import World, counted, metric, observation, proxying, unprobed
from support.relaying import TIMEOUT, read_body, read_head, until
from support.sharing import replica

from cgm_proxy.cache.writes import affected_by_bundle, affected_by_write
from cgm_proxy.core.http.base_urls import BaseUrls
from cgm_proxy.core.submission.detection import MAX_PATH, spellings
from cgm_proxy.sandbox.simulation.submissions import standing_orders
from cgm_proxy.server.connections import connection_limit
from cgm_proxy.server.fhir_responses import response_format
from cgm_proxy.server.front_door import Inspect, decide
from cgm_proxy.settings.schema import SettingsError
from cgm_proxy.upstream.client import Requester

# ---- paths

#: Paths that are costly to read, by their length in steps.
COSTLY_PATHS: dict[str, Callable[[int], str]] = {
    "dot segments": lambda steps: "/fhir" + "/a" * steps + "/.." * steps,
    "dot segments without names": lambda steps: "/fhir" + "/.." * steps,
    "escaped dot segments": lambda steps: "/fhir" + "/%61" * steps + "/%2e%2e" * steps,
    "dot segments in backslashes": lambda steps: "/fhir" + "\\a" * steps + "\\.." * steps,
    "escapes of escapes": lambda steps: "/fhir/" + "%25252561" * steps,
    "parameters": lambda steps: "/fhir" + "/;a" * steps,
    "semicolons": lambda steps: "/fhir/" + ";" * steps,
    "slashes": lambda steps: "/fhir" + "/" * steps,
    "question marks in escapes": lambda steps: "/fhir/" + "%3f" * steps,
}


def seconds(work: Callable[[], object]) -> float:
    """Return how long it takes, as the shortest of several times."""
    times = []
    for _ in range(5):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


@pytest.mark.parametrize("path", COSTLY_PATHS.values(), ids=COSTLY_PATHS)
def test_a_path_takes_time_in_proportion_to_its_length(
    path: Callable[[int], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cgm_proxy.core.submission.detection.MAX_SPELLED", 2**40, raising=False)
    short, long = seconds(lambda: spellings(path(1_000))), seconds(lambda: spellings(path(10_000)))
    assert long < 30 * short  # 10 if it is linear, 100 if it is quadratic


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("path", COSTLY_PATHS.values(), ids=COSTLY_PATHS)
async def test_a_long_path_is_refused_and_goes_nowhere(method: str, path: Callable[[int], str]) -> None:
    async with proxying() as world:
        world.fake.seen.clear()
        answer = await raw(world.proxy.port, method.encode(), path(5_000))
        assert answer.startswith(b"HTTP/1.1 414 "), answer[:200]
        assert b"path-too-long" in answer
        assert world.fake.seen == []


@pytest.mark.parametrize("length", [MAX_PATH, MAX_PATH + 1])
async def test_the_query_does_not_count_as_path(length: int) -> None:
    async with proxying() as world:
        path = "/fhir/Patient/".ljust(length, "x")
        status = 414 if length > MAX_PATH else 404
        assert (await raw(world.proxy.port, b"GET", f"{path}?_id={'x' * 5_000}")).startswith(b"HTTP/1.1 %d " % status)


async def test_a_long_url_in_a_bundle_is_not_read() -> None:
    def entry(url: str) -> dict[str, Any]:
        return {"entry": [{"request": {"method": "PUT", "url": url}}]}

    assert affected_by_bundle(entry("Encounter/1")) == set()
    assert affected_by_bundle(entry("Encounter/" + "%41" * 10_000)) == {"known", "orders"}
    short, long = (seconds(lambda n=n: affected_by_bundle(entry("%2541" * n))) for n in (1_000, 1_000_000))
    assert long < 50 * short


# ---- clients that leave while a write is under way


@dataclass
class GoingOn:
    """An act that goes on when its client has left: the store gets the request once the test has set `opened`."""

    reached: asyncio.Event = field(default_factory=asyncio.Event)
    opened: asyncio.Event = field(default_factory=asyncio.Event)
    done: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, _request: web.BaseRequest, pass_on: PassOn) -> FakeResponse:
        self.task = asyncio.create_task(self._work(pass_on))
        self.reached.set()
        return await asyncio.shield(self.task)

    async def _work(self, pass_on: PassOn) -> FakeResponse:
        await asyncio.wait_for(self.opened.wait(), TIMEOUT)
        response = await pass_on()
        self.done.set()
        return response


async def leave(world: World, act: GoingOn, writing: Coroutine[Any, Any, Response]) -> None:
    """Send a write, and disconnect when the upstream is at work on it."""
    world.fake.script(lambda request: request.method in {"DELETE", "PUT", "PATCH"} or bool(request.bundle), act)
    task = asyncio.create_task(writing)
    await act.reached.wait()
    task.cancel()
    await asyncio.wait([task])
    await asyncio.sleep(0.1)  # the proxy notices it


#: Writes that make a stored entry disappear: method, path and the entry of a batch.
REMOVALS = [
    ("DELETE", "{reference}", None),
    ("PUT", "{reference}", None),
    ("DELETE", "Observation?identifier={identity}", None),
    ("POST", "", {"method": "DELETE", "url": "{reference}"}),
    ("POST", "", {"method": "delete", "url": "{reference}"}),
]


@pytest.mark.parametrize(("method", "path", "entry"), REMOVALS, ids=[f"{row[0]} {row[1]} {row[2]}" for row in REMOVALS])
async def test_stored_entries_are_not_trusted_until_the_upstream_has_ended_a_write_whose_client_has_left(
    method: str, path: str, entry: dict[str, str] | None
) -> None:
    async with proxying() as world:
        reference = await unprobed(world)
        identity = (await world.ask_store("GET", reference)).body["identifier"][-1]["value"]
        names, content = {"reference": reference, "identity": identity}, None
        if method == "PUT":
            content = observation(reference.partition("/")[2], world.about, "x")
        elif entry:
            request = {name: text.format(**names) for name, text in entry.items()}
            content = {"resourceType": "Bundle", "type": "batch", "entry": [{"request": request}]}
        act = GoingOn()
        await leave(world, act, world.request(method, path.format(**names), content))
        assert counted(await world.submit(world.readings(40))) == {200: 40}  # true for now
        act.opened.set()
        await act.done.wait()
        if entry and entry["method"] == "delete":  # this store refuses it, another one may not
            await world.ask_store("DELETE", reference)
        await asyncio.sleep(0.1)
        assert counted(await world.submit(world.readings(40))) == {200: 39, 201: 1}


async def test_orders_are_not_trusted_until_the_upstream_has_ended_a_write_whose_client_has_left() -> None:
    async with proxying() as world:
        order, act = standing_orders("argo", world.about)[0], GoingOn()
        await leave(world, act, world.request("PUT", f"ServiceRequest/{order['id']}", order))
        assert (await world.submit(world.readings(1))).status == 200  # true for now
        act.opened.set()
        await act.done.wait()
        await asyncio.sleep(0.1)
        assert (await world.submit(world.readings(1))).status == 422


#: Writes of orders whose end the proxy does not see: the request's body, and whether the client leaves before the answer.
UNSEEN: dict[str, tuple[bytes, Act | None]] = {
    "the upload breaks off": (b'Content-Length: 1000\r\n\r\n{"resourceType"', None),
    "a chunk breaks off": (b'Transfer-Encoding: chunked\r\n\r\nff\r\n{"resourceType"', None),
    "the upstream breaks off": (b"Content-Length: 2\r\n\r\n{}", reset(committed=False)),
    "the upstream is silent": (b"Content-Length: 2\r\n\r\n{}", silent(committed=False)),
    "the upstream goes on later": (b"Content-Length: 2\r\n\r\n{}", before(202)),
    "half of the response comes": (b"Content-Length: 2\r\n\r\n{}", half()),
}


@pytest.mark.parametrize(("rest", "act"), UNSEEN.values(), ids=UNSEEN)
async def test_orders_are_not_trusted_for_a_while_after_a_write_whose_end_was_not_seen(
    rest: bytes, act: Act | None
) -> None:
    async with proxying(upstream__read_timeout=2) as world:
        if act:
            world.fake.script(lambda request: str(request) == "PUT ServiceRequest/x", act)
        reader, writer = await asyncio.open_connection("127.0.0.1", world.proxy.port)
        writer.write(
            b"PUT /fhir/ServiceRequest/x HTTP/1.1\r\nHost: x\r\nContent-Type: application/fhir+json\r\n" + rest
        )
        if act:
            await reader.read(10)
        else:
            await asyncio.sleep(0.2)
        writer.close()
        await asyncio.sleep(0.1)
        assert (await world.submit(world.readings(1))).status == 200
        await world.put(standing_orders("argo", world.about)[0])  # the upstream has done it by now
        assert (await world.submit(world.readings(2))).status == 422


async def test_writes_without_clients_are_bounded_and_what_they_may_change_is_not_trusted() -> None:
    working = 0

    async def work(_request: web.BaseRequest, _pass_on: PassOn) -> FakeResponse | None:
        nonlocal working
        working += 1
        try:
            await asyncio.sleep(TIMEOUT)
        finally:
            working -= 1
        return None

    async with proxying(listen__stop_timeout=0.1) as world:
        reference = await unprobed(world)
        world.fake.always(lambda request: request.method == "DELETE", work)
        deletes = [asyncio.create_task(world.request("DELETE", f"Observation/{n}")) for n in range(60)]
        await until(lambda: working == 60)
        for task in deletes:
            task.cancel()
        await until(lambda: working == 32)
        await world.ask_store("DELETE", reference)
        assert counted(await world.submit(world.readings(40))) == {200: 39, 201: 1}


async def test_all_replicas_wait_for_the_end_of_a_write_whose_end_was_not_seen(valkey: servers.Running) -> None:
    delete = affected_by_write(["DELETE"], ["Observation", "1"])
    async with replica(valkey.url) as other:
        async with replica(valkey.url) as one:
            async with one.invalidating(delete) as write:
                write.linger = 0.5
            assert await other.generation() == ""
            await asyncio.sleep(0.7)
            assert await other.generation()
            async with one.invalidating(delete) as write:
                write.linger = 0.5
        await asyncio.sleep(0.7)
        assert await other.generation() == ""  # the replica stopped in the middle, and has not ended the write


# ---- other people's authority

#: Header fields by which an upstream may tell users apart.
IDENTITIES = [
    ("X-Auth-User", "nurse", "visitor"),
    ("X-Forwarded-Client-Cert", "Hash=1", "Hash=2"),
    ("X-Forwarded-User", "nurse", "visitor"),
    ("X-SSL-Client-S-DN", "CN=nurse", "CN=visitor"),
    ("Remote-User", "nurse", "visitor"),
    ("X-Whatever-They-Invent", "nurse", "visitor"),
    ("Cookie", "a=1", "a=2"),
]


@pytest.mark.parametrize(("name", "one", "other"), IDENTITIES, ids=[row[0] for row in IDENTITIES])
async def test_orders_are_not_shared_between_users_whom_any_field_tells_apart(name: str, one: str, other: str) -> None:
    async with proxying() as world:
        for value in (one, other, one, other):
            await world.submit(world.readings(1), **{name: value})
        asked = [request.headers[name] for request in world.fake.received(searches("ServiceRequest"))]
        assert asked == [one, other]


async def test_a_repeated_field_tells_users_apart_by_all_of_its_values() -> None:
    one, other = (Requester(CIMultiDict([("Cookie", "a"), ("Cookie", value)])) for value in "bc")
    assert one.credentials != other.credentials
    assert Requester(CIMultiDict(a="1", b="2")).credentials == Requester(CIMultiDict(B="2", A="1")).credentials


async def test_fields_that_tell_nobody_apart_do_not_divide_the_cache() -> None:
    async with proxying() as world:
        for number in range(3):
            fields = {
                "User-Agent": f"app/{number}",
                "X-Request-ID": f"r{number}",
                "X-Forwarded-For": f"10.0.0.{number}",
            }
            await world.submit(world.readings(1), **fields, Proxy_Authorization=f"Basic {number}")
        (search,) = world.fake.received(searches("ServiceRequest"))
        assert "Proxy-Authorization" not in search.headers  # it is for the proxy, and reaches nobody


@pytest.mark.parametrize("token", ["", "service"])
@pytest.mark.parametrize("status", [401, 403])
async def test_a_revoked_token_is_not_answered_from_the_cache(status: int, token: str) -> None:
    async with proxying(**({"upstream__token": token} if token else {})) as world:
        assert counted(await world.submit(world.readings(40), Authorization="Bearer mine")) == {201: 40}
        assert counted(await world.submit(world.readings(40), Authorization="Bearer mine")) == {200: 40}
        world.fake.always(lambda request: request.headers.get("Authorization") == "Bearer mine", before(status))
        answer = await world.submit(world.readings(40), Authorization="Bearer mine")
        assert (answer.status, answer.rules) == (status, ["upstream-authority"])


#: Requests with which some servers delete or change a resource: method, target, and header fields.
OVERRIDES = [
    ("GET", "Observation/1", {"X-HTTP-Method-Override": "DELETE"}),
    ("GET", "Observation/1", {"x-http-method": "PUT"}),
    ("GET", "Observation/1?_method=DELETE", {}),
    ("POST", "Observation/1?_method=delete", {}),
    ("POST", "Observation/1?a=b&_method=DELETE", {}),
    ("POST", "Observation/1?%5fmethod=DELETE", {}),
    ("POST", "Observation/1?%5F%6d%45th%6Fd=%44ELETE", {}),
    ("POST", "Observation/1?_METHOD=PUT", {}),
    ("POST", "Observation/1", {"Content-Type": "application/x-www-form-urlencoded"}),
]


@pytest.mark.parametrize(("method", "path", "fields"), OVERRIDES, ids=[f"{r[0]} {r[1]} {r[2]}" for r in OVERRIDES])
async def test_a_write_in_disguise_invalidates_the_cache(method: str, path: str, fields: dict[str, str]) -> None:
    async with proxying() as world:
        reference = await unprobed(world)
        await world.request(method, path, b"" if method == "POST" else None, **fields)
        await world.ask_store("DELETE", reference)  # this store does not know of the disguise, another one may
        assert counted(await world.submit(world.readings(40))) == {200: 39, 201: 1}


@pytest.mark.parametrize("query", ["_method=POST", "%5Fmethod=post", "a=b;_method=POST"])
def test_a_disguised_post_to_the_base_is_inspected(query: str) -> None:
    bases = BaseUrls.of("http://public.example/fhir", "http://up/fhir")
    headers = CIMultiDictProxy(CIMultiDict[str]())
    decision = decide("GET", f"/fhir?{query}", headers, bases, by_content=False, keeps_submissions=False)
    assert decision == Inspect("base")


# ---- connections


@asynccontextmanager
async def connected(port: int, sent: bytes = b"") -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Connect, and send the first bytes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    try:
        yield reader, writer
    finally:
        writer.close()


async def ended(reader: asyncio.StreamReader) -> bytes:
    """Return what is received until the proxy ends the connection."""
    async with asyncio.timeout(TIMEOUT):
        try:
            return await reader.read()
        except ConnectionError:
            return b""


#: What a client sends before it falls silent, and how the proxy's answer begins.
SILENT: dict[str, tuple[bytes, bytes]] = {
    "nothing": (b"", b""),
    "white space": (b"\r\n\r\n", b"HTTP/1.1 408 "),
    "half a head": (b"GET /fhir/Patient/x HTTP/1.1\r\nHost: x\r\nX: ", b"HTTP/1.1 408 "),
    "half a second head": (b"GET /fhir/Patient/x HTTP/1.1\r\nHost: x\r\n\r\nGET /fh", b"HTTP/1.1 404 "),
    "one request": (b"GET /fhir/Patient/x HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 404 "),
    "half a body": (b"PUT /fhir/Patient/x HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{", b""),
    "half a chunk": (b"PUT /fhir/Patient/x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n{", b""),
}


@pytest.mark.parametrize(("sent", "answer"), SILENT.values(), ids=SILENT)
async def test_a_silent_client_is_disconnected(sent: bytes, answer: bytes) -> None:
    async with proxying(listen__client_timeout=0.5, listen__idle_timeout=2) as world:
        async with connected(world.proxy.port, sent) as (reader, _):
            assert (await ended(reader)).startswith(answer)
        await until(lambda: not world.proxy._server.connections)


async def test_a_client_that_trickles_its_head_is_disconnected() -> None:
    async with (
        proxying(listen__client_timeout=1) as world,
        connected(world.proxy.port, b"GET /fhir HTTP/1.1\r\n") as (reader, writer),
    ):
        end = asyncio.create_task(ended(reader))
        while not end.done():
            writer.write(b"X: y\r\n")
            await asyncio.sleep(0.1)
        assert (await end)[:13] in {b"HTTP/1.1 408 ", b""}  # the answer is lost if the client goes on sending


async def test_a_client_that_does_not_read_is_disconnected_and_one_that_reads_slowly_is_not() -> None:
    async with proxying(listen__client_timeout=1) as world:
        await world.put(observation("large", world.about, "x") | {"note": [{"text": "x" * 30_000_000}]})
        get = b"GET /fhir/Observation/large HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        async with connected(world.proxy.port, get) as (reader, writer):
            writer.transport.pause_reading()
            await until(lambda: not world.proxy._server.connections)
        async with connected(world.proxy.port, get) as (reader, _):
            received = 0
            while piece := await reader.read(2**20):
                received += len(piece)
                await asyncio.sleep(0.1)
            assert received > 30_000_000


#: Heads that are too long as a whole, in a part, or ahead of their turn; and the status that is answered.
LARGE_HEADS: dict[str, tuple[bytes, int]] = {
    "many fields": (b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: %b\r\n" % (n, b"y" * 100_000) for n in range(50)), 431),
    "white space before": (b"\r\n\r\nGET / HTTP/1.1\r\n" + (b"X: " + b"y" * 100_000 + b"\r\n") * 50, 431),
    "one field": (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 200_000, 431),
    "the target": (b"GET /?" + b"y" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n", 414),
}


@pytest.mark.parametrize(("head", "status"), LARGE_HEADS.values(), ids=LARGE_HEADS)
async def test_a_head_that_is_too_long_is_refused_before_it_ends(head: bytes, status: int) -> None:
    async with proxying() as world, connected(world.proxy.port, head) as (reader, _):
        async with asyncio.timeout(TIMEOUT):
            assert (await reader.read(13))[9:12] == b"%d" % status


async def test_requests_ahead_of_their_turn_are_bounded() -> None:
    gate = Gate()
    async with proxying() as world:
        world.fake.script(gets("Patient/x"), gate)
        get = b"GET /fhir/Patient/x HTTP/1.1\r\nHost: x\r\n\r\n"
        async with connected(world.proxy.port, get) as (reader, writer):
            await gate.reached.wait()
            for number in range(100):
                writer.write(b"GET /fhir/Patient/%d HTTP/1.1\r\nHost: x\r\nX: %b\r\n\r\n" % (number, b"y" * 100_000))
                await asyncio.sleep(0)
            await asyncio.sleep(0.3)
            gate.opened.set()
            answers = await ended(reader)
        assert answers.startswith(b"HTTP/1.1 404 ")
        assert answers.count(b"HTTP/1.1 ") <= 3


@pytest.mark.parametrize("sent", [b"", b"GET /fhir HTTP/1.1\r\nHost: x\r\nX: "], ids=["idle", "half a head"])
async def test_a_new_client_takes_the_place_of_one_that_waits(sent: bytes) -> None:
    async with proxying(listen__connections=20) as world, AsyncExitStack() as stack:
        used, _ = await stack.enter_async_context(connected(world.proxy.port, SILENT["one request"][0]))
        assert (await used.read(13)) == b"HTTP/1.1 404 "
        for _ in range(100):
            await stack.enter_async_context(connected(world.proxy.port, sent))
        assert (await raw(world.proxy.port, b"GET", "/fhir/Patient/x")).startswith(b"HTTP/1.1 404 ")
        assert await metric(world, "connections ") <= 20
        assert await metric(world, "connections_closed_total", reason="idle") >= 80
        assert not used.at_eof()  # those that never had a request go first


async def test_a_new_client_is_refused_if_all_connections_are_in_use() -> None:
    async with proxying(listen__connections=16, listen__stop_timeout=0.1) as world, AsyncExitStack() as stack:
        world.fake.always(gets("Patient/x"), silent(committed=False))
        for _ in range(16):
            await stack.enter_async_context(connected(world.proxy.port, SILENT["one request"][0]))
        await until(lambda: len(world.fake.received(gets("Patient/x"))) == 16)
        assert (await raw(world.proxy.port, b"GET", "/fhir/Patient/y")).startswith(b"HTTP/1.1 503 ")
        assert await metric(world, "connections_closed_total", reason="refused") == 1


def test_more_connections_than_files_are_refused_at_the_start() -> None:
    with pytest.raises(SettingsError, match=r"listen.connections: .* set at most \d+, or raise the limit"):
        connection_limit(2**30)


def test_the_operations_port_answers_while_clients_hold_all_connections(sandbox: str, tmp_path: Path) -> None:
    program = ("bash", "-c", 'ulimit -n 300; exec "$0" "$@"', str(Path(sys.executable).parent / "cgm-proxy"))
    with servers.proxy(sandbox, tmp_path, program=program) as server, ExitStack() as stack:
        port = urlsplit(server.url).port
        for number in range(400):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5))
            client.sendall(b"GET /fhir HTTP/1.1\r\nX: " if number % 2 else b"")
        for _ in range(5):
            assert servers.answers(f"{server.ops}/healthz")
            assert servers.answers(f"{server.url}/metadata")
        assert "too many connections" in server.log.read_text()


def test_a_long_list_of_media_ranges_is_not_read_to_its_end() -> None:
    def choose(ranges: int) -> str:
        headers = CIMultiDict(Accept=",".join(["text/x"] * ranges))
        return response_format(cast("Any", SimpleNamespace(raw_path="/", headers=headers)), "json")

    assert seconds(lambda: choose(20_000)) < 30 * seconds(lambda: choose(64))


async def test_a_client_that_goes_on_sending_a_refused_body_gets_the_refusal_and_nothing_else() -> None:
    head = b"POST /fhir HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\n\r\n"
    async with proxying(limits__body_bytes=8_000_000) as world, connected(world.proxy.port, head) as (reader, writer):
        answer = await read_head(reader)
        assert answer.status == 413
        await read_body(reader, answer)
        for _ in range(9):
            writer.write(b"x" * 1_000_000)
            await writer.drain()
        writer.write(SILENT["one request"][0])
        assert (await read_head(reader)).status == 404


@pytest.mark.parametrize("status", [401, 403])
async def test_who_may_neither_search_nor_create_is_not_told_what_is_stored(status: int) -> None:
    async with proxying() as world:
        await world.submit(world.readings(40), Authorization="Bearer mine")

        def of_another(request: ReceivedRequest) -> bool:
            return request.headers.get("Authorization") == "Bearer other" and not request.path.startswith("Patient/")

        searching = before(200, {"resourceType": "Bundle", "type": "searchset"}, Content_Type="application/fhir+json")
        world.fake.always(lambda r: of_another(r) and r.path == "ServiceRequest/_search", searching)
        world.fake.always(of_another, before(status))
        for _ in range(2):
            assert counted(await world.submit(world.readings(40), Authorization="Bearer other")) == {status: 40}
        assert counted(await world.submit(world.readings(40), Authorization="Bearer mine")) == {200: 40}
