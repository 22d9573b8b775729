"""FHIR's asynchronous pattern, as far as it is pure: who asks for it, where its status is, and what its result looks like.

R4 (https://hl7.org/fhir/R4/async.html) ends the pattern in a manifest of NDJSON files, which fits an export and has no
place for what became of each entry. So the result is that of R5's Asynchronous Interaction Request Pattern
(https://hl7.org/fhir/R5/async-bundle.html), as other R4 servers give it; requests, header fields and statuses are the
same in both. It is a `batch-response` with one entry, the submission's: `response.status` is the status that the
synchronous answer would have had, and `resource` its body, the response Bundle with the submission's entries in order. Of
a refused submission, `response.outcome` is the OperationOutcome. The result is answered 200, whatever became of the
submission: other statuses of a status request are about that request.
"""

from collections.abc import Callable, Mapping

from cgm_proxy.core.issues import Issue, RequestRefused, operation_outcome, refuse
from cgm_proxy.core.json_values import JsonObject
from cgm_proxy.core.submission.detection import path_segments
from cgm_proxy.core.submission.reply import PHRASES

#: What stands between the base and a submission's id in the URL of its status.
STATUS_OPERATION = "$cgm-submission-status"

#: What every usual spelling of such a URL holds, also with the `$` as `%24`: few other requests are looked at closely.
STATUS_PATH_MARKER = STATUS_OPERATION.removeprefix("$")

_AGAIN = "what of it is stored already is recognised when it is sent again"

#: Shortest and longest time between two polls that is asked for (seconds).
POLL_INTERVALS = (2, 60)


def prefers_async(prefer: str) -> bool:
    """Tell whether a Prefer header asks for an asynchronous answer (RFC 7240, 4.1), which is a wish and no demand."""
    return any(
        part.partition("=")[0].strip().lower() == "respond-async" for part in prefer.replace(";", ",").split(",")
    )


def refuse_files(query: Mapping[str, object]) -> None:
    """Refuse what asks for R4's manifest of files by `_outputFormat`, as R5 wants it (400)."""
    if "_outputFormat" in query:
        text = "_outputFormat asks for files, which this receiver does not make; leave it out: the result is a Bundle"
        raise refuse(400, "async-output-format", text, code="not-supported")


def status_id(raw_path: str, target: Callable[[str], str], base: str) -> str | None:
    """Give the id in the path of a status URL, however it is spelt; None for any other path.

    `target` gives the upstream's path for a public one, `base` is the upstream's base. What a spelling that is not
    recognised reaches is the upstream, which knows no such operation.
    """
    if STATUS_PATH_MARKER not in raw_path:
        return None
    names = path_segments(target(raw_path))
    return names[-1] if names[:-1] == [*path_segments(base), STATUS_OPERATION] else None


def accepted_outcome() -> JsonObject:
    """Make the body of the 202: the submission is kept."""
    text = "the submission is kept and is worked on; GET the Content-Location for what becomes of its entries"
    return operation_outcome((Issue("async-accepted", text, severity="information", code="informational"),))


def deleted_outcome() -> JsonObject:
    """Make the body of the 202 to a DELETE."""
    text = "the submission is forgotten; what of it was stored before stays stored"
    return operation_outcome((Issue("async-forgotten", text, severity="information", code="informational"),))


def unknown_status() -> RequestRefused:
    """Make the 404 of a status that never was, is over, or is not for who asks."""
    text = "no submission has this status URL: it was deleted, its result was kept as long as is set, or it never was"
    return refuse(404, "async-unknown", text, code="not-found")


def given_up_refusal(attempts: int) -> RequestRefused:
    """Make the refusal of a submission during which the proxy ended again and again."""
    text = (
        f"this receiver ended {attempts} times during this submission and gives it up; {_AGAIN}, best in smaller parts"
    )
    return refuse(500, "async-given-up", text, code="exception")


def failed_refusal() -> RequestRefused:
    """Make the refusal of a submission at which the proxy itself failed."""
    text = f"this receiver failed at this submission; {_AGAIN}"
    return refuse(500, "async-failed", text, code="exception")


def result_too_large(limit: int) -> RequestRefused:
    """Make what stands for a result that is larger than what is kept."""
    text = (
        f"the submission was worked on, but the answer is larger than the {limit:,} bytes that are kept; {_AGAIN},"
        " with Prefer: return=minimal or in parts"
    )
    return refuse(500, "async-result-too-large", text, code="too-long")


def result_bundle(status: int, content: JsonObject | None, headers: Mapping[str, str]) -> JsonObject:
    """Make the result Bundle of a submission from the status, body and header fields of its synchronous answer."""
    response: JsonObject = {"status": f"{status} {PHRASES.get(status, '')}".rstrip()}
    response |= {name.lower(): headers[name] for name in ("Location", "ETag") if name in headers}
    entry: JsonObject = {"response": response}
    if content is not None and content.get("resourceType") == "OperationOutcome":
        response["outcome"] = content
    elif content is not None:
        entry = {"resource": content, "response": response}
    return {"resourceType": "Bundle", "type": "batch-response", "entry": [entry]}


def refused_result_bundle(refusal: RequestRefused) -> JsonObject:
    """Make the result Bundle of a refused submission."""
    return result_bundle(refusal.status, operation_outcome(refusal.issues), refusal.headers)


def poll_interval(age: float) -> int:
    """Tell after how many seconds the status of a submission of this age may be asked for again: half its age."""
    shortest, longest = POLL_INTERVALS
    return max(shortest, min(longest, int(age / 2)))
