"""The shipped rules, loaded once."""

import pytest
from support.places import ROOT

from cgm_proxy.core.rules.rulebook import RuleBook
from cgm_proxy.rulekit.loading import rule_book


@pytest.fixture(scope="session")
def book() -> RuleBook:
    return rule_book(ROOT / "rules")
