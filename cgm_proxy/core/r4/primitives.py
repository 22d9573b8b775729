"""Primitive values: what the JSON of each type must look like (https://hl7.org/fhir/R4/datatypes.html#primitive).

`fault(type, value)` returns what R4 requires instead of a wrong value, in words. Where the specification is not exact, the HL7
validator's reading counts; a comment says so.
"""

import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from cgm_proxy.core.r4.dates import is_date, is_date_time, is_instant, is_time
from cgm_proxy.core.r4.uris import WHITE, canonical_fault, oid_fault, uri_fault, uuid_fault

_ID = re.compile(r"[A-Za-z0-9\-.]{1,64}")
#: Base64 if it has a multiple of 4 letters. A repeated group of 4 would take 30 bytes of memory for each letter.
_BASE64 = re.compile(r"[A-Za-z0-9+/]*+={0,2}")
_NOT_COUNTED = re.compile(r"[^\w/=+]+")

#: Characters that are looked at together: no other thread runs meanwhile. A multiple of 4.
STEP = 2**20

#: FHIR integers are 32-bit.
_RANGES = {"integer": (-(2**31), 2**31 - 1), "unsignedInt": (0, 2**31 - 1), "positiveInt": (1, 2**31 - 1)}

#: Characters of a value that a message shows at most.
LONGEST_SHOWN = 60

#: The byte order mark, which the HL7 validator removes from any text.
BYTE_ORDER_MARK = "\ufeff"

#: Text must not have characters below U+0020 (https://hl7.org/fhir/R4/datatypes.html#string). The HL7 validator refuses two
#: of them, and a server on PostgreSQL cannot store U+0000.
CONTROL = ("\0", "\b", "\f")


def show(value: Any) -> str:
    """Return a value for a message, quoted and cut to about 60 characters; only the kind of an object or array."""
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


def fault(type_: str, value: Any) -> str | None:
    """Return what R4 requires instead of `value` for a primitive of this type; None if the value is right."""
    if type_ in _NUMBERS:
        return _NUMBERS[type_](value)
    if not isinstance(value, str):
        return "a string"
    if not value:
        return "text that is not empty"
    if any(character in value for character in CONTROL):
        return "text without the characters U+0000, U+0008 and U+000C"
    return _TEXTS[type_](value) if type_ in _TEXTS else None


def base64_fault(value: str) -> str | None:
    """Return what R4 requires instead of base64 that cannot be decoded."""
    return None if _is_base64(value) else "base64 with padding and without spaces"


def _is_base64(value: str) -> bool:
    return len(value) % 4 == 0 and _BASE64.fullmatch(value) is not None


def _base64(value: str) -> str | None:
    """Check base64 that nobody decodes: the HL7 validator only counts its characters."""
    if _is_base64(value):
        return None
    pieces = (value[start : start + STEP] for start in range(0, len(value), STEP))
    characters = sum(len(_NOT_COUNTED.sub("", piece)) - piece.count("_") for piece in pieces)
    return base64_fault(value) if characters % 4 else None


def _code(value: str) -> str | None:
    spaced = value.strip(WHITE) != value or "  " in value or any(character in value for character in WHITE[1:])
    return "a code without leading, trailing or double spaces" if spaced else None


def _boolean(value: Any) -> str | None:
    return None if isinstance(value, bool) else "true or false"


def _decimal(value: Any) -> str | None:
    if isinstance(value, Decimal) and not value and int(value.as_tuple().exponent) >= 0:
        return "a number without a leading zero"  # 0e0, 0E5; a plain 0 is an int
    return None if isinstance(value, int | Decimal | float) and not isinstance(value, bool) else "a number"


def _integer(type_: str) -> Callable[[Any], str | None]:
    least, most = _RANGES[type_]

    def check(value: Any) -> str | None:
        valid = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
        return None if valid else f"a whole number from {least} to {most}"

    return check


def _text(is_valid: Callable[[str], object], expected: str) -> Callable[[str], str | None]:
    return lambda value: None if is_valid(value) else expected


_NUMBERS: Mapping[str, Callable[[Any], str | None]] = {
    "boolean": _boolean,
    "decimal": _decimal,
    **{type_: _integer(type_) for type_ in _RANGES},
}
_TEXTS: Mapping[str, Callable[[str], str | None]] = {
    "base64Binary": _base64,
    "canonical": canonical_fault,
    "code": _code,
    "date": _text(is_date, "a date such as 2024-05-01"),
    "dateTime": _text(is_date_time, "a date, or a date and time with seconds and zone such as 2024-05-01T10:15:00Z"),
    "id": _text(_ID.fullmatch, "1 to 64 letters, digits, - or ."),
    "instant": _text(is_instant, "a date and time with seconds and zone such as 2024-05-01T10:15:00Z"),
    "oid": oid_fault,
    "time": _text(is_time, "a time such as 10:15:00"),
    "uri": uri_fault,
    "url": uri_fault,
    "uuid": uuid_fault,
}
