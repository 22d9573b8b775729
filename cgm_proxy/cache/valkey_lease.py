"""Locks among replicas: a lease in Valkey, renewed while it is in use, and released only by its holder.

A lease saves conflicts upstream; usually nothing that is stored depends on it. Where an upstream can't create
conditionally, the proxy searches and then creates, which does depend on it. That caller checks `held` before each step. It
is true only while no other process can hold the lease: its time counts from before Valkey was asked for it, and it is not
true within one lease's length after Valkey was started or flushed, when another process may still hold a lease that
Valkey no longer knows.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from cgm_proxy.cache.backends import PatientLock
from cgm_proxy.cache.valkey_client import Valkey

#: How long a lease lasts if it is not renewed (seconds). It is renewed after a third of that.
LEASE_SECONDS = 5.0

#: The part of a lease's length in which its holder relies on it; the rest allows for clocks that run at different speeds.
TRUSTED_PART = 0.9

#: Pause between attempts to acquire a lease that another process holds (seconds).
ATTEMPT_EVERY = 0.05

#: Acquire the lease if it is free. Return -1 if it is not, else for how long this run of Valkey has recorded leases (ms).
_ACQUIRE = """
if not redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return -1 end
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local recorded_run, since = string.match(redis.call('GET', KEYS[2]) or '', '^(%x+):(%d+)$')
if recorded_run ~= run or tonumber(since) > now then
  redis.call('SET', KEYS[2], run .. ':' .. string.format('%.0f', now))
  return 0
end
return now - tonumber(since)
"""
_RENEW = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end return 0"
_RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"


class Lease(PatientLock):
    """A lock that is held between two times of the event loop's clock. A new lease is not held."""

    def __init__(self) -> None:
        self.held_from = self.held_until = 0.0

    @property
    def held(self) -> bool:
        """Whether no other process can hold the lease now."""
        return self.held_from <= asyncio.get_running_loop().time() < self.held_until


class Leases:
    """Leases of `length` seconds. Since when Valkey has recorded all of them is stored under the key `run`."""

    def __init__(self, valkey: Valkey, run: str, length: float = LEASE_SECONDS) -> None:
        self._valkey = valkey
        self._run = run
        self._length = length
        scripts = (_ACQUIRE, _RENEW, _RELEASE)
        self._acquire, self._renew, self._release = map(valkey.client.register_script, scripts)

    @asynccontextmanager
    async def acquire(self, key: str, max_wait: float) -> AsyncIterator[Lease]:
        """Acquire the lease. Go on without it after `max_wait` seconds, or at once if Valkey is down."""
        token, lease = secrets.token_hex(16), Lease()
        if not await self._acquired(key, token, lease, max_wait):
            yield lease
            return
        renewing = asyncio.create_task(self._keep_renewing(key, token, lease))
        try:
            yield lease
        finally:
            renewing.cancel()
            lease.held_until = 0.0
            await asyncio.shield(self._valkey.call(self._release, [key], [token]))

    async def _acquired(self, key: str, token: str, lease: Lease, max_wait: float) -> bool:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + max_wait
        while True:
            called = loop.time()
            recorded = await self._valkey.call(self._acquire, [key, self._run], [token, int(self._length * 1000)])
            if not isinstance(recorded, int):
                return False
            if recorded >= 0:
                # If Valkey has recorded leases for less than one lease's length, wait until older ones have ended.
                lease.held_from = loop.time() + max(0.0, self._length - recorded / 1000)
                lease.held_until = called + self._length * TRUSTED_PART
                return True
            if called > deadline:
                return False
            await asyncio.sleep(ATTEMPT_EVERY)

    async def _keep_renewing(self, key: str, token: str, lease: Lease) -> None:
        """Renew the lease until it is released or another process holds it."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._length / 3)
            called = loop.time()
            renewed = await self._valkey.call(self._renew, [key], [token, int(self._length * 1000)])
            if renewed == 0:
                lease.held_until = 0.0
                return
            if renewed is not None:
                lease.held_until = called + self._length * TRUSTED_PART
