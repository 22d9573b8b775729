"""The verdicts on entries: the allow-list, profiles, references; with rules whose faults each test chooses."""

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.submissions import (
    BASE,
    DEVICE,
    GMI,
    PATIENT,
    PDF,
    READING,
    SUMMARY,
    FakeRules,
    context,
    device,
    entry,
    gmi,
    judged,
    nested,
    observation,
    reading,
    report,
    rules_found,
    submitted,
    summary,
    urn,
)

from cgm_proxy.core.issues import Issue
from cgm_proxy.core.submission.judge import judge, reference_resolver, referenced_first
from cgm_proxy.core.submission.orders import Schedule, StandingOrder


def rules_for(item: Any, **more: Any) -> list[str]:
    """Return the rule ids of an entry that is judged beside a correct one."""
    return rules_found(judged(entry(reading(1440)), item, **more))[1]


def test_an_entry_without_faults_is_accepted_with_its_profiles() -> None:
    judgement = judged(entry(device()), entry(reading()), entry(gmi()), entry(summary()), entry(report()))
    assert [verdict.profiles for verdict in judgement.verdicts] == [(DEVICE,), (READING,), (GMI,), (SUMMARY,), (PDF,)]
    assert rules_found(judgement) == [[], [], [], [], []]
    assert judgement.accepted
    assert judgement.issues == ()


# -- the allow-list -------------------------------------------------------------------------------------------------------

NOT_ALLOWED = {
    "PUT": (entry(reading(), method="PUT"), ["allow-method"]),
    "lower case": (entry(reading(), method="post"), ["allow-method"]),
    "no method": (entry(reading(), method=None), ["allow-method"]),
    "a list of methods": (entry(reading(), method=["POST"]), ["allow-method"]),
    "DELETE of another": (entry(reading(), method="DELETE", url="Patient/2"), ["allow-method", "allow-url"]),
    "another type's url": (entry(reading(), url="Patient"), ["allow-url"]),
    "an id in the url": (entry(reading(), url="Observation/1"), ["allow-url"]),
    "a query in the url": (entry(reading(), url="Observation?x=y"), ["allow-url"]),
    "a slash in the url": (entry(reading(), url="/Observation"), ["allow-url"]),
    "an absolute url": (entry(reading(), url="https://public.example/fhir/Observation"), ["allow-url"]),
    "an operation": (entry(reading(), url="Observation/$validate"), ["allow-url"]),
    "no url": (entry(reading(), url=None), ["allow-url"]),
    "a url of a wrong type": (entry(reading(), url=["Observation"]), ["allow-url"]),
    "a condition of a wrong type": (entry(reading(), ifNoneExist=5), ["allow-condition"]),
    "a type that is not allowed": (
        entry({"resourceType": "MedicationRequest", "subject": {"reference": PATIENT}}),
        ["allow-type"],
    ),
    "a type in lower case": (entry(reading() | {"resourceType": "observation"}), ["allow-type"]),
    "a bundle in the bundle": (
        entry({"resourceType": "Bundle", "subject": {"reference": PATIENT}, "entry": [entry(reading())]}),
        ["allow-type"],
    ),
    "a long type": (entry({"resourceType": "x" * 10_000, "subject": {"reference": PATIENT}}), ["allow-type"]),
}


@pytest.mark.parametrize(("item", "expected"), NOT_ALLOWED.values(), ids=NOT_ALLOWED)
def test_an_entry_may_only_create_a_resource_of_an_allowed_type(item: Any, expected: list[str]) -> None:
    rules = FakeRules()
    assert rules_for(item, rules=rules) == expected
    assert len(rules.examined) == 1, "an entry that is not allowed is not examined"


def test_a_message_shows_only_the_beginning_of_a_long_value() -> None:
    for item, _ in NOT_ALLOWED.values():
        for issue in judged(entry(reading()), item).verdicts[1].issues:
            assert len(issue.text) < 200


def test_a_message_shows_the_value_that_was_sent_as_json() -> None:
    [_, verdict] = judged(entry(reading()), entry(reading(), method=None, url=["x"])).verdicts
    method, url = (issue.text for issue in verdict.issues)
    assert method.startswith("request.method is null;")
    assert url.startswith('request.url is ["x"];')


def test_the_allowed_types_are_a_setting() -> None:
    assert rules_for(entry(device()), allowed_types=("Observation",)) == ["allow-type"]


@pytest.mark.parametrize(
    ("subject", "expected"),
    [
        ({"reference": "Patient/2"}, ["subject-other"]),
        ({"reference": "Patient/12"}, ["subject-other"]),
        ({"reference": "https://public.example/fhir/Patient/2"}, ["subject-other"]),
        ({"reference": "https://public.example/fhir/Patient/1"}, []),
        ({"reference": "https://other.example/fhir/Patient/1"}, ["subject-unknown"]),
        ({"reference": "Group/1"}, ["subject-unknown"]),
        ({"reference": urn(7)}, ["subject-unknown"]),
        ({"identifier": {"value": "1"}}, ["subject-unknown"]),
        ({}, ["subject-unknown"]),
        (None, ["subject-unknown"]),
        ([{"reference": PATIENT}], ["subject-unknown"]),
        ("Patient/1", ["subject-unknown"]),
    ],
)
def test_each_entry_must_be_about_the_submissions_patient(subject: Any, expected: list[str]) -> None:
    others = [entry(reading(1)), entry(reading(2))]
    for resource in (reading(), report(), device()):
        about = {"patient" if resource["resourceType"] == "Device" else "subject": subject}
        assert rules_found(judged(*others, entry(resource | about)))[2] == expected


def test_only_a_device_may_have_no_patient() -> None:
    bare_device, bare_reading = device(), reading()
    del bare_device["patient"], bare_reading["subject"]
    assert rules_for(entry(bare_device)) == []
    assert rules_for(entry(bare_reading)) == ["subject-unknown"]


def test_a_submission_without_any_patient_is_refused_entry_by_entry() -> None:
    bare = device()
    del bare["patient"]
    assert rules_found(judged(entry(bare), entry(reading(subject=None)))) == [["subject-unknown"], ["subject-unknown"]]


def test_a_patient_unknown_to_the_server_is_refused() -> None:
    found = judged(entry(reading()), entry(device()), patient_known=False)
    assert rules_found(found) == [["subject-unknown"], ["subject-unknown"]]


@pytest.mark.parametrize(("depth", "expected"), [(20, []), (21, ["too-deep"]), (300, ["too-deep"])])
def test_nesting_is_limited(depth: int, expected: list[str]) -> None:
    assert rules_for(entry(nested(depth)), max_depth=20) == expected


#: Members of a reading with the number of elements that they add.
WIDE: dict[str, tuple[dict[str, Any], int]] = {
    "an object": ({f"x{n}": n for n in range(150)}, 150),
    "an array": ({"x": [1] * 150}, 151),
    "empty arrays": ({"x": [[]] * 150}, 151),
    "text with commas and brackets": ({"x": ",[{" * 150}, 1),
    "an attachment": ({"content": {"data": "A" * 400}}, 2),
    "tags": ({"text": {"div": "<p>x</p>" * 75}}, 152),
    "attributes": ({"text": {"div": "<p " + "a='x' " * 149 + "/>"}}, 152),
    "text with tags outside of a narrative": ({"x": "<p>" * 150}, 1),
}


@pytest.mark.parametrize("name", WIDE)
def test_elements_are_limited(name: str) -> None:
    more, number = WIDE[name]
    most = 15 + number  # a plain reading has 15
    assert rules_for(entry(reading(**more)), max_elements=most) == []
    assert rules_for(entry(reading(**more)), max_elements=most - 1) == ["too-many-elements"]


def test_an_entry_without_claimed_or_implied_profile_is_refused() -> None:
    assert rules_for(entry(observation("8480-6"))) == ["profile-unknown"]


@pytest.mark.parametrize(
    ("profiles", "expected"),
    [
        ([SUMMARY], (SUMMARY,)),
        ([f"{SUMMARY}|1.0.0", "http://other/profile"], (SUMMARY,)),
        ([SUMMARY, READING], (SUMMARY, READING)),
        ([f"{BASE}cgm-unheard-of"], (READING,)),
        ([5, None, {}], (READING,)),
        ("x", (READING,)),
        ({}, (READING,)),
        (None, (READING,)),
    ],
)
def test_an_entry_is_judged_by_the_profiles_it_claims_or_else_by_its_code(
    profiles: Any, expected: tuple[str, ...]
) -> None:
    [verdict] = judged(entry(reading(meta={"profile": profiles}))).verdicts
    assert verdict.profiles == expected


def test_an_error_of_the_rules_refuses_an_entry_and_a_warning_does_not() -> None:
    rules = FakeRules({"bad": Issue("bad", "b"), "odd": Issue("odd", "o", severity="warning")})
    judgement = judged(entry(reading(id="bad")), entry(reading(id="odd")), entry(reading()), rules=rules)
    assert rules_found(judgement) == [["bad"], ["odd"], []]
    assert [verdict.accepted for verdict in judgement.verdicts] == [False, True, True]
    assert judgement.accepted


@pytest.mark.parametrize(("kind", "endpoint", "whole"), [("batch", "base", True), ("transaction", "base", False)])
def test_one_refused_entry_refuses_an_atomic_submission(kind: str, endpoint: str, whole: bool) -> None:
    rules = FakeRules({"bad": Issue("bad", "b")})
    items = entry(reading(id="bad")), entry(reading(1))
    assert judged(*items, kind=kind, endpoint=endpoint, rules=rules).accepted == whole
    assert judged(*items, rules=rules).accepted


# -- references -----------------------------------------------------------------------------------------------------------


def test_a_fault_of_a_reference_names_the_element() -> None:
    known = {"Observation/9": observation("x")}
    judgement = judged(entry(summary("Observation/9", "Observation/8")), stored_resources=known)
    (issue,) = judgement.verdicts[0].issues
    assert (issue.rule, issue.expression) == ("reference-unknown", "Observation.hasMember[1].reference")
    assert rules_for(entry(summary("Observation/9")), stored_resources=known) == []


def test_an_entry_that_has_the_name_of_a_stored_resource_is_refused() -> None:
    items = entry(gmi(), "Observation/9"), entry(summary("Observation/9"))
    judgement = judged(*items, stored_resources={"Observation/9": gmi()})
    assert rules_found(judgement) == [["entry-full-url"], ["reference-refused"]]
    assert rules_found(judged(*items, stored_resources={})) == [[], []]


def test_an_entry_of_another_patient_is_refused_and_so_is_an_entry_that_references_it() -> None:
    judgement = judged(
        entry(reading(subject={"reference": "Patient/2"}), urn(1)),
        entry(summary(urn(1))),
        entry(reading(1)),
        entry(gmi()),
    )
    assert rules_found(judgement) == [["subject-other"], ["reference-refused"], [], []]


def test_a_reference_means_an_entry_before_it_means_a_stored_resource() -> None:
    submission = submitted(entry(reading(id="9"), urn(1)), entry(summary(urn(1), "Observation/9")))
    resolve = reference_resolver(submission, {"Observation/9": device(), "Device/1": device()})
    assert resolve("Observation/9") == submission.entries[0].resource
    assert resolve(urn(1)) == submission.entries[0].resource
    assert resolve("Device/1") == device()
    assert resolve("Device/2") is None


def test_an_entry_that_references_a_refused_entry_is_refused_and_names_it() -> None:
    judgement = judged(
        entry(report(urn(3)), urn(4)),
        entry(summary(urn(1), urn(2)), urn(3)),
        entry(reading(id="bad"), urn(1)),
        entry(gmi(), urn(2)),
        rules=FakeRules({"bad": Issue("bad", "b")}),
    )
    assert rules_found(judgement) == [["reference-refused"], ["reference-refused"], ["bad"], []]
    texts = [verdict.issues[0].text for verdict in judgement.verdicts[:2]]
    assert [text.split(",")[0] for text in texts] == ["the entry references entry 1", "the entry references entry 2"]
    paths = [verdict.issues[0].expression for verdict in judgement.verdicts[:2]]
    assert paths == ["DiagnosticReport.result[0].reference", "Observation.hasMember[0].reference"]


@pytest.mark.parametrize(
    ("edges", "circular"),
    [
        ([(0, 0)], {0}),
        ([(0, 1), (1, 0)], {0, 1}),
        ([(0, 1), (1, 2), (2, 0)], {0, 1, 2}),
        ([(0, 1), (1, 0), (2, 0)], {0, 1, 2}),
        ([(0, 1), (1, 1), (1, 2)], {0, 1}),
        ([(0, 1), (0, 2), (1, 2)], set()),
    ],
)
def test_circles_of_references_and_entries_that_lead_to_one_are_refused(
    edges: list[tuple[int, int]], circular: set[int]
) -> None:
    items = [entry(summary(*[urn(b) for a, b in edges if a == n], x=n), urn(n)) for n in range(3)]
    found = rules_found(judged(*items))
    assert {index for index, rules in enumerate(found) if rules == ["reference-circular"]} == circular
    assert all(not rules for index, rules in enumerate(found) if index not in circular)


def test_long_chains_and_many_references_are_followed_without_recursion() -> None:
    many = 50_000
    chain = {0: set(), **{index: {index - 1} for index in range(1, many)}}
    assert referenced_first(chain) == list(range(many))
    fan = {0: set(range(1, many)), **{index: set() for index in range(1, many)}}
    assert referenced_first(fan)[-1] == 0
    assert referenced_first({index: {(index + 1) % many} for index in range(many)}) == []
    items = [entry(summary(urn(n + 1), x=n), urn(n)) for n in range(many - 1)] + [
        entry(reading(id="bad"), urn(many - 1))
    ]
    judgement = judged(*items, rules=FakeRules({"bad": Issue("bad", "b")}))
    assert not any(verdict.accepted for verdict in judgement.verdicts)


@settings(deadline=None)
@given(st.dictionaries(st.integers(0, 8), st.sets(st.integers(0, 8), max_size=3), max_size=9))
def test_referenced_first_puts_each_entry_after_those_it_references(edges: dict[int, set[int]]) -> None:
    edges = {source: {target for target in targets if target in edges} for source, targets in edges.items()}
    order = referenced_first(edges)
    places = {index: place for place, index in enumerate(order)}
    assert len(places) == len(order)
    for index in order:
        assert all(places[target] < places[index] for target in edges[index])
    for index in edges.keys() - places.keys():
        assert edges[index] - places.keys(), "an entry is left out only if it leads to a circle"


def test_observe_mode_finds_the_same_issues_and_refuses_nothing() -> None:
    items = [
        None,
        entry(reading(id="bad"), urn(1)),
        entry(summary(urn(1))),
        entry(reading(), method="PUT"),
        entry(gmi()),
    ]
    rules = FakeRules({"bad": Issue("bad", "b", severity="fatal")})
    for kind in ("batch", "transaction"):
        submission = submitted(*items, kind=kind, endpoint="base")
        observed = judge(submission, context(rules=rules, observe=True))
        enforced = judge(submission, context(rules=rules))
        assert rules_found(observed) == rules_found(enforced)
        assert observed.accepted
        assert all(verdict.accepted for verdict in observed.verdicts)
        assert not all(verdict.accepted for verdict in enforced.verdicts)


LOOKBACK = StandingOrder(
    "ServiceRequest/o", frozenset({"1.0.0"}), (Schedule(frozenset({READING}), lookback=timedelta(days=30)),)
)


def test_a_large_submission_is_judged() -> None:
    items = [entry(reading(n % 40_000, value=n, device={"reference": urn(1)})) for n in range(50_000)]
    judgement = judged(*items, entry(device(), urn(1)), orders=(LOOKBACK,))
    assert judgement.accepted
    assert not any(verdict.issues for verdict in judgement.verdicts)


def test_a_urn_that_no_entry_has_is_refused_and_what_was_not_looked_up_is_not() -> None:
    dangling = reading(0, device={"reference": "urn:uuid:0b0fb34f-4fd6-4e10-9d6e-0cf1a7ad2cb1"})
    stored = reading(1, device={"reference": "Device/7"})
    first, second = judged(entry(dangling), entry(stored)).verdicts
    assert [(issue.rule, issue.expression) for issue in first.issues] == [
        ("reference-unknown", "Observation.device.reference")
    ]
    assert second.accepted


def test_an_issues_path_does_not_repeat_a_made_up_element_name() -> None:
    """A resource with thousands of dangling references must not take long either."""
    urns = [f"urn:uuid:{number}" for number in range(20_000)]
    dangling = reading(0, **{"x; rm": {"reference": urns[0]}, "y": [{"reference": u} for u in urns]})
    (verdict,) = judged(entry(dangling), max_elements=50_000).verdicts
    *found, more = verdict.issues
    assert {issue.expression for issue in found} == {f"Observation.y[{n}].reference" for n in range(1_000)}
    assert more.rule == "more-issues"
