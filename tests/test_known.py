"""What is found stored already, and what is remembered: orders, stored entries, a submitter's own conditions."""

import asyncio
from typing import Any
from urllib.parse import quote

import pytest
from fake_upstream import Gate, before, changed, closed, gets, reset, searches, transactions
from proxying import OTHER, World, counted, locations, proxying, said, statuses

from cgm_proxy.sandbox.submissions import patient, standing_orders

SYSTEM = "http://x.org/a?b"


def observation(name: str, about: str, *values: str, system: str | None = SYSTEM) -> dict[str, Any]:
    given = {"system": system} if system else {}
    return {
        "resourceType": "Observation",
        "id": name,
        "status": "final",
        "code": {"coding": [{"system": "http://loinc.org", "code": "8867-4"}]},
        "subject": {"reference": about},
        "effectiveDateTime": "2024-05-01T10:00:00Z",
        "identifier": [{**given, "value": value} for value in values],
    }


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
            assert said(answer, 1) == [what]
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
        assert len([asked for asked in world.fake.of(searches("Observation")) if "x.org" in asked.body.decode()]) == 2
        assert await world.count() == 250


async def test_a_condition_that_many_entries_share_is_looked_up_once() -> None:
    async with proxying() as world:
        await with_stored(world)
        bundle = world.readings(20)
        for entry in bundle["entry"]:
            entry["request"]["ifNoneExist"] = f"{TWO}&status=final"
        assert counted(await world.submit(bundle)) == {412: 20}
        assert len(world.fake.of(searches("Observation"))) == 1


async def test_a_condition_is_looked_up_with_the_submitters_own_authority() -> None:
    async with proxying(upstream__token="service") as world:
        await with_stored(world)
        bundle = world.readings(2)
        bundle["entry"][0]["request"]["ifNoneExist"] = ONE
        bundle["entry"][1]["request"]["ifNoneExist"] = f"{ONE}&status=final"
        await world.submit(bundle, Authorization="Bearer mine")
        asked = world.fake.of(searches("Observation", "identifier"))
        assert [one.headers["Authorization"] for one in asked[:2]] == ["Bearer mine"] * 2


@pytest.mark.parametrize("status", [401, 403])
async def test_a_condition_that_may_not_be_looked_up_refuses_its_entry_alone(status: int) -> None:
    async with proxying() as world:
        world.fake.always(searches("Observation"), before(status))
        bundle = world.readings(3)
        bundle["entry"][1]["request"]["ifNoneExist"] = ONE
        answer = await world.submit(bundle)
        assert statuses(answer) == [201, status, 201]
        assert said(answer, 1) == ["condition-forbidden"]


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
        assert said(answer, 0) == ["identity-taken"]
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


# ---- what is remembered of stored entries

#: Writes through the proxy after which it can't know where anything is.
FORGETTING = [
    ("DELETE", "Observation/{id}", None),
    ("DELETE", "Observation?identifier={identity}", None),
    ("PUT", "Observation/{id}", "other"),
    ("POST", "", [{"method": "DELETE", "url": "Observation/{id}"}]),
    ("POST", "", [{"method": "DELETE", "url": "/Obs%65rvation/{id}"}]),
]


@pytest.mark.parametrize(("method", "path", "content"), FORGETTING, ids=[f"{row[0]} {row[1]}" for row in FORGETTING])
async def test_what_a_write_removed_is_stored_anew_when_sent_again(method: str, path: str, content: Any) -> None:
    async with proxying() as world:
        await world.submit(world.readings(1))
        (reading,) = await world.stored()
        names = {"id": reading["id"], "identity": reading["identifier"][-1]["value"]}
        if content == "other":
            content = observation(reading["id"], world.about, "x")
        elif content:
            entries = [{"request": {**request, "url": request["url"].format(**names)}} for request in content]
            content = {"resourceType": "Bundle", "type": "batch", "entry": entries}
        assert (await world.request(method, path.format(**names), content)).status == 200
        if "%65" in str(content):  # this store does not decode it, another one may
            await world.ask_store("DELETE", f"Observation/{reading['id']}")
        assert statuses(await world.submit(world.readings(1))) == [201]
        assert len([r for r in await world.stored() if "valueQuantity" in r]) == 1


async def test_what_was_found_while_it_was_deleted_is_not_remembered() -> None:
    async with proxying() as world:
        await world.submit(world.readings(40))
        doomed = (await world.stored())[0]["id"]
        await world.request("DELETE", "Observation/none-such")
        gate = Gate(late=True)
        world.fake.script(searches("Observation"), gate)
        sending = asyncio.create_task(world.submit(world.readings(40)))
        await gate.reached.wait()
        assert (await world.request("DELETE", f"Observation/{doomed}")).status == 200
        gate.opened.set()
        await sending
        assert counted(await world.submit(world.readings(40))) == {200: 39, 201: 1}
        assert await world.count() == 40


async def test_what_is_known_is_answered_without_asking_the_upstream_anything() -> None:
    async with proxying() as world:
        first = await world.submit(world.readings(50, device=True))
        world.fake.seen.clear()
        again = await world.submit(world.readings(50, device=True))
        assert world.fake.seen == []
        assert locations(again) == locations(first)


async def test_etags_and_locations_are_the_same_however_a_duplicate_is_found() -> None:
    async with proxying() as world:
        first = await world.submit(world.readings(40))
        by_memory = await world.submit(world.readings(40))
        await world.request("DELETE", "Observation/none-such")
        by_search = await world.submit(world.readings(40))
        await world.request("DELETE", "Observation/none-such")
        by_create = await world.submit(world.readings(5))
        for answer in (by_memory, by_search, by_create):
            for mine, firsts in zip(answer.body["entry"], first.body["entry"], strict=False):
                assert mine["response"]["location"] == firsts["response"]["location"]
                assert mine["response"]["etag"] == firsts["response"]["etag"]


# ---- what is remembered of orders

ORDERED = 422


async def is_ordered(world: World) -> bool:
    """Whether the proxy judges readings by an order that wants a summary."""
    answer = await world.submit(world.readings(1))
    return answer.status == ORDERED


def summary_order(world: World) -> dict[str, Any]:
    return standing_orders("argo", world.about)[0]


async def test_orders_are_asked_for_once_and_also_that_there_are_none() -> None:
    async with proxying() as world:
        for number in (1, 2, 3):
            assert statuses(await world.submit(world.readings(number)))
        assert len(world.fake.of(searches("ServiceRequest"))) == 1
        assert len(world.fake.of(gets(world.about))) == 1
        await world.put(summary_order(world))  # past the proxy
        assert not await is_ordered(world)


async def test_orders_are_asked_for_anew_when_they_are_not_to_be_remembered() -> None:
    async with proxying(cache__orders_seconds=0) as world:
        assert not await is_ordered(world)
        await world.put(summary_order(world))
        assert await is_ordered(world)


#: Writes of an order through the proxy, by what the store can do; what it can't is done past the proxy.
WRITES = [
    ("POST", "ServiceRequest", None),
    ("PUT", "ServiceRequest/{id}", None),
    ("PUT", "ServiceRequest?_id={id}", None),
    ("PATCH", "ServiceRequest/{id}", None),
    ("DELETE", "ServiceRequest/none-such", None),
    ("POST", "", {"method": "POST", "url": "ServiceRequest"}),
    ("POST", "", {"method": "PUT", "url": "ServiceRequest/{id}"}),
    ("POST", "", {"method": "POST", "url": ""}),
    ("POST", "$import", None),
]


@pytest.mark.parametrize(("method", "path", "entry"), WRITES, ids=[f"{row[0]} {row[1]} {row[2]}" for row in WRITES])
async def test_a_write_of_an_order_through_the_proxy_is_noticed_at_once(method: str, path: str, entry: Any) -> None:
    async with proxying() as world:
        assert not await is_ordered(world)
        order = summary_order(world)
        content: Any = order
        if entry:
            request = entry | {"url": entry["url"].format(id=order["id"])}
            content = {
                "resourceType": "Bundle",
                "type": "transaction",
                "entry": [{"resource": order, "request": request}],
            }
        answer = await world.request(method, path.format(id=order["id"]), content)
        if answer.status not in {200, 201} or method == "DELETE":
            await world.put(order)
        assert await is_ordered(world)


async def test_an_order_that_is_deleted_through_the_proxy_asks_for_nothing_any_more() -> None:
    async with proxying() as world:
        order = summary_order(world)
        await world.put(order)
        assert await is_ordered(world)
        await world.request("DELETE", f"ServiceRequest/{order['id']}")
        assert not await is_ordered(world)


async def test_a_search_for_orders_through_the_proxy_forgets_nothing() -> None:
    async with proxying() as world:
        assert not await is_ordered(world)
        await world.request(
            "POST", "ServiceRequest/_search", b"_id=x", Content_Type="application/x-www-form-urlencoded"
        )
        assert not await is_ordered(world)
        assert len([asked for asked in world.fake.of(searches("ServiceRequest")) if "subject" in asked.form]) == 1


@pytest.mark.parametrize("how", ["PUT", "batch"])
async def test_orders_read_while_one_is_written_are_not_remembered(how: str) -> None:
    async with proxying() as world:
        order, gate = summary_order(world), Gate()
        entry = {"resource": order, "request": {"method": "PUT", "url": f"ServiceRequest/{order['id']}"}}
        if how == "PUT":
            writing = world.request("PUT", f"ServiceRequest/{order['id']}", order)
        else:
            writing = world.request("POST", "", {"resourceType": "Bundle", "type": "batch", "entry": [entry]})
        world.fake.script(lambda asked: order["id"] in asked.body.decode(), gate)
        task = asyncio.create_task(writing)
        await gate.reached.wait()
        assert not await is_ordered(world)  # true for now, and remembered
        gate.opened.set()
        assert (await task).status in {200, 201}
        assert await is_ordered(world)


async def test_a_look_up_under_way_when_an_order_is_written_is_not_remembered() -> None:
    async with proxying() as world:
        order, gate = summary_order(world), Gate(late=True)
        world.fake.script(searches("ServiceRequest"), gate)
        sending = asyncio.create_task(world.submit(world.readings(1)))
        await gate.reached.wait()
        await world.request("PUT", f"ServiceRequest/{order['id']}", order)
        gate.opened.set()
        assert statuses(await sending) == [201]
        assert await is_ordered(world)


async def test_submissions_at_the_same_moment_share_one_look_up() -> None:
    async with proxying() as world:
        gate = Gate()
        world.fake.script(searches("ServiceRequest"), gate)
        sending = [asyncio.create_task(world.submit(world.readings(1))) for _ in range(5)]
        await gate.reached.wait()
        await asyncio.sleep(0.05)
        gate.opened.set()
        answers = await asyncio.gather(*sending)
        assert sorted(status for answer in answers for status in statuses(answer)) == [200, 200, 200, 200, 201]
        assert len(world.fake.of(searches("ServiceRequest"))) == 1
        assert len(world.fake.of(transactions)) == 1


async def test_a_look_up_that_failed_is_not_remembered() -> None:
    async with proxying() as world:
        world.fake.script(searches("ServiceRequest"), before(500))
        assert (await world.submit(world.readings(1))).status == 502
        assert statuses(await world.submit(world.readings(1))) == [201]


async def test_a_patient_who_was_unknown_is_known_once_created_through_the_proxy() -> None:
    async with proxying() as world:
        world.about = "Patient/newcomer"
        assert statuses(await world.submit(world.readings(1))) == [400]
        assert said(await world.submit(world.readings(1))) == ["subject-unknown"]
        assert len(world.fake.of(gets(world.about))) == 1
        await world.request("PUT", "Patient/newcomer", patient("newcomer"))
        assert statuses(await world.submit(world.readings(1))) == [201]


async def test_a_patient_who_was_deleted_is_unknown_again() -> None:
    async with proxying() as world:
        assert not await is_ordered(world)
        assert (await world.ask_store("DELETE", f"Observation/{(await world.stored())[0]['id']}")).status == 200
        assert (await world.request("DELETE", world.about)).status == 200
        assert statuses(await world.submit(world.readings(1))) == [400]


async def test_orders_are_not_shared_between_authorizations() -> None:
    async with proxying() as world:
        for authorization in ("Bearer a", "Bearer b", "Bearer a", "Bearer b"):
            await world.submit(world.readings(1), Authorization=authorization)
        asked = [one.headers["Authorization"] for one in world.fake.of(searches("ServiceRequest"))]
        assert asked == ["Bearer a", "Bearer b"]
        world.fake.always(gets("Patient/"), before(403))
        assert (await world.submit(world.readings(1), Authorization="Bearer c")).status == 403
        assert (await world.submit(world.readings(1))).status == 403
        assert statuses(await world.submit(world.readings(1), Authorization="Bearer a")) == [200]
