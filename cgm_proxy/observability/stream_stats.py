"""Statistics of the streamed requests: plain numbers, which cost the relay next to nothing to count.

One event loop writes them; `metrics.py` converts them to metrics when these are read.
"""

import math
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from time import monotonic
from typing import Final

#: Upper bounds of the latency histogram's buckets (seconds); one more bucket holds slower responses.
LATENCY_BOUNDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

#: How long after the last response the proxy still counts as streaming (seconds).
RECENT = 0.1


@dataclass(slots=True)
class StreamStats:
    """What has been streamed since the start.

    - `responses`: responses, by status.
    - `faults`: requests that were refused and responses that broke off, by rule id.
    - `bytes_up`, `bytes_down`: bytes sent to the upstream and to clients, headers and framing included.
    - `latency`: responses by the time until they began, in the buckets of `LATENCY_BOUNDS`; `latency_sum` is the sum
      of these times (seconds).
    - `in_flight`: requests in flight.
    - `last_response`: when the last response began (`time.monotonic`).
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
        """Count a response that began `seconds` after its request."""
        self.responses[status] += 1
        self.latency[bisect_left(LATENCY_BOUNDS, seconds)] += 1
        self.latency_sum += seconds
        self.last_response = monotonic()

    @property
    def streaming(self) -> bool:
        """Whether requests are being streamed now.

        Recent responses decide this, not requests in flight: a client that does not read its response waits for nothing.
        """
        return monotonic() - self.last_response < RECENT
