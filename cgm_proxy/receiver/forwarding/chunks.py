"""Delivers one chunk: look up, send, settle, and send again or in parts, until the outcome of each entry is known.

The tables in `core/rest/reactions.py` decide what each answer of the server leads to, and `retry_budget.py` how often and
after which pauses a chunk is sent again. This module carries it out.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from cgm_proxy.cache.backends import PatientLock
from cgm_proxy.core.rest.reactions import REACTIONS
from cgm_proxy.core.rest.responses import EntryResult, Retry, UpstreamRefusal
from cgm_proxy.core.rest.strategy import BATCH, Strategy
from cgm_proxy.core.submission.outcomes import UNKNOWN, Refused, Stored, refused
from cgm_proxy.core.submission.plan import Group, Plan
from cgm_proxy.observability.metrics import CHUNKS
from cgm_proxy.receiver.duplicates import DuplicateFinder
from cgm_proxy.receiver.forwarding.gone import GoneReferences
from cgm_proxy.receiver.forwarding.ledger import Ledger
from cgm_proxy.receiver.forwarding.retry_budget import Attempts, RetryBudget
from cgm_proxy.receiver.forwarding.send import Sender
from cgm_proxy.upstream.client import NOT_ALLOWED
from cgm_proxy.upstream.faults import FAILED, UNAVAILABLE

NO_LOCK = refused(
    503,
    "turn-lost",
    "another submission of the patient may be in progress, and the server can't create conditionally; send the entry again",
    code="conflict",
)

#: How long nothing is sent after a request that may still be carried out, if its entries must not be sent again (seconds).
SETTLING = 1.0


@dataclass(frozen=True, slots=True)
class Delivery:
    """What delivering the entries of one submission needs; all its chunks share it."""

    sender: Sender
    duplicates: DuplicateFinder
    lock: PatientLock
    budget: RetryBudget
    ledger: Ledger
    gone: GoneReferences


class Chunks:
    """Delivers the chunks of one plan by one strategy; the outcomes are recorded in the ledger."""

    def __init__(self, plan: Plan, strategy: Strategy, delivery: Delivery) -> None:
        self._plan = plan
        self._strategy = strategy
        self._upstream = delivery.sender.upstream
        self._delivery = delivery
        self._ledger = delivery.ledger
        self._budget = delivery.budget
        self._may_arrive_late: set[int] = set()
        self._batches_tell = strategy.sending.whole and strategy.batches

    async def deliver(self, groups: Sequence[Group], *, half: bool = False, cleared: bool = False) -> None:
        """Send groups in one chunk, again while that may help, and in parts if the server refuses it or fails at it.

        `half` is whether they are half of a chunk that was given up, `cleared` whether they are those of a refused chunk that
        the refusal did not name. A group that is too large for the server is left without an outcome.
        """
        self._refuse_gone(groups)
        attempts = Attempts(self._budget, half=half)
        look, condition_failed = self._strategy.creating.looks, False
        remaining = self._ledger.unsettled(groups)
        while remaining:
            answer = await self._attempt(_indices(remaining), look=look)
            remaining = self._ledger.unsettled(remaining)
            if isinstance(answer, UpstreamRefusal):
                return await self._refused(remaining, answer, cleared=cleared)
            causes = {retry.cause for retry in answer.values()}
            if condition_failed and causes == {"unclear"}:
                return await self._condition_failed_again(remaining, answer)
            if any(REACTIONS[cause].looks for cause in causes):
                look = condition_failed = True
            if remaining and not await attempts.another(causes):
                return await self._give_up(remaining, answer)
        return None

    # One attempt -----------------------------------------------------------------------------------------------------

    async def _attempt(self, indices: Sequence[int], *, look: bool) -> UpstreamRefusal | dict[int, Retry]:
        """Look up and send once; record the outcomes, and return why the other entries have none."""
        budget = self._budget
        while True:
            await asyncio.sleep(budget.pause)
            async with self._upstream.limiter.place(budget):
                if budget.used_up:
                    return dict.fromkeys(indices, Retry("busy"))
                if budget.pause:
                    continue
                began = asyncio.get_running_loop().time()
                retries, to_send = await self._look(indices) if look else ({}, list(indices))
                if to_send and self._strategy.creating.alone and not self._delivery.lock.held:
                    self._ledger.record(dict.fromkeys(to_send, NO_LOCK))
                    return retries
                entries = [self._plan.creates[index] for index in to_send]
                locations = self._ledger.locations(self._plan, entries)
                results = await self._delivery.sender.send(entries, locations, self._strategy) if entries else []
            if isinstance(results, UpstreamRefusal):
                CHUNKS.labels("refused").inc()
                budget.succeeded()
                return results
            each = [results] * len(to_send) if isinstance(results, Retry) else results
            retries |= {i: result for i, result in zip(to_send, each, strict=True) if isinstance(result, Retry)}
            self._report(retries, began)
            if self._strategy.creating.alone:
                self._may_arrive_late |= {i for i, r in retries.items() if REACTIONS[r.cause].may_arrive_late}
            await self._settle(dict(zip(to_send, each, strict=True)))
            return retries

    async def _look(self, indices: Sequence[int]) -> tuple[dict[int, Retry], list[int]]:
        """Search for entries: record those that are stored; return why some can't be sent now, and which are to be sent."""
        creating = self._strategy.creating
        entries = [self._plan.creates[index] for index in indices]
        found, retries = await self._delivery.duplicates.look_up(entries, by_id=creating.by_id, required=creating.looks)
        self._ledger.record(found)
        remaining = [index for index in indices if index not in found and index not in retries]
        late = {index: Retry("lost") for index in remaining if index in self._may_arrive_late}
        return retries | late, [index for index in remaining if index not in late]

    async def _settle(self, results: Mapping[int, EntryResult]) -> None:
        """Record results. Entries that the server says it had before must be about this patient."""
        stored = {index: result for index, result in results.items() if isinstance(result, Stored)}
        existing = {index: result for index, result in stored.items() if not result.created}
        if stored:
            CHUNKS.labels("stored").inc()
        self._ledger.record({index: result for index, result in stored.items() if result.created})
        refusals = {index: result for index, result in results.items() if isinstance(result, UpstreamRefusal)}
        self._ledger.record({index: refusal.as_refused() for index, refusal in refusals.items()})
        if existing:
            not_confirmed = await self._delivery.duplicates.not_confirmed([self._plan.creates[i] for i in existing])
            self._ledger.record({**existing, **not_confirmed})
        if refusals:  # one shows it, if entries are refused for the same missing reference
            index, refusal = next(iter(refusals.items()))
            await self._delivery.gone.learn(refusal, self._sent_references([index]))

    def _report(self, retries: Mapping[int, Retry], began: float) -> None:
        """Report the attempt to the retry budget."""
        failures = [retry for retry in retries.values() if REACTIONS[retry.cause].slows]
        if not failures:
            self._budget.succeeded()
            return
        late = self._strategy.creating.alone and any(REACTIONS[retry.cause].may_arrive_late for retry in failures)
        self._budget.failed(began, max(SETTLING if late else 0.0, *(retry.wait for retry in failures)))

    # When sending the same again does not help -----------------------------------------------------------------------

    async def _refused(self, groups: Sequence[Group], refusal: UpstreamRefusal, *, cleared: bool = False) -> None:
        """Record the refusal of a chunk of one group; of a larger chunk, find the guilty groups."""
        negotiation, indices = self._upstream.strategy, _indices(groups)
        if refusal.too_large and len(indices) > 1:
            negotiation.too_large(len(indices))
            if len(groups) == 1 and not self._plan.atomic:
                return
        if not cleared:
            await self._delivery.gone.learn(refusal, self._sent_references(indices))
        if refusal.refuses_all and refusal.status not in NOT_ALLOWED:
            negotiation.doubt()
        if len(groups) > 1 and not refusal.refuses_all:
            await self._narrow(groups, refusal, cleared=cleared)
        else:
            self._ledger.record(dict.fromkeys(indices, refusal.as_refused()))

    async def _narrow(self, groups: Sequence[Group], refusal: UpstreamRefusal, *, cleared: bool) -> None:
        """Find the guilty groups of a refused chunk with few requests, however many there are.

        Those that share a reference to what does not exist are refused at once. Those that the refusal names are sent apart
        from the others, once. Then a batch shows which entries are guilty, and halving shows it of whatever a batch does not.
        """
        self._refuse_gone(groups)
        remaining = self._ledger.unsettled(groups)
        if len(remaining) < len(groups):
            return await self.deliver(remaining, cleared=True)
        by_batch = self._batches_tell and not refusal.too_large
        if not (by_batch and cleared):
            entries = [self._plan.creates[index] for index in _indices(groups)]
            positions = refusal.named(entries, self._ledger.locations(self._plan, entries))
            named = {entries[position].entry.index for position in positions}
            guilty = [group for group in groups if not named.isdisjoint(group)]
            innocent = [group for group in groups if named.isdisjoint(group)]
            if guilty and innocent:
                await self.deliver(innocent, cleared=True)
                return await self.deliver(guilty)
        if by_batch and len(single := [group for group in groups if len(group) == 1]) > 1:
            await _StandIns(self._plan, self._strategy, self._delivery, self._may_arrive_late).deliver(single)
            groups = self._ledger.unsettled(groups)
            self._batches_tell = not self._ledger.unsettled(single)
        half = len(groups) // 2
        for part in (groups[:half], groups[half:]):
            await self.deliver(part, cleared=cleared)
        return None

    def _refuse_gone(self, groups: Iterable[Group]) -> None:
        """Refuse the groups with a reference that the server turned out not to have."""
        for group in self._ledger.unsettled(groups) if self._delivery.gone else ():
            if refusal := self._delivery.gone.refusal(self._sent_references(group)):
                self._ledger.record(dict.fromkeys(group, refusal))

    def _sent_references(self, indices: Iterable[int]) -> set[str]:
        """Return the references of entries as they are sent, without versions."""
        entries = [self._plan.creates[index] for index in indices]
        written = self._ledger.locations(self._plan, entries)
        references = {written.get(r, r) for each in entries for r in each.entry.references}
        return {reference.partition("/_history/")[0] for reference in references}

    async def _condition_failed_again(self, groups: Sequence[Group], answer: Mapping[int, Retry]) -> None:
        """Treat a condition that failed again as a refusal: the search in between did not find what it matches."""
        refusals = {index: retry.refusal for index, retry in answer.items()}
        refusal = next((each for each in refusals.values() if each), None)
        if refusal and len({id(retry) for retry in answer.values()}) == 1:  # one answer for all
            await self._refused(groups, refusal)
        else:
            self._ledger.record({i: each.as_refused() if each else UNKNOWN for i, each in refusals.items()})

    async def _give_up(self, groups: Sequence[Group], answer: Mapping[int, Retry]) -> None:
        """Answer 503 for the entries; but first halve a chunk in which one bad entry may keep the others out."""
        CHUNKS.labels("unknown").inc()
        causes = {retry.cause for retry in answer.values()}
        halves = len(causes) == 1 and all(REACTIONS[cause].halves for cause in causes)
        if halves and len(groups) > 1 and self._budget.halve():
            half = len(groups) // 2
            await self.deliver(groups[:half], half=True)
            await self.deliver(groups[half:], half=True)
            return
        for index, retry in answer.items():
            why = FAILED if retry.cause == "failed" else UNAVAILABLE
            issues = retry.refusal.as_refused().issues if retry.refusal else why.issues
            self._ledger.record({index: Refused(503, UNKNOWN.issues + issues)})


class _StandIns(Chunks):
    """Sends the entries of a refused transaction as a batch, whose answer tells which of them are guilty."""

    def __init__(self, plan: Plan, strategy: Strategy, delivery: Delivery, may_arrive_late: set[int]) -> None:
        super().__init__(plan, replace(strategy, sending=BATCH), delivery)
        self._may_arrive_late = may_arrive_late

    async def _refused(self, groups: Sequence[Group], refusal: UpstreamRefusal, *, cleared: bool = False) -> None:
        """Leave the entries without an outcome: a batch that is refused whole tells nothing about them."""


def _indices(groups: Iterable[Group]) -> list[int]:
    return [index for group in groups for index in group]
