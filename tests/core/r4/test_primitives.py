"""Primitive values as the specification and the HL7 validator have them."""

from decimal import Decimal

import pytest

from cgm_proxy.core.r4.primitives import base64_fault, fault, show

GOOD = [
    ("dateTime", "2024"), ("dateTime", "2024-05"), ("dateTime", "2024-02-29"), ("dateTime", "2024-05-01T23:59:60Z"),
    ("dateTime", "2024-05-01T10:00:00.123456789+14:00"), ("dateTime", "2024-05-01T10:00:00-00:00"),
    ("instant", "2024-05-01T10:00:00Z"), ("time", "23:59:59"), ("decimal", Decimal("5.60")), ("decimal", 10**40),
    ("integer", -1), ("unsignedInt", 0), ("positiveInt", 1), ("boolean", False), ("code", "a b"), ("id", "a" * 64),
    ("string", " "), ("base64Binary", "AA=="), ("base64Binary", "!!"), ("base64Binary", "AA==\n"), ("uri", "relative"),
    ("uri", "urn:oid:1.2.3.4"), ("canonical", "#x"), ("oid", "urn:oid:1.2.36.1"), ("oid", "urn:oid:1.3.6"),
    ("uri", "urn:uuid:c757873d-ec9a-4326-a141-556f43239520#x"), ("canonical", "a:b"), ("url", "x\u00a0y"),
    ("code", "a\u200b"), ("decimal", 0), ("decimal", Decimal("0.0")), ("date", "9999-12-31"), ("uri", "HTTP://X"),
]  # fmt: skip
BAD = [
    ("dateTime", "2023-02-29"), ("dateTime", "0000"), ("dateTime", "2024-13"), ("dateTime", "2024-05-01T10:15Z"),
    ("dateTime", "2024-05-01T10:15:00"), ("dateTime", "2024-05-01T24:00:00Z"), ("dateTime", "2024-05-01t10:15:00z"),
    ("dateTime", "2024-05-01T10:15:00+14:30"), ("dateTime", " 2024"), ("instant", "2024-05-01"),
    ("date", "2024-05-01T00:00:00Z"), ("time", "24:00:00"), ("decimal", "1"), ("decimal", True),
    ("integer", Decimal("1.5")), ("integer", 2**31), ("unsignedInt", -1), ("positiveInt", 0), ("boolean", "true"),
    ("boolean", 1), ("code", " a"), ("code", "a  b"), ("id", "a_b"), ("id", "a" * 65), ("string", ""),
    ("base64Binary", "AA"), ("base64Binary", "A A"), ("base64Binary", "_-="), ("uri", "a b"), ("uri", "urn:uuid:X"),
    ("canonical", "x"), ("canonical", "HTTP://X"), ("string", 5), ("dateTime", 2024), ("oid", "urn:oid:1.2.3"),
    ("oid", "1.2.36.1"), ("uri", "oid:1.2.36.1"), ("uri", "x\u2028"), ("canonical", "http:"), ("code", "a\tb"),
    ("code", "a\u00a0b"), ("decimal", Decimal("0e0")), ("time", "10:15:00.5"), ("date", "\u0662\u0660\u0662\u0664-05-01"),
    ("uuid", "x"), ("uri", "urn:uuid:C757873D-ec9a-4326-a141-556f43239520"), ("uri", "a\tb"), ("url", " x"),
]  # fmt: skip


@pytest.mark.parametrize(("type_", "value"), GOOD)
def test_a_value_of_its_type_has_no_fault(type_: str, value: object) -> None:
    assert fault(type_, value) is None


@pytest.mark.parametrize(("type_", "value"), BAD)
def test_for_any_other_value_the_fault_names_what_is_expected(type_: str, value: object) -> None:
    assert len(fault(type_, value) or "") > 5


def test_a_shown_value_is_short_and_on_one_line() -> None:
    assert show('a"b\nc') == '"a\'b c"'
    assert len(show("x" * 500)) < 70
    assert show({"a": 1}) == "an object"


def test_base64_that_is_decoded_must_be_exact() -> None:
    assert [base64_fault(text) is None for text in ("", "AA==", "AAA=", "AAAA", "AA", "A A=", "AA==\n", "!!")] == [
        True,
        True,
        True,
        True,
        False,
        False,
        False,
        False,
    ]


def test_characters_that_no_text_may_hold_are_refused_in_any_type() -> None:
    for type_ in ("string", "markdown", "code", "uri", "id"):
        assert fault(type_, "a\0") == "text without the characters U+0000, U+0008 and U+000C"
