"""The short way for small GETs: taken where it may be, and given up for the handler without asking twice."""

import asyncio
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from support.relaying import TIMEOUT, FakeUpstream, World, listening, read_head, serving, talk

from cgm_proxy.relay import connection_pool
from cgm_proxy.relay.express import ExpressServer
from cgm_proxy.relay.http_options import SERVER_OPTIONS
from cgm_proxy.relay.relay import Relay
from cgm_proxy.settings.loading import Settings, UpstreamSettings

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
GET = b"GET /fhir/Patient/1 HTTP/1.1\r\nHost: x\r\n\r\n"


class Counted(World):
    """A world that tells what its handler was asked."""

    handled: list[str]
    server: web.Server


@asynccontextmanager
async def express(*answers, own=(), **upstream):
    """Run a relay whose handler answers the paths of `own` by itself."""
    fake = FakeUpstream(list(answers))
    behind = await asyncio.start_server(fake, "127.0.0.1", 0)
    fake.port = behind.sockets[0].getsockname()[1]
    relay = Relay(Settings(upstream=UpstreamSettings(url=f"http://127.0.0.1:{fake.port}/fhir", **upstream)))
    await relay.start()
    handled = []
    pass_on = serving(relay)

    async def handle(request):
        handled.append(f"{request.method} {request.raw_path}")
        return web.Response(text="own") if request.raw_path in own else await pass_on(request)

    server = ExpressServer(handle, relay, lambda path: "metadata" not in path, **SERVER_OPTIONS)
    async with listening(server) as port:
        world = Counted(port, fake, relay)
        world.handled, world.server = handled, server
        yield world
    await relay.close()
    behind.close()


@asynccontextmanager
async def warm(*answers, **settings):
    """Give a world with an idle connection to the upstream, and a client that has asked once."""
    async with express(OK, *answers, **settings) as world, world.client() as (reader, writer):
        assert (await talk(reader, writer, GET)).body == b"{}"
        await asyncio.sleep(0.02)
        world.handled.clear()
        yield world, reader, writer


async def test_a_small_get_never_reaches_the_handler_once_a_connection_is_open():
    answer = b'HTTP/1.1 200 \r\nTransfer-Encoding: chunked\r\nETag: W/"1"\r\n\r\n2\r\n{}\r\n0\r\n\r\n'
    async with warm(answer) as (world, reader, writer):
        for _ in range(3):
            got = await talk(reader, writer, GET)
            assert got.body == b"{}"
            await asyncio.sleep(0.01)
        assert world.handled == []
        assert world.upstream.connections == 1
        assert world.relay.traffic.responses == {200: 4}
        assert world.relay.traffic.in_flight == 0


LONG = {
    "HEAD": GET.replace(b"GET", b"HEAD"),
    "POST": b"POST /fhir HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}",
    "a GET with a body": GET.replace(b"\r\n\r\n", b"\r\nContent-Length: 2\r\n\r\n{}"),
    "chunks": GET.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    "HTTP/1.0": b"GET /fhir HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    "the last request": GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"),
    "an upgrade": GET.replace(b"\r\n\r\n", b"\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"),
    "an expectation": GET.replace(b"\r\n\r\n", b"\r\nExpect: nonsense\r\n\r\n"),
    "a path of the handler": GET.replace(b"Patient/1", b"metadata"),
}


@pytest.mark.parametrize("request_", LONG.values(), ids=LONG)
async def test_what_is_not_plain_goes_to_the_handler(request_):
    async with warm(OK) as (world, reader, writer):
        world.upstream.answers = [b"HTTP/1.1 200 OK\r\n\r\n" if b"HEAD" in request_ else OK]
        assert (await talk(reader, writer, request_)).status == 200
        assert len(world.handled) == 1


async def slow(_message, _reader, writer):
    """Answer in pieces that are slower than any gathering."""
    for piece in [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n{\r\n", b"1\r\n}\r\n0\r\n\r\n"]:
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(5 * connection_pool.GATHER_SECONDS)


async def test_an_answer_in_slow_pieces_is_the_handlers_and_is_asked_for_once():
    async with warm(slow) as (world, reader, writer):
        assert (await talk(reader, writer, GET)).body == b"{}"
        assert world.handled == ["GET /fhir/Patient/1"]
        assert len(world.upstream.seen) == 2
        assert not world.relay.begun


async def test_a_large_answer_is_the_handlers():
    body = b"x" * 1_000_000
    async with warm(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + body) as (world, reader, writer):
        assert (await talk(reader, writer, GET)).body == body
        assert len(world.upstream.seen) == 2


async def broken(_message, _reader, _writer):
    raise ConnectionResetError


async def silent(_message, reader, _writer):
    await reader.read()
    raise ConnectionResetError


ENDS = [((broken, OK), 200, 3), ((broken, broken, broken), 502, 3), ((silent,), 504, 2)]


@pytest.mark.parametrize(("answers", "status", "asked"), ENDS)
async def test_a_fault_is_the_handlers(answers, status, asked):
    async with warm(*answers, read_timeout=0.3) as (world, reader, writer):
        assert (await talk(reader, writer, GET)).status == status
        assert len(world.upstream.seen) == asked
        assert world.relay.traffic.in_flight == 0


async def test_a_head_that_must_not_be_passed_on_is_not():
    bad = b"HTTP/1.1 200 OK\r\nX: a\x01b\r\nContent-Length: 0\r\n\r\n"
    async with warm(bad) as (_, reader, writer):
        assert (await talk(reader, writer, GET)).status == 502


async def test_requests_that_come_before_the_answer_are_answered_in_their_order():
    replies = [b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d" % number for number in range(4)]
    gate = asyncio.Event()

    async def first(_message, _reader, writer):
        await gate.wait()
        writer.write(replies[0])

    async with warm(first, *replies[1:]) as (world, reader, writer):
        writer.write(GET)
        async with asyncio.timeout(TIMEOUT):
            while len(world.upstream.seen) < 2:  # noqa: ASYNC110 -- what is waited for has no event
                await asyncio.sleep(0.01)
        writer.write(GET + GET)
        await asyncio.sleep(0.05)
        gate.set()
        bodies = [(await talk(reader, writer, request)).body for request in (b"", b"", b"", GET)]
        assert bodies == [b"0", b"1", b"2", b"3"]


async def test_an_exchange_that_a_handler_does_not_take_over_answers_no_other_request():
    async with warm(slow, OK, own=("/fhir/own",)) as (world, reader, writer):
        assert (await talk(reader, writer, GET.replace(b"Patient/1", b"own"))).body == b"own"
        assert (await talk(reader, writer, GET)).body == b"{}"
        assert world.upstream.seen[-1].line == b"GET /fhir/Patient/1 HTTP/1.1"
        assert not world.relay.begun


async def test_a_client_that_leaves_ends_the_exchange():
    left = asyncio.Event()

    async def script(_message, reader, _writer):
        await reader.read()
        left.set()
        raise ConnectionResetError

    async with warm(script) as (world, _, writer):
        writer.write(GET)
        await asyncio.sleep(0.05)
        assert world.relay.traffic.in_flight == 1
        writer.close()
        async with asyncio.timeout(TIMEOUT):
            await left.wait()
        assert world.relay.traffic.in_flight == 0
        assert world.handled == []


@pytest.mark.parametrize("late", [OK, slow], ids=["whole", "in pieces"])
async def test_a_server_that_stops_waits_for_the_answer(late):
    gate = asyncio.Event()

    async def script(message, reader, writer):
        await gate.wait()
        if callable(late):
            await late(message, reader, writer)
        else:
            writer.write(late)

    async with warm(script) as (world, reader, writer):
        writer.write(GET)
        await asyncio.sleep(0.05)
        world.server.pre_shutdown()
        stopping = asyncio.ensure_future(world.server.shutdown(TIMEOUT))
        await asyncio.sleep(0.05)
        gate.set()
        async with asyncio.timeout(TIMEOUT):
            assert (await read_head(reader)).status == 200
            assert b"}" in await reader.read()
            await stopping
