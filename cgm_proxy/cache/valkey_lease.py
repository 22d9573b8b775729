"""Turns among replicas: a lease in Valkey, renewed while it is used, given back by who has it alone.

A lease saves lost races; nothing that is stored rests on it. Who must rest on it all the same (to search, then to create, where
an upstream can't create conditionally) asks `held` before each step: it is true only while no other can have the lease,
counted from before Valkey was asked for it, and not within the time of one lease after Valkey was started or flushed,
when somebody may still believe in one that Valkey no longer knows.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from cgm_proxy.cache.backends import PatientLock
from cgm_proxy.cache.valkey_client import Valkey

#: How long a lease lasts that is not renewed (seconds); it is renewed after a third of that.
LEASE_SECONDS = 5.0

#: The part of a lease in which it is believed in, for clocks that do not run alike.
BELIEVED = 0.9

#: How often somebody who waits asks for the lease (seconds).
ASKED_EVERY = 0.05

#: Take a lease that nobody has: -1 where somebody has it, else for how long this run of Valkey has known all leases (ms).
_TAKE = """
if not redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return -1 end
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local known, since = string.match(redis.call('GET', KEYS[2]) or '', '^(%x+):(%d+)$')
if known ~= run or tonumber(since) > now then
  redis.call('SET', KEYS[2], run .. ':' .. string.format('%.0f', now))
  return 0
end
return now - tonumber(since)
"""
_RENEW = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end return 0"
_GIVE_BACK = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"


class Lease(PatientLock):
    """A turn that is held from one moment to another, as the event loop's clock counts; as yet never."""

    def __init__(self) -> None:
        self.begins = self.ends = 0.0

    @property
    def held(self) -> bool:
        """Whether nobody else can have the lease now."""
        return self.begins <= asyncio.get_running_loop().time() < self.ends


class Leases:
    """Leases of `length` seconds; `run` is the key that tells since when Valkey knows of all of them."""

    def __init__(self, valkey: Valkey, run: str, length: float = LEASE_SECONDS) -> None:
        self._valkey = valkey
        self._run = run
        self._length = length
        scripts = (_TAKE, _RENEW, _GIVE_BACK)
        self._take, self._renew, self._give_back = map(valkey.client.register_script, scripts)

    @asynccontextmanager
    async def acquire(self, key: str, patience: float) -> AsyncIterator[Lease]:
        """Take the lease, or go on without it after `patience` seconds, or at once where Valkey is away."""
        token, lease = secrets.token_hex(16), Lease()
        if not await self._wait(key, token, lease, patience):
            yield lease
            return
        renewing = asyncio.create_task(self._keep(key, token, lease))
        try:
            yield lease
        finally:
            renewing.cancel()
            lease.ends = 0.0
            await asyncio.shield(self._valkey.ask(self._give_back, [key], [token]))

    async def _wait(self, key: str, token: str, lease: Lease, patience: float) -> bool:
        loop = asyncio.get_running_loop()
        late = loop.time() + patience
        while True:
            asked = loop.time()
            age = await self._valkey.ask(self._take, [key, self._run], [token, int(self._length * 1000)])
            if not isinstance(age, int):
                return False
            if age >= 0:
                lease.begins = loop.time() + max(0.0, self._length - age / 1000)
                lease.ends = asked + self._length * BELIEVED
                return True
            if asked > late:
                return False
            await asyncio.sleep(ASKED_EVERY)

    async def _keep(self, key: str, token: str, lease: Lease) -> None:
        """Renew the lease until it is given back, or lost to somebody else."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._length / 3)
            asked = loop.time()
            renewed = await self._valkey.ask(self._renew, [key], [token, int(self._length * 1000)])
            if renewed == 0:
                lease.ends = 0.0
                return
            if renewed is not None:
                lease.ends = asked + self._length * BELIEVED
