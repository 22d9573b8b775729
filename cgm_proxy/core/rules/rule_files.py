"""Rule files: parsed YAML documents become frozen profiles, rules and additions.

The first document of a rule file has the rules of one profile.

A profile's file (`rules/<dialect>/<profile>.yaml`):

    profile: canonical URL
    dialect: argo
    type: Observation            # the resource type, or Extension
    title: what a clinician calls it
    parent: true                 # of a guide that others build on (US Core): valid in every dialect, without samples
    context: [ServiceRequest]    # of an extension: the elements that may have it
    when: FHIRPath               # a resource that claims no profile is judged by this one if the expression holds
    made_of: [canonical, ...]    # profiles of the resources that belong to this one; an order for it includes them
    rules:
      - id: value-unit           # unique in the profile
        element: Observation.value[x].unit      # the guide's element
        at: value.ofType(Quantity)              # optional: the nodes that are checked; otherwise the resource
        expression: unit = 'mg/dl'              # must be true of each of them
        shows: unit                             # optional: the value that a message quotes
        text: '"mg/dl" (the code stays "mg/dL")'  # what is expected; messages read "… requires <text>"
        severity: error                         # error (the default), warning or information
    ---
    samples: [...]               # `rulekit/samples.py`; read by the linter and by `rules test`

A hospital's file adds to profiles instead of defining one: `extends: [canonical or short name, ...]`, its `rules`, and
`severity: {rule id: warning}` for rules that exist already.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from cgm_proxy.core.codec.strict_yaml import Document
from cgm_proxy.core.json_values import JsonObject

SEVERITIES = ("error", "warning", "information")
#: The kinds of values that a key may have, as messages name them.
TEXT, TEXTS, LIST, MAPPING = "text", "a list of texts", "a list", "a mapping"
PROFILE_KEYS = {
    "profile": TEXT,
    "dialect": "a version",
    "type": TEXT,
    "title": TEXT,
    "parent": "true or false",
    "context": TEXTS,
    "when": TEXT,
    "made_of": TEXTS,
    "rules": LIST,
}
EXTENDS_KEYS = {"extends": "text or a list of texts", "dialect": "a version", "rules": LIST, "severity": MAPPING}
RULE_KEYS = dict.fromkeys(("id", "element", "at", "expression", "shows", "text", "severity"), TEXT)
#: Whether a value is of a kind.
KINDS: Mapping[str, Callable[[Any], bool]] = {
    TEXT: lambda value: isinstance(value, str),
    "a version": lambda value: isinstance(value, str | float),
    "true or false": lambda value: isinstance(value, bool),
    TEXTS: lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value),
    "text or a list of texts": lambda value: isinstance(value, str) or KINDS[TEXTS](value),
    LIST: lambda value: isinstance(value, list),
    MAPPING: lambda value: isinstance(value, dict),
}


class RulesError(ValueError):
    """Rule files that can't be used. The message names file, line and key; several problems have a line each."""


@dataclass(frozen=True, slots=True)
class Source:
    """A YAML document of a file, for messages that name file and line."""

    file: str
    document: Document

    def at(self, *path: Any) -> str:
        """Return file and line of a key or item (`rules.yaml:7`)."""
        return f"{self.file}:{self.document.line(*path)}"


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

    @property
    def id(self) -> str:
        """The id in its profile: `value-unit`."""
        return self.key.partition("/")[2]


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
    file: str = ""
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
    rules: tuple[Rule, ...]
    """Their keys have no profile yet: `/value-unit`."""
    severity: Mapping[str, str] = field(default_factory=dict)
    source: Source = field(default_factory=lambda: Source("", Document()))

    def extends_profile(self, profile: Profile) -> bool:
        """Whether it adds to a profile."""
        return bool({profile.url, profile.name} & set(self.extends)) and self.dialect in {None, profile.dialect}


def parse_rule_file(source: Source) -> Profile | Addition:
    """Return the content of the first document of a rule file; raise RulesError if it is not as described above."""
    refuse_faults(source)
    data = source.document.value
    if not isinstance(data, dict):
        raise RulesError(f"{source.at()}: the file must be a mapping with the key `profile` or `extends`")
    if "extends" in data:
        return _addition(source, data)
    check_keys(source, (), data, PROFILE_KEYS)
    for key in ("profile", "dialect", "type", "rules"):
        if key not in data:
            raise RulesError(f"{source.at()}: the key `{key}` is missing")
    name = data["profile"].rsplit("/", 1)[-1]
    return Profile(
        data["profile"],
        str(data["dialect"]),
        data["type"],
        data.get("title", name),
        tuple(_rule(source, name, number) for number in range(len(data["rules"]))),
        tuple(data.get("context", ())),
        data.get("when"),
        frozenset(data.get("made_of", ())),
        source.file,
        data.get("parent", False),
    )


def refuse_faults(source: Source) -> None:
    """Raise RulesError with what can't be read of a document."""
    if faults := source.document.faults:
        lines = (f"{source.file}:{fault.line}: not valid YAML: {fault.problem}" for fault in faults)
        raise RulesError("\n".join(lines))


def _addition(source: Source, data: JsonObject) -> Addition:
    check_keys(source, (), data, EXTENDS_KEYS)
    extends = data["extends"] if isinstance(data["extends"], list) else [data["extends"]]
    severity = data.get("severity", {})
    for rule, level in severity.items():
        at = source.at("severity", rule)
        if not isinstance(rule, str):
            raise RulesError(f"{at}: `severity`: {rule} is not the id of a rule; if it is, write it in quotes")
        if level not in SEVERITIES:
            raise RulesError(f"{at}: `{rule}: {level}`: write one of {', '.join(SEVERITIES)}")
    return Addition(
        tuple(extends),
        str(data["dialect"]) if "dialect" in data else None,
        tuple(_rule(source, "", number) for number in range(len(data.get("rules", ())))),
        severity,
        source,
    )


def _rule(source: Source, profile: str, number: int) -> Rule:
    path = ("rules", number)
    data = source.document.value["rules"][number]
    if not isinstance(data, dict):
        found = "a list" if isinstance(data, list) else str(data)[:40]
        raise RulesError(f"{source.at(*path)}: `rules`: each must be a mapping, not {found}")
    check_keys(source, path, data, RULE_KEYS, f" of rule `{data.get('id')}`")
    for key in ("id", "expression", "text"):
        if key not in data:
            raise RulesError(f"{source.at(*path)}: rule `{data.get('id')}`: `{key}` is missing; add it")
    severity = data.get("severity", "error")
    if severity not in SEVERITIES:
        at = source.at(*path, "severity")
        raise RulesError(f"{at}: rule `{data['id']}`: `severity: {severity}`: write one of {', '.join(SEVERITIES)}")
    element, at, shows = (data.get(key, "") for key in ("element", "at", "shows"))
    return Rule(f"{profile}/{data['id']}", element, at, data["expression"], shows, data["text"], severity)


def check_keys(
    source: Source, path: tuple[Any, ...], data: JsonObject, known: Mapping[str, str], owner: str = ""
) -> None:
    """Raise RulesError for a key of the mapping at `path` that is unknown, or whose value is of the wrong kind."""
    for key, value in data.items():
        at = source.at(*path, key)
        if key not in known:
            raise RulesError(f"{at}: unknown key `{key}`{owner}; known: {', '.join(sorted(known))}")
        if not KINDS[known[key]](value):
            raise RulesError(f"{at}: `{key}`{owner} must be {known[key]}")


def merge(profiles: Iterable[Profile], additions: Iterable[Addition]) -> list[Profile]:
    """Return the profiles with the rules and severities of the additions.

    Raises RulesError for a name that no profile has, and for a rule that its profile has already.
    """
    merged = list(profiles)
    for addition in additions:
        for number, name in enumerate(addition.extends):
            alone = replace(addition, extends=(name,))
            if not any(alone.extends_profile(profile) for profile in merged):
                at = addition.source.at("extends", number)
                raise RulesError(f"{at}: `extends`: no profile is named {name}")
            merged = [_extended(p, addition) if alone.extends_profile(p) else p for p in merged]
    return merged


def _extended(profile: Profile, addition: Addition) -> Profile:
    known = {rule.id for rule in profile.rules}
    for number, rule in enumerate(addition.rules):
        if rule.id in known:
            at = addition.source.at("rules", number, "id")
            raise RulesError(f"{at}: rule `{rule.id}` exists already in {profile.file}; choose another id")
    added = (replace(rule, key=f"{profile.name}/{rule.id}") for rule in addition.rules)
    levels = {key if "/" in key else f"{profile.name}/{key}": level for key, level in addition.severity.items()}
    rules = tuple(replace(rule, severity=levels.get(rule.key, rule.severity)) for rule in (*profile.rules, *added))
    return replace(profile, rules=rules)
