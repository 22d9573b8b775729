"""Faults as values, and the exception for a fault of the whole request.

A fault of one entry is an `Issue`. A fault of the whole request is a `RequestRefused`, which carries the HTTP status of the
response. Both become an OperationOutcome (https://hl7.org/fhir/R4/operationoutcome.html).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from cgm_proxy.core.json_values import JsonObject

#: Seconds after which a client may repeat a request that was refused with 503.
RETRY_AFTER = 5

#: FHIR's issue severities (https://hl7.org/fhir/R4/valueset-issue-severity.html).
Severity = Literal["fatal", "error", "warning", "information"]

#: System of the rule ids in `OperationOutcome.issue.details.coding`.
RULE_SYSTEM = "urn:cgm-proxy:rule"

#: Most issues that are looked for in one entry, and most that the response to a submission lists, besides one for each entry.
MOST_ISSUES = 1_000
MOST_ISSUES_IN_ALL = 50_000


@dataclass(frozen=True, slots=True)
class Issue:
    """One fault, described so that a submitter can fix it.

    - `rule`: a stable id for programs and metrics.
    - `text`: what was found, what is expected, and what to do.
    - `expression`: the FHIRPath of the faulty element, such as `Observation.valueQuantity.unit`; None if no single element
      is at fault.
    - `code`: a FHIR issue type (https://hl7.org/fhir/R4/valueset-issue-type.html).
    """

    rule: str
    text: str
    expression: str | None = None
    severity: Severity = "error"
    code: str = "invalid"

    @property
    def refuses(self) -> bool:
        """Whether the entry or request that has this issue is refused."""
        return self.severity in {"fatal", "error"}

    def as_json(self) -> JsonObject:
        """Return the issue as an element of `OperationOutcome.issue`."""
        issue: JsonObject = {
            "severity": self.severity,
            "code": self.code,
            "details": {"coding": [{"system": RULE_SYSTEM, "code": self.rule}]},
            "diagnostics": self.text,
        }
        return issue | ({"expression": [self.expression]} if self.expression else {})


class RequestRefused(Exception):  # noqa: N818 -- a refusal is an expected result of a request, no error of the program
    """The whole request is refused; the response has this HTTP `status`, these `issues` and these `headers`."""

    def __init__(self, status: int, issues: tuple[Issue, ...], headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, issues)
        self.status = status
        self.issues = issues
        self.headers = dict(headers or {})


def refuse(status: int, rule: str, text: str, *, code: str = "invalid", **headers: str) -> RequestRefused:
    """Return a `RequestRefused` with one issue, to be raised.

    In the names of `headers`, `_` stands for `-`: `Retry_After="5"`.
    """
    issue = Issue(rule, text, severity="error", code=code)
    return RequestRefused(status, (issue,), {name.replace("_", "-"): value for name, value in headers.items()})


def unavailable(rule: str, text: str, *, code: str = "transient") -> RequestRefused:
    """Return a 503 with Retry-After, for a request that can succeed when it is repeated."""
    return refuse(503, rule, text, code=code, Retry_After=str(RETRY_AFTER))


def at_most(number: int, issues: tuple[Issue, ...]) -> tuple[Issue, ...]:
    """Return that many of the issues, those that refuse first, and an issue that says that there are more."""
    if len(issues) <= number:
        return issues
    kept = sorted(issues, key=lambda issue: not issue.refuses)[:number]
    text = f"there are more issues than the {number:,} that are listed; correct these first, and send it again"
    return (*kept, Issue("more-issues", text, severity="information", code="too-costly"))


def release_frames(error: BaseException | None) -> None:
    """Drop the traceback of an exception that has been dealt with, and the exceptions that led to it.

    A traceback holds the local variables of all functions that the exception went through, such as a body. As long as
    one of them refers to the exception, only a full garbage collection could free them, and that seldom runs.
    """
    while error is not None:
        error.__traceback__ = None
        cause, error.__cause__, error.__context__ = error.__cause__ or error.__context__, None, None
        error = cause


def operation_outcome(issues: Iterable[Issue]) -> JsonObject:
    """Return an OperationOutcome with `issues`; without any it says "All OK", because R4 requires at least one issue."""
    elements = [issue.as_json() for issue in issues]
    all_ok = {"severity": "information", "code": "informational", "diagnostics": "All OK"}
    return {"resourceType": "OperationOutcome", "issue": elements or [all_ok]}
