"""`cgm-proxy rules lint`: what is wrong with rules' files, found without running them; each with file, line and key."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from cgm_proxy.core.analysis import analyse, meant
from cgm_proxy.core.model import Model
from cgm_proxy.core.rulebook import Addition, Profile, Rule, RulesError, line_of, profile_files, read, rule_of
from cgm_proxy.core.rules import RuleBook
from cgm_proxy.rules_samples import covered, read_samples


def lint(directories: Sequence[Path]) -> list[str]:
    """Give the problems of the shipped rules (the first directory) and of more directories; [] when there are none."""
    model, profiles = Model(directories[0] / "r4"), dict[str, Profile]()
    problems = [problem for directory in directories for problem in lint_directory(directory, profiles, model)]
    return [*problems, *(problem for problem in _together(directories) if problem not in problems)]


def load_linted(shipped: Path, *own: Path) -> RuleBook:
    """Load the shipped rules, which were linted when they were made, and a hospital's own, linted now.

    Raises RulesError with every problem of the own rules, a line each.
    """
    together: list[str] = []
    try:
        book = RuleBook.load(shipped, *own)
    except RulesError as error:
        together.append(str(error))
        book = RuleBook.load(shipped)
    profiles = {f"{profile.dialect} {profile.name}": profile for profile in book.profiles.values()}
    problems = [problem for directory in own for problem in lint_directory(directory, profiles, book.model(None))]
    if found := [*problems, *(problem for problem in together if problem not in problems)]:
        raise RulesError("\n".join(found))
    return book


def lint_directory(directory: Path, profiles: dict[str, Profile], model: Model) -> Iterator[str]:
    """Give the problems of one directory's files, which may add to `profiles`; what it defines itself is put there."""
    try:
        for path in profile_files(directory):
            yield from _file(path, profiles, model)
    except RulesError as error:
        yield str(error)


def _file(path: Path, profiles: dict[str, Profile], model: Model) -> Iterator[str]:
    try:
        made = read(path)
        if isinstance(made, Profile):
            profiles[f"{made.dialect} {made.name}"] = made
            yield from _profile(path, made, model)
        else:
            yield from _addition(path, made, profiles.values(), model)
    except RulesError as error:
        yield str(error)


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
        yield from _expression(path, "when", ("`when`", profile.when, ""), profile.type, model)
    yield from _rules(path, profile.rules, profile.type, model)
    if not profile.parent:
        yield from _sampled(path, profile.rules)


def _addition(path: Path, addition: Addition, profiles: Iterable[Profile], model: Model) -> Iterator[str]:
    extended = [p for p in profiles if addition.concerns(p)]
    for type_ in sorted({profile.type for profile in extended}):
        name = next(profile.name for profile in extended if profile.type == type_)
        rules = [rule_of(path, name, rule) for rule in addition.rules]
        yield from _rules(path, rules, type_, model)
        yield from _sampled(path, rules)
    known = {rule.key for profile in extended for rule in profile.rules}
    short = {key.partition("/")[2] for key in known}
    for key in addition.severity:
        if key not in known | short:
            yield f"{path}:{line_of(path, key)}: `severity`: no rule is called {key}{meant(key, short)}"


def _rules(path: Path, rules: Iterable[Rule], type_: str, model: Model) -> Iterator[str]:
    seen: set[str] = set()
    for rule in rules:
        name = rule.key.partition("/")[2]
        if name in seen:
            yield f"{path}:{line_of(path, f'id: {name}')}: rule `{name}`: the id is used twice"
        seen.add(name)
        written = (f"rule `{name}`: `expression`", rule.expression, rule.at)
        yield from _expression(path, f"id: {name}", written, type_, model)
        if rule.shows:
            for problem in analyse(model, rule.shows, type_, rule.at)[0].problems:
                yield f"{path}:{line_of(path, f'id: {name}')}: rule `{name}`: `shows`: {problem}"


def _expression(path: Path, near: str, written: tuple[str, str, str], type_: str, model: Model) -> Iterator[str]:
    what, text, at = written
    found, types = analyse(model, text, type_, at)
    line = line_of(path, text, near)
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
