"""The rules' own samples say what they say, and the linter is content with what is shipped."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from cgm_proxy.rules_lint import lint
from cgm_proxy.rules_samples import Report, run_samples

RULES = Path(__file__).parents[2] / "rules"
DIALECTS = ("argo", "0.1.0", "1.0.0-ballot", "1.0.0")


@pytest.fixture(scope="module")
def report() -> Report:
    return run_samples(RULES)


def test_every_sample_passes_or_fails_as_it_says(
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


def test_a_sample_fails_every_rule_of_the_dialects() -> None:
    lacking = {
        c.profile.name: c.unsampled for c in run_samples(RULES).coverages if not c.profile.parent and c.unsampled
    }
    assert lacking == {}


def test_the_shipped_rules_are_clean() -> None:
    assert lint([RULES]) == []
