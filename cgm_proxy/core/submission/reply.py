"""The answer to a submission: its entries in order, each with status, location, etag and what is wrong with it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from http import HTTPStatus
from typing import Literal

import msgspec

from cgm_proxy.core.issues import Issue, RequestRefused, operation_outcome
from cgm_proxy.core.json_values import JsonObject, objects
from cgm_proxy.core.submission.model import Interaction
from cgm_proxy.core.submission.plan import Outcome, PassedThrough, Refused, Stored
from cgm_proxy.core.submission.verdicts import Judgement, Verdict

Return = Literal["minimal", "representation", "OperationOutcome"]

#: Values of `return` (https://hl7.org/fhir/R4/http.html#return), in lower case.
RETURNS: dict[str, Return] = {
    "minimal": "minimal",
    "representation": "representation",
    "operationoutcome": "OperationOutcome",
}

#: Reason phrases of the statuses that have one; an upstream may answer with others.
PHRASES = {status.value: status.phrase for status in HTTPStatus}

#: `response.status` of each; an upstream's others stand alone.
STATUSES = {status: f"{status} {phrase}" for status, phrase in PHRASES.items()}

#: `Bundle.type` of the answer to each way of submitting.
RESPONSE_TYPES: dict[Interaction, str] = {
    "batch": "batch-response",
    "transaction": "transaction-response",
    "operation": "transaction-response",
}

#: Entries that were refused before a profile was looked at; the first issue's FHIR issue type decides.
UNJUDGED = {"forbidden": 403, "business-rule": 422}


class EntryResponse(msgspec.Struct, frozen=True, gc=False):
    """What became of one entry."""

    status: int
    issues: tuple[Issue, ...] = ()
    stored: Stored | None = None
    relayed: JsonObject | None = None
    """The upstream's own answer, where it was asked in the submitter's words (observe mode)."""
    authenticate: str | None = None
    """The `WWW-Authenticate` that belongs to a 401."""


def preferred_return(prefer: str) -> Return:
    """Read `return=` of a Prefer header (RFC 7240); without it an entry has an outcome only where there is something to say."""
    for part in prefer.replace(";", ",").split(","):
        name, _, value = part.partition("=")
        if name.strip().lower() == "return" and (wanted := RETURNS.get(value.strip().strip('"').lower())):
            return wanted
    return "minimal"


def answers(judgement: Judgement, outcomes: Mapping[int, Outcome]) -> tuple[EntryResponse, ...]:
    """Give each entry's answer, from its verdict and, where it was accepted, from what the upstream said of it."""
    return tuple(_answer(verdict, outcomes.get(verdict.entry.index)) for verdict in judgement.verdicts)


def _answer(verdict: Verdict, outcome: Outcome | None) -> EntryResponse:
    issues = tuple(with_entry_path(issue, verdict) for issue in verdict.issues)
    match outcome:
        case Stored():
            return EntryResponse(201 if outcome.created else 200, issues, outcome)
        case PassedThrough():
            return EntryResponse(outcome.status, issues, relayed=outcome.entry)
        case Refused():
            said = tuple(with_entry_path(issue, verdict) for issue in outcome.issues)
            return EntryResponse(outcome.status, (*said, *issues), authenticate=outcome.authenticate)
    first = next((issue for issue in verdict.issues if issue.refuses), None)
    unjudged = UNJUDGED.get(first.code, 400) if first else 422
    return EntryResponse(422 if verdict.profiles else unjudged, issues)


def with_entry_path(issue: Issue, verdict: Verdict) -> Issue:
    """Say where in the submission an issue is: `Observation.code` of entry 3 is `Bundle.entry[3].resource.code`."""
    entry = f"Bundle.entry[{verdict.entry.index}]"
    if not issue.expression:
        return replace(issue, expression=entry)
    head, dot, rest = issue.expression.partition(".")
    if head == verdict.entry.type:
        return replace(issue, expression=f"{entry}.resource{dot}{rest}")
    return issue if head == "Bundle" else replace(issue, expression=f"{entry}.{issue.expression}")


def bundle(judgement: Judgement, answers: Sequence[EntryResponse], preferred: Return) -> JsonObject:
    """Give the response Bundle, to be serialised; R4 forbids `entry.request` in it.

    What is to be said of the submission as a whole stands in the first entry's outcome, which R4 has no other place for.
    """
    first, *others = answers
    entries = [
        _entry(answer, preferred)
        for answer in (msgspec.structs.replace(first, issues=judgement.issues + first.issues), *others)
    ]
    return {"resourceType": "Bundle", "type": RESPONSE_TYPES[judgement.submission.interaction], "entry": entries}


class _Response(msgspec.Struct, omit_defaults=True, gc=False):
    """`Bundle.entry.response`: thousands of them take a quarter of the memory and time that a dict would."""

    status: str
    location: str | None = None
    etag: str | None = None
    outcome: JsonObject | None = None


class _Entry(msgspec.Struct, omit_defaults=True, gc=False):
    """`Bundle.entry` of an answer."""

    response: _Response
    resource: JsonObject | None = None


def _entry(answer: EntryResponse, preferred: Return) -> _Entry | JsonObject:
    if answer.relayed is not None:
        return _with_warnings(answer.relayed, answer.issues)
    said = answer.issues or preferred == "OperationOutcome"
    outcome = operation_outcome(answer.issues) if said else None
    stored, status = answer.stored, STATUSES.get(answer.status, str(answer.status))
    if stored is None:
        return _Entry(_Response(status, outcome=outcome))
    shown = stored.resource if preferred == "representation" else None
    return _Entry(_Response(status, stored.location, stored.etag or None, outcome), shown)


def _with_warnings(relayed: JsonObject, issues: Sequence[Issue]) -> JsonObject:
    """Add what was found about an entry to the upstream's own answer, whose words come first."""
    if not issues:
        return relayed
    response = relayed.get("response") or {}
    outcome = response.get("outcome")
    said = objects(outcome.get("issue")) if isinstance(outcome, dict) else []
    told = operation_outcome(issues)
    return {**relayed, "response": {**response, "outcome": {**told, "issue": [*said, *told["issue"]]}}}


def refusal(judgement: Judgement, answers: Sequence[EntryResponse]) -> RequestRefused | None:
    """Give the refusal of a submission that is refused whole: by the orders, or because it is atomic."""
    issues = [issue for issue in judgement.issues if issue.refuses]
    status, authenticate = 422, None
    if judgement.submission.atomic and not issues:
        failed = [answer for answer in answers if any(issue.refuses for issue in answer.issues)]
        issues = [issue for answer in failed for issue in answer.issues if issue.refuses]
        status = max((answer.status for answer in failed), default=422)
        authenticate = next((answer.authenticate for answer in failed if answer.status == status), None)
    if not issues:
        return None
    if any(issue.code == "throttled" for issue in issues):
        status = 429
    wait = judgement.retry_after
    headers = {"Retry-After": str(int(wait.total_seconds()) + 1)} if wait else {}
    return RequestRefused(status, tuple(issues), headers | ({"WWW-Authenticate": authenticate} if authenticate else {}))
