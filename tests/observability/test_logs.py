"""What is logged and counted of a submission, and that patient data never is."""

import asyncio
import json
import logging
from contextlib import closing
from decimal import Decimal
from typing import Any

import pytest
from support.fake_upstream import before, gets, reset, transactions
from support.proxying import metric, proxying

from cgm_proxy.core.codec.json_body import encode
from cgm_proxy.observability.logs import JsonLines
from cgm_proxy.relay.http_options import LOG, MAX_LINE
from cgm_proxy.sandbox.simulation.submissions import patient

SECRET = "Zyxomma"


def logged(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [json.loads(JsonLines().format(record)) for record in caplog.records]


def lines_of(caplog: pytest.LogCaptureFixture, event: str) -> list[dict[str, Any]]:
    return [line for line in logged(caplog) if line["event"] == event]


async def test_no_patient_data_is_logged_or_counted(caplog: pytest.LogCaptureFixture) -> None:
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
        outcome = {"resourceType": "OperationOutcome", "issue": [{"severity": "error", "diagnostics": SECRET}]}
        for act in (
            before(422, outcome),
            before(500, outcome),
            reset(committed=False),
            before(200, b"{" + SECRET.encode()),
        ):
            world.fake.script(lambda request: transactions(request) and SECRET in request.body.decode(), act)
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
    for secret in (SECRET, "271.8", SECRET.lower()):
        assert secret not in text
        assert secret not in metrics


async def test_the_log_line_of_a_submission_has_its_outcome(caplog: pytest.LogCaptureFixture) -> None:
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


BROKEN = {
    "no HTTP": (b"GET / HTTP/9\r\n\r\n", "BadStatusLine"),
    "a field without a name": (b"GET / HTTP/1.1\r\nHost: x\r\n: x\r\n\r\n", "BadHttpMessage"),
    "a long target": (b"GET /" + b"x" * 2 * MAX_LINE + b" HTTP/1.1\r\n\r\n", "LineTooLong"),
}


@pytest.mark.parametrize(("sent", "kind"), BROKEN.values(), ids=BROKEN)
async def test_a_malformed_request_is_logged_as_info_and_without_the_clients_address(
    sent: bytes, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with proxying() as world:
        reader, writer = await asyncio.open_connection("127.0.0.1", world.proxy.port)
        with closing(writer):
            writer.write(sent)
            assert (await reader.read()).startswith(b"HTTP/1.0 4")
    (line,) = lines_of(caplog, f"Error handling request: {kind}")
    assert line["level"] == "info"
    assert "127.0.0.1" not in json.dumps(logged(caplog))


def test_a_lost_client_is_logged_as_info_and_a_fault_of_the_proxy_as_an_error(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    for fault in (ConnectionResetError(SECRET), ValueError(SECRET)):
        LOG.error("Error handling request from %s", "10.1.2.3", exc_info=fault)
    assert [(line["level"], line["event"]) for line in logged(caplog)] == [
        ("error", "Error handling request: ValueError"),
    ]
    caplog.set_level(logging.INFO)
    LOG.error("Error handling request from %s", "10.1.2.3", exc_info=ConnectionResetError(SECRET))
    assert logged(caplog)[-1]["level"] == "info"


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
        growth = {name: later[name] - earlier[name] for name in later if later[name] != earlier[name]}
        assert growth == {
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


def test_the_exceptions_text_of_a_failed_task_is_not_logged() -> None:
    message = f"Task exception was never retrieved\nfuture: <Task finished exception=ValueError('{SECRET}')>"
    record = logging.LogRecord("asyncio", logging.ERROR, "", 0, message, (), (ValueError, ValueError(SECRET), None))
    line = JsonLines().format(record)
    assert SECRET not in line
    assert json.loads(line)["exception"] == "ValueError"
