"""The verdicts, with rules that find what they are told to."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.places import RULES
from support.submissions import (
    BASE,
    DEVICE,
    GMI,
    NOW,
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
    observation,
    reading,
    report,
    rules_found,
    submitted,
    summary,
    urn,
)

from cgm_proxy.core.codec.json_body import encode
from cgm_proxy.core.issues import Issue
from cgm_proxy.core.rules.rulebook import RuleBook
from cgm_proxy.core.submission.judge import judge, reference_resolver, referenced_first
from cgm_proxy.core.submission.orders import Schedule, StandingOrder
from cgm_proxy.core.submission.verdicts import Judgement
from cgm_proxy.settings.loading import PolicySettings


@pytest.fixture(scope="module")
def book() -> RuleBook:
    return RuleBook.load(RULES)


def only(item: Any, **more: Any) -> list[str]:
    """Judge one entry beside a good one, and list its rule ids."""
    return rules_found(judged(entry(reading(1440)), item, **more))[1]


def test_what_the_rules_accept_is_accepted_with_its_profiles() -> None:
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
def test_an_entry_creates_an_allowed_resource_and_nothing_else(item: Any, expected: list[str]) -> None:
    rules = FakeRules()
    assert only(item, rules=rules) == expected
    assert len(rules.examined) == 1, "what is not allowed is not examined"


def test_messages_are_short_and_carry_no_more_than_a_glimpse_of_what_was_sent() -> None:
    for item, _ in NOT_ALLOWED.values():
        for issue in judged(entry(reading()), item).verdicts[1].issues:
            assert len(issue.text) < 200


def test_a_message_shows_what_was_sent_in_jsons_words() -> None:
    [_, verdict] = judged(entry(reading()), entry(reading(), method=None, url=["x"])).verdicts
    method, url = (issue.text for issue in verdict.issues)
    assert method.startswith("request.method is null;")
    assert url.startswith('request.url is ["x"];')


def test_a_setting_says_what_is_allowed() -> None:
    assert only(entry(device()), allowed_types=("Observation",)) == ["allow-type"]


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
def test_each_entry_is_about_the_submissions_patient(subject: Any, expected: list[str]) -> None:
    others = [entry(reading(1)), entry(reading(2))]
    for resource in (reading(), report(), device()):
        about = {"patient" if resource["resourceType"] == "Device" else "subject": subject}
        assert rules_found(judged(*others, entry(resource | about)))[2] == expected


def test_a_device_may_name_no_patient_and_a_reading_may_not() -> None:
    bare_device, bare_reading = device(), reading()
    del bare_device["patient"], bare_reading["subject"]
    assert only(entry(bare_device)) == []
    assert only(entry(bare_reading)) == ["subject-unknown"]


def test_a_submission_that_names_nobody_is_refused_entry_by_entry() -> None:
    bare = device()
    del bare["patient"]
    assert rules_found(judged(entry(bare), entry(reading(subject=None)))) == [["subject-unknown"], ["subject-unknown"]]


def test_a_patient_whom_the_server_does_not_have_is_refused() -> None:
    found = judged(entry(reading()), entry(device()), patient_known=False)
    assert rules_found(found) == [["subject-unknown"], ["subject-unknown"]]


def nested(depth: int) -> dict[str, Any]:
    """Nest objects so that the resource, itself included, is as deep."""
    inner: dict[str, Any] = {"x": 1}
    for _ in range(depth - 2):
        inner = {"x": inner}
    return reading(x=inner, y=[{}] * 100)


@pytest.mark.parametrize(("depth", "expected"), [(20, []), (21, ["too-deep"]), (300, ["too-deep"])])
def test_nesting_is_bounded(depth: int, expected: list[str]) -> None:
    assert only(entry(nested(depth)), max_depth=20) == expected


def test_an_entry_without_claim_or_code_is_not_stored() -> None:
    assert only(entry(observation("8480-6"))) == ["profile-unknown"]


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
def test_an_entry_is_judged_by_what_it_claims_or_else_by_its_code(profiles: Any, expected: tuple[str, ...]) -> None:
    [verdict] = judged(entry(reading(meta={"profile": profiles}))).verdicts
    assert verdict.profiles == expected


def test_what_the_rules_find_refuses_or_warns() -> None:
    rules = FakeRules({"bad": Issue("bad", "b"), "odd": Issue("odd", "o", severity="warning")})
    judgement = judged(entry(reading(id="bad")), entry(reading(id="odd")), entry(reading()), rules=rules)
    assert rules_found(judgement) == [["bad"], ["odd"], []]
    assert [verdict.accepted for verdict in judgement.verdicts] == [False, True, True]
    assert judgement.accepted


@pytest.mark.parametrize(("kind", "target", "whole"), [("batch", "base", True), ("transaction", "base", False)])
def test_one_refused_entry_refuses_an_atomic_submission(kind: str, target: str, whole: bool) -> None:
    rules = FakeRules({"bad": Issue("bad", "b")})
    items = entry(reading(id="bad")), entry(reading(1))
    assert judged(*items, kind=kind, endpoint=target, rules=rules).accepted == whole
    assert judged(*items, rules=rules).accepted


# -- references -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "stored",
    [
        observation("x", subject={"reference": "Patient/2"}),
        observation("x", subject={"reference": "Patient/12"}),
        report(subject={"reference": "Patient/2"}),
        device(patient={"reference": "Patient/2"}),
    ],
)
def test_a_reference_to_another_patients_data_is_refused(stored: Any) -> None:
    known = {"Observation/9": stored}
    judgement = judged(entry(summary("Observation/8", "Observation/9")), stored_resources=known)
    (issue,) = judgement.verdicts[0].issues
    assert (issue.rule, issue.expression) == ("reference-other-patient", "Observation.hasMember[1].reference")


@pytest.mark.parametrize(
    "stored",
    [
        observation("x"),
        device(),
        {"resourceType": "Device"},
        {"resourceType": "Observation", "subject": 5},
        {"subject": {"reference": 5}},
        {},
    ],
)
def test_a_reference_to_the_patients_own_data_is_none_of_these(stored: Any) -> None:
    assert only(entry(summary("Observation/9")), stored_resources={"Observation/9": stored}) == []


def test_a_reference_to_another_patients_entry_is_refused_twice_over() -> None:
    judgement = judged(
        entry(reading(subject={"reference": "Patient/2"}), urn(1)),
        entry(summary(urn(1))),
        entry(reading(1)),
        entry(gmi()),
    )
    assert rules_found(judgement) == [["subject-other"], ["reference-other-patient"], [], []]


def test_an_entry_means_an_entry_before_it_means_what_is_stored() -> None:
    taken = submitted(entry(reading(id="9"), urn(1)), entry(summary(urn(1), "Observation/9")))
    resolve = reference_resolver(taken, {"Observation/9": device(), "Device/1": device()})
    assert resolve("Observation/9") == taken.entries[0].resource
    assert resolve(urn(1)) == taken.entries[0].resource
    assert resolve("Device/1") == device()
    assert resolve("Device/2") is None


def test_what_references_a_refused_entry_is_refused_with_it_and_says_which() -> None:
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
def test_circles_and_what_leads_to_one_are_refused(edges: list[tuple[int, int]], circular: set[int]) -> None:
    items = [entry(summary(*[urn(b) for a, b in edges if a == n], x=n), urn(n)) for n in range(3)]
    found = rules_found(judged(*items))
    assert {index for index, rules in enumerate(found) if rules == ["reference-circular"]} == circular
    assert all(not rules for index, rules in enumerate(found) if index not in circular)


def test_long_chains_and_fans_are_followed_without_recursion() -> None:
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
def test_each_entry_comes_after_those_that_it_references(edges: dict[int, set[int]]) -> None:
    edges = {source: {target for target in targets if target in edges} for source, targets in edges.items()}
    order = referenced_first(edges)
    places = {index: place for place, index in enumerate(order)}
    assert len(places) == len(order)
    for index in order:
        assert all(places[target] < places[index] for target in edges[index])
    for index in edges.keys() - places.keys():
        assert edges[index] - places.keys(), "what is left out leads to a circle"


# -- orders and policies --------------------------------------------------------------------------------------------------


def ordered(*schedules: Schedule, dialects: tuple[str, ...] = ("1.0.0",)) -> tuple[StandingOrder, ...]:
    return (StandingOrder("ServiceRequest/o", frozenset(dialects), schedules),)


def asks(*profiles: str, **more: Any) -> Schedule:
    return Schedule(frozenset(profiles), **more)


def days(number: float) -> timedelta:
    return timedelta(days=number)


def found(judgement: Judgement) -> list[tuple[str, str]]:
    """List rule and severity of all issues about orders."""
    issues = [*judgement.issues, *(issue for verdict in judgement.verdicts for issue in verdict.issues)]
    return [(issue.rule, issue.severity) for issue in issues]


FINDINGS: dict[str, tuple[str, dict[str, Any], list[Any]]] = {
    "no_order": ("order-none", {}, [reading()]),
    "incomplete": ("order-incomplete", {"orders": ordered(asks(READING, SUMMARY))}, [reading()]),
    "unsolicited": ("order-unsolicited", {"orders": ordered(asks(READING))}, [reading(), report()]),
    "outside_lookback": (
        "order-lookback",
        {"orders": ordered(asks(READING, lookback=days(1)))},
        [reading(effectiveDateTime="2025-06-01T00:00:00Z")],
    ),
    "too_often": (
        "order-too-often",
        {"orders": ordered(asks(READING, period=days(14))), "last_submission": NOW - days(1)},
        [reading()],
    ),
}
EFFECTS = {"accept": [], "warn": ["information"], "reject": ["error"]}


@pytest.mark.parametrize("observe", [False, True])
@pytest.mark.parametrize("policy", EFFECTS)
@pytest.mark.parametrize("finding", FINDINGS)
def test_a_policy_decides_what_a_finding_does(finding: str, policy: str, observe: bool) -> None:
    rule, more, resources = FINDINGS[finding]
    policies = PolicySettings(**{**dict.fromkeys(FINDINGS, "accept"), finding: policy})
    judgement = judged(*map(entry, resources), policies=policies, observe=observe, **more)
    severities = ["warning" if observe and severity == "error" else severity for severity in EFFECTS[policy]]
    assert found(judgement) == [(rule, severity) for severity in severities]
    refused = policy == "reject" and not observe
    whole = finding not in {"unsolicited", "outside_lookback"}
    assert judgement.accepted == (not (refused and whole))
    assert judgement.verdicts[-1].accepted == (not (refused and not whole))
    assert (judgement.retry_after is not None) == (refused and finding == "too_often")


COMPLETE = {
    "all of the one schedule": ([asks(READING, SUMMARY)], [reading(), summary()], True),
    "one of two schedules": ([asks(READING), asks(SUMMARY, PDF)], [reading(), summary()], True),
    "a part of each schedule": ([asks(READING, PDF), asks(SUMMARY, PDF)], [reading(), summary()], False),
    "nothing of it": ([asks(PDF)], [device()], False),
    "a member stands for no summary": ([asks(SUMMARY)], [gmi()], False),
    "a schedule without profiles asks for nothing": ([asks()], [reading()], True),
}


@pytest.mark.parametrize(("schedules", "resources", "complete"), COMPLETE.values(), ids=COMPLETE)
def test_a_submission_is_complete_if_it_satisfies_one_schedule(schedules: Any, resources: Any, complete: bool) -> None:
    judgement = judged(*map(entry, resources), orders=ordered(*schedules))
    assert ("order-incomplete" in [issue.rule for issue in judgement.issues]) == (not complete)
    assert judgement.accepted == complete


def test_schedules_of_several_orders_count_alike() -> None:
    orders = ordered(asks(READING)) + ordered(asks(SUMMARY))
    assert found(judged(entry(summary()), entry(gmi()), orders=orders)) == []
    lacking = judged(entry(device()), orders=orders).issues[0].text
    assert lacking.endswith("add cgm-sensor-reading-mass-per-volume or cgm-summary")


def test_a_refused_entry_does_not_make_the_submission_incomplete_too() -> None:
    rules = FakeRules({"bad": Issue("bad", "b")})
    judgement = judged(entry(summary(id="bad")), entry(gmi()), orders=ordered(asks(SUMMARY)), rules=rules)
    assert found(judgement) == [("bad", "error")]


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"request": {"method": "PUT", "url": "Observation"}}, "allow-method"),
        ({"request": {"method": "POST", "url": "Patient"}}, "allow-url"),
        ({"request": {"method": "POST", "url": "Observation", "ifNoneExist": 5}}, "allow-condition"),
        ({"request": None}, "entry-request"),
        ({"fullUrl": 5}, "entry-full-url"),
        ({"fullUrl": urn(1)}, "entry-full-url-unique"),
        ({"resource": summary(meta={"profile": [READING]})}, "subject-unknown"),
    ],
)
def test_what_may_not_be_created_does_not_make_the_submission_incomplete_too(change: dict[str, Any], rule: str) -> None:
    """By what the refused entry claims or, where it claims nothing, by its code."""
    change.get("resource", {}).pop("subject", None)
    taken = [entry(gmi(), urn(1)), entry(summary()), entry(reading()) | change]
    judgement = judged(*taken, orders=ordered(asks(READING)), policies=PolicySettings(unsolicited="accept"))
    assert judgement.issues == ()
    assert rules_found(judgement)[2] == [rule]
    assert judgement.verdicts[2].profiles == ()


@pytest.mark.parametrize(
    "resource",
    [
        None,
        5,
        [],
        {},
        {"resourceType": 5},
        {"resourceType": "x"},
        reading() | {"code": "x"},
        reading() | {"code": nested(700)},
    ],
    ids=lambda resource: encode(resource)[:60].decode(),
)
def test_a_refused_entry_that_cannot_be_read_stands_for_no_profile(resource: Any, book: RuleBook) -> None:
    judgement = judged(entry(resource, method="PUT"), entry(gmi()), orders=ordered(asks(READING)), rules=book)
    assert [issue.rule for issue in judgement.issues] == ["order-incomplete"]


@pytest.mark.parametrize(
    ("resource", "solicited"),
    [(reading(), False), (summary(), True), (gmi(), True), (device(), True), (report(), False)],
)
def test_a_summary_solicits_its_members_and_anything_its_device(resource: Any, solicited: bool) -> None:
    rules = rules_found(judged(entry(summary()), entry(resource), orders=ordered(asks(SUMMARY))))
    assert rules[1] == ([] if solicited else ["order-unsolicited"])


@pytest.mark.parametrize("dialects", [("argo",), ("0.1.0",), ("1.0.0-ballot",)])
def test_an_order_of_another_dialect_does_not_count(dialects: tuple[str, ...]) -> None:
    orders = ordered(asks(PDF), dialects=dialects)
    assert found(judged(entry(reading()), orders=orders)) == []
    policies = PolicySettings(no_order="reject")
    assert found(judged(entry(reading()), orders=orders, policies=policies)) == [("order-none", "error")]


LOOKBACK = ordered(asks(READING, lookback=days(14)))


@pytest.mark.parametrize(
    ("effective", "timely"),
    [
        ({"effectiveDateTime": "2025-06-15T11:00:00Z"}, True),
        ({"effectiveDateTime": "2025-06-01T12:00:00Z"}, True),
        ({"effectiveDateTime": "2025-06-01T11:59:58Z"}, False),
        ({"effectiveDateTime": "2025-06-01T13:59:58+02:00"}, False),
        ({"effectiveDateTime": "2025-06-01"}, True),  # some of the day lies within
        ({"effectiveDateTime": "2025-05-31"}, False),
        ({"effectiveDateTime": "2025"}, True),
        ({"effectiveDateTime": "1000-01-01T00:00:00Z"}, False),
        ({"effectiveDateTime": "0001-01-01T00:00:00+14:00"}, True),  # what is no date is not judged by it
        ({"effectiveDateTime": None, "effectivePeriod": {"start": "2025-05-01", "end": "2025-06-10"}}, True),
        ({"effectiveDateTime": None, "effectivePeriod": {"start": "2025-05-01", "end": "2025-05-31"}}, False),
        ({"effectiveDateTime": None, "effectivePeriod": {"start": "2020"}}, True),
        ({"effectiveDateTime": None, "effectivePeriod": [5]}, True),
        ({"effectiveDateTime": 5}, True),
    ],
)
def test_the_lookback_reaches_to_the_second(effective: dict[str, Any], timely: bool) -> None:
    assert found(judged(entry(reading() | effective), orders=LOOKBACK)) == (
        [] if timely else [("order-lookback", "information")]
    )


def at(*fields: int) -> datetime:
    return datetime(*fields, tzinfo=UTC)  # type: ignore[arg-type,misc]


WINDOW = asks(READING, window=(at(2025, 6, 1), at(2025, 6, 3)))


@pytest.mark.parametrize(
    ("instant", "timely"),
    [
        ("2025-06-01T00:00:00Z", True),
        ("2025-06-02T23:59:59Z", True),
        ("2025-06-03T00:00:00Z", False),
        ("2025-05-31T23:59:58Z", False),
        ("2025-06-03T01:00:00+02:00", True),
        ("2025-05-31", False),
        ("2025", True),
    ],
)
def test_a_one_time_order_solicits_by_its_window(instant: str, timely: bool) -> None:
    item = entry(reading(effectiveDateTime=instant))
    expected = [] if timely else [("order-unsolicited", "error")]
    assert found(judged(item, orders=ordered(WINDOW))) == expected
    assert found(judged(item, orders=ordered(WINDOW, asks(READING)))) == []
    with_lookback = judged(item, orders=ordered(WINDOW, asks(READING, lookback=days(1))))
    assert found(with_lookback) == ([] if timely else [("order-lookback", "information")])


@pytest.mark.parametrize(
    ("schedules", "last", "wait"),
    [
        ([asks(READING, period=days(14))], NOW - days(13), days(1)),
        ([asks(READING, period=days(14))], NOW - days(14), None),
        ([asks(READING, period=days(14))], None, None),
        ([asks(READING, period=days(14)), asks(SUMMARY, period=days(2))], NOW - days(1), days(1)),
        ([asks(READING, period=days(14)), asks(READING)], NOW - days(1), None),  # the other one does not say how often
        ([asks(READING, period=days(14)), WINDOW], NOW - days(1), None),
        ([asks(READING, period=days(36_500))], NOW, days(36_500)),
        ([asks(READING, period=days(1))], NOW + days(5), days(6)),  # an upstream's clock that runs ahead
    ],
)
def test_too_often_is_within_the_shortest_period(schedules: Any, last: Any, wait: timedelta | None) -> None:
    judgement = judged(
        entry(reading(720)),
        orders=ordered(*schedules),
        last_submission=last,
        policies=PolicySettings(too_often="reject"),
    )
    assert judgement.retry_after == wait
    assert judgement.accepted == (wait is None)


def test_the_wait_is_told_in_hours_or_days() -> None:
    for period, text in ((days(1), "again in 24.0 hours"), (days(14), "again in 14.0 days")):
        orders = ordered(asks(READING, period=period))
        assert judged(entry(reading()), orders=orders, last_submission=NOW).issues[0].text.endswith(text)


def test_observing_rejects_nothing_and_loses_no_finding() -> None:
    items = [
        None,
        entry(reading(id="bad"), urn(1)),
        entry(summary(urn(1))),
        entry(reading(), method="PUT"),
        entry(gmi()),
    ]
    rules = FakeRules({"bad": Issue("bad", "b", severity="fatal")})
    for kind in ("batch", "transaction"):
        taken = submitted(*items, kind=kind, endpoint="base")
        observed = judge(taken, context(rules=rules, observe=True))
        enforced = judge(taken, context(rules=rules))
        assert rules_found(observed) == rules_found(enforced)
        assert observed.accepted
        assert all(verdict.accepted for verdict in observed.verdicts)
        assert not all(verdict.accepted for verdict in enforced.verdicts)


def test_a_large_submission_is_judged() -> None:
    items = [entry(reading(n % 40_000, value=n, device={"reference": urn(1)})) for n in range(50_000)]
    judgement = judged(*items, entry(device(), urn(1)), orders=ordered(asks(READING, lookback=days(30))))
    assert judgement.accepted
    assert not any(verdict.issues for verdict in judgement.verdicts)


def test_a_urn_that_no_entry_has_is_refused_and_a_stored_reference_is_the_upstreams_affair() -> None:
    dangling = reading(0, device={"reference": "urn:uuid:0b0fb34f-4fd6-4e10-9d6e-0cf1a7ad2cb1"})
    stored = reading(1, device={"reference": "Device/7"})
    first, second = judged(entry(dangling), entry(stored)).verdicts
    assert [(issue.rule, issue.expression) for issue in first.issues] == [
        ("reference-unknown", "Observation.device.reference")
    ]
    assert second.accepted


def test_a_made_up_name_is_not_found_in_an_answer() -> None:
    """Nor does a resource of nothing but references that lead nowhere take long."""
    urns = [f"urn:uuid:{number}" for number in range(20_000)]
    (verdict,) = judged(
        entry(reading(0, **{"x; rm": {"reference": urns[0]}, "y": [{"reference": u} for u in urns]}))
    ).verdicts
    assert {issue.expression for issue in verdict.issues} == {f"Observation.y[{n}].reference" for n in range(20_000)}
