"""FHIR's dates and times as spans of milliseconds since 1970 (https://hl7.org/fhir/R4/search.html#date).

A date of less than full precision means all of its span: `2024-05` is the whole of May. Without a zone it is UTC.
"""

import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

#: The first and the last millisecond of a span, both belonging to it.
Span = tuple[int, int]

#: The ends of a Period without start or end.
EVER = (-(2**62), 2**62)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND = timedelta(seconds=1)
_DATE = re.compile(
    r"(\d{4})(?:-(\d\d)(?:-(\d\d)(?:T(\d\d):(\d\d)(?::(\d\d)(?:\.(\d+))?)?(Z|[+-]\d\d:\d\d)?)?)?)?", re.ASCII
)


def now() -> int:
    """Give the present in milliseconds."""
    return _milliseconds(datetime.now(UTC))


def instant(milliseconds: int) -> str:
    """Write an instant as HAPI writes `meta.lastUpdated`: `2026-11-23T01:51:41.638+00:00`."""
    return (_EPOCH + timedelta(milliseconds=milliseconds)).isoformat(timespec="milliseconds")


def span(text: str) -> Span:
    """Give the span of a date, dateTime or instant; raises ValueError where the text is none."""
    found = _DATE.fullmatch(text)
    if not found:
        raise ValueError(text)
    year, month, day, hour, minute, second, fraction, zone = found.groups()
    offset = "+00:00" if zone in {None, "Z"} else zone
    written = f"{year}-{month or '01'}-{day or '01'}T{hour or '00'}:{minute or '00'}:{second or '00'}{offset}"
    try:
        start = datetime.fromisoformat(written)
    except ValueError:
        raise ValueError(text) from None
    low = _milliseconds(start) + int(((fraction or "") + "000")[:3])
    if fraction:
        return low, low
    try:
        return low, _milliseconds(_next(start, month, day, minute, second)) - 1
    except OverflowError:  # the year 9999 has no next one
        return low, EVER[1]


def spans(value: Any) -> Iterable[Span]:
    """Give the spans that a date, Period or Timing element covers; raises ValueError on a malformed date."""
    if isinstance(value, str):
        yield span(value)
    elif isinstance(value, dict):
        if "start" in value or "end" in value:
            yield _of_period(value)
        repeat, events = value.get("repeat"), value.get("event")
        yield from spans(repeat.get("boundsPeriod") if isinstance(repeat, dict) else None)
        for event in events if isinstance(events, list) else []:
            yield from spans(event)


def _of_period(period: dict[str, Any]) -> Span:
    low = span(str(period["start"]))[0] if "start" in period else EVER[0]
    return low, span(str(period["end"]))[1] if "end" in period else EVER[1]


def _next(start: datetime, month: str | None, day: str | None, minute: str | None, second: str | None) -> datetime:
    if second:
        return start + _SECOND
    if minute:
        return start + timedelta(minutes=1)
    if day:
        return start + timedelta(days=1)
    if month:
        return (start + timedelta(days=31)).replace(day=1)
    return (start + timedelta(days=366)).replace(day=1, month=1)


def _milliseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(milliseconds=1)
