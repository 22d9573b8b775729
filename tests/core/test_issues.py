"""Issues and refusals become valid OperationOutcomes."""

import pytest

from cgm_proxy.core.issues import RULE_SYSTEM, Issue, RequestRefused, operation_outcome, refuse


@pytest.mark.parametrize(
    ("severity", "refuses"), [("fatal", True), ("error", True), ("warning", False), ("information", False)]
)
def test_errors_refuse_and_warnings_do_not(severity, refuses) -> None:
    assert Issue("r", "t", severity=severity).refuses == refuses


def test_an_issue_has_its_rule_text_and_element_in_json() -> None:
    assert Issue("r", "t", "Observation.code", "warning", "value").as_json() == {
        "severity": "warning",
        "code": "value",
        "details": {"coding": [{"system": RULE_SYSTEM, "code": "r"}]},
        "diagnostics": "t",
        "expression": ["Observation.code"],
    }


def test_an_issue_without_an_element_has_no_empty_expression() -> None:
    assert "expression" not in Issue("r", "t").as_json()


def test_an_outcome_without_issues_says_all_ok_because_r4_requires_one() -> None:
    [only] = operation_outcome(())["issue"]
    assert (only["severity"], only["code"]) == ("information", "informational")
    assert len(operation_outcome(Issue("r", "t") for _ in range(3))["issue"]) == 3


def test_a_refusal_has_status_issue_and_headers() -> None:
    refused = refuse(503, "busy", "try again", code="throttled", Retry_After="5")
    assert isinstance(refused, RequestRefused)
    assert (refused.status, refused.headers) == (503, {"Retry-After": "5"})
    assert refused.issues == (Issue("busy", "try again", code="throttled"),)
    assert RequestRefused(400, ()).headers == {}
