"""Where things are: the checkout, its rules, and the guide's material beside it (absent in a plain clone)."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
RULES = ROOT / "rules"
TESTS = ROOT / "tests"
SHARED = ROOT.parent / "shared"
GUIDE = SHARED / "guide"
