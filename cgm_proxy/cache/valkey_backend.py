"""Cached values in Valkey, shared by the replicas of one proxy: each replica reads and invalidates what all have written.

Keys begin with a hash of the upstream's URL, so that proxies of different upstreams never mix. A namespace's generation is
a random token under one key and part of the key of each value: to invalidate is to delete the token, after which no old
value is found again. The token is not a counter, which could return to an old generation after a flush or an eviction.
It is read together with the id of Valkey's run, so that a Valkey that was restored from a snapshot, or replaced by another
one after a failover, does not bring old values back. A write to the upstream in flight is a member of a set. While the set
has members the namespace has no generation; if a replica dies in the middle of a write, this lasts until the set expires.
"""

import asyncio
import hashlib
import re
import secrets
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager

from cgm_proxy.cache.backends import NO_GENERATION, Namespace, PatientLock, ttl
from cgm_proxy.cache.valkey_client import Valkey
from cgm_proxy.cache.valkey_lease import Leases
from cgm_proxy.settings.loading import Settings

#: Values in one call: about 0.1 MB, and less than 10 ms of work for Valkey and for this process.
VALUES_PER_CALL = 1000

#: How long a write to the upstream may take before its replica is considered dead, besides the time that it is silent (seconds).
WRITE_SECONDS = 900

#: Longest value that is stored, and accepted when it is read (bytes).
LONGEST_VALUE = 65_536

#: The form of a generation: the beginning of the id of Valkey's run, then the namespace's token.
GENERATION = re.compile(r"[0-9a-f]{8}-[0-9a-f]{16}")

#: Return the namespace's generation, which is created if there is none, and the values of the given keys in it.
#: Return no generation while a write is in flight.
_READ = r"""
if redis.call('EXISTS', KEYS[2]) == 1 then return {''} end
local token = redis.call('GET', KEYS[1])
if not token or #token ~= #ARGV[1] then
  token = ARGV[1]
  redis.call('SET', KEYS[1], token)
end
local generation = string.sub(string.match(redis.call('INFO', 'server'), 'run_id:(%x+)'), 1, 8) .. '-' .. token
local keys = {}
for name in string.gmatch(ARGV[3], '[^\n]+') do keys[#keys + 1] = ARGV[2] .. generation .. ':' .. name end
if #keys == 0 then return {generation, ''} end
local values = redis.call('MGET', unpack(keys))
for i = 1, #keys do
  if not values[i] or string.find(values[i], '\n', 1, true) then values[i] = '' end
end
return {generation, table.concat(values, '\n')}
"""

#: Begin a write to the upstream. A Valkey that is full can't add to the set (pcall), but it deletes the token.
_BEGIN_WRITE = """
redis.call('DEL', KEYS[1])
redis.pcall('SADD', KEYS[2], ARGV[1])
redis.pcall('EXPIRE', KEYS[2], ARGV[2])
return 1
"""

#: End writes to the upstream.
_END_WRITES = """
redis.call('DEL', KEYS[1])
redis.call('SREM', KEYS[2], unpack(ARGV))
return 1
"""

#: Store values.
_STORE = r"""
local value = string.gmatch(ARGV[4], '[^\n]+')
for name in string.gmatch(ARGV[3], '[^\n]+') do redis.call('SET', ARGV[2] .. ':' .. name, value(), 'PX', ARGV[1]) end
return 1
"""


class ValkeyBackend:
    """A `CacheBackend` in Valkey. While Valkey is unavailable nothing is found, and locks are neither held nor waited for."""

    source = "shared"

    def __init__(self, settings: Settings, url: str) -> None:
        self._cache = settings.cache
        self._silence = 2 * settings.upstream.read_timeout
        # The braces put all keys of an upstream into one slot, in case Valkey is a cluster.
        self._prefix = f"cgm1:{{{_hash(settings.upstream.url)[:16]}}}"
        self._valkey = Valkey(url, settings.cache.shared_timeout, self._recover)
        scripts = (_READ, _BEGIN_WRITE, _END_WRITES, _STORE)
        self._read, self._begin_write, self._end_writes, self._store = map(self._valkey.client.register_script, scripts)
        self._leases = Leases(self._valkey, f"{self._prefix}:run")
        self._pending: dict[Namespace, set[str]] = {}
        """Tokens of writes that could not be begun or ended in Valkey, and so have invalidated nothing there."""

    async def start(self) -> None:
        """See `CacheBackend`."""
        await self._valkey.start()

    async def stop(self) -> None:
        """See `CacheBackend`."""
        await self._valkey.stop()

    @property
    def available(self) -> bool:
        """See `CacheBackend`."""
        return self._valkey.up

    async def read(self, namespace: Namespace, keys: Sequence[str]) -> tuple[str, dict[str, bytes]]:
        """See `CacheBackend`; large reads take several calls."""
        generation, found = await self._read_once(namespace, keys[:VALUES_PER_CALL])
        for start in range(VALUES_PER_CALL, len(keys) if generation else 0, VALUES_PER_CALL):
            next_generation, more = await self._read_once(namespace, keys[start : start + VALUES_PER_CALL])
            if next_generation != generation:
                break
            found |= more
        return generation, found

    async def _read_once(self, namespace: Namespace, keys: Sequence[str]) -> tuple[str, dict[str, bytes]]:
        arguments = [_token(), self._value_prefix(namespace), "\n".join(keys)]
        match await self._valkey.call(self._read, self._state_keys(namespace), arguments):
            case [bytes(text), bytes(joined)] if GENERATION.fullmatch(generation := text.decode("latin-1")):
                values = zip(keys, joined.split(b"\n"), strict=False)
                return generation, {key: value for key, value in values if 0 < len(value) <= LONGEST_VALUE}
        return NO_GENERATION, {}

    async def write(self, namespace: Namespace, generation: str, values: Mapping[str, bytes]) -> None:
        """See `CacheBackend`; large writes take several calls."""
        milliseconds = int(ttl(self._cache, namespace) * 1000)
        items = [(key, value) for key, value in values.items() if len(value) <= LONGEST_VALUE and b"\n" not in value]
        for start in range(0, len(items) if generation and milliseconds else 0, VALUES_PER_CALL):
            keys, part = zip(*items[start : start + VALUES_PER_CALL], strict=True)
            arguments = [milliseconds, self._value_prefix(namespace) + generation, "\n".join(keys), b"\n".join(part)]
            if await self._valkey.call(self._store, (), arguments) is None:
                break

    @asynccontextmanager
    async def invalidating(self, namespaces: Collection[Namespace]) -> AsyncIterator[None]:
        """See `CacheBackend`; the namespaces have no generation for any replica until the context ends."""
        token = _token()
        for namespace in namespaces:
            arguments = [token, int(WRITE_SECONDS + self._silence)]
            if not await self._valkey.call(self._begin_write, self._state_keys(namespace), arguments):
                self._invalidate_later(namespace, token)
        try:
            yield
        finally:
            await asyncio.shield(self._invalidate(namespaces, token))

    async def _invalidate(self, namespaces: Collection[Namespace], token: str) -> None:
        for namespace in namespaces:
            if not await self._valkey.call(self._end_writes, self._state_keys(namespace), [token]):
                self._invalidate_later(namespace, token)

    def _invalidate_later(self, namespace: Namespace, token: str) -> None:
        """Invalidate a namespace as soon as Valkey is back; until then this process does not use it."""
        self._pending.setdefault(namespace, set()).add(token)
        self._valkey.mark_down()

    async def _recover(self) -> None:
        """Check that generations can be read, and invalidate what could not be invalidated before."""
        await self._read(self._state_keys("known"), [_token(), "", ""])
        while self._pending:  # checked after each await, because more may have become pending meanwhile
            namespace, tokens = next(iter(self._pending.items()))
            ended = list(tokens)[:VALUES_PER_CALL]
            await self._end_writes(self._state_keys(namespace), ended)
            tokens.difference_update(ended)
            if not tokens:
                self._pending.pop(namespace)

    @asynccontextmanager
    async def lock(self, name: str, max_wait: float) -> AsyncIterator[PatientLock]:
        """See `CacheBackend`; the lock is a lease."""
        async with self._leases.acquire(f"{self._prefix}:turn:{_hash(name)}", max_wait) as lease:
            yield lease

    def _state_keys(self, namespace: Namespace) -> list[str]:
        """Return the keys of a namespace's token and of its writes in flight.

        Names of keys stay as they are (`epoch`, `turn`), so that replicas of different versions share them during an update.
        """
        return [f"{self._prefix}:{namespace}:epoch", f"{self._prefix}:{namespace}:writes"]

    def _value_prefix(self, namespace: Namespace) -> str:
        """Return the beginning of the keys of a namespace's values; generation, colon and the value's own key follow."""
        return f"{self._prefix}:{namespace}:"


def _token() -> str:
    return secrets.token_hex(8)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
