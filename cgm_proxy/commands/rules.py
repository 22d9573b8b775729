"""`cgm-proxy rules`: list, lint, test and import rules. Each function prints its findings and returns the exit status."""

import sys
from collections.abc import Sequence
from pathlib import Path

from cgm_proxy.rulekit.importer import import_guide
from cgm_proxy.rulekit.lint import lint, load_rules
from cgm_proxy.rulekit.listing import list_profile
from cgm_proxy.rulekit.loading import shipped_rules
from cgm_proxy.rulekit.samples import run_samples
from cgm_proxy.settings.loading import load


def list_rules(profile: str) -> int:
    """Print the rules of a profile, or all profiles if the name is empty; return 1 if there is no such profile."""
    text = list_profile(load_rules(load().rules), profile)
    sys.stdout.write(f"{text or f'no profile {profile}; `cgm-proxy rules list` shows all'}\n")
    return 0 if text else 1


def lint_rules(own: Sequence[Path]) -> int:
    """Print the mistakes in own rules or, without any, in the shipped ones; return 1 if there are any."""
    faults = lint(shipped_rules(), *own)
    sys.stdout.writelines(f"{fault}\n" for fault in faults)
    return 1 if faults else 0


def run_rule_samples(own: Sequence[Path]) -> int:
    """Run the samples of own rules or, without any, of the shipped ones; return 1 if a sample fails."""
    report = run_samples(shipped_rules(), *own)
    if report.coverages:
        sys.stdout.write(f"{report.table()}\n\n")
    sys.stdout.writelines(f"{failure}\n" for failure in report.failures)
    sys.stdout.write(f"{report.samples} samples, {len(report.failures)} failures\n")
    return 1 if report.failures else 0


def import_rules(guide: Path, dialect: str, out: Path, beside: Sequence[Path]) -> int:
    """Compile a guide into rules in the directory `out`, and print the files that were written."""
    written = import_guide(guide, dialect, out, beside=beside)
    sys.stdout.writelines(f"{path}\n" for path in written)
    return 0
