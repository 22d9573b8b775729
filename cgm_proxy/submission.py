"""The story of a submission, as one function that reads like the architecture's line.

Judge, plan and reply are pure; finding orders, finding what is known and forwarding are the only awaits.
"""

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from cgm_proxy import metrics
from cgm_proxy.core import plan, reply
from cgm_proxy.core.bundle import Submission, localizer, names
from cgm_proxy.core.dialects import ORDER_TOKENS
from cgm_proxy.core.errors import Json, RequestRefused
from cgm_proxy.core.judge import judge, resolver
from cgm_proxy.core.orders import read_orders
from cgm_proxy.core.plan import Outcome, Refused, Stored
from cgm_proxy.core.verdicts import Context, Judgement, Rules
from cgm_proxy.forward import Forwarding, in_own_words, relay_unjudged, stored_by_identity, unjudged
from cgm_proxy.known import Known
from cgm_proxy.memory import Memory, Orders
from cgm_proxy.settings import Settings
from cgm_proxy.upstream import Submitter, Upstream
from cgm_proxy.upstream_faults import within

#: Submissions of more entries than this are judged in a thread, so that streamed traffic goes on.
LARGE = 250

#: Stored resources that one submission may refer to, which are read before judging.
REFERENCED = 200

#: Types of stored resources that matter to a verdict or an identity, when an entry refers to them.
STORED_REFERENCE = re.compile(r"(?:Observation|Device|DiagnosticReport)/[A-Za-z0-9\-.]{1,64}")


@dataclass(frozen=True, slots=True)
class Finished:
    """A submission's judgement, and the answer to each entry."""

    judgement: Judgement
    answers: tuple[reply.Answer, ...]

    @property
    def outcome(self) -> str:
        """What became of it, for the metrics: `stored`, `duplicate`, `partly`, `refused` or `failed`."""
        statuses = {answer.status for answer in self.answers}
        if 503 in statuses:
            return "failed"
        if statuses <= {200, 201}:
            return "stored" if 201 in statuses else "duplicate"
        return "partly" if statuses & {200, 201} else "refused"


class Submissions:
    """Take submissions; it holds all that a story needs beside the submission itself."""

    def __init__(self, settings: Settings, upstream: Upstream, rules: Rules, memory: Memory) -> None:
        self._settings = settings
        self._upstream = upstream
        self._rules = rules
        self._memory = memory
        self._localize = localizer(settings.listen.public_url, settings.upstream.url)

    async def take(self, submission: Submission, submitter: Submitter, preferred: reply.Return) -> Finished:
        """Tell the story: find orders → judge → find known → plan → forward → reply.

        Raises `RequestRefused` where the whole of it is refused, or the upstream fails before anything was sent.
        """
        async with within(self._settings.limits.seconds):
            context = await self._find_orders(submission, submitter)
        judgement = await self._judge(submission, context)
        outcomes: Mapping[int, Outcome] = {}
        if judgement.accepted:
            async with self._memory.turn(submission.patient or ""):
                outcomes = await self._store(judgement, context, submitter, preferred)
        finished = Finished(judgement, reply.answers(judgement, outcomes))
        refused = reply.refusal(judgement, finished.answers)
        metrics.count(judgement, finished.answers)
        if refused:
            raise refused
        return finished

    async def _find_orders(self, submission: Submission, submitter: Submitter) -> Context:
        """Gather all that the verdicts depend on: the patient's orders, what entries refer to, when it last submitted."""
        orders = await self._orders(submission.patient, submitter) if submission.patient else None
        return Context(
            rules=self._rules,
            policies=self._settings.policies,
            allow=self._settings.allow,
            now=datetime.now(UTC),
            depth=self._settings.limits.depth,
            patient_known=orders is not None,
            orders=orders or (),
            stored=await self._referenced(submission, submitter),
            last_submission=await self._memory.last_submission(submission.patient),
            observe=self._settings.mode == "observe",
        )

    async def _orders(self, patient: str, submitter: Submitter) -> Orders:
        async def ask() -> Orders:
            if not await self._upstream.patient(patient, submitter):
                return None
            parameters = {"subject": patient, "status": "active", "code": ",".join(ORDER_TOKENS), "_count": "100"}
            return read_orders(await self._upstream.search("ServiceRequest", parameters, submitter))

        return await self._memory.orders(patient, submitter.credentials, ask)

    async def _referenced(self, submission: Submission, submitter: Submitter) -> dict[str, Json]:
        """Read the stored resources that entries refer to, once each and as many as is reasonable."""
        inner = names(submission.entries)
        wanted: dict[str, list[str]] = {}
        for reference in {r for entry in submission.entries for r in entry.references if r not in inner}:
            local = self._localize(reference).partition("/_history/")[0]
            if STORED_REFERENCE.fullmatch(local):
                wanted.setdefault(local, []).append(reference)
        found = await self._upstream.read(sorted(wanted)[:REFERENCED], submitter) if wanted else {}
        return {reference: found[local] for local, said in wanted.items() if local in found for reference in said}

    async def _judge(self, submission: Submission, context: Context) -> Judgement:
        if len(submission.entries) <= LARGE:
            return judge(submission, context)
        return await asyncio.to_thread(judge, submission, context)

    async def _store(
        self, judgement: Judgement, context: Context, submitter: Submitter, preferred: reply.Return
    ) -> Mapping[int, Outcome]:
        """Find known → plan → forward."""
        submission, limits, epoch = judgement.submission, self._settings.limits, await self._memory.epoch()
        identified = plan.identify(judgement, resolver(submission.entries, context.stored))
        look_ups = Known(self._upstream, self._memory, submitter, submission.patient or "")
        async with within(limits.seconds):
            settled: dict[int, Outcome] = {**await look_ups.by_condition(identified), **plan.forged(identified)}
            asked = [one for one in identified if one.entry.index not in settled]
            known = await look_ups.by_identity(asked)
        if submission.atomic and any(isinstance(outcome, Refused) for outcome in settled.values()):
            return settled
        bounds = plan.Bounds(self._settings.forward.chunk, limits.atomic_entries, atomic=submission.atomic)
        planned = plan.plan(identified, known, settled, bounds, self._localize)
        forwarding = Forwarding(planned, self._upstream, submitter, self._settings.forward, preferred)
        try:
            async with asyncio.timeout(limits.seconds):
                outcomes = await forwarding.run()
        except TimeoutError:
            outcomes = forwarding.complete()
        taken = await look_ups.not_confirmed(planned.creates.values(), outcomes)
        outcomes |= taken | {index: taken[first] for index, first in planned.same_as.items() if first in taken}
        await self._memory.remember(stored_by_identity(planned, outcomes), epoch)
        if any(isinstance(outcome, Stored) and outcome.created for outcome in outcomes.values()):
            await self._memory.note_submission(submission.patient, context.now)
        outcomes |= {one.entry.index: known[one.identity] for one in asked if one.identity in known}
        outcomes |= await self._relayed(judgement, identified, submitter)
        return await self._represented(outcomes, submitter) if preferred == "representation" else outcomes

    async def _relayed(
        self, judgement: Judgement, identified: Sequence[plan.Identified], submitter: Submitter
    ) -> Mapping[int, Outcome]:
        """Let through what `observe` mode does not refuse; it may change what is stored, as any batch may."""
        left = unjudged(judgement, identified)
        if not left:
            return {}
        batch = in_own_words(left)
        try:
            return await relay_unjudged(left, batch, self._upstream, submitter)
        finally:
            await self._memory.notice_bundle(batch)

    async def _represented(self, outcomes: Mapping[int, Outcome], submitter: Submitter) -> Mapping[int, Outcome]:
        """Add the stored resources that the upstream did not send along; without those that can't be had, all is stored."""
        lacking = {o.reference for o in outcomes.values() if isinstance(o, Stored) and o.resource is None}
        try:
            found = await self._upstream.read(sorted(lacking), submitter)
        except RequestRefused:
            return outcomes
        return {
            index: replace(outcome, resource=found.get(outcome.reference))
            if isinstance(outcome, Stored) and outcome.resource is None
            else outcome
            for index, outcome in outcomes.items()
        }
