"""What is remembered saves work and never lies: one look-up for all, forgotten when something was written."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from cachetools import TTLCache

from cgm_proxy import memory
from cgm_proxy.core.orders import StandingOrder
from cgm_proxy.core.plan import Stored
from cgm_proxy.memory import Memory, Orders
from cgm_proxy.settings import Cache

ORDERS = (StandingOrder("ServiceRequest/o", frozenset({"argo"}), ()),)
OTHERS = (StandingOrder("ServiceRequest/p", frozenset({"argo"}), ()),)


class Clock:
    """A timer that is set by hand; it may run on at each look."""

    def __init__(self) -> None:
        self.now = 0.0
        self.step = 0.0

    def __call__(self) -> float:
        self.now += self.step
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()

    def cache(maxsize: int, ttl: float) -> TTLCache[Any, Any]:
        return TTLCache(maxsize, ttl, timer=made)

    monkeypatch.setattr(memory, "TTLCache", cache)
    return made


class Upstream:
    """Look-ups that are counted, and wait until they may answer."""

    def __init__(self, found: Orders | Exception = ORDERS) -> None:
        self.found = found
        self.asked = 0
        self.open = asyncio.Event()
        self.open.set()

    async def __call__(self) -> Orders:
        self.asked += 1
        found = self.found
        await self.open.wait()
        if isinstance(found, Exception):
            raise found
        return found


def waiting(known: Memory, upstream: Upstream, patient: str = "Patient/1", token: str = "") -> asyncio.Task[Orders]:
    return asyncio.ensure_future(known.orders(patient, token, upstream))


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.mark.parametrize("found", [ORDERS, (), None], ids=["orders", "no orders", "no patient"])
async def test_what_was_found_is_remembered_also_that_there_is_nothing(found: Orders) -> None:
    known, upstream = Memory(Cache()), Upstream(found)
    assert [await waiting(known, upstream) for _ in range(3)] == [found] * 3
    assert upstream.asked == 1


async def test_a_hundred_who_want_the_same_orders_ask_once() -> None:
    known, upstream = Memory(Cache()), Upstream()
    upstream.open.clear()
    asking = [waiting(known, upstream) for _ in range(100)]
    await settle()
    upstream.open.set()
    assert await asyncio.gather(*asking) == [ORDERS] * 100
    assert upstream.asked == 1


async def test_another_patient_or_another_authorization_is_asked_for_by_itself() -> None:
    known, upstream = Memory(Cache()), Upstream()
    for patient, token in (("Patient/1", ""), ("Patient/12", ""), ("Patient/1", "Bearer a"), ("Patient/1", "Bearer b")):
        await waiting(known, upstream, patient, token)
    assert upstream.asked == 4


async def test_a_failure_is_raised_to_all_who_wait_and_not_remembered() -> None:
    known, upstream = Memory(Cache()), Upstream(OSError("down"))
    upstream.open.clear()
    asking = [waiting(known, upstream) for _ in range(10)]
    await settle()
    upstream.open.set()
    assert [type(found) for found in await asyncio.gather(*asking, return_exceptions=True)] == [OSError] * 10
    upstream.found = ORDERS
    assert await waiting(known, upstream) == ORDERS
    assert upstream.asked == 2


async def test_one_who_gives_up_does_not_disturb_the_others() -> None:
    known, upstream = Memory(Cache()), Upstream()
    upstream.open.clear()
    first, second = waiting(known, upstream), waiting(known, upstream)
    await settle()
    first.cancel()
    await settle()
    upstream.open.set()
    assert await second == ORDERS
    assert await waiting(known, upstream) == ORDERS
    assert upstream.asked == 1


async def test_a_write_during_a_look_up_keeps_its_answer_from_being_remembered() -> None:
    known, upstream = Memory(Cache()), Upstream(())
    upstream.open.clear()
    early = waiting(known, upstream)
    await settle()
    known.forget_orders()
    upstream.found = ORDERS
    late = waiting(known, upstream)
    await settle()
    upstream.open.set()
    assert (await early, await late) == ((), ORDERS)
    assert await waiting(known, upstream) == ORDERS
    assert upstream.asked == 2


async def test_writes_before_and_during_a_look_up_that_has_just_begun_are_noticed() -> None:
    known, upstream = Memory(Cache()), Upstream(())
    upstream.open.clear()
    early = waiting(known, upstream)
    await asyncio.sleep(0)  # the task that asks is made, and has not begun
    known.forget_orders()
    await settle()
    known.forget_orders()
    upstream.found = ORDERS
    upstream.open.set()
    await early
    assert await waiting(known, upstream) == ORDERS


async def test_what_is_remembered_expires(clock: Clock) -> None:
    known, upstream = Memory(Cache(orders_seconds=300, known_seconds=3600)), Upstream()
    known.remember({"a": Stored("Observation/1")}, known.writes)
    await waiting(known, upstream)
    clock.now = 299
    await waiting(known, upstream)
    assert upstream.asked == 1
    clock.now = 300
    await waiting(known, upstream)
    assert upstream.asked == 2
    clock.now = 3599
    assert known.known(["a"]) == {"a": Stored("Observation/1")}
    clock.now = 3600
    assert known.known(["a"]) == {}


async def test_what_expires_while_it_is_looked_up_is_asked_for_again(clock: Clock) -> None:
    known, upstream = Memory(Cache(orders_seconds=10, known_seconds=10)), Upstream()
    for start in range(20):
        clock.step, clock.now = 0, 0
        known.remember({str(number): Stored("Observation/1") for number in range(10)}, known.writes)
        await waiting(known, upstream)
        clock.now, clock.step = start / 2, 1
        assert await waiting(known, upstream) == ORDERS
        assert known.known(map(str, range(10))).keys() <= set(map(str, range(10)))
        known.forget_orders()


async def test_no_time_means_no_memory() -> None:
    known, upstream = Memory(Cache(orders_seconds=0, known_seconds=0)), Upstream()
    known.remember({"a": Stored("Observation/1")}, known.writes)
    assert known.known(["a"]) == {}
    await waiting(known, upstream)
    await waiting(known, upstream)
    assert upstream.asked == 2


def test_memory_is_bounded() -> None:
    known = Memory(Cache(known=10))
    known.remember({str(number): Stored("Observation/1") for number in range(100)}, known.writes)
    assert len(known.known(map(str, range(100)))) == 10


#: Writes that pass through, and whether they may change orders or the locations of entries.
WRITES = [
    ("POST", "ServiceRequest", True, False),
    ("PUT", "ServiceRequest/1", True, False),
    ("PATCH", "ServiceRequest/1", True, False),
    ("DELETE", "ServiceRequest", True, True),
    ("POST", "ServiceRequest/_search", False, False),
    ("POST", "Observation/_search", False, False),
    ("POST", "Patient", True, False),
    ("DELETE", "Patient/1", True, True),
    ("POST", "Observation", False, False),
    ("PUT", "Observation/1", False, True),
    ("DELETE", "Observation/1", False, True),
    ("DELETE", "DiagnosticReport", False, True),
    ("PATCH", "Device/1", False, True),
    ("PUT", "Medication/1", False, False),
    ("DELETE", "Encounter/1", False, True),  # some servers delete with it what refers to it
    ("POST", "$expunge", True, True),
    ("POST", "Patient/$merge", True, True),
    ("POST", "Observation/1/$meta-delete", True, True),
    ("POST", "ServiceRequest/1/$meta-add", True, True),
]


def by_request(known: Memory, method: str, path: str) -> None:
    known.notice_write(method, ["fhir", *path.split("/")])


def by_bundle(known: Memory, method: str, path: str) -> None:
    entries = [None, {"request": {"method": "GET", "url": path}}, {"request": {"method": method, "url": f"{path}?x=y"}}]
    known.notice_bundle({"resourceType": "Bundle", "entry": entries})


@pytest.mark.parametrize("way", [by_request, by_bundle])
@pytest.mark.parametrize(("method", "path", "orders", "entries"), WRITES)
async def test_a_write_that_passes_through_forgets_what_it_may_have_changed(
    way: Callable[[Memory, str, str], None], method: str, path: str, orders: bool, entries: bool
) -> None:
    known, upstream = Memory(Cache()), Upstream()
    known.remember({"a": Stored("Observation/1")}, known.writes)
    await waiting(known, upstream)
    upstream.found = OTHERS
    way(known, method, path)
    assert (await waiting(known, upstream) == OTHERS) == orders
    assert (known.known(["a"]) == {}) == entries


@pytest.mark.parametrize("entries", [None, 5, "x", {}, [], [None, 5, "x", [], {}], [{"request": 5}]])
def test_a_bundle_of_wrong_types_changes_nothing(entries: Any) -> None:
    known = Memory(Cache())
    known.remember({"a": Stored("Observation/1")}, known.writes)
    wrong: list[Any] = [None, 5, [], {}, ["Observation/1"]]
    known.notice_bundle({"entry": entries})
    known.notice_bundle({"entry": [{"request": {"method": "POST", "url": url}, "resource": url} for url in wrong]})
    assert known.known(["a"])
    known.notice_bundle({"entry": [{"request": {"method": method, "url": "Observation/1"}} for method in wrong]})
    assert not known.known(["a"])


@pytest.mark.parametrize("url", ["/ServiceRequest", "ServiceRequest/", "%53erviceRequest", "Basic", None, 5])
async def test_a_create_in_a_bundle_is_noticed_by_the_resources_type_however_its_url_is_written(url: Any) -> None:
    known, upstream = Memory(Cache()), Upstream()
    await waiting(known, upstream)
    upstream.found = OTHERS
    created = {"request": {"method": "POST", "url": url}, "resource": {"resourceType": "ServiceRequest"}}
    known.notice_bundle({"entry": [created]})
    assert await waiting(known, upstream) == OTHERS


def test_what_was_found_before_a_write_is_not_remembered_after_it() -> None:
    known = Memory(Cache())
    before = known.writes
    known.notice_write("DELETE", ["fhir", "Observation", "1"])
    known.remember({"a": Stored("Observation/1")}, before)
    assert known.known(["a"]) == {}
