"""FHIR's asynchronous pattern, as far as it is pure: the preference, the status URL, and the bodies of its responses.

In R4 (https://hl7.org/fhir/R4/async.html) the pattern ends with a manifest of NDJSON files, which suits an export but has no
place for the outcome of each entry. So the result has the form of R5's Asynchronous Interaction Request Pattern
(https://hl7.org/fhir/R5/async-bundle.html), as other R4 servers return it; requests, header fields and statuses are the same
in both. The result is a `batch-response` with one entry, that of the submission: `response.status` is the status that the
synchronous response would have had, and `resource` its body, the response Bundle with the submission's entries in order. For
a refused submission, `response.outcome` is the OperationOutcome instead. The response with the result has the status 200 in
any case: other statuses are about the status request itself.
"""

from collections.abc import Callable, Mapping

from cgm_proxy.core.issues import Issue, RequestRefused, operation_outcome, refuse
from cgm_proxy.core.json_values import JsonObject, objects
from cgm_proxy.core.submission.detection import path_segments
from cgm_proxy.core.submission.reply import PHRASES

#: The path segment between the base and a submission's id in the URL of its status.
STATUS_OPERATION = "$cgm-submission-status"

#: What every usual spelling of a status URL contains, also one with `%24` for `$`. Few other requests contain it, so few are
#: examined closely.
STATUS_PATH_MARKER = STATUS_OPERATION.removeprefix("$")

#: Shortest and longest time between two polls (seconds).
POLL_INTERVALS = (2, 60)

_SEND_AGAIN = "send it again: entries that are stored already are recognised"


def prefers_async(prefer: str) -> bool:
    """Whether a Prefer header asks for an asynchronous response (RFC 7240, 4.1). The server need not comply."""
    return any(
        part.partition("=")[0].strip().lower() == "respond-async" for part in prefer.replace(";", ",").split(",")
    )


def refuse_files(query: Mapping[str, object]) -> None:
    """Raise `RequestRefused` (400) if `_outputFormat` asks for R4's manifest of files, as R5 requires."""
    if "_outputFormat" in query:
        text = (
            "_outputFormat asks for a manifest of files, which this receiver does not create; "
            "leave it out: the result is a Bundle"
        )
        raise refuse(400, "async-output-format", text, code="not-supported")


def status_id(raw_path: str, target: Callable[[str], str], base: str) -> str | None:
    """Return the submission's id in the path of a status URL, in any usual spelling; None for any other path.

    `target` maps a public path to the upstream's, and `base` is the path of the upstream's base. A spelling that is not
    recognised reaches the upstream, which has no such operation.
    """
    if STATUS_PATH_MARKER not in raw_path:
        return None
    *parent, last = path_segments(target(raw_path)) or [""]
    return last if parent == [*path_segments(base), STATUS_OPERATION] else None


def accepted_outcome() -> JsonObject:
    """Return the body of the 202 for a submission that is kept."""
    text = "the submission is accepted and processed later; GET the URL in Content-Location for its result"
    return operation_outcome((Issue("async-accepted", text, severity="information", code="informational"),))


def deleted_outcome() -> JsonObject:
    """Return the body of the 202 for a DELETE."""
    text = "the submission is cancelled and its status deleted; entries that are stored already stay stored"
    return operation_outcome((Issue("async-forgotten", text, severity="information", code="informational"),))


def unknown_status() -> RequestRefused:
    """Return the 404 for a status URL that never existed, is no longer valid, or is not for this requester."""
    text = "no submission has this status URL: it was deleted, its result has expired, or it never existed"
    return refuse(404, "async-unknown", text, code="not-found")


def given_up_refusal(attempts: int) -> RequestRefused:
    """Return the refusal of a submission during which the proxy ended again and again."""
    text = (
        f"this receiver stopped {attempts} times while it processed this submission; {_SEND_AGAIN}. Send smaller parts"
    )
    return refuse(500, "async-given-up", text, code="exception")


def failed_refusal() -> RequestRefused:
    """Return the refusal of a submission that failed because of a fault of the proxy."""
    return refuse(
        500, "async-failed", f"this receiver failed to process this submission; {_SEND_AGAIN}", code="exception"
    )


def result_too_large(limit: int) -> RequestRefused:
    """Return the refusal that replaces a result of more than `limit` bytes."""
    text = (
        f"the submission was processed, but its result is larger than the {limit:,} bytes that this receiver keeps; "
        f"{_SEND_AGAIN}. Use Prefer: return=minimal, or send smaller parts"
    )
    return refuse(500, "async-result-too-large", text, code="too-long")


def result_not_stored() -> RequestRefused:
    """Return the refusal that replaces a result for which the disk has no room."""
    text = f"the submission was processed, but the disk of this receiver is full, so that its result is lost; {_SEND_AGAIN}"
    return refuse(500, "async-result-lost", text, code="no-store")


def result_bundle(status: int, content: JsonObject | None, headers: Mapping[str, str]) -> JsonObject:
    """Return the result of a submission, given the status, body and header fields of its synchronous response."""
    response: JsonObject = {"status": f"{status} {PHRASES.get(status, '')}".rstrip()}
    response |= {name.lower(): headers[name] for name in ("Location", "ETag") if name in headers}
    entry: JsonObject = {"response": response}
    if content is not None and content.get("resourceType") == "OperationOutcome":
        response["outcome"] = content
    elif content is not None:
        entry = {"resource": content, "response": response}
    return {"resourceType": "Bundle", "type": "batch-response", "entry": [entry]}


def without_resources(result: JsonObject) -> JsonObject:
    """Return a result without the stored resources in it: statuses, locations and outcomes stay."""
    entries = []
    for entry in objects(result.get("entry")):
        resource = entry.get("resource")
        if isinstance(resource, dict) and resource.get("resourceType") == "Bundle":
            inner = [
                {name: each[name] for name in each if name != "resource"} for each in objects(resource.get("entry"))
            ]
            entries.append({**entry, "resource": {**resource, "entry": inner}})
        else:
            entries.append({name: entry[name] for name in entry if name != "resource"})
    return {**result, "entry": entries}


def refused_result_bundle(refusal: RequestRefused) -> JsonObject:
    """Return the result of a refused submission."""
    return result_bundle(refusal.status, operation_outcome(refusal.issues), refusal.headers)


def poll_interval(age: float) -> int:
    """Return the seconds until the next status request, given the submission's age: half of it, within `POLL_INTERVALS`."""
    shortest, longest = POLL_INTERVALS
    return max(shortest, min(longest, int(age / 2)))
