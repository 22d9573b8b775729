import pytest
from support.places import RULES

from cgm_proxy.core.rules.rulebook import RuleBook


@pytest.fixture(scope="session")
def book():
    """The shipped rules."""
    return RuleBook.load(RULES)
