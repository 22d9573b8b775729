"""FHIR's dates and times as spans of milliseconds since 1970 (https://hl7.org/fhir/R4/search.html#date).

A date of less than full precision means its whole span: `2024-05` is the whole of May. Without a zone it is UTC. Unlike
elements, search values may leave out seconds or the zone, which `core.submission.dates` does not read.
"""

import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

#: The first and the last millisecond of a span, inclusive.
Span = tuple[int, int]

#: The bounds of a Period without start or end.
EVER = (-(2**62), 2**62)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DATE = re.compile(
    r"(\d{4})(?:-(\d\d)(?:-(\d\d)(?:T(\d\d):(\d\d)(?::(\d\d)(?:\.(\d+))?)?(Z|[+-]\d\d:\d\d)?)?)?)?", re.ASCII
)


def now() -> int:
    """Return the current time in milliseconds."""
    return _milliseconds(datetime.now(UTC))


def format_instant(milliseconds: int) -> str:
    """Return an instant as HAPI writes `meta.lastUpdated`: `2026-11-23T01:51:41.638+00:00`."""
    return (_EPOCH + timedelta(milliseconds=milliseconds)).isoformat(timespec="milliseconds")


def span(text: str) -> Span:
    """Return the span of a date, dateTime or instant; raise ValueError for any other text."""
    match = _DATE.fullmatch(text)
    if not match:
        raise ValueError(text)
    year, month, day, hour, minute, second, fraction, zone = match.groups()
    offset = "+00:00" if zone in {None, "Z"} else zone
    full = f"{year}-{month or '01'}-{day or '01'}T{hour or '00'}:{minute or '00'}:{second or '00'}{offset}"
    try:
        start = datetime.fromisoformat(full)
    except ValueError:
        raise ValueError(text) from None
    low = _milliseconds(start) + int(((fraction or "") + "000")[:3])
    if fraction:
        return low, low
    try:
        return low, _milliseconds(_end(start, month, day, minute, second)) - 1
    except OverflowError:  # the year 9999 has no next year
        return low, EVER[1]


def spans(value: Any) -> Iterable[Span]:
    """Yield the spans that a date, Period or Timing element covers; raise ValueError for a malformed date."""
    if isinstance(value, str):
        yield span(value)
    elif isinstance(value, dict):
        if "start" in value or "end" in value:
            low = span(str(value["start"]))[0] if "start" in value else EVER[0]
            yield low, span(str(value["end"]))[1] if "end" in value else EVER[1]
        repeat, events = value.get("repeat"), value.get("event")
        yield from spans(repeat.get("boundsPeriod") if isinstance(repeat, dict) else None)
        for event in events if isinstance(events, list) else []:
            yield from spans(event)


def _end(start: datetime, month: str | None, day: str | None, minute: str | None, second: str | None) -> datetime:
    """Return the first moment after a date whose parts beyond the last given one are None."""
    if second:
        return start + timedelta(seconds=1)
    if minute:
        return start + timedelta(minutes=1)
    if day:
        return start + timedelta(days=1)
    if month:
        return (start + timedelta(days=31)).replace(day=1)
    return (start + timedelta(days=366)).replace(day=1, month=1)


def _milliseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(milliseconds=1)
