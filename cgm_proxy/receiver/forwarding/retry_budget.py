"""The retry policy: how often, and after which pauses, the entries of one submission are sent again.

All chunks of a submission share one budget, since they meet the same server. It is used up when the server failed too
often in a row, or wants more time than the submission has left.
"""

import asyncio
import random
from collections.abc import Collection

from cgm_proxy.core.rest.reactions import RACES, RACES_OF_A_HALF, REACTIONS, Cause

#: Pause after a first failure (seconds); it triples with each further failure in a row.
FIRST_PAUSE = 0.05

#: Longest pause, unless the server asks for a longer one (seconds).
LONGEST_PAUSE = 5.0

#: Longest pause after a lost race (seconds): the winner is done soon.
RACE_PAUSE = 1.0

#: The budget is used up by as many failures in a row as this many chunks would be given up after.
FAILING_CHUNKS = 3

#: How often the chunks of one submission are halved because the server fails at them (500, 409); after that the server itself
#: is taken for broken, not an entry.
HALVINGS = 32


class RetryBudget:
    """Bounds how often one submission is sent to a server that fails; `deadline` is a time of the event loop."""

    def __init__(self, retries: int, deadline: float) -> None:
        self.retries = retries
        self._max_failures = FAILING_CHUNKS * (retries + 1)
        self.deadline = deadline
        self._failures_in_a_row = 0
        self._last_failure = 0.0
        self._pause_until = 0.0
        self._halvings = HALVINGS

    @property
    def used_up(self) -> bool:
        """Whether nothing more may be sent."""
        return self._failures_in_a_row >= self._max_failures or self._pause_until >= self.deadline

    @property
    def pause(self) -> float:
        """How long nothing is sent from now on (seconds)."""
        return 0.0 if self.used_up else max(self._pause_until - asyncio.get_running_loop().time(), 0.0)

    def succeeded(self) -> None:
        """Count the failures in a row from zero again."""
        self._failures_in_a_row = 0

    def failed(self, began: float, wait: float) -> None:
        """Count the failure of a request that began at `began` (event loop time); concurrent failures count once.

        `wait` is how long the server wants to be left alone (seconds).
        """
        now = asyncio.get_running_loop().time()
        self._pause_until = max(self._pause_until, now + wait)
        if began >= self._last_failure:
            self._last_failure = now
            back_off = _spread(min(FIRST_PAUSE * 3**self._failures_in_a_row, LONGEST_PAUSE))
            self._pause_until = max(self._pause_until, now + back_off)
            self._failures_in_a_row += 1

    def halve(self) -> bool:
        """Whether a chunk may be halved because the server fails at it; counts the halving."""
        self._halvings -= 1
        return self._halvings >= 0


class Attempts:
    """Counts how often one chunk is sent; half of a chunk that was given up gets fewer attempts."""

    def __init__(self, budget: RetryBudget, *, half: bool = False) -> None:
        self._budget = budget
        self._retries = 0 if half else budget.retries
        self._races = RACES_OF_A_HALF if half else RACES
        self._lost_races = 0

    async def another(self, causes: Collection[Cause]) -> bool:
        """Whether the chunk may be sent once more; after a lost race this pauses first, to keep the competitors apart."""
        if any(REACTIONS[cause].repeats == "retry" for cause in causes):
            self._retries -= 1
            return self._retries >= 0 and not self._budget.used_up
        self._lost_races += 1
        await asyncio.sleep(_spread(min(FIRST_PAUSE * 2**self._lost_races, RACE_PAUSE, LONGEST_PAUSE)))
        return self._lost_races <= self._races


def _spread(longest: float) -> float:
    return longest * random.uniform(0.5, 1)  # noqa: S311 -- it spreads retries in time, it keeps no secret
