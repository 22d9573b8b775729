"""Notes that replicas share by Valkey: what one was told upstream, all know; what one has to forget, all forget.

Names in Valkey begin with a hash of the upstream's URL: proxies of different upstreams never mix. A topic's epoch is a random
token under one key and a part of the name of each of its values: without that key nothing of old is found again, and
to forget is to delete it. It is no counter, which could come back to an old epoch after a flush or an eviction; and it is
read together with the id of Valkey's run, so that one that was restored from an old snapshot, or is another one after a
failover, is trusted with nothing of before. A write under way is a member of a set: while there is one, no epoch can be
had, also not when its replica dies in the middle, until the set expires.
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

#: Values in one question: some 0.1 MB, less than 10 ms of anybody's time.
AT_ONCE = 1000

#: How long a write that passes through may take, before it is believed to have died with its replica (seconds).
WRITE_SECONDS = 900

#: Longest value that is noted, and believed to have been noted (bytes).
LONGEST = 65_536

#: An epoch as this module makes it: Valkey's run (its beginning), then the topic's token.
EPOCH = re.compile(r"[0-9a-f]{8}-[0-9a-f]{16}")

#: Give the topic's epoch, or make it, and the values of names in it; none while a write is under way.
_READ = r"""
if redis.call('EXISTS', KEYS[2]) == 1 then return {''} end
local token = redis.call('GET', KEYS[1])
if not token or #token ~= #ARGV[1] then
  token = ARGV[1]
  redis.call('SET', KEYS[1], token)
end
local epoch = string.sub(string.match(redis.call('INFO', 'server'), 'run_id:(%x+)'), 1, 8) .. '-' .. token
local keys = {}
for name in string.gmatch(ARGV[3], '[^\n]+') do keys[#keys + 1] = ARGV[2] .. epoch .. ':' .. name end
if #keys == 0 then return {epoch, ''} end
local values = redis.call('MGET', unpack(keys))
for i = 1, #keys do
  if not values[i] or string.find(values[i], '\n', 1, true) then values[i] = '' end
end
return {epoch, table.concat(values, '\n')}
"""

#: Begin a write: a Valkey that is full refuses the mark, but forgets.
_BEGIN = """
redis.call('DEL', KEYS[1])
redis.pcall('SADD', KEYS[2], ARGV[1])
redis.pcall('EXPIRE', KEYS[2], ARGV[2])
return 1
"""

#: End writes.
_END = """
redis.call('DEL', KEYS[1])
redis.call('SREM', KEYS[2], unpack(ARGV))
return 1
"""

_WRITE = r"""
local value = string.gmatch(ARGV[4], '[^\n]+')
for name in string.gmatch(ARGV[3], '[^\n]+') do redis.call('SET', ARGV[2] .. ':' .. name, value(), 'PX', ARGV[1]) end
return 1
"""


class ValkeyBackend:
    """Notes of all proxies of one upstream; without Valkey nothing is noted, and turns are not waited for."""

    source = "shared"

    def __init__(self, settings: Settings, url: str) -> None:
        self._cache = settings.cache
        # all keys of an upstream are in one slot of a cluster, should there be one
        self._prefix = f"cgm1:{{{_hash(settings.upstream.url)[:16]}}}"
        self._valkey = Valkey(url, settings.cache.shared_timeout, self._settle)
        scripts = (_READ, _BEGIN, _END, _WRITE)
        self._read, self._begin, self._end, self._write = map(self._valkey.client.register_script, scripts)
        self._leases = Leases(self._valkey, f"{self._prefix}:run")
        self._owed: dict[Namespace, set[str]] = {}

    async def start(self) -> None:
        """Look whether Valkey is there; one that is not does not stop the start."""
        await self._valkey.start()

    async def stop(self) -> None:
        """Close the connections."""
        await self._valkey.stop()

    @property
    def available(self) -> bool:
        """Whether Valkey is asked now."""
        return self._valkey.up

    async def read(self, topic: Namespace, names: Sequence[str]) -> tuple[str, dict[str, bytes]]:
        """Give the topic's epoch and what is noted, asked for in bounded parts."""
        epoch, found = await self._read_part(topic, names[:AT_ONCE])
        for start in range(AT_ONCE, len(names) if epoch else 0, AT_ONCE):
            later, more = await self._read_part(topic, names[start : start + AT_ONCE])
            if later != epoch:
                break
            found |= more
        return epoch, found

    async def _read_part(self, topic: Namespace, names: Sequence[str]) -> tuple[str, dict[str, bytes]]:
        arguments = [_token(), self._values(topic), "\n".join(names)]
        match await self._valkey.ask(self._read, self._keys(topic), arguments):
            case [bytes(said), bytes(values)] if EPOCH.fullmatch(epoch := said.decode("latin-1")):
                noted = zip(names, values.split(b"\n"), strict=False)
                return epoch, {name: value for name, value in noted if 0 < len(value) <= LONGEST}
        return NO_GENERATION, {}

    async def write(self, topic: Namespace, epoch: str, values: Mapping[str, bytes]) -> None:
        """Note values, in bounded parts."""
        milliseconds = int(ttl(self._cache, topic) * 1000)
        items = [(name, value) for name, value in values.items() if len(value) <= LONGEST and b"\n" not in value]
        for start in range(0, len(items) if epoch and milliseconds else 0, AT_ONCE):
            names, part = zip(*items[start : start + AT_ONCE], strict=True)
            arguments = [milliseconds, self._values(topic) + epoch, "\n".join(names), b"\n".join(part)]
            if await self._valkey.ask(self._write, (), arguments) is None:
                break

    @asynccontextmanager
    async def invalidating(self, topics: Collection[Namespace]) -> AsyncIterator[None]:
        """Mark the topics as being written, so that no replica trusts them until they are forgotten."""
        token = _token()
        for topic in topics:
            if not await self._valkey.ask(self._begin, self._keys(topic), [token, WRITE_SECONDS]):
                self._owe(topic, token)
        try:
            yield
        finally:
            await asyncio.shield(self._forget(topics, token))

    async def _forget(self, topics: Collection[Namespace], token: str) -> None:
        for topic in topics:
            if not await self._valkey.ask(self._end, self._keys(topic), [token]):
                self._owe(topic, token)

    def _owe(self, topic: Namespace, token: str) -> None:
        """Forget a topic later: until then this process trusts nothing that is shared."""
        self._owed.setdefault(topic, set()).add(token)
        self._valkey.distrust()

    async def _settle(self) -> None:
        """See that epochs can be had, and forget what could not be forgotten."""
        await self._read(self._keys("known"), [_token(), "", ""])
        while self._owed:  # looked at last: more may be owed after each answer
            topic, tokens = next(iter(self._owed.items()))
            paid = list(tokens)[:AT_ONCE]
            await self._end(self._keys(topic), paid)
            tokens.difference_update(paid)
            if not tokens:
                self._owed.pop(topic)

    @asynccontextmanager
    async def lock(self, name: str, patience: float) -> AsyncIterator[PatientLock]:
        """Take the turn by a lease."""
        async with self._leases.acquire(f"{self._prefix}:turn:{_hash(name)}", patience) as lease:
            yield lease

    def _keys(self, topic: Namespace) -> list[str]:
        """Give the keys of a topic's epoch, and of the writes under way."""
        return [f"{self._prefix}:{topic}:epoch", f"{self._prefix}:{topic}:writes"]

    def _values(self, topic: Namespace) -> str:
        """Give what the keys of a topic's values begin with, before epoch, colon and name."""
        return f"{self._prefix}:{topic}:"


def _token() -> str:
    return secrets.token_hex(8)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
