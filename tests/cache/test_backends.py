"""The cache of a single process: its size is bounded, its values expire, and writes invalidate them."""

import tracemalloc

import pytest

from cgm_proxy.cache import backends
from cgm_proxy.cache.backends import NO_GENERATION, LocalBackend, Namespace
from cgm_proxy.settings.loading import CacheSettings


async def cached(local: LocalBackend, *keys: str) -> set[str]:
    """Return those of the keys that have a value now."""
    _, values = await local.read("known", keys)
    return set(values)


async def generation(local: LocalBackend, namespace: Namespace = "known") -> str:
    return (await local.read(namespace, ()))[0]


async def store(local: LocalBackend, *keys: str) -> None:
    await local.write("known", await generation(local), {key: f"of {key}".encode() for key in keys})


async def test_the_oldest_values_are_dropped_when_there_are_too_many() -> None:
    local = LocalBackend(CacheSettings(known=4))
    await store(local, "a", "b")
    await store(local, "c", "d")
    assert await cached(local, *"abcd") == set("abcd")
    await store(local, "e", "f")
    assert await cached(local, *"abcdef") == set("cdef")


async def test_a_value_that_is_stored_again_is_as_new_as_its_last_write() -> None:
    local = LocalBackend(CacheSettings(known=4))
    await store(local, "a", "b")
    await store(local, "a")
    await store(local, "c", "d", "e")
    assert await cached(local, *"abcde") == set("acde")


async def test_values_expire(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(backends, "monotonic", lambda: now)
    local = LocalBackend(CacheSettings(known_seconds=60))
    await store(local, "a")
    now += 59.9
    assert await cached(local, "a") == {"a"}
    now += 0.1
    assert await cached(local, "a") == set()


async def test_storing_the_same_values_for_ever_takes_no_more_memory() -> None:
    local = LocalBackend(CacheSettings(known=50))
    tracemalloc.start()
    try:
        for number in range(20_000):
            await store(local, f"{number % 10}")
        assert tracemalloc.get_traced_memory()[0] < 200_000
    finally:
        tracemalloc.stop()


async def test_there_is_no_generation_until_the_last_write_has_ended() -> None:
    local = LocalBackend(CacheSettings())
    await store(local, "a")
    earlier = await generation(local)
    async with local.invalidating({"known"}):
        assert await generation(local) == NO_GENERATION
        async with local.invalidating({"known", "orders"}):
            pass
        assert await generation(local) == NO_GENERATION
        assert await generation(local, "orders") != NO_GENERATION
        await store(local, "b")
        await local.write("known", earlier, {"c": b"c"})
    await local.write("known", earlier, {"d": b"d"})
    assert await cached(local, *"abcd") == set()
    await store(local, "a")
    assert await cached(local, "a") == {"a"}
