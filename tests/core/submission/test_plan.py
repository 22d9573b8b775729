"""What goes upstream: groups whole, after what they reference, each entry once, in transactions of bounded size."""

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.submissions import (
    FakeRules,
    context,
    device,
    entry,
    gmi,
    identified_entries,
    localize,
    reading,
    report,
    submitted,
    summary,
    urn,
)

from cgm_proxy.core.codec.json_body import decode
from cgm_proxy.core.rest.create_requests import bundle
from cgm_proxy.core.rest.strategy import Strategy
from cgm_proxy.core.submission.batching import parts
from cgm_proxy.core.submission.identity import IDENTITY_SYSTEM
from cgm_proxy.core.submission.judge import judge, reference_resolver
from cgm_proxy.core.submission.outcomes import Outcome, Refused, Stored
from cgm_proxy.core.submission.plan import AcceptedEntry, Group, Plan, Planner, forged, identify


def identified(*entries: Any, observe: bool = False) -> tuple[AcceptedEntry, ...]:
    return identified_entries(submitted(*entries), observe=observe)


def planned(
    *entries: Any,
    settled: Mapping[int, Outcome] | None = None,
    largest: int = 500,
    kind: str = "batch",
) -> Plan:
    taken = submitted(*entries, kind=kind, endpoint="base")
    return Planner(taken, largest, localize).plan(identified_entries(taken), settled or {})


def shape(made: Plan) -> list[list[Group]]:
    """Return the waves as lists of groups."""
    return [[tuple(sorted(group)) for group in wave] for wave in made.waves]


def sent(made: Plan, locations: Mapping[str, str] | None = None) -> list[Any]:
    """Return all entries that go upstream, in the order of waves and transactions."""
    known = {**made.aliases, **(locations or {})}
    waves = [[made.creates[index] for group in wave for index in group] for wave in made.waves]
    return [e for wave in waves for e in decode(bundle(wave, known, Strategy()))["entry"]]


SESSION = [
    entry(report(urn(3)), urn(4)),
    entry(summary(urn(2)), urn(3)),
    entry(gmi(), urn(2)),
    entry(reading(0, device={"reference": urn(1)}), urn(10)),
    entry(reading(1, device={"reference": urn(1)}), urn(11)),
    entry(device(), urn(1)),
]


def test_devices_go_first_and_what_belongs_together_in_one_transaction() -> None:
    assert shape(planned(*SESSION)) == [[(0, 1, 2), (5,)], [(3,), (4,)]]


def test_a_summary_of_readings_comes_after_them() -> None:
    items = [entry(summary(urn(10), urn(11)), urn(3)), entry(reading(0), urn(10)), entry(reading(1), urn(11))]
    assert shape(planned(*items)) == [[(1,), (2,)], [(0,)]]


def test_a_reading_that_leans_on_a_summary_is_stored_with_it() -> None:
    items = [entry(summary(), urn(3)), entry(reading(derivedFrom=[{"reference": urn(3)}]), urn(10))]
    assert shape(planned(*items)) == [[(0, 1)]]


def test_a_group_that_is_too_large_is_refused_and_the_rest_is_stored() -> None:
    members = [entry(gmi(x=n), urn(n)) for n in range(10)]
    made = planned(entry(summary(*map(urn, range(10)))), *members, entry(reading()), largest=10)
    assert shape(made) == [[(11,)]]
    assert made.settled.keys() == set(range(11))
    assert {refused.issues[0].rule for refused in made.settled.values()} == {"group-too-large"}


def test_an_atomic_submission_is_one_transaction_if_it_is_not_too_large() -> None:
    assert shape(planned(*SESSION, largest=6, kind="transaction")) == [[(0, 1, 2, 3, 4, 5)]]
    too_large = planned(*SESSION, largest=5, kind="transaction")
    assert (too_large.waves, too_large.settled.keys()) == ((), set(range(6)))


def test_nothing_to_create_is_nothing_to_send() -> None:
    for kind in ("batch", "transaction"):
        made = planned(entry(reading()), settled={0: Stored("Observation/7")}, kind=kind)
        assert (made.waves, made.creates) == ((), {})


# -- each entry once ------------------------------------------------------------------------------------------------------


def test_a_twin_is_not_sent_and_shares_the_first_ones_location() -> None:
    made = planned(entry(reading(id="a"), urn(1)), entry(reading(id="b"), urn(2)), entry(reading(1)), entry(reading()))
    assert (made.same_as, set(made.creates)) == ({1: 0, 3: 0}, {0, 2})
    assert len(sent(made)) == 2


def test_what_references_a_twin_comes_after_the_first_one() -> None:
    items = [
        entry(summary(urn(2)), urn(3)),
        entry(reading(), urn(1)),
        entry(reading(), urn(2)),
    ]
    made = planned(*items)
    assert shape(made) == [[(1,)], [(0,)]]
    assert sent(made, {urn(2): "Observation/7"})[1]["resource"]["hasMember"] == [{"reference": "Observation/7"}]


def test_what_references_the_twin_of_its_member_stays_in_one_transaction_with_the_first_one() -> None:
    made = planned(entry(summary(urn(2)), urn(3)), entry(gmi(), urn(1)), entry(gmi(), urn(2)))
    assert shape(made) == [[(0, 1)]]
    assert sent(made)[0]["resource"]["hasMember"] == [{"reference": urn(1)}]


def test_a_refused_entry_does_not_drag_its_twin_along() -> None:
    refused = {0: Refused(412, ())}
    made = planned(
        entry(reading(), urn(1), ifNoneExist="x=y"), entry(reading(), urn(2)), entry(reading(1)), settled=refused
    )
    assert (made.same_as, set(made.creates), made.settled) == ({}, {1, 2}, refused)
    later = planned(entry(reading(), urn(1)), entry(reading(), urn(2)), settled={1: Refused(422, ())})
    assert (later.same_as, set(later.creates)) == ({}, {0})


def test_what_is_stored_is_not_sent_again_and_referenced_where_it_is() -> None:
    made = planned(*SESSION, settled={2: Stored("Observation/7/_history/3"), 5: Stored("Device/9")})
    assert set(made.creates) == {0, 1, 3, 4}
    by_type = {e["request"]["url"] + e["resource"].get("effectiveDateTime", ""): e["resource"] for e in sent(made)}
    assert by_type["Observation"]["hasMember"] == [{"reference": "Observation/7"}]
    assert by_type["Observation2025-06-01T00:01:00Z"]["device"] == {"reference": "Device/9"}


def test_a_twin_of_what_is_stored_is_referenced_where_that_is() -> None:
    items = [entry(gmi(), urn(1)), entry(gmi(), urn(2)), entry(summary(urn(2)), urn(3))]
    made = planned(*items, settled=dict.fromkeys((0, 1), Stored("Observation/7")))
    assert set(made.creates) == {2}
    assert sent(made)[0]["resource"]["hasMember"] == [{"reference": "Observation/7"}]


def test_a_submission_that_is_sent_again_has_the_same_identities_under_new_references() -> None:
    def session(start: int) -> list[Any]:
        a, b, c = (urn(start + n) for n in range(3))
        return [
            entry(report(c)),
            entry(summary(b), c),
            entry(gmi(), b),
            entry(reading(device={"reference": a})),
            entry(device(), a),
        ]

    first, again = (identified(*session(start)) for start in (10, 50))
    assert [one.identity for one in first] == [one.identity for one in again]
    shuffled = {one.identity for one in identified(*session(90)[::-1])}
    assert shuffled == {one.identity for one in first}


# -- references -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        (urn(1), urn(1)),
        ("Observation/g", urn(1)),
        ("Observation/stored", "Observation/stored"),
        ("https://public.example/fhir/Observation/stored", "Observation/stored"),
        ("http://up:8081/fhir/Observation/stored/_history/2", "Observation/stored/_history/2"),
        ("https://other.example/fhir/Observation/1", "https://other.example/fhir/Observation/1"),
        ("#contained", "#contained"),
    ],
)
def test_references_are_written_as_the_upstream_understands_them(reference: str, expected: str) -> None:
    made = planned(entry(summary(reference), urn(3)), entry(gmi(id="g"), urn(1)))
    [member] = next(e["resource"]["hasMember"] for e in sent(made) if "hasMember" in e["resource"])
    assert member == {"reference": expected}


def test_the_subject_is_written_as_a_reference_of_this_server() -> None:
    made = planned(entry(reading(subject={"reference": "https://public.example/fhir/Patient/1"})), entry(reading(1)))
    assert {e["resource"]["subject"]["reference"] for e in sent(made)} == {"Patient/1"}


def test_an_entry_without_full_url_is_called_by_its_identity() -> None:
    made = planned(entry(summary("Observation/g")), entry(gmi(id="g")))
    [outer, inner] = sorted(sent(made), key=lambda e: "hasMember" not in e["resource"])
    assert outer["resource"]["hasMember"] == [{"reference": inner["fullUrl"]}]
    assert inner["fullUrl"] == inner["resource"]["identifier"][0]["value"]


@pytest.mark.parametrize("url", ["https://submitter.example/fhir/Observation/g", "urn:oid:1.2.3", "Observation/g"])
def test_an_entry_whose_full_url_is_no_uuid_is_called_by_its_identity(url: str) -> None:
    made = planned(entry(summary(url)), entry(gmi(), url))
    [outer, inner] = sorted(sent(made), key=lambda e: "hasMember" not in e["resource"])
    assert outer["resource"]["hasMember"] == [{"reference": inner["fullUrl"]}]
    assert inner["fullUrl"] == inner["resource"]["identifier"][0]["value"]


def test_each_create_asks_for_exactly_the_identity_that_it_stores() -> None:
    for created in sent(planned(*SESSION, entry(reading(5, identifier=[{"value": "own"}], x='a"b\\ä')))):
        [*_, own] = created["resource"]["identifier"]
        assert own["system"] == IDENTITY_SYSTEM
        assert created["request"] == {
            "method": "POST",
            "url": created["resource"]["resourceType"],
            "ifNoneExist": f"identifier={IDENTITY_SYSTEM}|{own['value']}",
        }


def test_a_circle_has_no_identity() -> None:
    items = [entry(summary(urn(2)), urn(1)), entry(summary(urn(1)), urn(2)), entry(report(urn(1))), entry(reading())]
    assert [one.entry.index for one in identified(*items, observe=True)] == [3]


def test_an_identity_of_something_else_is_refused() -> None:
    one, other = identified(entry(reading(0)), entry(reading(1)))
    stolen = {"system": IDENTITY_SYSTEM, "value": other.identity}
    own = {"system": IDENTITY_SYSTEM, "value": one.identity}
    found = forged(identified(entry(reading(0, identifier=[own, stolen])), entry(reading(0, identifier=[own]))))
    assert {index: (refused.status, refused.issues[0].rule) for index, refused in found.items()} == {
        0: (422, "identity-forged")
    }


# -- groups that lean on one another --------------------------------------------------------------------------------------

#: Two groups, {0, 1, 4} and {2, 3}: 0 → 1 ← 4 and 2 → 3 join, 0 → 2 and 3 → 4 lead down; no entry is on a circle.
LEANING = [
    entry(summary(urn(1), urn(2)), urn(0)),
    entry(gmi(), urn(1)),
    entry(reading(2, derivedFrom=[{"reference": urn(3)}]), urn(2)),
    entry(gmi(hasMember=[{"reference": urn(4)}]), urn(3)),
    entry(reading(4, derivedFrom=[{"reference": urn(1)}]), urn(4)),
]


def test_groups_that_lean_on_one_another_are_one_group_and_others_stay_apart() -> None:
    others = [entry(reading(60 + n)) for n in range(7)]
    made = planned(*LEANING, *others, largest=5)
    assert not made.settled
    groups = [group for wave in shape(made) for group in wave]
    assert sorted(groups) == [(0, 1, 2, 3, 4), *((n,) for n in range(5, 12))]


def test_groups_that_are_too_large_together_are_refused() -> None:
    made = planned(*LEANING, entry(reading(60)), largest=4)
    assert (set(made.settled), shape(made)) == ({0, 1, 2, 3, 4}, [[(5,)]])


# -- size and shape at large ----------------------------------------------------------------------------------------------


def test_50_000_readings_of_a_device_are_planned_in_order() -> None:
    many = [entry(reading(n % 40_000, value=n, device={"reference": urn(1)})) for n in range(50_000)]
    made = planned(*many, entry(device(), urn(1)))
    assert [len(wave) for wave in made.waves] == [1, 50_000]


def following(number: int, many: int) -> list[str]:
    return [urn(number + 1)] if number + 1 < many else []


def test_long_chains_are_planned_or_refused_without_recursion() -> None:
    many = 50_000
    chain = [entry(summary(*following(n, many), x=n), urn(n)) for n in range(many)]
    assert planned(*chain).settled.keys() == set(range(many))
    steps = [
        entry(
            summary(*following(n, 4000), x=n)
            if n % 2
            else reading(n // 2, value=n, derivedFrom=[{"reference": urn(n + 1)}]),
            urn(n),
        )
        for n in range(4000)
    ]
    assert [len(wave) for wave in planned(*steps).waves] == [1] * 2000


@st.composite
def webs(draw: st.DrawFn) -> list[Any]:
    """Draw entries of all ranks, some of them twins, that reference earlier ones, in any order."""
    items = []
    for number in range(draw(st.integers(1, 12))):
        targets = draw(st.sets(st.integers(0, max(0, number - 1)), max_size=3)) if number else set()
        links = {"derivedFrom": [{"reference": urn(target)} for target in sorted(targets)]}
        kind = draw(st.sampled_from([reading, reading, summary, device, gmi]))
        content = {"x": draw(st.integers(0, 3))} if kind is not reading else {"value": draw(st.integers(0, 3))}
        items.append(entry(kind(**links, **content), urn(number)))
    return draw(st.permutations(items))


@settings(max_examples=300, deadline=None)
@given(webs(), st.integers(1, 12), st.sets(st.integers(0, 11)), st.sets(st.integers(0, 11)))
def test_each_entry_is_settled_once_and_references_lead_to_what_is_there(
    items: list[Any], largest: int, known: set[int], bad: set[int]
) -> None:
    taken = submitted(*items)
    ones = identified_entries(taken)
    stored = {index: Stored(f"Observation/{index}/_history/1") for index in known}
    given = {i: o for i, o in {**stored, **dict.fromkeys(bad, Refused(412, ()))}.items() if i < len(items)}
    made = Planner(taken, largest, localize).plan(ones, given)
    waves = {index: number for number, wave in enumerate(made.waves) for group in wave for index in group}
    groups = {index: group for wave in made.waves for group in wave for index in group}
    assert sorted(waves) == sorted(made.creates.keys() - made.settled.keys())
    for index in waves:
        for reference in made.creates[index].entry.references:
            first = made.links.get(reference, -1)
            if first in waves:
                assert groups[first] == groups[index] or waves[first] < waves[index]
    assert all(len(group) <= largest for group in groups.values())
    assert {*waves, *made.settled, *made.same_as} == {one.entry.index for one in ones} | given.keys()


@settings(max_examples=200, deadline=None)
@given(webs(), st.integers(1, 4))
def test_a_submission_that_is_cut_into_parts_is_identified_as_in_one_piece(items: list[Any], size: int) -> None:
    taken = submitted(*items)
    verdicts = judge(taken, context(rules=FakeRules(always="http://x/any"))).verdicts
    whole = {one.entry.index: one.identity for one in identified_entries(taken)}
    cut = list(parts(taken, size))
    found: dict[int, AcceptedEntry] = {}
    for part in cut:
        made = identify([verdicts[entry.index] for entry in part], taken, reference_resolver(taken), localize, found)
        leaning = {index for one in made for index in taken.referenced_entries(one.entry)}
        assert leaning <= {one.index for one in (*cut[0], *part)}
        found |= {one.entry.index: one for one in made}
    assert {index: one.identity for index, one in found.items()} == whole
