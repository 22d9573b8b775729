"""Find what is stored already: by what is remembered, by bulk look-ups, and by the submitter's own conditions.

A new submission is not looked up reading by reading: a few probes tell it from one that is sent again, and the conditional
create of each entry decides in any case.
"""

import asyncio
import re
from collections.abc import Awaitable, Iterable, Sequence
from typing import TypeVar
from urllib.parse import parse_qsl, unquote

from cgm_proxy.core.errors import Issue, Json, RequestRefused
from cgm_proxy.core.plan import Identified, Refused, Stored
from cgm_proxy.memory import Memory
from cgm_proxy.metrics import DUPLICATES
from cgm_proxy.upstream import SEARCHED, Submitter, Upstream, located

#: How many of a submission's entries are asked for, to tell one that is sent again from a new one.
PROBES = 32

#: Look-ups of one submission under way at once.
AT_ONCE = 4

#: A condition on one identifier, which can be looked up together with others.
ONE_IDENTIFIER = re.compile(r"identifier=([^&,|]*\|[^&,|]+)")

#: Statuses after which a look-up is done without: the submitter may create but not search.
NOT_ALLOWED = frozenset({401, 403})


T = TypeVar("T")


class Known:
    """The look-ups of one submission, as one submitter may make them."""

    def __init__(self, upstream: Upstream, memory: Memory, submitter: Submitter, patient: str) -> None:
        self._upstream = upstream
        self._memory = memory
        self._submitter = submitter
        self._patient = patient
        self._places = asyncio.Semaphore(AT_ONCE)

    async def by_identity(self, identified: Sequence[Identified]) -> dict[str, Stored]:
        """Give where entries are stored, by identity; what is missing here may be stored all the same."""
        known = self._memory.known(one.identity for one in identified)
        DUPLICATES.labels("memory").inc(len(known))
        asked = [one for one in identified if one.identity not in known]
        if len(asked) > PROBES:
            probed = await self._look_up(asked[:: max(1, len(asked) // PROBES)])
            found = await self._look_up(asked) if probed else {}
            DUPLICATES.labels("search").inc(len(found))
            self._memory.remember(found)
            known |= found
        return known

    async def by_condition(self, identified: Iterable[Identified]) -> tuple[dict[str, Stored], dict[int, Refused]]:
        """Honour `request.ifNoneExist`: one match is where the entry is stored, by identity; several refuse it with 412."""
        asking = [(one, one.entry.request["ifNoneExist"]) for one in identified if one.entry.request.get("ifNoneExist")]
        simple = [(one, unquote(found[1])) for one, text in asking if (found := ONE_IDENTIFIER.fullmatch(_query(text)))]
        bulk = {one.entry.index for one, _ in simple}
        matches = await self._match_identifiers(simple)
        others = [(one, text) for one, text in asking if one.entry.index not in bulk]
        for (one, _), resources in zip(others, await self._all(self._match(*other) for other in others), strict=True):
            matches[one.entry.index] = resources
        stored, refused = {}, {}
        for one, _ in asking:
            match matches.get(one.entry.index, []):
                case [only]:
                    stored[one.identity] = located(only)
                case [_, _, *_]:
                    text = "request.ifNoneExist matches several stored resources; make it more specific"
                    issue = Issue("condition-ambiguous", text, "request.ifNoneExist", code="multiple-matches")
                    refused[one.entry.index] = Refused(412, (issue,))
        DUPLICATES.labels("condition").inc(len(stored))
        return stored, refused

    async def _look_up(self, asked: Sequence[Identified]) -> dict[str, Stored]:
        by_type: dict[str, list[str]] = {}
        for one in asked:
            by_type.setdefault(one.entry.type, []).append(one.identity)
        parts = [(kind, part) for kind, identities in by_type.items() for part in _parts(identities)]
        try:
            found = await self._all(self._upstream.stored(kind, p, self._patient, self._submitter) for kind, p in parts)
        except RequestRefused as refused:
            if refused.status not in NOT_ALLOWED:
                raise
            return {}
        return {identity: stored for part in found for identity, stored in part.items()}

    async def _match_identifiers(self, simple: Sequence[tuple[Identified, str]]) -> dict[int, list[Json]]:
        by_type: dict[str, list[str]] = {}
        for one, wanted in simple:
            by_type.setdefault(one.entry.type, []).append(wanted)
        parts = [(kind, part) for kind, wanted in by_type.items() for part in _parts(wanted)]
        found = await self._all(
            self._upstream.search(kind, {"identifier": ",".join(p), "_elements": "identifier"}, self._submitter)
            for kind, p in parts
        )
        by_token: dict[tuple[str, str], list[Json]] = {}
        for resource in (resource for part in found for resource in part):
            for identifier in resource.get("identifier", ()):
                key = (resource["resourceType"], f"{identifier.get('system', '')}|{identifier.get('value')}")
                by_token.setdefault(key, []).append(resource)
        return {one.entry.index: by_token.get((one.entry.type, wanted), []) for one, wanted in simple}

    async def _match(self, one: Identified, condition: str) -> list[Json]:
        parameters = dict(parse_qsl(_query(condition))) | {"_elements": "identifier", "_count": "2"}
        return await self._upstream.search(one.entry.type, parameters, self._submitter, pages=1)

    async def _all(self, look_ups: Iterable[Awaitable[T]]) -> list[T]:
        async def placed(look_up: Awaitable[T]) -> T:
            async with self._places:
                return await look_up

        return await asyncio.gather(*(placed(look_up) for look_up in look_ups))


def _query(condition: str) -> str:
    return condition.rpartition("?")[2]


def _parts(values: Sequence[str]) -> Iterable[Sequence[str]]:
    return (values[start : start + SEARCHED] for start in range(0, len(values), SEARCHED))
