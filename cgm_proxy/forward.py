"""Carry out a plan: transactions of conditional creates, wave by wave, a few at a time, narrowed where one is refused."""

import asyncio
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus

from cgm_proxy.core.bundle import Entry
from cgm_proxy.core.errors import Issue, Json, RequestRefused
from cgm_proxy.core.plan import Group, Identified, Outcome, Plan, Refused, Relayed, Stored, body
from cgm_proxy.core.verdicts import Verdict
from cgm_proxy.metrics import CHUNKS
from cgm_proxy.notes import Turn
from cgm_proxy.upstream import ChunkFailed, ChunkRefused, Submitter, Upstream

#: What an entry answers whose fate is unknown.
UNKNOWN = Refused(
    503, (Issue("fate-unknown", "the server did not confirm it; send it again, which is safe", code="transient"),)
)


_STATUSES = frozenset(map(int, HTTPStatus))

#: Statuses that refuse the submitter, the endpoint or the format, not an entry: narrowing would change nothing.
OF_ALL = frozenset({401, 403, 405, 406, 407, 410, 415, 501, 505})

#: Failures (500) of parts of chunks, in one submission, until the upstream itself is taken for broken, not an entry.
FAILURES = 32


class Way:
    """One submission's way upstream, which its parts share."""

    def __init__(self, upstream: Upstream, submitter: Submitter, turn: Turn, concurrency: int, prefer: str) -> None:
        self.upstream = upstream
        self.submitter = submitter
        self.turn = turn
        self.concurrency = concurrency
        self.prefer = prefer
        self.places = asyncio.Semaphore(concurrency)
        self.failures_left = FAILURES


class Forwarding:
    """Carry out the plan of one part of a submission; `outcomes` grows as the upstream answers."""

    def __init__(self, plan: Plan, way: Way) -> None:
        self._plan = plan
        self._way = way
        self._locations = dict(plan.aliases)
        self._typed = False
        self._refused = False
        self.outcomes: dict[int, Outcome] = dict(plan.settled)

    async def run(self) -> None:
        """Send everything, wave by wave."""
        if self._plan.waves:
            self._typed = await self._way.upstream.takes_typed_conditions()
        for wave in self._plan.waves:
            self._refused = any(isinstance(self.outcomes.get(i), Refused) for i in self._plan.links.values())
            waiting = deque(wave)
            async with asyncio.TaskGroup() as tasks:
                for _ in range(min(self._way.concurrency, len(wave))):
                    tasks.create_task(self._send_all(waiting))
            self._note_locations()

    async def _send_all(self, waiting: deque[Group]) -> None:
        """Send what waits, in transactions of the size that suits the upstream now."""
        pace = self._way.upstream.pace
        while waiting:
            async with self._way.places, pace.place():
                await self._send(self._sendable(_cut(waiting, pace.chunk)))

    async def _send(self, groups: Sequence[Group], *, once: bool = False) -> None:
        """Send groups as one transaction; a refusal is narrowed by halving until the guilty groups are known.

        So is a failure that stays: one entry that a server can't digest would keep the others of its chunk out for ever.
        """
        if not groups:
            return
        indices = [index for group in groups for index in group]
        bundle = body(groups, self._plan, self._locations, typed=self._typed)
        try:
            stored = await self._transact(bundle, len(indices), once=once)
        except ChunkRefused as refused:
            CHUNKS.labels("refused").inc()
            await self._narrow(groups, refused)
        except RequestRefused as unknown:
            CHUNKS.labels("unknown").inc()
            self.outcomes.update(dict.fromkeys(indices, Refused(unknown.status, UNKNOWN.issues + unknown.issues)))
            if isinstance(unknown, ChunkFailed) and len(groups) > 1 and self._way.failures_left > 0:
                self._way.failures_left -= 1
                await self._halve(groups, once=True)
        else:
            CHUNKS.labels("stored").inc()
            self.outcomes.update(zip(indices, stored, strict=True))

    async def _transact(self, bundle: bytes, count: int, *, once: bool) -> list[Stored]:
        way = self._way
        return await way.upstream.transact(bundle, count, way.submitter, way.prefer, once=once)

    async def _narrow(self, groups: Sequence[Group], refused: ChunkRefused) -> None:
        if len(groups) == 1 or refused.status < 400 or refused.status in OF_ALL:
            outcome = Refused(_told(refused.status), tuple(_reasons(refused.outcome)))
            self.outcomes.update((index, outcome) for group in groups for index in group)
            return
        await self._halve(groups)

    async def _halve(self, groups: Sequence[Group], *, once: bool = False) -> None:
        half = len(groups) // 2
        await self._send(groups[:half], once=once)
        await self._send(groups[half:], once=once)

    def _sendable(self, groups: Sequence[Group]) -> Sequence[Group]:
        """Leave out the groups that reference an entry which was not stored."""
        if not self._refused:  # in an earlier wave, where all stands that is referenced
            return groups
        return tuple(group for group in groups if not self._leans_on_refused(group))

    def _leans_on_refused(self, group: Group) -> bool:
        for index in group:
            for reference in self._plan.creates[index].entry.references:
                target = self._plan.links.get(reference, -1)
                if isinstance(self.outcomes.get(target), Refused):
                    text = f"it references entry {target}, which was not stored; send both again"
                    outcome = Refused(424, (Issue("reference-not-stored", text, code="transient"),))
                    self.outcomes.update(dict.fromkeys(group, outcome))
                    return True
        return False

    def _note_locations(self) -> None:
        for name, index in self._plan.links.items():
            if isinstance(outcome := self.outcomes.get(index), Stored):
                self._locations[name] = outcome.reference


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


def _told(status: int) -> int:
    """Give the status to tell a submitter: one of HTTP's, and 502 for a redirection, which is none of its business."""
    if status < 400:
        return 502
    return status if status in _STATUSES else 400 if status < 500 else 502


def _reasons(outcome: Json) -> Iterable[Issue]:
    """Give the upstream's own words for a refusal, cut short."""
    issues = outcome.get("issue")
    said = [issue.get("diagnostics") for issue in issues if isinstance(issue, dict)] if isinstance(issues, list) else []
    texts = [text for text in said if isinstance(text, str)] or ["it gave no reason"]
    for text in texts[:5]:
        yield Issue("upstream-refused", f"the server refuses the entry: {text[:500]}", code="processing")


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


def in_own_words(entries: Iterable[Entry]) -> Json:
    """Make the batch of entries as the submitter said them."""
    said = [{"fullUrl": e.full_url, "resource": e.resource, "request": e.request} for e in entries]
    listed = [{name: value for name, value in entry.items() if value} for entry in said]
    return {"resourceType": "Bundle", "type": "batch", "entry": listed}


async def relay_unjudged(
    entries: Sequence[Entry], batch: Json, upstream: Upstream, submitter: Submitter
) -> dict[int, Outcome]:
    """Send the entries' batch once, since nothing in it is conditional; what fails or is not answered has failed alone."""
    try:
        answered = await upstream.batch(batch, submitter)
    except RequestRefused as refused:
        return {entry.index: Refused(refused.status, refused.issues) for entry in entries}
    answers = answered if len(answered) == len(entries) else [{}] * len(entries)
    return {entry.index: _relayed(answer) for entry, answer in zip(entries, answers, strict=True)}


def _relayed(answer: Json) -> Outcome:
    response = answer.get("response")
    status = str(response.get("status"))[:3] if isinstance(response, dict) else ""
    if not status.isascii() or not status.isdigit() or int(status) not in _STATUSES:
        return Refused(502, (Issue("upstream-answer", "the server's answer has no status", code="transient"),))
    return Relayed(int(status), answer)
