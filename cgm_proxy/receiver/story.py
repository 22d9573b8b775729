"""The story of a submission, as one function that reads like the architecture's line.

Judge, plan and reply are pure; finding orders, finding what is known and forwarding are the only awaits.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime

from cgm_proxy.cache.cache import Cache, Orders
from cgm_proxy.core.http.base_urls import BaseUrls
from cgm_proxy.core.json_values import JsonObject
from cgm_proxy.core.submission import reply
from cgm_proxy.core.submission.batching import parts
from cgm_proxy.core.submission.dialects import ORDER_TOKENS
from cgm_proxy.core.submission.judge import IncrementalJudge
from cgm_proxy.core.submission.model import Entry, Submission
from cgm_proxy.core.submission.orders import read_orders
from cgm_proxy.core.submission.plan import Outcome
from cgm_proxy.core.submission.verdicts import Judgement, JudgingContext, Rules
from cgm_proxy.observability import metrics
from cgm_proxy.observability.stream_stats import StreamStats
from cgm_proxy.offload import Throttle
from cgm_proxy.receiver.storing import Part, Receiver, Storing
from cgm_proxy.settings.loading import Settings
from cgm_proxy.upstream.client import Requester, UpstreamClient
from cgm_proxy.upstream.faults import within

#: Entries that are judged, and then stored, together.
PART = 1000

#: Threads that judge: more would only wait for one another, and for those who read bodies.
JUDGES = 2

#: What has more entries than this is judged and answered in a thread, so that streamed traffic goes on.
JUDGED_IN_THREAD = 250

#: Stored resources that one submission may refer to, which are read before judging.
REFERENCED = 200

#: Types of stored resources that matter to a verdict or an identity, when an entry refers to them.
STORED_REFERENCE = re.compile(r"(?:Observation|Device|DiagnosticReport)/[A-Za-z0-9\-.]{1,64}")


@dataclass(frozen=True, slots=True)
class Finished:
    """A submission's judgement, and the answer to each entry."""

    judgement: Judgement
    answers: tuple[reply.EntryResponse, ...]

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

    def __init__(
        self, settings: Settings, upstream: UpstreamClient, rules: Rules, memory: Cache, traffic: StreamStats
    ) -> None:
        self._settings = settings
        self._upstream = upstream
        self.rules = rules
        """Judge what begins from now on; replaced when the rules are read again."""
        self._memory = memory
        self._traffic = traffic
        self._judges = ThreadPoolExecutor(JUDGES, "judge")
        self._localize = BaseUrls.of(settings.listen.public_url, settings.upstream.url).localize
        self._receiver = Receiver(settings, upstream, memory, self._localize)

    async def take(self, submission: Submission, submitter: Requester, preferred: reply.Return) -> Finished:
        """Tell the story: find orders → judge → find known → plan → forward → reply.

        Raises `RequestRefused` where the whole of it is refused, or the upstream fails before anything was sent.
        """
        async with within(self._settings.limits.seconds):
            context = await self._find_orders(submission, submitter)
        storing = Storing(self._receiver, submission, context, submitter, preferred)
        async with self._memory.patient_lock(submission.patient or "") as turn, asyncio.TaskGroup() as tasks:
            judging = IncrementalJudge(submission, context)
            async for part in self._judged(judging, storing):
                storing.begin(part, tasks, turn)
        outcomes = await storing.finish()
        if len(submission.entries) > JUDGED_IN_THREAD:
            return await asyncio.to_thread(_finished, judging, outcomes)
        return _finished(judging, outcomes)

    async def _judged(self, judging: IncrementalJudge, storing: Storing) -> AsyncIterator[Part]:
        """Judge part by part, and give what may be stored: nothing before it is sure that it is not refused with the whole."""
        throttle = Throttle(self._traffic)

        def judged(entries: Iterable[Entry]) -> Part:
            return storing.identify(judging.judge(entries))

        waiting = Part()
        try:
            for entries in parts(judging.submission, PART):
                if len(entries) > JUDGED_IN_THREAD:
                    waiting += await asyncio.get_running_loop().run_in_executor(
                        self._judges, judged, throttle.over(entries)
                    )
                else:
                    waiting += judged(entries)
                if judging.acceptance_is_final:
                    yield waiting
                    waiting = Part()
        finally:
            throttle.stop()

    async def _find_orders(self, submission: Submission, submitter: Requester) -> JudgingContext:
        """Gather all that the verdicts depend on: the patient's orders, what entries refer to, when it last submitted."""
        rules = self.rules  # those that are in force as it begins
        orders = await self._orders(submission.patient, submitter) if submission.patient else None
        rejecting = self._settings.policies.too_often == "reject"
        fingerprint = await asyncio.to_thread(submission.fingerprint) if rejecting else ""
        return JudgingContext(
            rules=rules,
            policies=self._settings.policies,
            allowed_types=self._settings.allow,
            now=datetime.now(UTC),
            max_depth=self._settings.limits.depth,
            patient_known=orders is not None,
            orders=orders or (),
            stored_resources=await self._referenced(submission, submitter),
            last_submission=await self._memory.last_submission(submission.patient, fingerprint),
            fingerprint=fingerprint,
            observe=self._settings.mode == "observe",
        )

    async def _orders(self, patient: str, submitter: Requester) -> Orders:
        async def ask() -> Orders:
            if not await self._upstream.patient(patient, submitter):
                return None
            parameters = {"subject": patient, "status": "active", "code": ",".join(ORDER_TOKENS), "_count": "100"}
            return read_orders(await self._upstream.search("ServiceRequest", parameters, submitter))

        return await self._memory.orders(patient, submitter.credentials, ask)

    async def _referenced(self, submission: Submission, submitter: Requester) -> dict[str, JsonObject]:
        """Read the stored resources that entries refer to, once each and as many as is reasonable."""
        wanted: dict[str, list[str]] = {}
        for reference in {
            r for entry in submission.entries for r in entry.references if r not in submission.internal_references
        }:
            local = self._localize(reference).partition("/_history/")[0]
            if STORED_REFERENCE.fullmatch(local):
                wanted.setdefault(local, []).append(reference)
        found = await self._upstream.read(sorted(wanted)[:REFERENCED], submitter) if wanted else {}
        return {reference: found[local] for local, said in wanted.items() if local in found for reference in said}


def _finished(judging: IncrementalJudge, outcomes: Mapping[int, Outcome]) -> Finished:
    """Give the answers and count them; raises `RequestRefused` where the whole of it is refused."""
    judgement = judging.judgement()
    finished = Finished(judgement, reply.answers(judgement, outcomes))
    refused = reply.refusal(judgement, finished.answers)
    metrics.count(judgement, finished.answers)
    if refused:
        raise refused
    return finished
