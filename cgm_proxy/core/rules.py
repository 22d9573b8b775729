"""The verdict on one resource: base R4 validity and the rules of its profiles.

`RuleBook.examine` is a function of the resource's content and of what its references mean, nothing else. The order of what
it finds: base validity (`core/validity.py`), invariants of the specification, extensions, then the profiles.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from cgm_proxy.core import fhirpath
from cgm_proxy.core.errors import Issue, Severity
from cgm_proxy.core.fhirpath import FhirPathError, data_of, expression
from cgm_proxy.core.model import CORE, Model
from cgm_proxy.core.primitives import show
from cgm_proxy.core.rulebook import Addition, Profile, Rule, RulesError, merge, profile_files, read
from cgm_proxy.core.scope import Json, Resolve, Scope, nowhere
from cgm_proxy.core.validity import Findings, Node, last, walk

__all__ = ["Examination", "Profile", "Resolve", "Rule", "RuleBook", "RulesError"]

#: Base faults after which a FHIRPath engine would read nonsense: the profile's rules wait until these are mended.
SHAPE = frozenset({"r4-json", "r4-resource-type", "r4-depth"})
#: Dialects that every other one builds on.
COMMON = ("us-core",)


class RuleBook:
    """The profiles of every dialect with their rules, and R4's model."""

    def __init__(self, model: Model, profiles: Iterable[Profile], codes: Mapping[str, Sequence[Path]] | None = None) -> None:
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
        encoded: bytes | None = None,
        dialect: str | None = None,
    ) -> tuple[Issue, ...]:
        """Judge a resource by base R4 and by profiles; () when it is valid.

        `dialect` says which version of a canonical is meant where several dialects share one; without it the profile's own
        (`url|dialect`, or the newest). `resolve` finds what lies outside the resource. `encoded` is the resource's compact
        JSON, by which a known shape is recognised.
        """
        del encoded
        of = dialect or next((found.dialect for url in profiles if (found := self.profile(url))), None)
        return tuple(Examination(self, Scope(resource, resolve), of).examine(resource, profiles))

    def implied(self, resource: Json, dialect: str) -> tuple[str, ...]:
        """Give the profiles of a dialect whose `when` holds: what a resource is judged by when it claims nothing."""
        found = []
        for profile in self._all.values():
            if profile.dialect == dialect and profile.when and profile.type == resource.get("resourceType"):
                try:
                    holds = expression(profile.when).holds(resource, {}, {})
                except FhirPathError:
                    holds = False
                if holds:
                    found.append(profile.url)
        return tuple(found)

    def made_of(self, profile: str) -> frozenset[str]:
        """Give the profiles whose resources a complete submission of a profile also has."""
        found = self.profiles.get(profile)
        return found.made_of if found else frozenset()


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
        self._within.append(within)
        try:
            for rule in profile.rules:
                yield from self._rule(profile, rule, root, path)
        finally:
            self._within.pop()

    def _rule(self, profile: Profile, rule: Rule, root: Any, path: str) -> Iterator[Issue]:
        variables = self._variables(self._within[-1])
        try:
            nodes = expression(rule.at).nodes(root, self._functions, variables) if rule.at else [root]
            for node in nodes:
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
