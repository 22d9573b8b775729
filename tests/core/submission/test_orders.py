"""Orders are read in the form of every dialect; malformed parts ask for nothing and never raise."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.places import GUIDE

from cgm_proxy.core.codec.json_body import decode
from cgm_proxy.core.r4.dates import FIRST, LAST
from cgm_proxy.core.submission.dialects import DIALECTS, DIALECTS_BY_ID
from cgm_proxy.core.submission.orders import LONGEST_PERIOD, ONE_TIME, SCHEDULE, Schedule, StandingOrder, read_orders

EXAMPLES = GUIDE / "ig"
STU1 = DIALECTS_BY_ID["1.0.0"]


def order(*parts: Any, dialect: str = "1.0.0", code: int = 0, form: str = SCHEDULE, **more: Any) -> dict[str, Any]:
    guide = DIALECTS_BY_ID[dialect]
    made = {
        "resourceType": "ServiceRequest",
        "id": "o",
        "status": "active",
        "code": {"coding": [{"system": guide.code_system, "code": guide.order_codes[code]}]},
        "extension": [{"url": guide.canonical_url(form), "extension": list(parts)}],
    }
    return made | more


def profile(name: str, dialect: str = "1.0.0") -> dict[str, Any]:
    return {"url": "submissionDataProfile", "valueCanonical": DIALECTS_BY_ID[dialect].canonical_url(name)}


def quantity(url: str, value: Any, code: Any, **more: Any) -> dict[str, Any]:
    return {"url": url, "valueQuantity": {"value": value, "code": code, **more}}


def frequency(**repeat: Any) -> dict[str, Any]:
    return {"url": "submissionFrequency", "valueTiming": {"repeat": repeat}}


def only_schedule(resource: Any) -> Schedule:
    [found] = read_orders([resource])
    [schedule] = found.schedules
    return schedule


@pytest.mark.parametrize("dialect", [dialect.id for dialect in DIALECTS])
def test_a_service_request_with_a_dialects_code_is_an_order_of_that_dialect(dialect: str) -> None:
    [found] = read_orders([order(profile("cgm-summary", dialect), dialect=dialect)])
    assert dialect in found.dialects
    assert found.location == "ServiceRequest/o"
    assert found.schedules == (Schedule(frozenset({DIALECTS_BY_ID[dialect].canonical_url("cgm-summary")})),)


def test_ballot_and_stu1_share_the_standing_order_and_only_stu1_has_one_time_orders() -> None:
    found = read_orders([order(), order(code=1, form=ONE_TIME), order(dialect="argo"), order(dialect="0.1.0")])
    assert [sorted(each.dialects) for each in found] == [["1.0.0", "1.0.0-ballot"], ["1.0.0"], ["argo"], ["0.1.0"]]


@pytest.mark.parametrize(
    "change",
    [
        {"status": "completed"},
        {"status": "draft"},
        {"status": None},
        {"status": ["active"]},
        {"resourceType": "MedicationRequest"},
        {"code": None},
        {"code": {"coding": [{"system": STU1.code_system, "code": "other"}]}},
        {"code": {"coding": [{"system": "http://other", "code": STU1.order_codes[0]}]}},
        {"code": {"coding": [{"code": STU1.order_codes[0]}]}},
        {"code": {"text": STU1.order_codes[0]}},
    ],
)
def test_other_resources_and_inactive_orders_are_left_out(change: dict[str, Any]) -> None:
    assert read_orders([order() | change]) == ()


def test_a_schedule_of_another_dialect_asks_for_nothing() -> None:
    foreign = {"url": DIALECTS_BY_ID["argo"].canonical_url(SCHEDULE), "extension": [profile("cgm-summary", "argo")]}
    assert read_orders([order(extension=[foreign])])[0].schedules == ()


def test_one_order_may_hold_several_schedules() -> None:
    [found] = read_orders(
        [
            order(
                extension=[
                    {
                        "url": STU1.canonical_url(SCHEDULE),
                        "extension": [profile("cgm-summary"), quantity("submissionPeriod", 2, "wk")],
                    },
                    {
                        "url": STU1.canonical_url(SCHEDULE),
                        "extension": [profile("cgm-device"), quantity("submissionPeriod", 1, "d")],
                    },
                ]
            )
        ]
    )
    assert [schedule.period for schedule in found.schedules] == [timedelta(weeks=2), timedelta(days=1)]


def test_the_version_of_a_profile_is_ignored() -> None:
    versioned = {"url": "submissionDataProfile", "valueCanonical": STU1.canonical_url("cgm-summary") + "|1.0.0"}
    assert only_schedule(order(versioned, profile("cgm-summary"))).profiles == {STU1.canonical_url("cgm-summary")}


@pytest.mark.parametrize(
    ("part", "period"),
    [
        (quantity("submissionPeriod", 2, "wk"), timedelta(weeks=2)),
        (quantity("submissionPeriod", Decimal("0.5"), "d"), timedelta(hours=12)),
        (quantity("submissionPeriod", 1, None, unit="h"), timedelta(hours=1)),
        (quantity("submissionPeriod", 12, "mo"), timedelta(days=365.25)),
        (quantity("submissionPeriod", 10**30, "a"), LONGEST_PERIOD),
        (quantity("submissionPeriod", 10**4000, "s"), LONGEST_PERIOD),
        (quantity("submissionPeriod", Decimal("1e999999999"), "s"), LONGEST_PERIOD),
        (frequency(frequency=1, period=2, periodUnit="wk"), timedelta(weeks=2)),
        (frequency(period=1, periodUnit="d"), timedelta(days=1)),
        (frequency(frequency=2, period=1, periodUnit="d"), timedelta(hours=12)),
        (frequency(frequency=1, frequencyMax=4, period=Decimal("1.0"), periodUnit="d"), timedelta(hours=6)),
        (frequency(frequency=10**400, period=1, periodUnit="d"), timedelta()),
        (frequency(frequency=0, period=1, periodUnit="d"), timedelta(days=1)),
        (frequency(frequency=-1, period=1, periodUnit="d"), timedelta(days=1)),
        (frequency(frequency="2", period=1, periodUnit="d"), timedelta(days=1)),
    ],
)
def test_a_period_is_read_from_a_quantity_and_from_a_timing(part: dict[str, Any], period: timedelta) -> None:
    assert only_schedule(order(part)).period == period
    assert only_schedule(order(part, dialect="argo")).period == period


@pytest.mark.parametrize(
    "part",
    [
        quantity("submissionPeriod", 0, "d"),
        quantity("submissionPeriod", Decimal("1e-999999999"), "s"),
        quantity("submissionPeriod", -1, "d"),
        quantity("submissionPeriod", "2", "d"),
        quantity("submissionPeriod", None, "d"),
        quantity("submissionPeriod", 2, "fortnight"),
        quantity("submissionPeriod", 2, ["d"]),
        quantity("submissionPeriod", [2], "d"),
        {"url": "submissionPeriod", "valueQuantity": [5]},
        {"url": "submissionPeriod"},
        frequency(period=1),
        frequency(periodUnit="d"),
        frequency(period={}, periodUnit={}),
        {"url": "submissionFrequency", "valueTiming": {"repeat": []}},
        {"url": "submissionFrequency", "valueTiming": 5},
        {"url": ["submissionPeriod"], "valueQuantity": {"value": 1, "code": "d"}},
        {"url": {}},
        None,
        5,
        [],
    ],
)
def test_a_malformed_period_is_ignored(part: Any) -> None:
    assert only_schedule(order(part, profile("cgm-summary"))) == Schedule(
        frozenset({STU1.canonical_url("cgm-summary")})
    )


def test_the_lookback_period_is_read() -> None:
    assert only_schedule(order(quantity("lookbackPeriod", 30, "d"))).lookback == timedelta(days=30)


def at(*fields: int) -> datetime:
    return datetime(*fields, tzinfo=UTC)  # type: ignore[arg-type,misc]


@pytest.mark.parametrize(
    ("period", "window"),
    [
        ({"start": "2024-12-17", "end": "2025-01-16"}, (at(2024, 12, 17), at(2025, 1, 17))),
        ({"start": "2024", "end": "2024"}, (at(2024, 1, 1), at(2025, 1, 1))),
        ({"start": "2024-12-17"}, (at(2024, 12, 17), LAST)),
        ({"end": "2025-01-16"}, (FIRST, at(2025, 1, 17))),
        ({"start": "2024-12-17", "end": "9999-12-31"}, (at(2024, 12, 17), LAST)),
        ({}, None),
        ({"start": "soon", "end": 5}, None),
        ([], None),
        (None, None),
        ("2024", None),
    ],
)
def test_the_time_period_of_a_one_time_order_is_its_window(
    period: Any, window: tuple[datetime, datetime] | None
) -> None:
    part = {"url": "timePeriod", "valuePeriod": period}
    assert only_schedule(order(part, code=1, form=ONE_TIME)).window == window


WRONG: list[Any] = [None, True, 5, "x", [], {}, [[]], [None], ["x"], [{"url": []}], [{"url": {}, "extension": 5}], [{}]]


@pytest.mark.parametrize("wrong", WRONG, ids=repr)
def test_an_order_of_wrong_types_asks_for_nothing(wrong: Any) -> None:
    resources: list[dict[str, Any]] = [
        order(extension=wrong),
        order(extension=[{"url": STU1.canonical_url(SCHEDULE), "extension": wrong}]),
        order({"url": "submissionDataProfile", "valueCanonical": wrong if wrong != "x" else None}),
        order(id=wrong),
    ]
    for resource in resources:
        [found] = read_orders([resource])
        assert not any(schedule.profiles for schedule in found.schedules)
    for resource in (
        order(code=0) | {"code": wrong},
        order() | {"code": {"coding": wrong}},
        order() | {"status": wrong},
    ):
        assert read_orders([resource]) == ()


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.integers() | st.decimals(allow_nan=False, allow_infinity=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
NAMED = st.dictionaries(
    st.sampled_from(
        ["url", "valueQuantity", "valueTiming", "valuePeriod", "valueCanonical", "value", "code", "repeat"]
    ),
    JSON | st.sampled_from(["submissionPeriod", "timePeriod", "submissionFrequency", "submissionDataProfile", "d"]),
)


@given(st.lists(NAMED | JSON, max_size=4))
def test_any_json_in_an_order_is_read_without_error(parts: list[Any]) -> None:
    assert isinstance(read_orders([order(*parts)])[0], StandingOrder)


SUMMARY_AND_PDF = frozenset({"cgm-summary", "cgm-summary-pdf"})


GUIDE_EXAMPLES = [
    ("argo/{}StandingOrderExample", {"argo"}, SUMMARY_AND_PDF, 14, None),
    ("0.1.0/{}StandingOrderExample", {"0.1.0"}, SUMMARY_AND_PDF, 14, None),
    ("1.0.0-ballot/{}StandingOrderExample", {"1.0.0", "1.0.0-ballot"}, SUMMARY_AND_PDF, 14, None),
    ("1.0.0/{}StandingOrderExample", {"1.0.0", "1.0.0-ballot"}, SUMMARY_AND_PDF, 14, None),
    ("1.0.0/{}OneTimeOrder30DayExample", {"1.0.0"}, {"cgm-summary"}, None, (at(2024, 12, 17), at(2025, 1, 17))),
    (
        "1.0.0/{}OneTimeOrderExample",
        {"1.0.0"},
        {"cgm-sensor-reading-mass-per-volume"},
        None,
        (at(2024, 1, 1), at(2025, 1, 1)),
    ),
]


if EXAMPLES.exists():  # the guide's examples are not part of the repository

    @pytest.mark.parametrize(("file", "dialects", "profiles", "period", "window"), GUIDE_EXAMPLES)
    def test_the_orders_in_the_guides_examples_are_read(
        file: str, dialects: Any, profiles: Any, period: Any, window: Any
    ) -> None:
        folder, _, name = file.format("ServiceRequest-cgmDataSubmission").partition("/")
        data = (EXAMPLES / folder / "examples" / f"{name}.json").read_bytes()
        [found] = read_orders([decode(data)])
        [schedule] = found.schedules
        assert found.dialects == dialects
        assert {profile.rpartition("/")[2] for profile in schedule.profiles} == profiles
        assert (schedule.period, schedule.window) == (period and timedelta(days=period), window)
