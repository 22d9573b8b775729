"""What one process notes for itself: bounded, expiring, and forgotten when it must be."""

import tracemalloc

import pytest

from cgm_proxy.cache import backends
from cgm_proxy.cache.backends import NO_GENERATION, LocalBackend, Namespace
from cgm_proxy.settings.loading import CacheSettings


async def noted(local: LocalBackend, *names: str) -> set[str]:
    """Give those of the names that are noted now."""
    _, found = await local.read("known", names)
    return set(found)


async def epoch(local: LocalBackend, topic: Namespace = "known") -> str:
    return (await local.read(topic, ()))[0]


async def note(local: LocalBackend, *names: str) -> None:
    await local.write("known", await epoch(local), {name: f"of {name}".encode() for name in names})


async def test_the_oldest_go_when_there_are_too_many() -> None:
    local = LocalBackend(CacheSettings(known=4))
    await note(local, "a", "b")
    await note(local, "c", "d")
    assert await noted(local, *"abcd") == set("abcd")
    await note(local, "e")
    assert await noted(local, *"abcde") == set("cde")


async def test_what_came_again_stays_as_long_as_the_newer_note() -> None:
    local = LocalBackend(CacheSettings(known=4))
    await note(local, "a", "b")
    await note(local, "a")
    await note(local, "c", "d")
    assert await noted(local, *"abcd") == set("acd")


async def test_values_expire(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(backends, "monotonic", lambda: now)
    local = LocalBackend(CacheSettings(known_seconds=60))
    await note(local, "a")
    now += 59.9
    assert await noted(local, "a") == {"a"}
    now += 0.1
    assert await noted(local, "a") == set()


async def test_the_same_noted_for_ever_takes_no_more_memory() -> None:
    local = LocalBackend(CacheSettings(known=50))
    tracemalloc.start()
    try:
        for number in range(20_000):
            await note(local, f"{number % 10}")
        assert tracemalloc.get_traced_memory()[0] < 200_000
    finally:
        tracemalloc.stop()


async def test_nothing_is_trusted_until_the_last_write_is_done() -> None:
    local = LocalBackend(CacheSettings())
    await note(local, "a")
    asked = await epoch(local)
    async with local.invalidating({"known"}):
        assert await epoch(local) == NO_GENERATION
        async with local.invalidating({"known", "orders"}):
            pass
        assert await epoch(local) == NO_GENERATION
        assert await epoch(local, "orders") != NO_GENERATION
        await note(local, "b")
        await local.write("known", asked, {"c": b"c"})
    await local.write("known", asked, {"d": b"d"})
    assert await noted(local, *"abcd") == set()
    await note(local, "a")
    assert await noted(local, "a") == {"a"}
