"""Read what a FHIR server answers to searches and to entries that it was sent.

A server, or a gateway before it, may answer anything, so nothing here raises. Malformed parts of a search's result are left
out, and a malformed response to a create confirms nothing.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

import msgspec

from cgm_proxy.core.codec.json_body import decode
from cgm_proxy.core.issues import Issue
from cgm_proxy.core.json_values import JsonObject, objects
from cgm_proxy.core.rest.reactions import Cause, cause_of
from cgm_proxy.core.submission.outcomes import Refused, Stored
from cgm_proxy.core.submission.plan import AcceptedEntry

#: The end of a location, relative to the base: type, id and version (https://hl7.org/fhir/R4/http.html#create).
LOCATION = re.compile(r"(?:^|/)([A-Z][A-Za-z]*/[A-Za-z0-9\-.]{1,64}(?:/_history/[A-Za-z0-9\-._~=]{1,64})?)$")

#: An ETag (RFC 9110, 8.8.3), and the bare version that HAPI writes in transaction-responses.
ETAG = re.compile(r'(?:W/)?"[\x21\x23-\x7e]*"')
VERSION = re.compile(r"[\x21\x23-\x7e]+")

#: The ETag of a first version.
FIRST_VERSION = 'W/"1"'

#: Statuses that refuse the submitter, the endpoint or the format, not an entry: sending fewer entries would not help.
REFUSING_ALL = frozenset({401, 403, 405, 406, 407, 410, 415, 501, 505})

#: Issue types of a Bundle that is too large (https://hl7.org/fhir/R4/valueset-issue-type.html), besides status 413.
TOO_LARGE = frozenset({"too-costly", "too-long"})

#: A `Retry-After` of so many digits is taken as infinite.
LONGEST_NUMBER = 300

#: Characters of a link's query that are not percent-encoded.
_IN_QUERY = "!$%&'()*+,-./:;=?@_~|"

_STATUSES = frozenset(map(int, HTTPStatus))
_RESOURCE = re.compile(r"\b[A-Z][A-Za-z]+/[A-Za-z0-9\-.]{1,64}")
_ENTRY = re.compile(r"\bentry\[(\d{1,6})\]")


class UpstreamResponse(NamedTuple):
    """An HTTP response of the upstream, and when it came."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    at: datetime


class UpstreamRefusal(msgspec.Struct, frozen=True, gc=False):
    """A refusal for good: sending the same again would not help."""

    status: int
    outcome: JsonObject
    authenticate: str | None = None

    @property
    def refuses_all(self) -> bool:
        """Whether the server would refuse any entry."""
        return self.status < 400 or self.status in REFUSING_ALL

    @property
    def too_large(self) -> bool:
        """Whether the server might take fewer entries."""
        return self.status == 413 or any(
            str(issue.get("code")) in TOO_LARGE for issue in objects(self.outcome.get("issue"))
        )

    def as_refused(self) -> Refused:
        """Return the refusal for the submitter, with the server's words, shortened; a redirect becomes 502."""
        texts = [issue.get("diagnostics") for issue in objects(self.outcome.get("issue"))]
        given = [text for text in texts if isinstance(text, str)] or ["it gave no reason"]
        issues = [
            Issue("upstream-refused", f"the server refuses the entry: {text[:500]}", code="processing")
            for text in given[:5]
        ]
        status = self.status if self.status in _STATUSES else 400 if self.status < 500 else 502
        return Refused(502 if self.status < 400 else status, tuple(issues), self.authenticate)

    @property
    def mentioned(self) -> set[str]:
        """The resources that its texts mention, as `Type/id`."""
        return {found.rstrip(".") for text in self._texts() for found in _RESOURCE.findall(text)}

    def named(self, entries: Sequence[AcceptedEntry], written: Mapping[str, str] = MappingProxyType({})) -> set[int]:
        """Return the positions of the entries that the outcome names: by FHIRPath, by identity, or by what they reference.

        HAPI 8.8 gives no path; it quotes the condition, which holds the identity, or the reference. `written` are the
        references that were sent differently.
        """
        text, mentioned = "\n".join(self._texts()), self.mentioned
        positions = {int(position) for position in _ENTRY.findall(text)} & set(range(len(entries)))

        def quotes(reference: str) -> bool:
            return reference in mentioned if _RESOURCE.fullmatch(reference) else reference in text

        quoted = (
            position
            for position, each in enumerate(entries)
            if each.identity in text or any(quotes(written.get(r, r)) for r in each.entry.references)
        )
        return positions or set(quoted)

    def _texts(self) -> Iterator[str]:
        for issue in objects(self.outcome.get("issue")):
            for value in (issue.get("diagnostics"), issue.get("expression"), issue.get("location")):
                yield from (str(text) for text in (value if isinstance(value, list) else [value]))


class Retry(msgspec.Struct, frozen=True, gc=False):
    """Why an entry is not settled, and may be sent again after `wait` seconds."""

    cause: Cause
    wait: float = 0.0
    refusal: UpstreamRefusal | None = None
    """The server's words: the answer if the entry stays `unclear`, and a part of it if it stays a `conflict`."""


EntryResult = Stored | UpstreamRefusal | Retry

LOST = Retry("lost")


# Responses to creates ------------------------------------------------------------------------------------------------


class _Response(msgspec.Struct, gc=False):
    """What is read of `Bundle.entry.response`; the outcome, most of its text, is skipped."""

    status: Any = None
    location: Any = None
    etag: Any = None


class _ResponseEntry(msgspec.Struct, gc=False):
    """An entry of a transaction-response."""

    response: _Response
    resource: Any = None


class _TransactionResponse(msgspec.Struct):
    """A transaction-response."""

    entry: list[_ResponseEntry]


_transaction_response = msgspec.json.Decoder(_TransactionResponse, float_hook=Decimal)


def read_bundle_response(
    response: UpstreamResponse, count: int, *, whole: bool
) -> list[EntryResult] | UpstreamRefusal | Retry:
    """Read the response to `count` entries that were sent together: one result for each, or one for all of them.

    `whole` is whether the Bundle was a transaction.
    """
    if response.status >= 300:
        return _not_stored(response.status, document(response.body), response)
    if whole:
        confirmed = stored_by_transaction(response.body, count)
        return [*confirmed] if confirmed else LOST
    entries = (document(response.body) or {}).get("entry")
    if not isinstance(entries, list) or len(entries) != count:
        return LOST
    return [_read_entry(entry) for entry in entries]


def read_single_response(response: UpstreamResponse, resource_type: str) -> EntryResult:
    """Read the response to an entry that was sent by itself."""
    status, headers, body, _ = response
    parsed = document(body)
    if status >= 300:
        return _not_stored(status, parsed, response)
    resource = parsed if parsed and parsed.get("resourceType") == resource_type else None
    found = (LOCATION.search(headers.get(name, "")) for name in ("Location", "Content-Location"))
    places = [match[1] for match in found if match and match[1].startswith(f"{resource_type}/")]
    if places:
        return Stored(places[0], etag(headers.get("ETag")), status == 201, resource)
    if resource and (location := location_of(resource)):
        return Stored(location.location, location.etag, status == 201, resource)
    return Retry("unclear")


def stored_by_transaction(data: bytes, count: int) -> list[Stored] | None:
    """Read a transaction-response to `count` creates: 200 or 201 and a location for each of them, else None."""
    try:
        entries = _transaction_response.decode(data).entry
    except (msgspec.DecodeError, ValueError, ArithmeticError, RecursionError):
        return None
    found = [
        stored
        for e in entries
        if (stored := _stored(e.response.status, e.response.location, e.response.etag, e.resource))
    ]
    return found if len(found) == len(entries) == count else None


def _read_entry(entry: Any) -> EntryResult:
    """Read one entry of a batch-response."""
    response = entry.get("response") if isinstance(entry, dict) else None
    if not isinstance(response, dict):
        return LOST
    given = response.get("status")
    if stored := _stored(given, response.get("location"), response.get("etag"), entry.get("resource")):
        return stored
    digits = str(given)[:3]
    if not (digits.isascii() and digits.isdigit()):
        return LOST
    status, outcome = int(digits), response.get("outcome")
    if 200 <= status < 300:
        return Retry("unclear")
    return _not_stored(status, outcome if isinstance(outcome, dict) else None)


def _stored(status: Any, location: Any, tag: Any, resource: Any) -> Stored | None:
    code, found = str(status)[:3], LOCATION.search(str(location))
    if code not in {"200", "201"} or found is None:
        return None
    return Stored(found[1], etag(tag), code == "201", resource if isinstance(resource, dict) else None)


def _not_stored(
    status: int, outcome: JsonObject | None, response: UpstreamResponse | None = None
) -> UpstreamRefusal | Retry:
    """Read a response that does not say that anything is stored."""
    headers = response.headers if response else {}
    wait = retry_after(headers.get("Retry-After", ""), response.at) if response else None
    refusal = UpstreamRefusal(status, outcome or {}, headers.get("WWW-Authenticate"))
    cause = cause_of(status, explained=outcome is not None, retry_after=wait is not None)
    if cause == "refused":
        return refusal
    return Retry(cause, wait or 0.0, refusal if cause in {"conflict", "unclear"} else None)


def retry_after(text: str, now: datetime) -> float | None:
    """Return the seconds of a `Retry-After` (RFC 9110, 10.2.3), a number or a date; None if it is neither."""
    if text.isascii() and text.isdigit():
        return float(text) if len(text) < LONGEST_NUMBER else math.inf
    try:
        date = parsedate_to_datetime(text)
    except (TypeError, ValueError):
        return None
    return max((date.replace(tzinfo=date.tzinfo or UTC) - now).total_seconds(), 0.0)


def etag(value: Any) -> str | None:
    """Return an ETag that may stand in a header field, also for a bare version; None for anything else."""
    if value == "1":  # HAPI writes it for whatever is new: one string for all of them
        return FIRST_VERSION
    if not isinstance(value, str) or ETAG.fullmatch(value):
        return value if isinstance(value, str) else None
    return f'W/"{value}"' if VERSION.fullmatch(value) else None


# Responses to searches and reads -------------------------------------------------------------------------------------


def document(data: bytes) -> JsonObject | None:
    """Parse a body; None if it is not a JSON object."""
    try:
        return decode(data)
    except (msgspec.DecodeError, ValueError, ArithmeticError, RecursionError):
        return None


def resources(page: JsonObject, resource_type: str) -> Iterator[JsonObject]:
    """Yield the resources of one type in a searchset, without outcomes and included resources."""
    for entry in objects(page.get("entry")):
        resource = entry.get("resource")
        if isinstance(resource, dict) and resource.get("resourceType") == resource_type and location_of(resource):
            yield resource


def next_page(page: JsonObject, resource_type: str) -> str | None:
    """Return the link to the next page of a search as path and query below the base, whatever host the link names."""
    urls = [link.get("url") for link in objects(page.get("link")) if link.get("relation") == "next"]
    if not urls or not isinstance(url := urls[0], str):
        return None
    path, _, query = url.partition("#")[0].partition("?")
    steps = [unquote(step) for step in path.split("/") if step]
    below = "/".join(steps[steps.index(resource_type) :]) if resource_type in steps else ""
    return (f"/{quote(below)}" if below else "") + "?" + quote(query, safe=_IN_QUERY)


def location_of(resource: JsonObject) -> Stored | None:
    """Return where a resource that was read or found is stored; None if it has no id."""
    logical_id = resource.get("id")
    place = LOCATION.fullmatch(f"{resource.get('resourceType')}/{logical_id}")
    if not isinstance(logical_id, str) or not place:
        return None
    meta = resource.get("meta")
    version = meta.get("versionId") if isinstance(meta, dict) else None
    if not isinstance(version, str) or not LOCATION.fullmatch(f"{place[1]}/_history/{version}"):
        return Stored(place[1])
    return Stored(f"{place[1]}/_history/{version}", f'W/"{version}"')


def subject_of(resource: JsonObject) -> str | None:
    """Return the reference to the patient whom a resource is about; None if it names nobody."""
    for name in ("subject", "patient"):
        element = resource.get(name)
        if isinstance(element, dict) and isinstance(reference := element.get("reference"), str):
            return reference
    return None
