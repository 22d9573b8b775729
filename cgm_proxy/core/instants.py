"""FHIR's dates and times (https://hl7.org/fhir/R4/datatypes.html#dateTime) as spans of UTC: `2024` spans a year."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any

_PARTIAL = re.compile(r"(\d{4})(?:-(\d\d)(?:-(\d\d))?)?")
_FULL = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.(\d+))?(?:Z|[+-]\d\d:\d\d)")

#: Fraction digits that `datetime` keeps; finer instants stay apart as text.
MICROSECONDS = 6


def utc(text: str) -> str:
    """Give a full dateTime in UTC, so that equal instants have equal texts; any other text comes back as it is.

    Fractions of a second lose trailing zeros: `10:15:00.000+02:00` and `08:15:00Z` are one instant.
    """
    found = _FULL.fullmatch(text)
    if not found or len(found[1] or "") > MICROSECONDS:
        return text
    try:
        instant = datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        return text
    whole = instant.strftime("%Y-%m-%dT%H:%M:%S") if instant.microsecond else instant.isoformat()[:19]
    return f"{whole}.{instant.microsecond:06}".rstrip("0") + "Z" if instant.microsecond else f"{whole}Z"


def interval(text: Any) -> tuple[datetime, datetime] | None:
    """Give the span of a date or dateTime, start inclusive and end exclusive, in UTC; None for what is none.

    Partial dates are taken in UTC, since they name no zone.
    """
    if not isinstance(text, str):
        return None
    try:
        if _FULL.fullmatch(text):
            start = datetime.fromisoformat(text).astimezone(UTC)
            return start, start + timedelta(seconds=1)
        if found := _PARTIAL.fullmatch(text):
            return _span(int(found[1]), int(found[2] or 0), int(found[3] or 0))
    except (ValueError, OverflowError):
        pass
    return None


def _span(year: int, month: int, day: int) -> tuple[datetime, datetime]:
    start = datetime(year, month or 1, day or 1, tzinfo=UTC)
    if day:
        return start, start + timedelta(days=1)
    if month:
        return start, (start + timedelta(days=31)).replace(day=1)
    return start, start.replace(year=year + 1)
