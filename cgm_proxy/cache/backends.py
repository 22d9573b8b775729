"""Where what is remembered is kept: values by topic and name, until they expire or their topic is forgotten.

Each topic has an epoch, which is another one whenever the topic had to be forgotten. Whoever is about to ask upstream takes
the epoch first and writes under it what was answered: what was asked before a write is never read after it.
"""

from collections import Counter, deque
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from time import monotonic
from typing import Literal, Protocol

from cgm_proxy.settings.loading import CacheSettings

#: What is remembered: where entries are stored, patients' orders, when a patient last submitted.
Namespace = Literal["known", "orders", "submitted"]

#: How long it is remembered when a patient last submitted: longer than a month, the longest usual period (seconds).
SUBMITTED_SECONDS = 35 * 86_400

#: The epoch while nothing can be trusted: a write is under way, or the shared memory is away.
NO_GENERATION = ""


class PatientLock:
    """A patient's turn, which saves lost races; whoever must rest on it asks whether it is still held."""

    @property
    def held(self) -> bool:
        """Whether nobody else can have the turn now, as far as this process can tell."""
        return True


class CacheBackend(Protocol):
    """Values by topic and name; whatever fails here is as if nothing had been noted."""

    source: str
    """What metrics call that which was found here."""

    async def start(self) -> None:
        """Get ready; never fails."""

    async def stop(self) -> None:
        """End what was begun."""

    @property
    def available(self) -> bool:
        """Whether anything can be noted now."""

    async def read(self, topic: Namespace, names: Sequence[str]) -> tuple[str, dict[str, bytes]]:
        """Give the topic's epoch, or `NO_GENERATION`, and the values of those names that have one in it."""

    async def write(self, topic: Namespace, epoch: str, values: Mapping[str, bytes]) -> None:
        """Note values in this epoch; if it has ended, nobody will read them."""

    def invalidating(self, topics: Collection[Namespace]) -> AbstractAsyncContextManager[None]:
        """Do what may change what the topics are about; nothing is trusted until it is done, and all is forgotten then."""

    def lock(self, name: str, patience: float) -> AbstractAsyncContextManager[PatientLock]:
        """Take the turn of that name; who waits longer than `patience` (seconds) goes on without it."""


def ttl(cache: CacheSettings, topic: Namespace) -> float:
    """Give how long a topic's values are kept."""
    return {"known": cache.known_seconds, "orders": cache.orders_seconds, "submitted": SUBMITTED_SECONDS}[topic]


class LocalBackend:
    """Notes of this process alone."""

    source = "memory"
    available = True

    def __init__(self, cache: CacheSettings) -> None:
        sizes: dict[Namespace, int] = {"known": cache.known, "orders": cache.orders, "submitted": cache.orders}
        self._values = {topic: _Values(size, ttl(cache, topic)) for topic, size in sizes.items()}
        self._forgotten: Counter[Namespace] = Counter()
        self._under_way: Counter[Namespace] = Counter()

    async def start(self) -> None:
        """Have nothing to do."""

    async def stop(self) -> None:
        """Have nothing to do."""

    async def read(self, topic: Namespace, names: Sequence[str]) -> tuple[str, dict[str, bytes]]:
        """Give how often the topic was forgotten, and what is noted."""
        if self._under_way[topic]:
            return NO_GENERATION, {}
        return str(self._forgotten[topic]), self._values[topic].read(names)

    async def write(self, topic: Namespace, epoch: str, values: Mapping[str, bytes]) -> None:
        """Note values, if it is still this epoch."""
        if epoch == str(self._forgotten[topic]):
            self._values[topic].write(values)

    @asynccontextmanager
    async def invalidating(self, topics: Collection[Namespace]) -> AsyncIterator[None]:
        """Trust nothing while it is done, and forget the topics then."""
        self._under_way.update(topics)
        try:
            yield
        finally:
            self._under_way.subtract(topics)
            self._forgotten.update(topics)
            for topic in topics:
                self._values[topic].clear()

    @asynccontextmanager
    async def lock(self, name: str, patience: float) -> AsyncIterator[PatientLock]:  # noqa: ARG002 -- others wait
        """Give the turn at once: those of this process wait for one another before."""
        yield PatientLock()


class _Values:
    """At most `size` values, each for `seconds`; they go in the batches in which they came, the oldest first."""

    def __init__(self, size: int, seconds: float) -> None:
        self._size = size
        self._seconds = seconds
        self._values: dict[str, bytes] = {}
        self._batches: deque[tuple[float, Mapping[str, bytes]]] = deque()
        self._held = 0  # values in batches, also those that came again since then

    def read(self, names: Sequence[str]) -> dict[str, bytes]:
        """Give the values of those names that have one."""
        while self._batches and self._batches[0][0] <= monotonic():
            self._drop()
        return {name: value for name in names if (value := self._values.get(name)) is not None}

    def write(self, values: Mapping[str, bytes]) -> None:
        """Keep a batch; it is not to be changed any more."""
        self._values.update(values)
        self._batches.append((monotonic() + self._seconds, values))
        self._held += len(values)
        while self._held > self._size:
            self._drop()

    def clear(self) -> None:
        """Keep nothing."""
        self._values.clear()
        self._batches.clear()
        self._held = 0

    def _drop(self) -> None:
        _, batch = self._batches.popleft()
        self._held -= len(batch)
        for name, value in batch.items():
            if self._values.get(name) is value:  # it has not come again since then
                del self._values[name]
