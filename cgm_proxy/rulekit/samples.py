"""Samples of rules, and `cgm-proxy rules test`, which runs them.

The second YAML document of a rule file has the samples:

    samples:
    - name: the guide's example
      resource: {resourceType: Observation, …}
      context: [{…}]               # optional: the resources that references name
      profile: cgm-device          # optional: the profile that is meant, if the file extends several
      passes: [value-unit, …]      # rules that check something in the resource and find nothing, not even a warning
    - name: unit mg/dL
      of: the guide's example      # the sample that this one changes
      set: {valueQuantity.unit: mg/dL}   # paths with indexes and their new values; null removes the element
      fails: value-unit
      message: valueQuantity.unit is "mg/dL"; …
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import Any

from cgm_proxy.core.issues import Issue
from cgm_proxy.core.json_values import JsonObject
from cgm_proxy.core.r4.reference_scope import Scope, resolver_among
from cgm_proxy.core.rules.examination import Examination, without_companions
from cgm_proxy.core.rules.fhirpath import FhirPathError, node_at
from cgm_proxy.core.rules.rule_files import (
    LIST,
    MAPPING,
    TEXT,
    TEXTS,
    Addition,
    Profile,
    RulesError,
    Source,
    check_keys,
    refuse_faults,
)
from cgm_proxy.core.rules.rulebook import RuleBook
from cgm_proxy.core.rules.static_analysis import suggestion
from cgm_proxy.rulekit.listing import table
from cgm_proxy.rulekit.loading import RuleFile, rule_book, rule_files

SAMPLE_KEYS = {
    **dict.fromkeys(("name", "of", "fails", "message", "profile"), TEXT),
    **dict.fromkeys(("resource", "set"), MAPPING),
    "context": LIST,
    "passes": TEXTS,
}
#: A path of `set`: names and indexes.
PATH = re.compile(r"[a-z_]\w*(\[\d{1,6}\])*(\.[a-z_]\w*(\[\d{1,6}\])*)*", re.ASCII | re.IGNORECASE)
#: Most elements that a row of the coverage table names.
MOST_NAMED = 8


@dataclass(frozen=True, slots=True)
class Sample:
    """A resource with the rules that it passes and the rule that it fails."""

    name: str
    resource: JsonObject
    context: tuple[JsonObject, ...] = ()
    passes: tuple[str, ...] = ()
    fails: str | None = None
    message: str | None = None
    profile: str | None = None
    place: str = ""
    """The start of a message: file, line and name."""

    def is_for(self, profile: Profile) -> bool:
        """Whether it is meant for a profile."""
        return self.profile in {None, profile.name, profile.url}


@dataclass(frozen=True, slots=True)
class Coverage:
    """Which elements of a profile lack a sample that fails, and which elements of its type lack a rule."""

    profile: Profile
    samples: int
    unsampled: tuple[str, ...]
    unruled: tuple[str, ...]


@dataclass(slots=True)
class Report:
    """The result of `rules test`: how many samples were run, those that differ from their description, the coverage."""

    samples: int = 0
    failures: list[str] = field(default_factory=list)
    coverages: list[Coverage] = field(default_factory=list)

    def table(self) -> str:
        """Return the coverage as text, a row a profile."""
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
        head = ("dialect", "profile", "rules", "samples", "rules without a failing sample", "judged by R4 alone")
        return table(head, rows)


def read_samples(file: RuleFile) -> list[Sample]:
    """Return the samples of a file; raise RulesError for one that is not as described above."""
    source = file.samples
    refuse_faults(source)
    data = source.document.value or {}
    listed = data.get("samples", []) if isinstance(data, dict) else None
    if not isinstance(listed, list):
        raise RulesError(f"{source.at()}: the second document must be a mapping with a list of `samples`")
    by_name: dict[str, Sample] = {}
    for number, item in enumerate(listed):
        sample = _sample(source, number, item, by_name)
        by_name[sample.name] = sample
    return list(by_name.values())


def _sample(source: Source, number: int, data: Any, before: Mapping[str, Sample]) -> Sample:
    """Return a sample, in which `before` are those that it may change."""
    path = ("samples", number)
    if not isinstance(data, dict) or not isinstance(data.get("name"), str):
        raise RulesError(f"{source.at(*path)}: sample: `name` is missing; add it")
    check_keys(source, path, data, SAMPLE_KEYS, f" of sample `{data['name']}`")
    place = f"{source.at(*path)}: sample `{data['name']}`"
    for problem in _contradictions(data, before):
        raise RulesError(f"{place}: {problem}")
    changes = before.get(data.get("of", ""))
    try:
        resource = changed(changes.resource, data.get("set", {})) if changes else data.get("resource", {})
    except (KeyError, IndexError, TypeError) as error:
        raise RulesError(f"{place}: `set`: the sample has no such path: {error}") from None
    context = tuple(data["context"]) if "context" in data else changes.context if changes else ()
    if not all(isinstance(item, dict) for item in context):
        raise RulesError(f"{place}: `context`: each must be a mapping")
    for key, value in (("resource", resource), ("context", list(context))):
        if not _is_json(value):
            raise RulesError(f"{place}: `{key}` is not JSON; keys must be text, and numbers must be finite")
    return Sample(
        data["name"],
        resource,
        context,
        tuple(data.get("passes", ())),
        data.get("fails"),
        data.get("message"),
        data.get("profile") or (changes.profile if changes else None),
        place,
    )


def _contradictions(data: JsonObject, before: Mapping[str, Sample]) -> Iterator[str]:
    """Yield what is wrong with keys of a sample that each are right."""
    if data["name"] in before:
        yield "the name is used twice; choose another"
    if "of" in data and data["of"] not in before:
        yield f"`of`: there is no sample `{data['of']}` before it"
    if "of" in data and "resource" in data:
        yield "has both `of` and `resource`; remove one"
    if "set" in data and "of" not in data:
        yield "has `set` without `of`; name the sample that it changes"
    if data.get("fails") in data.get("passes", ()):
        yield f"both passes and fails rule `{data['fails']}`; remove it from one"


def _is_json(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_json(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(_is_json, value))
    return value is None or isinstance(value, str | int) or (isinstance(value, float) and isfinite(value))


def steps(path: str) -> list[str | int]:
    """Return the steps of a path such as `component[1].valueQuantity.unit`; raise KeyError if it is not one."""
    if not isinstance(path, str) or not PATH.fullmatch(path):
        raise KeyError(path)
    return [int(part) if part.isdigit() else part for part in re.findall(r"[^.\[\]]+", path)]


def changed(resource: JsonObject, changes: JsonObject) -> JsonObject:
    """Return a copy of a resource in which each path has a new value; null removes the member or item."""
    copy = deepcopy(resource)
    for path, value in changes.items():
        *above, last = steps(path)
        at: Any = copy
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
    return copy


def covered(samples: Sequence[Sample]) -> tuple[set[str], set[str]]:
    """Return the ids of the rules that a sample passes, and of those that a sample fails."""
    return {rule for sample in samples for rule in sample.passes}, {s.fails for s in samples if s.fails}


def run_samples(shipped: Path, *own: Path) -> Report:
    """Run the samples of a hospital's own rules together with the shipped rules; without own rules, the shipped samples."""
    book = rule_book(shipped, *own)
    book.verdict_cache = None
    report = Report()
    for file in (file for directory in own or [shipped] for file in rule_files(directory)):
        all_samples = read_samples(file)
        profiles = profiles_of(book, file.parsed)
        for sample in all_samples:
            report.failures += (f"{sample.place}: {problem}" for problem in unknown_names(sample, profiles))
        for profile in profiles:
            samples = [sample for sample in all_samples if sample.is_for(profile)]
            report.samples += len(samples)
            for sample in samples:
                report.failures += (f"{sample.place}: {problem}" for problem in differences(book, profile, sample))
            if isinstance(file.parsed, Profile):
                report.coverages.append(coverage(book, profile, samples))
            elif file.parsed.rules:
                report.coverages.append(added_coverage(book, profile, file.parsed, samples))
    return report


def profiles_of(book: RuleBook, parsed: Profile | Addition) -> list[Profile]:
    """Return the profiles that a file defines or adds to, with all their rules."""
    if isinstance(parsed, Profile):
        return [found] if (found := book.profile(parsed.url, parsed.dialect)) else []
    return list({id(p): p for p in book.profiles.values() if parsed.extends_profile(p)}.values())


def judge(book: RuleBook, profile: Profile, sample: Sample) -> list[Issue]:
    """Return the issues of a sample as the server finds them; of an extension, those by its own rules."""
    if profile.type == "Extension":
        scope = Scope(sample.resource, resolver_among(sample.context))
        return list(
            Examination(book, scope, profile.dialect).judge(profile, sample.resource, "Extension", sample.resource)
        )
    return list(book.examine(sample.resource, [profile.url], resolver_among(sample.context), dialect=profile.dialect))


def unknown_names(sample: Sample, own: Sequence[Profile]) -> list[str]:
    """Return the problems of a sample that names another profile than the file's `own`, or a rule that these don't have."""
    profiles = [profile for profile in own if sample.is_for(profile)]
    if own and not profiles:
        names = ", ".join(sorted({profile.name for profile in own}))
        return [f"`profile: {sample.profile}`: the file has no such profile; write one of {names}"]
    named = [("passes", name) for name in sample.passes] + ([("fails", sample.fails)] if sample.fails else [])
    found = [
        f"`{key}`: {profile.name} has no rule `{name}`{suggestion(name, ids)}"
        for profile in profiles
        for ids in [{rule.id for rule in profile.rules}]
        for key, name in named
        if name not in ids
    ]
    return list(dict.fromkeys(found))


def differences(book: RuleBook, profile: Profile, sample: Sample) -> Iterator[str]:
    """Yield how the verdict on a sample differs from the expected one."""
    issues = judge(book, profile, sample)
    yield from _not_passed(book, profile, sample, issues)
    if sample.fails is None:
        passed = {f"{profile.name}/{name}" for name in sample.passes}
        if refusals := [issue.text for issue in issues if issue.refuses and issue.rule not in passed]:
            yield f"must pass, but: {refusals[0]}"
        return
    found = [issue for issue in issues if issue.rule == f"{profile.name}/{sample.fails}"]
    if not found:
        yield f"must fail rule `{sample.fails}`, but passes it"
    elif sample.message and sample.message not in {issue.text for issue in found}:
        yield f"the message is {found[0].text!r}, not {sample.message!r}"


def _not_passed(book: RuleBook, profile: Profile, sample: Sample, issues: Sequence[Issue]) -> Iterator[str]:
    """Yield the rules that a sample should pass, but that find an issue in it or select nothing to check."""
    selecting = selecting_rules(book, profile, sample) if sample.passes else set()
    idle = {rule.id for rule in profile.rules} - selecting
    texts = {issue.rule: issue.text for issue in reversed(issues)}
    for name in sample.passes:
        if text := texts.get(f"{profile.name}/{name}"):
            yield f"must pass rule `{name}`, but: {text}"
        elif name in idle:
            yield f"must pass rule `{name}`, but the rule's `at` selects nothing in it; leave the rule out of `passes`"


def selecting_rules(book: RuleBook, profile: Profile, sample: Sample) -> set[str]:
    """Return the ids of the rules whose `at` selects something in a sample."""
    examination = Examination(book, Scope(sample.resource, resolver_among(sample.context)), profile.dialect)
    root = node_at(without_companions(sample.resource), profile.type, profile.type)
    found = set()
    for rule in profile.rules:
        try:
            selects = not rule.at or bool(examination.select(rule.at, root))
        except FhirPathError:
            selects = False
        if selects:
            found.add(rule.id)
    return found


def coverage(book: RuleBook, profile: Profile, samples: Sequence[Sample]) -> Coverage:
    """Return which elements no sample fails and no rule is about."""
    _, failing = covered(samples)
    ruled = {rule.element or rule.id: False for rule in profile.rules}
    for rule in profile.rules:
        ruled[rule.element or rule.id] |= rule.id in failing
    known, frame = (book.model(profile.dialect).type(name) for name in (profile.type, "DomainResource"))
    named = {element.partition(".")[2].partition(".")[0].partition(":")[0] for element in ruled}
    unruled = (known.elements.keys() if known else set()) - (frame.elements.keys() if frame else set()) - named
    unsampled = tuple(element.partition(".")[2] or element for element, failed in ruled.items() if not failed)
    return Coverage(profile, len(samples), unsampled, tuple(sorted(unruled)))


def added_coverage(book: RuleBook, profile: Profile, addition: Addition, samples: Sequence[Sample]) -> Coverage:
    """Return which elements of the rules that a file adds to a profile no sample fails."""
    ids = {rule.id for rule in addition.rules}
    added = replace(profile, rules=tuple(rule for rule in profile.rules if rule.id in ids))
    return replace(coverage(book, added, samples), unruled=())


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more or "-"
