"""The verdict on one resource: base R4 validity and the rules of its profiles.

`RuleBook.examine` is a function of the resource's content and of the resources that its references name, nothing else. It
reports in this order: base validity (`core/r4/validator.py`), extensions, invariants of the specification, then profiles.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from typing import Any

from cgm_proxy.core.codec.json_body import decode
from cgm_proxy.core.issues import MOST_ISSUES, Issue, at_most
from cgm_proxy.core.json_values import JsonObject
from cgm_proxy.core.r4.invariants import NATIVE
from cgm_proxy.core.r4.model import Model
from cgm_proxy.core.r4.reference_scope import ReferenceResolver, Scope, resolve_nothing
from cgm_proxy.core.r4.validator import do_not_pause
from cgm_proxy.core.rules.examination import Examination
from cgm_proxy.core.rules.fhirpath import Expressions, FhirPathError
from cgm_proxy.core.rules.rule_files import Profile
from cgm_proxy.core.rules.static_analysis import Analysis, analyse
from cgm_proxy.core.rules.verdict_cache import LARGEST_SHAPE, StandIns, VerdictCache, shape, stand_ins

#: Largest JSON (bytes) of the elements that imply a profile for which the result is cached; a code takes a few hundred.
LARGEST_CODE = 2**11

#: Dialects that all others build on.
COMMON = ("us-core",)


class RuleBook:
    """The profiles of all dialects with their rules, and the model of R4.

    `codes` has the contents of each dialect's `codes.ndjson`. All caches belong to the instance: rules that are loaded again
    start with empty ones.
    """

    def __init__(
        self, model: Model, profiles: Iterable[Profile], codes: Mapping[str, Sequence[bytes]] | None = None
    ) -> None:
        self.verdict_cache: VerdictCache | None = VerdictCache()
        self.expressions = Expressions()
        self._whens: dict[tuple[str, str], tuple[list[Profile], list[str], StandIns]] = {}
        self._implied = lru_cache(4096)(self._find_implied)
        self._stand_ins = lru_cache(1024)(self._find_stand_ins)
        common = [content for dialect in COMMON for content in (codes or {}).get(dialect, ())]
        self._model = model.with_codes(*common)
        self._models = {
            dialect: self._model.with_codes(*contents)
            for dialect, contents in (codes or {}).items()
            if dialect not in COMMON
        }
        listed = sorted(profiles, key=lambda profile: age(profile.dialect))
        self._all = {(profile.url, profile.dialect): profile for profile in listed}
        self.profiles: Mapping[str, Profile] = {
            **{profile.url: profile for profile in self._all.values()},
            **{f"{profile.url}|{profile.dialect}": profile for profile in self._all.values()},
        }

    def size(self) -> tuple[int, int]:
        """Return the numbers of profiles and rules."""
        return len(self._all), sum(len(profile.rules) for profile in self._all.values())

    def supported(self, types: Iterable[str]) -> dict[str, tuple[str, ...]]:
        """Return the canonicals of the guide's profiles by resource type, without those that it builds on."""
        found: dict[str, dict[str, None]] = {type_: {} for type_ in types}
        for profile in self._all.values():
            if profile.type in found and not profile.parent:
                found[profile.type][profile.url] = None
        return {type_: tuple(urls) for type_, urls in found.items()}

    def warm(self) -> None:
        """Parse all expressions before a resource needs them, which takes seconds in all."""
        for profile in self._all.values():
            for text in (profile.when, *(t for rule in profile.rules for t in (rule.expression, rule.at, rule.shows))):
                if text:
                    self.expressions(text).tree()

    def model(self, dialect: str | None) -> Model:
        """Return the model of R4 with the code systems and value sets of a dialect."""
        return self._models.get(dialect or "", self._model)

    def profile(self, url: str, dialect: str | None = None) -> Profile | None:
        """Return a profile by its canonical, of a dialect if one is given, or None if it is not known."""
        plain, _, version = url.partition("|")
        if dialect is None:
            return self.profiles.get(url)
        if version and version not in {p.dialect for (u, _), p in self._all.items() if u == plain}:
            return None
        for name in (dialect, *COMMON):
            if found := self._all.get((plain, name)):
                return found
        return None

    def examine(
        self,
        resource: JsonObject,
        profiles: Sequence[str],
        resolve: ReferenceResolver = resolve_nothing,
        *,
        dialect: str | None = None,
        encoded: bytes | None = None,
        between: Callable[[], None] = do_not_pause,
    ) -> tuple[Issue, ...]:
        """Return the issues of a resource by base R4, by `profiles` and by those that it claims; () if it is valid.

        `dialect` selects the version of a canonical that several dialects share; without it the profile's own is taken
        (`url|dialect`, or the newest). `resolve` finds resources outside of this one. A resource whose shape is known costs
        microseconds (`verdict_cache.py`). `encoded` is the JSON of the resource, if the caller has it; its length shows early
        that a resource is too large for the cache. `between` is called again and again during a long examination.
        """
        dialect = dialect or next((found.dialect for url in profiles if (found := self.profile(url))), None)
        cache = self.verdict_cache
        if cache is None or resource.get("resourceType") == "Bundle" or len(encoded or b"") > LARGEST_SHAPE:
            return self._examine(resource, profiles, resolve, dialect, between)
        demanded = tuple(profiles)
        skeleton, stand_in = shape(resource, self._stand_ins_for(resource, demanded, dialect))
        if len(skeleton) > LARGEST_SHAPE:
            return self._examine(resource, profiles, resolve, dialect, between)
        key = (dialect, demanded, skeleton)
        cached = cache.get(key, resolve)
        if cached is not None:
            return cached
        return self._examine_and_cache(cache, key, resource, stand_in, resolve, between)

    def _examine(
        self,
        resource: JsonObject,
        profiles: Sequence[str],
        resolve: ReferenceResolver,
        dialect: str | None,
        between: Callable[[], None],
    ) -> tuple[Issue, ...]:
        found = Examination(self, Scope(resource, resolve), dialect, between).examine(resource, profiles)
        return at_most(MOST_ISSUES, tuple(dict.fromkeys(islice(found, MOST_ISSUES + 1))))

    def _examine_and_cache(
        self,
        cache: VerdictCache,
        key: Any,
        resource: JsonObject,
        stand_in: JsonObject,
        resolve: ReferenceResolver,
        between: Callable[[], None],
    ) -> tuple[Issue, ...]:
        dialect, profiles, _ = key
        looked_up: dict[str, JsonObject | None] = {}

        def recording(reference: str) -> JsonObject | None:
            looked_up[reference] = found = resolve(reference)
            return found

        issues = self._examine(resource, profiles, recording, dialect, between)
        if issues and not cache.seen(key):
            return issues
        if not issues or self._examine(stand_in, profiles, recording, dialect, between) == issues:
            cache.put(key, issues, looked_up.items())
        return issues

    def _stand_ins_for(self, resource: JsonObject, demanded: tuple[str, ...], dialect: str | None) -> StandIns:
        """Return the members of a resource that no rule of its profiles and no invariant reads, with their stand-ins."""
        type_, meta = resource.get("resourceType"), resource.get("meta")
        claims = meta.get("profile") if type(meta) is dict else None
        if type(type_) is not str or "contained" in resource:
            return ()
        if claims is not None and (type(claims) is not list or set(map(type, claims)) != {str}):
            return ()
        known = [url for url in claims or () if self.profile(url, dialect)]
        return self._stand_ins(type_, dialect, demanded, tuple(known))

    def _find_stand_ins(
        self, type_: str, dialect: str | None, demanded: tuple[str, ...], claimed: tuple[str, ...]
    ) -> StandIns:
        profiles = [found for url in (*demanded, *claimed) if (found := self.profile(url, dialect))]
        return stand_ins(type_, self._analyses(type_, profiles, self.model(dialect)))

    def _analyses(self, type_: str, profiles: Iterable[Profile], model: Model) -> Iterator[Analysis]:
        """Analyse everything that is evaluated on a resource of a type, or on the parents of members with a stand-in."""
        for name in (type_, "Quantity", "Identifier"):
            known = model.type(name)
            for invariant in known.invariants if known else ():
                if invariant.key not in NATIVE:
                    yield analyse(model, self.expressions, invariant.expression, name)[0]
        extensions = (profile for profile in self._all.values() if profile.type == "Extension")
        for profile in (*profiles, *extensions):
            for rule in profile.rules:
                if profile.type != "Extension" or "%" in rule.expression + rule.at:
                    yield analyse(model, self.expressions, rule.expression, profile.type, rule.at)[0]

    def implied(self, resource: JsonObject, dialect: str) -> tuple[str, ...]:
        """Return the profiles of a dialect whose `when` holds: a resource that claims none is judged by them.

        The result is cached by the members that the `when` of these profiles may read (`code`), so that a reading costs
        microseconds.
        """
        type_ = resource.get("resourceType")
        if type(type_) is not str or type_ not in self._model.resources:
            return ()
        if (dialect, type_) not in self._whens:
            self._whens[dialect, type_] = self._when(dialect, type_)
        _, members, replaced = self._whens[dialect, type_]
        read = {member: resource[member] for member in members if member in resource}
        skeleton, _ = shape(read, replaced)
        find = self._implied if len(skeleton) < LARGEST_CODE else self._find_implied
        return find(dialect, type_, skeleton)

    def _find_implied(self, dialect: str, type_: str, skeleton: bytes) -> tuple[str, ...]:
        resource = {"resourceType": type_, **decode(skeleton)}
        return tuple(p.url for p in self._whens[dialect, type_][0] if self.holds(p.when or "", resource))

    def _when(self, dialect: str, type_: str) -> tuple[list[Profile], list[str], StandIns]:
        """Return a type's profiles that have a `when`, the members that it may read, and those that none reads."""
        profiles = [p for p in self._all.values() if (p.dialect, p.type) == (dialect, type_) and p.when]
        named = {name for p in profiles for name in re.findall(r"\w+", p.when or "")}
        known = self._model.type(type_)
        analyses = (analyse(self._model, self.expressions, profile.when or "", type_)[0] for profile in profiles)
        replaced = stand_ins(type_, analyses)
        elements = {member: element.name for member, (element, _) in (known.members if known else {}).items()}
        return profiles, sorted(m for m, name in elements.items() if name.removesuffix("[x]") in named), replaced

    def holds(self, when: str, resource: JsonObject) -> bool:
        """Whether a `when` holds of a resource."""
        try:
            return self.expressions(when).holds(resource, {}, {})
        except FhirPathError:
            return False  # the resource does not have the form that the expression expects; base validity refuses it

    def made_of(self, profile: str) -> frozenset[str]:
        """Return the profiles of the resources that belong to a profile; an order for it includes them."""
        found = self.profiles.get(profile)
        return found.made_of if found else frozenset()


def age(dialect: str) -> tuple[str, bool]:
    """Return a key that sorts dialects by age: the ballot of a version comes before the version."""
    version, _, ballot = dialect.partition("-")
    return version, not ballot
