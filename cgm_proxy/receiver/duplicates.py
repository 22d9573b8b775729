"""Find what is stored already: by what is remembered, by bulk look-ups, and by the submitter's own conditions.

A new submission is not looked up reading by reading: a few probes tell it from one that is sent again, and the conditional
create of each entry decides in any case.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TypeVar

from cgm_proxy.cache.cache import Cache
from cgm_proxy.core.issues import Issue, RequestRefused
from cgm_proxy.core.json_values import JsonObject, objects
from cgm_proxy.core.rest.confirmed import location_of
from cgm_proxy.core.rest.if_none_exist import Parameters, one_identifier, parameters
from cgm_proxy.core.submission.plan import Identified, Outcome, Refused, Stored
from cgm_proxy.observability.metrics import DUPLICATES
from cgm_proxy.upstream.client import NOT_ALLOWED, REJECTED, SEARCHED, Requester, UpstreamClient

#: How many of a submission's entries are asked for, to tell one that is sent again from a new one.
PROBES = 32

#: Look-ups of one submission under way at once.
AT_ONCE = 4

#: The stored resources that a condition matches, or why it can't be told.
Matches = list[JsonObject] | Refused


TAKEN = Refused(
    409,
    (
        Issue(
            "identity-taken",
            "what is stored under this entry's identity is not about its patient; the server's operator must correct that",
            code="conflict",
        ),
    ),
)
#: What an entry answers whose fate is unknown.
UNKNOWN = Refused(
    503, (Issue("fate-unknown", "the server did not confirm it; send it again, which is safe", code="transient"),)
)


def _refusal(status: int, rule: str, text: str, code: str) -> Refused:
    return Refused(status, (Issue(rule, text, "request.ifNoneExist", code=code),))


SEVERAL = _refusal(
    412,
    "condition-ambiguous",
    "request.ifNoneExist matches several stored resources; make it more specific",
    "multiple-matches",
)
INVALID = _refusal(
    400,
    "condition-invalid",
    "request.ifNoneExist chooses nothing, or names another type; write search parameters of the entry's type, such as "
    "identifier=system|value",
    "value",
)
REJECTED_CONDITION = _refusal(
    400,
    "condition-rejected",
    "the server can't search by request.ifNoneExist; use search parameters that it has, such as identifier=system|value",
    "not-supported",
)

T = TypeVar("T")


class Known:
    """The look-ups of one submission, as one submitter may make them."""

    def __init__(self, upstream: UpstreamClient, memory: Cache, submitter: Requester, patient: str) -> None:
        self._upstream = upstream
        self._memory = memory
        self._submitter = submitter
        self._patient = patient
        self._places = asyncio.Semaphore(AT_ONCE)

    async def by_identity(self, identified: Sequence[Identified]) -> dict[str, Stored]:
        """Give where entries are stored, by identity; what is missing here may be stored all the same."""
        epoch, known = await self._memory.stored_entries(one.identity for one in identified)
        if not await self._still_true(known, identified):
            await self._memory.invalidate_stored_entries()
            epoch, known = await self._memory.generation(), {}
        DUPLICATES.labels(self._memory.source).inc(len(known))
        asked = [one for one in identified if one.identity not in known]
        if len(asked) > PROBES:
            probes = asked[:: len(asked) // PROBES]
            found = await self._look_up(probes)
            if found and len(probes) < len(asked):
                found = await self._look_up(asked)
            DUPLICATES.labels("search").inc(len(found))
            await self._memory.add_stored_entries(found, epoch)
            known |= found
        return known

    async def _still_true(self, known: Mapping[str, Stored], identified: Sequence[Identified]) -> bool:
        """Ask for a few of those that are remembered: others than this proxy may have deleted them, or restored a backup."""
        asked = [one for one in identified if one.identity in known]
        probes = asked[:: -(-len(asked) // PROBES) or 1]
        try:
            return (await self._places_of(probes)).keys() >= {one.identity for one in probes}
        except RequestRefused as refused:
            if refused.status not in NOT_ALLOWED:
                raise
            return True  # who may not search is told what is remembered

    async def by_condition(self, identified: Iterable[Identified]) -> dict[int, Outcome]:
        """Honour `request.ifNoneExist`, by index: one match is where the entry is stored; several refuse it with 412.

        A condition is part of the submitter's own write, so it is looked up with the submitter's own authority.
        """
        asking = [(one, one.entry.request["ifNoneExist"]) for one in identified if one.entry.request.get("ifNoneExist")]
        wanted = {one.entry.index: (one.entry.type, parameters(text, one.entry.type)) for one, text in asking}
        found = await self._matches({(kind, asked) for kind, asked in wanted.values() if asked})
        settled: dict[int, Outcome] = {}
        for index, (kind, asked) in wanted.items():
            match found[kind, asked] if asked else INVALID:
                case Refused() as why:
                    settled[index] = why
                case [only] if place := location_of(only):
                    settled[index] = place
                case [_, _, *_]:
                    settled[index] = SEVERAL
        DUPLICATES.labels("condition").inc(sum(isinstance(outcome, Stored) for outcome in settled.values()))
        return settled

    async def _matches(self, conditions: Iterable[tuple[str, Parameters]]) -> Mapping[tuple[str, Parameters], Matches]:
        """Look each condition up once; those on one identifier together."""
        asked = list(conditions)
        simple = {(kind, wanted): token for kind, wanted in asked if (token := one_identifier(wanted))}
        others = [condition for condition in asked if condition not in simple]
        try:
            found: dict[tuple[str, Parameters], Matches] = dict(await self._match_identifiers(simple))
            matched = await self._all(partial(self._match, kind, wanted) for kind, wanted in others)
        except RequestRefused as refused:
            if refused.status not in NOT_ALLOWED:
                raise
            text = "the submitter may not search what request.ifNoneExist asks for; leave it out, or have it allowed"
            return dict.fromkeys(asked, _refusal(refused.status, "condition-forbidden", text, "forbidden"))
        return found | dict(zip(others, matched, strict=True))

    async def not_confirmed(
        self, identified: Iterable[Identified], outcomes: Mapping[int, Outcome]
    ) -> dict[int, Refused]:
        """Refuse what the upstream says is stored already, where what it means is not about the patient.

        Somebody who may write other data could have given it this identity; the entry would be lost without a word.
        """
        stored = [(one, o) for one in identified if isinstance(o := outcomes.get(one.entry.index), Stored)]
        said = [one for one, outcome in stored if not outcome.created]
        try:
            places = await self._places_of(said)
        except RequestRefused as refused:
            return {} if refused.status in NOT_ALLOWED else {one.entry.index: UNKNOWN for one in said}
        return {one.entry.index: TAKEN for one in said if one.identity not in places}

    async def _look_up(self, asked: Sequence[Identified]) -> dict[str, Stored]:
        try:
            return await self._places_of(asked)
        except RequestRefused as refused:
            if refused.status not in NOT_ALLOWED:
                raise
            return {}

    async def _places_of(self, asked: Iterable[Identified]) -> dict[str, Stored]:
        by_type: dict[str, list[str]] = {}
        for one in asked:
            by_type.setdefault(one.entry.type, []).append(one.identity)
        parts = [(kind, part) for kind, identities in by_type.items() for part in _parts(identities)]
        found = await self._all(
            partial(self._upstream.stored, kind, part, self._patient, self._submitter) for kind, part in parts
        )
        return {identity: stored for part in found for identity, stored in part.items()}

    async def _match_identifiers(
        self, simple: Mapping[tuple[str, Parameters], str]
    ) -> dict[tuple[str, Parameters], list[JsonObject]]:
        by_type: dict[str, list[str]] = {}
        for (kind, _), wanted in simple.items():
            by_type.setdefault(kind, []).append(wanted)
        parts = [(kind, part) for kind, wanted in by_type.items() for part in _parts(wanted)]
        found = await self._all(
            partial(
                self._upstream.search,
                kind,
                {"identifier": ",".join(p), "_elements": "identifier", "_count": str(2 * len(p))},
                self._submitter,
                own=True,
            )
            for kind, p in parts
        )
        by_token: dict[tuple[str, str], dict[str, JsonObject]] = {}
        for resource in (resource for part in found for resource in part):
            for identifier in objects(resource.get("identifier")):
                key = (resource["resourceType"], f"{identifier.get('system', '')}|{identifier.get('value')}")
                by_token.setdefault(key, {})[resource["id"]] = resource
        return {key: list(by_token.get((key[0], token), {}).values()) for key, token in simple.items()}

    async def _match(self, kind: str, wanted: Parameters) -> Matches:
        asked = (*wanted, ("_elements", "identifier"), ("_count", "2"))
        try:
            return await self._upstream.search(kind, asked, self._submitter, pages=1, own=True)
        except RequestRefused as refused:
            if refused.issues[0].rule != REJECTED:
                raise
            return REJECTED_CONDITION

    async def _all(self, look_ups: Iterable[Callable[[], Awaitable[T]]]) -> list[T]:
        async def placed(look_up: Callable[[], Awaitable[T]]) -> T:
            async with self._places:
                return await look_up()

        return await asyncio.gather(*(placed(look_up) for look_up in look_ups))


def _parts(values: Sequence[str]) -> Iterable[Sequence[str]]:
    return (values[start : start + SEARCHED] for start in range(0, len(values), SEARCHED))
