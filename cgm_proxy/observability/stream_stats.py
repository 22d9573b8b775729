"""Counts of the streamed traffic: plain numbers, which cost nothing to keep and are read when somebody asks.

One event loop writes them. A metrics endpoint reads them as they are; nothing here knows of its format.
"""

import math
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from time import monotonic
from typing import Final, TypeVar

T = TypeVar("T")

#: Upper bounds of the latency histogram's buckets (seconds); one more bucket holds what is slower.
LATENCY_BOUNDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

#: How long after its answer a streamed request counts as one of several (seconds).
RECENT = 0.1


@dataclass(slots=True)
class StreamStats:
    """What has been streamed since the start.

    `responses` counts responses by status, `faults` refusals and broken answers by rule id, `bytes_up` and `bytes_down`
    what was sent to the upstream and to clients (with heads and framing), `latency` the answers by the time to their head
    (see `LATENCY_BOUNDS`), `latency_sum` that time (seconds), `in_flight` the requests under way, `last_response` when the last
    answer came (`time.monotonic`).
    """

    responses: Counter[int] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    bytes_up: int = 0
    bytes_down: int = 0
    latency: list[int] = field(default_factory=lambda: [0] * (len(LATENCY_BOUNDS) + 1))
    latency_sum: float = 0.0
    in_flight: int = 0
    last_response: float = -math.inf

    def count_response(self, status: int, seconds: float) -> None:
        """Count the head of an answer that the upstream gave after `seconds`."""
        self.responses[status] += 1
        self.latency[bisect_left(LATENCY_BOUNDS, seconds)] += 1
        self.latency_sum += seconds
        self.last_response = monotonic()

    @property
    def streaming(self) -> bool:
        """Whether requests stream through now: by their answers, since a client that never reads one waits for nothing."""
        return monotonic() - self.last_response < RECENT
