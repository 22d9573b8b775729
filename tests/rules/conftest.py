"""The shipped rules, loaded once."""

from pathlib import Path

import pytest

from cgm_proxy.core.rules import RuleBook

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def book() -> RuleBook:
    return RuleBook.load(ROOT / "rules")
