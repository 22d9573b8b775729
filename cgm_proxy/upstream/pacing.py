"""How much goes upstream at once, and in one transaction: more while that costs it no time, half when it fails (AIMD).

One pace is shared by all submissions. Measured on HAPI 8.8 with 2 cores, on H2 and on PostgreSQL alike: about 80 entries in a
transaction (it compares each condition with each resource of the transaction: BaseTransactionProcessor.validateNoDuplicates)
and two transactions at once are best; more of either only makes each of them slower, which is what the pace listens to. A larger
server answers as fast to more at once, and gets it.

Who looks at a patient's record goes first: while other requests stream through, fewer transactions are under way
(`forward.beside`), or one with pauses. Two at once fill both cores of such a server, and its garbage collector stops all
requests the more often the more is stored a second.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic

from cgm_proxy.observability.metrics import CHUNK_ENTRIES, CONCURRENCY
from cgm_proxy.observability.stream_stats import RECENT, StreamStats
from cgm_proxy.settings.loading import ForwardSettings

#: Transactions under way at once, to begin with.
FIRST = 2

#: Entries in one transaction, at least, unless the setting is lower.
LEAST = 10

#: Transactions by which it is learnt, with few at once, what an entry usually costs.
LEARNING = 10

#: Transactions after which that is learnt anew: an upstream may get slower, or faster, for reasons of its own.
ROUND = 200

#: How much more than usual an entry may cost, in a transaction among several, until fewer are sent at once.
TOLERANCE = 1.3

#: Weight of the newest transaction in what entries have cost lately.
NEWEST = 0.2

#: Longest pause after a transaction: one that took its time failed, or will be cut (seconds).
LONGEST_PAUSE = 1.0

#: Longest time that one transaction should take; longer ones are cut (seconds).
LONGEST = 5.0


class RateLimiter:
    """Give places to transactions, and tell how large they may be; learn from how long they took, or that they failed."""

    def __init__(self, settings: ForwardSettings, traffic: StreamStats | None = None) -> None:
        self._settings = settings
        self._traffic = traffic or StreamStats()
        self._most = settings.chunk
        self.chunk = settings.chunk
        """Entries in the next transaction."""
        self._few = float(min(FIRST, settings.concurrency))
        self._limit = self._few
        self._busy = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._look: asyncio.TimerHandle | None = None
        self._learnt = 0
        self._usual = self._lately = 0.0
        self._slowed = 0.0
        self._show()

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Wait for a place among the transactions that are under way, in the order of asking."""
        if self._busy >= self._most_at_once or self._waiting:
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            self._wake()
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._busy -= 1
                self._wake()
                raise
        else:
            self._busy += 1
        began = monotonic()
        try:
            yield
        finally:
            beside = self._settings.beside
            if beside < 1 and self._traffic.streaming:
                pause = (monotonic() - began) * (1 / beside - 1)
                asyncio.get_running_loop().call_later(min(pause, LONGEST_PAUSE), self._leave)
            else:
                self._leave()

    @property
    def _most_at_once(self) -> int:
        limit = min(self._limit, self._settings.beside) if self._traffic.streaming else self._limit
        return max(1, int(limit))

    def _leave(self) -> None:
        self._busy -= 1
        self._wake()

    def at_most(self, entries: int | None) -> None:
        """Heed how many entries the upstream takes at once; None where it is not known."""
        self._most = min(entries or self._settings.chunk, self._settings.chunk)
        self._resize(self.chunk)
        self._show()

    def stored(self, entries: int, seconds: float) -> None:
        """Learn from a transaction that the upstream carried out in `seconds`."""
        if entries * 2 >= self.chunk and not self._traffic.streaming:  # a small one costs more an entry, at any pace
            self._compare(seconds / entries)
        if seconds > LONGEST:
            self._resize(int(entries * LONGEST / seconds))
        else:
            self._resize(self.chunk + LEAST)
        self._show()
        self._wake()

    def failed(self, began: float) -> None:
        """Learn from a transaction that began at `began` (the loop's time) and was not answered, or 429 or 5xx.

        What was under way together fails together and counts once.
        """
        if began < self._slowed:
            return
        self._slowed = asyncio.get_running_loop().time()
        self._limit = max(1.0, self._limit / 2)
        self._resize(self.chunk // 2)
        self._show()

    def _compare(self, cost: float) -> None:
        """Grow or shrink by what an entry costs now (seconds) and by what it usually costs with few transactions at once."""
        self._learnt += 1
        if self._learnt > ROUND:
            self._learnt, self._limit = 1, min(self._limit, self._few)
        if self._learnt <= LEARNING:
            self._usual += (cost - self._usual) / self._learnt
            self._lately = self._usual
            return
        self._lately += (cost - self._lately) * NEWEST
        cheap = self._lately <= self._usual * TOLERANCE
        wanted = self._limit + 1 / self._limit if cheap else max(self._limit * 0.9, min(self._limit, self._few))
        self._limit = min(wanted, self._settings.concurrency)

    def _resize(self, entries: int) -> None:
        self.chunk = min(max(entries, LEAST), self._most)

    def _wake(self) -> None:
        while self._waiting and (self._waiting[0].done() or self._busy < self._most_at_once):
            turn = self._waiting.popleft()
            if not turn.done():
                self._busy += 1
                turn.set_result(None)
        if self._waiting and self._look is None:  # who streams may stop
            self._look = asyncio.get_running_loop().call_later(RECENT, self._look_again)

    def _look_again(self) -> None:
        self._look = None
        self._wake()

    def _show(self) -> None:
        CONCURRENCY.set(self._most_at_once)
        CHUNK_ENTRIES.set(self.chunk)
