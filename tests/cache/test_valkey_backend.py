"""The shared cache: two replicas in one process, with a real Valkey (or Redis) between them."""

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
from support.sharing import ONE, STORED, TWO, finds_stored, found, replica

from cgm_proxy.cache import valkey_backend
from cgm_proxy.cache.cache import Cache, Orders
from cgm_proxy.cache.writes import affected_by_write
from cgm_proxy.core.submission.orders import FIRST, LAST, Schedule, StandingOrder
from cgm_proxy.core.submission.outcomes import Stored


@dataclass
class Two:
    """The caches of two replicas, and a connection to the Valkey that they share."""

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


async def test_a_replica_reads_what_another_wrote(two: Two) -> None:
    await two.one.add_stored_entries(STORED, await two.one.generation())
    assert await found(two.other, [TWO, "none-such", ONE]) == STORED


async def test_more_values_than_one_call_holds_take_several_calls(two: Two) -> None:
    many = {f"{number:036}": Stored(f"Observation/{number}") for number in range(2500)}
    await two.one.add_stored_entries(many, await two.one.generation())
    assert await found(two.other, [*many, "none-such"]) == many


async def test_values_expire(valkey: servers.Running) -> None:
    async with replica(valkey.url, known_seconds=0.3) as one:
        await one.add_stored_entries(STORED, await one.generation())
        assert await found(one, [ONE])
        await asyncio.sleep(0.4)
        assert await found(one, [ONE]) == {}


async def test_nothing_is_shared_if_caching_is_switched_off(valkey: servers.Running) -> None:
    async with replica(valkey.url, known_seconds=0) as one, replica(valkey.url) as other:
        await one.add_stored_entries(STORED, await one.generation())
        assert await found(other, [ONE]) == {}


async def test_proxies_of_different_upstreams_never_mix(valkey: servers.Running) -> None:
    async with replica(valkey.url) as one, replica(valkey.url, "http://hapi/fhir2") as other:
        await one.add_stored_entries(STORED, await one.generation())
        assert await found(other, [ONE]) == {}
        await other.invalidate_stored_entries()
        assert await found(one, [ONE])


#: Streamed writes, and whether they invalidate stored entries and orders.
WRITES = [
    ("DELETE", ["fhir", "Observation", "7"], True, True),
    ("DELETE", ["fhir", "Practitioner", "7"], True, True),
    ("PUT", ["fhir", "Observation", "7"], True, False),
    ("POST", ["fhir", "Observation"], False, False),
    ("POST", ["fhir", "Observation", "_search"], False, False),
    ("PATCH", ["fhir", "Observation", "1", "_search"], True, False),
    ("put", ["fhir", "observation", "7"], True, False),
    ("POST", ["fhir", "$expunge"], True, True),
    ("POST", ["fhir", "ServiceRequest"], False, True),
    ("PUT", ["fhir", "Patient", "1"], False, True),
    ("PATCH", ["fhir", "Encounter", "1"], False, False),
]


@pytest.mark.parametrize(("method", "path", "known", "orders"), WRITES, ids=[f"{r[0]} {r[1][-1]}" for r in WRITES])
async def test_a_write_through_one_replica_invalidates_the_cache_of_all(
    two: Two, method: str, path: list[str], known: bool, orders: bool
) -> None:
    await two.other.add_stored_entries(STORED, await two.other.generation())
    await looked_up(two.other)
    async with two.one.invalidating(affected_by_write(["POST", method], path)):
        pass
    for cache in (two.one, two.other):
        assert bool(await found(cache, [ONE])) is not known
    assert await looked_up(two.other) is orders


async def looked_up(cache: Cache, patient: str = "Patient/1", credentials: str = "a", orders: Orders = ()) -> bool:
    """Whether a patient's orders were not cached and had to be looked up."""
    look_ups = []

    async def look_up() -> Orders:
        look_ups.append(patient)
        return orders

    assert await cache.orders(patient, credentials, look_up) == orders
    return bool(look_ups)


async def test_nothing_is_cached_while_a_write_is_in_flight(two: Two) -> None:
    await two.other.add_stored_entries(STORED, before := await two.other.generation())
    async with two.one.invalidating(affected_by_write(["DELETE"], ["Observation", "7"])):
        during, stored = await two.other.stored_entries([ONE])
        assert (during, stored) == ("", {})
        await two.other.add_stored_entries(STORED, during)
        await two.other.add_stored_entries(STORED, before)
    assert await found(two.other, [ONE]) == {}


async def test_a_generation_read_before_a_write_stores_nothing_after_it(two: Two) -> None:
    earlier = await two.other.generation()
    async with two.one.invalidating(affected_by_write(["DELETE"], ["Observation", "7"])):
        pass
    await two.other.add_stored_entries(STORED, earlier)
    assert await found(two.other, [ONE]) == {}


async def test_there_is_no_generation_until_the_last_overlapping_write_has_ended(two: Two) -> None:
    async with two.one.invalidating(affected_by_write(["DELETE"], ["Observation", "7"])):
        async with two.other.invalidating(affected_by_write(["DELETE"], ["Observation", "8"])):
            pass
        assert await two.other.generation() == ""
    assert await two.other.generation()


async def test_a_write_whose_replica_died_ends_after_a_while(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(valkey_backend, "WRITE_SECONDS", 1)
    await two.other.add_stored_entries(STORED, await two.other.generation())
    await two.one.invalidating(affected_by_write(["DELETE"], ["Observation", "7"])).__aenter__()  # and never leaves
    assert await two.other.generation() == ""
    await asyncio.sleep(1.1)
    assert await found(two.other, [ONE]) == {}
    await two.other.add_stored_entries(STORED, await two.other.generation())
    assert await found(two.one, [ONE])


async def test_a_cancelled_write_invalidates_all_the_same(two: Two) -> None:
    async def write() -> None:
        async with two.one.invalidating(affected_by_write(["DELETE"], ["Observation", "7"])):
            await asyncio.sleep(60)

    await two.other.add_stored_entries(STORED, await two.other.generation())
    writing = asyncio.create_task(write())
    await asyncio.sleep(0.1)
    assert await two.other.generation() == ""
    writing.cancel()
    await asyncio.wait([writing])
    assert await found(two.other, [ONE]) == {}


async def test_values_of_an_earlier_run_of_valkey_are_not_read_although_they_were_saved(tmp_path: Path) -> None:
    """A Valkey that is restored from a snapshot holds a generation that ended after the snapshot was taken."""
    with servers.valkey(tmp_path) as server:
        async with replica(server.url) as one:
            await one.add_stored_entries(STORED, await one.generation())
            with Redis.from_url(server.url) as raw:
                raw.save()
            await one.invalidate_stored_entries()
            server.kill()
            server.start()
            with Redis.from_url(server.url) as raw:
                assert raw.dbsize() >= 3
        async with replica(server.url) as another:
            assert await another.generation()
            assert not await finds_stored(another)


#: Values in no form that the proxy writes.
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
async def test_a_malformed_location_is_ignored(two: Two, value: bytes) -> None:
    await two.one.add_stored_entries(STORED, await two.one.generation())
    (key,) = two.keys(f"*{ONE}")
    two.raw.set(key, value)
    assert await found(two.other, [ONE, TWO]) == {TWO: STORED[TWO]}
    two.raw.delete(key)
    two.raw.lpush(key, value)
    assert await found(two.other, [ONE, TWO]) == {TWO: STORED[TWO]}


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
async def test_orders_are_shared_unchanged(two: Two, orders: Orders) -> None:
    assert await looked_up(two.one, orders=orders)
    assert not await looked_up(two.other, orders=orders)


async def test_orders_are_not_shared_between_credentials_or_patients(two: Two) -> None:
    assert await looked_up(two.one, "Patient/1", "a", ORDERS)
    assert await looked_up(two.other, "Patient/1", "b")
    assert await looked_up(two.other, "Patient/2", "a")
    assert not await looked_up(two.other, "Patient/1", "a", ORDERS)


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
async def test_malformed_orders_are_looked_up_again(two: Two, value: bytes) -> None:
    await looked_up(two.one)
    (key,) = (key for key in two.keys("*:orders:*") if not key.endswith(b"epoch"))
    two.raw.set(key, value)
    assert await looked_up(two.other)


async def test_replicas_that_miss_the_same_orders_share_one_look_up(two: Two) -> None:
    look_ups = []

    async def look_up() -> Orders:
        look_ups.append(1)
        await asyncio.sleep(0.3)
        return ORDERS

    results = await asyncio.gather(*(cache.orders("Patient/1", "a", look_up) for cache in (two.one, two.other) * 4))
    assert results == [ORDERS] * 8
    assert len(look_ups) == 1


async def test_a_replica_that_waited_for_a_look_up_that_failed_looks_up_itself(two: Two) -> None:
    async def fails() -> Orders:
        await asyncio.sleep(0.2)
        raise OSError

    failing = asyncio.create_task(two.one.orders("Patient/1", "a", fails))
    await asyncio.sleep(0.1)
    assert await looked_up(two.other)
    with pytest.raises(OSError, match=r"^$"):
        await failing


async def test_a_replica_that_waited_too_long_for_anothers_look_up_looks_up_itself(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cgm_proxy.cache.cache.ORDERS_LOCK_TIMEOUT", 0.2)
    responded = asyncio.Event()

    async def look_up() -> Orders:
        await responded.wait()
        return ORDERS

    slow = asyncio.create_task(two.one.orders("Patient/1", "a", look_up))
    await asyncio.sleep(0.1)
    assert await looked_up(two.other)
    responded.set()
    assert await slow == ORDERS


async def test_the_time_of_a_patients_last_submission_is_shared(two: Two) -> None:
    now = datetime.now(UTC)
    assert await two.other.last_submission("Patient/1") is None
    await two.one.record_submission("Patient/1", now)
    assert await two.other.last_submission("Patient/1") == now
    assert await two.other.last_submission("Patient/2") is None
    assert await two.other.last_submission(None) is None


@pytest.mark.parametrize("value", [b"", b"soon", b"2024-05-01T00:00:00", b"\xff", b"9" * 100, b"soon x"])
async def test_a_malformed_last_submission_is_ignored(two: Two, value: bytes) -> None:
    await two.one.record_submission("Patient/1", datetime.now(UTC))
    (key,) = (key for key in two.keys("*:submitted:*") if not key.endswith(b"epoch"))
    two.raw.set(key, value)
    assert await two.other.last_submission("Patient/1") is None


async def test_a_last_submission_is_never_later_than_now(two: Two) -> None:
    await two.one.record_submission("Patient/1", datetime(2999, 1, 1, tzinfo=UTC))
    last = await two.other.last_submission("Patient/1")
    assert last
    assert last <= datetime.now(UTC)


async def test_a_malformed_generation_is_replaced(two: Two) -> None:
    await two.one.add_stored_entries(STORED, await two.one.generation())
    (key,) = two.keys("*:known:epoch")
    two.raw.set(key, b"nonsense")
    assert await found(two.other, [ONE]) == {}
    assert await two.other.generation() == await two.one.generation() != ""


async def test_valkey_holds_no_names_of_patients_and_no_credentials(two: Two) -> None:
    await looked_up(two.one, "Patient/jane-doe", "Bearer s3cr3t", ORDERS)
    await two.one.record_submission("Patient/jane-doe", datetime.now(UTC))
    async with two.one.patient_lock("Patient/jane-doe"):
        keys = two.keys()
        content = b"".join(keys) + b"".join(filter(None, two.raw.mget(keys)))
    assert len(keys) >= 5
    assert b"jane" not in content
    assert b"s3cr3t" not in content
    assert all(key.startswith(b"cgm1:{") for key in keys)
