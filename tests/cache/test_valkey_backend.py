"""What replicas share: two of them in one process, with a real Valkey (or Redis) between them."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from support import servers
from support.sharing import HERE, ONE, TWO, found, knows, replica

from cgm_proxy.cache import valkey_backend
from cgm_proxy.cache.cache import Cache, Orders
from cgm_proxy.core.submission.orders import FIRST, LAST, Schedule, StandingOrder
from cgm_proxy.core.submission.outcomes import Stored


@dataclass
class Two:
    """Two replicas, and a connection to what is between them."""

    one: Cache
    other: Cache
    raw: Redis

    def keys(self, pattern: str = "*") -> list[bytes]:
        return list(self.raw.scan_iter(pattern))


@pytest.fixture
async def two(valkey: servers.Running) -> AsyncIterator[Two]:
    raw = Redis.from_url(valkey.url)
    async with replica(valkey.url) as one, replica(valkey.url) as other:
        yield Two(one, other, raw)
    raw.close()


async def test_what_one_replica_remembers_another_knows(two: Two) -> None:
    await two.one.add_stored_entries(HERE, await two.one.generation())
    assert await found(two.other, [TWO, "none-such", ONE]) == HERE


async def test_more_than_one_question_holds_is_asked_in_parts(two: Two) -> None:
    many = {f"{number:036}": Stored(f"Observation/{number}") for number in range(2500)}
    await two.one.add_stored_entries(many, await two.one.generation())
    assert await found(two.other, [*many, "none-such"]) == many


async def test_what_is_remembered_expires(valkey: servers.Running) -> None:
    async with replica(valkey.url, known_seconds=0.3) as one:
        await one.add_stored_entries(HERE, await one.generation())
        assert await found(one, [ONE])
        await asyncio.sleep(0.4)
        assert await found(one, [ONE]) == {}


async def test_nothing_is_shared_that_is_not_to_be_remembered(valkey: servers.Running) -> None:
    async with replica(valkey.url, known_seconds=0) as one, replica(valkey.url) as other:
        await one.add_stored_entries(HERE, await one.generation())
        assert await found(other, [ONE]) == {}


async def test_proxies_of_different_upstreams_never_mix(valkey: servers.Running) -> None:
    async with replica(valkey.url) as one, replica(valkey.url, "http://hapi/fhir2") as other:
        await one.add_stored_entries(HERE, await one.generation())
        assert await found(other, [ONE]) == {}
        await other.invalidate_stored_entries()
        assert await found(one, [ONE])


#: Writes that pass through, and whether what is known of stored entries, and of orders, must be forgotten.
WRITES = [
    ("DELETE", ["fhir", "Observation", "7"], True, False),
    ("PUT", ["fhir", "Observation", "7"], True, False),
    ("POST", ["fhir", "Observation"], False, False),
    ("POST", ["fhir", "Observation", "_search"], False, False),
    ("POST", ["fhir", "$expunge"], True, True),
    ("POST", ["fhir", "ServiceRequest"], False, True),
    ("PUT", ["fhir", "Patient", "1"], False, True),
    ("PATCH", ["fhir", "Encounter", "1"], False, False),
]


@pytest.mark.parametrize(("method", "path", "known", "orders"), WRITES, ids=[f"{r[0]} {r[1][-1]}" for r in WRITES])
async def test_a_write_through_one_replica_is_noticed_by_all(
    two: Two, method: str, path: list[str], known: bool, orders: bool
) -> None:
    await two.other.add_stored_entries(HERE, await two.other.generation())
    await asked_for(two.other)
    async with two.one.invalidating_write(["POST", method], path):
        pass
    for memory in (two.one, two.other):
        assert bool(await found(memory, [ONE])) is not known
    assert await asked_for(two.other) is orders


async def asked_for(memory: Cache, patient: str = "Patient/1", credentials: str = "a", found: Orders = ()) -> bool:
    """Whether a patient's orders had to be asked for."""
    asked = []

    async def ask() -> Orders:
        asked.append(patient)
        return found

    assert await memory.orders(patient, credentials, ask) == found
    return bool(asked)


async def test_nothing_is_trusted_while_a_write_is_under_way(two: Two) -> None:
    await two.other.add_stored_entries(HERE, before := await two.other.generation())
    async with two.one.invalidating_write(["DELETE"], ["Observation", "7"]):
        during, nothing = await two.other.stored_entries([ONE])
        assert (during, nothing) == ("", {})
        await two.other.add_stored_entries(HERE, during)
        await two.other.add_stored_entries(HERE, before)
    assert await found(two.other, [ONE]) == {}


async def test_what_was_asked_before_a_write_is_not_read_after_it(two: Two) -> None:
    asked = await two.other.generation()
    async with two.one.invalidating_write(["DELETE"], ["Observation", "7"]):
        pass
    await two.other.add_stored_entries(HERE, asked)
    assert await found(two.other, [ONE]) == {}


async def test_overlapping_writes_end_when_the_last_one_ends(two: Two) -> None:
    async with two.one.invalidating_write(["DELETE"], ["Observation", "7"]):
        async with two.other.invalidating_write(["DELETE"], ["Observation", "8"]):
            pass
        assert await two.other.generation() == ""
    assert await two.other.generation()


async def test_a_write_that_died_with_its_replica_is_forgotten_in_the_end(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(valkey_backend, "WRITE_SECONDS", 1)
    await two.other.add_stored_entries(HERE, await two.other.generation())
    await two.one.invalidating_write(["DELETE"], ["Observation", "7"]).__aenter__()  # and never leaves
    assert await two.other.generation() == ""
    await asyncio.sleep(1.1)
    assert await found(two.other, [ONE]) == {}
    await two.other.add_stored_entries(HERE, await two.other.generation())
    assert await found(two.one, [ONE])


async def test_a_cancelled_write_is_forgotten_all_the_same(two: Two) -> None:
    async def write() -> None:
        async with two.one.invalidating_write(["DELETE"], ["Observation", "7"]):
            await asyncio.sleep(60)

    await two.other.add_stored_entries(HERE, await two.other.generation())
    writing = asyncio.create_task(write())
    await asyncio.sleep(0.1)
    assert await two.other.generation() == ""
    writing.cancel()
    await asyncio.wait([writing])
    assert await found(two.other, [ONE]) == {}


async def test_nothing_of_an_older_run_is_trusted_although_it_was_saved(tmp_path: Path) -> None:
    """A Valkey restored from a snapshot holds an epoch that was ended after the snapshot was taken."""
    with servers.valkey(tmp_path) as server:
        async with replica(server.url) as one:
            await one.add_stored_entries(HERE, await one.generation())
            with Redis.from_url(server.url) as raw:
                raw.save()
            await one.invalidate_stored_entries()
            server.kill()
            server.start()
            with Redis.from_url(server.url) as raw:
                assert raw.dbsize() >= 3
        async with replica(server.url) as another:
            assert await another.generation()
            assert not await knows(another)


#: What nobody wrote who knows the form of a value.
MALFORMED = [
    b"",
    b" ",
    b"\xff\xfe",
    b"nonsense",
    b"Observation/7\r\nSet-Cookie: a=b",
    b'Observation/7 W/"1"\r\nSet-Cookie: a=b',
    b"http://elsewhere.example/Observation/7",
    b"/Observation/7",
    b"Observation/../Patient/7",
    b"Observation/7?x=y",
    b"Observation/" + b"7" * 65,
    b"Observation/7 " + b"x" * 100_000,
    b'{"location":"Observation/7"}',
]


@pytest.mark.parametrize("value", MALFORMED, ids=[str(value[:24]) for value in MALFORMED])
async def test_a_location_that_looks_like_none_is_ignored(two: Two, value: bytes) -> None:
    await two.one.add_stored_entries(HERE, await two.one.generation())
    (key,) = two.keys(f"*{ONE}")
    two.raw.set(key, value)
    assert await found(two.other, [ONE, TWO]) == {TWO: HERE[TWO]}
    two.raw.delete(key)
    two.raw.lpush(key, value)
    assert await found(two.other, [ONE, TWO]) == {TWO: HERE[TWO]}


ORDERS = (
    StandingOrder("ServiceRequest/1", frozenset({"a", "b"}), ()),
    StandingOrder(
        "ServiceRequest/2",
        frozenset({"d"}),
        (
            Schedule(frozenset({"http://x/1"}), timedelta(days=30.4375), timedelta(microseconds=1)),
            Schedule(frozenset(), None, None, (FIRST, LAST)),
            Schedule(frozenset(), window=(datetime(2024, 5, 1, tzinfo=UTC), datetime(2024, 5, 2, 1, tzinfo=UTC))),
        ),
    ),
)


@pytest.mark.parametrize("orders", [None, (), ORDERS], ids=["no patient", "none", "two"])
async def test_orders_are_shared_as_they_were_read(two: Two, orders: Orders) -> None:
    assert await asked_for(two.one, found=orders)
    assert not await asked_for(two.other, found=orders)


async def test_orders_are_not_shared_between_credentials_or_patients(two: Two) -> None:
    assert await asked_for(two.one, "Patient/1", "a", ORDERS)
    assert await asked_for(two.other, "Patient/1", "b")
    assert await asked_for(two.other, "Patient/2", "a")
    assert not await asked_for(two.other, "Patient/1", "a", ORDERS)


def order(**schedule: Any) -> bytes:
    return json.dumps(
        [{"location": "ServiceRequest/1", "dialects": [], "schedules": [{"profiles": [], **schedule}]}]
    ).encode()


MALFORMED_ORDERS = [
    b"",
    b"{}",
    b"[null]",
    b"[" * 50_000,
    b'[{"location":7,"dialects":[],"schedules":[]}]',
    order(window=["2024-05-01T00:00:00", "2024-05-02T00:00:00"]),
    order(window=["2024-05-01T00:00:00Z"]),
    order(period="-P1D"),
    order(lookback="P999999D"),
    order(lookback="P99999999999999D"),
    order(profiles="all"),
]


@pytest.mark.parametrize("value", MALFORMED_ORDERS, ids=[str(value[:70]) for value in MALFORMED_ORDERS])
async def test_orders_that_look_like_none_are_asked_for(two: Two, value: bytes) -> None:
    await asked_for(two.one)
    (key,) = (key for key in two.keys("*:orders:*") if not key.endswith(b"epoch"))
    two.raw.set(key, value)
    assert await asked_for(two.other)


async def test_replicas_that_want_the_same_orders_ask_once(two: Two) -> None:
    asked = []

    async def ask() -> Orders:
        asked.append(1)
        await asyncio.sleep(0.3)
        return ORDERS

    found = await asyncio.gather(*(memory.orders("Patient/1", "a", ask) for memory in (two.one, two.other) * 4))
    assert found == [ORDERS] * 8
    assert len(asked) == 1


async def test_a_look_up_that_failed_is_done_again_by_who_waited_for_it(two: Two) -> None:
    async def fails() -> Orders:
        await asyncio.sleep(0.2)
        raise OSError

    failing = asyncio.create_task(two.one.orders("Patient/1", "a", fails))
    await asyncio.sleep(0.1)
    assert await asked_for(two.other)
    with pytest.raises(OSError, match=r"^$"):
        await failing


async def test_who_waits_too_long_for_anothers_look_up_asks_as_well(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cgm_proxy.cache.cache.ORDERS_LOCK_TIMEOUT", 0.2)
    answered = asyncio.Event()

    async def ask() -> Orders:
        await answered.wait()
        return ORDERS

    slow = asyncio.create_task(two.one.orders("Patient/1", "a", ask))
    await asyncio.sleep(0.1)
    assert await asked_for(two.other)
    answered.set()
    assert await slow == ORDERS


async def test_when_a_patient_last_submitted_is_shared(two: Two) -> None:
    now = datetime.now(UTC)
    assert await two.other.last_submission("Patient/1") is None
    await two.one.record_submission("Patient/1", now)
    assert await two.other.last_submission("Patient/1") == now
    assert await two.other.last_submission("Patient/2") is None
    assert await two.other.last_submission(None) is None


@pytest.mark.parametrize("value", [b"", b"soon", b"2024-05-01T00:00:00", b"\xff", b"9" * 100, b"soon x"])
async def test_a_last_submission_that_looks_like_none_is_ignored(two: Two, value: bytes) -> None:
    await two.one.record_submission("Patient/1", datetime.now(UTC))
    (key,) = (key for key in two.keys("*:submitted:*") if not key.endswith(b"epoch"))
    two.raw.set(key, value)
    assert await two.other.last_submission("Patient/1") is None


async def test_a_last_submission_is_never_later_than_now(two: Two) -> None:
    await two.one.record_submission("Patient/1", datetime(2999, 1, 1, tzinfo=UTC))
    last = await two.other.last_submission("Patient/1")
    assert last
    assert last <= datetime.now(UTC)


async def test_an_epoch_that_is_none_is_replaced(two: Two) -> None:
    await two.one.add_stored_entries(HERE, await two.one.generation())
    (key,) = two.keys("*:known:epoch")
    two.raw.set(key, b"nonsense")
    assert await found(two.other, [ONE]) == {}
    assert await two.other.generation() == await two.one.generation() != ""


async def test_who_reads_valkey_learns_nothing_of_patients_and_credentials(two: Two) -> None:
    await asked_for(two.one, "Patient/jane-doe", "Bearer s3cr3t", ORDERS)
    await two.one.record_submission("Patient/jane-doe", datetime.now(UTC))
    async with two.one.patient_lock("Patient/jane-doe"):
        keys = two.keys()
        held = b"".join(keys) + b"".join(filter(None, two.raw.mget(keys)))
    assert len(keys) >= 5
    assert b"jane" not in held
    assert b"s3cr3t" not in held
    assert all(key.startswith(b"cgm1:{") for key in keys)
