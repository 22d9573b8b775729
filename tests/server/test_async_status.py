"""The status URL of a kept submission: who may use it, in which spellings, and what remains after it is deleted."""

import asyncio
import time
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest
from support.client import JSON, XML
from support.fake_upstream import Gate, ReceivedRequest, before, gets, searches, transactions
from support.later import files, keep, polled, raw, result, rules, status, statuses
from support.proxying import metric
from support.proxying import statuses as now

from cgm_proxy.jobs import job_queue

OWN, OTHERS = "Bearer own-s3cr3t", "Bearer other-s3cr3t"


# ---- who may use it


def reads_of(*authorizations: str | None):
    """Return a predicate for reads of the Patient with one of these Authorization fields."""

    def matches(asked: ReceivedRequest) -> bool:
        return gets("Patient/")(asked) and asked.headers.get("Authorization") in authorizations

    return matches


REQUESTERS = {
    "the submitter": ({"Authorization": OWN}, 200),
    "the submitter with its next token": ({"Authorization": "Bearer renewed"}, 200),
    "somebody else who may read the patient": ({"Authorization": "Bearer clinician"}, 200),
    "somebody who may not read the patient": ({"Authorization": OTHERS}, 403),
    "somebody to whom the patient is hidden": ({"Authorization": "Bearer hidden"}, 404),
    "nobody": ({}, 401),
}


@pytest.mark.parametrize(("headers", "expected"), REQUESTERS.values(), ids=REQUESTERS)
@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE"])
async def test_a_result_is_for_those_who_may_read_the_patient_now(keeping, method: str, headers, expected: int) -> None:
    async with keeping() as world:
        world.fake.always(reads_of(OTHERS), before(403))
        world.fake.always(reads_of("Bearer hidden"), before(404))
        world.fake.always(reads_of(None), before(401, WWW_Authenticate="Bearer"))
        where = await keep(world, world.readings(1), Authorization=OWN)
        await result(world, where, Authorization=OWN)
        answer = await world.request(method, where, **headers)
        assert answer.status == (202 if method == "DELETE" and expected == 200 else expected)
        if expected == 401:
            assert answer.headers["WWW-Authenticate"] == "Bearer"
        if expected > 400:
            assert b"Observation" not in answer.data
            assert statuses(await result(world, where, Authorization=OWN)) == [201]


async def test_a_revoked_token_gives_no_access_to_what_was_sent_with_it(keeping) -> None:
    async with keeping() as world:
        where = await keep(world, world.readings(1), Authorization=OWN)
        await result(world, where, Authorization=OWN)
        world.fake.always(reads_of(OWN), before(401))
        assert (await world.request("GET", where, Authorization=OWN)).status == 401


async def test_the_result_tells_of_a_token_that_expired_while_its_submission_waited(keeping) -> None:
    async with keeping(jobs__at_once=1) as world:
        world.fake.script(transactions, gate := Gate())
        first = await keep(world, world.readings(1), Authorization=OTHERS)
        await gate.reached.wait()
        where = await keep(world, world.readings(2), Authorization=OWN)
        world.fake.always(reads_of(OWN), before(401))
        gate.opened.set()
        answer = await result(world, where, Authorization=OTHERS)
        assert (status(answer), rules(answer)) == (401, ["upstream-authority"])
        assert statuses(await result(world, first, Authorization=OTHERS)) == [201]


async def test_a_poll_that_fails_upstream_may_be_repeated(keeping) -> None:
    async with keeping() as world:
        where = await keep(world, world.readings(1))
        await result(world, where)
        world.fake.script(gets("Patient/"), before(503))
        answer = await world.request("GET", where)
        assert (answer.status, answer.body["issue"][0]["code"]) == (502, "transient")
        assert statuses(await result(world, where)) == [201]


# ---- spellings


SPELLINGS = {
    "%24cgm-submission-status/{id}": True,
    "/$cgm-submission-status/{id}": True,
    "$cgm-submission-status//{id}": True,
    "$cgm-submission-status/{id}/": True,
    "./$cgm-submission-status/{id}": True,
    "%2e/$cgm-submission-status/%2E/{id}": True,
    "x/../$cgm-submission-status/{id}": True,
    "x/%2e%2e/$cgm-submission-status/{id}": True,
    "$cgm-submission-status;v=1/{id};x=/y": False,
    "$cgm-submission-status;v=1/{id};x": True,
    "$cgm-submission-status/{id}?_pretty=true": True,
    "$cgm-submission-status%2f{id}": True,
    "$cgm-submission-status": False,
    "$cgm-submission-status/{id}/more": False,
    "Patient/$cgm-submission-status/{id}": False,
    "../$cgm-submission-status/{id}": False,
    "$CGM-submission-status/{id}": False,
}


async def test_spellings_of_the_path_that_servers_take_for_the_same_are_the_same(keeping) -> None:
    async with keeping() as world:
        where = await keep(world, world.readings(1))
        await result(world, where)
        for spelling, ours in SPELLINGS.items():
            before_ = len(world.fake.received(gets("")))
            target = f"/fhir/{spelling.format(id=where.rpartition('/')[2])}"
            answer = await raw(world.proxy.port, b"GET", target)
            assert (answer.startswith(b"HTTP/1.1 200") and b"201 Created" in answer) is ours, spelling
            seen = [asked.path for asked in world.fake.received(gets(""))[before_:]]
            assert (seen == [world.about]) is ours, spelling


async def test_the_url_is_below_the_public_base_wherever_the_upstreams_is(keeping) -> None:
    async with keeping(listen__public_url="https://fhir.example.org/public/r4") as world:
        answer = await world.request("POST", "../public/r4", world.readings(1), Prefer="respond-async")
        base, _, name = answer.headers["Content-Location"].rpartition("/")
        assert base == "https://fhir.example.org/public/r4/$cgm-submission-status"
        where = f"../public/r4/$cgm-submission-status/{name}"
        assert statuses(await result(world, where)) == [201]


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "OPTIONS"])
async def test_a_status_can_be_read_and_deleted_and_nothing_else(keeping, method: str) -> None:
    async with keeping() as world:
        where = await keep(world, world.readings(1))
        await result(world, where)
        seen = len(world.fake.seen)
        answer = await world.request(method, where, world.readings(2), X_HTTP_Method_Override="DELETE")
        assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD, DELETE")
        assert len(world.fake.seen) == seen
        assert statuses(await result(world, where)) == [201]


@pytest.mark.parametrize("name", ["x", "A" * 43, "%00", "a" * 1500, "%F0%9F%A9%B8", "%FF"])
@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_an_unknown_id_is_not_found(keeping, method: str, name: str) -> None:
    async with keeping() as world:
        answer = await raw(world.proxy.port, method.encode(), f"/fhir/$cgm-submission-status/{name}")
        assert answer.startswith(b"HTTP/1.1 404")
        assert b"async-unknown" in answer
        assert not world.fake.seen


# ---- deleting


async def test_deleting_stops_a_submission_in_progress(keeping) -> None:
    async with keeping(forward__chunk=2, forward__concurrency=1, jobs__at_once=1) as world:
        world.fake.script(transactions, gate := Gate())
        where = await keep(world, world.readings(8))
        waiting = await keep(world, world.readings(9))
        await gate.reached.wait()
        for one in (waiting, where):
            assert (await world.request("DELETE", one)).status == 202
            assert (await world.request("GET", one)).status == 404
            assert (await world.request("DELETE", one)).status == 404
        gate.opened.set()
        assert statuses(await result(world, await keep(world, world.readings(1)))) in ([200], [201])
        assert await world.count() <= 2
        assert await metric(world, "jobs_waiting") == 0
        assert set(now(await world.submit(world.readings(8)))) <= {200, 201}
        assert await world.count() == 8


@pytest.mark.parametrize("about", [transactions, searches("ServiceRequest")], ids=["storing", "finding orders"])
async def test_a_submission_that_its_submitter_deletes_is_counted_as_cancelled_and_not_as_failed(
    keeping, about, caplog
) -> None:
    caplog.set_level("INFO")
    async with keeping() as world:
        earlier = [await metric(world, "submissions_total", outcome=name) for name in ("cancelled", "failed")]
        world.fake.script(about, gate := Gate())
        where = await keep(world, world.readings(3))
        await gate.reached.wait()
        assert (await world.request("DELETE", where)).status == 202
        gate.opened.set()
        later = [await metric(world, "submissions_total", outcome=name) for name in ("cancelled", "failed")]
        assert later == [earlier[0] + 1, earlier[1]]
    lines = [record.fields for record in caplog.records if record.message == "submission"]
    assert [line["outcome"] for line in lines] == ["kept", "cancelled"]


# ---- what remains


async def test_credentials_and_body_are_removed_when_it_is_done_and_everything_when_it_is_deleted(
    keeping, jobs_path: Path
) -> None:
    async with keeping() as world:
        world.fake.script(transactions, gate := Gate())
        where = await keep(world, world.readings(300), Authorization=OWN)
        await gate.reached.wait()
        during = files(jobs_path)
        assert b"own-s3cr3t" in during
        assert b"valueQuantity" in during
        assert where.rpartition("/")[2].encode() not in during
        gate.opened.set()
        assert statuses(await result(world, where, Authorization=OWN)) == [201] * 300
        after = files(jobs_path)
        assert b"own-s3cr3t" not in after
        assert b"valueQuantity" not in after
        assert b"201 Created" in after
        assert (await world.request("DELETE", where)).status == 202
        over = files(jobs_path)
        assert b"201 Created" not in over
        assert world.about.encode() not in over


async def test_a_result_is_removed_when_it_expires(keeping, jobs_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(job_queue, "SWEEP_EVERY", 0.1)
    async with keeping(jobs__kept_seconds=1) as world:
        where = await keep(world, world.readings(1))
        answer = await result(world, where)
        assert 0 <= parsedate_to_datetime(answer.headers["Expires"]).timestamp() + 1 - time.time() <= 2
        gone = await polled(world, where, lambda answer: answer.status != 200)
        assert (gone.status, gone.rules) == (404, ["async-unknown"])
        await asyncio.sleep(0.3)
        assert world.about.encode() not in files(jobs_path)


async def test_the_oldest_results_are_removed_for_new_ones(keeping) -> None:
    async with keeping(jobs__kept_bytes=1500, jobs__at_once=1) as world:
        places = [await keep(world, world.readings(5)) for _ in range(3)]
        for where in reversed(places):
            await polled(world, where, lambda answer: answer.status != 202)
        found = [(await world.request("GET", where)).status for where in places]
        assert 404 in found
        assert found[-1] == 200
        assert await metric(world, "jobs_waiting") == 0
        assert found == sorted(found, reverse=True)


async def test_a_result_that_is_too_large_to_keep_is_reported(keeping) -> None:
    async with keeping(jobs__kept_bytes=1500) as world:
        answer = await result(world, await keep(world, world.readings(30)))
        assert (status(answer), rules(answer)) == (500, ["async-result-too-large"])
        assert now(await world.submit(world.readings(30))) == [200] * 30


async def test_a_large_result_is_sent_in_pieces_and_half_of_it_never_looks_complete(keeping, monkeypatch) -> None:
    async with keeping() as world:
        monkeypatch.setattr("cgm_proxy.jobs.sqlite_store.PIECE", 1000)
        where = await keep(world, world.readings(200))
        assert statuses(await result(world, where)) == [201] * 200
        assert statuses(await result(world, where, Accept=XML)) == [201] * 200
        pieces = world.proxy._jobs._store.piece
        monkeypatch.setattr(
            world.proxy._jobs._store, "piece", lambda key, place: pieces(key, place) if place < 3 else None
        )
        with pytest.raises(Exception, match=r"(?i)payload|disconnected|reset"):
            await world.request("GET", where, Accept=JSON)
        assert (await world.request("GET", where, Accept=XML)).status == 404


async def test_logs_and_metrics_contain_neither_the_patient_nor_the_url(keeping, caplog) -> None:
    caplog.set_level("DEBUG")
    async with keeping() as world:
        where = await keep(world, world.readings(1), Authorization=OWN, X_Request_ID="r1")
        await result(world, where)
        await world.request("DELETE", where)
        said = " ".join(f"{record.getMessage()} {getattr(record, 'fields', '')}" for record in caplog.records)
        said += await world.metrics()
        for secret in (where.rpartition("/")[2], world.about, "s3cr3t"):
            assert secret not in said
        assert "'request_id': 'r1', 'dialect': 'argo', 'outcome': 'stored'" in said
