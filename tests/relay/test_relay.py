"""Requests and responses arrive as they were sent, byte for byte."""

import asyncio
import gzip

import pytest
from support.relaying import TIMEOUT, between, read_head, talk, until

from cgm_proxy.relay import connection_pool

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
GET = b"GET /fhir/Patient/1 HTTP/1.1\r\nHost: public.example\r\n\r\n"

#: The fields that the relay adds to each request, in their order.
ADDED = [
    (b"Host", None),
    (b"Via", b"1.1 cgm-proxy"),
    (b"X-Forwarded-Host", b"public.example"),
    (b"X-Forwarded-Proto", b"http"),
    (b"X-Forwarded-Port", b"80"),
    (b"Forwarded", b'for=127.0.0.1;host="public.example";proto=http'),
    (b"X-Forwarded-For", b"127.0.0.1"),
]


def without_added(fields):
    names = {name for name, _ in ADDED}
    return [field for field in fields if field[0] not in names]


TARGETS = [
    "/fhir/Patient/1",
    "/fhir/Patient?name=%C3%A9&given:exact=a+b%20c&code=http://loinc.org|99504-3",
    "/fhir/Patient?_getpages=a%2Fb&&=&x",
    "/fhir//Patient/%31/./../x;v=1",
    "/fhir/%zz%2e%2E/",
    "/fhir/Patient?q=" + "x" * 20_000,
    "/elsewhere?_format=xml",
    "/fhirx",
    "/",
    "*",
]


@pytest.mark.parametrize("target", TARGETS)
async def test_a_target_reaches_the_upstream_as_it_was_written(target):
    method = "OPTIONS" if target == "*" else "GET"
    async with between(OK) as world:
        answer = await world.ask(f"{method} {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert answer.status == 200
        assert world.upstream.seen[0].line == f"{method} {target} HTTP/1.1".encode()


METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "REPORT", "QUERY"]


@pytest.mark.parametrize("method", METHODS)
async def test_a_method_reaches_the_upstream(method):
    async with between(OK) as world:
        assert (await world.ask(f"{method} /fhir HTTP/1.1\r\nHost: x\r\n\r\n".encode())).status == 200
        assert world.upstream.seen[0].line == f"{method} /fhir HTTP/1.1".encode()


FIELDS = {
    "none of the client's library are added": [],
    "duplicates stay, in order": [(b"Accept", b"a/b"), (b"Prefer", b"x"), (b"accept", b"c/d"), (b"Prefer", b"y")],
    "conditions": [
        (b"If-None-Match", b'W/"1"'),
        (b"If-Modified-Since", b"x"),
        (b"If-Match", b"*"),
        (b"Range", b"bytes=0-9"),
    ],
    "conditional create": [(b"If-None-Exist", b"identifier=http://x|y z")],
    "Latin-1 and empty values": [(b"X-Name", b"J\xf6rg"), (b"X-Empty", b""), (b"x-UTF", "ß".encode())],
    "a long token": [(b"Authorization", b"Bearer " + b"t" * 65_536)],
    "many": [(b"X-%d" % i, b"v") for i in range(400)],
    "coding and type": [(b"Accept-Encoding", b"gzip, br"), (b"Content-Type", b"application/fhir+xml;charset=UTF-8")],
    "cookies": [(b"Cookie", b"a=b; c=d"), (b"User-Agent", b"app/1 (x)"), (b"X-Request-ID", b"abc")],
}


@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS)
async def test_fields_reach_the_upstream_in_their_order_and_only_addresses_are_added(fields):
    async with between(OK) as world:
        lines = b"".join(b"%b: %b\r\n" % pair for pair in fields)
        assert (await world.ask(b"GET /fhir HTTP/1.1\r\nHost: x\r\n" + lines + b"\r\n")).status == 200
        seen = world.upstream.seen[0].fields
        assert without_added(seen) == fields
        added = [(name, value or b"127.0.0.1:%d" % world.upstream.port) for name, value in ADDED]
        assert [field for field in seen if field not in fields] == added


HOP_BY_HOP = b"""Connection: keep-alive, X-Mine, content-length, TE\r
Keep-Alive: timeout=5\r
X-Mine: one hop\r
TE: trailers\r
Trailer: Expires\r
Proxy-Connection: keep-alive\r
Proxy-Authorization: Basic x\r
Upgrade: h2c\r
X-Kept: yes\r
"""


async def test_hop_by_hop_fields_of_the_client_do_not_reach_the_upstream():
    async with between(OK) as world:
        await world.ask(b"POST /fhir HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n" + HOP_BY_HOP + b"\r\n{}")
        assert without_added(world.upstream.seen[0].fields) == [(b"Content-Length", b"2"), (b"X-Kept", b"yes")]
        assert world.upstream.seen[0].body == b"{}"


async def test_hop_by_hop_fields_of_the_upstream_do_not_reach_the_client():
    reply = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n" + HOP_BY_HOP.replace(b"Upgrade: h2c\r\n", b"") + b"\r\n{}"
    async with between(reply) as world:
        answer = await world.ask(GET)
        assert answer.fields == [(b"Content-Length", b"2"), (b"X-Kept", b"yes")]


SPOOFED = b"""X-Forwarded-Host: evil.example\r
X-Forwarded-Proto: gopher\r
X-Forwarded-Port: 1\r
X-Forwarded-Prefix: /evil\r
X-Forwarded-For: 10.0.0.1\r
X-Forwarded-For: 10.0.0.2, 10.0.0.3\r
Forwarded: host=evil.example\r
X-Original-URL: /admin\r
Via: 1.0 other\r
"""


async def test_forwarding_fields_of_a_client_are_not_trusted():
    async with between(OK, public="https://fhir.example:8443/r4", path="/hapi/fhir") as world:
        await world.ask(b"GET /r4/Patient HTTP/1.1\r\nHost: evil.example\r\n" + SPOOFED + b"\r\n")
        seen = world.upstream.seen[0]
        assert seen.line == b"GET /hapi/fhir/Patient HTTP/1.1"
        assert b"evil" not in seen.head
        assert seen.all("X-Forwarded-Host") == [b"fhir.example:8443"]
        assert seen.all("X-Forwarded-Proto") == [b"https"]
        assert seen.all("X-Forwarded-Port") == [b"8443"]
        assert seen.all("X-Forwarded-Prefix") == [b"/r4"]
        assert seen.all("X-Forwarded-For") == [b"10.0.0.1, 10.0.0.2, 10.0.0.3, 127.0.0.1"]
        assert seen.all("Forwarded") == [b'for=127.0.0.1;host="fhir.example:8443";proto=https']
        assert seen.all("Via") == [b"1.0 other", b"1.1 cgm-proxy"]
        assert seen.all("X-Original-URL") == []


BODIES = {
    "nothing": (b"Content-Length: 0\r\n", b"", b""),
    "bytes": (b"Content-Length: 5\r\n", b"\x00\xff{}\n", b"\x00\xff{}\n"),
    "gzip": (
        b"Content-Encoding: gzip\r\nContent-Length: 23\r\n",
        gzip.compress(b"{a}", mtime=0),
        gzip.compress(b"{a}", mtime=0),
    ),
    "broken gzip": (b"Content-Encoding: gzip\r\nContent-Length: 3\r\n", b"abc", b"abc"),
    "chunks": (b"Transfer-Encoding: chunked\r\n", b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n", b"abcde"),
    "chunks, none": (b"Transfer-Encoding: chunked\r\n", b"0\r\n\r\n", b""),
    "chunks and a trailer, which is dropped": (
        b"Transfer-Encoding: chunked\r\n",
        b"1\r\na\r\n0\r\nX-Sum: 1\r\n\r\n",
        b"a",
    ),
    "a megabyte": (b"Content-Length: 1048576\r\n", b"0123456789abcdef" * 65536, b"0123456789abcdef" * 65536),
}


@pytest.mark.parametrize("read_before", [False, True], ids=["streamed", "read before"])
@pytest.mark.parametrize("method", ["POST", "GET", "DELETE"])
@pytest.mark.parametrize(("fields", "sent", "received"), BODIES.values(), ids=BODIES)
async def test_a_body_reaches_the_upstream_as_it_was_sent(method, fields, sent, received, read_before):
    async with between(OK, read_before=read_before) as world:
        request = b"%b /fhir HTTP/1.1\r\nHost: x\r\n%b\r\n%b" % (method.encode(), fields, sent)
        assert (await world.ask(request)).status == 200
        seen = world.upstream.seen[0]
        assert seen.body == received
        lengths = seen.all("Content-Length") + seen.all("Transfer-Encoding")
        assert len(lengths) == 1
        assert seen.all("Content-Encoding") == ([b"gzip"] if b"gzip" in fields else [])


ANSWERS = {
    "a length": (b"200 OK\r\nContent-Length: 5", b"\x00\xff{}\n"),
    "no reason phrase": (b"200 \r\nContent-Length: 2", b"{}"),
    "an odd reason": (b"299 J\xf6rg says\r\nContent-Length: 0", b""),
    "gzip": (b"200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 23", gzip.compress(b"{a}", mtime=0)),
    "broken gzip": (b"200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3", b"abc"),
    "duplicates": (b"200 OK\r\nSet-Cookie: a=b\r\nX: 1\r\nset-cookie: c=d\r\nX: 2\r\nContent-Length: 0", b""),
    "Latin-1": (b"200 OK\r\nX-Name: J\xf6rg\r\nX-Empty: \r\nContent-Length: 0", b""),
    "a part": (b"206 Partial Content\r\nContent-Range: bytes 0-1/9\r\nContent-Length: 2", b"ab"),
    "a redirect": (b"302 Found\r\nLocation: https://elsewhere.example/\r\nContent-Length: 0", b""),
    "an error": (b"422 Unprocessable Entity\r\nContent-Type: application/fhir+json\r\nContent-Length: 2", b"{}"),
    "a server's error": (b"500 Internal Server Error\r\nContent-Length: 2", b"{}"),
    "a megabyte": (b"200 OK\r\nContent-Length: 1048576", b"0123456789abcdef" * 65536),
    "a long field": (b"200 OK\r\nX-Long: " + b"x" * 65_536 + b"\r\nContent-Length: 0", b""),
}


@pytest.mark.parametrize(("head", "body"), ANSWERS.values(), ids=ANSWERS)
async def test_an_answer_reaches_the_client_as_it_was_sent(head, body):
    head = b"HTTP/1.1 " + head + b'\r\nDate: x\r\nETag: W/"1"\r\n\r\n'
    async with between(head + body) as world, world.client() as (reader, writer):
        for _ in range(2):
            answer = await talk(reader, writer, GET)
            assert answer.head == head
            assert answer.body == body
        assert world.upstream.connections == 1


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
@pytest.mark.parametrize("fields", [b"", b"ETag: x\r\n", b"Content-Length: 7\r\n"])
async def test_an_answer_without_a_body_stays_one(status, fields):
    head = b"HTTP/1.1 %b\r\n%b\r\n" % (status, b"" if b"204" in status and b"Length" in fields else fields)
    async with between(head) as world, world.client() as (reader, writer):
        for _ in range(2):
            assert (await talk(reader, writer, GET)).head == head
        assert world.upstream.connections == 1


@pytest.mark.parametrize("framing", [b"Content-Length: 7\r\n", b"Transfer-Encoding: chunked\r\n", b""])
async def test_a_head_request_gets_the_head_alone(framing):
    head = b"HTTP/1.1 200 OK\r\n%b\r\n" % framing
    async with between(head) as world, world.client() as (reader, writer):
        for _ in range(2):
            assert (await talk(reader, writer, GET.replace(b"GET", b"HEAD"))).head == head


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
UNFRAMED = {
    "chunks": CHUNKED + b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
    "chunks beside a length": CHUNKED.replace(b"\r\n\r\n", b"\r\nX: y\r\n\r\n")
    + b"5\r\nabcde\r\n0\r\nX-Sum: 1\r\n\r\n",
    "until the end": b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nabcde",
    "until the end, HTTP/1.0": b"HTTP/1.0 200 OK\r\nConnection: close\r\n\r\nabcde",
}


@pytest.mark.parametrize("reply", UNFRAMED.values(), ids=UNFRAMED)
async def test_a_body_without_a_length_reaches_the_client_in_chunks(reply):
    async with between(reply) as world, world.client() as (reader, writer):
        for _ in range(2):
            answer = await talk(reader, writer, GET)
            assert answer.body == b"abcde"
            assert answer.all("Transfer-Encoding") == [b"chunked"]
            assert answer.line == b"HTTP/1.1 200 OK"


@pytest.mark.parametrize("reply", UNFRAMED.values(), ids=UNFRAMED)
async def test_a_client_of_http_1_0_gets_a_body_without_a_length_until_the_connection_ends(reply):
    async with between(reply) as world:
        answer = await world.ask(b"GET /fhir HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        assert answer.body == b"abcde"
        assert not answer.all("Transfer-Encoding")


async def test_a_client_of_http_1_0_keeps_its_connection_if_it_asks_to():
    async with between(OK) as world, world.client() as (reader, writer):
        for _ in range(2):
            answer = await talk(reader, writer, b"GET /fhir HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            assert answer.all("Connection") == [b"keep-alive"]


async def test_a_client_that_asks_for_the_connections_end_gets_it():
    async with between(OK) as world, world.client() as (reader, writer):
        answer = await talk(reader, writer, GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        assert answer.all("Connection") == [b"close"]
        assert await reader.read() == b""


async def test_requests_in_one_segment_are_answered_in_their_order():
    replies = [b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d" % i for i in range(4)]
    async with between(*replies) as world, world.client() as (reader, writer):
        first = await talk(reader, writer, GET * 4)
        assert [first.body] + [(await talk(reader, writer, b"")).body for _ in range(3)] == [b"0", b"1", b"2", b"3"]


async def test_requests_that_come_before_the_response_are_answered_in_their_order():
    replies = [b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d" % number for number in range(4)]
    gate = asyncio.Event()

    async def first(_message, _reader, writer):
        await gate.wait()
        writer.write(replies[0])

    async with between(OK, first, *replies[1:]) as world, world.client() as (reader, writer):
        await talk(reader, writer, GET)
        writer.write(GET)
        await until(lambda: len(world.upstream.seen) == 2)
        writer.write(GET + GET)
        await asyncio.sleep(0.05)
        gate.set()
        bodies = [(await talk(reader, writer, request)).body for request in (b"", b"", b"", GET)]
        assert bodies == [b"0", b"1", b"2", b"3"]


KINDS = {
    "HEAD": GET.replace(b"GET", b"HEAD"),
    "POST": b"POST /fhir HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}",
    "a GET with a body": GET.replace(b"\r\n\r\n", b"\r\nContent-Length: 2\r\n\r\n{}"),
    "a GET with chunks": GET.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    "HTTP/1.0": b"GET /fhir HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    "the last request": GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"),
    "an upgrade": GET.replace(b"\r\n\r\n", b"\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"),
    "an expectation": GET.replace(b"\r\n\r\n", b"\r\nExpect: nonsense\r\n\r\n"),
}


@pytest.mark.parametrize("request_", KINDS.values(), ids=KINDS)
async def test_requests_of_all_kinds_share_the_connections_and_are_counted(request_):
    async with between(OK) as world, world.client() as (reader, writer):
        for _ in range(3):
            assert (await talk(reader, writer, GET)).body == b"{}"
        world.upstream.answers = [b"HTTP/1.1 200 OK\r\n\r\n" if request_.startswith(b"HEAD") else OK]
        assert (await talk(reader, writer, request_)).status == 200
        assert world.upstream.connections == 1
        assert world.relay.stats.responses == {200: 4}
        assert world.relay.stats.in_flight == 0


async def slow_pieces(_message, _reader, writer):
    """Answer in pieces that come more slowly than they are gathered."""
    for piece in [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n{\r\n", b"1\r\n}\r\n0\r\n\r\n"]:
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(5 * connection_pool.GATHER_SECONDS)


LARGE = b"x" * 1_000_000
STREAMED = {
    "slow pieces": (slow_pieces, b"{}"),
    "a large body": (b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + LARGE, LARGE),
}


@pytest.mark.parametrize(("answer", "body"), STREAMED.values(), ids=STREAMED)
async def test_a_response_that_comes_piece_by_piece_is_asked_for_once(answer, body):
    async with between(OK, answer) as world, world.client() as (reader, writer):
        await talk(reader, writer, GET)
        assert (await talk(reader, writer, GET)).body == body
        assert len(world.upstream.seen) == 2


@pytest.mark.parametrize("late", [OK, slow_pieces], ids=["whole", "in pieces"])
async def test_a_server_that_stops_waits_for_a_response_under_way(late):
    gate = asyncio.Event()

    async def script(message, reader, writer):
        await gate.wait()
        if callable(late):
            await late(message, reader, writer)
        else:
            writer.write(late)

    async with between(OK, script) as world, world.client() as (reader, writer):
        await talk(reader, writer, GET)
        writer.write(GET)
        await until(lambda: len(world.upstream.seen) == 2)
        world.server.pre_shutdown()
        stopping = asyncio.ensure_future(world.server.shutdown(TIMEOUT))
        await asyncio.sleep(0.05)
        gate.set()
        async with asyncio.timeout(TIMEOUT):
            assert (await read_head(reader)).status == 200
            assert b"}" in await reader.read()
            await stopping


async def test_an_absolute_target_reaches_the_upstream_as_its_path():
    async with between(OK) as world:
        await world.ask(b"GET http://evil.example:1/fhir/Patient?x=http://y/ HTTP/1.1\r\nHost: other\r\n\r\n")
        assert world.upstream.seen[0].line == b"GET /fhir/Patient?x=http://y/ HTTP/1.1"
        assert b"evil" not in world.upstream.seen[0].head


async def test_an_offered_upgrade_is_ignored_and_the_request_answered():
    async with between(OK) as world, world.client() as (reader, writer):
        offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
        request = b"POST /fhir HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n" + offer + b"\r\nbody"
        for _ in range(2):
            assert (await talk(reader, writer, request)).status == 200
            assert world.upstream.seen.pop().body == b"body"


async def test_a_websocket_is_refused_with_an_operation_outcome():
    async with between(OK) as world:
        offer = (
            b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        answer = await world.ask(b"GET /fhir HTTP/1.1\r\nHost: x\r\n" + offer)
        assert answer.status == 501
        assert answer.json()["issue"][0]["code"] == "not-supported"
        assert world.upstream.seen == []
