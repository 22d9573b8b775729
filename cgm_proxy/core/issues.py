"""Faults as values, and the few exceptions for faults of a whole request.

A fault of one entry is an `Issue`. A fault of the whole request is a `RequestRefused`, which carries the HTTP status to
answer with. Both become an OperationOutcome (https://hl7.org/fhir/R4/operationoutcome.html).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from cgm_proxy.core.json_values import JsonObject

Severity = Literal["fatal", "error", "warning", "information"]

#: Where the rule ids in `details.coding` come from.
RULE_SYSTEM = "urn:cgm-proxy:rule"


@dataclass(frozen=True, slots=True)
class Issue:
    """One thing wrong, in words that a submitter can act on.

    `rule` is a stable id for programs and metrics; `text` says what was found, what is wanted and the cure; `expression`
    is the FHIRPath of the element (`Bundle.entry[3].resource.valueQuantity.unit`), where one element is at fault;
    `code` is a FHIR issue type (https://hl7.org/fhir/R4/valueset-issue-type.html).
    """

    rule: str
    text: str
    expression: str | None = None
    severity: Severity = "error"
    code: str = "invalid"

    @property
    def refuses(self) -> bool:
        """Whether this issue refuses what it was found in."""
        return self.severity in {"fatal", "error"}

    def as_json(self) -> JsonObject:
        """Give the issue as an element of `OperationOutcome.issue`."""
        issue: JsonObject = {
            "severity": self.severity,
            "code": self.code,
            "details": {"coding": [{"system": RULE_SYSTEM, "code": self.rule}]},
            "diagnostics": self.text,
        }
        return issue | ({"expression": [self.expression]} if self.expression else {})


class RequestRefused(Exception):  # noqa: N818 -- it reads as what happened
    """The whole request is refused with an HTTP `status`, an OperationOutcome of `issues`, and `headers`."""

    def __init__(self, status: int, issues: tuple[Issue, ...], headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, issues)
        self.status = status
        self.issues = issues
        self.headers = dict(headers or {})


def refuse(status: int, rule: str, text: str, *, code: str = "invalid", **headers: str) -> RequestRefused:
    """Make a refusal with one issue; `headers` are written with `_` for `-`, as in `Retry_After="5"`."""
    issue = Issue(rule, text, severity="error", code=code)
    return RequestRefused(status, (issue,), {name.replace("_", "-"): value for name, value in headers.items()})


def operation_outcome(issues: Iterable[Issue]) -> JsonObject:
    """Give the OperationOutcome that holds `issues`, or FHIR's "all ok" when there are none."""
    listed = [issue.as_json() for issue in issues]
    ok = {"severity": "information", "code": "informational", "diagnostics": "All OK"}
    return {"resourceType": "OperationOutcome", "issue": listed or [ok]}
