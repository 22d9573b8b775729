import pytest
from support.places import RULES

from cgm_proxy.rulekit.loading import rule_book


@pytest.fixture(scope="session")
def book():
    """The shipped rules."""
    return rule_book(RULES)
