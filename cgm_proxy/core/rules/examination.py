"""The examination of one resource: base validity, then invariants, extensions and the rules of its profiles, as FHIRPath.

`rulebook.py` decides which profiles apply and caches the verdicts; this module computes them.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast
from weakref import WeakMethod

from cgm_proxy.core.issues import MOST_ISSUES, Issue, Severity
from cgm_proxy.core.json_values import JsonObject, objects
from cgm_proxy.core.r4.extensions import misplaced
from cgm_proxy.core.r4.findings import Findings, Node, relative_path
from cgm_proxy.core.r4.model import CORE, Model
from cgm_proxy.core.r4.primitives import show
from cgm_proxy.core.r4.reference_scope import Scope
from cgm_proxy.core.r4.validator import do_not_pause, validate
from cgm_proxy.core.rules import fhirpath
from cgm_proxy.core.rules.fhirpath import Expressions, FhirPathError, data_of
from cgm_proxy.core.rules.rule_files import Profile, Rule

#: Base faults that make FHIRPath read nonsense. A resource that has one is not checked any further.
MALFORMED = frozenset({"r4-json", "r4-resource-type", "r4-depth"})


class ProfileSource(Protocol):
    """The part of the rules that an examination uses."""

    expressions: Expressions

    def model(self, dialect: str | None) -> Model:
        """Return the model of R4 with the codes of a dialect."""

    def profile(self, url: str, dialect: str | None = None) -> Profile | None:
        """Return a profile by its canonical."""


@dataclass(frozen=True, slots=True)
class BaseVerdict:
    """The verdict of base R4 on a resource, and the resources in it (itself first) whose profiles are checked next."""

    resource: JsonObject
    issues: tuple[Issue, ...]
    nodes: list[Node]
    plain: "Examination | None"
    """The examination of the resource without companions, if it has any: its profiles are checked there."""


class Examination:
    """Examines a resource together with the resources that it refers to, each of them once."""

    def __init__(
        self,
        book: ProfileSource,
        scope: Scope,
        dialect: str | None,
        between: Callable[[], None] = do_not_pause,
    ) -> None:
        self.book = book
        self._between = between
        self.model = book.model(dialect)
        self.scope = scope
        self.dialect = dialect
        self._expressions = book.expressions
        #: Whether a resource, by its id(), conforms to a profile.
        self._conforms: dict[tuple[int, str], bool] = {}
        #: Keeps those resources alive, so that no other object gets the same id().
        self._examined: list[JsonObject] = []
        self._base_verdicts: dict[int, BaseVerdict] = {}
        #: The paths of the objects in the resource that was searched last.
        self._paths: tuple[Any, dict[int, str]] = (None, {})
        #: The resources that are being examined, the innermost last: references are resolved from there.
        self._within: list[JsonObject] = [scope.root]
        self._functions = fhirpath.functions(
            _weak(self._resolve),
            _weak(self._target_type),
            _weak(self._conforms_to),
            _weak(self._member_of),
            _weak(self._known_codes),
        )

    def examine(self, resource: JsonObject, profiles: Sequence[str]) -> Iterator[Issue]:
        """Judge a resource by base R4, by the profiles it and its parts claim, and by `profiles`."""
        base = self._base_verdicts.get(id(resource)) or self._base_verdict(resource)
        yield from base.issues
        for node in base.nodes:
            demanded = profiles if node is base.nodes[0] else ()
            yield from (base.plain or self)._profiles(node, demanded)  # noqa: SLF001 -- the same class

    def _base_verdict(self, resource: JsonObject) -> "BaseVerdict":
        path = str(resource.get("resourceType", "resource"))
        found = validate(self.model, self.scope, resource, path, self._between)
        issues = list(found.issues)
        nodes: list[Node] = []
        examination, plain = self, None
        if len(issues) <= MOST_ISSUES and not any(issue.rule in MALFORMED for issue in issues):
            for node in found.extensions:
                issues.extend(self._extension(node))
            if (root := without_companions(resource)) is not resource:
                examination = plain = Examination(self.book, self.scope.with_root(root), self.dialect, self._between)
                found = validate(self.model, examination.scope, root, path, self._between)
            issues.extend(examination._invariants(found))
            nodes = found.resources
        verdict = BaseVerdict(resource, tuple(issues), nodes, plain)
        self._base_verdicts[id(resource)] = verdict
        return verdict

    def _invariants(self, found: Findings) -> Iterator[Issue]:
        for node, rule in found.invariants:
            self._between()
            self._within.append(node.resource)
            start = fhirpath.node_at(node.data, node.type.name, node.path)
            variables = self._variables(node.resource)
            try:
                holds = self._expressions(rule.expression).holds(start, self._functions, variables)
            except FhirPathError:
                holds = False
            finally:
                self._within.pop()
            if not holds:
                yield Issue(rule.key, f"{relative_path(node.path)}: {rule.human} ({rule.key})", node.path)

    def _extension(self, node: Node) -> Iterator[Issue]:
        url = node.data.get("url")
        profile = self.book.profile(url, self.dialect or "") if isinstance(url, str) else None
        if profile and profile.type != "Extension":
            text = f"{relative_path(node.path)}.url is {show(url)}, a profile and not an extension; give the URL of an extension"
            yield Issue("r4-extension-context", text, f"{node.path}.url")
        elif profile:
            if fault := misplaced(str(url), profile.context, node.contexts):
                yield Issue(fault[0], f"{relative_path(node.path)}.url {fault[2]}", f"{node.path}.url")
            if node.modifier:
                text = (
                    f"{relative_path(node.path)}.url is {show(url)}, not a modifier extension; move it to `extension`"
                )
                yield Issue("r4-extension-modifier", text, f"{node.path}.url")
            yield from self.judge(profile, without_companions(node.data), node.path, node.resource)

    def _profiles(self, node: Node, demanded: Sequence[str]) -> Iterator[Issue]:
        """Judge a resource by the demanded profiles and by those that it claims."""
        meta = node.data.get("meta")
        claims = meta.get("profile") if isinstance(meta, dict) else None
        claimed = [url for url in claims if isinstance(url, str)] if isinstance(claims, list) else []
        for url in dict.fromkeys((*(u.split("|")[0] for u in demanded), *claimed)):
            profile = self.book.profile(url, self.dialect) if self.dialect else self.book.profile(url)
            if profile is not None:
                yield from self.judge(profile, node.data, node.path, node.data)
            elif url.startswith(CORE) and self.model.type(url.removeprefix(CORE)) not in (None, node.type):
                text = f"{relative_path(node.path)}.meta.profile is {show(url)}, a profile of another resource type; leave it out"
                yield Issue("r4-profile", text, f"{node.path}.meta.profile")

    def judge(self, profile: Profile, data: JsonObject, path: str, within: JsonObject) -> Iterator[Issue]:
        """Evaluate the rules of a profile on a resource, or on an extension `within` one."""
        if profile.type not in ("Extension", data.get("resourceType")):
            text = (
                f"{relative_path(path)} is a {data.get('resourceType')}; {profile.name} is a profile of {profile.type}"
            )
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
        """Return the nodes that a rule's `at` selects."""
        return self._expressions(path).nodes(root, self._functions, self._variables(self._within[-1]))

    def _rule(self, profile: Profile, rule: Rule, selected: dict[str, list[Any]], path: str) -> Iterator[Issue]:
        variables = self._variables(self._within[-1])
        root = selected[""][0]
        try:
            if rule.at not in selected:
                selected[rule.at] = self._expressions(rule.at).nodes(root, self._functions, variables)
            for node in selected[rule.at]:
                self._between()
                if not self._expressions(rule.expression).holds(node, self._functions, variables):
                    yield self._issue(profile, rule, root, node, path)
        except FhirPathError as error:
            text = f"{relative_path(path)}: {profile.name} requires {rule.text}; this could not be evaluated ({str(error)[:80]})"
            yield Issue(rule.key, text, path, cast("Severity", rule.severity))

    def _issue(self, profile: Profile, rule: Rule, root: Any, node: Any, path: str) -> Issue:
        """Return the issue of a rule that a node breaks; it quotes the value that the rule `shows`, if that is no object."""
        data = data_of(node)
        where = path + self._locate(data_of(root), data) if isinstance(data, dict) else path
        shown = self._expressions(rule.shows).nodes(node, self._functions, {}) if rule.shows else []
        values = [data_of(item) for item in shown]
        simple = re.fullmatch(r"\w+", rule.shows)
        at = f"{where}.{rule.shows}" if simple else where
        if rule.shows and not any(isinstance(value, dict) for value in values):
            found = " and ".join(show(value) for value in values[:3]) if values else "missing"
            text = f"{relative_path(at)} is {found}; {profile.name} requires {rule.text}"
        else:
            text = f"{relative_path(at if values else where)}: {profile.name} requires {rule.text}"
        return Issue(rule.key, text, at if values else where, cast("Severity", rule.severity))

    def _locate(self, root: Any, target: JsonObject) -> str:
        """Return the path of an object in another (`.component[1].valueQuantity`); "" if it is not there."""
        if self._paths[0] is not root:
            self._paths = root, object_paths(root)
        return self._paths[1].get(id(target), "")

    def _variables(self, resource: JsonObject) -> JsonObject:
        return {"resource": resource, "rootResource": self.scope.container(resource)}

    def _resolve(self, item: Any) -> JsonObject | None:
        self._between()
        text = item.get("reference") if isinstance(item, dict) else item
        return self.scope.find(text, self._within[-1]) if isinstance(text, str) else None

    def _target_type(self, item: Any) -> str | None:
        return self.scope.target_type(item, self._within[-1], self.model)

    def _conforms_to(self, item: Any, url: str) -> bool:
        if not isinstance(item, dict):
            return False
        key = (id(item), url)
        if key not in self._conforms:
            self._conforms[key] = True  # so that resources that refer to one another in a circle can conform
            self._examined.append(item)
            self._conforms[key] = not any(issue.refuses for issue in self._issues_against(item, url))
        return self._conforms[key]

    def _issues_against(self, item: JsonObject, url: str) -> Iterator[Issue]:
        """Examine another resource by a profile, the rules of its code first: these fail most often, and one issue suffices."""
        if url.startswith(CORE) and item.get("resourceType") != url.removeprefix(CORE):
            yield Issue("r4-type", f"is a {item.get('resourceType')}", None)
        self._within.append(item)
        try:
            yield from self._code_issues(item, self.book.profile(url, self.dialect))
            yield from self.examine(item, [url])
        finally:
            self._within.pop()

    def _code_issues(self, item: JsonObject, profile: Profile | None) -> Iterator[Issue]:
        if profile is None or item.get("resourceType") != profile.type or not isinstance(item.get("code"), dict):
            return
        if any(key.startswith("_") for key in item):
            return
        selected = {"": [fhirpath.node_at(item, profile.type, profile.type)]}
        for rule in profile.rules:
            if rule.at == "code":
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
            return True  # a Quantity without a code: the binding has nothing to refuse
        codings = item.get("coding", [item] if "code" in item or "system" in item else [])
        listed = [c for c in codings if isinstance(c, dict)]
        return any(_in(allowed, c.get("system"), c.get("code")) for c in listed)


def _weak(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that calls a method without keeping its object alive.

    An object that kept itself alive would keep the resources that it examined until a full garbage collection.
    """
    living = WeakMethod(method)

    def call(*arguments: Any) -> Any:
        bound = living()
        return bound(*arguments) if bound else None

    return call


def _in(allowed: Mapping[str, frozenset[str] | None], system: Any, code: Any) -> bool:
    if system not in allowed:
        return False
    codes = allowed[system]
    return codes is None or code in codes


def without_companions(value: Any) -> Any:
    """Return a resource without the `_name` members whose `name` has a value; the same object if there are none.

    fhirpathpy takes the id or extensions of a primitive for a second item. Without a value they are the element, and stay.
    """
    if isinstance(value, dict):
        plain = {k: without_companions(v) for k, v in value.items() if not (k.startswith("_") and k[1:] in value)}
        same = len(plain) == len(value) and all(plain[k] is v for k, v in value.items())
        return value if same else plain
    if isinstance(value, list):
        items = [without_companions(item) for item in value]
        return value if all(a is b for a, b in zip(items, value, strict=True)) else items
    return value


def object_paths(root: Any) -> dict[int, str]:
    """Return the paths of all objects in a value, by their id()."""
    paths: dict[int, str] = {}
    remaining: list[tuple[str, Any]] = [("", root)]
    while remaining:
        path, value = remaining.pop()
        if isinstance(value, dict):
            paths[id(value)] = path
            remaining += ((f"{path}.{key}", item) for key, item in value.items() if isinstance(item, dict | list))
        elif isinstance(value, list):
            remaining += ((f"{path}[{index}]", item) for index, item in enumerate(value))
    return paths
