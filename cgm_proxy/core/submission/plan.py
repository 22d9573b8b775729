"""Plans what goes upstream: which entries to create, which belong together, in which order, and which are duplicates.

An entry comes after the entries that it references, so that its references can be replaced by the locations of stored
resources. The entries of a group (a summary, its members and the report on it) stay in one transaction: all of them are
stored, or none.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from types import MappingProxyType

import msgspec

from cgm_proxy.core.r4.reference_scope import ReferenceResolver
from cgm_proxy.core.submission.identity import (
    IDENTITY_PATTERN,
    IdentityScope,
    compute_identity,
    has_foreign_identity,
    reading_code,
)
from cgm_proxy.core.submission.if_none_exist import Parameters, parameters
from cgm_proxy.core.submission.judge import referenced_first
from cgm_proxy.core.submission.model import Entry, Submission
from cgm_proxy.core.submission.outcomes import Outcome, Refused, Stored, refused
from cgm_proxy.core.submission.verdicts import Verdict

GROUP_TOO_LARGE = refused(
    422,
    "group-too-large",
    "the entry belongs to a group of too many entries that reference one another; split the group",
    code="too-costly",
)

CONDITION_REPEATED = refused(
    422,
    "condition-repeated",
    "another entry of the transaction has the same request.ifNoneExist and other content; give each a condition of its own",
    "request.ifNoneExist",
    code="duplicate",
)

#: The indices of entries that are stored together or not at all.
Group = tuple[int, ...]


class AcceptedEntry(msgspec.Struct, frozen=True, gc=False):
    """An accepted entry and its identity."""

    entry: Entry
    identity: str

    @property
    def url(self) -> str:
        """The fullUrl by which other entries of its transaction reference it.

        It is a `urn:uuid:`, because servers replace only that by the location of the new resource: HAPI takes any other URL
        for an external one.
        """
        given = self.entry.full_url or ""
        return given if given.startswith("urn:uuid:") else self.identity


def size_of(entries: Iterable[AcceptedEntry]) -> int:
    """Return the number of bytes of the entries' resources."""
    return sum(len(each.entry.encoded) for each in entries)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do with the accepted entries of one part of a submission; entries are named by their index."""

    creates: Mapping[int, AcceptedEntry]
    same_as: Mapping[int, int]
    """Duplicates within the submission: each with the first entry that has the same content."""
    waves: tuple[tuple[Group, ...], ...]
    """Sent one after another; the groups of one wave may be sent in any order and in any transaction."""
    aliases: Mapping[str, str]
    """References that change on the way upstream, each with its replacement: to stored resources, to entries, and absolute
    ones to this server."""
    links: Mapping[str, int]
    """The references that mean an entry, each with the index of that entry, or of the first entry that it duplicates."""
    settled: Mapping[int, Outcome]
    """Accepted entries whose outcome is known without sending them."""
    earlier: frozenset[int] = frozenset()
    """Entries of earlier parts that entries of this part reference: they must be stored first."""
    postponed: tuple[AcceptedEntry, ...] = ()
    """Entries with the same condition as an earlier entry, and entries that reference them. Whether they are stored already
    can be decided only when the earlier entry is stored."""
    atomic: bool = False
    """Whether everything must be stored, or nothing."""


def identify(
    verdicts: Iterable[Verdict],
    submission: Submission,
    resolve: ReferenceResolver,
    localize: Callable[[str], str],
    earlier: Mapping[int, AcceptedEntry] = MappingProxyType({}),
) -> tuple[AcceptedEntry, ...]:
    """Return the accepted entries with their identities; an entry on a circle of references has none and is left out.

    `localize` makes references to this server relative. `earlier` are the entries of an earlier part that these may
    reference, by index.
    """
    accepted = {v.entry.index: v.entry for v in verdicts if v.accepted and v.profiles}
    edges = {entry.index: submission.referenced_entries(entry) for entry in accepted.values()}
    identities = {i: earlier[i].identity for targets in edges.values() for i in targets if i in earlier}

    def identity_of(reference: str) -> str | None:
        return identities.get(submission.internal_references.get(reference, -1))

    scope = IdentityScope(submission.patient or "", identity_of, resolve, localize)
    for index in referenced_first({index: targets & accepted.keys() for index, targets in edges.items()}):
        identities[index] = compute_identity(accepted[index], scope)
    return tuple(AcceptedEntry(entry, identities[index]) for index, entry in accepted.items() if index in identities)


def forged(accepted: Iterable[AcceptedEntry]) -> dict[int, Refused]:
    """Refuse entries that have another identity than their own as identifier or fullUrl: they would be taken for that entry."""
    found = {}
    for each in accepted:
        full_url = (each.entry.full_url or "").strip().lower()
        if IDENTITY_PATTERN.fullmatch(full_url) and full_url != each.identity:
            text = (
                "fullUrl has the form of this receiver's identities but is not this entry's identity; use a random UUID"
            )
            found[each.entry.index] = refused(422, "identity-forged", text, "fullUrl", code="business-rule")
        if has_foreign_identity(each.entry, each.identity):
            text = "an identifier has the form of this receiver's identities but is not this entry's identity; leave it out"
            expression = f"{each.entry.type}.identifier"
            found[each.entry.index] = refused(422, "identity-forged", text, expression, code="business-rule")
    return found


class Planner:
    """Plans one submission part by part: entries that repeat an entry of an earlier part are recognised.

    `largest` is the number of entries that one group may have; `localize` makes references to this server relative.
    """

    def __init__(self, submission: Submission, largest: int, localize: Callable[[str], str]) -> None:
        self._submission = submission
        self._largest = largest
        self._localize = localize
        self._first: dict[str, int] = {}
        self._conditions: dict[tuple[str, Parameters], str] = {}
        self._same_as: dict[int, int] = {}
        self._planned: set[int] = set()
        self._postponed: set[int] = set()

    def plan(self, accepted: Sequence[AcceptedEntry], settled: Mapping[int, Outcome]) -> Plan:
        """Plan the creation of the next part's entries; those in `settled` have an outcome already."""
        submission, planned_before = self._submission, frozenset(self._planned)
        remaining = [each for each in accepted if each.entry.index not in settled]
        postponed = self._postpone(remaining)
        if postponed and submission.atomic:
            repeated = dict.fromkeys(postponed, CONDITION_REPEATED)
            return Plan({}, {}, (), {}, {}, {**settled, **repeated}, atomic=True)
        remaining = [each for each in remaining if each.entry.index not in postponed]
        same_as = self._duplicates(remaining)
        creates = {each.entry.index: each for each in remaining if each.entry.index not in same_as}
        names = {r for each in accepted for r in each.entry.references if r in submission.internal_references}
        links = {name: self._same_as.get(index := submission.internal_references[name], index) for name in names}
        edges = {i: {links[r] for r in c.entry.references if links.get(r) in creates} for i, c in creates.items()}
        groups = [tuple(creates)] if submission.atomic and creates else _grouped(creates, edges)
        too_large = {index: GROUP_TOO_LARGE for group in groups if len(group) > self._largest for index in group}
        waves = _waves([group for group in groups if group[0] not in too_large], edges)
        aliases = _aliases(accepted, links, settled, self._localize)
        self._planned.update(each.entry.index for each in accepted if each.entry.index not in postponed)
        return Plan(
            creates,
            same_as,
            tuple(waves),
            aliases,
            links,
            {**settled, **too_large},
            planned_before.intersection(links.values()),
            tuple(each for each in accepted if each.entry.index in postponed),
            submission.atomic,
        )

    def _postpone(self, accepted: Sequence[AcceptedEntry]) -> set[int]:
        """Return the entries with the same condition as an earlier entry of other content, and those that reference them.

        They are planned again when all other entries have been sent.
        """
        indices = {each.entry.index for each in accepted}
        if not self._postponed.isdisjoint(indices):
            self._conditions.clear()
            self._postponed -= indices
        postponed = set()
        for each in accepted:
            text = each.entry.request.get("ifNoneExist")
            condition = parameters(text, each.entry.type) if text else None
            if condition and self._conditions.setdefault((each.entry.type, condition), each.identity) != each.identity:
                postponed.add(each.entry.index)
        if postponed or self._postponed:
            users: dict[int, list[int]] = {}
            for each in accepted:
                for target in self._submission.referenced_entries(each.entry):
                    users.setdefault(target, []).append(each.entry.index)
            waiting = [*postponed, *self._postponed]
            for index in waiting:  # it grows
                added = [user for user in users.get(index, ()) if user not in postponed]
                postponed.update(added)
                waiting += added
            self._postponed |= postponed
        return postponed

    def _duplicates(self, accepted: Iterable[AcceptedEntry]) -> dict[int, int]:
        """Map entries to the first ones with the same identity, also of earlier parts."""
        same_as: dict[int, int] = {}
        for each in accepted:
            first = self._first.setdefault(each.identity, each.entry.index)
            if first != each.entry.index:
                same_as[each.entry.index] = first
        self._same_as.update(same_as)
        return same_as


def _aliases(
    accepted: Sequence[AcceptedEntry],
    links: Mapping[str, int],
    settled: Mapping[int, Outcome],
    localize: Callable[[str], str],
) -> dict[str, str]:
    by_index = {each.entry.index: each for each in accepted}
    aliases = {
        r: localize(r) for each in accepted for r in each.entry.references if r[:4].lower() == "http" or "?" in r
    }
    for name, index in links.items():
        if target := by_index.get(index):
            outcome = settled.get(index)
            aliases[name] = outcome.reference if isinstance(outcome, Stored) else target.url
    return {name: alias for name, alias in aliases.items() if name != alias}


def _waves(groups: Sequence[Group], edges: Mapping[int, set[int]]) -> Iterator[tuple[Group, ...]]:
    """Yield the groups wave by wave: first those that reference nothing new, then those that reference them."""
    if not any(edges.values()):  # usually there are only readings
        yield from [tuple(groups)] if groups else ()
        return
    order = TopologicalSorter(_dependencies(groups, edges))
    order.prepare()
    while order.is_active():
        ready = order.get_ready()
        yield tuple(groups[number] for number in ready)
        order.done(*ready)


def _dependencies(groups: Sequence[Group], edges: Mapping[int, set[int]]) -> dict[int, set[int]]:
    """Map the number of each group to the numbers of the other groups that it references."""
    group_of = {index: number for number, group in enumerate(groups) for index in group}
    return {
        number: {group_of[target] for index in group for target in edges[index] if target in group_of} - {number}
        for number, group in enumerate(groups)
    }


def _grouped(creates: Mapping[int, AcceptedEntry], edges: Mapping[int, set[int]]) -> list[Group]:
    """Group the entries that are stored together or not at all; without references each entry is a group.

    Groups that depend on one another, which can happen although no entry does, become one group with their dependants.
    """
    if not any(edges.values()):
        return [(index,) for index in creates]
    groups = _joined({index: _rank(each.entry) for index, each in creates.items()}, edges)
    dependencies = _dependencies(groups, edges)
    circular = dependencies.keys() - set(referenced_first(dependencies))
    if not circular:
        return groups
    merged = tuple(sorted(index for number in circular for index in groups[number]))
    return [*(group for number, group in enumerate(groups) if number not in circular), merged]


def _rank(entry: Entry) -> int:
    """Rank devices below readings, and readings below the summaries and reports that are made of them."""
    if entry.type == "Device":
        return 0
    return 1 if reading_code(entry.resource) else 2


def _joined(ranks: Mapping[int, int], edges: Mapping[int, set[int]]) -> list[Group]:
    """Join the entries by their references, except references to a lower rank."""
    parent = {index: index for index in ranks}

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    for source, targets in edges.items():
        for target in targets:
            if ranks[target] >= ranks[source]:
                parent[root(source)] = root(target)
    groups: dict[int, list[int]] = {}
    for index in ranks:
        groups.setdefault(root(index), []).append(index)
    return [tuple(group) for group in groups.values()]
