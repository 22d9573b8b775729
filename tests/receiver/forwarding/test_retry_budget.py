"""How often and how long one submission asks an upstream that fails."""

import asyncio

import pytest

from cgm_proxy.receiver.forwarding import retry_budget
from cgm_proxy.receiver.forwarding.retry_budget import FAILING_CHUNKS, RetryBudget


def now() -> float:
    return asyncio.get_running_loop().time()


async def test_failures_in_a_row_wear_it_out_and_a_success_restores_it() -> None:
    it = RetryBudget(retries=0, deadline=now() + 60)
    for _ in range(FAILING_CHUNKS - 1):
        it.failed(now(), 0)
    it.succeeded()
    for _ in range(FAILING_CHUNKS - 1):
        it.failed(now(), 0)
    assert not it.used_up
    it.failed(now(), 0)
    assert it.used_up
    assert it.pause == 0


async def test_what_was_under_way_together_fails_together() -> None:
    it, began = RetryBudget(retries=0, deadline=now() + 60), now()
    await asyncio.sleep(0.01)
    for _ in range(10 * FAILING_CHUNKS):
        it.failed(began, 0)
    assert not it.used_up


async def test_pauses_grow_with_failures_in_a_row_up_to_a_limit() -> None:
    it = RetryBudget(retries=20, deadline=now() + 3600)
    pauses = []
    for _ in range(12):
        it.failed(now(), 0)
        pauses.append(it.pause)
    assert retry_budget.FIRST_PAUSE / 3 < pauses[0] <= retry_budget.FIRST_PAUSE
    assert retry_budget.LONGEST_PAUSE / 3 < max(pauses) <= retry_budget.LONGEST_PAUSE
    assert pauses[3] > 3 * pauses[0]


@pytest.mark.parametrize(("wait", "over"), [(5, False), (61, True), (float("inf"), True)])
async def test_a_wait_is_heeded_within_the_submissions_time(wait: float, over: bool) -> None:
    it = RetryBudget(retries=4, deadline=now() + 60)
    it.failed(now(), wait)
    assert it.used_up is over
    assert it.pause == pytest.approx(0 if over else wait, abs=0.5)
