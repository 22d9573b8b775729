"""What judging takes and gives: the rules and policies it asks, the context it depends on, verdicts and the judgement."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, Protocol

import msgspec

from cgm_proxy.core.issues import Issue
from cgm_proxy.core.json_values import JsonObject
from cgm_proxy.core.submission.identity import ReferenceResolver
from cgm_proxy.core.submission.model import Entry, Submission
from cgm_proxy.core.submission.orders import StandingOrder

Policy = Literal["accept", "warn", "reject"]


class Profile(Protocol):
    """What the judge asks of a profile."""

    @property
    def dialect(self) -> str:
        """The id of the guide's version that it belongs to."""


class Rules(Protocol):
    """What the judge asks of the rules; `core.rules.RuleBook` answers it."""

    def profile(self, url: str, dialect: str) -> Profile | None:
        """Give a profile of the dialect by its canonical."""

    def implied(self, resource: JsonObject, dialect: str) -> tuple[str, ...]:
        """List the profiles that its type, code and unit imply."""

    def made_of(self, profile: str) -> frozenset[str]:
        """List the profiles of what a profile's resource consists of."""

    def examine(
        self,
        resource: JsonObject,
        profiles: Sequence[str],
        resolve: ReferenceResolver,
        *,
        dialect: str,
        encoded: bytes | None = None,
    ) -> tuple[Issue, ...]:
        """List what is wrong with a resource by base R4 and by the profiles."""


class Policies(Protocol):
    """What each finding about orders does; `settings.Policies` is one."""

    @property
    def no_order(self) -> Policy:
        """The patient has no active order."""

    @property
    def incomplete(self) -> Policy:
        """No schedule is satisfied whole."""

    @property
    def unsolicited(self) -> Policy:
        """No order asks for the entry's profile."""

    @property
    def outside_lookback(self) -> Policy:
        """The entry is older than the order reaches back."""

    @property
    def too_often(self) -> Policy:
        """The order's period since the last submission is not over."""


@dataclass(frozen=True, slots=True)
class JudgingContext:
    """All that a verdict depends on beside the submission: orders, what is stored, policies, rules and the time."""

    rules: Rules
    policies: Policies
    allowed_types: tuple[str, ...]
    now: datetime
    max_depth: int
    patient_known: bool = True
    """Whether the upstream has the submission's patient."""
    orders: tuple[StandingOrder, ...] = ()
    stored_resources: Mapping[str, JsonObject] | None = None
    """Stored resources that entries reference, by reference."""
    last_submission: datetime | None = None
    """When something new of the patient was last stored, by another submission than this one."""
    fingerprint: str = ""
    """The submission's, where it matters whether it is the last one once more."""
    observe: bool = False


class Verdict(msgspec.Struct, frozen=True, gc=False):
    """What was found about one entry. It is accepted unless an issue refuses it."""

    entry: Entry
    profiles: tuple[str, ...]
    issues: tuple[Issue, ...] = ()

    @property
    def accepted(self) -> bool:
        """Whether the entry may be stored."""
        return not self.issues or not any(issue.refuses for issue in self.issues)


@dataclass(frozen=True, slots=True)
class Judgement:
    """The verdicts in the entries' order, and the issues of the submission as a whole."""

    submission: Submission
    verdicts: tuple[Verdict, ...]
    issues: tuple[Issue, ...] = ()
    retry_after: timedelta | None = None
    """How long to wait, where it came too often and the policy rejects that."""

    @property
    def accepted(self) -> bool:
        """Whether the submission goes on, with those of its entries that are accepted."""
        whole = not any(issue.refuses for issue in self.issues)
        return whole and not (self.submission.atomic and any(not verdict.accepted for verdict in self.verdicts))
