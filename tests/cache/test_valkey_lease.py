"""The lease of a patient among replicas: who acquires it, how long its holder may rely on it, and what ends it."""

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

from cgm_proxy.cache.valkey_lease import TRUSTED_PART, Lease, Leases


@pytest.fixture
async def old(valkey: servers.Running) -> servers.Running:
    """Return a Valkey that has recorded leases for longer than one lasts."""
    async with leases(valkey.url) as own, own.acquire("another", 0):
        await asyncio.sleep(LENGTH)
    return valkey


async def test_one_process_holds_the_lease_and_the_others_wait_for_it(old: servers.Running) -> None:
    log = []

    async def hold(own: Leases, name: str) -> None:
        async with own.acquire(KEY, 5) as lease:
            log.append((name, lease.held))
            await asyncio.sleep(0.1)
            log.append((name, lease.held))

    async with leases(old.url) as one, leases(old.url) as other:
        await asyncio.gather(*(hold(own, str(number)) for number, own in enumerate([one, other] * 3)))
    assert [held for _, held in log] == [True] * 12
    assert [name for name, _ in log[::2]] == [name for name, _ in log[1::2]]


async def test_a_lease_lasts_as_long_as_it_is_used(old: servers.Running) -> None:
    async with leases(old.url) as one, leases(old.url) as other, one.acquire(KEY, 0) as lease:
        for _ in range(20):
            await asyncio.sleep(LENGTH / 8)
            assert lease.held
            async with other.acquire(KEY, 0) as late:
                assert not late.held


async def test_a_process_that_waited_too_long_continues_without_the_lease(old: servers.Running) -> None:
    async with leases(old.url) as one, leases(old.url) as other, one.acquire(KEY, 0) as lease:
        started = monotonic()
        async with other.acquire(KEY, 0.3) as late:
            assert 0.3 <= monotonic() - started < 1
            assert not late.held
        assert lease.held


async def test_a_released_lease_is_not_held(old: servers.Running) -> None:
    async with leases(old.url) as one:
        async with one.acquire(KEY, 0) as lease:
            assert lease.held
        assert not lease.held
        with Redis.from_url(old.url) as raw:
            assert not raw.exists(KEY)


@pytest.mark.parametrize("error", [RuntimeError, asyncio.CancelledError])
async def test_a_lease_is_released_whatever_ends_its_use(old: servers.Running, error: type[BaseException]) -> None:
    async with leases(old.url) as one:
        with pytest.raises(error):
            async with one.acquire(KEY, 0):
                raise error
        async with one.acquire(KEY, 0) as again:
            assert again.held


async def test_a_lease_that_another_process_holds_by_now_is_neither_renewed_nor_released(old: servers.Running) -> None:
    with Redis.from_url(old.url) as raw:
        async with leases(old.url) as one, one.acquire(KEY, 0) as lease:
            raw.set(KEY, "another's")
            await asyncio.sleep(LENGTH / 2)
            assert not lease.held
        assert raw.get(KEY) == b"another's"


async def test_while_valkey_is_away_a_lease_is_held_for_less_than_its_length(old: servers.Running) -> None:
    with Redis.from_url(old.url) as raw:
        async with leases(old.url) as one, one.acquire(KEY, 0) as lease:
            old.process.send_signal(signal.SIGSTOP)
            try:
                assert lease.held
                await until(lambda: not lease.held)
            finally:
                old.process.send_signal(signal.SIGCONT)
        assert raw.ping()


#: A program that acquires the lease, prints whether it is held, and prints that again for each line that it reads.
HOLDER = f"""
import asyncio, sys
sys.path[:0] = {[str(ROOT), str(ROOT / "tests")]!r}
from support.sharing import KEY, leases
async def main():
    async with leases(sys.argv[1]) as own, own.acquire(KEY, 0) as lease:
        print(lease.held, flush=True)
        while await asyncio.to_thread(sys.stdin.readline):
            print(lease.held, flush=True)
asyncio.run(main())
"""


@contextmanager
def holder(url: str) -> Iterator[subprocess.Popen[str]]:
    """Run a process that holds the lease."""
    command = [sys.executable, "-c", HOLDER, url]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "True\n"
        try:
            yield process
        finally:
            process.kill()


def holds(process: subprocess.Popen[str]) -> bool:
    """Ask a process whether it holds the lease."""
    process.stdin.write("?\n")
    process.stdin.flush()
    return process.stdout.readline() == "True\n"


async def test_a_holder_that_was_stopped_knows_that_its_lease_has_ended(old: servers.Running) -> None:
    with holder(old.url) as stopped:
        assert holds(stopped)
        stopped.send_signal(signal.SIGSTOP)
        started = monotonic()
        async with leases(old.url) as own, own.acquire(KEY, 5) as lease:
            assert monotonic() - started < 2 * LENGTH
            assert lease.held
            stopped.send_signal(signal.SIGCONT)
            assert not holds(stopped)
            await asyncio.sleep(LENGTH / 2)
            assert not holds(stopped)
            assert lease.held


async def test_the_lease_of_a_killed_holder_ends_in_time(old: servers.Running) -> None:
    with holder(old.url) as killed:
        killed.kill()
        started = monotonic()
        async with leases(old.url) as own, own.acquire(KEY, 5) as lease:
            assert monotonic() - started < 2 * LENGTH
            assert lease.held


def start_again(server: servers.Running, _: Redis) -> None:
    server.kill()
    server.start()


def flush(_: servers.Running, raw: Redis) -> None:
    raw.flushall()


@pytest.mark.parametrize("loss", [start_again, flush])
async def test_two_processes_never_hold_one_lease_even_if_valkey_lost_the_first(
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
                assert asyncio.get_running_loop().time() - lost > LENGTH * TRUSTED_PART
                assert not any(both)
                assert not first.held


async def test_a_clock_that_was_set_back_grants_no_lease_early(old: servers.Running) -> None:
    with Redis.from_url(old.url) as raw:
        run = raw.get("cgm1:{0}:run").decode().partition(":")[0]
        raw.set("cgm1:{0}:run", f"{run}:{10**13}")
        async with leases(old.url) as one, one.acquire(KEY, 0) as lease:
            assert not lease.held
            await until(lambda: lease.held)


async def test_a_new_lease_is_not_held() -> None:
    assert not Lease().held


async def test_submissions_of_one_process_hold_the_patients_lock_one_after_another(old: servers.Running) -> None:
    log = []

    async def hold(number: int) -> None:
        async with one.patient_lock("Patient/1"):
            log.append(number)
            await asyncio.sleep(0.02)
            log.append(number)

    async with replica(old.url) as one:
        await asyncio.gather(*map(hold, range(5)))
    assert log == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


async def test_one_patients_lock_does_not_block_another_patient(old: servers.Running) -> None:
    async with (
        replica(old.url) as one,
        one.patient_lock("Patient/1"),
        asyncio.timeout(1),
        one.patient_lock("Patient/2"),
    ):
        pass
