"""Submissions as HTTP: formats, preferences, limits, modes and policies, who hangs up, and what is logged and counted."""

import asyncio
import gzip
import json
import logging
import re
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
import servers
from client import JSON, XML
from fake_upstream import Gate, after, batches, before, fake_upstream, gets, reset, searches, transactions
from proxying import OTHER, World, counted, locations, proxying, said, statuses
from relaying import PATIENCE, read_body, read_head, talk
from test_bad_input import ENTRIES, WHOLE, WRONG

from cgm_proxy.core import xml
from cgm_proxy.core.body import encode
from cgm_proxy.core.dialects import BY_ID
from cgm_proxy.logs import JsonLines
from cgm_proxy.sandbox.submissions import patient, standing_orders, submission

HEAD = b"POST /fhir HTTP/1.1\r\nHost: x\r\nContent-Type: application/fhir+json\r\n"


def untagged(bundle: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in bundle.items() if name != "meta"}


async def metric(world: World, name: str, **labels: str) -> float:
    """Give a metric's value, 0 where it was never counted."""
    found = 0.0
    for line in (await world.metrics()).splitlines():
        if line.startswith(f"cgm_proxy_{name}") and all(f'{k}="{v}"' in line for k, v in labels.items()):
            found += float(line.rpartition(" ")[2])
    return found


# ---- how a submission may come


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
            (passed,) = world.fake.of(lambda asked: str(asked) == "POST ")
            assert sent is None or passed.body == sent
            assert passed.headers.get("Content-Encoding") == headers.get("Content-Encoding")


async def test_expect_is_answered_before_the_body_and_not_sent_upstream() -> None:
    async with proxying() as world:
        body = encode(world.readings(1))
        reader, writer = await asyncio.open_connection("127.0.0.1", world.proxy.port)
        with closing(writer):
            async with asyncio.timeout(PATIENCE):
                writer.write(HEAD + b"Content-Length: %d\r\nExpect: 100-continue\r\n\r\n" % len(body))
                assert (await read_head(reader)).status == 100
                writer.write(body)
                answer = await read_head(reader)
                assert answer.status == 200
                await read_body(reader, answer)
        assert not [asked for asked in world.fake.seen if "Expect" in asked.headers]


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


@pytest.mark.parametrize(("patience", "seconds", "pieces"), SLOW.values(), ids=SLOW)
async def test_a_body_that_does_not_arrive_in_time_is_a_408(
    patience: float, seconds: float, pieces: list[bytes]
) -> None:
    async with proxying(upstream__read_timeout=patience, limits__seconds=seconds) as world:
        reader, writer = await asyncio.open_connection("127.0.0.1", world.proxy.port)

        async def dribble() -> None:
            writer.write(HEAD + b"Content-Length: 100\r\n\r\n")
            for piece in pieces:
                writer.write(piece)
                await asyncio.sleep(0.1)

        dribbling = asyncio.create_task(dribble())
        with closing(writer):
            async with asyncio.timeout(PATIENCE):
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
        assert world.fake.of(transactions) == []
        assert reader


async def test_too_many_submissions_at_once_are_asked_to_come_again() -> None:
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


async def test_a_submitter_that_hangs_up_does_not_stop_its_submission() -> None:
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
        assert await world.proxy._handlers.drain(20)
        assert await world.count() == 6
        assert statuses(await world.submit(world.readings(6))) == [200] * 6


def until(true: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@asynccontextmanager
async def process(url: str, folder: Path, name: str) -> AsyncIterator[servers.Running]:
    """Run a proxy as a process, without blocking the loop that the upstream runs on."""
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
async def test_a_proxy_that_is_stopped_does_not_wait_for_ever(seconds: float) -> None:
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
            async with asyncio.timeout(PATIENCE / 2):
                await world.proxy.stop()
            with pytest.raises(aiohttp.ClientError):
                await sending
        assert statuses(await next_one.submit(next_one.readings(3))) == [200] * 3
        assert await next_one.count() == 3


# ---- how it is answered

FORMATS = [
    ("application/fhir+json", "", JSON, "json"),
    ("application/fhir+xml", "", JSON, "xml"),
    ("*/*", "", JSON, "json"),
    ("*/*", "", XML, "xml"),
    (None, "", JSON, "json"),
    (None, "", XML, "xml"),
    ("application/fhir+json", "", XML, "json"),
    ("application/fhir+xml;q=0.5, application/fhir+json;q=0.9", "", JSON, "json"),
    ("application/fhir+xml;q=0.9, application/fhir+json;q=0.5", "", JSON, "xml"),
    ("application/fhir+json;q=0.1,application/fhir+xml", "", JSON, "xml"),
    ("application/fhir+xml ; Q=0.2, application/json", "", XML, "json"),
    ("application/fhir+xml;q=0.1, */*", "", JSON, "json"),
    ("application/fhir+xml, */*", "", JSON, "xml"),
    ("*/*, application/fhir+xml;q=0.8", "", JSON, "json"),
    ("application/fhir+xml;q=0", "", JSON, "json"),
    ("application/fhir+xml;q=nan, application/fhir+json;q=0.001", "", JSON, "json"),
    ("application/fhir+xml;q=inf, application/fhir+json;q=1", "", JSON, "json"),
    ("text/html", "", JSON, "json"),
    ("text/html, application/xml;q=0.9", "", JSON, "xml"),
    ("application/fhir+xml;fhirVersion=4.0", "", JSON, "xml"),
    ("application/fhir+json", "?_format=xml", JSON, "xml"),
    ("application/fhir+xml", "?_format=json", JSON, "json"),
    ("application/fhir+json", "?_format=application/fhir+xml", JSON, "xml"),
    ("application/fhir+json", "?_format=application%2Ffhir%2Bxml", JSON, "xml"),
    ("application/fhir+xml", "?_format=application/json;charset=utf-8", JSON, "json"),
    ("application/fhir+xml", "?_format=nonsense", JSON, "xml"),
    ("application/fhir+xml", "?_format=", JSON, "xml"),
]


async def test_the_answer_is_in_the_format_that_is_asked_for() -> None:
    async with proxying() as world:
        for accept, query, content_type, wanted in FORMATS:
            bundle = world.readings(2)
            data = xml.to_xml(bundle) if content_type == XML else encode(bundle)
            headers = {"Content-Type": content_type} | ({"Accept": accept} if accept else {})
            for path, status in ((query, 200), (f"$submit-cgm-bundle{query}", 400)):
                answer = await world._request(world.url, "POST", path, data if status == 200 else b"{}", headers)
                assert answer.status == status
                kind = answer.headers["Content-Type"]
                assert kind == f"application/fhir+{wanted};charset=utf-8", (accept, query, content_type, status)
                assert answer.body["resourceType"] == ("Bundle" if status == 200 else "OperationOutcome")


async def test_what_xml_cannot_hold_does_not_break_an_answer_in_xml() -> None:
    async with proxying() as world:
        bundle = world.readings(2)
        bundle["entry"][0]["resource"]["valueQuantity"]["unit"] = "a\x00b\x0c\ufffe<"
        answer = await world.submit(bundle, Accept=XML)
        assert statuses(answer) == [422, 201]


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("dialect", ["argo", "1.0.0"])
@pytest.mark.parametrize("prefer", ["", "minimal", "representation", "OperationOutcome", "nonsense"])
async def test_prefer_says_what_an_entrys_answer_holds(prefer: str, dialect: str, again: bool) -> None:
    async with proxying() as world:
        bundle = world.readings(3, device=True, dialect=dialect)
        bundle["entry"].append(bundle["entry"][1] | {"fullUrl": "urn:uuid:0b0fb34f-4fd6-4e10-9d6e-0cf1a7ad2cb1"})
        headers = {"Prefer": f"respond-async, return={prefer}"} if prefer else {}
        if again:
            await world.submit(bundle, dialect)
        answer = await world.submit(bundle, dialect, **headers)
        assert statuses(answer) == ([200] * 5 if again else [201, 201, 201, 201, 200])
        for sent, entry in zip(bundle["entry"], answer.body["entry"], strict=True):
            shown = entry.get("resource")
            assert (shown is not None) == (prefer == "representation")
            assert ("outcome" in entry["response"]) == (prefer == "OperationOutcome")
            if shown:
                assert entry["response"]["location"].startswith(f"{shown['resourceType']}/{shown['id']}/_history/")
                assert shown.get("valueQuantity") == json.loads(
                    encode(sent["resource"].get("valueQuantity")), parse_float=Decimal
                )


@pytest.mark.parametrize("act", [before(403), before(500), reset(committed=False)])
async def test_what_is_stored_is_answered_also_when_its_representation_cannot_be_had(act) -> None:
    async with proxying() as world:
        bundle = world.readings(3)
        await world.submit(bundle)
        world.fake.always(searches("Observation", "_id="), act)
        assert statuses(await world.submit(bundle, Prefer="return=representation")) == [200] * 3


# ---- detection: content


async def test_an_untagged_bundle_passes_by_default_and_is_judged_with_detection_by_content() -> None:
    for detection, faulty in (("tag", 201), ("content", 422)):
        async with proxying(detection=detection) as world:
            bundle = untagged(world.readings(3))
            bundle["entry"][1]["resource"]["valueQuantity"]["unit"] = "furlong"
            answer = await world.submit(bundle)
            assert statuses(answer) == [201, faulty, 201]
            assert await world.count() == (3 if faulty == 201 else 2)


@pytest.mark.parametrize("kind", ["batch", "transaction"])
async def test_what_holds_no_cgm_data_passes_also_with_detection_by_content(kind: str) -> None:
    entry = {"resource": patient("x"), "request": {"method": "PUT", "url": "Patient/x"}}
    async with proxying(detection="content") as world:
        answer = await world.submit({"resourceType": "Bundle", "type": kind, "entry": [entry]})
        assert statuses(answer) == [201]
        note = {k: v for k, v in world.readings(1)["entry"][0]["resource"].items() if k != "meta"}
        note |= {"code": {"coding": [{"system": "http://loinc.org", "code": "8867-4"}]}}
        assert (await world.request("POST", "Observation", note)).status == 201
        assert world.fake.of(transactions) == [] or kind == "transaction"


def single(world: World, number: int = 0) -> dict[str, Any]:
    return world.readings(number + 1)["entry"][number]["resource"]


async def test_a_single_reading_is_stored_once_with_detection_by_content() -> None:
    async with proxying(detection="content", listen__public_url="https://clinic.example/fhir") as world:
        first = await world.request("POST", "Observation", single(world))
        again = await world.request("POST", "Observation", single(world))
        assert (first.status, again.status) == (201, 200)
        (stored,) = await world.stored()
        place = f"https://clinic.example/fhir/Observation/{stored['id']}/_history/1"
        for answer in (first, again):
            assert answer.headers["Location"] == place
            assert answer.headers["ETag"] == 'W/"1"'
            assert answer.data == b""


@pytest.mark.parametrize("prefer", ["representation", "OperationOutcome"])
async def test_a_single_readings_answer_holds_what_is_preferred(prefer: str) -> None:
    async with proxying(detection="content") as world:
        for status in (201, 200):
            answer = await world.request("POST", "Observation", single(world), Prefer=f"return={prefer}")
            assert answer.status == status
            wanted = {"representation": "Observation", "OperationOutcome": "OperationOutcome"}[prefer]
            assert answer.body["resourceType"] == wanted


async def test_a_single_reading_that_is_refused_is_told_why() -> None:
    async with proxying(detection="content") as world:
        wrong = single(world)
        wrong["valueQuantity"]["unit"] = "furlong"
        answer = await world.request("POST", "Observation", wrong)
        assert answer.status == 422
        assert answer.body["resourceType"] == "OperationOutcome"
        assert answer.body["issue"][0]["diagnostics"]
        assert "Location" not in answer.headers
        other = single(world) | {"subject": {"reference": "Patient/nobody"}}
        assert (await world.request("POST", "Observation", other)).status == 400
        assert await world.count() == 0


SINGLE_CONDITIONS = [
    ("identifier=http://x.org|one", 200),
    ("identifier=http://x.org|none", 201),
    ("code=8867-4", 412),
    ("?", 400),
]


@pytest.mark.parametrize(("condition", "status"), SINGLE_CONDITIONS)
async def test_a_single_readings_if_none_exist_is_honoured(condition: str, status: int) -> None:
    async with proxying(detection="content") as world:
        for name in ("one", "two"):
            code = {"coding": [{"system": "http://loinc.org", "code": "8867-4"}]}
            kept = {"resourceType": "Observation", "id": name, "status": "final", "code": code}
            await world.put(kept | {"identifier": [{"system": "http://x.org", "value": name}]})
        answer = await world.request("POST", "Observation", single(world), If_None_Exist=condition)
        assert answer.status == status
        assert await world.count() == (status == 201)
        if status == 200:
            assert answer.headers["Location"].endswith("/Observation/one/_history/1")


@pytest.mark.parametrize(
    ("act", "status"), [(before(503), 503), (before(422), 422), (before(401), 401), (after(500), 503)]
)
async def test_a_single_reading_that_the_upstream_does_not_confirm(act, status: int) -> None:
    async with proxying(detection="content", upstream__retries=0) as world:
        world.fake.script(transactions, act)
        answer = await world.request("POST", "Observation", single(world))
        assert answer.status == status
        assert answer.rules
        assert (await world.request("POST", "Observation", single(world))).status in {200, 201}
        assert await world.count() == 1


# ---- mode: observe


async def test_observing_refuses_nothing_that_the_upstream_takes() -> None:
    async with proxying(mode="observe") as world:
        await world.order()
        before_ = await metric(world, "refusals_total", severity="warning")
        bundle = world.readings(6)
        entries = bundle["entry"]
        entries[0]["resource"]["valueQuantity"]["unit"] = "furlong"
        entries[1]["resource"]["subject"] = {"reference": OTHER}
        entries[2] = {"resource": patient("new"), "request": {"method": "PUT", "url": "Patient/new"}}
        entries[3] |= {"request": {"method": "PUT", "url": "Observation/mine"}}
        entries[3]["resource"]["id"] = "mine"
        del entries[4]["request"]
        answer = await world.submit(bundle)
        assert statuses(answer) == [201, 201, 201, 201, 422, 201]
        assert await world.count() == 3
        assert await world.count(about=OTHER) == 1
        assert (await world.ask_store("GET", "Patient/new")).status == 200
        assert (await world.ask_store("GET", "Observation/mine")).status == 200
        severities = {
            issue["severity"]
            for entry in answer.body["entry"]
            for issue in entry["response"].get("outcome", {}).get("issue", [])
            if "details" in issue and issue["details"]["coding"][0]["system"] == "urn:cgm-proxy:rule"
        }
        assert severities == {"warning"}
        assert {"subject-other"} <= set(said(answer, 1))
        assert {"allow-method", "allow-type"} <= set(said(answer, 2))
        assert "allow-method" in said(answer, 3)
        assert "entry-request" in said(answer, 4)
        assert await metric(world, "refusals_total", severity="warning") > before_
        (batch,) = world.fake.of(batches)
        assert len(batch.json["entry"]) == 3


async def test_observing_stores_good_entries_once_all_the_same() -> None:
    async with proxying(mode="observe") as world:
        assert statuses(await world.submit(world.readings(5))) == [201] * 5
        assert statuses(await world.submit(world.readings(5))) == [200] * 5
        assert await world.count() == 5


async def test_observing_an_incomplete_submission_warns_and_stores() -> None:
    async with proxying(mode="observe") as world:
        await world.put(standing_orders("argo", world.about)[0])
        answer = await world.submit(world.readings(2))
        assert statuses(answer) == [201, 201]
        assert "order-incomplete" in said(answer)


async def test_an_update_that_observing_lets_through_is_noticed() -> None:
    async with proxying(mode="observe") as world:
        await world.submit(world.readings(1))
        (reading,) = await world.stored()
        bundle = world.readings(1)
        bundle["entry"][0]["request"] = {"method": "DELETE", "url": f"Observation/{reading['id']}"}
        assert await world.submit(bundle)
        if await world.count() == 0:
            assert statuses(await world.submit(world.readings(1))) == [201]


@pytest.mark.parametrize("act", [before(500), before(403), before(200, {}), before(200, b"x"), reset(committed=False)])
async def test_a_batch_that_fails_while_observing_fails_alone(act) -> None:
    async with proxying(mode="observe") as world:
        world.fake.script(batches, act)
        bundle = world.readings(2)
        bundle["entry"][1] |= {"request": {"method": "PUT", "url": "Observation/mine"}}
        good, bad = statuses(await world.submit(bundle))
        assert good == 201
        assert bad >= 400
        assert await world.count() == 1


async def test_a_single_post_while_observing_names_its_location() -> None:
    async with proxying(mode="observe", detection="content") as world:
        answer = await world.request("POST", "Observation", single(world) | {"subject": {"reference": "urn:x"}})
        if answer.status == 201:
            assert answer.headers["Location"].startswith("http://localhost:8080/fhir/Observation/")
        assert answer.status in {201, 400}


@pytest.mark.parametrize("settings", [{"mode": "observe"}, {"detection": "content"}])
async def test_no_bad_input_is_an_error_of_the_proxy_in_any_mode(settings: dict[str, str]) -> None:
    async with proxying(**settings) as world:
        spoilt = [row[1] for row in ENTRIES]
        spoilt += [lambda entry, e=element, v=value: entry["resource"].update({e: v}) for element, value in WRONG]
        for spoil in spoilt:
            bundle = world.readings(2)
            spoil(bundle["entry"][1])
            for sent in (bundle, untagged(bundle)):
                answer = await world.submit(sent)
                assert answer.status != 500, answer.data
                assert answer.body["resourceType"] in {"Bundle", "OperationOutcome"}
            if resource := bundle["entry"][1].get("resource"):
                answer = await world.request("POST", "Observation", resource)
                assert answer.status != 500, answer.data
        text = encode(world.readings(2)).decode()
        for _, made, _, _ in WHOLE:
            body = made(text)
            data = body if isinstance(body, bytes) else body.encode("utf-8", "surrogatepass")
            assert (await world.submit(data)).status in {400, 413, 200, 422}


# ---- policies


async def outcome(world: World, bundle: dict[str, Any], dialect: str = "argo") -> tuple[Any, list[str]]:
    """Give the statuses, or the whole request's one, and the rules that are named."""
    answer = await world.submit(bundle, dialect)
    if answer.status != 200:
        return answer.status, answer.rules
    return statuses(answer), [rule for index in range(len(bundle["entry"])) for rule in said(answer, index)]


async def whole(world: World, readings: int = 3) -> dict[str, Any]:
    """A submission that holds all that the orders ask for."""
    return submission("argo", world.about, readings=readings)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [("accept", ([201], [])), ("warn", ([201], ["order-none"])), ("reject", (422, ["order-none"]))],
)
async def test_the_policy_on_a_patient_without_an_order(policy: str, expected: Any) -> None:
    async with proxying(policies__no_order=policy) as world:
        assert await outcome(world, world.readings(1)) == expected
        assert await world.count() == len(expected[0] if isinstance(expected[0], list) else [])


@pytest.mark.parametrize(
    ("policy", "expected"),
    [("accept", ([201], [])), ("warn", ([201], ["order-incomplete"])), ("reject", (422, ["order-incomplete"]))],
)
async def test_the_policy_on_an_incomplete_submission(policy: str, expected: Any) -> None:
    async with proxying(policies__incomplete=policy, policies__unsolicited="accept") as world:
        await world.put(standing_orders("argo", world.about)[0])
        assert await outcome(world, world.readings(1)) == expected


@pytest.mark.parametrize(("policy", "status", "named"), [("accept", 201, 0), ("warn", 201, 1), ("reject", 422, 1)])
async def test_the_policy_on_unsolicited_entries(policy: str, status: int, named: int) -> None:
    async with proxying(policies__unsolicited=policy) as world:
        await world.put(standing_orders("argo", world.about)[0])
        found, rules = await outcome(world, await whole(world, 2))
        assert sorted(set(found)) == sorted({201, status})
        assert rules.count("order-unsolicited") == 2 * named
        assert len([r for r in await world.stored() if "sensor-reading" in r["meta"]["profile"][0]]) == (
            2 if status == 201 else 0
        )


@pytest.mark.parametrize(("policy", "status", "named"), [("accept", 201, 0), ("warn", 201, 1), ("reject", 422, 1)])
async def test_the_policy_on_what_is_older_than_the_lookback_period(policy: str, status: int, named: int) -> None:
    async with proxying(policies__outside_lookback=policy) as world:
        await world.put(standing_orders("1.0.0", world.about)[1])
        bundle = submission("1.0.0", world.about, readings=2, summary=False, pdf=False, device=False)
        found, rules = await outcome(world, bundle, "1.0.0")
        assert found == [status] * 2
        assert rules.count("order-lookback") == 2 * named


@pytest.mark.parametrize(("policy", "status"), [("accept", 200), ("warn", 200), ("reject", 429)])
async def test_the_policy_on_submissions_that_come_too_often(policy: str, status: int) -> None:
    async with proxying(policies__too_often=policy) as world:
        await world.order()
        assert (await world.submit(await whole(world))).status == 200
        stored = await world.count()
        answer = await world.submit(await whole(world, 4))
        assert answer.status == status
        if status == 429:
            assert answer.rules == ["order-too-often"]
            assert 13 * 86400 < int(answer.headers["Retry-After"]) <= 14 * 86400
            assert await world.count() == stored
        else:
            assert ("order-too-often" in said(answer)) == (policy == "warn")
            assert await world.count() > stored
        asked = [one for one in world.fake.of(searches("Observation")) if "_sort" in one.form]
        assert bool(asked) == (policy != "accept")


@pytest.mark.parametrize("status", [401, 403])
async def test_a_last_submission_that_may_not_be_searched_for_does_not_stop_this_one(status: int) -> None:
    async with proxying() as world:
        await world.order()
        world.fake.always(searches("Observation"), before(status))
        assert set(statuses(await world.submit(await whole(world)))) == {201}


# ---- what is logged and counted

SECRET = "Zyxomma"


def logged(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [json.loads(JsonLines().format(record)) for record in caplog.records]


def lines_of(caplog: pytest.LogCaptureFixture, event: str) -> list[dict[str, Any]]:
    return [line for line in logged(caplog) if line["event"] == event]


async def test_nothing_of_a_patient_is_logged_or_counted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with proxying(upstream__retries=0) as world:
        world.about = f"Patient/{SECRET}"
        await world.put(patient(SECRET, family=SECRET))
        bundle = world.readings(6, device=True)
        one, two, three, four = (entry["resource"] for entry in bundle["entry"][1:5])
        one["valueQuantity"]["unit"] = SECRET
        two["subject"] = {"reference": f"Patient/{SECRET}2", "display": SECRET}
        three["valueQuantity"]["value"] = Decimal("271.82818")
        four |= {"identifier": [{"system": f"http://{SECRET}.example", "value": SECRET}], SECRET: SECRET}
        bundle["entry"][5]["request"]["ifNoneExist"] = f"{SECRET}={SECRET}"
        words = {"resourceType": "OperationOutcome", "issue": [{"severity": "error", "diagnostics": SECRET}]}
        for act in (
            before(422, words),
            before(500, words),
            reset(committed=False),
            before(200, b"{" + SECRET.encode()),
        ):
            world.fake.script(lambda asked: transactions(asked) and SECRET in asked.body.decode(), act)
            answer = await world.submit(bundle, Authorization=f"Bearer {SECRET}", Cookie=SECRET)
            assert SECRET in answer.data.decode()
        world.fake.script(gets("Patient/"), reset(committed=False), reset(committed=False))
        await world.submit(bundle, Authorization=f"Bearer {SECRET}3")
        await world.submit(encode(bundle)[:-10] + SECRET.encode(), X_Request_ID=f"{SECRET} {SECRET}")
        await world.request("GET", f"Patient/{SECRET}?name={SECRET}")
        await world.request("GET", f"Patient?name={SECRET}\x00")
        metrics = await world.metrics()
    text = json.dumps(logged(caplog)) + caplog.text
    assert lines_of(caplog, "submission")
    for kept_back in (SECRET, "271.8", SECRET.lower()):
        assert kept_back not in text
        assert kept_back not in metrics


async def test_a_submissions_log_line_says_what_became_of_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with proxying(upstream__retries=0, policies__no_order="accept") as world:
        bundle = world.readings(3)
        bundle["entry"][1]["resource"]["valueQuantity"]["unit"] = "x"
        await world.submit(bundle, X_Request_ID="first")
        await world.submit(world.readings(1))
        await world.submit(world.readings(3))
        world.fake.script(transactions, before(503))
        await world.submit(world.readings(4))
        world.fake.script(gets("Patient/"), before(401))
        await world.submit(world.readings(1), Authorization="Bearer x")
        world.fake.script(gets("Patient/"), before(500))
        await world.submit(world.readings(1), Authorization="Bearer y")
    lines = lines_of(caplog, "submission")
    assert [line["outcome"] for line in lines] == ["partly", "duplicate", "stored", "failed", "refused", "failed"]
    assert [line.get("entries") for line in lines] == [3, 1, 3, 4, None, None]
    assert {line["dialect"] for line in lines} == {"argo"}
    assert lines[0]["request_id"] == "first"
    assert len({line["request_id"] for line in lines}) == 6
    assert [line.get("rule") for line in lines][4:] == ["upstream-authority", "upstream-answer"]
    assert all(line["seconds"] >= 0 and line["level"] == "info" for line in lines)


async def test_every_submission_and_entry_is_counted() -> None:
    async with proxying(upstream__retries=0) as world:

        async def counts() -> dict[str, float]:
            names = {f"submissions {name}": ("submissions_total", {"outcome": name}) for name in OUTCOMES}
            names |= {f"entries {name}": ("entries_total", {"verdict": name}) for name in VERDICTS}
            return {name: await metric(world, family, **labels) for name, (family, labels) in names.items()}

        earlier = await counts()
        bundle = world.readings(3)
        bundle["entry"][1]["resource"]["valueQuantity"]["unit"] = "x"
        await world.submit(bundle)
        await world.submit(world.readings(1))
        world.fake.script(transactions, before(503))
        await world.submit(world.readings(4))
        world.fake.script(gets("Patient/"), before(500))
        await world.submit(world.readings(1), Authorization="Bearer y")
        await world.submit(bundle | {"type": "transaction"})
        later = await counts()
        grown = {name: later[name] - earlier[name] for name in later if later[name] != earlier[name]}
        assert grown == {
            "submissions partly": 1,
            "submissions duplicate": 1,
            "submissions failed": 2,
            "submissions refused": 1,
            "entries created": 2,
            "entries duplicate": 3,
            "entries unknown": 2,
            "entries refused": 4,
        }


OUTCOMES = ("stored", "duplicate", "partly", "refused", "failed")
VERDICTS = ("created", "duplicate", "refused", "unknown")


# ---- metadata

STATEMENTS = [b"{", b"", b"[]", b'{"resourceType":"CapabilityStatement","rest":7,"instantiates":"x"}', b'{"a":1,"a":2}']


@pytest.mark.parametrize("answer", STATEMENTS)
async def test_a_capability_statement_that_cannot_be_read_is_the_upstreams_own_affair(answer: bytes) -> None:
    async with proxying() as world:
        world.fake.script(gets("metadata"), before(200, answer, Content_Type=JSON))
        given = await world.request("GET", "metadata")
        assert given.status == 200
        if b"resourceType" not in answer:
            assert given.data == answer


async def test_both_of_a_dialects_tags_and_the_operation_are_taken() -> None:
    async with proxying() as world:
        for number, tag in enumerate(BY_ID["argo"].tags):
            bundle = world.readings(number + 1)
            bundle["meta"]["tag"][0]["code"] = tag
            assert set(statuses(await world.submit(bundle))) <= {200, 201}
        operation = submission("1.0.0", world.about, readings=2, summary=False, pdf=False, device=False)
        wrapped = {"resourceType": "Parameters", "parameter": [{"name": "resource", "resource": operation}]}
        assert counted(first := await world.submit(operation, "1.0.0")) in ({201: 2}, {200: 2}, {200: 1, 201: 1})
        assert locations(await world.submit(wrapped, "1.0.0")) == locations(first)
        assert world.fake.of(lambda asked: "$" in asked.path) == []
