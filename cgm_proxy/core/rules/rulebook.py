"""The verdict on one resource: base R4 validity and the rules of its profiles.

`RuleBook.examine` is a function of the resource's content and of what its references mean, nothing else. The order of what
it finds: base validity (`core/validity.py`), invariants of the specification, extensions, then the profiles.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from cgm_proxy.core.codec.json_body import decode
from cgm_proxy.core.issues import Issue
from cgm_proxy.core.json_values import JsonObject
from cgm_proxy.core.r4.model import Model
from cgm_proxy.core.r4.reference_scope import ReferenceResolver, Scope, nowhere
from cgm_proxy.core.r4.validator import NATIVE
from cgm_proxy.core.rules.examination import Examination
from cgm_proxy.core.rules.fhirpath import FhirPathError, expression
from cgm_proxy.core.rules.rule_files import Addition, Profile, Rule, RulesError, line_of, merge, profile_files, read
from cgm_proxy.core.rules.static_analysis import Analysis, analyse
from cgm_proxy.core.rules.verdict_cache import LARGEST_SHAPE, Leaves, VerdictCache, free_leaves, shape

__all__ = ["Examination", "Profile", "ReferenceResolver", "Rule", "RuleBook", "RulesError"]

#: What is read of a resource to tell its profiles is remembered up to this size (bytes); a code takes a few hundred.
LARGEST_CODE = 2**11

#: Dialects that every other one builds on.
COMMON = ("us-core",)


class RuleBook:
    """The profiles of every dialect with their rules, and R4's model."""

    def __init__(
        self, model: Model, profiles: Iterable[Profile], codes: Mapping[str, Sequence[Path]] | None = None
    ) -> None:
        self.shapes: VerdictCache | None = VerdictCache()
        self._whens: dict[tuple[str, str], tuple[list[Profile], list[str], Leaves]] = {}
        self._implied = lru_cache(4096)(self._find_implied)
        self._leaves = lru_cache(1024)(self._find_leaves)
        common = [path for dialect in COMMON for path in (codes or {}).get(dialect, ())]
        self._model = model.with_codes(*common)
        self._models = {d: self._model.with_codes(*paths) for d, paths in (codes or {}).items() if d not in COMMON}
        listed = sorted(profiles, key=lambda profile: age(profile.dialect))
        self._all = {(profile.url, profile.dialect): profile for profile in listed}
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
            other = profiles.setdefault((made.url, made.dialect), made)
            if other is not made:
                at = f"{path}:{line_of(path, 'profile:')}"
                raise RulesError(f"{at}: `profile`: is there already in {other.path}; add to that one by `extends`")
            beside = path.with_name("codes.ndjson")
            if beside.exists() and beside not in codes.setdefault(made.dialect, []):
                codes[made.dialect].append(beside)
        merge(profiles, additions)
        return cls(model, profiles.values(), codes)

    def size(self) -> tuple[int, int]:
        """Count the profiles and their rules."""
        return len(self._all), sum(len(profile.rules) for profile in self._all.values())

    def warm(self) -> None:
        """Parse every expression ahead of the first resource that needs it, which takes seconds in all."""
        for profile in self._all.values():
            for text in (profile.when, *(t for rule in profile.rules for t in (rule.expression, rule.at, rule.shows))):
                if text:
                    expression(text).tree()

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
        resource: JsonObject,
        profiles: Sequence[str],
        resolve: ReferenceResolver = nowhere,
        *,
        dialect: str | None = None,
        encoded: bytes | None = None,
    ) -> tuple[Issue, ...]:
        """Judge a resource by base R4, by what it claims and by `profiles`; () when it is valid.

        `dialect` says which version of a canonical is meant where several dialects share one; without it the profile's own
        (`url|dialect`, or the newest). `resolve` finds what lies outside the resource. A shape that is known costs
        microseconds (`core/shapes.py`); `encoded`, the resource's JSON where the caller has it, tells early that one is too
        large to be remembered.
        """
        of = dialect or next((found.dialect for url in profiles if (found := self.profile(url))), None)
        if self.shapes is None or resource.get("resourceType") == "Bundle" or len(encoded or b"") > LARGEST_SHAPE:
            return self._plain(resource, profiles, resolve, of)
        demanded = tuple(profiles)
        skeleton, stand_in = shape(resource, self._free_leaves(resource, demanded, of))
        if len(skeleton) > LARGEST_SHAPE:
            return self._plain(resource, profiles, resolve, of)
        key = (of, demanded, skeleton)
        known = self.shapes.recall(key, resolve)
        return known if known is not None else self._learn(key, resource, stand_in, resolve)

    def _plain(
        self, resource: JsonObject, profiles: Sequence[str], resolve: ReferenceResolver, dialect: str | None
    ) -> tuple[Issue, ...]:
        found = Examination(self, Scope(resource, resolve), dialect).examine(resource, profiles)
        return tuple(dict.fromkeys(found))

    def _learn(
        self, key: Any, resource: JsonObject, stand_in: JsonObject, resolve: ReferenceResolver
    ) -> tuple[Issue, ...]:
        dialect, profiles, _ = key
        looked_up: dict[str, JsonObject | None] = {}

        def noting(reference: str) -> JsonObject | None:
            looked_up[reference] = found = resolve(reference)
            return found

        issues = self._plain(resource, profiles, noting, dialect)
        if self.shapes is None or (issues and not self.shapes.met(key)):
            return issues
        if not issues or self._plain(stand_in, profiles, noting, dialect) == issues:
            self.shapes.remember(key, issues, looked_up.items())
        return issues

    def _free_leaves(self, resource: JsonObject, demanded: tuple[str, ...], dialect: str | None) -> Leaves:
        """Give the leaves that no rule of the profiles, and no invariant, reads."""
        type_, meta = resource.get("resourceType"), resource.get("meta")
        claims = meta.get("profile") if type(meta) is dict else None
        if type(type_) is not str or "contained" in resource:
            return ()
        if claims is not None and (type(claims) is not list or set(map(type, claims)) != {str}):
            return ()
        known = [url for url in claims or () if self.profile(url, dialect)]
        return self._leaves(type_, dialect, demanded, tuple(known))

    def _find_leaves(
        self, type_: str, dialect: str | None, demanded: tuple[str, ...], claimed: tuple[str, ...]
    ) -> Leaves:
        profiles = [found for url in (*demanded, *claimed) if (found := self.profile(url, dialect))]
        return free_leaves(type_, self._analyses(type_, profiles, self.model(dialect)))

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

    def implied(self, resource: JsonObject, dialect: str) -> tuple[str, ...]:
        """Give the profiles of a dialect whose `when` holds: what a resource is judged by when it claims nothing.

        Remembered by the members that the `when` of these profiles may read (`code`), so that a reading costs microseconds.
        """
        type_ = resource.get("resourceType")
        if type(type_) is not str or type_ not in self._model.resources:
            return ()
        if (dialect, type_) not in self._whens:
            self._whens[dialect, type_] = self._when(dialect, type_)
        _, members, leaves = self._whens[dialect, type_]
        read = {member: resource[member] for member in members if member in resource}
        skeleton, _ = shape(read, leaves)
        find = self._implied if len(skeleton) < LARGEST_CODE else self._find_implied
        return find(dialect, type_, skeleton)

    def _find_implied(self, dialect: str, type_: str, skeleton: bytes) -> tuple[str, ...]:
        made = {"resourceType": type_, **decode(skeleton)}
        return tuple(profile.url for profile in self._whens[dialect, type_][0] if _holds(profile.when or "", made))

    def _when(self, dialect: str, type_: str) -> tuple[list[Profile], list[str], Leaves]:
        """Give a type's profiles with `when`, the members that a `when` names anywhere, and the leaves that none reads."""
        profiles = [p for p in self._all.values() if (p.dialect, p.type) == (dialect, type_) and p.when]
        named = {name for p in profiles for name in re.findall(r"\w+", p.when or "")}
        known = self._model.type(type_)
        leaves = free_leaves(type_, (analyse(self._model, profile.when or "", type_)[0] for profile in profiles))
        members = sorted(m for m, (e, _) in (known.members if known else {}).items() if _unchosen(e.name) in named)
        return profiles, members, leaves

    def made_of(self, profile: str) -> frozenset[str]:
        """Give the profiles whose resources belong to a profile: who orders it takes them too."""
        found = self.profiles.get(profile)
        return found.made_of if found else frozenset()


def age(dialect: str) -> tuple[str, bool]:
    """Give what dialects are ordered by: a version's ballot comes before the version."""
    version, _, ballot = dialect.partition("-")
    return version, not ballot


def _unchosen(name: str) -> str:
    return name.removesuffix("[x]")


def _holds(when: str, resource: JsonObject) -> bool:
    try:
        return expression(when).holds(resource, {}, {})
    except FhirPathError:
        return False  # a resource of another shape than the expression expects; base validity says so
