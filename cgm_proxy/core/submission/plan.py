"""Plan what goes upstream: what to create, what together and after what; what is stored; what is the same twice.

An entry comes after what it references, so that references can be replaced by locations that exist. What belongs to one
group, a summary with its members and the report on it, stays in one transaction: it is stored whole or not at all.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from types import MappingProxyType

import msgspec

from cgm_proxy.core.issues import Issue
from cgm_proxy.core.json_values import JsonObject
from cgm_proxy.core.submission.identity import ReferenceResolver, compute_identity, has_foreign_identity, reading_code
from cgm_proxy.core.submission.judge import referenced_first
from cgm_proxy.core.submission.model import Entry, Submission
from cgm_proxy.core.submission.verdicts import Verdict


class Stored(msgspec.Struct, frozen=True, gc=False):
    """What is known of a stored resource: `Observation/7/_history/1` and, where the server says it, its ETag."""

    location: str
    etag: str | None = None
    created: bool = False
    """Whether this submission created it."""
    resource: JsonObject | None = None
    """The stored resource, where the submitter asked for its representation."""

    @property
    def reference(self) -> str:
        """The location without its version, as a reference."""
        return self.location.partition("/_history/")[0]


@dataclass(frozen=True, slots=True)
class Refused:
    """Why the upstream did not store an entry; `status` is what the entry is answered with."""

    status: int
    issues: tuple[Issue, ...]
    authenticate: str | None = None
    """The `WWW-Authenticate` of a 401."""


@dataclass(frozen=True, slots=True)
class PassedThrough:
    """The upstream's answer to an entry that was sent in the submitter's own words."""

    status: int
    entry: JsonObject


Outcome = Stored | Refused | PassedThrough

TOO_LARGE = Refused(
    422,
    (
        Issue(
            "group-too-large",
            "it belongs to a group of too many entries that reference one another; split it",
            code="too-costly",
        ),
    ),
)

#: Entries that are stored together or not at all, by index.
Group = tuple[int, ...]

#: What has been planned, by identity and by type and ifNoneExist: the index of the first that has it.
Seen = dict[str | tuple[str, str], int]


class Identified(msgspec.Struct, frozen=True, gc=False):
    """An accepted entry and its identity."""

    entry: Entry
    identity: str

    @property
    def url(self) -> str:
        """What other entries of its transaction call it.

        Servers replace only a `urn:uuid:` by the location of what is created: to HAPI any other URL is an external one.
        """
        given = self.entry.full_url or ""
        return given if given.startswith("urn:uuid:") else self.identity


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do with the accepted entries, by index."""

    creates: Mapping[int, Identified]
    same_as: Mapping[int, int]
    """Entries that another one of the submission already holds."""
    waves: tuple[tuple[Group, ...], ...]
    """Done one after another; the groups of a wave may go in any order, and in any transaction, but each in one."""
    aliases: Mapping[str, str]
    """References that are written in another way upstream: to what is stored, to an entry by its id, to this server."""
    links: Mapping[str, int]
    """Its references that mean an entry, with that entry's index, or the index of the one that it is the same as."""
    settled: Mapping[int, Outcome]
    """Accepted entries of which it is known without the upstream what becomes of them."""
    atomic: bool = False
    """Whether all of it must be stored, or nothing."""


def identify(
    verdicts: Iterable[Verdict],
    submission: Submission,
    resolve: ReferenceResolver,
    earlier: Mapping[int, Identified] = MappingProxyType({}),
) -> tuple[Identified, ...]:
    """Give each accepted entry its identity, those that are referenced first; one on a circle of references has none.

    `earlier` are those of an earlier part that these may reference, by index.
    """
    accepted = {v.entry.index: v.entry for v in verdicts if v.accepted and v.profiles}
    edges = {entry.index: submission.referenced_entries(entry) for entry in accepted.values()}
    found = {i: earlier[i].identity for targets in edges.values() for i in targets if i in earlier}
    for index in referenced_first({index: targets & accepted.keys() for index, targets in edges.items()}):
        entry = accepted[index]
        inner = {
            r: found[submission.internal_references[r]]
            for r in entry.references
            if submission.internal_references.get(r) in found
        }
        found[index] = compute_identity(entry, submission.patient or "", resolve, inner)
    return tuple(Identified(entry, found[index]) for index, entry in accepted.items() if index in found)


def forged(identified: Iterable[Identified]) -> dict[int, Refused]:
    """Refuse what carries the identity of something else: it would later stand in that one's place."""
    refused = {}
    for one in identified:
        if has_foreign_identity(one.entry, one.identity):
            text = "an identifier has the form of this receiver's identities, but not of this entry's; leave it out"
            issue = Issue("identity-forged", text, f"{one.entry.type}.identifier", code="business-rule")
            refused[one.entry.index] = Refused(422, (issue,))
    return refused


def plan(
    identified: Sequence[Identified],
    settled: Mapping[int, Outcome],
    submission: Submission,
    largest: int,
    localize: Callable[[str], str],
    seen: Seen | None = None,
) -> Plan:
    """Plan the creation of what is not in `settled`, by index.

    `largest` is how many entries one group may have; `localize` makes references to this server relative; `seen` is what
    earlier parts of the submission have planned, to which this part is added.
    """
    sound = [one for one in identified if one.entry.index not in settled]
    same_as = _same_as(sound, {} if seen is None else seen)
    creates = {one.entry.index: one for one in sound if one.entry.index not in same_as}
    named = {r for one in identified for r in one.entry.references if r in submission.internal_references}
    links = {name: same_as.get(index := submission.internal_references[name], index) for name in named}
    edges = {i: {links[r] for r in o.entry.references if links.get(r) in creates} for i, o in creates.items()}
    groups = [tuple(creates)] if submission.atomic and creates else _grouped(creates, edges)
    too_large = {index: TOO_LARGE for group in groups if len(group) > largest for index in group}
    waves = _waves([group for group in groups if group[0] not in too_large], edges)
    aliases = _aliases(identified, links, settled, localize)
    return Plan(creates, same_as, tuple(waves), aliases, links, {**settled, **too_large}, submission.atomic)


def _same_as(identified: Iterable[Identified], first: Seen) -> dict[int, int]:
    """Map entries to earlier ones that they repeat: by identity, or by their own ifNoneExist, which the earlier one fulfils."""
    same_as: dict[int, int] = {}
    for one in identified:
        index, condition = one.entry.index, one.entry.request.get("ifNoneExist")
        earlier = first.get(one.identity, index)
        if condition:
            earlier = min(earlier, first.get((one.entry.type, condition), index))
            first.setdefault((one.entry.type, condition), earlier)
        first.setdefault(one.identity, earlier)
        if earlier != index:
            same_as[index] = earlier
    return same_as


def _aliases(
    identified: Sequence[Identified],
    links: Mapping[str, int],
    settled: Mapping[int, Outcome],
    localize: Callable[[str], str],
) -> dict[str, str]:
    by_index = {one.entry.index: one for one in identified}
    aliases = {r: localize(r) for one in identified for r in one.entry.references if r.startswith("http")}
    for name, index in links.items():
        if first := by_index.get(index):
            place = settled.get(index)
            aliases[name] = place.reference if isinstance(place, Stored) else first.url
    return {name: alias for name, alias in aliases.items() if name != alias}


def _waves(groups: Sequence[Group], edges: Mapping[int, set[int]]) -> Iterator[tuple[Group, ...]]:
    """Give the groups, wave by wave: what references nothing new first, then what references that."""
    if not any(edges.values()):  # readings alone, mostly
        yield from [tuple(groups)] if groups else ()
        return
    order = TopologicalSorter(_leaning(groups, edges))
    order.prepare()
    while order.is_active():
        ready = order.get_ready()
        yield tuple(groups[number] for number in ready)
        order.done(*ready)


def _leaning(groups: Sequence[Group], edges: Mapping[int, set[int]]) -> dict[int, set[int]]:
    """Map each group, by its number, to the others that it references."""
    group_of = {index: number for number, group in enumerate(groups) for index in group}
    return {
        number: {group_of[target] for index in group for target in edges[index] if target in group_of} - {number}
        for number, group in enumerate(groups)
    }


def _grouped(creates: Mapping[int, Identified], edges: Mapping[int, set[int]]) -> list[Group]:
    """Group what is stored together or not at all; without references each entry is a group."""
    if not any(edges.values()):
        return [(index,) for index in creates]
    return _acyclic(_groups({index: _rank(one.entry) for index, one in creates.items()}, edges), edges)


def _acyclic(groups: list[Group], edges: Mapping[int, set[int]]) -> list[Group]:
    """Make one group of those that lean on one another, which groups can although no entry does, and of their users."""
    leaning = _leaning(groups, edges)
    order = referenced_first(leaning)
    circular = leaning.keys() - set(order)
    if not circular:
        return groups
    merged = tuple(sorted(index for number in circular for index in groups[number]))
    return [*(group for number, group in enumerate(groups) if number not in circular), merged]


def _rank(entry: Entry) -> int:
    """Order what stands for itself below what is made of it: devices, readings, summaries and reports."""
    if entry.type == "Device":
        return 0
    return 1 if reading_code(entry.resource) else 2


def _groups(ranks: Mapping[int, int], edges: Mapping[int, set[int]]) -> list[Group]:
    """Group the entries: references join, but not those that lead to a lower rank."""
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
