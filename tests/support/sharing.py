"""Caches and leases of several replicas that share a real Valkey (or Redis)."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

from cgm_proxy.cache.cache import Cache
from cgm_proxy.cache.valkey_client import Valkey
from cgm_proxy.cache.valkey_lease import Leases
from cgm_proxy.core.submission.outcomes import Stored
from cgm_proxy.settings.loading import load

ONE = "6f1c1a52-0000-5000-8000-000000000001"
TWO = "6f1c1a52-0000-5000-8000-000000000002"
STORED = {ONE: Stored("Observation/7/_history/1", 'W/"1"'), TWO: Stored("Observation/8")}


@asynccontextmanager
async def replica(url: str, upstream: str = "http://hapi/fhir", **settings: Any) -> AsyncIterator[Cache]:
    """Yield a replica's cache. It waits longer than by default, because the machine may be busy with other tests."""
    settings = {"shared": url, "shared_timeout": 2} | settings
    environ = {f"CGM_PROXY_CACHE_{key.upper()}": str(value) for key, value in settings.items()}
    environ |= {"CGM_PROXY_UPSTREAM_URL": upstream, "CGM_PROXY_UPSTREAM_READ_TIMEOUT": "0.01"}  # nothing is read there
    cache = Cache(load(environ=environ))
    await cache.start()
    try:
        yield cache
    finally:
        await cache.stop()


async def found(cache: Cache, identities: Iterable[str]) -> dict[str, Stored]:
    """Return the stored entries that a replica finds in the cache."""
    _, stored = await cache.stored_entries(identities)
    return stored


async def finds_stored(cache: Cache) -> bool:
    """Whether a replica finds all of `STORED`; it must never find a part of it."""
    stored = await found(cache, [TWO, ONE])
    assert stored in ({}, STORED)
    return bool(stored)


async def until(condition: Callable[[], bool], seconds: float = 5) -> None:
    """Wait until the condition is true."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 -- it may become true in another process
            await asyncio.sleep(0.02)


#: Length of the tests' leases (seconds).
LENGTH = 1.2

#: Key of the tests' lease.
KEY = "cgm1:{0}:turn:1"


async def nothing() -> None:
    """Recover nothing."""


@asynccontextmanager
async def leases(url: str, length: float = LENGTH) -> AsyncIterator[Leases]:
    """Yield the leases of one replica."""
    valkey = Valkey(url, 2, nothing)
    await valkey.start()
    try:
        yield Leases(valkey, "cgm1:{0}:run", length)
    finally:
        await valkey.stop()
