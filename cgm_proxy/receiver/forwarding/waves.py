"""Carry out a plan, wave by wave: what is stored whole as it is, what the upstream can't store whole entry by entry."""

import asyncio
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus

from cgm_proxy.core.issues import Issue, RequestRefused, operation_outcome
from cgm_proxy.core.json_values import JsonObject
from cgm_proxy.core.rest.strategy import apart
from cgm_proxy.core.submission.model import Entry
from cgm_proxy.core.submission.plan import Group, Identified, Outcome, PassedThrough, Plan, Refused, Stored
from cgm_proxy.core.submission.verdicts import Verdict
from cgm_proxy.receiver.forwarding.chunks import Delivery, Way
from cgm_proxy.upstream.client import Requester, UpstreamClient

_STATUSES = frozenset(map(int, HTTPStatus))

#: What all entries answer of an atomic submission that the upstream can't store whole.
NOT_WHOLE = Refused(
    501,
    (
        Issue(
            "atomic-not-supported",
            "the server behind this one can't store so much all or nothing; send a batch, which is stored entry by entry",
            code="not-supported",
        ),
    ),
)

#: What an entry answers that only a transaction could store.
CIRCULAR = Refused(
    422,
    (
        Issue(
            "reference-circular",
            "with an entry that repeats another one its references lead in a circle; leave the repetition out",
            code="business-rule",
        ),
    ),
)


#: Said of an entry that was sent in the submitter's own words and is not answered.
UNCONFIRMED = Issue(
    "fate-unknown",
    "the server did not confirm it, and may have stored it; look for it before you send it again",
    code="transient",
)


class Forwarding:
    """Carry out the plan of one part of a submission; `outcomes` grows as the upstream answers."""

    def __init__(self, plan: Plan, way: Way) -> None:
        self._plan = plan
        self._way = way
        self._delivery: Delivery | None = None

    @property
    def outcomes(self) -> Mapping[int, Outcome]:
        """What is known of the plan's entries."""
        return self._delivery.outcomes if self._delivery else self._plan.settled

    @property
    def said(self) -> dict[int, Outcome]:
        """What the upstream said of entries that no look-up has found."""
        found = self._delivery.found if self._delivery else frozenset()
        return {index: outcome for index, outcome in self.outcomes.items() if index not in found}

    async def run(self) -> None:
        """Send everything, wave by wave."""
        if not self._plan.waves:
            return
        strategy = await self._way.upstream.strategy.get()
        self._delivery = Delivery(self._plan, self._way, strategy)
        for wave in self._plan.waves:
            await self._send_wave(self._delivery, [group for group in wave if strategy.fits(group)])
            left = self._delivery.open(wave)
            if self._plan.atomic:
                self._delivery.note({index: NOT_WHOLE for group in left for index in group})
                continue
            steps, circular = apart(left, self._plan)
            self._delivery.note(dict.fromkeys(circular, CIRCULAR))
            for step in steps:
                await self._send_wave(self._delivery, step)

    async def _send_wave(self, delivery: Delivery, groups: Iterable[Group]) -> None:
        """Send groups that don't reference one another, a few chunks at a time, without those that lean on what is not stored."""
        refused = {i for i in self._plan.links.values() if isinstance(delivery.outcomes.get(i), Refused)}
        waiting = deque(group for group in groups if not refused or not self._leans_on(refused, group))
        async with asyncio.TaskGroup() as tasks:
            for _ in range(min(self._way.concurrency, len(waiting))):
                tasks.create_task(self._send_all(delivery, waiting))

    async def _send_all(self, delivery: Delivery, waiting: deque[Group]) -> None:
        """Send what waits, in chunks of the size that suits the upstream now."""
        while waiting:
            await delivery.deliver(_cut(waiting, self._way.upstream.pace.chunk))

    def _leans_on(self, refused: set[int], group: Group) -> bool:
        """Tell whether a group references what was not stored, and refuse it then."""
        for index in group:
            for reference in self._plan.creates[index].entry.references:
                if (target := self._plan.links.get(reference, -1)) in refused and self._delivery:
                    text = f"it references entry {target}, which was not stored; send both again"
                    outcome = Refused(424, (Issue("reference-not-stored", text, code="transient"),))
                    self._delivery.note(dict.fromkeys(group, outcome))
                    return True
        return False


def _cut(waiting: deque[Group], chunk: int) -> list[Group]:
    """Take whole groups from what waits, for one transaction of about `chunk` entries."""
    taken: list[Group] = []
    size = 0
    while waiting and (not taken or size + len(waiting[0]) <= chunk):
        taken.append(waiting.popleft())
        size += len(taken[-1])
    return taken


def twin(outcome: Outcome) -> Outcome:
    """Give the outcome of an entry that another one holds already, from that one's."""
    return Stored(outcome.location, outcome.etag) if isinstance(outcome, Stored) else outcome


def stored_by_identity(plan: Plan, outcomes: Mapping[int, Outcome]) -> dict[str, Stored]:
    """Give where the plan's entries are stored now, by identity."""
    stored = {}
    for index, one in plan.creates.items():
        if isinstance(outcome := outcomes.get(index), Stored):
            stored[one.identity] = Stored(outcome.location, outcome.etag)
    return stored


def unjudged(verdicts: Iterable[Verdict], identified: Iterable[Identified]) -> list[Entry]:
    """List what `observe` mode lets through although it can't be created here; in `enforce` mode there is none."""
    planned = {one.entry.index for one in identified}
    return [v.entry for v in verdicts if v.accepted and v.entry.request and v.entry.index not in planned]


def in_own_words(entries: Iterable[Entry]) -> JsonObject:
    """Make the batch of entries as the submitter said them."""
    said = [{"fullUrl": e.full_url, "resource": e.resource, "request": e.request} for e in entries]
    listed = [{name: value for name, value in entry.items() if value} for entry in said]
    return {"resourceType": "Bundle", "type": "batch", "entry": listed}


async def relay_unjudged(
    entries: Sequence[Entry], batch: JsonObject, upstream: UpstreamClient, submitter: Requester
) -> dict[int, Outcome]:
    """Send the entries' batch once, since nothing in it is conditional; what fails or is not answered has failed alone."""
    try:
        answered = await upstream.batch(batch, submitter)
    except RequestRefused as refused:
        sent = refused.status in {502, 504}
        outcome = unanswered(*refused.issues) if sent else Refused(refused.status, refused.issues)
        return dict.fromkeys((entry.index for entry in entries), outcome)
    answers = answered if len(answered) == len(entries) else [{}] * len(entries)
    return {entry.index: _relayed(answer) for entry, answer in zip(entries, answers, strict=True)}


def unanswered(*issues: Issue) -> PassedThrough:
    """Make the outcome of an entry that was sent in the submitter's own words and has no answer; `issues` say why."""
    response = {"status": "503 Service Unavailable", "outcome": operation_outcome([UNCONFIRMED, *issues])}
    return PassedThrough(503, {"response": response})


def _relayed(answer: JsonObject) -> Outcome:
    response = answer.get("response")
    status = str(response.get("status"))[:3] if isinstance(response, dict) else ""
    if not status.isascii() or not status.isdigit() or int(status) not in _STATUSES:
        return Refused(502, (Issue("upstream-answer", "the server's answer has no status", code="transient"),))
    return PassedThrough(int(status), answer)
