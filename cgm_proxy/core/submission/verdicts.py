"""What judging needs and what it returns.

`Rules` and `Policies` are the interfaces that the judge uses, `JudgingContext` is everything a verdict depends on besides the
submission, `Verdict` is the result for an entry, and `Judgement` the result for a submission.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal, Protocol

import msgspec

from cgm_proxy.core.issues import Issue
from cgm_proxy.core.json_values import JsonObject
from cgm_proxy.core.r4.reference_scope import ReferenceResolver
from cgm_proxy.core.submission.model import Entry, Submission
from cgm_proxy.core.submission.orders import StandingOrder

#: What a finding about orders leads to: nothing, an issue of severity information, or a refusal.
Policy = Literal["accept", "warn", "reject"]


class Profile(Protocol):
    """A profile as the judge sees it."""

    @property
    def dialect(self) -> str:
        """The id of the guide's version that it belongs to."""


class Rules(Protocol):
    """The rules as the judge uses them; implemented by `core.rules.rulebook.RuleBook`."""

    def profile(self, url: str, dialect: str) -> Profile | None:
        """Return the dialect's profile with the canonical URL `url`."""

    def implied(self, resource: JsonObject, dialect: str) -> tuple[str, ...]:
        """Return the profiles that a resource's type, code and unit imply."""

    def made_of(self, profile: str) -> frozenset[str]:
        """Return the profiles of the resources that a profile's resource consists of, such as a summary's members."""

    def examine(
        self,
        resource: JsonObject,
        profiles: Sequence[str],
        resolve: ReferenceResolver,
        *,
        dialect: str,
        encoded: bytes | None = None,
        between: Callable[[], None] = ...,
    ) -> tuple[Issue, ...]:
        """Return what is wrong with a resource by base R4 and by `profiles`; `encoded` is the serialised resource.

        `between` is called again and again.
        """


class Policies(Protocol):
    """What each finding about orders leads to; implemented by `settings.loading.PolicySettings`."""

    @property
    def no_order(self) -> Policy:
        """The patient has no active order."""

    @property
    def incomplete(self) -> Policy:
        """The submission satisfies no schedule completely."""

    @property
    def unsolicited(self) -> Policy:
        """No order asks for the entry."""

    @property
    def outside_lookback(self) -> Policy:
        """The entry is older than the order's lookback period."""

    @property
    def too_often(self) -> Policy:
        """The order's submission period has not passed since the last submission."""


@dataclass(frozen=True, slots=True)
class JudgingContext:
    """Everything that a verdict depends on besides the submission."""

    rules: Rules
    policies: Policies
    allowed_types: tuple[str, ...]
    """The resource types that a submission may create."""
    now: datetime
    max_depth: int
    """How deep a resource may be nested."""
    max_elements: int
    """How many elements a resource may have."""
    patient_known: bool = True
    """Whether the upstream has the submission's patient."""
    orders: tuple[StandingOrder, ...] = ()
    """The patient's active orders, of any dialect."""
    stored_resources: Mapping[str, JsonObject] | None = None
    """Stored resources of the patient that entries reference, by reference; None if nothing was looked up."""
    allowed_references: Collection[str] = ()
    """References to other stored resources that may be stored: to those of the patient whose content does not matter, and those
    that the submitter may not look up, about which the upstream decides."""
    resolved_references: Mapping[str, str] = field(default_factory=dict)
    """Conditional references that lead to a resource of the patient, each with the reference to that resource."""
    excess_references: Collection[str] = ()
    """References that were not looked up because there are too many."""
    last_submission: datetime | None = None
    """When an entry of another submission was last stored for the patient."""
    fingerprint: str = ""
    """The submission's fingerprint, if it is needed to recognise a repetition of the last submission."""
    observe: bool = False
    """Whether nothing is refused: refusals become warnings (`mode: observe`)."""


class Verdict(msgspec.Struct, frozen=True, gc=False):
    """What was found about one entry."""

    entry: Entry
    profiles: tuple[str, ...]
    """The profiles it was judged by; none if it was refused before that."""
    issues: tuple[Issue, ...] = ()

    @property
    def accepted(self) -> bool:
        """Whether the entry may be stored: no issue refuses it."""
        return not self.issues or not any(issue.refuses for issue in self.issues)


@dataclass(frozen=True, slots=True)
class Judgement:
    """The verdicts in the order of the entries, and the issues of the submission as a whole."""

    submission: Submission
    verdicts: tuple[Verdict, ...]
    issues: tuple[Issue, ...] = ()
    retry_after: timedelta | None = None
    """How long to wait, if the submission came too soon after the last one and the policy rejects that."""

    @property
    def accepted(self) -> bool:
        """Whether the accepted entries of the submission may be stored."""
        if any(issue.refuses for issue in self.issues):
            return False
        return not self.submission.atomic or all(verdict.accepted for verdict in self.verdicts)
