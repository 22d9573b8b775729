"""Work that would block the event loop runs in a thread, and the thread pauses while requests stream through.

Python threads share one interpreter lock, so a thread alone does not keep the event loop responsive: `Throttle` makes long
work stop for a moment every millisecond as long as other requests are being answered. `Turns` divides the time among those
who have long work, so that nobody waits for the end of another's.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Condition
from time import monotonic, sleep
from typing import TypeVar, TypeVarTuple

from cgm_proxy.observability.stream_stats import StreamStats

#: Work on this many bytes or more runs in a thread.
IN_THREAD_BYTES = 2**18

#: How long a thread works between two pauses while requests stream through.
WORK_SECONDS = 0.001
#: How long a pause lasts.
PAUSE_SECONDS = 0.002

#: How long a thread works before others get their turn.
TURN_SECONDS = 0.02

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


async def offload(size: int, call: Callable[[*Ts], T], *arguments: *Ts) -> T:
    """Call a function that works on `size` bytes: in a thread if that would block the event loop, else directly."""
    return await asyncio.to_thread(call, *arguments) if size >= IN_THREAD_BYTES else call(*arguments)


class StoppedError(BaseException):
    """The work was stopped, because nobody waits for its result any longer.

    Like `CancelledError` it is no `Exception`, so that code which expects faults of its own does not take it for one.
    """


class Turns:
    """Lets a few threads work at once and the others wait; the owners of waiting work are served in turn."""

    def __init__(self, at_once: int) -> None:
        self._free = at_once
        self._waiting: dict[object, deque[object]] = {}
        self._changed = Condition()

    @property
    def wanted(self) -> bool:
        """Whether somebody waits for a turn."""
        return bool(self._waiting)

    def take(self, owner: object, is_stopped: Callable[[], bool]) -> None:
        """Wait for a turn; raises `StoppedError` if the work is stopped meanwhile."""
        ticket = object()
        with self._changed:
            self._waiting.setdefault(owner, deque()).append(ticket)
            self._changed.wait_for(lambda: is_stopped() or (self._free > 0 and self._first is ticket))
            tickets = self._waiting.pop(owner)
            tickets.remove(ticket)
            if tickets:
                self._waiting[owner] = tickets  # behind the others
            self._changed.notify_all()
            if is_stopped():
                raise StoppedError
            self._free -= 1

    @property
    def _first(self) -> object:
        return next(iter(self._waiting.values()))[0]

    def give_back(self) -> None:
        """End a turn."""
        with self._changed:
            self._free += 1
            self._changed.notify_all()

    def look_again(self) -> None:
        """Make those who wait notice that their work was stopped."""
        with self._changed:
            self._changed.notify_all()


class Throttle:
    """Pauses long work in a thread while requests stream through; the work calls it again and again.

    With `turns`, the work is done in `turn()`, and gives way to the work of others.
    """

    def __init__(self, stats: StreamStats, turns: Turns | None = None, owner: object = None) -> None:
        self._stats = stats
        self._turns = turns or Turns(1)
        self._owner = owner
        self._began = self._turn_began = monotonic()
        self._has_turn = False
        self._stopped = False

    def stop(self) -> None:
        """Make the work end with `StoppedError` at its next call; a thread can't be cancelled."""
        self._stopped = True
        self._turns.look_again()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Work when it is the owner's turn."""
        self._take_turn()
        try:
            yield
        finally:
            self._give_turn_back()

    def __call__(self) -> None:
        """Pause if requests stream through and the work has gone on for `WORK_SECONDS`, and let others have their turn."""
        if self._stopped:
            raise StoppedError
        now = monotonic()
        if now - self._began < WORK_SECONDS:
            return
        if self._stats.streaming:
            sleep(PAUSE_SECONDS)
        if self._has_turn and now - self._turn_began > TURN_SECONDS and self._turns.wanted:
            self._give_turn_back()
            self._take_turn()
        self._began = monotonic()

    def _take_turn(self) -> None:
        self._turns.take(self._owner, lambda: self._stopped)
        self._has_turn, self._turn_began = True, monotonic()

    def _give_turn_back(self) -> None:
        if self._has_turn:
            self._has_turn = False
            self._turns.give_back()
