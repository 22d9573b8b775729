"""The shipped rules, loaded once, and the folder of guides and corpora beside the repository."""

from pathlib import Path

import pytest

from cgm_proxy.core.rules import RuleBook

ROOT = Path(__file__).parents[2]
GUIDE = ROOT.parent / "shared" / "guide"


@pytest.fixture(scope="session")
def book() -> RuleBook:
    return RuleBook.load(ROOT / "rules")
