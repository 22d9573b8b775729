"""How much goes upstream at once: more while that costs it no time, half when it fails, and nobody is passed over."""

import asyncio
import math
from itertools import pairwise

import pytest

from cgm_proxy.observability.stream_stats import RECENT, StreamStats
from cgm_proxy.settings.loading import ForwardSettings
from cgm_proxy.upstream import pacing as pace_module
from cgm_proxy.upstream.pacing import FIRST, RateLimiter

SETTINGS = ForwardSettings(chunk=100, concurrency=8)


def at_once(pace: RateLimiter) -> int:
    """How many places there are."""
    return int(pace._limit)


async def test_it_begins_with_few_and_grows_to_what_is_set_while_that_costs_no_time() -> None:
    pace = RateLimiter(SETTINGS)
    assert (at_once(pace), pace.chunk) == (FIRST, 100)
    for _ in range(100):
        pace.stored(100, 0.1)
    assert at_once(pace) == 8


async def test_it_stays_where_more_at_once_only_makes_each_slower() -> None:
    pace = RateLimiter(SETTINGS)
    seen = []
    for _ in range(300):  # an upstream of two workers
        pace.stored(100, 0.1 * max(1, at_once(pace) / 2))
        seen.append(at_once(pace))
    assert set(seen[-100:]) <= {2, 3, 4}


async def test_an_upstream_that_got_slower_for_its_own_reasons_is_not_starved() -> None:
    pace = RateLimiter(SETTINGS)
    for _ in range(100):
        pace.stored(100, 0.1)
    for _ in range(200):
        pace.stored(100, 0.4)
    assert at_once(pace) == 8


async def test_small_transactions_tell_nothing_of_the_cost_of_an_entry() -> None:
    pace = RateLimiter(SETTINGS)
    for _ in range(50):
        pace.stored(1, 0.05)
    assert at_once(pace) == FIRST


async def test_failures_of_what_was_under_way_together_count_once_and_later_ones_again() -> None:
    pace = RateLimiter(SETTINGS)
    for _ in range(100):
        pace.stored(100, 0.1)
    began = asyncio.get_running_loop().time()
    await asyncio.sleep(0.001)
    for _ in range(5):
        pace.failed(began)
    assert (at_once(pace), pace.chunk) == (4, 50)
    for _ in range(5):
        await asyncio.sleep(0.001)
        pace.failed(asyncio.get_running_loop().time())
    assert (at_once(pace), pace.chunk) == (1, 10)
    for _ in range(100):
        pace.stored(pace.chunk, 0.001 * pace.chunk)
    assert (at_once(pace), pace.chunk) == (8, 100)


@pytest.mark.parametrize(("seconds", "chunk"), [(4, 100), (10, 50), (50, 10), (500, 10)])
async def test_a_transaction_that_takes_long_is_cut(seconds: float, chunk: int) -> None:
    pace = RateLimiter(SETTINGS)
    pace.stored(100, seconds)
    assert pace.chunk == chunk


async def test_a_chunk_that_is_set_lower_than_the_least_stays_as_set() -> None:
    pace = RateLimiter(ForwardSettings(chunk=3, concurrency=1))
    pace.failed(asyncio.get_running_loop().time())
    pace.stored(3, 0.1)
    assert (at_once(pace), pace.chunk) == (1, 3)


async def test_places_are_given_in_order_and_none_is_lost_with_those_who_give_up() -> None:
    pace = RateLimiter(ForwardSettings(chunk=100, concurrency=2))
    order: list[int] = []
    most = 0

    async def work(number: int) -> None:
        nonlocal most
        async with pace.place():
            order.append(number)
            most = max(most, pace._running)
            await asyncio.sleep(0.001)

    tasks = [asyncio.create_task(work(number)) for number in range(40)]
    await asyncio.sleep(0)
    for task in tasks[::3]:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert [number for number in order if number % 3] == [number for number in range(40) if number % 3]
    assert (most, pace._running) == (2, 0)
    async with asyncio.timeout(1), pace.place(), pace.place():
        pass


@pytest.mark.parametrize(("beside", "most"), [(0.5, 1), (1, 1), (3, 3), (20, 8)])
async def test_while_others_stream_through_fewer_are_under_way(beside: float, most: int) -> None:
    traffic = StreamStats()
    pace = RateLimiter(ForwardSettings(beside=beside), traffic)
    for _ in range(100):
        pace.stored(50, 0.1)
    assert pace._allowed == 8
    traffic.in_flight = 1  # a client that does not read its answer waits for nothing
    assert pace._allowed == 8
    traffic.count_response(200, 0.001)
    assert pace._allowed == most
    traffic.last_response -= RECENT
    assert pace._allowed == 8


async def test_a_share_below_one_is_one_with_pauses_as_long_as_others_stream_through(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    traffic = StreamStats(last_response=math.inf)
    pace = RateLimiter(ForwardSettings(beside=0.5), traffic)
    loop = asyncio.get_running_loop()

    async def work() -> tuple[float, float]:
        async with pace.place():
            began = loop.time()
            await asyncio.sleep(0.05)
            return began, loop.time()

    spans = sorted(await asyncio.gather(*(work() for _ in range(3))))
    assert all(later - ended >= 0.04 for (_, ended), (later, _) in pairwise(spans))
    monkeypatch.setattr(pace_module, "LONGEST_PAUSE", 0.01)
    spans = sorted(await asyncio.gather(*(work() for _ in range(3))))
    assert all(later - ended < 0.04 for (_, ended), (later, _) in pairwise(spans))
    traffic.last_response = -math.inf
    await asyncio.sleep(0.06)
    spans = await asyncio.gather(work(), work())
    assert spans[1][0] < spans[0][1]


async def test_who_waits_because_others_stream_goes_on_when_they_stop() -> None:
    """Also while one transaction hangs: nobody comes to wake those who wait."""
    traffic = StreamStats(last_response=math.inf)
    pace = RateLimiter(ForwardSettings(), traffic)
    async with pace.place():
        waiting = asyncio.ensure_future(pace.place().__aenter__())
        await asyncio.sleep(2 * RECENT)
        assert not waiting.done()
        traffic.last_response = -math.inf
        async with asyncio.timeout(1):
            await waiting


async def test_what_is_stored_while_others_stream_teaches_nothing_of_more_at_once() -> None:
    pace = RateLimiter(SETTINGS, StreamStats(last_response=math.inf))
    for _ in range(100):
        pace.stored(100, 0.1)
    assert at_once(pace) == FIRST
