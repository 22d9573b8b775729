"""A patient's turn among replicas: whom it is given to, how long it may be believed in, and what ends it."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

import pytest
from redis import Redis
from support import servers
from support.places import ROOT
from support.sharing import KEY, LENGTH, leases, replica, until

from cgm_proxy.cache.valkey_lease import BELIEVED, Lease, Leases


@pytest.fixture
async def old(valkey: servers.Running) -> servers.Running:
    """Give a Valkey that has known all leases for longer than one lasts."""
    async with leases(valkey.url) as mine, mine.acquire("another", 0):
        await asyncio.sleep(LENGTH)
    return valkey


async def test_one_has_the_turn_and_the_others_wait_for_it(old: servers.Running) -> None:
    said = []

    async def take(mine: Leases, name: str) -> None:
        async with mine.acquire(KEY, 5) as turn:
            said.append((name, turn.held))
            await asyncio.sleep(0.1)
            said.append((name, turn.held))

    async with leases(old.url) as one, leases(old.url) as other:
        await asyncio.gather(*(take(mine, str(number)) for number, mine in enumerate([one, other] * 3)))
    assert [held for _, held in said] == [True] * 12
    assert [name for name, _ in said[::2]] == [name for name, _ in said[1::2]]


async def test_a_turn_lasts_as_long_as_it_is_used(old: servers.Running) -> None:
    async with leases(old.url) as one, leases(old.url) as other, one.acquire(KEY, 0) as turn:
        for _ in range(20):
            await asyncio.sleep(LENGTH / 8)
            assert turn.held
            async with other.acquire(KEY, 0) as late:
                assert not late.held


async def test_who_waits_too_long_goes_on_without_the_turn(old: servers.Running) -> None:
    async with leases(old.url) as one, leases(old.url) as other, one.acquire(KEY, 0) as turn:
        started = monotonic()
        async with other.acquire(KEY, 0.3) as late:
            assert 0.3 <= monotonic() - started < 1
            assert not late.held
        assert turn.held


async def test_a_turn_that_is_over_is_held_no_more(old: servers.Running) -> None:
    async with leases(old.url) as one:
        async with one.acquire(KEY, 0) as turn:
            assert turn.held
        assert not turn.held
        with Redis.from_url(old.url) as raw:
            assert not raw.exists(KEY)


@pytest.mark.parametrize("how", [RuntimeError, asyncio.CancelledError])
async def test_a_turn_is_given_back_whatever_ends_it(old: servers.Running, how: type[BaseException]) -> None:
    async with leases(old.url) as one:
        with pytest.raises(how):
            async with one.acquire(KEY, 0):
                raise how
        async with one.acquire(KEY, 0) as again:
            assert again.held


async def test_a_turn_that_another_has_by_now_is_neither_renewed_nor_given_back(old: servers.Running) -> None:
    with Redis.from_url(old.url) as raw:
        async with leases(old.url) as one, one.acquire(KEY, 0) as turn:
            raw.set(KEY, "another's")
            await asyncio.sleep(LENGTH / 2)
            assert not turn.held
        assert raw.get(KEY) == b"another's"


async def test_a_turn_is_believed_in_for_less_than_it_lasts_while_valkey_is_away(old: servers.Running) -> None:
    with Redis.from_url(old.url) as raw:
        async with leases(old.url) as one, one.acquire(KEY, 0) as turn:
            old.process.send_signal(signal.SIGSTOP)
            try:
                assert turn.held
                await until(lambda: not turn.held)
            finally:
                old.process.send_signal(signal.SIGCONT)
        assert raw.ping()


#: Takes the turn, says so, and says whether it is held whenever asked.
HOLDER = f"""
import asyncio, sys
sys.path[:0] = {[str(ROOT), str(ROOT / "tests")]!r}
from support.sharing import KEY, leases
async def main():
    async with leases(sys.argv[1]) as mine, mine.acquire(KEY, 0) as turn:
        print(turn.held, flush=True)
        while await asyncio.to_thread(sys.stdin.readline):
            print(turn.held, flush=True)
asyncio.run(main())
"""


@contextmanager
def holder(url: str) -> Iterator[subprocess.Popen[str]]:
    """Run a process that has the turn."""
    command = [sys.executable, "-c", HOLDER, url]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "True\n"
        try:
            yield process
        finally:
            process.kill()


def believes(process: subprocess.Popen[str]) -> bool:
    """Ask a holder whether it has the turn."""
    process.stdin.write("?\n")
    process.stdin.flush()
    return process.stdout.readline() == "True\n"


async def test_a_holder_that_was_stopped_knows_that_its_turn_is_over(old: servers.Running) -> None:
    with holder(old.url) as stopped:
        assert believes(stopped)
        stopped.send_signal(signal.SIGSTOP)
        started = monotonic()
        async with leases(old.url) as mine, mine.acquire(KEY, 5) as turn:
            assert monotonic() - started < 2 * LENGTH
            assert turn.held
            stopped.send_signal(signal.SIGCONT)
            assert not believes(stopped)
            await asyncio.sleep(LENGTH / 2)
            assert not believes(stopped)
            assert turn.held


async def test_a_holder_that_was_killed_is_waited_for_no_longer_than_its_lease(old: servers.Running) -> None:
    with holder(old.url) as killed:
        killed.kill()
        started = monotonic()
        async with leases(old.url) as mine, mine.acquire(KEY, 5) as turn:
            assert monotonic() - started < 2 * LENGTH
            assert turn.held


def start_again(server: servers.Running, _: Redis) -> None:
    server.kill()
    server.start()


def flush(_: servers.Running, raw: Redis) -> None:
    raw.flushall()


@pytest.mark.parametrize("loss", [start_again, flush])
async def test_two_never_believe_in_one_turn_although_valkey_forgot_the_first(
    old: servers.Running, loss: Callable[[servers.Running, Redis], None]
) -> None:
    with Redis.from_url(old.url) as raw:
        async with leases(old.url) as one, leases(old.url) as other, one.acquire(KEY, 0) as first:
            loss(old, raw)
            both = []
            lost = asyncio.get_running_loop().time()
            async with other.acquire(KEY, 5) as second:
                while not second.held:
                    both.append(first.held and second.held)
                    await asyncio.sleep(0.01)
                assert asyncio.get_running_loop().time() - lost > LENGTH * BELIEVED
                assert not any(both)
                assert not first.held


async def test_a_clock_that_was_put_back_grants_nothing_early(old: servers.Running) -> None:
    with Redis.from_url(old.url) as raw:
        run = raw.get("cgm1:{0}:run").decode().partition(":")[0]
        raw.set("cgm1:{0}:run", f"{run}:{10**13}")
        async with leases(old.url) as one, one.acquire(KEY, 0) as turn:
            assert not turn.held
            await until(lambda: turn.held)


async def test_a_lease_of_nobody_is_not_held() -> None:
    assert not Lease().held


async def test_a_submission_has_its_turn_after_those_of_its_own_process(old: servers.Running) -> None:
    said = []

    async def take(number: int) -> None:
        async with one.patient_lock("Patient/1"):
            said.append(number)
            await asyncio.sleep(0.02)
            said.append(number)

    async with replica(old.url) as one:
        await asyncio.gather(*map(take, range(5)))
    assert said == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


async def test_a_turn_that_waits_does_not_keep_another_patient_waiting(old: servers.Running) -> None:
    async with (
        replica(old.url) as one,
        one.patient_lock("Patient/1"),
        asyncio.timeout(1),
        one.patient_lock("Patient/2"),
    ):
        pass
