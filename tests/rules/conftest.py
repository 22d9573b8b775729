"""The shipped rules, loaded once; and the corpus's agreement at the end of the run."""

from pathlib import Path

import pytest

from cgm_proxy.core.rules import RuleBook

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def book() -> RuleBook:
    return RuleBook.load(ROOT / "rules")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what `test_corpus.py` counted, by dialect and profile."""
    reports = [r for kind in ("passed", "failed") for r in terminalreporter.stats.get(kind, []) if r.when == "call"]
    lines = [line for report in reports for name, line in report.user_properties if name == "agreement"]
    if lines:
        terminalreporter.section("agreement with the HL7 validator")
        terminalreporter.write_line("\n".join(lines))
