"""One path from the accepted entries of a submission to what the upstream holds: find duplicates → plan → send → settle.

The parts of a submission are found and planned one after another, in order. Each part is sent in the background, while
the next ones are judged, found and planned. A part whose entries reference entries of the first part is sent after it.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from cgm_proxy.cache.backends import PatientLock
from cgm_proxy.cache.cache import Cache
from cgm_proxy.core.issues import RequestRefused
from cgm_proxy.core.submission.model import Entry, Submission
from cgm_proxy.core.submission.outcomes import UNKNOWN, Outcome, Refused, Stored
from cgm_proxy.core.submission.plan import AcceptedEntry, Plan, Planner
from cgm_proxy.core.submission.reply import Return
from cgm_proxy.core.submission.verdicts import JudgingContext, Verdict
from cgm_proxy.receiver.duplicates import DuplicateFinder
from cgm_proxy.receiver.forwarding.chunks import Delivery
from cgm_proxy.receiver.forwarding.ledger import Ledger
from cgm_proxy.receiver.forwarding.retry_budget import RetryBudget
from cgm_proxy.receiver.forwarding.send import Sender
from cgm_proxy.receiver.forwarding.waves import forward
from cgm_proxy.receiver.pass_through import batch_of, pass_through, unanswered, unjudged
from cgm_proxy.settings.loading import Settings
from cgm_proxy.upstream.client import Requester, UpstreamClient
from cgm_proxy.upstream.faults import fault

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
class Store:
    """Stores submissions: the settings, the upstream and the cache that all of them share."""

    settings: Settings
    upstream: UpstreamClient
    cache: Cache
    localize: Callable[[str], str]
    """Makes references to this server relative."""

    async def store(
        self,
        submission: Submission,
        parts: AsyncIterator[Part],
        lock: PatientLock,
        context: JudgingContext,
        requester: Requester,
        preferred: Return,
    ) -> Mapping[int, Outcome]:
        """Store the accepted entries of all parts within the time limit, and return the outcome of each, by index.

        Raises `RequestRefused` if the upstream failed before anything was sent.
        """
        deadline = asyncio.get_running_loop().time() + self.settings.limits.seconds
        duplicates = DuplicateFinder(self.upstream, self.cache, requester, submission.patient or "")
        planner = Planner(submission, self.settings.limits.atomic_entries, self.localize)
        delivery = Delivery(
            Sender(self.upstream, requester, preferred),
            duplicates,
            lock,
            RetryBudget(self.settings.upstream.retries, deadline),
            Ledger(),
        )
        entries: list[int] = []
        same_as: dict[int, int] = {}
        first: asyncio.Task[None] | None = None
        failure: RequestRefused | None = None
        begun = False
        async with asyncio.TaskGroup() as sending:
            async for part in parts:
                passing = unjudged(part.verdicts, part.accepted)
                entries += [each.entry.index for each in part.accepted] + [entry.index for entry in passing]
                generation = ""
                try:
                    if failure and failure.status in OUT_OF_REACH:
                        raise failure
                    async with asyncio.timeout_at(deadline):
                        generation = await self.cache.generation()
                        settled = await duplicates.find(part.accepted)
                    begun = True
                except (RequestRefused, TimeoutError) as error:
                    failure = error if isinstance(error, RequestRefused) else fault(error)
                    settled = dict.fromkeys((each.entry.index for each in part.accepted), _not_sent(failure))
                    passing = []
                if submission.atomic and any(isinstance(outcome, Refused) for outcome in settled.values()):
                    delivery.ledger.record(settled)
                    continue
                plan = planner.plan(part.accepted, settled)
                same_as |= plan.same_as
                after = first if plan.earlier else None
                task = sending.create_task(
                    self._send(plan, passing, delivery, generation, after=after, deadline=deadline)
                )
                first = first or task
        if failure and not begun:
            raise failure
        outcomes = delivery.ledger.outcomes(entries, same_as)
        return await self._settle(outcomes, submission, context, requester, preferred, deadline=deadline)

    async def _send(
        self,
        plan: Plan,
        passing: Sequence[Entry],
        delivery: Delivery,
        generation: str,
        *,
        after: asyncio.Task[None] | None,
        deadline: float,
    ) -> None:
        """Send a plan's entries, then those that observe mode passes through. What is not done in time stays unknown."""
        ledger = delivery.ledger
        try:
            async with asyncio.timeout_at(deadline):
                if after:
                    await asyncio.wait([after])
                await forward(plan, delivery)
                await self.cache.add_stored_entries(ledger.stored(plan.creates.values()), generation)
                if passing:  # this may change stored resources, as any batch may
                    batch = batch_of(passing)
                    ledger.record(dict.fromkeys((entry.index for entry in passing), unanswered()))
                    async with self.cache.invalidating_bundle(batch):
                        ledger.record(await pass_through(passing, batch, self.upstream, delivery.sender.requester))
        except TimeoutError as error:
            fault(error)  # counts it

    async def _settle(
        self,
        outcomes: Mapping[int, Outcome],
        submission: Submission,
        context: JudgingContext,
        requester: Requester,
        preferred: Return,
        *,
        deadline: float,
    ) -> Mapping[int, Outcome]:
        """Record that the patient submitted, and read the stored resources if the submitter wants to see them."""
        unknown = any(isinstance(outcome, Refused) and outcome.status == 503 for outcome in outcomes.values())
        if not unknown and any(isinstance(outcome, Stored) and outcome.created for outcome in outcomes.values()):
            await self.cache.record_submission(submission.patient, context.now, context.fingerprint)
        if preferred != "representation":
            return outcomes
        lacking = {o.reference for o in outcomes.values() if isinstance(o, Stored) and o.resource is None}
        try:
            async with asyncio.timeout_at(deadline):
                found = await self.upstream.read(sorted(lacking), requester)
        except (RequestRefused, TimeoutError):
            return outcomes  # without the resources: everything is stored
        return {
            index: msgspec.structs.replace(outcome, resource=found.get(outcome.reference))
            if isinstance(outcome, Stored) and outcome.resource is None
            else outcome
            for index, outcome in outcomes.items()
        }


def _not_sent(refusal: RequestRefused) -> Refused:
    """Return the outcome of entries that could not be searched for; nothing of them was sent."""
    if refusal.status >= 500:
        return Refused(503, UNKNOWN.issues + refusal.issues)
    return Refused(refusal.status, refusal.issues)
