"""The policies on orders: what each finding leads to, and when an entry or submission has it."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from support.submissions import (
    NOW,
    PDF,
    READING,
    SUMMARY,
    FakeRules,
    device,
    entry,
    gmi,
    judged,
    nested,
    reading,
    report,
    rules_found,
    summary,
    urn,
)

from cgm_proxy.core.codec.json_body import encode
from cgm_proxy.core.issues import Issue
from cgm_proxy.core.rules.rulebook import RuleBook
from cgm_proxy.core.submission.orders import Schedule, StandingOrder
from cgm_proxy.core.submission.verdicts import Judgement
from cgm_proxy.rulekit.loading import rule_book
from cgm_proxy.settings.loading import PolicySettings


@pytest.fixture(scope="module")
def book() -> RuleBook:
    return rule_book()


def orders_with(*schedules: Schedule, dialects: tuple[str, ...] = ("1.0.0",)) -> tuple[StandingOrder, ...]:
    return (StandingOrder("ServiceRequest/o", frozenset(dialects), schedules),)


def schedule(*profiles: str, **more: Any) -> Schedule:
    return Schedule(frozenset(profiles), **more)


def days(number: float) -> timedelta:
    return timedelta(days=number)


def issues_of(judgement: Judgement) -> list[tuple[str, str]]:
    """Return rule and severity of all issues of a judgement."""
    issues = [*judgement.issues, *(issue for verdict in judgement.verdicts for issue in verdict.issues)]
    return [(issue.rule, issue.severity) for issue in issues]


FINDINGS: dict[str, tuple[str, dict[str, Any], list[Any]]] = {
    "no_order": ("order-none", {}, [reading()]),
    "incomplete": ("order-incomplete", {"orders": orders_with(schedule(READING, SUMMARY))}, [reading()]),
    "unsolicited": ("order-unsolicited", {"orders": orders_with(schedule(READING))}, [reading(), report()]),
    "outside_lookback": (
        "order-lookback",
        {"orders": orders_with(schedule(READING, lookback=days(1)))},
        [reading(effectiveDateTime="2025-06-01T00:00:00Z")],
    ),
    "too_often": (
        "order-too-often",
        {"orders": orders_with(schedule(READING, period=days(14))), "last_submission": NOW - days(1)},
        [reading()],
    ),
}
EFFECTS = {"accept": [], "warn": ["information"], "reject": ["error"]}


@pytest.mark.parametrize("observe", [False, True])
@pytest.mark.parametrize("policy", EFFECTS)
@pytest.mark.parametrize("finding", FINDINGS)
def test_the_policy_decides_what_a_finding_leads_to(finding: str, policy: str, observe: bool) -> None:
    rule, more, resources = FINDINGS[finding]
    policies = PolicySettings(**{**dict.fromkeys(FINDINGS, "accept"), finding: policy})
    judgement = judged(*map(entry, resources), policies=policies, observe=observe, **more)
    severities = ["warning" if observe and severity == "error" else severity for severity in EFFECTS[policy]]
    assert issues_of(judgement) == [(rule, severity) for severity in severities]
    refused = policy == "reject" and not observe
    whole = finding not in {"unsolicited", "outside_lookback"}
    assert judgement.accepted == (not (refused and whole))
    assert judgement.verdicts[-1].accepted == (not (refused and not whole))
    assert (judgement.retry_after is not None) == (refused and finding == "too_often")


COMPLETE = {
    "all of the one schedule": ([schedule(READING, SUMMARY)], [reading(), summary()], True),
    "one of two schedules": ([schedule(READING), schedule(SUMMARY, PDF)], [reading(), summary()], True),
    "a part of each schedule": ([schedule(READING, PDF), schedule(SUMMARY, PDF)], [reading(), summary()], False),
    "none of the schedule": ([schedule(PDF)], [device()], False),
    "a member does not replace its summary": ([schedule(SUMMARY)], [gmi()], False),
    "a schedule without profiles asks for nothing": ([schedule()], [reading()], True),
}


@pytest.mark.parametrize(("schedules", "resources", "complete"), COMPLETE.values(), ids=COMPLETE)
def test_a_submission_is_complete_if_it_satisfies_one_schedule(schedules: Any, resources: Any, complete: bool) -> None:
    judgement = judged(*map(entry, resources), orders=orders_with(*schedules))
    assert ("order-incomplete" in [issue.rule for issue in judgement.issues]) == (not complete)
    assert judgement.accepted == complete


def test_a_schedule_of_any_order_may_be_the_one_that_is_satisfied() -> None:
    orders = orders_with(schedule(READING)) + orders_with(schedule(SUMMARY))
    assert issues_of(judged(entry(summary()), entry(gmi()), orders=orders)) == []
    text = judged(entry(device()), orders=orders).issues[0].text
    assert text.endswith("add cgm-sensor-reading-mass-per-volume or cgm-summary")


def test_a_refused_entry_does_not_make_the_submission_incomplete_too() -> None:
    rules = FakeRules({"bad": Issue("bad", "b")})
    judgement = judged(entry(summary(id="bad")), entry(gmi()), orders=orders_with(schedule(SUMMARY)), rules=rules)
    assert issues_of(judgement) == [("bad", "error")]


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
def test_an_entry_that_is_not_allowed_does_not_make_the_submission_incomplete_too(
    change: dict[str, Any], rule: str
) -> None:
    """The refused entry counts as present with the profiles that it claims or, without claims, that its code implies."""
    change.get("resource", {}).pop("subject", None)
    items = [entry(gmi(), urn(1)), entry(summary()), entry(reading()) | change]
    judgement = judged(*items, orders=orders_with(schedule(READING)), policies=PolicySettings(unsolicited="accept"))
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
def test_a_refused_entry_that_cannot_be_interpreted_has_no_profile(resource: Any, book: RuleBook) -> None:
    judgement = judged(entry(resource, method="PUT"), entry(gmi()), orders=orders_with(schedule(READING)), rules=book)
    assert [issue.rule for issue in judgement.issues] == ["order-incomplete"]


@pytest.mark.parametrize(
    ("resource", "solicited"),
    [(reading(), False), (summary(), True), (gmi(), True), (device(), True), (report(), False)],
)
def test_an_order_for_summaries_asks_for_their_members_and_any_order_for_the_device(
    resource: Any, solicited: bool
) -> None:
    rules = rules_found(judged(entry(summary()), entry(resource), orders=orders_with(schedule(SUMMARY))))
    assert rules[1] == ([] if solicited else ["order-unsolicited"])


@pytest.mark.parametrize("dialects", [("argo",), ("0.1.0",), ("1.0.0-ballot",)])
def test_an_order_of_another_dialect_is_ignored(dialects: tuple[str, ...]) -> None:
    orders = orders_with(schedule(PDF), dialects=dialects)
    assert issues_of(judged(entry(reading()), orders=orders)) == []
    policies = PolicySettings(no_order="reject")
    assert issues_of(judged(entry(reading()), orders=orders, policies=policies)) == [("order-none", "error")]


LOOKBACK = orders_with(schedule(READING, lookback=days(14)))


@pytest.mark.parametrize(
    ("effective", "timely"),
    [
        ({"effectiveDateTime": "2025-06-15T11:00:00Z"}, True),
        ({"effectiveDateTime": "2025-06-01T12:00:00Z"}, True),
        ({"effectiveDateTime": "2025-06-01T11:59:58Z"}, False),
        ({"effectiveDateTime": "2025-06-01T13:59:58+02:00"}, False),
        ({"effectiveDateTime": "2025-06-01"}, True),  # a part of the day is within the period
        ({"effectiveDateTime": "2025-05-31"}, False),
        ({"effectiveDateTime": "2025"}, True),
        ({"effectiveDateTime": "1000-01-01T00:00:00Z"}, False),
        ({"effectiveDateTime": "0001-01-01T00:00:00+14:00"}, True),  # before the year 1 in UTC: no valid date
        ({"effectiveDateTime": None, "effectivePeriod": {"start": "2025-05-01", "end": "2025-06-10"}}, True),
        ({"effectiveDateTime": None, "effectivePeriod": {"start": "2025-05-01", "end": "2025-05-31"}}, False),
        ({"effectiveDateTime": None, "effectivePeriod": {"start": "2020"}}, True),
        ({"effectiveDateTime": None, "effectivePeriod": [5]}, True),
        ({"effectiveDateTime": 5}, True),
    ],
)
def test_the_lookback_period_is_exact_to_the_second(effective: dict[str, Any], timely: bool) -> None:
    assert issues_of(judged(entry(reading() | effective), orders=LOOKBACK)) == (
        [] if timely else [("order-lookback", "information")]
    )


def at(*fields: int) -> datetime:
    return datetime(*fields, tzinfo=UTC)  # type: ignore[arg-type,misc]


WINDOW = schedule(READING, window=(at(2025, 6, 1), at(2025, 6, 3)))


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
def test_a_one_time_order_asks_for_data_in_its_window(instant: str, timely: bool) -> None:
    item = entry(reading(effectiveDateTime=instant))
    expected = [] if timely else [("order-unsolicited", "error")]
    assert issues_of(judged(item, orders=orders_with(WINDOW))) == expected
    assert issues_of(judged(item, orders=orders_with(WINDOW, schedule(READING)))) == []
    with_lookback = judged(item, orders=orders_with(WINDOW, schedule(READING, lookback=days(1))))
    assert issues_of(with_lookback) == ([] if timely else [("order-lookback", "information")])


@pytest.mark.parametrize(
    ("schedules", "last", "wait"),
    [
        ([schedule(READING, period=days(14))], NOW - days(13), days(1)),
        ([schedule(READING, period=days(14))], NOW - days(14), None),
        ([schedule(READING, period=days(14))], None, None),
        ([schedule(READING, period=days(14)), schedule(SUMMARY, period=days(2))], NOW - days(1), days(1)),
        (
            [schedule(READING, period=days(14)), schedule(READING)],
            NOW - days(1),
            None,
        ),  # the second schedule has no period
        ([schedule(READING, period=days(14)), WINDOW], NOW - days(1), None),
        ([schedule(READING, period=days(36_500))], NOW, days(36_500)),
        ([schedule(READING, period=days(1))], NOW + days(5), days(6)),  # an upstream's clock that runs ahead
    ],
)
def test_a_submission_is_too_early_within_the_shortest_period(
    schedules: Any, last: Any, wait: timedelta | None
) -> None:
    judgement = judged(
        entry(reading(720)),
        orders=orders_with(*schedules),
        last_submission=last,
        policies=PolicySettings(too_often="reject"),
    )
    assert judgement.retry_after == wait
    assert judgement.accepted == (wait is None)


def test_the_message_has_the_time_to_wait_in_hours_or_days() -> None:
    for period, text in ((days(1), "again in 24.0 hours"), (days(14), "again in 14.0 days")):
        orders = orders_with(schedule(READING, period=period))
        assert judged(entry(reading()), orders=orders, last_submission=NOW).issues[0].text.endswith(text)
