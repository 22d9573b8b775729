"""The verdict on one resource: base R4 validity and the rules of its profiles.

`RuleBook.examine` is a function of the resource's content and of what its references mean, nothing else. The order of what
it finds: base validity (`core/validity.py`), invariants of the specification, extensions, then the profiles.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from cachetools import LRUCache

from cgm_proxy.core import fhirpath
from cgm_proxy.core.analysis import Analysis, analyse
from cgm_proxy.core.errors import Issue, Severity
from cgm_proxy.core.fhirpath import FhirPathError, data_of, expression
from cgm_proxy.core.model import CORE, Model
from cgm_proxy.core.primitives import show
from cgm_proxy.core.rulebook import Addition, Profile, Rule, RulesError, merge, profile_files, read
from cgm_proxy.core.scope import Json, Resolve, Scope, nowhere
from cgm_proxy.core.shapes import LARGEST_SHAPE, Leaves, Shapes, encode, free_leaves, shape
from cgm_proxy.core.validity import NATIVE, Findings, Node, last, walk

__all__ = ["Examination", "Profile", "Resolve", "Rule", "RuleBook", "RulesError"]

#: Base faults after which a FHIRPath engine would read nonsense: the profile's rules wait until these are mended.
SHAPE = frozenset({"r4-json", "r4-resource-type", "r4-depth"})
#: Dialects that every other one builds on.
COMMON = ("us-core",)


class RuleBook:
    """The profiles of every dialect with their rules, and R4's model."""

    def __init__(
        self, model: Model, profiles: Iterable[Profile], codes: Mapping[str, Sequence[Path]] | None = None
    ) -> None:
        self.shapes: Shapes | None = Shapes()
        self._whens: dict[tuple[str, str], tuple[list[Profile], list[str]]] = {}
        self._implied: LRUCache[Any, tuple[str, ...]] = LRUCache(4096)
        self._leaves: LRUCache[Any, Leaves] = LRUCache(1024)
        common = [path for dialect in COMMON for path in (codes or {}).get(dialect, ())]
        self._model = model.with_codes(*common)
        self._models = {d: self._model.with_codes(*paths) for d, paths in (codes or {}).items() if d not in COMMON}
        self._all = {(profile.url, profile.dialect): profile for profile in profiles}
        self.profiles: Mapping[str, Profile] = {
            **{profile.url: profile for profile in self._all.values()},
            **{f"{profile.url}|{profile.dialect}": profile for profile in self._all.values()},
        }

    @classmethod
    def load(cls, *directories: Path) -> "RuleBook":
        """Read the shipped rules (the first directory, which has `r4/`) and a hospital's; raise RulesError."""
        shipped, *_ = directories
        if not (shipped / "r4" / "types.ndjson").exists():
            raise RulesError(f"{shipped}: has no r4/types.ndjson; give the shipped rules first")
        model = Model(shipped / "r4")
        profiles: dict[tuple[str, str], Profile] = {}
        additions: list[Addition] = []
        codes: dict[str, list[Path]] = {}
        for path in (path for directory in directories for path in profile_files(directory)):
            made = read(path)
            if isinstance(made, Addition):
                additions.append(made)
                continue
            profiles[made.url, made.dialect] = made
            beside = path.with_name("codes.ndjson")
            if beside.exists() and beside not in codes.setdefault(made.dialect, []):
                codes[made.dialect].append(beside)
        merge(profiles, additions)
        return cls(model, profiles.values(), codes)

    def model(self, dialect: str | None) -> Model:
        """Give R4's model with a dialect's own code systems and value sets."""
        return self._models.get(dialect or "", self._model)

    def profile(self, url: str, dialect: str | None = None) -> Profile | None:
        """Give a profile by canonical, of a dialect if one is named, or None if it is not known."""
        plain, _, version = url.partition("|")
        if dialect is None:
            return self.profiles.get(url)
        if version and version not in {p.dialect for (u, _), p in self._all.items() if u == plain}:
            return None
        for of in (dialect, *COMMON):
            if found := self._all.get((plain, of)):
                return found
        return None

    def examine(
        self,
        resource: Json,
        profiles: Sequence[str],
        resolve: Resolve = nowhere,
        *,
        dialect: str | None = None,
        encoded: bytes = b"",
    ) -> tuple[Issue, ...]:
        """Judge a resource by base R4, by what it claims and by `profiles`; () when it is valid.

        `dialect` says which version of a canonical is meant where several dialects share one; without it the profile's own
        (`url|dialect`, or the newest). `resolve` finds what lies outside the resource. A shape that is known costs
        microseconds (`core/shapes.py`); `encoded`, the resource's JSON where the caller has it, tells early that one is too
        large to be remembered.
        """
        of = dialect or next((found.dialect for url in profiles if (found := self.profile(url))), None)
        if self.shapes is None or resource.get("resourceType") == "Bundle" or len(encoded) > LARGEST_SHAPE:
            return self._plain(resource, profiles, resolve, of)
        demanded = tuple(profiles)
        skeleton, stand_in = shape(resource, self._free_leaves(resource, demanded, of))
        if len(skeleton) > LARGEST_SHAPE:
            return self._plain(resource, profiles, resolve, of)
        key = (of, demanded, skeleton)
        known = self.shapes.recall(key, resolve)
        return known if known is not None else self._learn(key, resource, stand_in, resolve)

    def _plain(
        self, resource: Json, profiles: Sequence[str], resolve: Resolve, dialect: str | None
    ) -> tuple[Issue, ...]:
        found = Examination(self, Scope(resource, resolve), dialect).examine(resource, profiles)
        return tuple(dict.fromkeys(found))

    def _learn(self, key: Any, resource: Json, stand_in: Json, resolve: Resolve) -> tuple[Issue, ...]:
        dialect, profiles, _ = key
        looked_up: dict[str, Json | None] = {}

        def noting(reference: str) -> Json | None:
            looked_up[reference] = found = resolve(reference)
            return found

        issues = self._plain(resource, profiles, noting, dialect)
        if self.shapes is not None and (not issues or self._plain(stand_in, profiles, noting, dialect) == issues):
            self.shapes.remember(key, issues, looked_up.items())
        return issues

    def _free_leaves(self, resource: Json, demanded: tuple[str, ...], dialect: str | None) -> Leaves:
        """Give the leaves that no rule of the profiles, and no invariant, reads."""
        meta = resource.get("meta")
        claims = meta.get("profile") if type(meta) is dict else None
        claimed = tuple(claims) if type(claims) is list and all(type(c) is str for c in claims) else ()
        key = (resource.get("resourceType"), dialect, demanded, claimed)
        if (claims is not None and not claimed) or type(key[0]) is not str or "contained" in resource:
            return ()
        leaves = self._leaves.get(key)
        if leaves is None:
            profiles = [found for url in (*demanded, *claimed) if (found := self.profile(url, dialect))]
            leaves = free_leaves(key[0], self._analyses(key[0], profiles, self.model(dialect)))
            self._leaves[key] = leaves
        return leaves

    def _analyses(self, type_: str, profiles: Iterable[Profile], model: Model) -> Iterator[Analysis]:
        """Analyse all that is evaluated on a resource of a type or on what is above its free leaves."""
        for name in (type_, "Quantity", "Identifier"):
            known = model.type(name)
            for rule in known.invariants if known else ():
                if rule.key not in NATIVE:
                    yield analyse(model, rule.expression, name)[0]
        beyond = (p for p in self._all.values() if p.type == "Extension")
        for profile in (*profiles, *beyond):
            for written in profile.rules:
                if profile.type != "Extension" or "%" in written.expression + written.at:
                    yield analyse(model, written.expression, profile.type, written.at)[0]

    def implied(self, resource: Json, dialect: str) -> tuple[str, ...]:
        """Give the profiles of a dialect whose `when` holds: what a resource is judged by when it claims nothing.

        Remembered by the members that the `when` of these profiles may read (`code`), so that a reading costs microseconds.
        """
        type_ = resource.get("resourceType")
        if type(type_) is not str or type_ not in self._model.resources:
            return ()
        if (dialect, type_) not in self._whens:
            self._whens[dialect, type_] = self._when(dialect, type_)
        profiles, members = self._whens[dialect, type_]
        read = {member: resource[member] for member in members if member in resource}
        key = (dialect, type_, encode(read))
        found = self._implied.get(key)
        if found is None:
            made = {"resourceType": type_, **read}
            found = tuple(profile.url for profile in profiles if _holds(profile.when or "", made))
            if len(key[2]) < LARGEST_SHAPE:
                self._implied[key] = found
        return found

    def _when(self, dialect: str, type_: str) -> tuple[list[Profile], list[str]]:
        """Give a type's profiles with `when`, and the type's members that a `when` names anywhere."""
        profiles = [p for p in self._all.values() if (p.dialect, p.type) == (dialect, type_) and p.when]
        named = {name for p in profiles for name in re.findall(r"\w+", p.when or "")}
        known = self._model.type(type_)
        return profiles, sorted(m for m, (e, _) in (known.members if known else {}).items() if _plain(e.name) in named)

    def made_of(self, profile: str) -> frozenset[str]:
        """Give the profiles whose resources belong to a profile: who orders it takes them too."""
        found = self.profiles.get(profile)
        return found.made_of if found else frozenset()


def _plain(name: str) -> str:
    return name.removesuffix("[x]")


def _holds(when: str, resource: Json) -> bool:
    try:
        return expression(when).holds(resource, {}, {})
    except FhirPathError:
        return False  # a resource of another shape than the expression expects; base validity says so


class Examination:
    """One resource's examination: what was already found about each resource, so that nothing is judged twice."""

    def __init__(self, book: RuleBook, scope: Scope, dialect: str | None) -> None:
        self.book = book
        self.model = book.model(dialect)
        self.scope = scope
        self.dialect = dialect
        self._conforms: dict[tuple[int, str], bool] = {}
        self._kept: list[Json] = []
        self._within: list[Json] = [scope.root]
        self._functions = fhirpath.functions(self._resolve, self._target_type, self._conforms_to, self._member_of)

    def examine(self, resource: Json, profiles: Sequence[str]) -> Iterator[Issue]:
        """Judge a resource by base R4, by the profiles it and its parts claim, and by `profiles`."""
        found = walk(self.model, self.scope, resource, str(resource.get("resourceType", "resource")))
        yield from found.issues
        if any(issue.rule in SHAPE for issue in found.issues):
            return
        yield from self._invariants(found)
        for node in found.extensions:
            yield from self._extension(node)
        for node in found.resources:
            yield from self._claims(node, () if node.data is not resource else profiles)

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
        if profile and profile.type == "Extension":
            yield from self.judge(profile, node.data, node.path, node.resource)

    def _claims(self, node: Node, demanded: Sequence[str]) -> Iterator[Issue]:
        meta = node.data.get("meta")
        claims = meta.get("profile") if isinstance(meta, dict) else None
        claimed = [url for url in claims if isinstance(url, str)] if isinstance(claims, list) else []
        for url in dict.fromkeys((*(u.split("|")[0] for u in demanded), *claimed)):
            profile = self.book.profile(url, self.dialect) if self.dialect else self.book.profile(url)
            if profile is not None:
                yield from self.judge(profile, node.data, node.path, node.data)

    def judge(self, profile: Profile, data: Json, path: str, within: Json) -> Iterator[Issue]:
        """Evaluate a profile's rules on a resource or extension."""
        if profile.type not in {"Extension", data.get("resourceType")}:
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
        if rule.shows:
            what = " and ".join(show(item) for item in shown[:3]) if shown else "missing"
            text = f"{last(at)} is {what}; {profile.name} wants {rule.text}"
        else:
            text = f"{last(where)}: {profile.name} wants {rule.text}"
        return Issue(rule.key, text, at if shown else where, cast("Severity", rule.severity))

    def _shown(self, rule: Rule, node: Any) -> list[Any]:
        return expression(rule.shows).nodes(node, self._functions, {}) if rule.shows else []

    def _variables(self, resource: Json) -> Json:
        return {"resource": resource, "rootResource": self.scope.home(resource)}

    def _resolve(self, item: Any) -> Json | None:
        text = item.get("reference") if isinstance(item, dict) else item
        return self.scope.find(text, self._within[-1]) if isinstance(text, str) else None

    def _target_type(self, item: Any) -> str | None:
        return self.scope.target_type(item, self._within[-1])

    def _conforms_to(self, item: Any, url: str) -> bool:
        if not isinstance(item, dict):
            return False
        key = (id(item), url)
        if key not in self._conforms:
            self._conforms[key] = True  # a cycle of references does not refuse itself
            self._kept.append(item)  # so that the id stays this resource's
            self._conforms[key] = not any(issue.refuses for issue in self._examine_part(item, url))
        return self._conforms[key]

    def _examine_part(self, item: Json, url: str) -> Iterator[Issue]:
        if url.startswith(CORE) and item.get("resourceType") != url.removeprefix(CORE):
            yield Issue("r4-type", f"is a {item.get('resourceType')}", None)
        self._within.append(item)
        try:
            yield from self.examine(item, [url])
        finally:
            self._within.pop()

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
