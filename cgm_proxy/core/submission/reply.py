"""The response to a submission: its entries in order, each with status, location, etag and what is wrong with it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from http import HTTPStatus
from typing import Literal

import msgspec

from cgm_proxy.core.issues import Issue, RequestRefused, operation_outcome
from cgm_proxy.core.json_values import JsonObject, objects
from cgm_proxy.core.submission.model import Interaction
from cgm_proxy.core.submission.outcomes import Outcome, PassedThrough, Refused, Stored
from cgm_proxy.core.submission.verdicts import Judgement, Verdict

Return = Literal["minimal", "representation", "OperationOutcome"]

#: Values of `return` (https://hl7.org/fhir/R4/http.html#return), in lower case.
RETURNS: dict[str, Return] = {
    "minimal": "minimal",
    "representation": "representation",
    "operationoutcome": "OperationOutcome",
}

#: Reason phrases; an upstream may answer with a status that has none.
PHRASES = {status.value: status.phrase for status in HTTPStatus}

#: `Bundle.entry.response.status` by status code.
STATUSES = {status: f"{status} {phrase}" for status, phrase in PHRASES.items()}

#: `Bundle.type` of the response to each way of submitting.
RESPONSE_TYPES: dict[Interaction, str] = {
    "batch": "batch-response",
    "transaction": "transaction-response",
    "operation": "transaction-response",
}

#: The status of an entry that was refused before its profile was looked at, by the FHIR issue type of its first issue; 400 for
#: any other type.
UNJUDGED = {"forbidden": 403, "business-rule": 422, "timeout": 503}


class EntryResponse(msgspec.Struct, frozen=True, gc=False):
    """The response to one entry."""

    status: int
    issues: tuple[Issue, ...] = ()
    stored: Stored | None = None
    passed_through: JsonObject | None = None
    """The upstream's own response, if the entry was sent as the submitter wrote it (observe mode)."""
    authenticate: str | None = None
    """The `WWW-Authenticate` header field of a 401."""


def preferred_return(prefer: str) -> Return:
    """Return the `return` preference of a Prefer header field (RFC 7240); the default is `minimal`."""
    for part in prefer.replace(";", ",").split(","):
        name, _, value = part.partition("=")
        if name.strip().lower() == "return" and (known := RETURNS.get(value.strip().strip('"').lower())):
            return known
    return "minimal"


def entry_responses(judgement: Judgement, outcomes: Mapping[int, Outcome]) -> tuple[EntryResponse, ...]:
    """Return the response to each entry: from its verdict and, if it was accepted, from its outcome."""
    return tuple(_entry_response(verdict, outcomes.get(verdict.entry.index)) for verdict in judgement.verdicts)


def _entry_response(verdict: Verdict, outcome: Outcome | None) -> EntryResponse:
    issues = tuple(with_entry_path(issue, verdict) for issue in verdict.issues)
    match outcome:
        case Stored():
            return EntryResponse(201 if outcome.created else 200, issues, outcome)
        case PassedThrough():
            return EntryResponse(outcome.status, issues, passed_through=outcome.entry)
        case Refused():
            reasons = tuple(with_entry_path(issue, verdict) for issue in outcome.issues)
            return EntryResponse(outcome.status, (*reasons, *issues), authenticate=outcome.authenticate)
    if verdict.profiles:
        return EntryResponse(422, issues)
    first = next((issue for issue in verdict.issues if issue.refuses), None)
    return EntryResponse(UNJUDGED.get(first.code, 400) if first else 422, issues)


def with_entry_path(issue: Issue, verdict: Verdict) -> Issue:
    """Return the issue with its path in the submission: `Observation.code` of entry 3 is `Bundle.entry[3].resource.code`."""
    entry = f"Bundle.entry[{verdict.entry.index}]"
    if not issue.expression:
        return replace(issue, expression=entry)
    head, dot, rest = issue.expression.partition(".")
    if head == verdict.entry.type:
        return replace(issue, expression=f"{entry}.resource{dot}{rest}")
    return issue if head == "Bundle" else replace(issue, expression=f"{entry}.{issue.expression}")


class _Response(msgspec.Struct, omit_defaults=True, gc=False):
    """`Bundle.entry.response`: thousands of structs take a quarter of the memory and time of thousands of dicts."""

    status: str
    location: str | None = None
    etag: str | None = None
    outcome: JsonObject | None = None


class _Entry(msgspec.Struct, omit_defaults=True, gc=False):
    """`Bundle.entry` of the response."""

    response: _Response
    resource: JsonObject | None = None


def response_bundle(judgement: Judgement, responses: Sequence[EntryResponse], preferred: Return) -> JsonObject:
    """Return the response Bundle, to be serialised; R4 forbids `entry.request` in it.

    Issues of the submission as a whole are in the first entry's outcome: R4 has no other place for them.
    """
    first, *others = responses
    with_issues = msgspec.structs.replace(first, issues=judgement.issues + first.issues)
    entries = [_bundle_entry(response, preferred) for response in (with_issues, *others)]
    return {"resourceType": "Bundle", "type": RESPONSE_TYPES[judgement.submission.interaction], "entry": entries}


def _bundle_entry(response: EntryResponse, preferred: Return) -> _Entry | JsonObject:
    if response.passed_through is not None:
        return _with_issues(response.passed_through, response.issues)
    outcome = operation_outcome(response.issues) if response.issues or preferred == "OperationOutcome" else None
    stored, status = response.stored, STATUSES.get(response.status, str(response.status))
    if stored is None:
        return _Entry(_Response(status, outcome=outcome))
    resource = stored.resource if preferred == "representation" else None
    return _Entry(_Response(status, stored.location, stored.etag or None, outcome), resource)


def _with_issues(entry: JsonObject, issues: Sequence[Issue]) -> JsonObject:
    """Add what was found about an entry to the upstream's own response, whose issues come first."""
    if not issues:
        return entry
    response = entry.get("response") or {}
    outcome = response.get("outcome")
    given = objects(outcome.get("issue")) if isinstance(outcome, dict) else []
    added = operation_outcome(issues)
    return {**entry, "response": {**response, "outcome": {**added, "issue": [*given, *added["issue"]]}}}


def refusal(judgement: Judgement, responses: Sequence[EntryResponse]) -> RequestRefused | None:
    """Return the refusal of a submission that is refused whole, by the orders or because it is atomic; None otherwise."""
    issues = [issue for issue in judgement.issues if issue.refuses]
    status, authenticate = 422, None
    if judgement.submission.atomic and not issues:
        failed = [response for response in responses if any(issue.refuses for issue in response.issues)]
        issues = [issue for response in failed for issue in response.issues if issue.refuses]
        status = max((response.status for response in failed), default=422)
        authenticate = next((response.authenticate for response in failed if response.status == status), None)
    if not issues:
        return None
    if any(issue.code == "throttled" for issue in issues):
        status = 429
    wait = judgement.retry_after
    headers = {"Retry-After": str(int(wait.total_seconds()) + 1)} if wait else {}
    return RequestRefused(status, tuple(issues), headers | ({"WWW-Authenticate": authenticate} if authenticate else {}))
