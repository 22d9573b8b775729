"""What each answer of the upstream to a create leads to, in two tables: from status to cause, and from cause to reaction.

For example, a 409 is a lost race or a lasting conflict. The chunk is sent again up to `RACES` times, without slowing down. If
the conflict lasts, the chunk is halved until the guilty entry is alone. That entry is answered 503 with the server's words,
and the other entries are stored.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

#: Why an entry has no location:
#: - `refused`: the server refuses it for good;
#: - `conflict`: it conflicts with a concurrent or an earlier write;
#: - `unclear`: its condition failed, or it is stored but the server did not say where;
#: - `busy`: the server did nothing;
#: - `failed`: the server failed at it;
#: - `lost`: it is unknown what the server did.
Cause = Literal["refused", "conflict", "unclear", "busy", "failed", "lost"]


def cause_of(status: int, *, explained: bool, retry_after: bool) -> Cause:
    """Return the cause of a status from 300.

    `explained` is whether the body is a JSON object: a 500 without one may come from a gateway, whatever the server did.
    `retry_after` is whether `Retry-After` is given: with it a 503 says that nothing was done (RFC 9110, 15.6.4).
    """
    match status:
        case 408 | 425 | 429:
            return "busy"
        case 409:  # HAPI answers it to the loser of a race (HAPI-0550, HAPI-2745), and to whatever its store refuses
            return "conflict"
        case 412:
            return "unclear"
        case 500 if explained:
            return "failed"
        case 501 | 505:
            return "refused"
        case 503 if retry_after:
            return "busy"
        case _:
            return "lost" if status >= 500 else "refused"


@dataclass(frozen=True, slots=True)
class Reaction:
    """What the proxy does about a cause."""

    repeats: Literal["never", "race", "retry"]
    """How often the chunk is sent again: up to `RACES` times after a short pause; or as often as the retry budget allows,
    with back-off, and not before a `Retry-After` has passed."""
    slows: bool = False
    """Whether it counts as a failure of the server: the rate limiter halves what is under way."""
    looks: bool = False
    """Whether the server is searched for the entries before they are sent again."""
    halves: bool = False
    """Whether the chunk is halved when its retries are used up, so that one bad entry does not keep the others out."""
    may_arrive_late: bool = False
    """Whether the request may still be carried out: entries that are not created conditionally are not sent again."""


REACTIONS: Mapping[Cause, Reaction] = {
    "refused": Reaction("never", halves=True),
    "conflict": Reaction("race", halves=True),
    "unclear": Reaction("race", looks=True),
    "busy": Reaction("retry", slows=True),
    "failed": Reaction("retry", slows=True, halves=True),
    "lost": Reaction("retry", slows=True, may_arrive_late=True),
}

#: How often a chunk is sent again after lost races, and each half of a chunk that lost all of them.
RACES = 12
RACES_OF_A_HALF = 3
