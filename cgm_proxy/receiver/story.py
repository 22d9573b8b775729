"""The story of a submission: find orders → judge → find duplicates → plan → send → settle → reply.

Judging, planning and replying do no I/O; finding orders, finding duplicates and sending are the only awaits.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from typing import TypeVar

from cgm_proxy.cache.cache import Cache, Orders
from cgm_proxy.core.issues import Issue, RequestRefused
from cgm_proxy.core.submission import reply
from cgm_proxy.core.submission.batching import parts
from cgm_proxy.core.submission.dialects import ORDER_TOKENS
from cgm_proxy.core.submission.judge import IncrementalJudge, reference_resolver
from cgm_proxy.core.submission.model import Entry, Submission
from cgm_proxy.core.submission.orders import read_orders
from cgm_proxy.core.submission.outcomes import Outcome
from cgm_proxy.core.submission.plan import AcceptedEntry, Planner, identify
from cgm_proxy.core.submission.references import as_stored
from cgm_proxy.core.submission.verdicts import Judgement, JudgingContext, Rules
from cgm_proxy.observability import metrics
from cgm_proxy.observability.stream_stats import StreamStats
from cgm_proxy.offload import StoppedError, Throttle, Turns
from cgm_proxy.receiver.duplicates import DuplicateFinder
from cgm_proxy.receiver.forwarding.chunks import Delivery
from cgm_proxy.receiver.forwarding.gone import GoneReferences
from cgm_proxy.receiver.forwarding.ledger import Ledger
from cgm_proxy.receiver.forwarding.retry_budget import RetryBudget
from cgm_proxy.receiver.forwarding.send import Sender
from cgm_proxy.receiver.referenced import look_up
from cgm_proxy.receiver.storing import Part, Storing
from cgm_proxy.settings.loading import Settings
from cgm_proxy.upstream.client import Requester, UpstreamClient
from cgm_proxy.upstream.faults import within

#: Entries that are judged, and then stored, together.
PART = 1000

#: Threads that judge at once: more would only wait for one another and for the threads that parse bodies.
JUDGES = 2

#: Most threads that judge or wait for their turn to judge.
MOST_THREADS = 256

#: There was no time to judge an entry, or all of them.
UNJUDGED = Issue(
    "judging-timeout",
    "this receiver had no time to judge the entry; send it again, with fewer or smaller entries beside it",
    code="timeout",
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Receipt:
    """A submission's judgement, and the response to each entry."""

    judgement: Judgement
    responses: tuple[reply.EntryResponse, ...]

    @property
    def outcome(self) -> str:
        """The label of the metrics: `stored`, `duplicate`, `partly`, `refused` or `failed`."""
        statuses = {response.status for response in self.responses}
        if 503 in statuses:
            return "failed"
        if statuses <= {200, 201}:
            return "stored" if 201 in statuses else "duplicate"
        return "partly" if statuses & {200, 201} else "refused"


class Receiver:
    """Receives submissions. All of them share one receiver."""

    def __init__(
        self, settings: Settings, upstream: UpstreamClient, rules: Rules, cache: Cache, stats: StreamStats
    ) -> None:
        self._settings = settings
        self._upstream = upstream
        self.rules = rules
        """The rules for submissions that begin from now on; replaced when the rules are reloaded."""
        self._cache = cache
        self._stats = stats
        submissions = settings.limits.in_flight + settings.jobs.at_once
        self._judges = ThreadPoolExecutor(min(submissions, MOST_THREADS), "judge")
        self._turns = Turns(JUDGES)
        self._localize = settings.bases.localize

    async def receive(self, submission: Submission, requester: Requester, preferred: reply.Return) -> Receipt:
        """Judge a submission and store its accepted entries, part by part.

        Raises `RequestRefused` if the whole submission is refused, if the upstream fails before anything was sent, or if
        there is no time to judge it.
        """
        loop = asyncio.get_running_loop()
        async with within(self._settings.limits.seconds):
            context = await self._judging_context(submission, requester)
        judge = IncrementalJudge(submission, context)
        async with self._cache.patient_lock(submission.patient or "") as lock:
            settings, upstream, cache = self._settings, self._upstream, self._cache
            deadline = loop.time() + settings.limits.seconds
            delivery = Delivery(
                Sender(upstream, requester, preferred),
                DuplicateFinder(upstream, cache, requester, submission.patient or ""),
                lock,
                RetryBudget(settings.upstream.retries, deadline),
                Ledger(),
                GoneReferences(upstream, requester),
            )
            stored_form = as_stored(context.resolved_references, self._localize)
            planner = Planner(submission, settings.limits.atomic_entries, stored_form)
            storing = Storing(submission, context, planner, delivery, cache)
            async with aclosing(_one_ahead(self._judge(judge, context, stored_form, deadline))) as parts_in_order:
                outcomes = await storing.store(parts_in_order)
        if not judge.is_complete:
            raise RequestRefused(503, (UNJUDGED,))
        return await loop.run_in_executor(self._judges, _reply, judge, outcomes)

    async def _judging_context(self, submission: Submission, requester: Requester) -> JudgingContext:
        """Find what the verdicts depend on: the patient's orders, the resources that entries reference, the last submission."""
        rules = self.rules  # a submission is judged by the rules in force when it begins
        orders = await self._orders(submission.patient, requester) if submission.patient else None
        rejecting = self._settings.policies.too_often == "reject"
        fingerprint = await asyncio.to_thread(submission.fingerprint) if rejecting else ""
        referenced = await look_up(submission, self._upstream, requester, self._localize)
        return JudgingContext(
            rules=rules,
            policies=self._settings.policies,
            allowed_types=self._settings.allow,
            now=datetime.now(UTC),
            max_depth=self._settings.limits.depth,
            max_elements=self._settings.limits.elements,
            patient_known=orders is not None,
            orders=orders or (),
            stored_resources=referenced.resources,
            allowed_references=referenced.allowed,
            resolved_references=referenced.resolved,
            excess_references=referenced.excess,
            last_submission=await self._cache.last_submission(submission.patient, fingerprint),
            fingerprint=fingerprint,
            observe=self._settings.mode == "observe",
        )

    async def _orders(self, patient: str, requester: Requester) -> Orders:
        """Return the patient's orders, or None if there is no such patient.

        The patient is read each time, however long the orders are cached: a submitter whose token was revoked is refused, also if
        nothing of the submission would go upstream because all of it is known.
        """
        if not await self._upstream.exists(patient, requester):
            return None

        async def search() -> Orders:
            query = {"subject": patient, "status": "active", "code": ",".join(ORDER_TOKENS), "_count": "100"}
            return read_orders(await self._upstream.search("ServiceRequest", query, requester))

        return await self._cache.orders(patient, requester.credentials, search)

    async def _judge(
        self, judge: IncrementalJudge, context: JudgingContext, stored_form: Callable[[str], str], deadline: float
    ) -> AsyncGenerator[Part, None]:
        """Yield the judged parts; none before it is certain that the submission is not refused as a whole.

        A thread judges them, whatever they cost. What is not judged at the `deadline` (event loop time) is not stored.
        """
        submission = judge.submission
        resolve = reference_resolver(submission, context.stored_resources)
        throttle = Throttle(self._stats, self._turns, submission.patient)
        first: Mapping[int, AcceptedEntry] | None = None

        def judge_part(entries: Iterable[Entry], earlier: Mapping[int, AcceptedEntry]) -> Part:
            with throttle.turn():
                verdicts = judge.judge(entries, throttle)
                return Part(verdicts, identify(verdicts, submission, resolve, stored_form, earlier))

        loop, waiting = asyncio.get_running_loop(), Part()
        expiry = loop.call_at(deadline, throttle.stop)
        remaining = parts(submission, PART)
        try:
            for entries in remaining:
                try:
                    part = await loop.run_in_executor(self._judges, judge_part, entries, first or {})
                except StoppedError:
                    if judge.acceptance_is_final:
                        yield waiting + Part(judge.give_up((*entries, *chain.from_iterable(remaining)), UNJUDGED))
                    return
                if first is None:  # it holds all entries that entries of other parts may reference
                    first = {each.entry.index: each for each in part.accepted}
                waiting += part
                if judge.acceptance_is_final:
                    yield waiting
                    waiting = Part()
        finally:
            expiry.cancel()
            throttle.stop()


async def _one_ahead(items: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    """Yield items, and produce the next one while the caller works on the last."""
    upcoming = asyncio.ensure_future(anext(items, None))
    try:
        while (item := await upcoming) is not None:
            upcoming = asyncio.ensure_future(anext(items, None))
            yield item
    finally:
        upcoming.cancel()
        await asyncio.wait([upcoming])
        await items.aclose()


def _reply(judge: IncrementalJudge, outcomes: Mapping[int, Outcome]) -> Receipt:
    """Return the responses, and count them; raises `RequestRefused` if the whole submission is refused."""
    judgement = judge.judgement()
    receipt = Receipt(judgement, reply.entry_responses(judgement, outcomes))
    refused = reply.refusal(judgement, receipt.responses)
    metrics.count(judgement, receipt.responses)
    if refused:
        raise refused
    return receipt
