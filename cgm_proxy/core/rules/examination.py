"""One resource's examination: base validity, then invariants, extensions and the rules of its profiles, as FHIRPath.

`core/rules.py` remembers what comes out; here is how it comes about.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

from cgm_proxy.core.issues import Issue, Severity
from cgm_proxy.core.json_values import JsonObject, objects
from cgm_proxy.core.r4.extensions import misplaced
from cgm_proxy.core.r4.findings import Findings, Node, last
from cgm_proxy.core.r4.model import CORE, Model
from cgm_proxy.core.r4.primitives import show
from cgm_proxy.core.r4.reference_scope import Scope
from cgm_proxy.core.r4.validator import walk
from cgm_proxy.core.rules import fhirpath
from cgm_proxy.core.rules.fhirpath import FhirPathError, data_of, expression
from cgm_proxy.core.rules.rule_files import Profile, Rule

#: Base faults after which a FHIRPath engine would read nonsense: the profile's rules wait until these are mended.
SHAPE = frozenset({"r4-json", "r4-resource-type", "r4-depth"})


class Book(Protocol):
    """What an examination asks of the rules."""

    def model(self, dialect: str | None) -> Model:
        """Give R4's model with a dialect's codes."""

    def profile(self, url: str, dialect: str | None = None) -> Profile | None:
        """Give a profile by canonical."""


@dataclass(frozen=True, slots=True)
class Base:
    """What base R4 says of a resource, and the resources in it (itself first) whose profiles come next."""

    resource: JsonObject
    issues: tuple[Issue, ...]
    nodes: list[Node]
    by: "Examination"


class Examination:
    """One resource's examination: what was already found about each resource, so that nothing is judged twice."""

    def __init__(self, book: Book, scope: Scope, dialect: str | None) -> None:
        self.book = book
        self.model = book.model(dialect)
        self.scope = scope
        self.dialect = dialect
        self._conforms: dict[tuple[int, str], bool] = {}
        self._kept: list[JsonObject] = []
        self._bases: dict[int, Base] = {}
        self._within: list[JsonObject] = [scope.root]
        self._functions = fhirpath.functions(
            self._resolve, self._target_type, self._conforms_to, self._member_of, self._known_codes
        )

    def examine(self, resource: JsonObject, profiles: Sequence[str]) -> Iterator[Issue]:
        """Judge a resource by base R4, by the profiles it and its parts claim, and by `profiles`."""
        base = self._bases.get(id(resource)) or self._base(resource)
        yield from base.issues
        for node in base.nodes:
            yield from base.by._claims(node, profiles if node is base.nodes[0] else ())  # noqa: SLF001 -- one of its kind

    def _base(self, resource: JsonObject) -> "Base":
        """Judge a resource by base R4, once however many profiles ask."""
        path = str(resource.get("resourceType", "resource"))
        found = walk(self.model, self.scope, resource, path)
        issues = list(found.issues)
        nodes: list[Node] = []
        by = self
        if not any(issue.rule in SHAPE for issue in issues):
            for node in found.extensions:
                issues.extend(self._extension(node))
            if (plain := without_companions(resource)) is not resource:
                by = Examination(self.book, self.scope.of(plain), self.dialect)
                found = walk(self.model, by.scope, plain, path)
            issues.extend(by._invariants(found))
            nodes = found.resources
        made = self._bases[id(resource)] = Base(resource, tuple(issues), nodes, by)
        return made

    def _invariants(self, found: Findings) -> Iterator[Issue]:
        for node, rule in found.invariants:
            self._within.append(node.resource)
            made = fhirpath.node_at(node.data, node.type.name, node.path)
            try:
                holds = expression(rule.expression).holds(made, self._functions, self._variables(node.resource))
            except FhirPathError:
                holds = False
            finally:
                self._within.pop()
            if not holds:
                yield Issue(rule.key, f"{last(node.path)}: {rule.human} ({rule.key})", node.path)

    def _extension(self, node: Node) -> Iterator[Issue]:
        url = node.data.get("url")
        profile = self.book.profile(url, self.dialect or "") if isinstance(url, str) else None
        if profile and profile.type != "Extension":
            text = f"{last(node.path)}.url is {show(url)}, which is a profile and no extension; give the URL of an extension"
            yield Issue("r4-extension-context", text, f"{node.path}.url")
        elif profile:
            if fault := misplaced(str(url), profile.context, node.places):
                yield Issue(fault[0], f"{last(node.path)}.url {fault[2]}", f"{node.path}.url")
            if node.modifier:
                text = (
                    f"{last(node.path)}.url is {show(url)}, which is no modifier extension; put it among the extensions"
                )
                yield Issue("r4-extension-modifier", text, f"{node.path}.url")
            yield from self.judge(profile, without_companions(node.data), node.path, node.resource)

    def _claims(self, node: Node, demanded: Sequence[str]) -> Iterator[Issue]:
        meta = node.data.get("meta")
        claims = meta.get("profile") if isinstance(meta, dict) else None
        claimed = [url for url in claims if isinstance(url, str)] if isinstance(claims, list) else []
        for url in dict.fromkeys((*(u.split("|")[0] for u in demanded), *claimed)):
            profile = self.book.profile(url, self.dialect) if self.dialect else self.book.profile(url)
            if profile is not None:
                yield from self.judge(profile, node.data, node.path, node.data)
            elif url.startswith(CORE) and self.model.type(url.removeprefix(CORE)) not in (None, node.type):
                text = f"{last(node.path)}.meta.profile is {show(url)}, which is for other resources; leave it out"
                yield Issue("r4-profile", text, f"{node.path}.meta.profile")

    def judge(self, profile: Profile, data: JsonObject, path: str, within: JsonObject) -> Iterator[Issue]:
        """Evaluate a profile's rules on a resource or extension."""
        if profile.type not in ("Extension", data.get("resourceType")):
            text = f"{last(path)} is a {data.get('resourceType')}; {profile.name} is a profile of {profile.type}"
            yield Issue(f"{profile.name}/type", text, path)
            return
        root = fhirpath.node_at(data, profile.type, path)
        selected: dict[str, list[Any]] = {"": [root]}
        self._within.append(within)
        try:
            for rule in profile.rules:
                yield from self._rule(profile, rule, selected, path)
        finally:
            self._within.pop()

    def select(self, path: str, root: Any) -> list[Any]:
        """Give the nodes that a rule's `at` selects."""
        return expression(path).nodes(root, self._functions, self._variables(self._within[-1]))

    def _rule(self, profile: Profile, rule: Rule, selected: dict[str, list[Any]], path: str) -> Iterator[Issue]:
        variables = self._variables(self._within[-1])
        root = selected[""][0]
        try:
            if rule.at not in selected:
                selected[rule.at] = expression(rule.at).nodes(root, self._functions, variables)
            for node in selected[rule.at]:
                if not expression(rule.expression).holds(node, self._functions, variables):
                    yield self._issue(profile, rule, root, node, path)
        except FhirPathError as error:
            text = f"{last(path)}: {profile.name} wants {rule.text}; this could not be evaluated ({str(error)[:80]})"
            yield Issue(rule.key, text, path, cast("Severity", rule.severity))

    def _issue(self, profile: Profile, rule: Rule, root: Any, node: Any, path: str) -> Issue:
        data = data_of(node)
        where = path + locate(data_of(root), data) if isinstance(data, dict) else path
        shown = [data_of(item) for item in self._shown(rule, node)]
        simple = re.fullmatch(r"\w+", rule.shows)
        at = f"{where}.{rule.shows}" if simple else where
        if rule.shows and not any(isinstance(item, dict) for item in shown):
            what = " and ".join(show(item) for item in shown[:3]) if shown else "missing"
            text = f"{last(at)} is {what}; {profile.name} wants {rule.text}"
        else:
            text = f"{last(at if shown else where)}: {profile.name} wants {rule.text}"
        return Issue(rule.key, text, at if shown else where, cast("Severity", rule.severity))

    def _shown(self, rule: Rule, node: Any) -> list[Any]:
        return expression(rule.shows).nodes(node, self._functions, {}) if rule.shows else []

    def _variables(self, resource: JsonObject) -> JsonObject:
        return {"resource": resource, "rootResource": self.scope.home(resource)}

    def _resolve(self, item: Any) -> JsonObject | None:
        text = item.get("reference") if isinstance(item, dict) else item
        return self.scope.find(text, self._within[-1]) if isinstance(text, str) else None

    def _target_type(self, item: Any) -> str | None:
        return self.scope.target_type(item, self._within[-1], self.model)

    def _conforms_to(self, item: Any, url: str) -> bool:
        if not isinstance(item, dict):
            return False
        key = (id(item), url)
        if key not in self._conforms:
            self._conforms[key] = True  # a cycle of references does not refuse itself
            self._kept.append(item)  # so that the id stays this resource's
            self._conforms[key] = not any(issue.refuses for issue in self._examine_part(item, url))
        return self._conforms[key]

    def _examine_part(self, item: JsonObject, url: str) -> Iterator[Issue]:
        if url.startswith(CORE) and item.get("resourceType") != url.removeprefix(CORE):
            yield Issue("r4-type", f"is a {item.get('resourceType')}", None)
        self._within.append(item)
        try:
            yield from self._by_code(item, url)
            yield from self.examine(item, [url])
        finally:
            self._within.pop()

    def _by_code(self, item: JsonObject, url: str) -> Iterator[Issue]:
        """Ask first for the code, by which most of a submission's other resources fail: whoever asks stops at one issue."""
        profile = self.book.profile(url, self.dialect)
        if profile is None or item.get("resourceType") != profile.type or not isinstance(item.get("code"), dict):
            return
        selected = {"": [fhirpath.node_at(item, profile.type, profile.type)]}
        for rule in profile.rules:
            if rule.at == "code" and not any(key.startswith("_") for key in item):
                yield from self._rule(profile, rule, selected, profile.type)

    def _known_codes(self, item: Any) -> bool:
        """Whether no coding has a code that its code system lacks."""
        codings = objects(item.get("coding")) if isinstance(item, dict) else []
        return not any(self.model.has_code(coding) is False for coding in codings)

    def _member_of(self, item: Any, url: str) -> bool:
        allowed = self.model.value_set(url)
        if allowed is None:
            return True
        if isinstance(item, str):
            return any(codes is None or item in codes for codes in allowed.values())
        if not isinstance(item, dict):
            return False
        if "code" not in item and "coding" not in item and ("value" in item or "unit" in item):
            return True  # a Quantity without a code has nothing that a binding could refuse
        codings = item.get("coding", [item] if "code" in item or "system" in item else [])
        listed = [c for c in codings if isinstance(c, dict)]
        return any(_in(allowed, c.get("system"), c.get("code")) for c in listed)


def _in(allowed: Mapping[str, frozenset[str] | None], system: Any, code: Any) -> bool:
    if system not in allowed:
        return False
    codes = allowed[system]
    return codes is None or code in codes


def without_companions(value: Any) -> Any:
    """Give a resource without the `_name` members whose `name` has a value; itself if there are none.

    fhirpathpy takes an id or extension beside a value for a second item. One without a value stays: it is the element.
    """
    if isinstance(value, dict):
        plain = {k: without_companions(v) for k, v in value.items() if not (k.startswith("_") and k[1:] in value)}
        same = len(plain) == len(value) and all(plain[k] is v for k, v in value.items())
        return value if same else plain
    if isinstance(value, list):
        items = [without_companions(item) for item in value]
        return value if all(a is b for a, b in zip(items, value, strict=True)) else items
    return value


def locate(root: Any, wanted: Any, path: str = "") -> str:
    """Give the path of an object inside another (`.component[1].valueQuantity`), found by identity; "" if not there."""
    if root is wanted:
        return path
    steps: Iterable[tuple[str, Any]] = ()
    if isinstance(root, dict):
        steps = ((f"{path}.{key}", value) for key, value in root.items())
    elif isinstance(root, list):
        steps = ((f"{path}[{index}]", value) for index, value in enumerate(root))
    for at, value in steps:
        if value is wanted:
            return at
        if isinstance(value, dict | list) and (found := locate(value, wanted, at)):
            return found
    return ""
