"""Look up the stored resources that a submission references, before it is judged.

They are read as the proxy reads (with the service token, if there is one), and only those of the submission's patient count.
Conditional references (`Device?identifier=…`) are part of the submitter's own write, so they are searched for with the
submitter's own authority, and what is stored is the reference to the resource that was found.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

from cgm_proxy.core.issues import RequestRefused
from cgm_proxy.core.json_values import JsonObject
from cgm_proxy.core.submission.if_none_exist import parameters
from cgm_proxy.core.submission.model import Submission
from cgm_proxy.core.submission.references import PATIENT_ELEMENTS, belongs_to, conditionals, literals
from cgm_proxy.upstream.client import CONCURRENT_SEARCHES, NOT_ALLOWED, REJECTED, Requester, UpstreamClient, search_all

#: The number of stored resources that one submission may reference; one search finds 200 of them.
LITERALS = 1000

#: The number of conditional references that one submission may have; each is a search.
CONDITIONALS = 50

#: The types whose content a verdict or an identity depends on. Of others, only the patient is read.
READ_WHOLE = frozenset({"Observation", "Device", "DiagnosticReport"})


@dataclass(frozen=True, slots=True)
class Referenced:
    """What the references of a submission lead to; the fields have the meaning that they have in `JudgingContext`."""

    resources: Mapping[str, JsonObject]
    allowed: frozenset[str]
    excess: frozenset[str]
    resolved: Mapping[str, str]


async def look_up(
    submission: Submission, upstream: UpstreamClient, requester: Requester, localize: Callable[[str], str]
) -> Referenced:
    """Look up what the submission's references lead to, each resource once, and keep what belongs to its patient.

    Nothing is known of resources of a type that the server can't search; where the submitter may not search, the references
    are allowed. Raises `RequestRefused` for any other failure.
    """
    literal, conditional = literals(submission, localize), conditionals(submission)
    by_type: dict[str, list[str]] = {}
    for relative in islice(literal, LITERALS):
        resource_type, _, logical_id = relative.partition("/")
        by_type.setdefault(resource_type, []).append(logical_id)
    found = await _matches(list(islice(conditional, CONDITIONALS)), upstream, requester)
    forbidden: list[str] = []
    for resource_type, ids in by_type.items():
        elements = "" if resource_type in READ_WHOLE else ",".join(PATIENT_ELEMENTS)
        try:
            found |= await upstream.read_type(resource_type, ids, requester, elements)
        except RequestRefused as refusal:
            if refusal.status in NOT_ALLOWED:
                forbidden += [f"{resource_type}/{logical_id}" for logical_id in ids]
            elif refusal.issues[0].rule != REJECTED:
                raise
    own = {relative: each for relative, each in found.items() if belongs_to(each, submission.patient, localize)}
    whole = {relative: each for relative, each in own.items() if each["resourceType"] in READ_WHOLE}
    excess = [*islice(literal, LITERALS, None), *islice(conditional, CONDITIONALS, None)]
    spellings = literal | conditional

    def spelled(references: Iterable[str]) -> Iterator[tuple[str, str]]:
        return ((spelling, each) for each in references for spelling in spellings.get(each, ()))

    return Referenced(
        {spelling: whole[relative] for spelling, relative in spelled(whole)},
        frozenset(spelling for spelling, _ in spelled([*(own.keys() - whole.keys()), *forbidden])),
        frozenset(spelling for spelling, _ in spelled(excess)),
        {spelling: _literal(own[relative]) for spelling, relative in spelled(own.keys() & conditional.keys())},
    )


def _literal(resource: JsonObject) -> str:
    return f"{resource['resourceType']}/{resource['id']}"


async def _matches(references: Sequence[str], upstream: UpstreamClient, requester: Requester) -> dict[str, JsonObject]:
    """Search for conditional references; return the resource of each that matches exactly one."""

    async def match(reference: str) -> list[JsonObject]:
        resource_type = reference.partition("?")[0]
        condition = parameters(reference, resource_type)
        if condition is None:
            return []
        try:
            return await upstream.search(resource_type, (*condition, ("_count", "2")), requester, pages=1, own=True)
        except RequestRefused as refusal:
            if refusal.status not in NOT_ALLOWED and refusal.issues[0].rule != REJECTED:
                raise
            return []

    limit = asyncio.Semaphore(CONCURRENT_SEARCHES)
    matches = await search_all((partial(match, reference) for reference in references), limit)
    return {reference: found[0] for reference, found in zip(references, matches, strict=True) if len(found) == 1}
