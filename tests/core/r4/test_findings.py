"""Findings become issues whose messages begin with the element."""

from cgm_proxy.core.r4.findings import Findings, relative_path


def test_a_path_in_a_message_has_no_resource_type() -> None:
    assert relative_path("Observation.component[1].code") == "component[1].code"
    assert relative_path("Observation") == "Observation"


def test_a_fault_is_added_with_the_path_of_its_node() -> None:
    findings = Findings()
    findings.add_fault("Observation.subject", ("r4-reference", "reference", "is wrong"))
    findings.add_fault("Observation", ("r4-empty", "", "is empty"))
    assert [(issue.rule, issue.expression, issue.text) for issue in findings.issues] == [
        ("r4-reference", "Observation.subject.reference", "subject.reference is wrong"),
        ("r4-empty", "Observation", "Observation is empty"),
    ]
    assert all(issue.refuses for issue in findings.issues)
