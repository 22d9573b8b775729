"""One path from the accepted entries of a submission to what the upstream holds: find duplicates → plan → send → settle.

The parts of a submission are found and planned one after another, in order. Each part is sent in the background, while
the next ones are judged, found and planned. A part whose entries reference entries of the first part is sent after it.
Entries that share a condition (`ifNoneExist`) are decided one after another, when all other entries are stored.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from cgm_proxy.cache.backends import NO_GENERATION
from cgm_proxy.cache.cache import Cache
from cgm_proxy.cache.writes import affected_by_bundle
from cgm_proxy.core.issues import RequestRefused
from cgm_proxy.core.submission.model import Entry, Submission
from cgm_proxy.core.submission.outcomes import UNKNOWN, Outcome, PassedThrough, Refused, Stored
from cgm_proxy.core.submission.plan import AcceptedEntry, Plan, Planner, size_of
from cgm_proxy.core.submission.verdicts import JudgingContext, Verdict
from cgm_proxy.offload import offload
from cgm_proxy.receiver.forwarding.chunks import Delivery
from cgm_proxy.receiver.forwarding.waves import forward
from cgm_proxy.receiver.pass_through import batch_of, pass_through, unanswered, unjudged
from cgm_proxy.upstream.faults import count_fault

#: Statuses of a search after which later parts are not searched for: the server did not answer at all.
OUT_OF_REACH = frozenset({503, 504})


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a submission: its verdicts, and the accepted entries with their identities."""

    verdicts: Sequence[Verdict] = ()
    accepted: Sequence[AcceptedEntry] = ()

    def __add__(self, other: "Part") -> "Part":
        return Part([*self.verdicts, *other.verdicts], [*self.accepted, *other.accepted])


@dataclass(frozen=True, slots=True)
class Search:
    """What a search for duplicates found: outcomes of entries by index, and the cache generation they are based on."""

    settled: Mapping[int, Outcome]
    generation: str = NO_GENERATION
    failure: RequestRefused | None = None
    """Why the search failed; then no entry of the part is sent."""


class Storing:
    """Stores the accepted entries of one submission."""

    def __init__(
        self, submission: Submission, context: JudgingContext, planner: Planner, delivery: Delivery, cache: Cache
    ) -> None:
        self._submission = submission
        self._context = context
        self._planner = planner
        self._delivery = delivery
        self._ledger = delivery.ledger
        self._cache = cache
        self._deadline = delivery.budget.deadline

    async def store(self, parts: AsyncIterator[Part]) -> Mapping[int, Outcome]:
        """Store the accepted entries of all parts, and return the outcome of each, by index.

        Raises `RequestRefused` if the upstream failed before anything was sent.
        """
        entries: list[int] = []
        plans: list[Plan] = []
        failures: list[RequestRefused] = []
        searches = 0
        first: asyncio.Task[None] | None = None
        async with asyncio.TaskGroup() as sending:
            async for part in parts:
                passing = unjudged(part.verdicts, part.accepted)
                entries += [each.entry.index for each in part.accepted] + [entry.index for entry in passing]
                search = await self._search(part.accepted, failures)
                searches += 1
                if search.failure:
                    failures.append(search.failure)
                    passing = []
                if plan := await self._plan(part.accepted, search):
                    plans.append(plan)
                    after = first if plan.earlier else None
                    task = sending.create_task(self._send(plan, search.generation, passing, after=after))
                    first = first or task
        if failures and len(failures) == searches:
            raise failures[0]
        postponed = [each for plan in plans for each in plan.postponed]
        while postponed:  # entries that share a condition: each round decides at least one of them
            search = await self._search(postponed, failures)
            failures += [search.failure] if search.failure else []
            if plan := await self._plan(postponed, search):
                plans.append(plan)
                await self._send(plan, search.generation)
            postponed = list(plan.postponed) if plan else []
        if self._submission.atomic and not plans:  # one of its entries was refused, so nothing was sent
            return self._ledger.refusals()
        same_as = {index: first_index for plan in plans for index, first_index in plan.same_as.items()}
        outcomes = self._ledger.outcomes(entries, same_as)
        unknown = any(isinstance(outcome, Refused) and outcome.status == 503 for outcome in outcomes.values())
        if not unknown and any(isinstance(outcome, Stored) and outcome.created for outcome in outcomes.values()):
            context = self._context
            await self._cache.record_submission(self._submission.patient, context.now, context.fingerprint)
        return await self._with_resources(outcomes) if self._delivery.sender.prefer == "representation" else outcomes

    async def _search(self, accepted: Sequence[AcceptedEntry], failures: Sequence[RequestRefused]) -> Search:
        """Search for duplicates, unless the server was out of reach in an earlier search."""
        try:
            if failures and failures[-1].status in OUT_OF_REACH:
                raise failures[-1]
            async with asyncio.timeout_at(self._deadline):
                generation = await self._cache.generation()
                return Search(await self._delivery.duplicates.find(accepted), generation)
        except (RequestRefused, TimeoutError) as error:
            failure = error if isinstance(error, RequestRefused) else count_fault(error)
            settled = dict.fromkeys((each.entry.index for each in accepted), _not_sent(failure))
            return Search(settled, failure=RequestRefused(failure.status, failure.issues, failure.headers))

    async def _plan(self, accepted: Sequence[AcceptedEntry], search: Search) -> Plan | None:
        """Plan the entries that are not settled; an atomic submission with a refused entry has no plan."""
        plan = await offload(size_of(accepted), self._planner.plan, accepted, search.settled)
        if self._submission.atomic and any(isinstance(outcome, Refused) for outcome in plan.settled.values()):
            self._ledger.record(plan.settled)
            return None
        return plan

    async def _send(
        self,
        plan: Plan,
        generation: str,
        passing: Sequence[Entry] = (),
        *,
        after: asyncio.Task[None] | None = None,
    ) -> None:
        """Send a plan's entries, then those that observe mode passes through; entries not sent in time stay unknown."""
        sender = self._delivery.sender
        try:
            async with asyncio.timeout_at(self._deadline):
                if after:
                    await asyncio.wait([after])
                await forward(plan, self._delivery)
                await self._cache.add_stored_entries(self._ledger.stored(plan.creates.values()), generation)
                if passing:  # this may change stored resources, as any batch may
                    batch = batch_of(passing)
                    self._ledger.record(dict.fromkeys((entry.index for entry in passing), unanswered()))
                    async with self._cache.invalidating(affected_by_bundle(batch)) as invalidation:
                        invalidation.linger = self._cache.unseen_seconds
                        outcomes = await pass_through(passing, batch, sender.upstream, sender.requester)
                        self._ledger.record(outcomes)
                        if not any(isinstance(o, PassedThrough) and o.status == 503 for o in outcomes.values()):
                            invalidation.linger = 0.0
        except TimeoutError as error:
            count_fault(error)

    async def _with_resources(self, outcomes: Mapping[int, Outcome]) -> Mapping[int, Outcome]:
        """Add the stored resources that the upstream did not send along, as far as the submitter itself may read them."""
        lacking = {o.reference for o in outcomes.values() if isinstance(o, Stored) and o.resource is None}
        sender = self._delivery.sender
        try:
            async with asyncio.timeout_at(self._deadline):
                found = await sender.upstream.read(sorted(lacking), sender.requester, own=True)
        except (RequestRefused, TimeoutError):
            return outcomes  # without the resources: everything is stored
        return {
            index: msgspec.structs.replace(outcome, resource=found.get(outcome.reference))
            if isinstance(outcome, Stored) and outcome.resource is None
            else outcome
            for index, outcome in outcomes.items()
        }


def _not_sent(refusal: RequestRefused) -> Refused:
    """Return the outcome of entries that could not be searched for, and so were not sent."""
    if refusal.status >= 500:
        return Refused(503, UNKNOWN.issues + refusal.issues)
    return Refused(refusal.status, refusal.issues)
