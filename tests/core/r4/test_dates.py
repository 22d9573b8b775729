"""One grammar reads dates and times: as valid R4, as instants of UTC with equal texts, and as spans of what they leave open."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cgm_proxy.core.r4.dates import (
    FIRST,
    LAST,
    interval,
    is_date,
    is_date_time,
    is_instant,
    is_time,
    not_after,
    parse,
    utc,
)

#: Digits that are no ASCII, but digits for Python.
ARABIC = str.maketrans("0123456789", "".join(map(chr, range(0x660, 0x66A))))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2024-05-02T10:15:00Z", "2024-05-02T10:15:00Z"),
        ("2024-05-02T10:15:00+02:00", "2024-05-02T08:15:00Z"),
        ("2024-05-02T10:15:00-00:00", "2024-05-02T10:15:00Z"),
        ("2024-05-02T00:15:00+05:45", "2024-05-01T18:30:00Z"),
        ("2024-12-31T23:59:59-14:00", "2025-01-01T13:59:59Z"),
        ("2024-05-02T10:15:00.0Z", "2024-05-02T10:15:00Z"),
        ("2024-05-02T10:15:00.0000000Z", "2024-05-02T10:15:00Z"),
        ("2024-05-02T10:15:00.120+02:00", "2024-05-02T08:15:00.12Z"),
        ("2024-05-02T10:15:00.1234567890+02:00", "2024-05-02T08:15:00.123456789Z"),
        ("0999-01-01T00:00:00.5Z", "0999-01-01T00:00:00.5Z"),
    ],
)
def test_an_instant_is_written_in_utc_without_needless_zeros(text: str, expected: str) -> None:
    assert utc(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2024",
        "2024-05-02",
        "2024-05-02T10:15Z",
        "2024-05-02T10:15:00",
        "2024-05-02T10:15:60Z",  # a leap second
        "2024-05-02T24:00:00Z",
        "2024-02-30T10:15:00Z",
        "2024-05-02T10:15:00+99:00",
        "2024-05-02 10:15:00Z",
        "2024-05-02t10:15:00z",
        "2024-05-02T10:15:00.Z",
        "2024-05-02T10:15:00Z\n",
        "0001-01-01T00:00:00+14:00",
        "9999-12-31T23:59:59-14:00",
        "2024-05-02T10:15:00Z".translate(ARABIC),
        "x" * 100_000,
    ],
)
def test_any_other_text_stays_as_it_is(text: str) -> None:
    assert utc(text) == text


MOMENTS = st.datetimes(datetime(1, 1, 3), datetime(9999, 12, 29))
ZONES = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))


@given(MOMENTS, ZONES, ZONES, st.text("0", max_size=9))
def test_one_instant_has_one_text_in_any_zone_and_with_any_zeros(
    moment: datetime, one: timezone, other: timezone, zeros: str
) -> None:
    instant = moment.replace(tzinfo=one)
    assert utc(instant.isoformat(timespec="microseconds")) == utc(
        instant.astimezone(other).isoformat(timespec="microseconds").replace("+", f"{zeros}+")
    )


@given(MOMENTS, MOMENTS)
def test_two_instants_have_two_texts(one: datetime, other: datetime) -> None:
    texts = [utc(moment.replace(tzinfo=UTC).isoformat()) for moment in (one, other)]
    assert (texts[0] == texts[1]) == (one == other)


def at(*fields: int) -> datetime:
    return datetime(*fields, tzinfo=UTC)  # type: ignore[arg-type,misc]


@pytest.mark.parametrize(
    ("text", "start", "end"),
    [
        ("2024", at(2024, 1, 1), at(2025, 1, 1)),
        ("2024-02", at(2024, 2, 1), at(2024, 3, 1)),
        ("2024-12", at(2024, 12, 1), at(2025, 1, 1)),
        ("2024-02-29", at(2024, 2, 29), at(2024, 3, 1)),
        ("2024-12-31", at(2024, 12, 31), at(2025, 1, 1)),
        ("2024-05-02T10:15:00+02:00", at(2024, 5, 2, 8, 15), at(2024, 5, 2, 8, 15, 1)),
        ("2024-05-02T10:15:00.5Z", at(2024, 5, 2, 10, 15, 0, 500_000), at(2024, 5, 2, 10, 15, 1, 500_000)),
        ("9999", at(9999, 1, 1), LAST),
        ("9999-12-31", at(9999, 12, 31), LAST),
        ("9999-12-31T23:59:59Z", at(9999, 12, 31, 23, 59, 59), LAST),
    ],
)
def test_a_date_covers_all_that_it_leaves_open(text: str, start: datetime, end: datetime) -> None:
    assert interval(text) == (start, end)


@pytest.mark.parametrize(
    "value",
    [
        None,
        5,
        True,
        [],
        {},
        ["2024"],
        "",
        "24",
        "0000",
        "2024-13",
        "2024-00",
        "2024-05-00",
        "2023-02-29",
        "2024-1-1",
        "2024-05-02T10:15",
        "2024-05-02T10:15:60Z",
        "0001-01-01T00:00:00+14:00",
        "9999-12-31T23:59:59-14:00",
        "2024".translate(ARABIC),
        "2024\n",
        "now",
    ],
)
def test_other_values_have_no_interval(value: Any) -> None:
    assert interval(value) is None


@given(st.text("0123456789-T:.Z+ ", max_size=30))
def test_any_text_is_read_without_an_error(text: str) -> None:
    utc(text)
    interval(text)
    parse(text)
    assert is_date_time(text) >= (is_date(text) or is_instant(text))


#: Text, and whether it is a date, a dateTime and an instant.
VALID = [
    ("2024", "date dateTime"),
    ("2024-05", "date dateTime"),
    ("2024-02-29", "date dateTime"),
    ("2024-05-01T10:15:00Z", "dateTime instant"),
    ("2024-05-01T10:15:00.123456789+14:00", "dateTime instant"),
    ("2024-05-01T23:59:60Z", "dateTime instant"),
    ("0001-01-01T00:00:00+14:00", "dateTime instant"),
    ("2024-05-01T10:15:00", ""),
    ("2024-05-01T10:15Z", ""),
    ("2024-05-01T10:15", ""),
    ("2024-05-01T10:15:00+14:30", ""),
    ("2024-05-01T24:00:00Z", ""),
    ("2023-02-29", ""),
    ("2023-02-29T10:15:00Z", ""),
    ("0000", ""),
    ("2024-13", ""),
    ("2024-5", ""),
    (" 2024", ""),
    ("2024\n", ""),
    ("2024".translate(ARABIC), ""),
]


@pytest.mark.parametrize(("text", "types"), VALID)
def test_each_type_has_its_precision(text: str, types: str) -> None:
    checks = {"date": is_date, "dateTime": is_date_time, "instant": is_instant}
    assert [name for name, check in checks.items() if check(text)] == types.split()


def test_a_time_has_seconds_and_no_fraction() -> None:
    assert [is_time(text) for text in ("10:15:00", "23:59:60", "10:15", "24:00:00", "10:15:00.5", "10:15:00Z")] == [
        True,
        True,
        False,
        False,
        False,
        False,
    ]


@pytest.mark.parametrize(
    ("text", "precision", "start", "end"),
    [
        ("2024", "year", at(2024, 1, 1), at(2025, 1, 1)),
        ("2024-12", "month", at(2024, 12, 1), at(2025, 1, 1)),
        ("2024-05-02", "day", at(2024, 5, 2), at(2024, 5, 3)),
        ("2024-05-02T10:15", "minute", at(2024, 5, 2, 10, 15), at(2024, 5, 2, 10, 16)),
        ("2024-05-02T10:15+02:00", "minute", at(2024, 5, 2, 8, 15), at(2024, 5, 2, 8, 16)),
        ("2024-05-02T10:15:07", "second", at(2024, 5, 2, 10, 15, 7), at(2024, 5, 2, 10, 15, 8)),
        ("2024-05-02T10:15:07.25Z", "fraction", at(2024, 5, 2, 10, 15, 7, 250_000), at(2024, 5, 2, 10, 15, 8, 250_000)),
        ("2024-05-02T10:15:07.1234567890", "fraction", at(2024, 5, 2, 10, 15, 7, 123_456), None),
        ("2024-05-02T23:59:60Z", "second", at(2024, 5, 3), at(2024, 5, 3, 0, 0, 1)),
        ("2024-05-02T23:59:60.5Z", "fraction", at(2024, 5, 3, 0, 0, 0, 500_000), None),
        ("9999-11", "month", at(9999, 11, 1), at(9999, 12, 1)),
        ("9999-12", "month", at(9999, 12, 1), LAST),
        ("0001", "year", FIRST, at(2, 1, 1)),
    ],
)
def test_a_date_of_a_search_may_leave_out_seconds_and_zone(
    text: str, precision: str, start: datetime, end: datetime | None
) -> None:
    found = parse(text)
    assert found
    assert (found.precision, found.start) == (precision, start)
    assert found.is_time == ("T" in text)
    assert end is None or found.end == end


@pytest.mark.parametrize("text", ["", "2024-05-02T10", "2024-05-02T10:15:7", "2024-02-30", "2024-05-02 10:15", "now"])
def test_other_text_is_no_date(text: str) -> None:
    assert parse(text) is None


PERIODS = [
    ("2024", "2024", True),
    ("2023", "2024-05-31", True),
    ("2024", "2024-05-31", False),
    ("2024-05", "2024-05-31", False),
    ("2024-05-01", "2024-05-01", True),
    ("2024-05-02", "2024-05-01", False),
    ("2024-05-01", "2024-05-01T12:00:00Z", False),
    ("2024-05-01", "2024-05-02T00:00:00Z", True),
    ("2024-05-01", "2024-05-01T23:59:60Z", True),
    ("2024-05-01T12:00:00Z", "2024-05-01", False),
    ("2024-05-01T12:00:00Z", "2024-05-02", True),
    ("2024-05-01T12:00:00+02:00", "2024-05-01T10:00:00Z", True),
    ("2024-05-01T12:00:00.5Z", "2024-05-01T12:00:00.4Z", False),
    ("2024-05-01T23:59:60Z", "2024-05-02T00:00:00Z", True),
    ("9999-06-29", "9999-12", True),
    ("0001-01-01T00:00:00+14:00", "2024", False),  # before the first instant that can be compared
]


@pytest.mark.parametrize(("start", "end", "certain"), PERIODS)
def test_a_period_must_certainly_not_end_before_it_starts(start: str, end: str, certain: bool) -> None:
    assert not_after(start, end) is certain
