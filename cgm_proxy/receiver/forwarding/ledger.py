"""The outcomes of a submission's entries so far, in one place: every part, wave and chunk records them here."""

from collections.abc import Iterable, Mapping, Sequence

from cgm_proxy.core.submission.outcomes import UNKNOWN, Outcome, Refused, Stored
from cgm_proxy.core.submission.plan import AcceptedEntry, Group, Plan


class Ledger:
    """The outcomes of entries, by index. An outcome that is recorded here is true, whatever fails later."""

    def __init__(self) -> None:
        self._outcomes: dict[int, Outcome] = {}

    def record(self, outcomes: Mapping[int, Outcome]) -> None:
        """Record outcomes; an entry's later outcome replaces the earlier one."""
        self._outcomes.update(outcomes)

    def get(self, index: int) -> Outcome | None:
        """Return the outcome of an entry; None if it is not known yet."""
        return self._outcomes.get(index)

    def unsettled(self, groups: Iterable[Group]) -> list[Group]:
        """Return the groups reduced to the entries without an outcome."""
        return [left for group in groups if (left := tuple(i for i in group if i not in self._outcomes))]

    def locations(self, plan: Plan, entries: Sequence[AcceptedEntry]) -> dict[str, str]:
        """Return the references of these entries that change on the way upstream, each with its replacement.

        A reference to a stored entry becomes its location; others are replaced by the plan's aliases.
        """
        if not plan.links and not plan.aliases:
            return {}
        replaced: dict[str, str] = {}
        for reference in {r for each in entries for r in each.entry.references}:
            target = plan.links.get(reference)
            outcome = None if target is None else self._outcomes.get(target)
            location = outcome.reference if isinstance(outcome, Stored) else plan.aliases.get(reference)
            if location:
                replaced[reference] = location
        return replaced

    def stored(self, entries: Iterable[AcceptedEntry]) -> dict[str, Stored]:
        """Return where these entries are stored now, by identity."""
        return {
            each.identity: Stored(outcome.location, outcome.etag)
            for each in entries
            if isinstance(outcome := self._outcomes.get(each.entry.index), Stored)
        }

    def outcomes(self, entries: Iterable[int], same_as: Mapping[int, int]) -> dict[int, Outcome]:
        """Return the outcome of each entry; it is unknown if none was recorded.

        A duplicate within the submission has the outcome of the entry that it is the same as, but created nothing.
        """
        outcomes = {index: self._outcomes.get(index, UNKNOWN) for index in entries}
        for index, first in same_as.items():
            outcome = outcomes[first]
            outcomes[index] = Stored(outcome.location, outcome.etag) if isinstance(outcome, Stored) else outcome
        return outcomes

    def refusals(self) -> dict[int, Outcome]:
        """Return the outcomes of the refused entries alone."""
        return {index: outcome for index, outcome in self._outcomes.items() if isinstance(outcome, Refused)}
