"""`cgm-proxy rules lint`: what is wrong with rules' files, found without running them; each with file, line and key."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from cgm_proxy.core.r4.model import Model
from cgm_proxy.core.rules.rule_files import Addition, Profile, Rule, RulesError, line_of, profile_files, read, rule_of
from cgm_proxy.core.rules.rulebook import RuleBook
from cgm_proxy.core.rules.static_analysis import analyse, meant
from cgm_proxy.rulekit.listing import short
from cgm_proxy.rulekit.samples import covered, read_samples, sample_line, strays


def lint(directories: Sequence[Path]) -> list[str]:
    """Give the problems of the shipped rules (the first directory) and of more directories; [] when there are none."""
    shipped, *own = directories
    problems = list(lint_directory(shipped, {}, Model(shipped / "r4")))
    try:
        problems += _load(shipped, own)[1]
    except RulesError as error:
        problems.append(str(error))
    return list(dict.fromkeys(problems))


def load_linted(shipped: Path, *own: Path) -> RuleBook:
    """Load the shipped rules, which were linted when they were made, and a hospital's own, linted now.

    Raises RulesError with every problem of the own rules, a line each.
    """
    book, problems = _load(shipped, own)
    if problems:
        raise RulesError("\n".join(problems))
    return book


def _load(shipped: Path, own: Sequence[Path]) -> tuple[RuleBook, list[str]]:
    """Load all files as the server does, and lint the own ones; without these where they can't be loaded."""
    together: list[str] = []
    try:
        book = RuleBook.load(shipped, *own)
    except RulesError as error:
        together.append(str(error))
        book = RuleBook.load(shipped)
    profiles = {f"{profile.dialect} {profile.name}": profile for profile in book.profiles.values()}
    problems = [problem for directory in own for problem in lint_directory(directory, profiles, book.model(None))]
    return book, list(dict.fromkeys([*problems, *together]))


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


def _profile(path: Path, profile: Profile, model: Model) -> Iterator[str]:
    if model.type(profile.type) is None:
        yield f"{path}:{line_of(path, 'type:')}: `type: {profile.type}`: R4 has no such type"
        return
    if profile.when is not None:
        yield from _expression(path, "when", ("`when`", profile.when, ""), profile.type, model)
    yield from _rules(path, profile.rules, profile.type, model)
    yield from _samples(path, () if profile.parent else profile.rules, [profile])


def _addition(path: Path, addition: Addition, profiles: Iterable[Profile], model: Model) -> Iterator[str]:
    if not addition.extends:
        yield f"{path}:{line_of(path, 'extends:')}: `extends` is empty; name the profiles that the rules are added to"
    extended = [p for p in profiles if addition.concerns(p)]
    added = tuple(rule_of(path, "", rule) for rule in addition.rules) if extended else ()
    for type_ in sorted({profile.type for profile in extended}):
        yield from _rules(path, added, type_, model)
    yield from _severities(path, addition, extended)
    yield from _samples(path, added, [replace(profile, rules=(*profile.rules, *added)) for profile in extended])


def _severities(path: Path, addition: Addition, extended: Sequence[Profile]) -> Iterator[str]:
    known = {rule.key for profile in extended for rule in profile.rules}
    ids = {short(rule) for profile in extended for rule in profile.rules}
    for key in addition.severity:
        if key not in known | ids:
            yield f"{path}:{line_of(path, key)}: `severity`: no rule is called {key}{meant(key, ids)}"


def _rules(path: Path, rules: Iterable[Rule], type_: str, model: Model) -> Iterator[str]:
    seen: set[str] = set()
    for rule in rules:
        name = short(rule)
        if name in seen:
            yield f"{path}:{line_of(path, f'id: {name}')}: rule `{name}`: the id is used twice"
        seen.add(name)
        if not rule.text.strip():
            yield f"{path}:{line_of(path, f'id: {name}')}: rule `{name}`: `text` is empty; write what the rule wants"
        written = (f"rule `{name}`: `expression`", rule.expression, rule.at)
        yield from _expression(path, f"id: {name}", written, type_, model)
        if rule.shows:
            for problem in analyse(model, rule.shows, type_, rule.at)[0].problems:
                yield f"{path}:{line_of(path, f'id: {name}')}: rule `{name}`: `shows`: {problem}"


def _expression(path: Path, near: str, written: tuple[str, str, str], type_: str, model: Model) -> Iterator[str]:
    what, text, at = written
    if not text.strip():
        yield f"{path}:{line_of(path, near)}: {what} is empty; write what must hold"
        return
    found, types = analyse(model, text, type_, at)
    line = line_of(path, text, near)
    for problem in dict.fromkeys(found.problems):
        yield f"{path}:{line}: {what}: {problem}"
    if not found.problems and types is not None and "boolean" not in types:
        gives = " or ".join(sorted(types)) or "nothing"
        yield f"{path}:{line}: {what}: gives {gives}, never true or false"


def _samples(path: Path, rules: Iterable[Rule], own: Sequence[Profile]) -> Iterator[str]:
    """Give the problems of a file's samples, and the rules that lack one; `own` are the profiles that the file is of."""
    samples = read_samples(path)
    for sample in samples:
        yield from (f"{sample_line(path, sample.name)}: {problem}" for problem in strays(sample, own))
    passing, failing = covered(samples)
    for rule in rules:
        name = short(rule)
        for kind, named in (("passing", passing), ("failing", failing)):
            if name not in named:
                line = line_of(path, f"id: {name}")
                yield f"{path}:{line}: rule `{name}`: has no {kind} sample"
