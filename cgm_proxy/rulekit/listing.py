"""`cgm-proxy rules list`: the rules of a profile as text that a clinician can read."""

from collections.abc import Sequence

from cgm_proxy.core.rules.rule_files import Profile
from cgm_proxy.core.rules.rulebook import RuleBook


def list_profile(book: RuleBook, name: str) -> str:
    """Return the rules of a profile as a table, or a table of all profiles without a name; "" if there is no such profile."""
    chosen = [p for p in book.profiles.values() if not name or name in {p.name, p.url, f"{p.dialect}/{p.name}"}]
    listed = list({id(profile): profile for profile in chosen}.values())
    if not name:
        rows = [(p.dialect, p.name, p.title, str(len(p.rules))) for p in listed]
        return table(("dialect", "profile", "title", "rules"), sorted(rows))
    return "\n\n".join(
        f"{p.title} ({p.dialect}, {p.url})\n{table(('element', 'requires', 'severity', 'rule'), _rows(p))}"
        for p in listed
    )


def _rows(profile: Profile) -> list[tuple[str, ...]]:
    return [(r.element.partition(".")[2] or r.element, r.text, r.severity, r.id) for r in profile.rules]


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Return rows as aligned text."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = [head, tuple("-" * width for width in widths), *rows]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
