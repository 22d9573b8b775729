"""What is found stored already: by identity, and by a submitter's own conditions."""

import gc
from copy import deepcopy
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import pytest
from support.fake_upstream import before, changed, closed, reset, searches, silent
from support.proxying import OTHER, SYSTEM, World, counted, entry_rules, locations, observation, proxying, statuses


async def with_stored(world: World) -> None:
    """Store one reading that has the identifier `one` (twice), two that have `two`, and one without a system."""
    await world.put(observation("o1", world.about, "one", "one"))
    await world.put(observation("o2", world.about, "two"))
    await world.put(observation("o3", world.about, "two"))
    await world.put(observation("o4", world.about, "bare", system=None))


ONE = f"identifier={SYSTEM}|one"
TWO = f"identifier={SYSTEM}|two"
NONE = f"identifier={SYSTEM}|none"

#: What a submitter writes, the entry's status, and the resource that it is said to be or the rule that refuses it.
CONDITIONS: list[tuple[str, int, str | None]] = [
    (ONE, 200, "o1"),
    (f"?{ONE}", 200, "o1"),
    (f"Observation?{ONE}", 200, "o1"),
    (f"/Observation?{ONE}", 200, "o1"),
    (f"identifier={quote(SYSTEM + '|one', safe='')}", 200, "o1"),
    (f"identifier={SYSTEM}%7Cone", 200, "o1"),
    ("identifier=one", 200, "o1"),
    ("identifier=bare", 200, "o4"),
    (f"{ONE}&status=final", 200, "o1"),
    (f"status=final&{ONE}", 200, "o1"),
    (f"{ONE},{SYSTEM}|none", 200, "o1"),
    (f"{ONE}%2C{SYSTEM}|none", 200, "o1"),
    (f"{ONE}&{ONE}", 200, "o1"),
    (f"{ONE}&_count=0", 200, "o1"),
    (f"{ONE}&_summary=count", 200, "o1"),
    (f"{ONE}&_format=xml", 200, "o1"),
    (f"{ONE}&_include=Observation:subject", 200, "o1"),
    (f"{ONE}&_include:iterate=Observation:subject", 200, "o1"),
    (f"{ONE}&_elements=code", 200, "o1"),
    (f"{ONE}&_sort=date&_total=accurate", 200, "o1"),
    (f"{TWO}&_id=o2", 200, "o2"),
    (TWO, 412, "condition-ambiguous"),
    (f"Observation?{TWO}", 412, "condition-ambiguous"),
    (f"{TWO}&_count=1", 412, "condition-ambiguous"),
    ("identifier=two", 412, "condition-ambiguous"),
    (f"{ONE},{SYSTEM}|two", 412, "condition-ambiguous"),
    ("code=8867-4", 412, "condition-ambiguous"),
    (NONE, 201, None),
    (f"{ONE}&status=amended", 201, None),
    (f"{ONE}&{NONE}", 201, None),
    (f"{NONE}&{ONE}", 201, None),
    ("code=8867-4&date=ge2024-01-01&date=le2024-01-02", 201, None),
    ("identifier=http://y.org|one", 201, None),
    ("identifier=|one", 201, None),
    (f"identifier={SYSTEM}|ONE", 201, None),
    (f"identifier={SYSTEM}|one+two", 201, None),
    (f"identifier={SYSTEM}|one%00", 201, None),
    ("", 201, None),
    ("?", 400, "condition-invalid"),
    ("Observation", 400, "condition-invalid"),
    ("Observation?", 400, "condition-invalid"),
    ("identifier=", 400, "condition-invalid"),
    ("identifier=,", 400, "condition-invalid"),
    ("identifier=|", 400, "condition-invalid"),
    ("_count=1", 400, "condition-invalid"),
    ("_sort=date&_summary=count", 400, "condition-invalid"),
    (f"Patient?{ONE}", 400, "condition-invalid"),
    (f"http://evil.example/fhir/Patient?{ONE}", 400, "condition-invalid"),
    ("nonsense=1", 400, "condition-rejected"),
    (f"{ONE}&nonsense=1", 400, "condition-rejected"),
    (f"{ONE}\r\nX-Evil: 1", 201, None),
]


@pytest.mark.parametrize(("condition", "status", "what"), CONDITIONS, ids=[repr(row[0]) for row in CONDITIONS])
async def test_a_submitters_own_condition_is_honoured(condition: str, status: int, what: str | None) -> None:
    async with proxying() as world:
        await with_stored(world)
        bundle = world.readings(3)
        bundle["entry"][1]["request"]["ifNoneExist"] = condition
        answer = await world.submit(bundle)
        assert statuses(answer) == [201, status, 201]
        assert await world.count() == 4 + 2 + (status == 201)
        if status == 200:
            assert locations(answer)[1].startswith(f"Observation/{what}/_history/")
        elif what:
            assert entry_rules(answer, 1) == [what]
            assert answer.body["entry"][1]["response"]["outcome"]["issue"][0]["expression"] == [
                "Bundle.entry[1].request.ifNoneExist"
            ]


async def test_conditions_on_one_identifier_are_looked_up_together() -> None:
    async with proxying() as world:
        bundle = world.readings(250)
        for number, entry in enumerate(bundle["entry"]):
            entry["resource"]["identifier"] = [{"system": SYSTEM, "value": f"r{number}"}]
            entry["request"]["ifNoneExist"] = f"identifier={SYSTEM}|r{number}"
        assert counted(await world.submit(bundle)) == {201: 250}
        for entry in bundle["entry"]:  # the same readings by the condition, other ones by their identity
            entry["resource"]["valueQuantity"]["value"] += 1
        world.fake.seen.clear()
        assert counted(await world.submit(bundle)) == {200: 250}
        assert (
            len([asked for asked in world.fake.received(searches("Observation")) if "x.org" in asked.body.decode()])
            == 2
        )
        assert await world.count() == 250


async def test_a_condition_that_many_entries_share_is_looked_up_once() -> None:
    async with proxying() as world:
        await with_stored(world)
        bundle = world.readings(20)
        for entry in bundle["entry"]:
            entry["request"]["ifNoneExist"] = f"{TWO}&status=final"
        assert counted(await world.submit(bundle)) == {412: 20}
        assert len(world.fake.received(searches("Observation"))) == 1


async def test_a_condition_is_looked_up_with_the_submitters_own_authority() -> None:
    async with proxying(upstream__token="service") as world:
        await with_stored(world)
        bundle = world.readings(2)
        bundle["entry"][0]["request"]["ifNoneExist"] = ONE
        bundle["entry"][1]["request"]["ifNoneExist"] = f"{ONE}&status=final"
        await world.submit(bundle, Authorization="Bearer mine")
        asked = world.fake.received(searches("Observation", "identifier"))
        assert [one.headers["Authorization"] for one in asked[:2]] == ["Bearer mine"] * 2


@pytest.mark.parametrize("status", [401, 403])
async def test_a_condition_that_may_not_be_looked_up_refuses_its_entry_alone(status: int) -> None:
    async with proxying() as world:
        world.fake.always(searches("Observation"), before(status))
        bundle = world.readings(3)
        bundle["entry"][1]["request"]["ifNoneExist"] = ONE
        answer = await world.submit(bundle)
        assert statuses(answer) == [201, status, 201]
        assert entry_rules(answer, 1) == ["condition-forbidden"]


async def test_an_outcome_among_the_matches_is_no_match() -> None:
    note = {"resource": {"resourceType": "OperationOutcome", "issue": []}, "search": {"mode": "outcome"}}
    async with proxying() as world:
        world.fake.script(searches("Observation"), before(200, {"resourceType": "Bundle", "entry": [note]}))
        bundle = world.readings(1)
        bundle["entry"][0]["request"]["ifNoneExist"] = f"{ONE}&status=final"
        assert statuses(await world.submit(bundle)) == [201]


@pytest.mark.parametrize("status", [401, 403])
async def test_look_ups_that_are_not_allowed_do_not_stop_a_submission(status: int) -> None:
    async with proxying(cache__known_seconds=0) as world:
        await world.submit(world.readings(40))
        world.fake.always(searches("Observation"), before(status))
        assert counted(await world.submit(world.readings(40))) == {200: 40}
        assert await world.count() == 40


@pytest.mark.parametrize("status", [401, 403])
async def test_a_stored_device_that_may_not_be_read_does_not_stop_a_submission(status: int) -> None:
    async with proxying() as world:
        await world.put({"resourceType": "Device", "id": "d1", "serialNumber": "7"})
        world.fake.always(searches("Device"), before(status))
        bundle = world.readings(2)
        for entry in bundle["entry"]:
            entry["resource"]["device"] = {"reference": "Device/d1"}
        assert statuses(await world.submit(bundle)) == [201, 201]


async def test_a_look_up_that_fails_stops_the_submission_before_anything_is_stored() -> None:
    async with proxying() as world:
        world.fake.always(searches("Observation"), before(500))
        answer = await world.submit(world.readings(40))
        assert (answer.status, answer.rules) == (502, ["upstream-answer"])
        assert await world.count() == 0


@pytest.mark.parametrize("lost", [reset(committed=False), closed(committed=False)])
async def test_a_look_up_whose_connection_had_died_is_made_again(lost) -> None:
    async with proxying(cache__known_seconds=0) as world:
        await world.submit(world.readings(40))
        world.fake.script(searches("Observation"), lost)
        assert counted(await world.submit(world.readings(40))) == {200: 40}


async def test_look_ups_that_still_wait_when_the_time_is_over_leave_nothing_behind() -> None:
    async with proxying(limits__seconds=1, upstream__read_timeout=1, upstream__connect_timeout=1) as world:
        bundle = world.readings(900)
        for entry in bundle["entry"]:
            entry["request"]["ifNoneExist"] = f"identifier=http://x.org|{entry['fullUrl']}"
        world.fake.always(searches("Observation"), silent(committed=False))
        assert (await world.submit(bundle)).status == 504
        gc.collect()  # a coroutine that nobody awaited warns now


async def plant(world: World, about: str) -> dict[str, Any]:
    """Store a reading, and then make it another patient's, identity and all."""
    await world.submit(world.readings(1))
    (reading,) = await world.stored()
    await world.ask_store("DELETE", f"Observation/{reading['id']}")
    planted = {k: v for k, v in reading.items() if k not in {"id", "meta"}} | {"subject": {"reference": about}}
    assert (await world.ask_store("POST", "Observation", planted)).status == 201
    await world.request("DELETE", "Observation/none-such")  # what the proxy knew is forgotten
    return reading


@pytest.mark.parametrize("number", [1, 40])
async def test_another_patients_data_never_stands_in_a_readings_place(number: int) -> None:
    async with proxying() as world:
        await plant(world, OTHER)
        answer = await world.submit(world.readings(number))
        assert statuses(answer) == [409] + [201] * (number - 1)
        assert entry_rules(answer, 0) == ["identity-taken"]
        assert await world.count() == number - 1
        assert statuses(await world.submit(world.readings(number))) == [409] + [200] * (number - 1)


async def test_what_is_stored_about_nobody_or_by_an_absolute_reference_is_the_patients() -> None:
    async with proxying() as world:
        await plant(world, world.about)

        def absolute(page):
            subject = page["entry"][0]["resource"]["subject"]
            subject["reference"] = f"{world.fake.url}/{subject['reference']}/_history/1"
            return page

        world.fake.script(searches("Observation"), changed(absolute))
        assert statuses(await world.submit(world.readings(1))) == [200]


async def test_a_check_of_what_was_found_that_fails_leaves_the_entry_unknown() -> None:
    async with proxying(cache__known_seconds=0) as world:
        await world.submit(world.readings(2))
        world.fake.script(searches("Observation"), before(500))
        assert statuses(await world.submit(world.readings(3))) == [503, 503, 201]
        assert statuses(await world.submit(world.readings(3))) == [200, 200, 200]


async def test_two_entries_of_one_condition_are_stored_once_as_in_a_plain_bundle() -> None:
    async with proxying() as world:
        bundle = world.readings(3)
        for entry in bundle["entry"][:2]:
            entry["resource"]["identifier"] = [{"system": SYSTEM, "value": "same"}]
            entry["request"]["ifNoneExist"] = f"identifier={SYSTEM}|same"
        answer = await world.submit(bundle)
        assert statuses(answer) == [201, 200, 201]
        assert locations(answer)[1] == locations(answer)[0]
        assert await world.count() == 2


async def test_a_twin_without_a_condition_is_stored_although_the_others_condition_matches_something_else() -> None:
    async with proxying() as world:
        await world.put(observation("else", world.about, "else"))
        bundle = world.readings(1)
        bundle["entry"].append(deepcopy(bundle["entry"][0]) | {"fullUrl": f"urn:uuid:{uuid4()}"})
        bundle["entry"][0]["request"]["ifNoneExist"] = f"identifier={SYSTEM}|else"
        answer = await world.submit(bundle)
        assert statuses(answer) == [200, 201]
        assert str(locations(answer)[0]).startswith("Observation/else")
        assert await world.count() == 2
