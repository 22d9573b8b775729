"""The samples of the shipped rules pass and fail as they say, and the linter finds nothing in them."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from support.places import RULES

from cgm_proxy.rulekit.lint import lint
from cgm_proxy.rulekit.samples import Report, run_samples

DIALECTS = ("argo", "0.1.0", "1.0.0-ballot", "1.0.0")


@pytest.fixture(scope="module")
def report() -> Report:
    return run_samples(RULES)


def test_every_sample_passes_and_fails_as_it_says(
    report: Report, record_property: Callable[[str, object], None]
) -> None:
    rules, samples = Counter(), Counter()
    for coverage in report.coverages:
        rules[coverage.profile.dialect] += len(coverage.profile.rules)
        samples[coverage.profile.dialect] += coverage.samples
    for dialect in DIALECTS:
        record_property(
            "rules and their samples", f"{dialect:14} rules {rules[dialect]:4} samples {samples[dialect]:5}"
        )
    record_property("rules and their samples", f"in all: {report.samples} samples, {len(report.failures)} failures")
    assert not report.failures
    assert report.samples > 500


def test_a_sample_fails_every_rule_of_the_dialects(report: Report) -> None:
    lacking = {c.profile.name: c.unsampled for c in report.coverages if not c.profile.parent and c.unsampled}
    assert lacking == {}


OWN = """
extends: cgm-sensor-reading-mass-per-volume
dialect: 1.0.0
rules:
- {id: high, at: value.ofType(Quantity), expression: value > 600, text: more, severity: warning}
- {id: part, at: component, expression: code.exists(), text: a code}
- {id: state, expression: status.exists(), text: a status}
---
samples:
- name: good
  resource:
    resourceType: Observation
    status: final
    category: [{coding: [{system: http://terminology.hl7.org/CodeSystem/observation-category, code: laboratory}]}]
    code: {coding: [{system: http://loinc.org, code: 99504-3}]}
    subject: {reference: Patient/1}
    effectiveDateTime: 2025-09-01T10:15:00Z
    valueQuantity: {value: 120, unit: mg/dl, system: http://unitsofmeasure.org, code: mg/dL}
  passes: [state]
- {name: warned of, of: good, passes: [high]}
- {name: not looked at, of: good, passes: [part, state]}
- {name: not known, of: good, passes: [stat]}
- {name: failed as well, of: good, set: {valueQuantity.unit: mg/dL}, passes: [value-unit], fails: high}
- {name: of another profile, of: good, profile: cgm-device, passes: [stat]}
"""
NAME = "cgm-sensor-reading-mass-per-volume"
#: The samples that do not pass or fail as they say, and why.
FAULTS = {
    "warned of": f"must pass rule `high`, but: valueQuantity: {NAME} requires more",
    "not looked at": "must pass rule `part`, but the rule's `at` selects nothing in it; leave the rule out of `passes`",
    "not known": f"`passes`: {NAME} has no rule `stat`; did you mean state?",
    "failed as well": (
        f'must pass rule `value-unit`, but: valueQuantity.unit is "mg/dL"; {NAME} requires "mg/dl" (the code stays "mg/dL")'
    ),
    "of another profile": f"`profile: cgm-device`: the file has no such profile; write one of {NAME}",
}


def test_a_rule_that_a_sample_passes_selects_something_and_finds_no_issue(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(OWN)
    report = run_samples(RULES, tmp_path)
    failures = {failure.partition(": ")[2] for failure in report.failures}
    assert failures == {f"sample `{name}`: {why}" for name, why in FAULTS.items()}
    assert len(report.failures) == len(FAULTS)


def test_the_table_shows_which_added_rules_no_sample_fails(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(OWN)
    (coverage,) = run_samples(RULES, tmp_path).coverages
    assert (coverage.profile.name, len(coverage.profile.rules), coverage.samples) == (NAME, 3, 5)
    assert (coverage.unsampled, coverage.unruled) == (("part", "state"), ())


def test_the_shipped_rules_are_clean() -> None:
    assert lint(RULES) == []
