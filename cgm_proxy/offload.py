"""Work beside the event loop: what would block it runs in a thread, and the thread pauses while requests stream through.

Python threads share one interpreter lock, so a thread alone does not keep the event loop responsive: `Throttle` makes long
work stop for a moment every millisecond as long as other requests are being answered.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from time import monotonic, sleep
from typing import TypeVar, TypeVarTuple

from cgm_proxy.observability.stream_stats import StreamStats

#: Work on this many bytes or more runs in a thread.
IN_THREAD_BYTES = 2**18

#: How long a thread works between pauses, and how long a pause lasts, while requests stream through (seconds).
WORK = 0.001
PAUSE = 0.002

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


async def offload(size: int, call: Callable[[*Ts], T], *arguments: *Ts) -> T:
    """Call a function that works on `size` bytes: in a thread if that would block the event loop, else directly."""
    return await asyncio.to_thread(call, *arguments) if size >= IN_THREAD_BYTES else call(*arguments)


class StoppedError(Exception):
    """Nobody waits any longer for the result of this work."""


class Throttle:
    """Called again and again by long work in a thread; pauses it while requests stream through."""

    def __init__(self, stats: StreamStats) -> None:
        self._stats = stats
        self._began = monotonic()
        self._stopped = False

    def stop(self) -> None:
        """Make the work end with `StoppedError` at its next call; a thread can't be cancelled."""
        self._stopped = True

    def over(self, items: Iterable[T]) -> Iterator[T]:
        """Yield the items to work on, with a pause after each one where it is due."""
        for item in items:
            yield item
            self()

    def __call__(self) -> None:
        """Pause, if requests stream through and the work has gone on for `WORK` seconds since the last pause."""
        if self._stopped:
            raise StoppedError
        if monotonic() - self._began < WORK:
            return
        if self._stats.streaming:
            sleep(PAUSE)
        self._began = monotonic()
