"""The rules' files: YAML, one file a profile, read into frozen values.

A profile's file (`rules/<dialect>/<profile>.yaml`):

    profile: canonical URL
    dialect: argo
    type: Observation            # the resource type, or Extension
    title: what a clinician calls it
    parent: true                 # of a guide that others build on (US Core): valid in every dialect, without samples
    context: [ServiceRequest]    # an extension's: where it may stand
    when: FHIRPath               # a resource without a claim is judged by this profile when it holds
    made_of: [canonical, ...]    # profiles whose resources belong to this one's: who orders it takes them too
    rules:
      - id: value-unit           # unique in the profile
        element: Observation.value[x].unit      # the guide's element
        at: value.ofType(Quantity)              # optional: the nodes that are examined, else the resource
        expression: unit = 'mg/dl'              # must give true on each of them
        shows: unit                             # optional: what a message says was found
        text: '"mg/dl" (the code stays "mg/dL")'  # after "… wants"
        severity: error                         # error (the default), warning or information
    ---
    pass: / fail:                # samples (rules_cli.py); not read at the start

A hospital's file adds to profiles instead of defining one: `extends: [canonical or short name, ...]`, its `rules`, and
`severity: {rule id: warning}` for rules that stand there already.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

Json = dict[str, Any]
SEVERITIES = ("error", "warning", "information")
PROFILE_KEYS = frozenset({"profile", "dialect", "type", "title", "parent", "context", "when", "made_of", "rules"})
EXTENDS_KEYS = frozenset({"extends", "dialect", "rules", "severity"})
RULE_KEYS = frozenset({"id", "element", "at", "expression", "shows", "text", "severity"})


class RulesError(ValueError):
    """A rules' file that cannot be used: names file, line and key."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule; see the module's docstring. `key` is its stable id: `cgm-sensor-reading-mass/value-unit`."""

    key: str
    element: str
    at: str
    expression: str
    shows: str
    text: str
    severity: str = "error"


@dataclass(frozen=True, slots=True)
class Profile:
    """A profile of a dialect, with its rules."""

    url: str
    dialect: str
    type: str
    title: str
    rules: tuple[Rule, ...]
    context: tuple[str, ...] = ()
    when: str | None = None
    made_of: frozenset[str] = frozenset()
    path: str = ""
    parent: bool = False

    @property
    def name(self) -> str:
        """The short name: `cgm-sensor-reading-mass`."""
        return self.url.rsplit("/", 1)[-1]


@dataclass(frozen=True, slots=True)
class Addition:
    """What a hospital's file adds to profiles, and the severities that it changes."""

    extends: tuple[str, ...]
    dialect: str | None
    rules: tuple[Json, ...]
    severity: Mapping[str, str] = field(default_factory=dict)
    path: str = ""


def documents(path: Path) -> Iterator[Any]:
    """Give a file's YAML documents one by one; the first is the rules, the second the samples."""
    try:
        with path.open("rb") as file:
            yield from yaml.load_all(file, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        at = f":{mark.line + 1}" if mark else ""
        raise RulesError(f"{path}{at}: no valid YAML: {getattr(error, 'problem', error)}") from error


def read(path: Path) -> Profile | Addition:
    """Read a rules' file; raise RulesError if a key is missing or unknown."""
    data = next(documents(path), None)
    if not isinstance(data, dict):
        raise RulesError(f"{path}:1: the file must be a mapping with the key `profile` or `extends`")
    addition = "extends" in data
    _keys(path, data, EXTENDS_KEYS if addition else PROFILE_KEYS, "")
    if addition:
        return _addition(path, data)
    for key in ("profile", "dialect", "type", "rules"):
        if key not in data:
            raise RulesError(f"{path}:1: the key `{key}` is missing")
    name = str(data["profile"]).rsplit("/", 1)[-1]
    return Profile(
        data["profile"],
        str(data["dialect"]),
        data["type"],
        data.get("title", name),
        tuple(rule_of(path, name, rule) for rule in data["rules"]),
        tuple(data.get("context", ())),
        data.get("when"),
        frozenset(data.get("made_of", ())),
        str(path),
        bool(data.get("parent")),
    )


def _addition(path: Path, data: Json) -> Addition:
    extends = data["extends"] if isinstance(data["extends"], list) else [data["extends"]]
    severity = data.get("severity", {})
    for rule, level in severity.items():
        if level not in SEVERITIES:
            raise RulesError(f"{path}:{line_of(path, rule)}: `{rule}: {level}`: want one of {', '.join(SEVERITIES)}")
    return Addition(tuple(extends), data.get("dialect"), tuple(data.get("rules", ())), severity, str(path))


def rule_of(path: Path, name: str, data: Any) -> Rule:
    """Make a rule of its mapping; raise RulesError if a key is missing or unknown."""
    if not isinstance(data, dict):
        raise RulesError(f"{path}: a rule must be a mapping, not {data!r}")
    _keys(path, data, RULE_KEYS, f" of rule `{data.get('id')}`")
    for key in ("id", "expression", "text"):
        if not isinstance(data.get(key), str):
            raise RulesError(f"{path}:{_rule_line(path, data)}: rule `{data.get('id')}`: `{key}` must be text")
    severity = data.get("severity", "error")
    if severity not in SEVERITIES:
        at = _rule_line(path, data)
        raise RulesError(
            f"{path}:{at}: rule `{data['id']}`: `severity: {severity}`: want one of {', '.join(SEVERITIES)}"
        )
    texts = (data.get("element", ""), data.get("at", ""), data["expression"], data.get("shows", ""), data["text"])
    return Rule(f"{name}/{data['id']}", *texts, severity)


def _keys(path: Path, data: Json, known: frozenset[str], of: str) -> None:
    for key in data:
        if key not in known:
            raise RulesError(f"{path}:{line_of(path, key)}: unknown key `{key}`{of}; known: {', '.join(sorted(known))}")


def _rule_line(path: Path, data: Json) -> int:
    return line_of(path, f"id: {data.get('id')}")


def line_of(path: Path, text: Any) -> int:
    """Give the first line that has a text, for a message; 1 if none."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return next((n for n, line in enumerate(lines, 1) if str(text) in line), 1)


def profile_files(directory: Path) -> Iterator[Path]:
    """Give the rules' files of a directory, one level deep or flat."""
    yield from sorted(p for p in directory.rglob("*.yaml"))


def merge(profiles: dict[tuple[str, str], Profile], additions: list[Addition]) -> None:
    """Add hospitals' rules and severities to the profiles they name; raise RulesError for a name that none has."""
    for addition in additions:
        path = Path(addition.path)
        for wanted in addition.extends:
            found = [
                k for k, p in profiles.items() if wanted in {p.url, p.name} and addition.dialect in {None, p.dialect}
            ]
            if not found:
                raise RulesError(f"{path}:{line_of(path, wanted)}: `extends`: no profile is named {wanted}")
            for key in found:
                profiles[key] = _extended(profiles[key], addition, path)


def _extended(profile: Profile, addition: Addition, path: Path) -> Profile:
    added = tuple(rule_of(path, profile.name, rule) for rule in addition.rules)
    keys = {rule.key for rule in profile.rules}
    for rule in added:
        if rule.key in keys:
            identifier = rule.key.partition("/")[2]
            raise RulesError(
                f"{path}:{line_of(path, identifier)}: rule `{identifier}` is there already in {profile.path}"
            )
    levels = {f"{profile.name}/{k}" if "/" not in k else k: v for k, v in addition.severity.items()}
    rules = tuple(replace(rule, severity=levels.get(rule.key, rule.severity)) for rule in (*profile.rules, *added))
    return replace(profile, rules=rules)
