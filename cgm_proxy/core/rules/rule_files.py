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
    samples: [...]               # rules_samples.py; read by the linter and by `rules test`

A hospital's file adds to profiles instead of defining one: `extends: [canonical or short name, ...]`, its `rules`, and
`severity: {rule id: warning}` for rules that stand there already.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import yaml

from cgm_proxy.core.json_values import JsonObject

#: Deepest nesting of a rules' file; samples hold resources.
DEEPEST = 200
SEVERITIES = ("error", "warning", "information")
#: Keys by what their values are, in words.
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
#: Whether a value is what the words say.
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
    rules: tuple[JsonObject, ...]
    severity: Mapping[str, str] = field(default_factory=dict)
    path: str = ""

    def concerns(self, profile: Profile) -> bool:
        """Whether it adds to a profile."""
        return bool({profile.url, profile.name} & set(self.extends)) and self.dialect in {None, profile.dialect}


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Reads YAML, and refuses a key that stands twice: the first one would be lost without a word. Dates stay text."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, pattern) for tag, pattern in known if not tag.endswith(":timestamp")]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Any:  # noqa: FBT001, FBT002 -- PyYAML's
        """Make a mapping of a node."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"`{key.value}` is there twice", problem_mark=key.start_mark
                )
            seen.add(str(key.value))
        return super().construct_mapping(node, deep=deep)


def _shallow(file: BinaryIO) -> Iterator[None]:
    """Go from document to document; raise RecursionError for nesting that libyaml would follow until the process has no stack."""
    depth = 0
    for event in yaml.parse(file, Loader=_Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise RecursionError(f"nested deeper than {DEEPEST}")
        if isinstance(event, yaml.DocumentEndEvent):
            yield


def documents(path: Path) -> Iterator[Any]:
    """Give a file's YAML documents one by one; the first is the rules, the second the samples."""
    try:
        with path.open("rb") as ahead, path.open("rb") as file:
            for _, document in zip(_shallow(ahead), yaml.load_all(file, Loader=_Loader), strict=False):
                yield document
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        at = f":{mark.line + 1}" if mark else ""
        raise RulesError(f"{path}{at}: no valid YAML: {getattr(error, 'problem', error)}") from error
    except OSError as error:
        raise RulesError(f"{path}: can't be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # a number or nesting without end
        raise RulesError(f"{path}: no valid YAML: {error}") from error


def read(path: Path) -> Profile | Addition:
    """Read a rules' file; raise RulesError if a key is missing or unknown."""
    data = next(documents(path), None)
    if not isinstance(data, dict):
        raise RulesError(f"{path}:1: the file must be a mapping with the key `profile` or `extends`")
    addition = "extends" in data
    check_keys(path, data, EXTENDS_KEYS if addition else PROFILE_KEYS, "")
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


def _addition(path: Path, data: JsonObject) -> Addition:
    extends = data["extends"] if isinstance(data["extends"], list) else [data["extends"]]
    dialect = str(data["dialect"]) if "dialect" in data else None
    severity = data.get("severity", {})
    for rule, level in severity.items():
        if not isinstance(rule, str):
            raise RulesError(
                f"{path}:{line_of(path, 'severity:')}: `severity`: {rule} is no rule's id; write it in quotes"
            )
        if level not in SEVERITIES:
            raise RulesError(f"{path}:{line_of(path, rule)}: `{rule}: {level}`: want one of {', '.join(SEVERITIES)}")
    for rule in (rules := data.get("rules", [])):
        rule_of(path, "", rule)
    return Addition(tuple(extends), dialect, tuple(rules), severity, str(path))


def rule_of(path: Path, name: str, data: Any) -> Rule:
    """Make a rule of its mapping; raise RulesError if a key is missing or unknown."""
    if not isinstance(data, dict):
        what = "a list" if isinstance(data, list) else str(data)[:40]
        raise RulesError(f"{path}:{line_of(path, 'rules:')}: `rules`: each must be a mapping, not {what}")
    check_keys(path, data, RULE_KEYS, f" of rule `{data.get('id')}`")
    for key in ("id", "expression", "text"):
        if key not in data:
            raise RulesError(f"{path}:{_rule_line(path, data)}: rule `{data.get('id')}`: `{key}` is missing; write it")
    severity = data.get("severity", "error")
    if severity not in SEVERITIES:
        at = _rule_line(path, data)
        raise RulesError(
            f"{path}:{at}: rule `{data['id']}`: `severity: {severity}`: want one of {', '.join(SEVERITIES)}"
        )
    texts = (data.get("element", ""), data.get("at", ""), data["expression"], data.get("shows", ""), data["text"])
    return Rule(f"{name}/{data['id']}", *texts, severity)


def check_keys(path: Path, data: JsonObject, known: Mapping[str, str], of: str) -> None:
    """Raise RulesError for a key that is not known, or whose value is not what `known` says."""
    for key, value in data.items():
        if key not in known:
            raise RulesError(f"{path}:{line_of(path, key)}: unknown key `{key}`{of}; known: {', '.join(sorted(known))}")
        if not KINDS[known[key]](value):
            raise RulesError(f"{path}:{line_of(path, f'{key}:')}: `{key}`{of} must be {known[key]}")


def _rule_line(path: Path, data: JsonObject) -> int:
    return line_of(path, f"id: {data.get('id')}")


def line_of(path: Path, *texts: Any) -> int:
    """Give the first line that has the first of some texts that is there, whole, for a message; 1 if none."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for text in texts:
        whole = re.compile(rf"(?<![\w-]){re.escape(str(text))}(?![\w-])")
        if line := next((n for n, line in enumerate(lines, 1) if whole.search(line)), 0):
            return line
    return 1


def profile_files(directory: Path) -> Iterator[Path]:
    """Give the rules' files of a directory, sorted; raise RulesError if there is none.

    What is hidden is left out: a volume of Kubernetes has each file once more, below `..data`.
    """
    found = [path for path in directory.rglob("*.y*ml") if path.suffix in {".yaml", ".yml"}]
    seen = sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(directory).parts))
    if not seen:
        raise RulesError(f"{directory}: holds no rules; name a directory that has files *.yaml")
    yield from seen


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
