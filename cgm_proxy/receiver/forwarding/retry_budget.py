"""How often, and how long, one submission asks an upstream that fails or wants to be left alone."""

import asyncio
import random

#: Pause after a first failure, seconds; after each further one in a row it is three times as long.
FIRST_PAUSE = 0.05

#: Longest pause that is not the upstream's own wish, seconds.
LONGEST_PAUSE = 5.0

#: Longest pause after a lost race, seconds: who won it is done soon.
RACE_PAUSE = 1.0

#: Failures in a row, in numbers of those that one chunk may meet, until nothing more is sent.
CHUNKS = 3


class RetryBudget:
    """Bound what one submission asks: no more once the upstream failed so often in a row, or wants more time than is left."""

    def __init__(self, retries: int, deadline: float) -> None:
        self._most = CHUNKS * (retries + 1)
        self._deadline = deadline
        self._row = 0
        self._failed = 0.0
        self._until = 0.0

    @property
    def over(self) -> bool:
        """Whether nothing more is to be sent."""
        return self._row >= self._most or self._until >= self._deadline

    @property
    def resting(self) -> float:
        """How long nothing is to be sent now (seconds)."""
        return 0.0 if self.over else max(self._until - asyncio.get_running_loop().time(), 0.0)

    def succeeded(self) -> None:
        """Begin to count anew."""
        self._row = 0

    def failed(self, began: float, wait: float) -> None:
        """Count a failure of what began at `began` (the loop's time); what was under way together fails together.

        `wait` is how long the upstream wants to be left alone (seconds).
        """
        now = asyncio.get_running_loop().time()
        self._until = max(self._until, now + wait)
        if began >= self._failed:
            self._failed = now
            self._until = max(self._until, now + _spread(min(FIRST_PAUSE * 3**self._row, LONGEST_PAUSE)))
            self._row += 1


async def after_race(lost: int) -> None:
    """Wait before a race is run again that was lost so often."""
    await asyncio.sleep(_spread(min(FIRST_PAUSE * 2**lost, RACE_PAUSE, LONGEST_PAUSE)))


def _spread(longest: float) -> float:
    return longest * random.uniform(0.5, 1)  # noqa: S311 -- it spreads retries, it keeps no secret
