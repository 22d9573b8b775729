"""Read what a FHIR server answers to entries that it was sent: each is stored, refused, or may be sent again.

A server, or a gateway before it, may answer anything: nothing here raises.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, Literal, NamedTuple

import msgspec

from cgm_proxy.core.issues import Issue
from cgm_proxy.core.json_values import JsonObject, objects
from cgm_proxy.core.rest import confirmed
from cgm_proxy.core.submission.plan import Identified, Refused, Stored

#: Why an entry may be answered otherwise: it lost a race (`conflict`); it is stored, but it was not said where, or its condition
#: failed (`unclear`); the server did nothing (`busy`); it says that it failed (`failed`); nobody knows what it did (`lost`).
Cause = Literal["conflict", "unclear", "busy", "failed", "lost"]

#: Those by which the upstream itself fails, or may.
FAILING: frozenset[Cause] = frozenset({"busy", "failed", "lost"})

#: Statuses below 500 after which the same request may be answered otherwise: HAPI's losers (HAPI-0550, HAPI-2745) get 409.
CAUSES: dict[int, Cause] = {408: "busy", 409: "conflict", 412: "unclear", 425: "busy", 429: "busy"}

#: Statuses from 500 that stay: any other one may be a restart's, a gateway's or an overload's.
LASTING = frozenset({501, 505})

#: Statuses that refuse the submitter, the endpoint or the format, not an entry: narrowing would change nothing.
OF_ALL = frozenset({401, 403, 405, 406, 407, 410, 415, 501, 505})

#: Issue types of a Bundle that is too large (https://hl7.org/fhir/R4/valueset-issue-type.html), beside 413.
TOO_LARGE = frozenset({"too-costly", "too-long"})

#: Digits of a number of seconds that is none any more.
LONG = 300

_STATUSES = frozenset(map(int, HTTPStatus))
_ENTRY = re.compile(r"\bentry\[(\d{1,6})\]")


class UpstreamRefusal(msgspec.Struct, frozen=True, gc=False):
    """A refusal that sending again does not change."""

    status: int
    outcome: JsonObject
    authenticate: str | None = None

    @property
    def of_all(self) -> bool:
        """Whether it refuses whatever would be sent."""
        return self.status < 400 or self.status in OF_ALL

    @property
    def too_large(self) -> bool:
        """Whether less at once may be taken."""
        return self.status == 413 or any(
            str(issue.get("code")) in TOO_LARGE for issue in objects(self.outcome.get("issue"))
        )

    def told(self) -> Refused:
        """Give what to tell the submitter, in the server's words, cut short; a redirection is none of its business."""
        said = [issue.get("diagnostics") for issue in objects(self.outcome.get("issue"))]
        texts = [text for text in said if isinstance(text, str)] or ["it gave no reason"]
        issues = [
            Issue("upstream-refused", f"the server refuses the entry: {text[:500]}", code="processing")
            for text in texts[:5]
        ]
        status = self.status if self.status in _STATUSES else 400 if self.status < 500 else 502
        return Refused(502 if self.status < 400 else status, tuple(issues), self.authenticate)

    def named(self, ones: Sequence[Identified]) -> set[int]:
        """Tell which of the entries that were sent it names, by their places: by FHIRPath, by identity, by what they reference.

        HAPI 8.8 gives no path; it quotes the condition, which holds the identity, or the reference.
        """
        text = "\n".join(self._texts())
        places = {int(place) for place in _ENTRY.findall(text)} & set(range(len(ones)))
        quoted = (i for i, one in enumerate(ones) if any(t in text for t in (one.identity, *one.entry.references)))
        return places or set(quoted)

    def _texts(self) -> Iterator[str]:
        for issue in objects(self.outcome.get("issue")):
            for said in (issue.get("diagnostics"), issue.get("expression"), issue.get("location")):
                yield from (str(text) for text in (said if isinstance(said, list) else [said]))


class Retry(msgspec.Struct, frozen=True, gc=False):
    """An entry may be answered otherwise when it is sent again, not before `wait` seconds have passed."""

    cause: Cause
    wait: float = 0.0
    refusal: UpstreamRefusal | None = None
    """What stands if it stays `unclear`, and is told beside if it stays a `conflict`."""


EntryResult = Stored | UpstreamRefusal | Retry

LOST = Retry("lost")


class UpstreamResponse(NamedTuple):
    """An HTTP response, and when it came."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    at: datetime


def of_bundle(answered: UpstreamResponse, count: int, *, whole: bool) -> list[EntryResult] | UpstreamRefusal | Retry:
    """Read the answer to `count` entries that were sent together: a result for each, or one for all."""
    body = answered.body
    if answered.status >= 300:
        return _without(answered.status, confirmed.document(body), answered)
    if whole:
        stored = confirmed.confirmation(body, count)
        return [*stored] if stored else LOST
    entries = (confirmed.document(body) or {}).get("entry")
    if not isinstance(entries, list) or len(entries) != count:
        return LOST
    return [_of_entry(entry) for entry in entries]


def _of_entry(entry: Any) -> EntryResult:
    """Read one entry of a batch-response."""
    if stored := confirmed.stored(entry):
        return stored
    response = entry.get("response") if isinstance(entry, dict) else None
    said = str(response.get("status"))[:3] if isinstance(response, dict) else ""
    if not (said.isascii() and said.isdigit()):
        return LOST
    outcome = response.get("outcome") if isinstance(response, dict) else None
    status = int(said)
    if 200 <= status < 300:
        return Retry("unclear")
    return _without(status, outcome if isinstance(outcome, dict) else None)


def of_single(answered: UpstreamResponse, kind: str) -> EntryResult:
    """Read the answer to an entry that was sent by itself, as a resource of type `kind`."""
    status, headers, body, _ = answered
    document = confirmed.document(body)
    if status >= 300:
        return _without(status, document, answered)
    resource = document if document and document.get("resourceType") == kind else None
    told = (confirmed.LOCATION.search(headers.get(field, "")) for field in ("Location", "Content-Location"))
    places = [place[1] for place in told if place and place[1].startswith(f"{kind}/")]
    if places:
        return Stored(places[0], confirmed.etag(headers.get("ETag")), status == 201, resource)
    if resource and (found := confirmed.location_of(resource)):
        return Stored(found.location, found.etag, status == 201, resource)
    return Retry("unclear")


def _without(
    status: int, outcome: JsonObject | None, answered: UpstreamResponse | None = None
) -> UpstreamRefusal | Retry:
    """Read an answer by which nothing is known to be stored."""
    headers = answered.headers if answered else {}
    wait = retry_after(headers.get("Retry-After", ""), answered.at) if answered else None
    refusal = UpstreamRefusal(status, outcome or {}, headers.get("WWW-Authenticate"))
    if status in CAUSES:
        return Retry(CAUSES[status], wait or 0.0, refusal if status in {409, 412} else None)
    if status < 500 or status in LASTING:
        return refusal
    if status == 503 and wait is not None:
        return Retry("busy", wait)
    return Retry("failed" if status == 500 and outcome is not None else "lost", wait or 0.0)


def retry_after(text: str, now: datetime) -> float | None:
    """Read `Retry-After` (RFC 9110, 10.2.3), which is seconds or a date, in seconds; None where it is neither."""
    if text.isascii() and text.isdigit():
        return float(text) if len(text) < LONG else math.inf
    try:
        date = parsedate_to_datetime(text)
    except (TypeError, ValueError):
        return None
    return max((date.replace(tzinfo=date.tzinfo or UTC) - now).total_seconds(), 0.0)
