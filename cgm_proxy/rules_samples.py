"""Samples beside the rules: the second YAML document of a rules' file.

samples:
- name: the guide's example
  resource: {resourceType: Observation, …}
  context: [{…}]               # optional: what references mean
  profile: cgm-device          # optional: of a file that extends several profiles, the one that is meant
  passes: [value-unit, …]      # rules that looked at something here and were content
- name: unit mg/dL
  of: the guide's example      # the sample that is changed
  set: {valueQuantity.unit: mg/dL}   # a path with indexes, and its new value; null removes it
  fails: value-unit
  message: valueQuantity.unit is "mg/dL"; …
"""

import re
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from cgm_proxy.check import among
from cgm_proxy.core.errors import Issue
from cgm_proxy.core.rulebook import (
    LIST,
    MAPPING,
    TEXT,
    TEXTS,
    Addition,
    Profile,
    RulesError,
    check_keys,
    documents,
    line_of,
    profile_files,
    read,
)
from cgm_proxy.core.rules import Examination, RuleBook
from cgm_proxy.core.scope import Json, Scope

SAMPLE_KEYS = {
    **dict.fromkeys(("name", "of", "fails", "message", "profile"), TEXT),
    **dict.fromkeys(("resource", "set"), MAPPING),
    "context": LIST,
    "passes": TEXTS,
}


#: Elements that a row of the coverage names.
SHOWN = 8


@dataclass(frozen=True, slots=True)
class Sample:
    """A resource with what is said of it."""

    name: str
    resource: Json
    context: tuple[Json, ...] = ()
    passes: tuple[str, ...] = ()
    fails: str | None = None
    message: str | None = None
    profile: str | None = None


@dataclass(slots=True)
class Report:
    """What `rules test` found: how many samples were run, what was not as said, what nothing covers."""

    samples: int = 0
    failures: list[str] = field(default_factory=list)
    coverages: list["Coverage"] = field(default_factory=list)

    def table(self) -> str:
        """Give what covers each profile's elements, a row a profile."""
        rows = [
            (
                c.profile.dialect,
                c.profile.name,
                str(len(c.profile.rules)),
                str(c.samples),
                _few(c.unsampled),
                _few(c.unruled),
            )
            for c in sorted(self.coverages, key=lambda c: (c.profile.dialect, c.profile.name))
        ]
        head = ("dialect", "profile", "rules", "samples", "ruled, but no sample fails", "judged by R4 alone")
        return table(head, rows)


@dataclass(frozen=True, slots=True)
class Coverage:
    """What nothing covers of a profile: elements whose rules no sample fails, and elements of its type without a rule."""

    profile: Profile
    samples: int
    unsampled: tuple[str, ...]
    unruled: tuple[str, ...]


def read_samples(path: Path) -> list[Sample]:
    """Read a file's samples; raise RulesError if one is not as described above."""
    data = next(islice(documents(path), 1, None), None) or {}
    listed = data.get("samples", []) if isinstance(data, dict) else None
    if not isinstance(listed, list):
        raise RulesError(
            f"{path}:{line_of(path, '---')}: the second document must be a mapping with a list of `samples`"
        )
    by_name: dict[str, Sample] = {}
    for made in listed:
        if not isinstance(made, dict) or not isinstance(made.get("name"), str):
            raise RulesError(f"{path}:{line_of(path, 'samples')}: sample: `name` is missing")
        check_keys(path, made, SAMPLE_KEYS, f" of sample `{made['name']}`")
        of = by_name.get(made.get("of", ""))
        at = f"{path}:{line_of(path, made['name'])}: sample `{made['name']}`"
        if "of" in made and of is None:
            raise RulesError(f"{at}: no sample `{made['of']}` before it")
        try:
            by_name[made["name"]] = _sample(made, of)
        except (KeyError, IndexError, TypeError) as error:
            raise RulesError(f"{at}: `set`: the sample has no such path: {error}") from None
    return list(by_name.values())


def _sample(made: Json, of: Sample | None) -> Sample:
    resource = changed(of.resource, made.get("set", {})) if of else made.get("resource", {})
    context = tuple(made["context"]) if "context" in made else of.context if of else ()
    profile = made.get("profile") or (of.profile if of else None)
    return Sample(
        made["name"], resource, context, tuple(made.get("passes", ())), made.get("fails"), made.get("message"), profile
    )


def steps(path: str) -> list[str | int]:
    """Give the steps of a path such as `component[1].valueQuantity.unit`."""
    return [int(part) if part.isdigit() else part for part in re.findall(r"[^.\[\]]+", path)]


def changed(resource: Json, changes: Json) -> Json:
    """Give a copy of a resource in which each path has a new value; null removes the member or item."""
    made = deepcopy(resource)
    for path, value in changes.items():
        *above, last = steps(path)
        at: Any = made
        for step in above:
            at = at[step]
        if value is None:
            del at[last]
        elif isinstance(at, list) and last == len(at):
            at.append(deepcopy(value))
        else:
            at[last] = deepcopy(value)
    return made


def covered(samples: Sequence[Sample]) -> tuple[set[str], set[str]]:
    """Give the ids of the rules that some sample passes, and that some sample fails."""
    return {rule for sample in samples for rule in sample.passes}, {s.fails for s in samples if s.fails}


def run_samples(shipped: Path, *own: Path) -> Report:
    """Run the samples of a hospital's own rules together with the shipped ones; without own rules, of the shipped ones."""
    book = RuleBook.load(shipped, *own)
    book.shapes = None
    report = Report()
    for path in (path for directory in own or [shipped] for path in profile_files(directory)):
        made, all_samples = read(path), read_samples(path)
        for profile in extended(book, made):
            samples = [s for s in all_samples if s.profile in {None, profile.name, profile.url}]
            report.samples += len(samples)
            for sample in samples:
                told = (f"{path}: sample `{sample.name}`: {fault}" for fault in faults(book, profile, sample))
                report.failures += told
            if isinstance(made, Profile):
                report.coverages.append(coverage(book, profile, samples))
    return report


def extended(book: RuleBook, made: Profile | Addition) -> list[Profile]:
    """Give the profiles that a file defines or adds to, as loaded."""
    if isinstance(made, Profile):
        return [found] if (found := book.profile(made.url, made.dialect)) else []
    return list({id(p): p for p in book.profiles.values() if made.concerns(p)}.values())


def judge(book: RuleBook, profile: Profile, sample: Sample) -> list[Issue]:
    """Judge a sample as the server would; a sample of an extension by the extension's rules alone."""
    if profile.type == "Extension":
        scope = Scope(sample.resource, among(sample.context))
        return list(
            Examination(book, scope, profile.dialect).judge(profile, sample.resource, "Extension", sample.resource)
        )
    return list(book.examine(sample.resource, [profile.url], among(sample.context), dialect=profile.dialect))


def faults(book: RuleBook, profile: Profile, sample: Sample) -> Iterator[str]:
    """Say what is not as a sample says."""
    issues = judge(book, profile, sample)
    if sample.fails is None:
        if refusals := [issue.text for issue in issues if issue.refuses]:
            yield f"must pass, but: {refusals[0]}"
        return
    found = [issue for issue in issues if issue.rule == f"{profile.name}/{sample.fails}"]
    if not found:
        yield f"must fail rule `{sample.fails}`, but does not"
    elif sample.message and sample.message not in {issue.text for issue in found}:
        yield f"the message is {found[0].text!r}, not {sample.message!r}"


def coverage(book: RuleBook, profile: Profile, samples: Sequence[Sample]) -> Coverage:
    """Find what no sample fails and no rule speaks of."""
    _, failing = covered(samples)
    ruled = {rule.element: False for rule in profile.rules}
    for rule in profile.rules:
        ruled[rule.element] |= rule.key.partition("/")[2] in failing
    known, frame = (book.model(profile.dialect).type(name) for name in (profile.type, "DomainResource"))
    named = {element.partition(".")[2].partition(".")[0].partition(":")[0] for element in ruled}
    unruled = (known.elements.keys() if known else set()) - (frame.elements.keys() if frame else set()) - named
    unsampled = tuple(element.partition(".")[2] or element for element, failed in ruled.items() if not failed)
    return Coverage(profile, len(samples), unsampled, tuple(sorted(unruled)))


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more or "-"


def list_profile(book: RuleBook, name: str) -> str:
    """Give a profile's rules as a table that a clinician can read; a list of all profiles without a name."""
    chosen = [p for p in book.profiles.values() if not name or name in {p.name, p.url, f"{p.dialect}/{p.name}"}]
    listed = list({id(profile): profile for profile in chosen}.values())
    if not name:
        rows = [(p.dialect, p.name, p.title, str(len(p.rules))) for p in listed]
        return table(("dialect", "profile", "title", "rules"), sorted(rows))
    return "\n\n".join(
        f"{p.title} ({p.dialect}, {p.url})\n{table(('element', 'wants', 'severity', 'rule'), _rows(p))}" for p in listed
    )


def _rows(profile: Profile) -> list[tuple[str, ...]]:
    return [
        (r.element.partition(".")[2] or r.element, r.text, r.severity, r.key.partition("/")[2]) for r in profile.rules
    ]


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Give rows as aligned text."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = [head, tuple("-" * width for width in widths), *rows]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
