"""Submitters' own conditions (`ifNoneExist`) and identities as names: no entry is answered with another reading."""

from copy import deepcopy
from decimal import Decimal
from typing import Any

import pytest
from support.fake_upstream import searches
from support.proxying import World, counted, entry_rules, locations, proxying, statuses

CONDITION = "identifier=http://x.org|c"


def with_value(entry: dict[str, Any], value: str, number: int, condition: str | None = CONDITION) -> dict[str, Any]:
    """Return a copy of an entry with another value, and with or without a condition."""
    copy = deepcopy(entry)
    copy["fullUrl"] = f"urn:uuid:00000000-0000-4000-8000-{number:012}"
    copy["resource"]["valueQuantity"]["value"] = Decimal(value)
    copy["request"] = {"method": "POST", "url": "Observation"} | ({"ifNoneExist": condition} if condition else {})
    return copy


async def values(world: World) -> list[int]:
    return sorted(int(one["valueQuantity"]["value"]) for one in await world.stored())


async def value_at(world: World, location: str | None) -> int:
    answer = await world.ask_store("GET", str(location).partition("/_history/")[0])
    return int(answer.body["valueQuantity"]["value"])


@pytest.mark.parametrize("again", ["identifier=http://x.org|c", "Observation?identifier=http://x.org|c"])
async def test_an_equal_condition_does_not_make_entries_equal(again: str) -> None:
    async with proxying() as world:
        bundle = world.readings(1)
        (plain,) = bundle["entry"]
        bundle["entry"] = [
            with_value(plain, "100", 1),
            with_value(plain, "150", 2, again),
            with_value(plain, "150", 3, None),
        ]
        answer = await world.submit(bundle)
        assert statuses(answer) == [201, 200, 201]
        assert [await value_at(world, place) for place in locations(answer)] == [100, 150, 150]
        assert await values(world) == [100, 150]


@pytest.mark.parametrize("parts", [1, 2000])
async def test_a_condition_is_decided_by_what_the_store_holds_when_the_earlier_entry_is_stored(parts: int) -> None:
    """Where the earlier entry's resource fulfils the condition, FHIR answers the later entry with its location."""
    async with proxying() as world:
        bundle = world.readings(parts)
        plain = bundle["entry"][0]
        first, second = with_value(plain, "1000", 1), with_value(plain, "1500", 2)
        first["resource"]["identifier"] = [{"system": "http://x.org", "value": "c"}]
        bundle["entry"] = [first, *bundle["entry"][1:], second]
        answer = await world.submit(bundle)
        assert (statuses(answer)[0], statuses(answer)[-1]) == (201, 200)
        assert locations(answer)[-1] == locations(answer)[0]
        assert 1500 not in await values(world)


async def test_each_of_many_entries_with_one_condition_is_decided_by_itself() -> None:
    async with proxying() as world:
        bundle = world.readings(1)
        (plain,) = bundle["entry"]
        bundle["entry"] = [with_value(plain, str(100 + number), number) for number in range(6)]
        answer = await world.submit(bundle)
        assert statuses(answer) == [201] * 6
        assert await values(world) == [100, 101, 102, 103, 104, 105]
        assert counted(await world.submit(bundle)) == {200: 6}


async def test_what_references_a_postponed_entry_waits_for_it() -> None:
    async with proxying() as world:
        bundle = world.readings(3)
        plain, user = bundle["entry"][0], bundle["entry"][2]
        second = with_value(plain, "150", 2)
        user["resource"]["derivedFrom"] = [{"reference": second["fullUrl"]}]
        bundle["entry"] = [with_value(plain, "100", 1), second, user]
        answer = await world.submit(bundle)
        assert statuses(answer) == [201] * 3
        stored = await world.ask_store("GET", str(locations(answer)[2]).partition("/_history/")[0])
        (link,) = stored.body["derivedFrom"]
        assert link["reference"] == str(locations(answer)[1]).partition("/_history/")[0]


async def test_an_atomic_submission_with_a_repeated_condition_is_refused_whole() -> None:
    async with proxying() as world:
        bundle = world.readings(1) | {"type": "transaction"}
        (plain,) = bundle["entry"]
        bundle["entry"] = [with_value(plain, "100", 1), with_value(plain, "150", 2)]
        answer = await world.submit(bundle)
        assert (answer.status, answer.rules) == (422, ["condition-repeated"])
        assert answer.body["issue"][0]["expression"] == ["Bundle.entry[1].request.ifNoneExist"]
        assert await world.count() == 0


async def test_an_atomic_submission_with_a_forged_identity_is_refused_with_that_reason() -> None:
    async with proxying() as world:
        bundle = world.readings(2) | {"type": "transaction"}
        bundle["entry"][0]["fullUrl"] = "urn:uuid:0b0fb34f-4fd6-8e10-9d6e-0cf1a7ad2cb1"
        answer = await world.submit(bundle)
        assert (answer.status, answer.rules) == (422, ["identity-forged"])
        assert await world.count() == 0


@pytest.mark.parametrize("spelling", ["{}", "{}%20", "%20{}", "{}%09"])
async def test_white_space_in_a_condition_means_what_the_store_takes_it_for(spelling: str) -> None:
    """The same request straight to the store decides: what it finds is found, what it does not find is created."""
    async with proxying() as world:
        known = world.readings(1)["entry"][0]["resource"]
        known["identifier"] = [{"system": "http://x.org", "value": "c"}]
        known.pop("id", None)
        await world.ask_store("POST", "Observation", known)
        condition = f"identifier={spelling.format('http://x.org|c')}"
        found = await world.ask_store("GET", f"Observation?{condition}")
        bundle = world.readings(2)
        bundle["entry"][1]["request"]["ifNoneExist"] = condition
        expected = 200 if found.body.get("entry") else 201
        assert statuses(await world.submit(bundle))[1] == expected


@pytest.mark.parametrize("spelled", [str, str.upper])
async def test_a_full_url_may_not_be_the_identity_of_another_entry(spelled: Any) -> None:
    """References to that identity would lead to this entry."""
    async with proxying() as world:
        await world.submit(world.readings(1))
        ((identifier,),) = [resource["identifier"] for resource in await world.stored()]
        other = world.readings(3)
        other["entry"][2]["fullUrl"] = spelled(identifier["value"])
        answer = await world.submit(other)
        assert statuses(answer) == [200, 201, 422]
        assert entry_rules(answer, 2) == ["identity-forged"]


async def test_a_known_reading_is_shown_only_with_the_submitters_own_authority() -> None:
    """The service token may see what the submitter may not (a clinician's note on the reading, say)."""
    async with proxying(upstream__token="service", cache__known_seconds=0) as world:
        assert statuses(await world.submit(world.readings(40), Authorization="Bearer own"))[0] == 201
        before = len(world.fake.received(searches("Observation", "_id")))
        answer = await world.submit(world.readings(40), Authorization="Bearer own", Prefer="return=representation")
        assert counted(answer) == {200: 40}
        reads = world.fake.received(searches("Observation", "_id"))[before:]
        assert reads
        assert {read.headers["Authorization"] for read in reads} == {"Bearer own"}
