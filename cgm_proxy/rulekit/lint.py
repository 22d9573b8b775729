"""`cgm-proxy rules lint`: mistakes in rule files, found without judging a resource; each with file, line and key.

The server lints a hospital's own rules when it starts and when it reloads. The shipped rules are linted by the tests.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

from cgm_proxy.core.r4.model import Model
from cgm_proxy.core.rules.fhirpath import Expressions
from cgm_proxy.core.rules.rule_files import Addition, Profile, Rule, RulesError
from cgm_proxy.core.rules.rulebook import RuleBook
from cgm_proxy.core.rules.static_analysis import analyse, suggestion
from cgm_proxy.rulekit.loading import RuleFile, book_of, r4_model, rule_book, rule_files, shipped_rules
from cgm_proxy.rulekit.samples import covered, read_samples, unknown_names


def lint(shipped: Path, *own: Path) -> list[str]:
    """Return the problems of the rules in a hospital's directories or, without these, of the shipped rules."""
    if own:
        return _load(shipped, own)[1]
    problems: list[str] = []
    files = _files([shipped], problems)
    model = r4_model(shipped)
    try:
        book_of(model, files)
    except RulesError as error:
        problems += str(error).splitlines()
    problems = [*_lint_files(files, _Linter(model, Expressions(), _profiles(files))), *problems]
    return list(dict.fromkeys(problems))


def load_rules(own: str | Path | None = None) -> RuleBook:
    """Load the shipped rules together with those of a hospital's directory, which are linted.

    Raises RulesError with all problems of the own rules, a line each.
    """
    if not own:
        return rule_book()
    book, problems = _load(shipped_rules(), [Path(own)])
    if problems:
        raise RulesError("\n".join(problems))
    return book


def _load(shipped: Path, directories: Sequence[Path]) -> tuple[RuleBook, list[str]]:
    """Load all rules together and lint the own ones; if they can't be loaded, return the shipped rules alone."""
    problems: list[str] = []
    own = _files(directories, problems)
    model = r4_model(shipped)
    try:
        book = book_of(model, chain(rule_files(shipped), own))
        profiles = list(book.profiles.values())
    except RulesError as error:
        problems += str(error).splitlines()
        book = book_of(model, rule_files(shipped))
        profiles = [*book.profiles.values(), *_profiles(own)]
    linter = _Linter(book.model(None), book.expressions, profiles)
    return book, list(dict.fromkeys([*_lint_files(own, linter), *problems]))


def _files(directories: Iterable[Path], problems: list[str]) -> list[RuleFile]:
    """Return the files of directories; a directory without files is a problem."""
    files: list[RuleFile] = []
    for directory in directories:
        try:
            files += rule_files(directory)
        except RulesError as error:
            problems.append(str(error))
    return files


def _profiles(files: Iterable[RuleFile]) -> list[Profile]:
    """Return the profiles that files define, without the files that can't be read."""
    profiles = []
    for file in files:
        try:
            parsed = file.parsed
        except RulesError:
            continue
        if isinstance(parsed, Profile):
            profiles.append(parsed)
    return profiles


def _lint_files(files: Iterable[RuleFile], linter: "_Linter") -> Iterator[str]:
    for file in files:
        try:
            yield from linter.file(file)
        except RulesError as error:
            yield from str(error).splitlines()


class _Linter:
    """Lints files against the profiles that they may add to."""

    def __init__(self, model: Model, expressions: Expressions, profiles: Iterable[Profile]) -> None:
        self._model = model
        self._expressions = expressions
        self._profiles = list({(profile.url, profile.dialect): profile for profile in profiles}.values())

    def file(self, file: RuleFile) -> Iterator[str]:
        """Yield the problems of a file; raise RulesError where it can't be read any further."""
        if isinstance(file.parsed, Profile):
            yield from self._profile(file, file.parsed)
        else:
            yield from self._addition(file, file.parsed)

    def _profile(self, file: RuleFile, profile: Profile) -> Iterator[str]:
        if self._model.type(profile.type) is None:
            yield f"{file.rules.at('type')}: `type: {profile.type}`: R4 has no such type"
            return
        if profile.when is not None:
            yield from self._condition(f"{file.rules.at('when')}: `when`", profile.when, profile.type)
        yield from self._rules(file, profile.rules, profile.type)
        yield from self._samples(file, () if profile.parent else profile.rules, [profile])

    def _addition(self, file: RuleFile, addition: Addition) -> Iterator[str]:
        if not addition.extends:
            yield f"{file.rules.at('extends')}: `extends` is empty; name the profiles that the rules are for"
        extended = [profile for profile in self._profiles if addition.extends_profile(profile)]
        rules = addition.rules if extended else ()
        for type_ in sorted({profile.type for profile in extended}):
            yield from self._rules(file, rules, type_)
        ids = {rule.id for profile in extended for rule in profile.rules}
        for key in addition.severity:
            if key not in ids | {rule.key for profile in extended for rule in profile.rules}:
                at = file.rules.at("severity", key)
                yield f"{at}: `severity`: no rule has the id {key}{suggestion(key, ids)}"
        yield from self._samples(file, rules, [replace(p, rules=(*p.rules, *rules)) for p in extended])

    def _rules(self, file: RuleFile, rules: Sequence[Rule], type_: str) -> Iterator[str]:
        first: dict[str, int] = {}
        for number, rule in enumerate(rules):
            keys = ("id", "text", "expression", "shows")
            at = {key: f"{file.rules.at('rules', number, key)}: rule `{rule.id}`" for key in keys}
            if rule.id in first:
                yield f"{at['id']}: the id is used twice (first on line {first[rule.id]}); choose another"
            first.setdefault(rule.id, file.rules.document.line("rules", number, "id"))
            if not rule.text.strip():
                yield f"{at['text']}: `text` is empty; write what the rule requires"
            yield from self._condition(f"{at['expression']}: `expression`", rule.expression, type_, rule.at)
            if rule.shows:
                found, _ = analyse(self._model, self._expressions, rule.shows, type_, rule.at)
                yield from (f"{at['shows']}: `shows`: {problem}" for problem in found.problems)

    def _condition(self, prefix: str, text: str, type_: str, at: str = "") -> Iterator[str]:
        """Yield the problems of an expression that must be true or false."""
        if not text.strip():
            yield f"{prefix} is empty; write the condition that must hold"
            return
        found, types = analyse(self._model, self._expressions, text, type_, at)
        yield from (f"{prefix}: {problem}" for problem in dict.fromkeys(found.problems))
        if not found.problems and types is not None and "boolean" not in types:
            result = " or ".join(sorted(types)) or "empty"
            yield f"{prefix}: the result is {result}, never true or false"

    def _samples(self, file: RuleFile, rules: Sequence[Rule], own: Sequence[Profile]) -> Iterator[str]:
        """Yield the problems of the samples, and the rules that lack one; `own` are the profiles that the file is about."""
        samples = read_samples(file)
        for sample in samples:
            yield from (f"{sample.place}: {problem}" for problem in unknown_names(sample, own))
        passing, failing = covered(samples)
        for number, rule in enumerate(rules):
            at = file.rules.at("rules", number)
            for kind, names in (("passing", passing), ("failing", failing)):
                if rule.id not in names:
                    yield f"{at}: rule `{rule.id}`: has no {kind} sample; add one"
