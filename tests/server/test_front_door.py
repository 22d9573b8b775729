"""What happens to each request, and submissions over HTTP: framing, limits, clients that disconnect, proxies that stop."""

import asyncio
import gzip
import json
import re
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from multidict import CIMultiDict, CIMultiDictProxy
from support import servers
from support.client import JSON
from support.fake_upstream import Gate, before, fake_upstream, gets, searches, transactions
from support.proxying import World, counted, locations, proxying, statuses, untagged
from support.relaying import TIMEOUT, read_body, read_head, talk

from cgm_proxy.core.codec.json_body import encode
from cgm_proxy.core.http.base_urls import BaseUrls
from cgm_proxy.core.http.header_fields import METHOD_OVERRIDES
from cgm_proxy.core.submission.dialects import DIALECTS_BY_ID
from cgm_proxy.sandbox.simulation.submissions import patient, submission
from cgm_proxy.server.front_door import (
    AnswerMetadata,
    AnswerStatus,
    Decision,
    Inspect,
    Stream,
    StreamWrite,
    decide,
)

HEAD = b"POST /fhir HTTP/1.1\r\nHost: x\r\nContent-Type: application/fhir+json\r\n"

# ---- what happens to a request

SAME = BaseUrls.of("http://public.example/fhir", "http://up/fhir")
MOVED = BaseUrls.of("http://public.example/r4", "http://up/fhir")
STATUS = "/fhir/$cgm-submission-status/x"

DECISIONS = [
    ("GET", "/fhir/Patient/1", Stream()),
    ("HEAD", "/fhir/Patient/1", Stream()),
    ("OPTIONS", "/fhir", Stream()),
    ("GET", "/fhir", Stream()),
    ("GET", "/fhir/$submit-cgm-bundle", Stream()),
    ("GET", "/elsewhere", Stream()),
    ("GET", "/fhir/metadata", AnswerMetadata()),
    ("GET", "//fhir/./metadata/?_format=xml", AnswerMetadata()),
    ("GET", "http://public.example/fhir/metadata", AnswerMetadata()),
    ("HEAD", "/fhir/metadata", Stream()),
    ("GET", "/fhir/Patient/metadata", Stream()),
    ("GET", "/fhir/Patient?name=metadata", Stream()),
    ("POST", "/fhir", Inspect("base")),
    ("POST", "/fhir/?_format=json", Inspect("base")),
    ("POST", "//%66hir", Inspect("base")),
    ("POST", "/fhir/$submit-cgm-bundle", Inspect("operation")),
    ("POST", "/fhir/Observation", StreamWrite(frozenset({"POST"}), ("fhir", "Observation"))),
    ("POST", "/fhir/Patient/_search", StreamWrite(frozenset({"POST"}), ("fhir", "Patient", "_search"))),
    ("post", "/fhir", Inspect("base")),
    ("PUT", "/fhir", StreamWrite(frozenset({"PUT"}), ("fhir",))),
    ("PUT", "/fhir/$submit-cgm-bundle", StreamWrite(frozenset({"PUT"}), ("fhir", "$submit-cgm-bundle"))),
    ("PUT", "/fhir/Patient/1", StreamWrite(frozenset({"PUT"}), ("fhir", "Patient", "1"))),
    ("PATCH", "/fhir/%50atient/1", StreamWrite(frozenset({"PATCH"}), ("fhir", "Patient", "1"))),
    ("DELETE", "/fhir/Patient/1", StreamWrite(frozenset({"DELETE"}), ("fhir", "Patient", "1"))),
    ("GET", STATUS, AnswerStatus("x")),
    ("DELETE", STATUS, AnswerStatus("x")),
    ("POST", STATUS, AnswerStatus("x")),
]


def decision(method: str, target: str, bases: BaseUrls = SAME, **more: Any) -> Decision:
    headers = CIMultiDictProxy(CIMultiDict(more.pop("headers", ())))
    return decide(method, target, headers, bases, **({"by_content": False, "keeps_submissions": True} | more))


@pytest.mark.parametrize(("method", "target", "expected"), DECISIONS)
def test_method_and_path_decide_what_happens_to_a_request(method: str, target: str, expected: Decision) -> None:
    assert decision(method, target) == expected
    assert decision(method, target, MOVED) == expected  # the upstream's own path is no way around


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "", "POSTX"])
@pytest.mark.parametrize("path", ["/fhir", "/fhir/$submit-cgm-bundle"])
def test_only_a_post_is_inspected(method: str, path: str) -> None:
    assert isinstance(decision(method, path), Stream | StreamWrite)


@pytest.mark.parametrize(
    ("method", "target", "expected"),
    [
        ("POST", "/r4", Inspect("base")),
        ("POST", "/r4/$submit-cgm-bundle", Inspect("operation")),
        ("GET", "/r4/metadata", AnswerMetadata()),
        ("GET", "/r4/$cgm-submission-status/x", AnswerStatus("x")),
        ("PUT", "/r4/Patient/1", StreamWrite(frozenset({"PUT"}), ("fhir", "Patient", "1"))),
        ("GET", "/r4/Patient/1", Stream()),
    ],
)
def test_the_public_base_is_mapped_before_paths_are_compared(method: str, target: str, expected: Decision) -> None:
    assert decision(method, target, MOVED) == expected


def test_a_status_url_means_nothing_where_no_submissions_are_kept() -> None:
    assert decision("GET", STATUS, keeps_submissions=False) == Stream()


@pytest.mark.parametrize("kind", ["Observation", "DiagnosticReport", "Device"])
def test_creates_of_single_resources_are_inspected_by_content(kind: str) -> None:
    assert decision("POST", f"/fhir/{kind}", by_content=True) == Inspect("create")
    assert decision("PUT", f"/fhir/{kind}/1", by_content=True) == StreamWrite(frozenset({"PUT"}), ("fhir", kind, "1"))


OVERRIDES = [
    ("GET", ["DELETE"], {"GET", "DELETE"}),
    ("GET", ["delete"], {"GET", "DELETE"}),
    ("GET", ["GET"], {"GET"}),
    ("HEAD", ["PUT"], {"HEAD", "PUT"}),
    ("POST", ["PUT"], {"POST", "PUT"}),
    ("GET", ["PUT, DELETE"], {"GET", "PUT", "DELETE"}),
    ("GET", ["HEAD", "DELETE"], {"GET", "HEAD", "DELETE"}),
]


@pytest.mark.parametrize("name", [*METHOD_OVERRIDES, "x-http-method-override"])
@pytest.mark.parametrize(("method", "values", "methods"), OVERRIDES)
def test_a_request_with_a_method_override_counts_as_each_of_its_methods(
    name: str, method: str, values: list[str], methods: set[str]
) -> None:
    headers = [(name, value) for value in values]
    expected = StreamWrite(frozenset(methods), ("fhir", "Patient", "1"))
    assert decision(method, "/fhir/Patient/1", headers=headers) == expected
    assert decision(method, "/fhir", headers=[*headers, (name, "post")]) == Inspect("base")


@pytest.mark.parametrize("warm", [False, True], ids=["first request", "later request"])
@pytest.mark.parametrize("name", METHOD_OVERRIDES)
async def test_a_get_with_a_method_override_is_a_write_on_any_connection(name: str, warm: bool) -> None:
    async with proxying() as world:
        orders_searched = searches("ServiceRequest")
        await world.submit(world.readings(1))
        await world.submit(world.readings(2))
        assert len(world.fake.received(orders_searched)) == 1
        reader, writer = await asyncio.open_connection("127.0.0.1", world.proxy.port)
        with closing(writer):
            if warm:
                for _ in range(2):
                    assert (await talk(reader, writer, b"GET /fhir/Basic/1 HTTP/1.1\r\nHost: x\r\n\r\n")).status == 404
                await world.submit(world.readings(3))
                assert len(world.fake.received(orders_searched)) == 1
            override = f"GET /fhir/ServiceRequest/1 HTTP/1.1\r\nHost: x\r\n{name}: DELETE\r\n\r\n".encode()
            await talk(reader, writer, override)
            await world.submit(world.readings(4))
            assert len(world.fake.received(orders_searched)) == 2
            bad = world.readings(5)
            bad["entry"][4]["resource"]["valueQuantity"]["unit"] = "mg/dL"
            body = encode(bad)
            head = f"GET /fhir HTTP/1.1\r\nHost: x\r\n{name}: POST\r\nContent-Type: {JSON}\r\n"
            answer = await talk(reader, writer, head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            assert [entry["response"]["status"][:3] for entry in answer.json()["entry"]] == ["200"] * 4 + ["422"]


@pytest.mark.parametrize("base", ["https://host:443/fhir", "HTTPS://Host/fhir", "https://host/fhir/"])
async def test_a_reference_to_the_public_base_is_known_in_any_spelling(base: str) -> None:
    async with proxying(listen__public_url="https://host/fhir") as world:
        bundle = world.readings(1)
        (entry,) = bundle["entry"]
        entry["resource"]["subject"]["reference"] = f"{base.rstrip('/')}/{world.about}"
        assert statuses(await world.submit(bundle)) == [201]
        (stored,) = await world.stored()
        assert stored["subject"]["reference"] == world.about


# ---- framing and encoding


async def chunks(data: bytes, size: int = 1000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


WAYS = {
    "plain": lambda data: (data, {}),
    "gzip": lambda data: (gzip.compress(data), {"Content-Encoding": "gzip"}),
    "gzip in chunks": lambda data: (chunks(gzip.compress(data)), {"Content-Encoding": "gzip"}),
    "chunked": lambda data: (chunks(data), {}),
    "byte by byte": lambda data: (chunks(data, 1), {}),
    "with a byte order mark": lambda data: (b"\xef\xbb\xbf" + data, {}),
    "expecting 100": lambda data: (data, {"Expect": "100-continue"}),
    "gzip twice": lambda data: (gzip.compress(gzip.compress(data)), {"Content-Encoding": "gzip, gzip"}),
}


@pytest.mark.parametrize("kind", ["submission", "other"])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
async def test_a_body_may_come_in_any_framing(way, kind: str) -> None:
    async with proxying() as world:
        bundle = world.readings(5)
        if kind == "other":
            bundle = untagged(bundle)
        data, headers = way(encode(bundle))
        sent = data if isinstance(data, bytes) else None
        async with world.session.post(
            world.url, data=data, headers={"Content-Type": JSON} | headers, expect100="Expect" in headers
        ) as answer:
            body = await answer.json(content_type=None)
        if kind == "submission":
            assert [entry["response"]["status"][:3] for entry in body["entry"]] == ["201"] * 5
            assert await world.count() == 5
        else:
            (passed,) = world.fake.received(lambda asked: str(asked) == "POST ")
            assert sent is None or passed.body == sent
            assert passed.headers.get("Content-Encoding") == headers.get("Content-Encoding")


async def test_an_expectation_is_answered_before_the_body_and_not_sent_upstream() -> None:
    async with proxying() as world:
        body = encode(world.readings(1))
        reader, writer = await asyncio.open_connection("127.0.0.1", world.proxy.port)
        with closing(writer):
            async with asyncio.timeout(TIMEOUT):
                writer.write(HEAD + b"Content-Length: %d\r\nExpect: 100-continue\r\n\r\n" % len(body))
                assert (await read_head(reader)).status == 100
                writer.write(body)
                answer = await read_head(reader)
                assert answer.status == 200
                await read_body(reader, answer)
        assert not [asked for asked in world.fake.seen if "Expect" in asked.headers]


NAMES = {"ASCII": (b"Jose", 200), "UTF-8": ("José".encode(), 200), "Latin-1": ("José".encode("latin-1"), 400)}


@pytest.mark.parametrize(("name", "expected"), NAMES.values(), ids=NAMES)
@pytest.mark.parametrize("kind", ["submission", "other"])
async def test_header_fields_go_upstream_unchanged_or_not_at_all(kind: str, name: bytes, expected: int) -> None:
    async with proxying() as world:
        bundle = world.readings(1)
        body = encode(bundle if kind == "submission" else untagged(bundle))
        reader, writer = await asyncio.open_connection("127.0.0.1", world.proxy.port)
        with closing(writer):
            answer = await talk(
                reader, writer, HEAD + b"X-User: %b\r\nContent-Length: %d\r\n\r\n" % (name, len(body)) + body
            )
        seen = {asked.headers.get("X-User", "").encode(errors="surrogateescape") for asked in world.fake.seen}
        if kind == "submission" and expected == 400:
            assert (answer.status, world.fake.seen) == (400, [])
        else:  # anything but a submission passes as it came
            assert answer.status == 200
            assert seen - {b""} == {name}


async def test_a_body_that_will_be_too_large_is_refused_before_it_is_sent() -> None:
    async with proxying(limits__body_bytes=2000) as world:
        reader, writer = await asyncio.open_connection("127.0.0.1", world.proxy.port)
        with closing(writer):
            answer = await talk(reader, writer, HEAD + b"Content-Length: 2001\r\nExpect: 100-continue\r\n\r\n")
        assert answer.status == 413


SLOW = {
    "silence": (0.3, 60.0, [b'{"resourceType"']),
    "a trickle": (1.0, 1.0, [b" "] * 30),
}


@pytest.mark.parametrize(("read_timeout", "seconds", "pieces"), SLOW.values(), ids=SLOW)
async def test_a_body_that_does_not_arrive_in_time_is_a_408(
    read_timeout: float, seconds: float, pieces: list[bytes]
) -> None:
    async with proxying(upstream__read_timeout=read_timeout, limits__seconds=seconds) as world:
        reader, writer = await asyncio.open_connection("127.0.0.1", world.proxy.port)

        async def dribble() -> None:
            writer.write(HEAD + b"Content-Length: 100\r\n\r\n")
            for piece in pieces:
                writer.write(piece)
                await asyncio.sleep(0.1)

        dribbling = asyncio.create_task(dribble())
        with closing(writer):
            async with asyncio.timeout(TIMEOUT):
                answer = await read_head(reader)
                answer.body = await read_body(reader, answer)
            assert answer.status == 408
            assert answer.json()["issue"][0]["code"] == "timeout"
            dribbling.cancel()


async def test_a_body_that_ends_early_is_refused_and_stores_nothing() -> None:
    async with proxying() as world:
        reader, writer = await asyncio.open_connection("127.0.0.1", world.proxy.port)
        writer.write(HEAD + b"Content-Length: 100000\r\n\r\n" + encode(world.readings(3)))
        await writer.drain()
        writer.close()
        await asyncio.sleep(0.05)
        assert await world.count() == 0
        assert world.fake.received(transactions) == []
        assert reader


async def test_too_many_submissions_at_once_are_refused_with_retry_after() -> None:
    async with proxying(limits__in_flight=1) as world:
        gate = Gate()
        world.fake.script(transactions, gate)
        first = asyncio.create_task(world.submit(world.readings(1)))
        await gate.reached.wait()
        second = await world.submit(world.readings(2))
        assert (second.status, second.rules, second.headers["Retry-After"]) == (503, ["busy"], "5")
        assert (await world.request("GET", world.about)).status == 200  # other traffic goes on
        gate.opened.set()
        assert statuses(await first) == [201]
        assert statuses(await world.submit(world.readings(2))) == [200, 201]


async def test_a_submitter_that_disconnects_does_not_stop_its_submission() -> None:
    async with proxying(forward__chunk=2, forward__concurrency=1) as world:
        gate = Gate()
        world.fake.script(transactions, gate)
        body = encode(world.readings(6))
        _, writer = await asyncio.open_connection("127.0.0.1", world.proxy.port)
        writer.write(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        await gate.reached.wait()
        writer.transport.abort()
        await asyncio.sleep(0.05)
        gate.opened.set()
        assert await world.proxy._front_door.drain(20)
        assert await world.count() == 6
        assert statuses(await world.submit(world.readings(6))) == [200] * 6


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@asynccontextmanager
async def process(url: str, folder: Path, name: str) -> AsyncIterator[servers.Running]:
    """Run a proxy as a process, without blocking the event loop of the upstream."""
    running = servers.proxy(url, folder, name=name)
    server = await asyncio.to_thread(running.__enter__)
    try:
        yield server
    finally:
        await asyncio.to_thread(running.__exit__, None, None, None)


async def test_a_proxy_that_is_stopped_finishes_what_is_in_flight_while_another_serves(tmp_path: Path) -> None:
    async with fake_upstream() as fake, aiohttp.ClientSession() as session:
        async with process(fake.url, tmp_path, "one") as one, process(fake.url, tmp_path, "two") as two:
            first, second = (
                World(fake, SimpleNamespace(port=int(re.search(r":(\d+)", server.url)[1])), session)
                for server in (one, two)
            )
            await first.put(patient("p1"))
            gate = Gate()
            fake.script(transactions, gate)
            sending = asyncio.create_task(first.submit(first.readings(4)))
            await gate.reached.wait()
            one.process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(until, lambda: "stopping" in one.log.read_text())
            assert statuses(await second.submit(second.readings(2))) == [201] * 2
            gate.opened.set()
            assert sorted(statuses(await sending)) == [200, 200, 201, 201]
            assert await asyncio.to_thread(one.process.wait, 20) == 0
            with pytest.raises(aiohttp.ClientConnectionError):
                await first.submit(first.readings(1))
            assert await second.count() == 4
            assert statuses(await second.submit(second.readings(4))) == [200] * 4
        lines = [json.loads(line) for line in one.log.read_text().splitlines()]
        (line,) = [line for line in lines if line["event"] == "submission"]
        assert line["outcome"] == "stored"
        assert line["entries"] == 4
        assert lines[-1]["event"] == "stopped"


@pytest.mark.parametrize("seconds", [0, 0.2])
async def test_a_stopping_proxy_waits_no_longer_than_its_timeout(seconds: float) -> None:
    async with fake_upstream() as fake, proxying(upstream__url=fake.url) as next_one:
        gate = Gate(late=True)
        async with proxying(upstream__url=fake.url, listen__stop_timeout=seconds) as world:
            world.about = next_one.about
            for one in (world, next_one):
                one.fake = fake
            await world.put(patient(world.about.rpartition("/")[2]))
            fake.script(transactions, gate)
            sending = asyncio.create_task(world.submit(world.readings(3)))
            await gate.reached.wait()
            async with asyncio.timeout(TIMEOUT / 2):
                await world.proxy.stop()
            with pytest.raises(aiohttp.ClientError):
                await sending
        assert statuses(await next_one.submit(next_one.readings(3))) == [200] * 3
        assert await next_one.count() == 3


async def test_a_client_that_does_not_read_delays_a_stop_by_the_timeout_once() -> None:
    async with fake_upstream() as fake, proxying(upstream__url=fake.url, listen__stop_timeout=2) as world:
        fake.script(gets("Binary"), before(200, b" " * 2**26))
        reader, writer = await asyncio.open_connection("127.0.0.1", world.proxy.port)
        writer.write(b"GET /fhir/Binary/1 HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        began = asyncio.get_running_loop().time()
        async with asyncio.timeout(3.5):
            await world.proxy.stop()
        assert asyncio.get_running_loop().time() - began >= 2
        writer.close()


# ---- metadata

STATEMENTS = [b"{", b"", b"[]", b'{"resourceType":"CapabilityStatement","rest":7,"instantiates":"x"}', b'{"a":1,"a":2}']


@pytest.mark.parametrize("answer", STATEMENTS)
async def test_a_capability_statement_that_cannot_be_parsed_passes_as_it_is(answer: bytes) -> None:
    async with proxying() as world:
        world.fake.script(gets("metadata"), before(200, answer, Content_Type=JSON))
        given = await world.request("GET", "metadata")
        assert given.status == 200
        if b"resourceType" not in answer:
            assert given.data == answer


async def test_a_capability_statement_names_the_public_base_whoever_asked_the_upstream_first() -> None:
    async with proxying(listen__public_url="https://clinic.example/r4") as world:
        named = {"definition": f"{world.fake.url}/OperationDefinition/x"}
        rest = [{"mode": "server", "operation": [named], "resource": [{"operation": [named]}]}]
        statement = {"resourceType": "CapabilityStatement", "implementation": {"url": world.fake.url}, "rest": rest}
        world.fake.script(gets("metadata"), before(200, encode(statement), Content_Type=JSON))
        given = (await world.request("GET", "metadata")).body
        assert given["implementation"]["url"] == "https://clinic.example/r4"
        public = {"definition": "https://clinic.example/r4/OperationDefinition/x"}
        assert given["rest"][0]["operation"][0] == public
        assert given["rest"][0]["resource"][0]["operation"] == [public]


async def test_a_capability_statement_may_be_larger_than_any_submission() -> None:
    async with proxying(limits__body_bytes=1024) as world:
        statement = {"resourceType": "CapabilityStatement", "description": "x" * 2_000_000}
        world.fake.script(gets("metadata"), before(200, encode(statement), Content_Type=JSON))
        assert (await world.request("GET", "metadata")).body["description"] == statement["description"]


async def test_both_tags_of_a_dialect_and_the_operation_make_a_submission() -> None:
    async with proxying() as world:
        for number, tag in enumerate(DIALECTS_BY_ID["argo"].tags):
            bundle = world.readings(number + 1)
            bundle["meta"]["tag"][0]["code"] = tag
            assert set(statuses(await world.submit(bundle))) <= {200, 201}
        operation = submission("1.0.0", world.about, readings=2, summary=False, pdf=False, device=False)
        wrapped = {"resourceType": "Parameters", "parameter": [{"name": "resource", "resource": operation}]}
        assert counted(first := await world.submit(operation, "1.0.0")) in ({201: 2}, {200: 2}, {200: 1, 201: 1})
        assert locations(await world.submit(wrapped, "1.0.0")) == locations(first)
        assert world.fake.received(lambda asked: "$" in asked.path) == []
