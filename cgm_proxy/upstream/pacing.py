"""The rate limiter: how many transactions run upstream at once, and how many entries each has (AIMD).

All submissions share one limiter. It admits more as long as the server does not slow down, and half as much when the server
fails. Measured on HAPI 8.8 with 2 cores, on H2 and on PostgreSQL alike: two transactions at once with about 80 entries each
are best. HAPI compares each condition with each resource of the transaction
(BaseTransactionProcessor.validateNoDuplicates), so more of either only makes each transaction slower, and the limiter
notices that. A larger server answers as fast to more transactions at once, and gets more.

While other requests stream through, submissions are throttled (`forward.beside`), so that interactive reads stay fast: fewer
transactions run at once, or one with pauses. Two at once fill both cores of such a server, and its garbage collector stops
all requests more often, the more is stored per second.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic

from cgm_proxy.observability.metrics import CHUNK_ENTRIES, CONCURRENCY
from cgm_proxy.observability.stream_stats import RECENT, StreamStats
from cgm_proxy.settings.loading import ForwardSettings

#: Transactions that run at once in the beginning.
FIRST = 2

#: The smallest size of a transaction (entries), unless the setting is lower.
LEAST = 10

#: The number of transactions, with few at once, from which the limiter learns what an entry usually costs.
LEARNING = 10

#: The number of transactions after which it learns that again: a server may become slower or faster for other reasons.
ROUND = 200

#: How much more than usual an entry may cost, among several transactions, before fewer run at once.
TOLERANCE = 1.3

#: Weight of the newest transaction in the recent cost of an entry.
NEWEST = 0.2

#: Longest pause after a transaction (seconds): one that took longer failed, or the next ones will be smaller.
LONGEST_PAUSE = 1.0

#: How long one transaction should take at most; a longer one makes the next ones smaller (seconds).
LONGEST = 5.0


class RateLimiter:
    """Admits transactions, and learns from how long they took, or that they failed."""

    def __init__(self, settings: ForwardSettings, stats: StreamStats | None = None) -> None:
        self._settings = settings
        self._stats = stats or StreamStats()
        self._largest = settings.chunk
        self.chunk = settings.chunk
        """The number of entries in the next transaction."""
        self._few = float(min(FIRST, settings.concurrency))
        self._limit = self._few
        self._running = 0
        self._waiting: dict[object, deque[asyncio.Future[None]]] = {}
        self._check: asyncio.TimerHandle | None = None
        self._learnt = 0
        self._usual_cost = self._recent_cost = 0.0
        self._slowed_at = 0.0
        self._show()

    @property
    def most_at_once(self) -> int:
        """The number of transactions that may ever run at once (`forward.concurrency`)."""
        return self._settings.concurrency

    @asynccontextmanager
    async def place(self, owner: object = None) -> AsyncIterator[None]:
        """Wait until a transaction of `owner` may run; owners are served in turn, so that a large submission delays no other."""
        if self._running >= self._allowed or self._waiting:
            admitted = asyncio.get_running_loop().create_future()
            self._waiting.setdefault(owner, deque()).append(admitted)
            self._wake()
            try:
                await admitted
            except asyncio.CancelledError:
                if admitted.done() and not admitted.cancelled():
                    self._running -= 1
                self._wake()
                raise
        else:
            self._running += 1
        began = monotonic()
        try:
            yield
        finally:
            beside = self._settings.beside
            if beside < 1 and self._stats.streaming:
                pause = (monotonic() - began) * (1 / beside - 1)
                asyncio.get_running_loop().call_later(min(pause, LONGEST_PAUSE), self._leave)
            else:
                self._leave()

    @property
    def _allowed(self) -> int:
        limit = min(self._limit, self._settings.beside) if self._stats.streaming else self._limit
        return max(1, int(limit))

    def _leave(self) -> None:
        self._running -= 1
        self._wake()

    def at_most(self, entries: int | None) -> None:
        """Bound the size of a transaction by what the server takes; None if that is not known."""
        self._largest = min(entries or self._settings.chunk, self._settings.chunk)
        self._resize(self.chunk)
        self._show()

    def stored(self, entries: int, seconds: float) -> None:
        """Learn from a transaction that the server carried out in `seconds`."""
        if entries * 2 >= self.chunk and not self._stats.streaming:  # in a smaller one each entry always costs more
            self._compare(seconds / entries)
        if seconds > LONGEST:
            self._resize(int(entries * LONGEST / seconds))
        else:
            self._resize(self.chunk + LEAST)
        self._show()
        self._wake()

    def failed(self, began: float) -> None:
        """Learn from a transaction that began at `began` (event loop time) and failed; concurrent failures count once."""
        if began < self._slowed_at:
            return
        self._slowed_at = asyncio.get_running_loop().time()
        self._limit = max(1.0, self._limit / 2)
        self._resize(self.chunk // 2)
        self._show()

    def _compare(self, cost: float) -> None:
        """Raise or lower the limit: compare what an entry costs now (seconds) with what it costs with few transactions at once."""
        self._learnt += 1
        if self._learnt > ROUND:
            self._learnt, self._limit = 1, min(self._limit, self._few)
        if self._learnt <= LEARNING:
            self._usual_cost += (cost - self._usual_cost) / self._learnt
            self._recent_cost = self._usual_cost
            return
        self._recent_cost += (cost - self._recent_cost) * NEWEST
        cheap = self._recent_cost <= self._usual_cost * TOLERANCE
        limit = self._limit + 1 / self._limit if cheap else max(self._limit * 0.9, min(self._limit, self._few))
        self._limit = min(limit, self._settings.concurrency)

    def _resize(self, entries: int) -> None:
        self.chunk = min(max(entries, LEAST), self._largest)

    def _wake(self) -> None:
        """Admit those who may run now, one of each owner in turn."""
        while self._waiting:
            owner, queue = next(iter(self._waiting.items()))
            while queue and queue[0].done():  # cancelled
                queue.popleft()
            if queue:
                if self._running >= self._allowed:
                    break
                self._running += 1
                queue.popleft().set_result(None)
            del self._waiting[owner]
            if queue:
                self._waiting[owner] = queue  # behind the others
        if self._waiting and self._check is None:  # streaming may end without a transaction that ends
            self._check = asyncio.get_running_loop().call_later(RECENT, self._check_again)

    def _check_again(self) -> None:
        self._check = None
        self._wake()

    def _show(self) -> None:
        CONCURRENCY.set(self._allowed)
        CHUNK_ENTRIES.set(self.chunk)
