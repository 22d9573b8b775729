"""What settings make of a submission: detection by content, observing, and the policies on orders."""

from typing import Any

import pytest
from support.bad_input import ENTRIES, WHOLE, WRONG
from support.fake_upstream import after, batches, before, reset, searches, silent, transactions
from support.proxying import OTHER, World, counted, entry_rules, locations, metric, proxying, statuses, untagged

from cgm_proxy.core.codec.json_body import encode
from cgm_proxy.sandbox.simulation.submissions import patient, standing_orders, submission

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
        assert world.fake.received(transactions) == [] or kind == "transaction"


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
        assert {"subject-other"} <= set(entry_rules(answer, 1))
        assert {"allow-method", "allow-type"} <= set(entry_rules(answer, 2))
        assert "allow-method" in entry_rules(answer, 3)
        assert "entry-request" in entry_rules(answer, 4)
        assert await metric(world, "refusals_total", severity="warning") > before_
        (batch,) = world.fake.received(batches)
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
        assert "order-incomplete" in entry_rules(answer)


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


@pytest.mark.parametrize("act", [silent(committed=True), reset(committed=True), before(504)])
async def test_a_batch_that_is_not_answered_while_observing_leaves_its_entries_unknown(act) -> None:
    async with proxying(mode="observe", limits__seconds=3, upstream__read_timeout=3) as world:
        world.fake.script(batches, act)
        bundle = world.readings(2)
        bundle["entry"][1] |= {"request": {"method": "PUT", "url": "Observation/mine"}}
        answer = await world.submit(bundle)
        assert statuses(answer) == [201, 503]
        assert entry_rules(answer, 1)[0] == "fate-unknown"
        assert "look for it before" in answer.body["entry"][1]["response"]["outcome"]["issue"][0]["diagnostics"]


async def test_what_observing_would_let_through_and_never_sent_may_be_sent_again() -> None:
    async with proxying(mode="observe") as world:
        bundle = world.readings(1100)
        bundle["entry"][1050]["resource"]["code"] = {"text": "no reading"}
        for entry in bundle["entry"][1060:]:
            entry["request"]["ifNoneExist"] = f"identifier=http://x.org|{entry['fullUrl']}"
        world.fake.script(searches("Observation", "x.org"), before(500))
        answer = await world.submit(bundle)
        assert counted(answer) == {201: 1000, 503: 100}
        assert entry_rules(answer, 1050)[0] == "fate-unknown"
        assert not world.fake.received(batches)


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
    """Return the statuses of the entries, or the one of a refused request, and the rules of the issues."""
    answer = await world.submit(bundle, dialect)
    if answer.status != 200:
        return answer.status, answer.rules
    return statuses(answer), [rule for index in range(len(bundle["entry"])) for rule in entry_rules(answer, index)]


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


async def test_what_may_not_be_created_is_told_so_and_not_that_the_submission_lacks_it() -> None:
    async with proxying(policies__incomplete="reject") as world:
        await world.put(standing_orders("argo", world.about)[1])
        bundle = world.readings(1)
        bundle["entry"][0]["request"] = {"method": "PUT", "url": "Observation/1"}
        assert await outcome(world, bundle) == ([400], ["allow-method", "allow-url"])


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
            assert ("order-too-often" in entry_rules(answer)) == (policy == "warn")
            assert await world.count() > stored


async def test_a_submission_whose_answer_was_lost_is_not_too_often_when_it_is_sent_again() -> None:
    async with proxying(policies__too_often="reject") as world:
        await world.order()
        bundle = await whole(world)
        first = await world.submit(bundle)
        again = await world.submit(bundle)
        assert set(statuses(again)) == {200}
        assert locations(again) == locations(first)
        assert (await world.submit(await whole(world, 4))).status == 429
        assert set(statuses(await world.submit(bundle))) == {200}


async def test_what_was_told_to_be_sent_again_is_not_too_often() -> None:
    async with proxying(policies__too_often="reject", upstream__retries=0, forward__chunk=10) as world:
        await world.order()
        world.fake.script(transactions, before(503))
        bundle = await whole(world)
        assert 503 in statuses(await world.submit(bundle))
        again = await world.submit(bundle)
        assert again.status == 200
        assert set(statuses(again)) <= {200, 201}
