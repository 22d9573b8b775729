"""FHIR's dates and times (https://hl7.org/fhir/R4/datatypes.html#dateTime) as spans of UTC: `2024` spans a year."""

import re
from datetime import MAXYEAR, UTC, datetime, timedelta
from typing import Any

_SECOND = timedelta(seconds=1)
_PARTIAL = re.compile(r"(\d{4})(?:-(\d\d)(?:-(\d\d))?)?", re.ASCII)
_FULL = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d+))?(Z|[+-]\d\d:\d\d)", re.ASCII)

#: The ends of time, as far as `datetime` knows it: the year 9999 is written for "until further notice".
FIRST, LAST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)


def utc(text: str) -> str:
    """Give a full dateTime in UTC, so that equal instants have equal texts; any other text comes back as it is.

    Fractions of a second lose trailing zeros: `10:15:00.000+02:00` and `08:15:00Z` are one instant.
    """
    if len(text) == 20 and text[-1] == "Z":  # without an offset and a fraction there is nothing to change
        return text
    found = _FULL.fullmatch(text)
    if not found:
        return text
    try:
        whole = datetime.fromisoformat(f"{found[1]}{found[3]}").astimezone(UTC).isoformat()[:19]
    except (ValueError, OverflowError):
        return text
    fraction = (found[2] or "").rstrip("0")
    return f"{whole}.{fraction}Z" if fraction else f"{whole}Z"


def interval(text: Any) -> tuple[datetime, datetime] | None:
    """Give the span of a date or dateTime, start inclusive and end exclusive, in UTC; None for what is none.

    Partial dates are taken in UTC, since they name no zone.
    """
    if not isinstance(text, str):
        return None
    try:
        if _FULL.fullmatch(text):
            start = datetime.fromisoformat(text).astimezone(UTC)
            return start, LAST if start.year == MAXYEAR else start + _SECOND
        if found := _PARTIAL.fullmatch(text):
            return _span(*(int(part) for part in found.groups() if part))
    except (ValueError, OverflowError):
        pass
    return None


def _span(year: int, month: int | None = None, day: int | None = None) -> tuple[datetime, datetime]:
    start = datetime(year, 1 if month is None else month, 1 if day is None else day, tzinfo=UTC)
    if year == MAXYEAR:
        return start, LAST
    if day:
        return start, start + timedelta(days=1)
    if month:
        return start, (start + timedelta(days=31)).replace(day=1)
    return start, start.replace(year=year + 1)
