"""Finds the entries that are stored already: in the cache, by searching the server, and by the submitter's own conditions.

Not every reading of a new submission is searched for: a few probes show whether the submission is sent again. A duplicate
that is missed here is found by the conditional create of the entry. Duplicates within a submission are found by the plan
(`core/submission/plan.py`), and `core/submission/identity.py` says which entries are the same.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import TypeVar

from cgm_proxy.cache.cache import Cache
from cgm_proxy.core.issues import RequestRefused
from cgm_proxy.core.json_values import JsonObject, objects
from cgm_proxy.core.rest.responses import Retry, location_of, retry_after
from cgm_proxy.core.submission.if_none_exist import Parameters, one_identifier, parameters
from cgm_proxy.core.submission.outcomes import UNKNOWN, Outcome, Refused, Stored, refused
from cgm_proxy.core.submission.plan import AcceptedEntry, forged
from cgm_proxy.observability.metrics import DUPLICATES
from cgm_proxy.upstream.client import (
    CONCURRENT_SEARCHES,
    NOT_ALLOWED,
    REJECTED,
    SEARCHED,
    Requester,
    UpstreamClient,
    search_all,
)

#: How many entries of a submission are searched for, to find out whether it is sent again.
PROBES = 32

#: The elements that a search for a condition asks for.
SHOWN = "identifier,subject,patient"

#: The stored resources that a condition matches, or why that is not known.
Matches = list[JsonObject] | Refused

IDENTITY_TAKEN = refused(
    409,
    "identity-taken",
    "the resource that is stored under this entry's identity is not about its patient; the server's operator must correct that",
    code="conflict",
)

IDENTITY_AMBIGUOUS = refused(
    412,
    "identity-ambiguous",
    "several stored resources carry this entry's identity; the server's operator must correct that",
    code="multiple-matches",
)

CONDITION_OF_ANOTHER = refused(
    409,
    "condition-other-patient",
    "request.ifNoneExist matches a stored resource that is not about this entry's patient; make it more specific",
    "request.ifNoneExist",
    code="conflict",
)

CONDITION_AMBIGUOUS = refused(
    412,
    "condition-ambiguous",
    "request.ifNoneExist matches several stored resources; make it more specific",
    "request.ifNoneExist",
    code="multiple-matches",
)

CONDITION_INVALID = refused(
    400,
    "condition-invalid",
    "request.ifNoneExist selects nothing, or names another type; write search parameters of the entry's type, such as "
    "identifier=system|value",
    "request.ifNoneExist",
    code="value",
)

CONDITION_REJECTED = refused(
    400,
    "condition-rejected",
    "the server can't search by request.ifNoneExist; use search parameters that it supports, such as identifier=system|value",
    "request.ifNoneExist",
    code="not-supported",
)

T = TypeVar("T")


class DuplicateFinder:
    """Searches for the entries of one submission, as far as its submitter may search."""

    def __init__(self, upstream: UpstreamClient, cache: Cache, requester: Requester, patient: str) -> None:
        self._upstream = upstream
        self._cache = cache
        self._requester = requester
        self._patient = patient
        self._limit = asyncio.Semaphore(CONCURRENT_SEARCHES)

    async def find(self, accepted: Sequence[AcceptedEntry]) -> dict[int, Outcome]:
        """Return the outcome of entries, by index, that are stored already or can't be stored.

        An entry without an outcome may still be stored already.
        """
        outcomes: dict[int, Outcome] = dict(await self._by_condition(accepted))
        outcomes |= forged(accepted)
        remaining = [each for each in accepted if each.entry.index not in outcomes]
        known = await self._by_identity(remaining)
        return outcomes | {each.entry.index: known[each.identity] for each in remaining if each.identity in known}

    async def look_up(
        self, entries: Sequence[AcceptedEntry], *, by_id: bool, required: bool
    ) -> tuple[dict[int, Outcome], dict[int, Retry]]:
        """Search for entries before they are sent: return the outcomes of the entries found, and why others are not known.

        `by_id` is whether an identity may also be a resource's id. `required` is whether an entry that can't be searched for
        is refused: without conditional creates, it might be stored twice.
        """
        outcomes: dict[int, Outcome] = {}
        retries: dict[int, Retry] = {}
        for resource_type, listed in _by_type(entries).items():
            for batch in _batches(listed):
                holders: dict[str, list[JsonObject]] = {}
                try:
                    for ids in (False, True) if by_id else (False,):
                        if missing := [each.identity for each in batch if each.identity not in holders]:
                            holders |= await self._upstream.holders(resource_type, missing, self._requester, by_id=ids)
                except RequestRefused as refusal:
                    if refusal.status not in NOT_ALLOWED:
                        wait = retry_after(refusal.headers.get("Retry-After", ""), datetime.now(UTC))
                        retries |= {each.entry.index: Retry("busy", wait or 0.0) for each in batch}
                        continue
                    if required:
                        header = refusal.headers.get("WWW-Authenticate")
                        outcome = Refused(refusal.status, refusal.issues, header)
                        outcomes |= {each.entry.index: outcome for each in batch}
                        continue
                for each in batch:
                    if each.identity in holders:
                        outcomes[each.entry.index] = self._outcome(holders[each.identity])
        return outcomes, retries

    async def not_confirmed(self, entries: Sequence[AcceptedEntry]) -> dict[int, Refused]:
        """Return refusals for entries that the server reports as existing, if the existing resource is not about the patient.

        Somebody who may write other patients' data could have given that resource the identity. The entry would be lost
        silently.
        """
        try:
            places = await self._stored(entries)
        except RequestRefused as refusal:
            return {} if refusal.status in NOT_ALLOWED else {each.entry.index: UNKNOWN for each in entries}
        return {each.entry.index: IDENTITY_TAKEN for each in entries if each.identity not in places}

    # By identity -----------------------------------------------------------------------------------------------------

    async def _by_identity(self, entries: Sequence[AcceptedEntry]) -> dict[str, Stored]:
        """Return where entries are stored, by identity."""
        generation, known = await self._cache.stored_entries(each.identity for each in entries)
        still_stored = await self._still_stored([each for each in entries if each.identity in known])
        if not still_stored:
            known = {}
        if still_stored is False:
            await self._cache.invalidate_stored_entries()
            generation = await self._cache.generation()
        DUPLICATES.labels(self._cache.source).inc(len(known))
        unknown = [each for each in entries if each.identity not in known]
        if len(unknown) > PROBES:
            probes = unknown[:: len(unknown) // PROBES]
            found = await self._stored_if_allowed(probes) or {}
            if found and len(probes) < len(unknown):
                found = await self._stored_if_allowed(unknown) or {}
            DUPLICATES.labels("search").inc(len(found))
            await self._cache.add_stored_entries(found, generation)
            known |= found
        return known

    async def _still_stored(self, cached: Sequence[AcceptedEntry]) -> bool | None:
        """Search for a few cached entries: others than this proxy may have deleted them, or restored a backup.

        Return None for a submitter who may not search. The cache would reveal what others have stored, so it is not used: the
        entries are sent, and the upstream decides on them.
        """
        probes = cached[:: -(-len(cached) // PROBES) or 1]
        found = await self._stored_if_allowed(probes)
        return None if found is None else found.keys() >= {each.identity for each in probes}

    async def _stored_if_allowed(self, entries: Sequence[AcceptedEntry]) -> dict[str, Stored] | None:
        """Search for entries by identity; return None if the submitter may not search."""
        try:
            return await self._stored(entries)
        except RequestRefused as refusal:
            if refusal.status not in NOT_ALLOWED:
                raise
            return None

    async def _stored(self, entries: Iterable[AcceptedEntry]) -> dict[str, Stored]:
        """Search for entries that are stored as resources about the patient, by identity."""
        searches = (
            partial(self._upstream.stored, resource_type, [e.identity for e in batch], self._patient, self._requester)
            for resource_type, listed in _by_type(entries).items()
            for batch in _batches(listed)
        )
        found = await search_all(searches, self._limit)
        return {identity: stored for batch in found for identity, stored in batch.items()}

    def _outcome(self, holders: Sequence[JsonObject]) -> Outcome:
        """Return the outcome of an entry whose identity these resources have; only those about the patient count."""
        mine = [each for each in holders if self._upstream.may_concern(each, self._patient)]
        places = [place for each in mine if (place := location_of(each))]
        return IDENTITY_AMBIGUOUS if len(places) > 1 else places[0] if places else IDENTITY_TAKEN

    # By the submitter's own condition --------------------------------------------------------------------------------

    async def _by_condition(self, entries: Iterable[AcceptedEntry]) -> dict[int, Outcome]:
        """Honour `request.ifNoneExist`: with one match the entry is stored there, with several it is refused with 412.

        A condition is part of the submitter's own write, so it is searched for with the submitter's own authority.
        """
        conditions: dict[int, tuple[str, Parameters | None]] = {
            each.entry.index: (each.entry.type, parameters(condition, each.entry.type))
            for each in entries
            if (condition := each.entry.request.get("ifNoneExist"))
        }
        matches = await self._matches({(kind, condition) for kind, condition in conditions.values() if condition})
        outcomes: dict[int, Outcome] = {}
        for index, (resource_type, condition) in conditions.items():
            match matches[resource_type, condition] if condition else CONDITION_INVALID:
                case Refused() as refusal:
                    outcomes[index] = refusal
                case [only] if not self._upstream.may_concern(only, self._patient):
                    outcomes[index] = CONDITION_OF_ANOTHER
                case [only] if place := location_of(only):
                    outcomes[index] = place
                case [_, _, *_]:
                    outcomes[index] = CONDITION_AMBIGUOUS
        DUPLICATES.labels("condition").inc(sum(isinstance(outcome, Stored) for outcome in outcomes.values()))
        return outcomes

    async def _matches(self, conditions: Iterable[tuple[str, Parameters]]) -> Mapping[tuple[str, Parameters], Matches]:
        """Search once for each condition, and together for the conditions on a single identifier."""
        listed = list(conditions)
        tokens = {(kind, condition): token for kind, condition in listed if (token := one_identifier(condition))}
        others = [condition for condition in listed if condition not in tokens]
        try:
            found: dict[tuple[str, Parameters], Matches] = dict(await self._match_identifiers(tokens))
            matched = await search_all((partial(self._match, *condition) for condition in others), self._limit)
        except RequestRefused as refusal:
            if refusal.status not in NOT_ALLOWED:
                raise
            text = (
                "the submitter may not search for what request.ifNoneExist names; leave it out, or get the permission"
            )
            forbidden = refused(refusal.status, "condition-forbidden", text, "request.ifNoneExist", code="forbidden")
            return dict.fromkeys(listed, forbidden)
        return found | dict(zip(others, matched, strict=True))

    async def _match_identifiers(
        self, tokens: Mapping[tuple[str, Parameters], str]
    ) -> dict[tuple[str, Parameters], list[JsonObject]]:
        by_type: dict[str, list[str]] = {}
        for (resource_type, _), token in tokens.items():
            by_type.setdefault(resource_type, []).append(token)
        searches = (
            partial(
                self._upstream.search,
                resource_type,
                {"identifier": ",".join(batch), "_elements": SHOWN, "_count": str(2 * len(batch))},
                self._requester,
                own=True,
            )
            for resource_type, listed in by_type.items()
            for batch in _batches(listed)
        )
        found = await search_all(searches, self._limit)
        by_token: dict[tuple[str, str], dict[str, JsonObject]] = {}
        for resource in (resource for batch in found for resource in batch):
            for identifier in objects(resource.get("identifier")):
                key = (resource["resourceType"], f"{identifier.get('system', '')}|{identifier.get('value')}")
                by_token.setdefault(key, {})[resource["id"]] = resource
        matches = {key: list(by_token.get((key[0], token), {}).values()) for key, token in tokens.items()}
        matched = {resource["id"] for listed in matches.values() for resource in listed}
        if any(resource["id"] not in matched for batch in found for resource in batch):
            # The server compares tokens differently (case, white space): let it decide on each that seems unmatched.
            unmatched = [key for key, listed in matches.items() if not listed]
            again = await search_all((partial(self._match, *key) for key in unmatched), self._limit)
            matches |= {key: listed for key, listed in zip(unmatched, again, strict=True) if isinstance(listed, list)}
        return matches

    async def _match(self, resource_type: str, condition: Parameters) -> Matches:
        query = (*condition, ("_elements", SHOWN), ("_count", "2"))
        try:
            return await self._upstream.search(resource_type, query, self._requester, pages=1, own=True)
        except RequestRefused as refusal:
            if refusal.issues[0].rule != REJECTED:
                raise
            return CONDITION_REJECTED


def _by_type(entries: Iterable[AcceptedEntry]) -> dict[str, list[AcceptedEntry]]:
    by_type: dict[str, list[AcceptedEntry]] = {}
    for each in entries:
        by_type.setdefault(each.entry.type, []).append(each)
    return by_type


def _batches(values: Sequence[T]) -> Iterable[Sequence[T]]:
    """Cut values into batches that one search can take."""
    return (values[start : start + SEARCHED] for start in range(0, len(values), SEARCHED))
