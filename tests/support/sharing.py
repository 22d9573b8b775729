"""Replicas' memories that share a real Valkey (or Redis)."""

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
HERE = {ONE: Stored("Observation/7/_history/1", 'W/"1"'), TWO: Stored("Observation/8")}


@asynccontextmanager
async def replica(url: str, upstream: str = "http://hapi/fhir", **cache: Any) -> AsyncIterator[Cache]:
    """Give a replica's memory; it waits longer than usual, for the machine may be busy with other tests."""
    cache = {"shared": url, "shared_timeout": 2} | cache
    given = {"upstream_url": upstream, **{f"cache_{key}": value for key, value in cache.items()}}
    memory = Cache(load(environ={f"CGM_PROXY_{key.upper()}": str(value) for key, value in given.items()}))
    await memory.start()
    try:
        yield memory
    finally:
        await memory.stop()


async def found(memory: Cache, identities: Iterable[str]) -> dict[str, Stored]:
    """Give what a replica knows of identities."""
    _, known = await memory.stored_entries(identities)
    return known


async def knows(memory: Cache) -> bool:
    """Whether a replica knows what is HERE; it never knows anything else."""
    here = await found(memory, [TWO, ONE])
    assert here in ({}, HERE)
    return bool(here)


async def until(holds: Callable[[], bool], seconds: float = 5) -> None:
    async with asyncio.timeout(seconds):
        while not holds():  # noqa: ASYNC110 -- what is waited for happens elsewhere
            await asyncio.sleep(0.02)


#: Length of the tests' leases (seconds).
LENGTH = 1.2


KEY = "cgm1:{0}:turn:1"


async def nothing() -> None:
    """Have nothing to settle."""


@asynccontextmanager
async def leases(url: str, length: float = LENGTH) -> AsyncIterator[Leases]:
    """Give the leases of one replica."""
    valkey = Valkey(url, 2, nothing)
    await valkey.start()
    try:
        yield Leases(valkey, "cgm1:{0}:run", length)
    finally:
        await valkey.stop()
