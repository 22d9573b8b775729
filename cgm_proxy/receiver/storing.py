"""Store what was accepted of one submission, part by part: find known → plan → forward.

Parts are begun as they are judged: each is looked up, and goes upstream, while later ones are judged.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from cgm_proxy.cache.backends import PatientLock
from cgm_proxy.cache.cache import Cache
from cgm_proxy.core.issues import RequestRefused
from cgm_proxy.core.submission import plan
from cgm_proxy.core.submission.judge import reference_resolver
from cgm_proxy.core.submission.model import Entry, Submission
from cgm_proxy.core.submission.plan import Identified, Outcome, Refused, Stored
from cgm_proxy.core.submission.reply import Return
from cgm_proxy.core.submission.verdicts import JudgingContext, Verdict
from cgm_proxy.receiver.duplicates import UNKNOWN, Known
from cgm_proxy.receiver.forwarding.chunks import Way
from cgm_proxy.receiver.forwarding.waves import (
    Forwarding,
    in_own_words,
    relay_unjudged,
    stored_by_identity,
    twin,
    unanswered,
    unjudged,
)
from cgm_proxy.settings.loading import Settings
from cgm_proxy.upstream.client import Requester, UpstreamClient
from cgm_proxy.upstream.faults import fault


@dataclass(frozen=True, slots=True)
class Receiver:
    """What the storing of any submission needs."""

    settings: Settings
    upstream: UpstreamClient
    memory: Cache
    localize: Callable[[str], str]


@dataclass(frozen=True, slots=True)
class Part:
    """Verdicts of a part of the submission, and what is accepted of it, identified."""

    verdicts: Sequence[Verdict] = ()
    identified: Sequence[Identified] = ()

    def __add__(self, other: "Part") -> "Part":
        return Part([*self.verdicts, *other.verdicts], [*self.identified, *other.identified])


class Storing:
    """Store one submission, within the time that is set for it; what was not stored by then is unknown."""

    def __init__(
        self,
        receiver: Receiver,
        submission: Submission,
        context: JudgingContext,
        submitter: Requester,
        preferred: Return,
    ) -> None:
        self._receiver = receiver
        self._submission = submission
        self._context = context
        self._submitter = submitter
        self._preferred = preferred
        self._deadline = asyncio.get_running_loop().time() + receiver.settings.limits.seconds
        self._resolve = reference_resolver(submission, context.stored_resources)
        self._known = Known(receiver.upstream, receiver.memory, submitter, submission.patient or "")
        self._targets = set(submission.internal_references.values())
        self._first: asyncio.Task[None] | None = None
        self._planned = asyncio.Event()
        self._referenced: dict[int, Identified] = {}
        self._seen: plan.Seen = {}
        self._same_as: dict[int, int] = {}
        self._begun: list[Identified] = []
        self._unjudged: list[Entry] = []
        self._sent = False
        self._failure: RequestRefused | None = None
        self._outcomes: dict[int, Outcome] = {}

    def identify(self, verdicts: Sequence[Verdict]) -> Part:
        """Make a part of its verdicts; the first one holds all that entries of others may reference."""
        identified = plan.identify(verdicts, self._submission, self._resolve, self._referenced)
        self._referenced |= {one.entry.index: one for one in identified if one.entry.index in self._targets}
        return Part(verdicts, identified)

    def begin(self, part: Part, tasks: asyncio.TaskGroup, turn: PatientLock) -> None:
        """Store a part in the background; those that reference entries of the first one wait for it."""
        forward = self._receiver.settings.forward
        if self._first is None:
            self._way = Way(
                self._receiver.upstream,
                self._submitter,
                turn,
                self._preferred,
                self._submission.patient or "",
                concurrency=forward.concurrency,
                retries=self._receiver.settings.upstream.retries,
                deadline=self._deadline,
            )
        self._begun += part.identified
        self._unjudged += unjudged(part.verdicts, part.identified)
        task = tasks.create_task(self._store_in_time(part, self._first))
        self._first = self._first or task

    async def finish(self) -> Mapping[int, Outcome]:
        """Give each accepted entry's outcome, when all parts are through.

        Raises `RequestRefused` where the upstream failed before anything was sent.
        """
        outcomes, memory = self._outcomes, self._receiver.memory
        if self._failure and not self._sent:
            raise self._failure
        for one in self._begun:
            if one.entry.index not in self._same_as:
                outcomes.setdefault(one.entry.index, UNKNOWN)
        for entry in self._unjudged:  # that were not sent
            outcomes.setdefault(entry.index, UNKNOWN)
        self._share_with_twins()
        unknown = any(isinstance(outcome, Refused) and outcome.status == 503 for outcome in outcomes.values())
        if not unknown and any(isinstance(outcome, Stored) and outcome.created for outcome in outcomes.values()):
            await memory.record_submission(self._submission.patient, self._context.now, self._context.fingerprint)
        return await self._represented() if self._preferred == "representation" else outcomes

    async def _store_in_time(self, part: Part, first: asyncio.Task[None] | None) -> None:
        try:
            async with asyncio.timeout_at(self._deadline):
                linked = {index for one in part.identified for index in self._submission.referenced_entries(one.entry)}
                if first and linked:
                    await asyncio.wait([first])
                earlier = [self._referenced[i] for i in linked & self._referenced.keys()] if first else ()
                await self._store(part, earlier, first=first is None)
        except TimeoutError as error:
            self._failure = self._failure or fault(error)
        except RequestRefused as refused:
            self._failure = self._failure or refused
            said = Refused(refused.status, refused.issues)
            if refused.status >= 500:  # of a look-up; that nothing was sent changes nothing for the submitter
                said = Refused(503, UNKNOWN.issues + refused.issues)
            self._outcomes = {one.entry.index: said for one in part.identified} | self._outcomes
        finally:
            if first is None:
                self._planned.set()

    async def _store(self, part: Part, referenced: Sequence[Identified], *, first: bool) -> None:
        """Find known → plan → forward; `referenced` are entries of an earlier part, whose outcomes are known."""
        if self._failure:
            raise self._failure
        receiver, epoch = self._receiver, await self._receiver.memory.generation()
        settled = await self._settled(part)
        if self._submission.atomic and any(isinstance(outcome, Refused) for outcome in settled.values()):
            self._outcomes |= settled
            self._sent = True
            return
        earlier = {o.entry.index: found for o in referenced if (found := self._outcomes.get(o.entry.index))}
        if not first:
            await self._planned.wait()  # of what is there twice, the one that others reference is stored
        planned = plan.plan(
            [*referenced, *part.identified],
            earlier | settled,
            self._submission,
            receiver.settings.limits.atomic_entries,
            receiver.localize,
            self._seen,
        )
        self._planned.set()
        self._same_as |= planned.same_as
        self._sent = True
        await self._forward(planned)
        self._share_with_twins()
        await receiver.memory.add_stored_entries(stored_by_identity(planned, self._outcomes), epoch)
        await self._relay(part)

    async def _settled(self, part: Part) -> dict[int, Outcome]:
        """Find what is stored already, and refuse what can't be stored; by index."""
        settled: dict[int, Outcome] = dict(await self._known.by_condition(part.identified))
        settled |= plan.forged(part.identified)
        asked = [one for one in part.identified if one.entry.index not in settled]
        known = await self._known.by_identity(asked)
        return settled | {one.entry.index: known[one.identity] for one in asked if one.identity in known}

    async def _forward(self, planned: plan.Plan) -> None:
        forwarding = Forwarding(planned, self._way)
        confirmed: dict[int, Outcome] = {}
        try:
            await forwarding.run()
            doubted = await self._known.not_confirmed(planned.creates.values(), forwarding.said)
            confirmed = {**forwarding.outcomes, **doubted}
        finally:  # when the time is over, too: what was created stands, what was found stored has not been looked at
            sure = {i: o for i, o in forwarding.outcomes.items() if not isinstance(o, Stored) or o.created}
            self._outcomes |= sure | confirmed

    def _share_with_twins(self) -> None:
        for index, first in self._same_as.items():
            if outcome := self._outcomes.get(first):
                self._outcomes[index] = twin(outcome)

    async def _relay(self, part: Part) -> None:
        """Let through what `observe` mode does not refuse; it may change what is stored, as any batch may."""
        if left := unjudged(part.verdicts, part.identified):
            batch = in_own_words(left)
            self._outcomes |= dict.fromkeys((entry.index for entry in left), unanswered())
            async with self._receiver.memory.invalidating_bundle(batch):
                relayed = await relay_unjudged(left, batch, self._receiver.upstream, self._submitter)
            self._outcomes |= relayed

    async def _represented(self) -> Mapping[int, Outcome]:
        """Add the stored resources that the upstream did not send along; without those that can't be had, all is stored."""
        outcomes = self._outcomes
        lacking = {o.reference for o in outcomes.values() if isinstance(o, Stored) and o.resource is None}
        try:
            async with asyncio.timeout_at(self._deadline):
                found = await self._receiver.upstream.read(sorted(lacking), self._submitter)
        except (RequestRefused, TimeoutError):
            return outcomes
        return {
            index: msgspec.structs.replace(outcome, resource=found.get(outcome.reference))
            if isinstance(outcome, Stored) and outcome.resource is None
            else outcome
            for index, outcome in outcomes.items()
        }
