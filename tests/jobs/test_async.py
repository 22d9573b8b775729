"""Submissions with `Prefer: respond-async`, as dialogues: what is accepted, what is refused, and what the result is."""

from pathlib import Path

import pytest
from support.client import JSON, XML
from support.fake_upstream import Gate, before, gets, transactions
from support.later import ASYNC, files, keep, result, rules, status, status_path, statuses, submission_entry
from support.proxying import OTHER, locations, metric, proxying
from support.proxying import statuses as now
from support.r4 import FHIR_XML

from cgm_proxy.core.codec.json_body import encode
from cgm_proxy.core.rest.capability_statement import EITHER
from cgm_proxy.jobs import job_queue
from cgm_proxy.sandbox.simulation.submissions import faulty_submission, submission

# ---- accepted


SUBMISSIONS = {
    "a tagged batch": ("argo", encode, {}),
    "a tagged batch of 0.1.0": ("0.1.0", encode, {}),
    "the operation": ("1.0.0", encode, {}),
    "the operation of the ballot": ("1.0.0-ballot", encode, {}),
    "XML": ("argo", FHIR_XML.to_xml, {"Content_Type": XML}),
}


@pytest.mark.parametrize(("dialect", "write", "headers"), SUBMISSIONS.values(), ids=SUBMISSIONS)
async def test_the_result_is_what_the_synchronous_response_would_have_been(
    keeping, dialect: str, write, headers
) -> None:
    async with keeping() as world:
        await world.order(dialect)
        bundle = submission(dialect, world.about, readings=5)
        first = await world.submit(write(bundle), dialect, **(ASYNC | headers))
        assert (first.status, first.headers["Preference-Applied"]) == (202, "respond-async")
        assert first.body["issue"][0]["severity"] == "information"
        assert first.headers["Content-Type"].startswith(headers.get("Content_Type", JSON))
        kept = await result(world, status_path(first))
        assert kept.headers["Content-Type"].startswith(headers.get("Content_Type", JSON))
        assert statuses(kept) == [201] * len(bundle["entry"])
        again = await world.submit(write(bundle), dialect, **headers)
        assert now(again) == [200] * len(bundle["entry"])
        inner = submission_entry(kept)["resource"]
        assert inner["type"] == again.body["type"]
        assert [entry["response"]["location"] for entry in inner["entry"]] == locations(again)
        assert await world.count() == sum(e["resource"]["resourceType"] == "Observation" for e in bundle["entry"])


async def test_the_poll_chooses_the_format(keeping) -> None:
    async with keeping() as world:
        path = await keep(world, world.readings(2), Accept=XML)
        for headers, expected in (
            ({}, XML),
            ({"Accept": "*/*"}, XML),
            ({"Accept": JSON}, JSON),
            ({"Accept": XML}, XML),
        ):
            answer = await result(world, path, **headers)
            assert answer.headers["Content-Type"].startswith(expected)
            assert statuses(answer) == [201, 201]
        assert (await world.request("GET", f"{path}?_format=json")).data.startswith(b"{")


@pytest.mark.parametrize("returned", ["representation", "OperationOutcome"])
async def test_respond_async_can_be_combined_with_return(keeping, returned: str) -> None:
    async with keeping() as world:
        path = await keep(world, world.readings(1), Prefer=f"respond-async, return={returned}")
        (entry,) = submission_entry(await result(world, path))["resource"]["entry"]
        if returned == "representation":
            assert entry["resource"]["resourceType"] == "Observation"
        else:
            assert entry["response"]["outcome"]["resourceType"] == "OperationOutcome"


async def test_the_result_of_a_single_resource_has_its_location(keeping) -> None:
    async with keeping(detection="content") as world:
        reading = world.readings(1)["entry"][0]["resource"]
        answer = await world.request("POST", "Observation", reading, **ASYNC)
        response = submission_entry(await result(world, status_path(answer)))["response"]
        assert response["status"] == "201 Created"
        assert "/fhir/Observation/" in response["location"]
        assert await world.count() == 1


async def test_without_a_file_the_response_is_synchronous() -> None:
    async with proxying() as world:
        assert now(await world.submit(world.readings(2), **ASYNC)) == [201, 201]
        assert EITHER not in (await world.request("GET", "metadata")).body["rest"][0]["operation"][-1].get(
            "extension", []
        )
        await world.request("GET", "$cgm-submission-status/x")
        assert world.fake.received(gets("$cgm-submission-status"))


async def test_the_capability_statement_declares_both_ways(keeping) -> None:
    async with keeping() as world:
        operations = (await world.request("GET", "metadata")).body["rest"][0]["operation"]
        assert [one["extension"] for one in operations if one["name"] == "submit-cgm-bundle"] == [[EITHER]]


# ---- refused


AT_ONCE = {
    "malformed": (lambda _: b'{"resourceType":', {}, 400, "json-malformed"),
    "a name twice": (lambda world: encode(world.readings(1))[:-1] + b',"type":"batch"}', {}, 400, "json-duplicate-key"),
    "another type": (lambda world: world.readings(1) | {"type": "collection"}, {}, 400, "bundle-type"),
    "no entries": (lambda world: world.readings(1) | {"entry": []}, {}, 400, "bundle-empty"),
    "too many": (lambda world: world.readings(7), {}, 413, "too-many-entries"),
    "too large": (lambda _: b" " * 40_000, {}, 413, "too-large"),
    "no FHIR": (lambda world: world.readings(1), {"Content_Type": "text/plain"}, 415, "content-type"),
    "files wanted": (lambda world: world.readings(1), {}, 400, "async-output-format"),
}


@pytest.mark.parametrize("case", AT_ONCE)
async def test_a_submission_that_is_faulty_as_a_whole_is_refused_at_once(keeping, jobs_path: Path, case: str) -> None:
    make_body, headers, expected, rule = AT_ONCE[case]
    async with keeping(limits__entries=6, limits__atomic_entries=6, limits__body_bytes=30_000) as world:
        query = "?_outputFormat=ndjson" if case == "files wanted" else ""
        answer = await world.request("POST", query, make_body(world), **(ASYNC | headers))
        assert (answer.status, answer.rules) == (expected, [rule])
        assert not world.fake.received(transactions)
        assert await metric(world, "jobs_waiting") == 0
        assert b"Observation" not in files(jobs_path)


async def test_an_unknown_patient_is_refused_at_once(keeping) -> None:
    async with keeping() as world:
        answer = await world.submit(submission("argo", "Patient/nobody", readings=1), **ASYNC)
        assert answer.status == 200
        assert {entry["response"]["status"][:3] for entry in answer.body["entry"]} == {"400"}


@pytest.mark.parametrize("status_code", [401, 403])
async def test_a_submitter_that_may_not_read_the_patient_is_refused_at_once(
    keeping, jobs_path: Path, status_code: int
) -> None:
    async with keeping() as world:
        world.fake.script(gets("Patient/"), before(status_code, WWW_Authenticate="Bearer"))
        answer = await world.submit(world.readings(1), **ASYNC)
        assert (answer.status, answer.headers["WWW-Authenticate"]) == (status_code, "Bearer")
        assert b"Observation" not in files(jobs_path)


async def test_the_result_of_a_refused_submission_has_its_outcome(keeping) -> None:
    async with keeping() as world:
        await world.order()
        transaction = world.readings(3) | {"type": "transaction"}
        transaction["entry"][1]["resource"]["valueQuantity"]["unit"] = "mg/dL"
        answer = await result(world, await keep(world, transaction))
        assert status(answer) == 422
        assert "cgm-sensor-reading-mass/value-unit" in rules(answer)
        assert await world.count() == 0
        partly = await result(world, await keep(world, faulty_submission("argo", world.about, OTHER)))
        assert statuses(partly)[-4:] == [422, 422, 403, 422]


# ---- in progress


async def test_a_poll_returns_the_progress_and_when_to_poll_again(keeping) -> None:
    async with keeping(jobs__at_once=1) as world:
        gate = Gate()
        world.fake.script(transactions, gate)
        first = await keep(world, world.readings(1))
        await gate.reached.wait()
        second, third = [await keep(world, world.readings(n)) for n in (2, 3)]
        polls = [await world.request("GET", path) for path in (first, second, third)]
        assert [poll.status for poll in polls] == [202] * 3
        assert [poll.headers["X-Progress"] for poll in polls] == [
            "in progress",
            "waiting, 1 before it",
            "waiting, 2 before it",
        ]
        assert [poll.headers["Retry-After"] for poll in polls] == ["2"] * 3
        assert {poll.headers["Cache-Control"] for poll in polls} == {"no-store"}
        assert await metric(world, "jobs_waiting") == 3
        gate.opened.set()
        assert [statuses(await result(world, path)) for path in (first, second, third)] == [
            [201],
            [200, 201],
            [200, 200, 201],
        ]
        assert await metric(world, "jobs_waiting") == 0
        assert await metric(world, "jobs_total", end="finished") >= 3


async def test_synchronous_submissions_do_not_wait_for_kept_ones(keeping) -> None:
    async with keeping(jobs__at_once=1, limits__in_flight=1) as world:
        world.fake.script(transactions, gate := Gate())
        path = await keep(world, world.readings(1))
        await gate.reached.wait()
        other = submission("argo", OTHER, readings=2, summary=False, pdf=False, device=False)
        assert now(await world.submit(other)) == [201, 201]
        gate.opened.set()
        assert statuses(await result(world, path)) == [201]


LIMITS = {"submissions": {"jobs__waiting": 1}, "bytes": {"jobs__waiting_bytes": 2000, "limits__body_bytes": 2000}}


@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS)
async def test_a_submission_over_the_limit_is_refused_and_nothing_of_it_is_kept(keeping, limits) -> None:
    async with keeping(**limits) as world:
        world.fake.script(transactions, gate := Gate())
        path = await keep(world, world.readings(1))
        await gate.reached.wait()
        full = await world.submit(world.readings(2), **ASYNC)
        assert (full.status, full.rules, full.headers["Retry-After"]) == (503, ["async-full"], "5")
        gate.opened.set()
        assert statuses(await result(world, path)) == [201]
        assert await world.count() == 1
        assert statuses(await result(world, await keep(world, world.readings(2)))) == [200, 201]


async def test_a_kept_submission_is_retried_while_the_upstream_fails(keeping, monkeypatch) -> None:
    monkeypatch.setattr(job_queue, "PAUSES", (0.05,))
    async with keeping(upstream__retries=0) as world:
        world.fake.script(transactions, *[before(503)] * 3)
        assert statuses(await result(world, await keep(world, world.readings(2)))) == [201, 201]
        assert len(world.fake.received(transactions)) == 4


async def test_a_lasting_failure_of_the_upstream_is_in_the_result(keeping) -> None:
    async with keeping(upstream__retries=0, jobs__patience=0) as world:
        world.fake.script(transactions, before(503))
        assert statuses(await result(world, await keep(world, world.readings(2)))) == [503, 503]
        assert statuses(await result(world, await keep(world, world.readings(2)))) == [201, 201]


async def test_an_internal_error_ends_one_submission_and_not_the_others(keeping, monkeypatch) -> None:
    async with keeping(jobs__at_once=1) as world:
        taken = world.proxy._receiver.receive

        async def broken(submission, *rest):
            if len(submission.entries) == 3:
                raise KeyError("a bug")
            return await taken(submission, *rest)

        monkeypatch.setattr(world.proxy._receiver, "receive", broken)
        paths = [await keep(world, world.readings(n)) for n in (3, 2)]
        answer = await result(world, paths[0])
        assert (status(answer), rules(answer)) == (500, ["async-failed"])
        assert statuses(await result(world, paths[1])) == [201, 201]


async def test_what_observe_mode_passes_through_is_sent_once_even_if_the_rest_fails(keeping) -> None:
    async with keeping(mode="observe", upstream__retries=0) as world:
        condition = {"resourceType": "Condition", "subject": {"reference": world.about}}
        bundle = world.readings(2)
        bundle["entry"].append({"resource": condition, "request": {"method": "POST", "url": "Condition"}})
        world.fake.script(transactions, before(503))
        kept = await result(world, await keep(world, bundle))
        assert statuses(kept) == [503, 503, 201]
        assert await world.count("Condition") == 1
