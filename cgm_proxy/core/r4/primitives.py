"""Primitive values: what each type's JSON must look like (https://hl7.org/fhir/R4/datatypes.html#primitive).

`fault(type, value)` gives what is wrong with a value, in words, or None. Times are those of the calendar: 30 February is
no date. Where the specification leaves room, the HL7 validator's reading is taken (named beside the pattern).
"""

import re
from calendar import monthrange
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from cgm_proxy.core.r4.uris import WHITE, canonical_fault, oid_fault, uri_fault, uuid_fault

_DATE = r"(?P<y>[0-9]{4})(?:-(?P<m>[0-9]{2})(?:-(?P<d>[0-9]{2})%s)?)?"
#: Seconds may be 60 (a leap second); hours end at 23; offsets at 14:00.
_TIME = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:(?:[0-5][0-9]|60)"
_CLOCK = _TIME + r"(?:\.[0-9]+)?"
_ZONE = r"(?:Z|[+-](?:(?:0[0-9]|1[0-3]):[0-5][0-9]|14:00))"
_PATTERNS = {
    "date": re.compile(_DATE % ""),
    "dateTime": re.compile(_DATE % f"(?:T{_CLOCK}{_ZONE})?"),
    "instant": re.compile(rf"(?P<y>[0-9]{{4}})-(?P<m>[0-9]{{2}})-(?P<d>[0-9]{{2}})T{_CLOCK}{_ZONE}"),
    "time": re.compile(_TIME),  # the HL7 validator takes no fractions here
    "id": re.compile(r"[A-Za-z0-9\-.]{1,64}"),
}
_WANTED = {
    "date": "a date such as 2024-05-01",
    "dateTime": "a date, or a date and time with seconds and zone such as 2024-05-01T10:15:00Z",
    "instant": "a date and time with seconds and zone such as 2024-05-01T10:15:00Z",
    "time": "a time such as 10:15:00",
    "id": "1 to 64 letters, digits, - or .",
    "code": "a code without leading, trailing or double spaces",
}
BASE64 = re.compile(r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?")
#: FHIR integers are 32-bit.
_RANGES = {"integer": (-(2**31), 2**31 - 1), "unsignedInt": (0, 2**31 - 1), "positiveInt": (1, 2**31 - 1)}
LONGEST_SHOWN = 60
#: The byte order mark, which the HL7 validator takes out of any text.
NOTHING = "\ufeff"
#: Letters below U+0020 have no place in text (https://hl7.org/fhir/R4/datatypes.html#string); of two the validator says so, and
#: a server on PostgreSQL can't store U+0000.
CONTROL = re.compile("[\0\b\f]")


def show(value: Any) -> str:
    """Give a value for a message, quoted and cut to about 60 characters; of an object only its kind."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "an array"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if not isinstance(value, str):
        return str(value)[:LONGEST_SHOWN]
    cut = value if len(value) <= LONGEST_SHOWN else value[:LONGEST_SHOWN] + "…"
    return '"' + cut.replace('"', "'").replace("\n", " ") + '"'


def _calendar(found: re.Match[str]) -> bool:
    year, month, day = (int(found[part]) if found[part] else 1 for part in "ymd")
    return year > 0 and 1 <= month <= 12 and 1 <= day <= monthrange(year, month)[1]


def _dated(type_: str) -> Callable[[Any], str | None]:
    pattern = _PATTERNS[type_]

    def check(value: Any) -> str | None:
        found = pattern.fullmatch(value)
        return None if found and _calendar(found) else _WANTED[type_]

    return check


def _shaped(type_: str) -> Callable[[Any], str | None]:
    pattern = _PATTERNS[type_]
    return lambda value: None if pattern.fullmatch(value) else _WANTED[type_]


def _whole(type_: str) -> Callable[[Any], str | None]:
    least, most = _RANGES[type_]

    def check(value: Any) -> str | None:
        good = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
        return None if good else f"a whole number from {least} to {most}"

    return check


def _decimal(value: Any) -> str | None:
    if isinstance(value, Decimal) and not value and int(value.as_tuple().exponent) >= 0:
        return "a number without a leading zero"  # 0e0, 0E5; a plain 0 is an int
    return None if isinstance(value, int | Decimal | float) and not isinstance(value, bool) else "a number"


def _boolean(value: Any) -> str | None:
    return None if isinstance(value, bool) else "true or false"


def base64_fault(value: str) -> str | None:
    """Say what base64 must be that is read."""
    return None if BASE64.fullmatch(value) else "base64 with padding and without spaces"


def _base64(value: str) -> str | None:
    """Say what base64 must be that nobody reads: the HL7 validator counts its letters, no more."""
    if BASE64.fullmatch(value):
        return None
    letters = sum(letter.isalnum() or letter in "/=+" for letter in value)
    return base64_fault(value) if letters % 4 else None


def _code(value: str) -> str | None:
    spaced = value.strip(WHITE) != value or "  " in value or any(letter in value for letter in WHITE[1:])
    return _WANTED["code"] if spaced else None


_NUMBERS: dict[str, Callable[[Any], str | None]] = {
    "boolean": _boolean,
    "decimal": _decimal,
    **{type_: _whole(type_) for type_ in _RANGES},
}
_TEXTS: dict[str, Callable[[Any], str | None]] = {
    **{type_: _shaped(type_) for type_ in _PATTERNS},
    **{type_: _dated(type_) for type_ in ("date", "dateTime", "instant")},
    "base64Binary": _base64,
    "code": _code,
    "uri": uri_fault,
    "url": uri_fault,
    "canonical": canonical_fault,
    "oid": oid_fault,
    "uuid": uuid_fault,
}


def fault(type_: str, value: Any) -> str | None:
    """Say what a primitive of this type must be when `value` is not that; None when it is."""
    if type_ in _NUMBERS:
        return _NUMBERS[type_](value)
    if not isinstance(value, str):
        return "a string"
    if not value:
        return "text that is not empty"
    if CONTROL.search(value):
        return "text without the letters U+0000, U+0008 and U+000C"
    return _TEXTS[type_](value) if type_ in _TEXTS else None


def span(value: str) -> tuple[datetime, datetime]:
    """Give the first and last instant that a valid date or dateTime may mean; without a zone, in UTC.

    `2024` is from the first to the last microsecond of that year.
    """
    if "T" in value:
        leap = value[16:19] == ":60"
        text = (value[:17] + "59" if leap else value[:19]) + re.sub(r"^.{19}(\.\d+)?", "", value)
        moment = datetime.fromisoformat(text) + timedelta(seconds=leap)
        found = re.match(r"^.{19}\.(\d{1,6})", value)
        moment += timedelta(microseconds=int(found[1].ljust(6, "0")) if found else 0)
        return moment, moment
    year, month, day = ([int(part) for part in value.split("-")] + [0, 0])[:3]
    last_month = month or 12
    last_day = day or monthrange(year, last_month)[1]
    start = datetime(year, month or 1, day or 1, tzinfo=UTC)
    end = datetime(year, last_month, last_day, 23, 59, 59, 999999, tzinfo=UTC)
    return start, end


def not_after(start: str, end: str) -> bool:
    """Whether start ≤ end is certain, as FHIRPath compares times of different precision.

    Same precision and same value: true. `2023` ≤ `2024-05-31`: true. `2024` ≤ `2024-05-31`: undecided, so false.
    """
    if len(start) == len(end) and "T" not in start:
        return start <= end
    try:
        (first, last), (least, most) = span(start), span(end)
    except (ValueError, OverflowError):
        return False
    if first == last and least == most:
        return first <= least
    return last < least
