"""A submission in parts: what leaves before all of it is judged, and that its parts are one submission all the same."""

import asyncio
import threading
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from support.fake_upstream import Gate, before, holding, searches, transactions
from support.proxying import World, counted, entry_rules, locations, proxying, statuses

from cgm_proxy.core.submission.judge import IncrementalJudge
from cgm_proxy.core.submission.model import Entry
from cgm_proxy.core.submission.verdicts import Verdict
from cgm_proxy.receiver import story
from cgm_proxy.sandbox.simulation.submissions import standing_orders


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut submissions into parts of 20 entries."""
    monkeypatch.setattr(story, "PART", 20)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Judge no part beyond the first 50 entries until the event is set, or 10 s are over."""
    let_go = threading.Event()
    judge = IncrementalJudge.judge

    def slow(self: IncrementalJudge, entries: Iterable[Entry], between: Callable[[], None]) -> list[Verdict]:
        listed = list(entries)
        if listed and listed[0].index > 50:
            assert let_go.wait(10), "nothing left before all was judged"
        return judge(self, listed, between)

    monkeypatch.setattr(IncrementalJudge, "judge", slow)
    return let_go


def conditional(bundle: dict[str, Any], start: int) -> dict[str, Any]:
    """Return the bundle; its entries from `start` get conditions of their own, which are looked up first."""
    for entry in bundle["entry"][start:]:
        entry["request"]["ifNoneExist"] = f"identifier=http://x.org|{entry['fullUrl']}"
    return bundle


async def until_sent(world: World) -> None:
    while not world.fake.received(transactions):  # noqa: ASYNC110 -- the fake has no event for it
        await asyncio.sleep(0.01)


async def test_the_first_chunk_leaves_while_later_entries_are_judged(held: threading.Event) -> None:
    async with proxying() as world:
        sending = asyncio.create_task(world.submit(world.readings(100, dialect="1.0.0", device=True), "1.0.0"))
        await asyncio.wait_for(until_sent(world), 8)
        held.set()
        assert counted(await sending) == {201: 101}
        assert await world.count() == 100


async def test_nothing_leaves_before_it_is_sure_that_the_orders_are_satisfied(held: threading.Event) -> None:
    async with proxying() as world:
        await world.put(standing_orders("argo", world.about)[0])
        sending = asyncio.create_task(world.submit(world.readings(100)))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(until_sent(world), 1)
        held.set()
        answer = await sending
        assert (answer.status, await world.count()) == (422, 0)


async def test_what_the_orders_want_may_come_last() -> None:
    async with proxying() as world:
        await world.put(standing_orders("argo", world.about)[0])
        bundle = world.readings(100, summary=True, pdf=True)
        bundle["entry"].reverse()
        assert counted(await world.submit(bundle)) == {201: 12, 422: 100}  # this order wants no readings


async def test_an_atomic_submission_is_one_part() -> None:
    async with proxying() as world:
        bundle = world.readings(100) | {"type": "transaction"}
        bundle["entry"][99]["resource"]["status"] = "none-such"
        assert (await world.submit(bundle)).status == 422
        assert not world.fake.received(transactions)


async def test_a_reading_that_repeats_one_of_another_part_is_sent_once_and_has_its_location() -> None:
    async with proxying() as world:
        bundle = world.readings(60)
        bundle["entry"] += [{**entry, "fullUrl": f"{entry['fullUrl'][:-4]}ffff"} for entry in bundle["entry"][:3]]
        answer = await world.submit(bundle)
        assert statuses(answer) == [201] * 60 + [200] * 3
        assert locations(answer)[60:] == locations(answer)[:3]
        sent = [entry for asked in world.fake.received(transactions) for entry in asked.json["entry"]]
        assert len(sent) == await world.count() == 60


async def test_a_part_whose_device_was_not_stored_is_not_sent() -> None:
    async with proxying() as world:
        world.fake.script(transactions, before(422, {"resourceType": "OperationOutcome", "issue": []}))
        answer = await world.submit(world.readings(100, dialect="1.0.0", device=True), "1.0.0")
        assert counted(answer) == {422: 1, 424: 100}
        assert await world.count() == 0


async def test_a_look_up_that_fails_before_anything_is_sent_refuses_the_whole() -> None:
    async with proxying() as world:
        world.fake.always(searches("Observation"), before(500))
        answer = await world.submit(conditional(world.readings(100), 0))
        assert answer.status == 502
        assert await world.count() == 0


async def test_a_look_up_that_fails_later_is_told_for_its_entries_and_the_others_are_stored() -> None:
    async with proxying() as world:
        world.fake.script(searches("Observation"), before(500))
        answer = await world.submit(conditional(world.readings(100), 90))
        assert counted(answer) == {201: 80, 503: 20}
        assert entry_rules(answer, 95) == ["fate-unknown", "upstream-answer"]
        assert await world.count() == 80


async def test_what_a_failed_look_up_kept_out_may_be_sent_again_where_too_often_is_refused() -> None:
    async with proxying(policies__too_often="reject") as world:
        await world.order()
        bundle = conditional(world.readings(100, summary=True, pdf=True), 108)
        world.fake.script(searches("Observation"), before(500))
        assert counted(await world.submit(bundle)).keys() == {201, 503}
        assert counted(await world.submit(bundle)).keys() == {200, 201}
        assert 'outcome="failed"' in await world.metrics()


async def test_a_twin_of_a_later_part_never_takes_the_place_of_an_entry_that_others_reference() -> None:
    """Also where the first part, with all that is referenced, is looked up slowly while the later one is ready."""
    async with proxying() as world:
        bundle = world.readings(40, summary=True)
        entries = bundle["entry"]
        summary = next(entry for entry in entries if "hasMember" in entry["resource"])
        member = next(e for e in entries if e["fullUrl"] == summary["resource"]["hasMember"][0]["reference"])
        summary["request"]["ifNoneExist"] = "identifier=http://x.org|summary"  # which is looked up first
        entries.append({**member, "fullUrl": "urn:uuid:00000000-0000-4000-8000-00000000ffff"})
        slow, slower = Gate(), Gate()
        world.fake.script(searches("Observation"), slow)
        world.fake.always(holding("0000ffff"), slower)  # never, as it should be
        sending = asyncio.create_task(world.submit(bundle))
        await asyncio.wait_for(slow.reached.wait(), 10)
        for gate in (slow, slower):
            await asyncio.sleep(0.5)  # what may go on does
            gate.opened.set()
        answer = await sending
        assert counted(answer) == {201: len(entries) - 1, 200: 1}
        assert locations(answer)[-1] == locations(answer)[entries.index(member)]
        (stored,) = [one for one in await world.stored() if "hasMember" in one]
        assert not [one for one in stored["hasMember"] if one["reference"].startswith("urn:")]
