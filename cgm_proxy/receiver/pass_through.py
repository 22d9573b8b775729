"""Observe mode: entries that this receiver would refuse and can't create itself are sent as the submitter wrote them."""

from collections.abc import Iterable, Sequence
from http import HTTPStatus

from cgm_proxy.core.issues import Issue, RequestRefused, operation_outcome
from cgm_proxy.core.json_values import JsonObject
from cgm_proxy.core.submission.model import Entry
from cgm_proxy.core.submission.outcomes import Outcome, PassedThrough, Refused, refused
from cgm_proxy.core.submission.plan import AcceptedEntry
from cgm_proxy.core.submission.verdicts import Verdict
from cgm_proxy.upstream.client import Requester, UpstreamClient

_STATUSES = frozenset(map(int, HTTPStatus))

#: An entry that was sent as the submitter wrote it, and was not answered.
UNCONFIRMED = Issue(
    "fate-unknown",
    "the server did not confirm the entry and may have stored it; look for it before you send it again",
    code="transient",
)

NO_STATUS = refused(502, "upstream-answer", "the server's response to the entry has no status", code="transient")


def unjudged(verdicts: Iterable[Verdict], accepted: Iterable[AcceptedEntry]) -> list[Entry]:
    """Return the entries that observe mode lets through although they can't be created here; none in enforce mode."""
    planned = {each.entry.index for each in accepted}
    return [v.entry for v in verdicts if v.accepted and v.entry.request and v.entry.index not in planned]


def batch_of(entries: Iterable[Entry]) -> JsonObject:
    """Return the batch of these entries as the submitter wrote them."""
    written = [{"fullUrl": e.full_url, "resource": e.resource, "request": e.request} for e in entries]
    listed = [{name: value for name, value in entry.items() if value} for entry in written]
    return {"resourceType": "Bundle", "type": "batch", "entry": listed}


async def pass_through(
    entries: Sequence[Entry], batch: JsonObject, upstream: UpstreamClient, requester: Requester
) -> dict[int, Outcome]:
    """Send the batch of these entries once, since nothing in it is conditional; return the outcomes by index."""
    try:
        answered = await upstream.batch(batch, requester)
    except RequestRefused as refusal:
        may_be_stored = refusal.status in {502, 504}
        outcome = unanswered(*refusal.issues) if may_be_stored else Refused(refusal.status, refusal.issues)
        return dict.fromkeys((entry.index for entry in entries), outcome)
    responses = answered if len(answered) == len(entries) else [{}] * len(entries)
    return {entry.index: _outcome(response) for entry, response in zip(entries, responses, strict=True)}


def unanswered(*issues: Issue) -> PassedThrough:
    """Return the outcome of an entry that was sent and not answered; `issues` say why."""
    response = {"status": "503 Service Unavailable", "outcome": operation_outcome([UNCONFIRMED, *issues])}
    return PassedThrough(503, {"response": response})


def _outcome(entry: JsonObject) -> Outcome:
    response = entry.get("response")
    status = str(response.get("status"))[:3] if isinstance(response, dict) else ""
    if not status.isascii() or not status.isdigit() or int(status) not in _STATUSES:
        return NO_STATUS
    return PassedThrough(int(status), entry)
