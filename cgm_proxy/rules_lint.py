"""`cgm-proxy rules lint`: what is wrong with rules' files, found without running them; each with file, line and key."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from cgm_proxy.core.analysis import analyse
from cgm_proxy.core.model import Model
from cgm_proxy.core.rulebook import Addition, Profile, Rule, RulesError, line_of, profile_files, read, rule_of
from cgm_proxy.core.rules import RuleBook
from cgm_proxy.rules_samples import covered, read_samples


def lint(directories: Sequence[Path]) -> list[str]:
    """Give the problems of the shipped rules (the first directory) and of more directories; [] when there are none."""
    model = Model(directories[0] / "r4")
    problems: list[str] = []
    profiles: dict[str, Profile] = {}
    for path in (path for directory in directories for path in profile_files(directory)):
        try:
            made = read(path)
        except RulesError as error:
            problems.append(str(error))
            continue
        if isinstance(made, Profile):
            profiles[f"{made.dialect} {made.name}"] = made
            problems += _profile(path, made, model)
        else:
            problems += _addition(path, made, profiles.values(), model)
    return [*problems, *(problem for problem in _together(directories) if problem not in problems)]


def _together(directories: Sequence[Path]) -> list[str]:
    """Load all files as the server does, for faults between files."""
    try:
        RuleBook.load(*directories)
    except RulesError as error:
        return [str(error)]
    return []


def _profile(path: Path, profile: Profile, model: Model) -> Iterator[str]:
    if model.type(profile.type) is None:
        yield f"{path}:{line_of(path, 'type:')}: `type: {profile.type}`: R4 has no such type"
        return
    if profile.when:
        yield from _expression(path, "when", profile.when, profile.type, "", model)
    yield from _rules(path, profile.rules, profile.type, model)
    if not profile.parent:
        yield from _sampled(path, profile.rules)


def _addition(path: Path, addition: Addition, profiles: Iterable[Profile], model: Model) -> Iterator[str]:
    extended = [p for p in profiles if {p.url, p.name} & set(addition.extends)]
    for type_ in sorted({profile.type for profile in extended}):
        name = next(profile.name for profile in extended if profile.type == type_)
        try:
            rules = [rule_of(path, name, rule) for rule in addition.rules]
        except RulesError as error:
            yield str(error)
            return
        yield from _rules(path, rules, type_, model)
        yield from _sampled(path, rules)
    known = {rule.key for profile in extended for rule in profile.rules}
    for key in addition.severity:
        if not any(rule in {key, f"{profile.name}/{key}"} for profile in extended for rule in known):
            yield f"{path}:{line_of(path, key)}: `severity`: no rule is called {key}"


def _rules(path: Path, rules: Iterable[Rule], type_: str, model: Model) -> Iterator[str]:
    seen: set[str] = set()
    for rule in rules:
        name = rule.key.partition("/")[2]
        if name in seen:
            yield f"{path}:{line_of(path, f'id: {name}')}: rule `{name}`: the id is used twice"
        seen.add(name)
        yield from _expression(path, f"rule `{name}`: `expression`", rule.expression, type_, rule.at, model)
        if rule.shows:
            for problem in analyse(model, rule.shows, type_, rule.at)[0].problems:
                yield f"{path}:{line_of(path, f'id: {name}')}: rule `{name}`: `shows`: {problem}"


def _expression(path: Path, what: str, text: str, type_: str, at: str, model: Model) -> Iterator[str]:
    found, types = analyse(model, text, type_, at)
    line = line_of(path, text)
    for problem in dict.fromkeys(found.problems):
        yield f"{path}:{line}: {what}: {problem}"
    if not found.problems and types is not None and "boolean" not in types:
        gives = " or ".join(sorted(types)) or "nothing"
        yield f"{path}:{line}: {what}: gives {gives}, never true or false"


def _sampled(path: Path, rules: Iterable[Rule]) -> Iterator[str]:
    samples = read_samples(path)
    passing, failing = covered(samples)
    for rule in rules:
        name = rule.key.partition("/")[2]
        for kind, named in (("passing", passing), ("failing", failing)):
            if name not in named:
                line = line_of(path, f"id: {name}")
                yield f"{path}:{line}: rule `{name}`: has no {kind} sample"
