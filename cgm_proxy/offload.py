"""Work that would block the event loop runs in a thread, and the thread pauses while requests stream through.

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

#: How long a thread works between two pauses while requests stream through.
WORK_SECONDS = 0.001
#: How long a pause lasts.
PAUSE_SECONDS = 0.002

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


async def offload(size: int, call: Callable[[*Ts], T], *arguments: *Ts) -> T:
    """Call a function that works on `size` bytes: in a thread if that would block the event loop, else directly."""
    return await asyncio.to_thread(call, *arguments) if size >= IN_THREAD_BYTES else call(*arguments)


class StoppedError(Exception):
    """The work was stopped, because its result is no longer needed."""


class Throttle:
    """Pauses long work in a thread while requests stream through; the work calls it again and again."""

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
        """Pause, if requests stream through and the work has gone on for `WORK_SECONDS` since the last pause."""
        if self._stopped:
            raise StoppedError
        if monotonic() - self._began < WORK_SECONDS:
            return
        if self._stats.streaming:
            sleep(PAUSE_SECONDS)
        self._began = monotonic()
