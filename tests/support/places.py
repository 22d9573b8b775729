"""Paths: the checkout, its rules, and the guide's material, which lies beside the checkout and not in it."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
RULES = ROOT / "rules"
TESTS = ROOT / "tests"
SHARED = ROOT.parent / "shared"
GUIDE = SHARED / "guide"
