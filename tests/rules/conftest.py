"""The shipped rules, loaded once."""

import pytest
from support.places import ROOT

from cgm_proxy.core.rules.rulebook import RuleBook


@pytest.fixture(scope="session")
def book() -> RuleBook:
    return RuleBook.load(ROOT / "rules")
