"""FHIR's dates and times: the only place that reads them, as text and as instants of UTC.

https://hl7.org/fhir/R4/datatypes.html#dateTime and, for what a search may leave out, https://hl7.org/fhir/R4/search.html#date
"""

import re
from calendar import monthrange
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, get_args

#: The first and last instant of `datetime`. The year 9999 is written for "until further notice"; it ends at LAST.
FIRST, LAST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)

_SECOND, _MINUTE, _DAY = timedelta(seconds=1), timedelta(minutes=1), timedelta(days=1)

_TIME = r"([01][0-9]|2[0-3]):([0-5][0-9])"
#: 60 is a leap second.
_SECONDS = r"([0-5][0-9]|60)"
_ZONE = r"(Z|[+-](?:(?:0[0-9]|1[0-3]):[0-5][0-9]|14:00))"
_GRAMMAR = re.compile(
    rf"([0-9]{{4}})(?:-([0-9]{{2}})(?:-([0-9]{{2}})(?:T{_TIME}(?::{_SECONDS}(?:\.([0-9]+))?)?{_ZONE}?)?)?)?"
)
_CLOCK = re.compile(f"{_TIME}:{_SECONDS}")

Precision = Literal["year", "month", "day", "minute", "second", "fraction"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


@dataclass(frozen=True, slots=True)
class DateTime:
    """A date or time; without a zone it is taken in UTC.

    `start` is its first instant, in UTC, exact to the microsecond; a leap second is the first instant of the next minute.
    """

    start: datetime
    precision: Precision
    leap_second: bool = False

    @property
    def is_time(self) -> bool:
        """Whether it names a time of day."""
        return self.precision in {"minute", "second", "fraction"}

    @property
    def end(self) -> datetime:
        """The instant after its last one, or LAST if `datetime` has no later one; a time with a fraction lasts a second, too."""
        start = self.start
        try:
            match self.precision:
                case "year":
                    return start.replace(year=start.year + 1)
                case "month":
                    return (start + timedelta(days=31)).replace(day=1)
                case "day":
                    return start + _DAY
                case "minute":
                    return start + _MINUTE
            return start + _SECOND
        except (ValueError, OverflowError):
            return LAST


def parse(text: str) -> DateTime | None:
    """Return a date, dateTime, instant or date of a search; None for other text, and before FIRST or after LAST."""
    found = _GRAMMAR.fullmatch(text)
    return None if found is None else _parsed(found)


def _parsed(found: re.Match[str]) -> DateTime | None:
    year, month, day, hour, minute, second, fraction, zone = found.groups()
    leap_second = second == "60"
    try:
        if second and zone and not leap_second:
            start = datetime.fromisoformat(found[0])
        else:
            time = f"{hour or '00'}:{minute or '00'}:{'59' if leap_second else second or '00'}"
            fraction_and_zone = f"{'.' if fraction else ''}{fraction or ''}{zone or 'Z'}"
            start = datetime.fromisoformat(f"{year}-{month or '01'}-{day or '01'}T{time}{fraction_and_zone}")
        start = start.astimezone(UTC)
        if leap_second:
            start += _SECOND
    except (ValueError, OverflowError):
        return None
    given = (year, month, day, minute, second, fraction)
    return DateTime(start, PRECISIONS[5 - given.count(None)], leap_second)


def is_date(text: str) -> bool:
    """Whether a text is a date: a year, month or day of the calendar."""
    found = _GRAMMAR.fullmatch(text)
    return found is not None and found[4] is None and _in_calendar(found)


def is_date_time(text: str) -> bool:
    """Whether a text is a dateTime: a date, or a day with a time, seconds and zone."""
    found = _GRAMMAR.fullmatch(text)
    return found is not None and (found[4] is None or _is_complete(found)) and _in_calendar(found)


def is_instant(text: str) -> bool:
    """Whether a text is an instant: a day with a time, seconds and zone."""
    found = _GRAMMAR.fullmatch(text)
    return found is not None and _is_complete(found) and _in_calendar(found)


def is_time(text: str) -> bool:
    """Whether a text is a time of day with seconds; the HL7 validator takes no fractions here."""
    return _CLOCK.fullmatch(text) is not None


def _is_complete(found: re.Match[str]) -> bool:
    return found[6] is not None and found[8] is not None


def _in_calendar(found: re.Match[str]) -> bool:
    year, month, day = int(found[1]), int(found[2] or 1), int(found[3] or 1)
    return year > 0 and 1 <= month <= 12 and 1 <= day <= monthrange(year, month)[1]


def utc(text: str) -> str:
    """Return an instant in UTC, so that equal instants have equal texts; any other text comes back as it is.

    Fractions of a second lose trailing zeros: `10:15:00.000+02:00` and `08:15:00Z` are one instant. A leap second stays one:
    `01:59:60+02:00` is `23:59:60Z`.
    """
    if len(text) == 20 and text[-1] == "Z":  # nothing to change without an offset and a fraction
        return text
    found = _GRAMMAR.fullmatch(text)
    if found is None or not _is_complete(found):
        return text
    leap_second = found[6] == "60"  # which `datetime` does not have
    seconds = "59" if leap_second else found[6]
    try:
        whole = datetime.fromisoformat(f"{text[:17]}{seconds}{found[8]}").astimezone(UTC).isoformat()[:19]
    except (ValueError, OverflowError):
        return text
    if leap_second:
        whole = f"{whole[:17]}60"
    fraction = (found[7] or "").rstrip("0")
    return f"{whole}.{fraction}Z" if fraction else f"{whole}Z"


def interval(value: Any) -> tuple[datetime, datetime] | None:
    """Return the start (inclusive) and end (exclusive) in UTC of a date or dateTime; None for anything else.

    A leap second has no interval, as `datetime` has none.
    """
    found = _GRAMMAR.fullmatch(value) if isinstance(value, str) else None
    if found is None or not (found[4] is None or _is_complete(found)):
        return None
    parsed = _parsed(found)
    return None if parsed is None or parsed.leap_second else (parsed.start, parsed.end)


def not_after(start: str, end: str) -> bool:
    """Whether start ≤ end is certain, as FHIRPath compares times of different precision.

    Same precision and same value: true. `2023` ≤ `2024-05-31`: true. `2024` ≤ `2024-05-31`: undecided, so false.
    """
    if len(start) == len(end) and "T" not in start:
        return start <= end
    earlier, later = parse(start), parse(end)
    if earlier is None or later is None:
        return False
    if earlier.is_time and later.is_time:
        return earlier.start <= later.start
    return earlier.start < later.start if earlier.is_time else earlier.end <= later.start
