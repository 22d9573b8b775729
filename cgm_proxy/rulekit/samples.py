"""Samples beside the rules: the second YAML document of a rules' file.

samples:
- name: the guide's example
  resource: {resourceType: Observation, …}
  context: [{…}]               # optional: what references mean
  profile: cgm-device          # optional: of a file that extends several profiles, the one that is meant
  passes: [value-unit, …]      # rules that look at something here and say nothing, not even a warning
- name: unit mg/dL
  of: the guide's example      # the sample that is changed
  set: {valueQuantity.unit: mg/dL}   # a path with indexes, and its new value; null removes it
  fails: value-unit
  message: valueQuantity.unit is "mg/dL"; …
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from itertools import islice
from math import isfinite
from pathlib import Path
from typing import Any

from cgm_proxy.core.issues import Issue
from cgm_proxy.core.json_values import JsonObject
from cgm_proxy.core.r4.reference_scope import Scope, resolver_among
from cgm_proxy.core.rules.examination import without_companions
from cgm_proxy.core.rules.fhirpath import FhirPathError, node_at
from cgm_proxy.core.rules.rule_files import (
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
from cgm_proxy.core.rules.rulebook import Examination, RuleBook
from cgm_proxy.core.rules.static_analysis import meant
from cgm_proxy.rulekit.listing import short, table

SAMPLE_KEYS = {
    **dict.fromkeys(("name", "of", "fails", "message", "profile"), TEXT),
    **dict.fromkeys(("resource", "set"), MAPPING),
    "context": LIST,
    "passes": TEXTS,
}
#: A path of `set`: names and indexes.
PATH = re.compile(r"[a-z_]\w*(\[\d{1,6}\])*(\.[a-z_]\w*(\[\d{1,6}\])*)*", re.ASCII | re.IGNORECASE)
#: Elements that a row of the coverage names.
SHOWN = 8


@dataclass(frozen=True, slots=True)
class Sample:
    """A resource with what is said of it."""

    name: str
    resource: JsonObject
    context: tuple[JsonObject, ...] = ()
    passes: tuple[str, ...] = ()
    fails: str | None = None
    message: str | None = None
    profile: str | None = None

    def concerns(self, profile: Profile) -> bool:
        """Whether it is meant for a profile."""
        return self.profile in {None, profile.name, profile.url}


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
        sample = _read(path, made, by_name)
        by_name[sample.name] = sample
    return list(by_name.values())


def sample_line(path: Path, name: str) -> str:
    """Give what a message about a sample starts with: file, line and name."""
    return f"{path}:{line_of(path, f'name: {name}', name)}: sample `{name}`"


def _read(path: Path, made: Any, known: Mapping[str, Sample]) -> Sample:
    if not isinstance(made, dict) or not isinstance(made.get("name"), str):
        raise RulesError(f"{path}:{line_of(path, 'samples')}: sample: `name` is missing")
    check_keys(path, made, SAMPLE_KEYS, f" of sample `{made['name']}`")
    at = sample_line(path, made["name"])
    for fault in _contradictions(made, known):
        raise RulesError(f"{at}: {fault}")
    try:
        sample = _sample(made, known.get(made.get("of", "")))
    except (KeyError, IndexError, TypeError) as error:
        raise RulesError(f"{at}: `set`: the sample has no such path: {error}") from None
    for fault in _no_json(sample):
        raise RulesError(f"{at}: {fault}")
    return sample


def _contradictions(made: JsonObject, known: Mapping[str, Sample]) -> Iterator[str]:
    """Say which keys of a sample do not go together, or with the samples before it."""
    if made["name"] in known:
        yield "the name is used twice"
    if "of" in made and made["of"] not in known:
        yield f"no sample `{made['of']}` before it"
    if "of" in made and "resource" in made:
        yield "`resource` beside `of`; leave one out"
    if "set" in made and "of" not in made:
        yield "`set` without `of`; name the sample that is changed"
    if made.get("fails") in made.get("passes", ()):
        yield f"both passes and fails rule `{made['fails']}`; leave one out"


def _no_json(sample: Sample) -> Iterator[str]:
    """Say what of a sample can be no resource."""
    if not all(isinstance(resource, dict) for resource in sample.context):
        yield "`context`: each must be a mapping"
    for key, value in (("resource", sample.resource), ("context", list(sample.context))):
        try:
            fine = _is_json(value)
        except RecursionError:  # an alias of what it stands in
            fine = False
        if not fine:
            yield f"`{key}`: no JSON; want keys that are text, and finite numbers"


def _is_json(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_json(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(_is_json, value))
    return value is None or isinstance(value, str | int) or (isinstance(value, float) and isfinite(value))


def _sample(made: JsonObject, of: Sample | None) -> Sample:
    resource = changed(of.resource, made.get("set", {})) if of else made.get("resource", {})
    context = tuple(made["context"]) if "context" in made else of.context if of else ()
    profile = made.get("profile") or (of.profile if of else None)
    return Sample(
        made["name"], resource, context, tuple(made.get("passes", ())), made.get("fails"), made.get("message"), profile
    )


def steps(path: str) -> list[str | int]:
    """Give the steps of a path such as `component[1].valueQuantity.unit`; raise KeyError if it is none."""
    if not isinstance(path, str) or not PATH.fullmatch(path):
        raise KeyError(path)
    return [int(part) if part.isdigit() else part for part in re.findall(r"[^.\[\]]+", path)]


def changed(resource: JsonObject, changes: JsonObject) -> JsonObject:
    """Give a copy of a resource in which each path has a new value; null removes the member or item."""
    made = deepcopy(resource)
    for path, value in changes.items():
        *above, last = steps(path)
        at: Any = made
        for step in above:
            at = at[step]
        if isinstance(at, list) != isinstance(last, int):
            raise KeyError(last)
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
        profiles = extended(book, made)
        for sample in all_samples:
            report.failures += (f"{path}: sample `{sample.name}`: {fault}" for fault in strays(sample, profiles))
        for profile in profiles:
            samples = [sample for sample in all_samples if sample.concerns(profile)]
            report.samples += len(samples)
            for sample in samples:
                told = (f"{path}: sample `{sample.name}`: {fault}" for fault in faults(book, profile, sample))
                report.failures += told
            if isinstance(made, Profile):
                report.coverages.append(coverage(book, profile, samples))
            elif made.rules:
                report.coverages.append(added_coverage(book, profile, made, samples))
    return report


def extended(book: RuleBook, made: Profile | Addition) -> list[Profile]:
    """Give the profiles that a file defines or adds to, as loaded."""
    if isinstance(made, Profile):
        return [found] if (found := book.profile(made.url, made.dialect)) else []
    return list({id(p): p for p in book.profiles.values() if made.concerns(p)}.values())


def judge(book: RuleBook, profile: Profile, sample: Sample) -> list[Issue]:
    """Judge a sample as the server would; a sample of an extension by the extension's rules alone."""
    if profile.type == "Extension":
        scope = Scope(sample.resource, resolver_among(sample.context))
        return list(
            Examination(book, scope, profile.dialect).judge(profile, sample.resource, "Extension", sample.resource)
        )
    return list(book.examine(sample.resource, [profile.url], resolver_among(sample.context), dialect=profile.dialect))


def strays(sample: Sample, own: Sequence[Profile]) -> list[str]:
    """Say which profile or rule that a sample names is none of its file's profiles or their rules; `own` are these."""
    profiles = [profile for profile in own if sample.concerns(profile)]
    if own and not profiles:
        names = ", ".join(sorted({profile.name for profile in own}))
        return [f"`profile: {sample.profile}` is none of this file's: {names}"]
    named = [("passes", name) for name in sample.passes] + ([("fails", sample.fails)] if sample.fails else [])
    found = [
        f"`{key}`: {profile.name} has no rule `{name}`{meant(name, ids)}"
        for profile in profiles
        for ids in [{short(rule) for rule in profile.rules}]
        for key, name in named
        if name not in ids
    ]
    return list(dict.fromkeys(found))


def faults(book: RuleBook, profile: Profile, sample: Sample) -> Iterator[str]:
    """Say what is not as a sample says."""
    issues = judge(book, profile, sample)
    yield from _not_passed(book, profile, sample, issues)
    if sample.fails is None:
        passed = {f"{profile.name}/{name}" for name in sample.passes}
        if refusals := [issue.text for issue in issues if issue.refuses and issue.rule not in passed]:
            yield f"must pass, but: {refusals[0]}"
        return
    found = [issue for issue in issues if issue.rule == f"{profile.name}/{sample.fails}"]
    if not found:
        yield f"must fail rule `{sample.fails}`, but does not"
    elif sample.message and sample.message not in {issue.text for issue in found}:
        yield f"the message is {found[0].text!r}, not {sample.message!r}"


def _not_passed(book: RuleBook, profile: Profile, sample: Sample, issues: Sequence[Issue]) -> Iterator[str]:
    """Say which rules that a sample passes are not content with it, or find nothing in it that they look at."""
    idle = {short(rule) for rule in profile.rules}.difference(looked_at(book, profile, sample) if sample.passes else ())
    told = {issue.rule: issue.text for issue in reversed(issues)}
    for name in sample.passes:
        if text := told.get(f"{profile.name}/{name}"):
            yield f"must pass rule `{name}`, but: {text}"
        elif name in idle:
            yield f"must pass rule `{name}`, but {profile.name} has nothing there that it looks at (`at`)"


def looked_at(book: RuleBook, profile: Profile, sample: Sample) -> list[str]:
    """Give the ids of the rules that find something to look at in a sample."""
    examination = Examination(book, Scope(sample.resource, resolver_among(sample.context)), profile.dialect)
    root = node_at(without_companions(sample.resource), profile.type, profile.type)
    found = []
    for rule in profile.rules:
        try:
            looks = not rule.at or bool(examination.select(rule.at, root))
        except FhirPathError:
            looks = False
        if looks:
            found.append(short(rule))
    return found


def coverage(book: RuleBook, profile: Profile, samples: Sequence[Sample]) -> Coverage:
    """Find what no sample fails and no rule speaks of."""
    _, failing = covered(samples)
    ruled = {rule.element or short(rule): False for rule in profile.rules}
    for rule in profile.rules:
        ruled[rule.element or short(rule)] |= short(rule) in failing
    known, frame = (book.model(profile.dialect).type(name) for name in (profile.type, "DomainResource"))
    named = {element.partition(".")[2].partition(".")[0].partition(":")[0] for element in ruled}
    unruled = (known.elements.keys() if known else set()) - (frame.elements.keys() if frame else set()) - named
    unsampled = tuple(element.partition(".")[2] or element for element, failed in ruled.items() if not failed)
    return Coverage(profile, len(samples), unsampled, tuple(sorted(unruled)))


def added_coverage(book: RuleBook, profile: Profile, made: Addition, samples: Sequence[Sample]) -> Coverage:
    """Find what no sample fails of the rules that a file adds to a profile."""
    ids = {rule["id"] for rule in made.rules}
    added = replace(profile, rules=tuple(rule for rule in profile.rules if short(rule) in ids))
    return replace(coverage(book, added, samples), unruled=())


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more or "-"
