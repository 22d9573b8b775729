"""FHIR's dates and times as spans of milliseconds since 1970 (https://hl7.org/fhir/R4/search.html#date).

A date of less than full precision means its whole span: `2024-05` is the whole of May. Without a zone it is UTC.
"""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from cgm_proxy.core.r4.dates import LAST, parse

#: The first and the last millisecond of a span, inclusive.
Span = tuple[int, int]

#: The bounds of a Period without start or end.
EVER = (-(2**62), 2**62)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def now() -> int:
    """Return the current time in milliseconds."""
    return _milliseconds(datetime.now(UTC))


def format_instant(milliseconds: int) -> str:
    """Return an instant as HAPI writes `meta.lastUpdated`: `2026-11-23T01:51:41.638+00:00`."""
    return (_EPOCH + timedelta(milliseconds=milliseconds)).isoformat(timespec="milliseconds")


def span(text: str) -> Span:
    """Return the span of a date, dateTime or instant; raise ValueError for any other text."""
    parsed = parse(text)
    if parsed is None:
        raise ValueError(text)
    low = _milliseconds(parsed.start)
    if parsed.precision == "fraction":
        return low, low
    return low, EVER[1] if parsed.end == LAST else _milliseconds(parsed.end) - 1


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


def _milliseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(milliseconds=1)
