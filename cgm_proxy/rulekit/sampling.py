"""Make samples for compiled rules: a guide's examples that pass, and small changes of them that fail one rule each.

What comes out is reviewed like the rules themselves; a rule that no change reaches is named, and gets its sample by hand.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from cgm_proxy.core.json_values import JsonObject
from cgm_proxy.core.rules.rule_files import Profile
from cgm_proxy.core.rules.rulebook import RuleBook
from cgm_proxy.rulekit.samples import Sample, changed, judge, looked_at

Change = JsonObject
#: Tried as a reference, so that at least one is of a wrong type.
REFERENCES = ("Practitioner/1", "Observation/1", "Medication/1", "#wrong")
#: Tried as a choice's other type.
CHOICES = (
    ("effective", "Instant", "2024-05-01T10:00:00Z"),
    ("effective", "DateTime", "2024-05-01"),
    ("value", "String", "x"),
    ("occurrence", "DateTime", "2024-05-01"),
)


def embed(resource: JsonObject, others: Sequence[JsonObject]) -> JsonObject:
    """Give a resource with what it refers to, of `others`, contained; so that one document is a whole sample."""
    known = {f"{other['resourceType']}/{other['id']}": other for other in others if "id" in other}
    made, wanted, held = deepcopy(resource), [resource], {}
    while wanted:
        for reference in references(wanted.pop()):
            other = known.get(reference)
            if other is not None and reference not in held and other.get("id") != resource.get("id"):
                held[reference] = deepcopy(other)
                wanted.append(other)
    for part in (made, *held.values()):
        localize(part, held)
    if held:
        made["contained"] = [without_version(part) for part in held.values()]
    return made


def without_version(resource: JsonObject) -> JsonObject:
    """Give a resource as it may be contained (dom-4)."""
    meta = {k: v for k, v in resource.get("meta", {}).items() if k not in {"versionId", "lastUpdated"}}
    return {**{k: v for k, v in resource.items() if k != "meta"}, **({"meta": meta} if meta else {})}


def references(value: Any) -> Iterator[str]:
    """Give the literal references below a value."""
    if isinstance(value, dict):
        if isinstance(value.get("reference"), str):
            yield value["reference"]
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from references(item)


def localize(value: Any, held: JsonObject) -> None:
    """Turn references to what is held into `#id`, in place of a copy of one's own."""
    if isinstance(value, dict):
        if value.get("reference") in held:
            value["reference"] = "#" + value["reference"].partition("/")[2]
        value = list(value.values())
    for item in value if isinstance(value, list) else ():
        localize(item, held)


def paths(value: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """Give every path below a value, with what is there."""
    if isinstance(value, dict):
        for key, item in value.items():
            below = f"{at}.{key}" if at else key
            yield below, item
            yield from paths(item, below)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield f"{at}[{index}]", item
            yield from paths(item, f"{at}[{index}]")


def changes(resource: JsonObject) -> Iterator[tuple[str, Change]]:
    """Give small changes of a resource, each with its name."""
    deepest = 3 if resource.get("resourceType") == "Bundle" else 99  # what an entry holds has samples of its own
    for path, value in paths(resource):
        if path.count(".") >= deepest or (path.startswith("contained[") and not path.endswith(("].subject", "].name"))):
            continue
        name = path.rpartition(".")[2]
        if path.count(".") >= deepest - 1 > 1 and name not in {"subject", "identifier", "name", "meta"}:
            continue
        yield f"without {path}", {path: None}
        if path.count(".") >= deepest - 1 > 1:
            continue
        if isinstance(value, str) and name not in {"resourceType", "id", "div", "data"}:
            yield f"{path} wrong", {path: "wrong"}
            yield f"{path} {value.upper()}", {path: value.upper()}
        if name == "reference":
            yield from ((f"{path} {other}", {path: other}) for other in REFERENCES)
        if isinstance(value, list) and value:
            yield f"{path} twice", {f"{path}[{len(value)}]": value[-1]}
            yield f"first of {path} twice", {f"{path}[{len(value)}]": value[0]}
        for choice, type_, other in CHOICES:
            if name.startswith(choice) and name != choice + type_ and name[len(choice) : len(choice) + 1].isupper():
                yield f"{choice}{type_}", {path: None, path[: -len(name)] + choice + type_: other}
    yield from mixtures(resource)
    yield from ADDED.get(str(resource.get("resourceType", "Extension")), {}).items()


#: What examples leave out and rules speak of.
ADDED: dict[str, dict[str, Change]] = {
    "Observation": {
        "a specimen that is a Patient": {"specimen": {"reference": "#patientExample"}},
        "neither members nor value": {"hasMember": None, "valueQuantity": None},
    },
    "DiagnosticReport": {
        "a performer that is a Patient": {"performer": [{"reference": "#patientExample"}]},
        "a result that is a Patient": {"result": [{"reference": "#patientExample"}]},
    },
    "Extension": {
        "a value": {"valueString": "x"},
        "parts in a part": {"extension[0].extension": [{"url": "http://example.org/x", "valueString": "x"}]},
        "parts in the last part": {"extension[1].extension": [{"url": "http://example.org/x", "valueString": "x"}]},
        "another part": {"extension[0]": {"url": "other", "valueString": "x"}},
    },
}


#: References that examples leave out.
RICHER: dict[str, JsonObject] = {
    "Observation": {"specimen": {"display": "blood"}},
    "DiagnosticReport": {"performer": [{"display": "Dr. A"}], "result": [{"display": "a result"}]},
}


def richer(profile: Profile, base: JsonObject) -> Iterator[JsonObject]:
    """Give a base, then with what examples leave out: references, and an extension's optional parts."""
    yield base
    if more := {k: v for k, v in RICHER.get(profile.type, {}).items() if k not in base}:
        yield {**base, **more}
    urls = {url for rule in profile.rules for url in re.findall(r"url = '([^']+)'", rule.at + rule.expression)}
    for url in (
        sorted(urls - {part.get("url") for part in base.get("extension", [])}) if profile.type == "Extension" else ()
    ):
        part = {**base["extension"][0], "url": url}
        yield {**base, "extension": [part, *base["extension"]]}


def mixtures(resource: JsonObject) -> Iterator[tuple[str, Change]]:
    """Give changes by which one thing has the codes of two."""
    codes = [
        (path, value) for path, value in paths(resource) if path.endswith("code.coding") and isinstance(value, list)
    ]
    for (path, value), (other, coding) in (*pairwise(codes), *((codes[0], code) for code in codes[1:12])):
        if coding != value:
            yield f"{path} with the code of {other}", {f"{path}[{len(value)}]": coding[0]}


def samples(book: RuleBook, profile: Profile, bases: Iterable[JsonObject]) -> list[JsonObject]:
    """Give samples for as many rules of a profile as can be reached from resources that pass."""
    made: list[JsonObject] = []
    failed: dict[str, tuple[int, JsonObject]] = {}
    passed: set[str] = set()
    for number, base in enumerate((r for b in bases for r in richer(profile, b)), 1):
        name = f"example {number}"
        if any(issue.refuses for issue in judge(book, profile, Sample(name, base))):
            continue
        new = [rule for rule in looked_at(book, profile, Sample(name, base)) if rule not in passed]
        made.append({"name": name, "resource": base, "passes": new})
        passed.update(new)
        wanted = {r.key.partition("/")[2] for r in profile.rules}
        for what, change in changes(base):
            if wanted <= failed.keys() and (number > 1 or all(found[0] == 1 for found in failed.values())):
                break
            note_failures(book, profile, (name, base, what, change), failed)
    return made + [failed[rule][1] for rule in sorted(failed)]


def note_failures(
    book: RuleBook,
    profile: Profile,
    tried: tuple[str, JsonObject, str, Change],
    failed: dict[str, tuple[int, JsonObject]],
) -> None:
    """Judge one change and keep it for each rule that it fails, if no other fails that rule more purely."""
    of, base, what, change = tried
    try:
        resource = changed(base, change)
    except (KeyError, IndexError, TypeError):
        return
    issues = [issue for issue in judge(book, profile, Sample(what, resource)) if issue.refuses]
    for issue in issues:
        owner, _, rule = issue.rule.partition("/")
        if owner == profile.name and (rule not in failed or len(issues) < failed[rule][0]):
            sample = {"name": f"{rule}: {what}", "of": of, "set": change, "fails": rule, "message": issue.text}
            failed[rule] = len(issues), sample


class _Flow(yaml.SafeDumper):
    """Writes resources in flow style, the rest as blocks."""


class Compact(dict):  # type: ignore[type-arg]
    """A mapping that is written on few lines."""


_Flow.add_representer(
    Compact, lambda dumper, data: dumper.represent_mapping("tag:yaml.org,2002:map", data, flow_style=True)
)


def text_of(made: Sequence[JsonObject]) -> str:
    """Give samples as the second YAML document of a rules' file."""
    compact = [{k: Compact(v) if isinstance(v, dict) else v for k, v in sample.items()} for sample in made]
    return "---\n" + yaml.dump({"samples": compact}, Dumper=_Flow, sort_keys=False, allow_unicode=True, width=130)


def add_samples(path: Path, book: RuleBook, profile: Profile, bases: Iterable[JsonObject]) -> list[str]:
    """Write samples behind a file's rules; give the rules that have none."""
    book.shapes = None
    made = samples(book, profile, bases)
    rules = path.read_text(encoding="utf-8").split("\n---\n")[0].rstrip("\n") + "\n"
    path.write_text(rules + (text_of(made) if made else ""), encoding="utf-8")
    failing = {sample.get("fails") for sample in made}
    return [rule.key for rule in profile.rules if rule.key.partition("/")[2] not in failing]
