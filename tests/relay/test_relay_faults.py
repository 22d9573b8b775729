"""What the relay does when one side fails, disconnects, stays silent or sends ambiguous framing."""

import asyncio
import logging
import socket
import struct

import pytest
from support.relaying import TIMEOUT, between, read_body, read_head, talk, until

from cgm_proxy.relay import relay as relay_module

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
GET = b"GET /fhir/Patient/1?name=Doe HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /fhir/Patient HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"


def sending(*pieces: bytes, reset: bool = False):
    """Return an upstream that sends pieces after the request's head, then closes or resets the connection."""

    async def script(_message, _reader, writer):
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        if reset:
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raise ConnectionResetError

    return script


async def silent(_message, reader, _writer):
    """Read whatever comes and never answer."""
    await reader.read()
    raise ConnectionResetError


HEAD = b"HTTP/1.1 200 OK\r\n"
FAULTS = {
    "closed before the head": (sending(), 502, "upstream-broken"),
    "reset before the head": (sending(reset=True), 502, "upstream-broken"),
    "closed in the head": (sending(HEAD + b"Content-Le"), 502, "upstream-broken"),
    "no HTTP": (sending(b"SSH-2.0-OpenSSH\r\n\r\n"), 502, "upstream-broken"),
    "no status": (sending(b"HTTP/1.1 abc OK\r\n\r\n"), 502, "upstream-broken"),
    "a head without end": (sending(HEAD + b"X: " + b"x" * 300_000), 502, "upstream-broken"),
    "too many fields": (sending(HEAD + b"X: y\r\n" * 2000), 502, "upstream-broken"),
    "NUL in a field": (sending(HEAD + b"X: a\x00b\r\nContent-Length: 0\r\n\r\n"), 502, "upstream-broken"),
    "a control character in a field": (
        sending(HEAD + b"X: a\x01b\r\nContent-Length: 0\r\n\r\n"),
        502,
        "upstream-broken",
    ),
    "two lengths": (sending(HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab"), 502, "upstream-broken"),
    "a bad length": (sending(HEAD + b"Content-Length: -1\r\n\r\n"), 502, "upstream-broken"),
    "an unexpected upgrade": (
        sending(b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n"),
        502,
        "upstream-broken",
    ),
    "silence": (silent, 504, "upstream-timeout"),
}


@pytest.mark.parametrize("request_", [GET, POST], ids=["GET", "POST"])
@pytest.mark.parametrize(("script", "status", "rule"), FAULTS.values(), ids=FAULTS)
async def test_a_fault_before_the_response_is_an_operation_outcome(script, status, rule, request_):
    async with between(script, read_timeout=0.3) as world:
        answer = await world.ask(request_)
        assert answer.status == status
        (issue,) = answer.json()["issue"]
        assert issue["details"]["coding"][0]["code"] == rule
        assert b"Doe" not in answer.body
        assert world.relay.stats.faults == {rule: 1}
        assert world.relay.stats.in_flight == 0


LATER_FAULTS = {
    "closed, then a response": ((sending(), OK), 200, 3),
    "closed twice": ((sending(), sending()), 502, 3),
    "silence": ((silent,), 504, 2),
    "a control character in a field": ((HEAD + b"X: a\x01b\r\nContent-Length: 0\r\n\r\n",), 502, 2),
}


@pytest.mark.parametrize(("answers", "status", "requests"), LATER_FAULTS.values(), ids=LATER_FAULTS)
async def test_a_fault_on_a_connection_in_use_is_one_as_well(answers, status, requests):
    async with between(OK, *answers, read_timeout=0.3) as world, world.client() as (reader, writer):
        await talk(reader, writer, GET)
        assert (await talk(reader, writer, GET)).status == status
        assert len(world.upstream.seen) == requests
        assert world.relay.stats.in_flight == 0


async def test_an_upstream_that_refuses_connections_is_unavailable():
    async with between(OK, url="http://127.0.0.1:1/fhir") as world:
        answer = await world.ask(GET)
        assert (answer.status, answer.json()["issue"][0]["code"]) == (503, "transient")
        assert world.relay.stats.faults == {"upstream-unreachable": 1}


async def test_an_upstream_that_does_not_accept_in_time_is_unavailable():
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        port = full.getsockname()[1]
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
        async with between(OK, url=f"http://127.0.0.1:{port}/fhir", connect_timeout=0.3) as world:
            assert (await world.ask(GET)).status == 503
        for one in waiting:
            one.close()


async def test_an_upstream_without_tls_where_tls_is_expected_is_a_bad_gateway():
    async def plain(_reader, writer):
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(plain, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with between(OK, url=f"https://127.0.0.1:{port}/fhir") as world:
        assert (await world.ask(GET)).status == 502
        assert world.relay.stats.faults == {"upstream-tls": 1}
    server.close()


async def test_the_relay_serves_again_when_the_upstream_is_back():
    async with between(sending(), sending(), OK) as world, world.client() as (reader, writer):
        assert (await talk(reader, writer, GET)).status == 502
        assert (await talk(reader, writer, GET)).status == 200


def dying_after(first: bytes):
    """Return an upstream that answers once and closes the connection when the next request has come."""

    async def script(message, reader, writer):
        message.body = await read_body(reader, message)
        writer.write(first)
        await read_head(reader)
        raise ConnectionResetError

    return script


EMPTY = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
SECOND = {"GET": 200, "HEAD": 200, "OPTIONS": 200, "POST": 502, "PUT": 502, "DELETE": 502, "PATCH": 502}


@pytest.mark.parametrize(("method", "status"), SECOND.items())
async def test_only_safe_requests_are_sent_again_after_an_idle_connection_was_closed(method, status):
    async with between(dying_after(EMPTY), EMPTY) as world, world.client() as (reader, writer):
        assert (await talk(reader, writer, GET)).status == 200
        request = f"{method} /fhir HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        assert (await talk(reader, writer, request)).status == status
        assert world.upstream.connections == (2 if status == 200 else 1)


async def test_a_safe_request_is_sent_again_once_only():
    async with between(sending()) as world:
        assert (await world.ask(GET)).status == 502
        assert world.upstream.connections == 2


async def test_bytes_without_a_request_answer_no_later_request():
    poison = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"
    sent = asyncio.Event()

    async def script(_message, reader, writer):
        writer.write(OK)
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.write(poison)
        await writer.drain()
        await asyncio.sleep(0.05)
        sent.set()
        await reader.read()

    async with between(script, OK) as world, world.client() as (reader, writer):
        assert (await talk(reader, writer, GET)).body == b"{}"
        await sent.wait()
        assert (await talk(reader, writer, GET)).body == b"{}"
        assert world.upstream.connections == 2


BROKEN = {
    "a length": b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc",
    "chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
    "within a chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nabc",
    "without the last chunk's end": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n",
    "a bad chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nzz\r\n",
}


@pytest.mark.parametrize("together", [True, False], ids=["in one segment", "later"])
@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
@pytest.mark.parametrize("ending", ["closed", "reset", "silent"])
@pytest.mark.parametrize("reply", BROKEN.values(), ids=BROKEN)
async def test_half_a_response_never_looks_complete(reply, ending, version, together):
    async def script(message, reader, writer):
        head, _, rest = reply.partition(b"\r\n\r\n")
        for piece in [reply] if together else [head + b"\r\n\r\n", rest]:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.05)
        if ending == "silent":
            await reader.read()
        await sending(reset=ending == "reset")(message, reader, writer)

    async with between(script, read_timeout=0.4) as world, world.client() as (reader, writer):
        writer.write(GET.replace(b"HTTP/1.1", b"HTTP/" + version))
        async with asyncio.timeout(TIMEOUT):
            head = await read_head(reader)
            if head.status != 502:  # the fault was seen before the head had gone out
                with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
                    await read_body(reader, head)
        await until(lambda: not world.relay.stats.in_flight)


LEAVING = {
    "before the answer": (GET, b""),
    "in the answer": (GET, b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\nabc"),
    "in the request's body": (b"POST /fhir HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\nabc", b""),
    "in a chunk": (b"POST /fhir HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nabc", b""),
}


@pytest.mark.parametrize(("request_", "begun"), LEAVING.values(), ids=LEAVING)
async def test_a_client_that_leaves_ends_the_upstreams_work(request_, begun):
    asked, left = asyncio.Event(), asyncio.Event()

    async def script(_message, reader, writer):
        writer.write(begun)
        asked.set()
        try:
            await reader.read()
        finally:
            left.set()
        raise ConnectionResetError

    async with between(script) as world:
        async with world.client() as (reader, writer):
            writer.write(request_)
            await asked.wait()
            if begun:
                await read_head(reader)
        async with asyncio.timeout(TIMEOUT):
            await left.wait()
        await until(lambda: not world.relay.stats.in_flight)
        assert not world.relay.stats.faults


async def test_an_upstream_that_stops_reading_an_upload_times_out():
    async def script(_message, _reader, _writer):
        await asyncio.sleep(TIMEOUT)

    async with between(script, read_timeout=0.3) as world, world.client() as (reader, writer):
        writer.write(b"POST /fhir HTTP/1.1\r\nHost: x\r\nContent-Length: 50000000\r\n\r\n")
        writer.write(b"x" * 50_000_000)
        async with asyncio.timeout(TIMEOUT):
            assert (await read_head(reader)).status == 504


async def test_a_response_that_comes_during_the_upload_is_passed_on_and_ends_the_connection():
    refusal = b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig"
    async with between(sending(refusal)) as world, world.client() as (reader, writer):
        answer = await talk(reader, writer, b"POST /fhir HTTP/1.1\r\nHost: x\r\nContent-Length: 5000000\r\n\r\nabc")
        assert (answer.status, answer.body) == (413, b"big")
        assert answer.all("Connection") == [b"close"]


EXPECTING = b"POST /fhir HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n"


@pytest.mark.parametrize("status", [b"401 Unauthorized", b"413 Content Too Large", b"417 Expectation Failed"])
async def test_an_expected_continue_is_not_sent_if_the_upstream_refuses_the_request(status):
    refusal = b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n"
    async with between(sending(refusal)) as world, world.client() as (reader, writer):
        answer = await talk(reader, writer, EXPECTING)
        assert answer.line == b"HTTP/1.1 " + status
        assert answer.all("Connection") == [b"close"]
        assert world.upstream.seen[0].all("Expect") == [b"100-continue"]


@pytest.mark.parametrize("word", [b"HTTP/1.1 100 Continue\r\n\r\n", b""], ids=["continue", "silence"])
async def test_an_expected_continue_is_sent_when_the_upstream_agrees_or_stays_silent(word, monkeypatch):
    monkeypatch.setattr(relay_module, "_CONTINUE_SECONDS", 0.05 if not word else TIMEOUT)

    async def script(message, reader, writer):
        writer.write(word)
        message.body = await read_body(reader, message)
        writer.write(OK)

    async with between(script) as world, world.client() as (reader, writer):
        for _ in range(2):
            assert await send_expecting(reader, writer) == b"HTTP/1.1 100 Continue\r\n\r\n"
            assert (await talk(reader, writer, b"body")).status == 200
            assert world.upstream.seen.pop().body == b"body"


async def send_expecting(reader, writer):
    """Send the head of a request whose body waits, and return the interim response."""
    writer.write(EXPECTING)
    async with asyncio.timeout(TIMEOUT):
        return await reader.readuntil(b"\r\n\r\n")


async def test_interim_responses_are_dropped():
    async with between(b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK) as world:
        assert (await world.ask(GET)).status == 200


START = b"POST /fhir HTTP/1.1\r\nHost: x\r\n"
SMUGGLED = {
    "length and chunks": START + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and length": START + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
    "two lengths": START + b"Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcde",
    "two equal lengths": START + b"Content-Length: 4\r\nContent-Length: 4\r\n\r\nabcd",
    "a list of lengths": START + b"Content-Length: 4, 4\r\n\r\nabcd",
    "a signed length": START + b"Content-Length: +4\r\n\r\nabcd",
    "a hexadecimal length": START + b"Content-Length: 0x4\r\n\r\nabcd",
    "a length beyond numbers": START + b"Content-Length: 99999999999999999999999\r\n\r\n",
    "a space before the colon": START + b"Content-Length : 4\r\n\r\nabcd",
    "a folded line": START + b"X: a\r\n b\r\nContent-Length: 0\r\n\r\n",
    "a folded coding": START + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "NUL in a value": START + b"X: a\x00b\r\n\r\n",
    "NUL in a name": START + b"X\x00: a\r\n\r\n",
    "CR in a value": START + b"X: a\rY: b\r\n\r\n",
    "LF alone": b"POST /fhir HTTP/1.1\nHost: x\n\n",
    "a control character": START + b"X: a\x01b\r\n\r\n",
    "chunked twice": START + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "chunked not last": START + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "an unknown coding": START + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "a coding before chunked": START + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "a coding with a control character": START + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "two hosts": b"POST /fhir HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
    "no host": b"POST /fhir HTTP/1.1\r\n\r\n",
    "a space in the target": b"GET /fhir x HTTP/1.1\r\nHost: x\r\n\r\n",
    "a bare byte in the target": "GET /fhir/é HTTP/1.1\r\nHost: x\r\n\r\n".encode("latin-1"),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/0.9": b"GET /fhir\r\n\r\n",
    "an unknown version": b"GET /fhir HTTP/9.9\r\nHost: x\r\n\r\n",
    "an unknown method": b"FROBNICATE /fhir HTTP/1.1\r\nHost: x\r\n\r\n",
    "a method in small letters": b"get /fhir HTTP/1.1\r\nHost: x\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 40 + b"\r\n\r\n",
    "a tunnel": b"CONNECT evil.example:443 HTTP/1.1\r\nHost: x\r\n\r\n",
    "a head too long": START + b"X: " + b"x" * 300_000 + b"\r\n\r\n",
    "a target too long": b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "too many fields": START + b"X: y\r\n" * 1000 + b"\r\n",
}


@pytest.mark.parametrize("request_", SMUGGLED.values(), ids=SMUGGLED)
async def test_a_request_with_two_meanings_is_refused_and_goes_nowhere(request_, caplog):
    caplog.set_level(logging.DEBUG)
    async with between(OK) as world, world.client() as (reader, writer):
        answer = await talk(reader, writer, request_ + GET)
        assert answer.status in {400, 501}
        assert world.upstream.seen == []


MALFORMED = {
    "a chunk's size": b"zz\r\nabc\r\n0\r\n\r\n",
    "a signed size": b"-3\r\nabc\r\n0\r\n\r\n",
    "a size beyond numbers": b"fffffffffffffffffff\r\nabc\r\n0\r\n\r\n",
    "a chunk that is longer than its size": b"3\r\nabcdef\r\n0\r\n\r\n",
    "LF for CRLF": b"3\nabc\n0\n\n",
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED)
@pytest.mark.parametrize("before", [b"", b"5\r\nfirst\r\n"], ids=["at the start", "later"])
async def test_a_malformed_chunk_is_refused_and_never_looks_complete_upstream(body, before):
    ended = []

    async def script(message, reader, _writer):
        try:
            ended.append(await read_body(reader, message))
        except (asyncio.IncompleteReadError, ConnectionError, ValueError):
            ended.append(None)
        raise ConnectionResetError

    async with between(script) as world, world.client() as (reader, writer):
        answer = await talk(reader, writer, START + b"Transfer-Encoding: chunked\r\n\r\n" + before + body)
        assert answer.status == 400
        await until(lambda: len(ended) == len(world.upstream.seen))
        assert set(ended) <= {None}


async def test_nothing_of_a_request_is_logged(caplog):
    caplog.set_level(logging.DEBUG)
    secret = b"GET /fhir/Patient?name=Doe HTTP/1.1\r\nHost: x\r\nAuthorization: Doe\r\n"
    bad = [secret + b"X: a\x00b\r\n\r\n", b"GET /fhir/Patient?name=Doe x HTTP/1.1\r\n\r\n", b"Doe\r\n\r\n"]
    async with between(sending(b"HTTP/1.1 Doe\r\n\r\n"), sending(), OK) as world:
        for request in [GET, secret + b"\r\n", *bad]:
            await world.ask(request)
    assert "Doe" not in caplog.text
