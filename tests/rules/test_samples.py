"""The rules' own samples say what they say, and the linter is content with what is shipped."""

from pathlib import Path

from cgm_proxy.rules_lint import lint
from cgm_proxy.rules_samples import run_samples

RULES = Path(__file__).parents[2] / "rules"


def test_every_sample_passes_or_fails_as_it_says() -> None:
    report = run_samples(RULES)
    assert not report.failures
    assert report.samples > 500


def test_the_shipped_rules_are_clean() -> None:
    assert lint([RULES]) == []
