"""Deliver groups of entries: look, send, again, and narrow down to what keeps them out, until the fate of each is known."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

from cgm_proxy.cache.backends import PatientLock
from cgm_proxy.core.issues import Issue, RequestRefused
from cgm_proxy.core.json_values import JsonObject
from cgm_proxy.core.rest import confirmed
from cgm_proxy.core.rest.responses import FAILING, Cause, EntryResult, Retry, UpstreamRefusal, retry_after
from cgm_proxy.core.rest.strategy import Strategy
from cgm_proxy.core.submission.plan import Group, Outcome, Plan, Refused, Stored
from cgm_proxy.observability.metrics import CHUNKS
from cgm_proxy.receiver.duplicates import TAKEN, UNKNOWN
from cgm_proxy.receiver.forwarding.retry_budget import RetryBudget, after_race
from cgm_proxy.receiver.forwarding.send import Sender
from cgm_proxy.upstream.client import NOT_ALLOWED, SEARCHED, Requester, UpstreamClient
from cgm_proxy.upstream.faults import FAILED, UNAVAILABLE

#: What an entry answers that can't be created once without the patient's turn.
NO_TURN = Refused(
    503,
    (
        Issue(
            "turn-lost",
            "another submission of the patient may be under way, and the server can't create conditionally; send it again",
            code="conflict",
        ),
    ),
)

SEVERAL = Refused(
    412,
    (
        Issue(
            "identity-ambiguous",
            "several stored resources carry this entry's identity; the server's operator must correct that",
            code="multiple-matches",
        ),
    ),
)

#: Failures (500, 409) of parts of chunks, in one submission, until the upstream itself is taken for broken, not an entry.
FAILURES = 32

#: Races that one chunk may lose, and one that is a part of another that lost all of its.
RACES = 12
FEWER_RACES = 3

#: Causes that may last, and be of one entry's making: HAPI says 409 of whatever its store refuses.
NARROWED: tuple[set[Cause], ...] = ({"failed"}, {"conflict"})

#: How long the upstream is left alone where what it was sent may still be under way, and must not be sent again (seconds).
SETTLING = 1.0


class Way:
    """One submission's way upstream, which its parts share."""

    def __init__(
        self,
        upstream: UpstreamClient,
        submitter: Requester,
        turn: PatientLock,
        prefer: str,
        patient: str,
        *,
        concurrency: int,
        retries: int,
        deadline: float,
    ) -> None:
        self.upstream = upstream
        self.submitter = submitter
        self.turn = turn
        self.prefer = prefer
        self.patient = patient
        self.concurrency = concurrency
        self.retries = retries
        self.patience = RetryBudget(retries, deadline)
        self.places = asyncio.Semaphore(concurrency)
        self.failures_left = FAILURES


class Delivery:
    """Deliver what a plan says by one strategy; `outcomes` grows as the upstream answers."""

    def __init__(self, plan: Plan, way: Way, strategy: Strategy) -> None:
        self._plan = plan
        self._way = way
        self._strategy = strategy
        self._sender = Sender(way.upstream, way.submitter, way.prefer, strategy)
        self._locations = dict(plan.aliases)
        self._names: dict[int, list[str]] = {}
        for name, index in plan.links.items():
            self._names.setdefault(index, []).append(name)
        self._doubted: set[int] = set()
        self.found: set[int] = set()
        """Those that a look-up found stored, about the patient."""
        self.outcomes: dict[int, Outcome] = {}
        self.note(plan.settled)

    def note(self, outcomes: Mapping[int, Outcome]) -> None:
        """Take outcomes over; references to what is stored are written as its location from now on."""
        self.outcomes.update(outcomes)
        for index in outcomes.keys() & self._names.keys():
            if isinstance(outcome := outcomes[index], Stored):
                self._locations.update(dict.fromkeys(self._names[index], outcome.reference))

    async def deliver(self, groups: Sequence[Group], retries: int | None = None) -> None:
        """Send groups together, again while that may help, then by parts; a group that is too large for that is left as it is.

        `retries` are those of a part of what has failed before.
        """
        look, tries = self._strategy.creating.looks, _Tries(self._way, retries)
        left = self.open(groups)
        while left:
            answer = await self._attempt(_indices(left), look=look)
            left = self.open(left)
            if isinstance(answer, UpstreamRefusal):
                return await self._narrow(left, answer)
            causes = {again.cause for again in answer.values()}
            if look and tries.unclear and causes == {"unclear"}:
                return await self._stay_unclear(left, answer)
            look = look or "unclear" in causes
            if left and not await tries.worthwhile(causes):
                return await self._give_up(left, answer)
        return None

    def open(self, groups: Sequence[Group]) -> list[Group]:
        """Give what of the groups has no outcome yet."""
        return [left for group in groups if (left := tuple(i for i in group if i not in self.outcomes))]

    async def _attempt(self, indices: Sequence[int], *, look: bool) -> UpstreamRefusal | dict[int, Retry]:
        """Look and send once, in a place among the transactions under way; give what is not settled by it."""
        way = self._way
        while True:
            await asyncio.sleep(way.patience.resting)
            async with way.places, way.upstream.pace.place():
                if way.patience.over:
                    return dict.fromkeys(indices, Retry("busy"))
                if not way.patience.resting:
                    return await self._look_and_send(indices, look=look)

    async def _look_and_send(self, indices: Sequence[int], *, look: bool) -> UpstreamRefusal | dict[int, Retry]:
        began = asyncio.get_running_loop().time()
        again = await self._look(indices) if look else {}
        left = [i for i in indices if i not in self.outcomes and i not in again]
        again |= {i: Retry("lost") for i in left if i in self._doubted}
        left = [i for i in left if i not in self._doubted]
        if left and self._strategy.creating.alone and not self._way.turn.held:
            self.note(dict.fromkeys(left, NO_TURN))
            return again
        results = await self._sender.send([self._plan.creates[i] for i in left], self._locations) if left else []
        if isinstance(results, UpstreamRefusal):
            CHUNKS.labels("refused").inc()
            self._way.patience.succeeded()
            return results
        each = [results] * len(left) if isinstance(results, Retry) else results
        again |= self._settle(dict(zip(left, each, strict=True)))
        self._learn(again, began)
        return again

    def _settle(self, results: Mapping[int, EntryResult]) -> dict[int, Retry]:
        """Note what is known now, and give the rest."""
        stored: dict[int, Outcome] = {i: result for i, result in results.items() if isinstance(result, Stored)}
        self.note(stored)
        self.note({i: result.told() for i, result in results.items() if isinstance(result, UpstreamRefusal)})
        if stored:
            CHUNKS.labels("stored").inc()
        again = {i: result for i, result in results.items() if isinstance(result, Retry)}
        if self._strategy.creating.alone:
            self._doubted |= {i for i, result in again.items() if result.cause == "lost"}
        return again

    def _learn(self, again: Mapping[int, Retry], began: float) -> None:
        failed = [each for each in again.values() if each.cause in FAILING]
        if not failed:
            self._way.patience.succeeded()
            return
        settling = SETTLING if self._strategy.creating.alone and any(each.cause == "lost" for each in failed) else 0.0
        self._way.patience.failed(began, max(settling, *(each.wait for each in failed)))

    async def _look(self, indices: Sequence[int]) -> dict[int, Retry]:
        """Ask where entries are stored; give those of which that could not be learnt."""
        by_type: dict[str, list[int]] = {}
        for index in indices:
            by_type.setdefault(self._plan.creates[index].entry.type, []).append(index)
        again: dict[int, Retry] = {}
        for kind, listed in by_type.items():
            for start in range(0, len(listed), SEARCHED):
                again |= await self._look_for(kind, listed[start : start + SEARCHED])
        return again

    async def _look_for(self, kind: str, indices: Sequence[int]) -> dict[int, Retry]:
        identities = {self._plan.creates[index].identity: index for index in indices}
        creating, way, holders = self._strategy.creating, self._way, dict[str, list[JsonObject]]()
        try:
            for by_id in (False, True) if creating.by_id else (False,):
                if asked := [identity for identity in identities if identity not in holders]:
                    holders |= await way.upstream.holders(kind, asked, way.submitter, by_id=by_id)
        except RequestRefused as refused:
            if refused.status not in NOT_ALLOWED:
                wait = retry_after(refused.headers.get("Retry-After", ""), datetime.now(UTC))
                return dict.fromkeys(indices, Retry("busy", wait or 0.0))
            if creating.looks:  # without, nobody knows what it would be stored beside
                said = Refused(refused.status, refused.issues, refused.headers.get("WWW-Authenticate"))
                self.note(dict.fromkeys(indices, said))
            return {}
        found = {identities[identity]: self._where(resources) for identity, resources in holders.items()}
        self.found |= {index for index, outcome in found.items() if isinstance(outcome, Stored)}
        self.note(found)
        return {}

    def _where(self, holders: Sequence[JsonObject]) -> Outcome:
        """Give where an entry is stored, from those that have its identity; one about somebody else is not it."""
        mine = [one for one in holders if self._way.upstream.about(one) in {None, self._way.patient}]
        places = [place for one in mine if (place := confirmed.location_of(one))]
        return SEVERAL if len(places) > 1 else places[0] if places else TAKEN

    async def _narrow(self, groups: Sequence[Group], refusal: UpstreamRefusal) -> None:
        """Narrow a refusal down to the guilty groups: those that it names, else by halves."""
        strategy, size = self._way.upstream.strategy, len(_indices(groups))
        if refusal.too_large and size > 1:
            strategy.too_large(size)
            if len(groups) == 1 and not self._plan.atomic:
                return
        if len(groups) > 1 and not refusal.of_all:
            for part in self._parts(groups, refusal):
                await self.deliver(part)
            return
        if refusal.of_all and refusal.status not in NOT_ALLOWED:
            strategy.doubt()
        self.note(dict.fromkeys(_indices(groups), refusal.told()))

    def _parts(self, groups: Sequence[Group], refusal: UpstreamRefusal) -> tuple[Sequence[Group], Sequence[Group]]:
        indices = _indices(groups)
        named = {indices[place] for place in refusal.named([self._plan.creates[index] for index in indices])}
        guilty = [group for group in groups if not named.isdisjoint(group)]
        if 0 < len(guilty) < len(groups):
            return [group for group in groups if named.isdisjoint(group)], guilty
        half = len(groups) // 2
        return groups[:half], groups[half:]

    async def _stay_unclear(self, groups: Sequence[Group], answer: Mapping[int, Retry]) -> None:
        """Take a failed condition as a refusal: a look-up has not told what it met."""
        refusals = {index: again.refusal for index, again in answer.items()}
        refusal = next((each for each in refusals.values() if each), None)
        if refusal and self._strategy.sending.whole:
            return await self._narrow(groups, refusal)
        self.note({index: each.told() if each else UNKNOWN for index, each in refusals.items()})
        return None

    async def _give_up(self, groups: Sequence[Group], answer: Mapping[int, Retry]) -> None:
        """Leave entries unknown; but one that a server can't digest must not keep the others of its chunk out for ever."""
        CHUNKS.labels("unknown").inc()
        if {again.cause for again in answer.values()} in NARROWED and len(groups) > 1 and self._way.failures_left > 0:
            self._way.failures_left -= 1
            half = len(groups) // 2
            await self.deliver(groups[:half], 0)
            await self.deliver(groups[half:], 0)
            return
        for index, again in answer.items():
            why = FAILED if again.cause == "failed" else UNAVAILABLE
            said = again.refusal.told() if again.refusal else why
            self.note({index: Refused(503, UNKNOWN.issues + said.issues)})


class _Tries:
    """How often one chunk has been sent for nothing."""

    def __init__(self, way: Way, retries: int | None) -> None:
        self._patience = way.patience
        self._retries = way.retries if retries is None else retries
        self._races = RACES if retries is None else FEWER_RACES
        self._lost = 0
        self.unclear = False
        """Whether a condition has failed before."""

    async def worthwhile(self, causes: set[Cause]) -> bool:
        """Tell whether to send it again, after a pause that keeps those apart who ran a race."""
        self.unclear = self.unclear or "unclear" in causes
        if causes & FAILING:
            self._retries -= 1
            return self._retries >= 0 and not self._patience.over
        self._lost += 1
        await after_race(self._lost)
        return self._lost <= self._races


def _indices(groups: Iterable[Group]) -> list[int]:
    return [index for group in groups for index in group]
