"""JSON that two readers could read differently is refused, and numbers keep their digits."""

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.json_samples import BOM, DUPLICATES, MALFORMED, texts
from support.r4 import FHIR_XML

from cgm_proxy.core.codec.bodies import parse
from cgm_proxy.core.codec.json_body import decode, encode, parse_json, repeated_name
from cgm_proxy.core.issues import RequestRefused


def refusal(data: bytes) -> tuple[int, str]:
    with pytest.raises(RequestRefused) as refused:
        parse(data, FHIR_XML)
    return refused.value.status, refused.value.issues[0].rule


def parsed_or_refused(data: bytes) -> dict[str, Any] | RequestRefused:
    try:
        return parse(data, FHIR_XML)
    except RequestRefused as refused:
        return refused


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED)
def test_malformed_json_is_refused(data: bytes) -> None:
    status, rule = refusal(data)
    assert status == 400
    assert rule in {"json-malformed", "unreadable"}


@pytest.mark.parametrize(
    "number",
    [
        "0",
        "1",
        "-1",
        "100.0",
        "5.60",
        "0.10",
        "-0.0",
        "123456789012345678901234567890",
        "-9223372036854775809",
        "18446744073709551616",
        "0.123456789012345678901234567890",
    ],
)
def test_numbers_keep_their_digits(number: str) -> None:
    assert encode(parse(f'{{"a":{number}}}'.encode(), FHIR_XML)) == f'{{"a":{number}}}'.encode()


@pytest.mark.parametrize(
    "number", ["1e2", "1E+2", "1.50e-3", "0.00000001", "1e999999999", "-1e-999999999", "9" * 4000 + ".5", "1e400"]
)
def test_a_number_in_any_notation_keeps_value_and_precision(number: str) -> None:
    value = parse(f'{{"a":{number}}}'.encode(), FHIR_XML)["a"]
    written = encode(value).decode()
    assert (value.as_tuple(), Decimal(written).as_tuple()) == (Decimal(number).as_tuple(),) * 2
    json.loads(written, parse_float=str)


def test_a_byte_order_mark_is_left_out() -> None:
    assert parse(BOM + b' {"a":1}\n', FHIR_XML) == {"a": 1}


@pytest.mark.parametrize("opened", [b'{"a":', b'{"\\u0061":', b'{"a":[', b'{"a:":['])
def test_nesting_of_any_depth_is_read_or_refused(opened: bytes) -> None:
    closed = b"]}" if opened.endswith(b"[") else b"}"
    assert parse(opened * 60 + b"1" + closed * 60, FHIR_XML)
    for depth in (300, *range(650, 1010), 5000, 100_000):
        found = parsed_or_refused(opened * depth + b"1" + closed * depth)
        if isinstance(found, RequestRefused):
            assert (found.status, found.issues[0].rule) == (400, "too-deep")
            assert depth > 300
        else:
            encode(found)


def test_a_parsed_document_can_be_walked_from_deeper_in_the_stack() -> None:
    def deeper(frames: int, document: dict[str, Any]) -> bytes:
        return deeper(frames - 1, document) if frames else encode(document)

    document = deepest()
    assert deeper(100, document)


def deepest() -> dict[str, Any]:
    """Return the deepest document that is still parsed here."""
    found: dict[str, Any] = {}
    for depth in range(100, 1000):
        try:
            found = parse_json(b'{"a":' * depth + b"1" + b"}" * depth)
        except RequestRefused:
            break
    return found


@pytest.mark.parametrize("data", DUPLICATES.values(), ids=DUPLICATES)
def test_an_object_with_a_name_twice_is_refused(data: bytes) -> None:
    assert refusal(data) == (400, "json-duplicate-key")


@pytest.mark.parametrize(
    "data",
    [
        b'{"a":{"a":{"a":1}},"b":[{"a":1},{"a":1}]}',
        b'{"a":"\\u003a","b":"a\\":1,\\"a\\":2"}',
        b'{"a":1,"A":2,"\xc3\xa4":3,"a\\u0308":4}',
        b'{":":1,"::":":"}',
    ],
)
def test_different_names_and_names_of_different_objects_are_read(data: bytes) -> None:
    parse(data, FHIR_XML)


def test_a_message_about_a_long_name_is_short() -> None:
    name = b'"%b":1' % (b"n" * 100_000)
    with pytest.raises(RequestRefused) as refused:
        parse(b"{%b,%b}" % (name, name), FHIR_XML)
    assert len(refused.value.issues[0].text) < 200


def has_a_name_twice(text: str) -> bool:
    """Read JSON the slow and plain way."""
    found = []

    def collect(pairs: list[tuple[str, Any]]) -> None:
        names = [name for name, _ in pairs]
        found.append(len(names) != len(set(names)))

    json.loads(text, object_pairs_hook=collect)
    return any(found)


@settings(max_examples=400, deadline=None)
@given(texts())
def test_repeated_names_are_found_exactly_when_a_slow_reader_finds_them(value: str) -> None:
    data = f'{{"x":{value}}}'.encode()
    assert (repeated_name(data, encode(decode(data)).count(b":")) is not None) == has_a_name_twice(data.decode())


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60) | texts().map(str.encode) | st.text('{}[]":,\\u0de+-.1 ', max_size=40).map(str.encode))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    found = parsed_or_refused(data)
    if isinstance(found, RequestRefused):
        assert found.status == 400
    else:
        assert decode(encode(found)) == found
