"""Equal instants have equal texts, and partial dates span what they leave open."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cgm_proxy.core.submission.dates import LAST, interval, utc

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
def test_a_date_spans_what_it_leaves_open(text: str, start: datetime, end: datetime) -> None:
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
def test_what_is_no_date_spans_nothing(value: Any) -> None:
    assert interval(value) is None


@given(st.text("0123456789-T:.Z+ ", max_size=30))
def test_any_text_is_read_or_left(text: str) -> None:
    utc(text)
    interval(text)
