"""Bodies that cannot be read surely are refused, within bounds; what is read keeps its digits."""

import gzip
import json
import tracemalloc
import zlib
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.json_samples import BOM, DUPLICATES, MALFORMED, texts
from support.r4 import FHIR_XML

from cgm_proxy.core.codec import json_body
from cgm_proxy.core.codec.json_body import decode, encode, inflate, media_type, parse, parse_json, repeated_name, sniff
from cgm_proxy.core.issues import RequestRefused

MEGABYTE = 2**20


def refusal(data: bytes) -> tuple[int, str]:
    with pytest.raises(RequestRefused) as refused:
        parse(data, FHIR_XML)
    return refused.value.status, refused.value.issues[0].rule


def compressed(data: bytes, level: int = 9) -> bytes:
    """Compress without a time stamp, so that a case has the same name each time."""
    return gzip.compress(data, level, mtime=0)


def answered(data: bytes) -> dict[str, Any] | RequestRefused:
    try:
        return parse(data, FHIR_XML)
    except RequestRefused as refused:
        return refused


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("application/fhir+json", "json"),
        ("Application/FHIR+JSON; charset=UTF-8; fhirVersion=4.0", "json"),
        (" application/json ", "json"),
        ("application/fhir+xml", "xml"),
        ("text/xml;charset=utf-8", "xml"),
        ("text/plain", None),
        ("application/x-www-form-urlencoded", None),
        ("application/fhir+jsonx", None),
        ("", None),
        (";", None),
    ],
)
def test_a_content_type_names_a_format(header: str, expected: str | None) -> None:
    assert media_type(header) == expected


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"{}", "json"),
        (b"[", "json"),
        (b" \r\n\t{", "json"),
        (BOM + b"{", "json"),
        (BOM + b" {", "json"),
        (b" " * 100_000 + b"{", "json"),
        (b"<", "xml"),
        (BOM + b"<?xml", "xml"),
        (b"", None),
        (b"   ", None),
        (BOM, None),
        (b'"x"', None),
        (b"5", None),
        (b"\x00{", None),
        ("{}".encode("utf-16"), None),
        ("<a/>".encode("utf-32"), None),
    ],
)
def test_the_first_byte_tells_the_format(data: bytes, expected: str | None) -> None:
    assert sniff(data) == expected


# -- Content-Encoding ---------------------------------------------------------------------------------------------------

TEXT = b'{"resourceType":"Bundle"}' * 50


def raw_deflate(data: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-15)
    return stream.compress(data) + stream.flush()


@pytest.mark.parametrize(
    ("encoding", "data"),
    [
        ("", TEXT),
        ("identity", TEXT),
        ("gzip", compressed(TEXT)),
        (" GZIP ", compressed(TEXT)),
        ("x-gzip", compressed(TEXT)),
        ("deflate", zlib.compress(TEXT)),
        ("deflate, gzip", compressed(zlib.compress(TEXT))),
        ("gzip,, identity,gzip", compressed(compressed(TEXT))),
        ("gzip", compressed(TEXT, 0)),
    ],
)
def test_known_encodings_are_undone_last_first(encoding: str, data: bytes) -> None:
    assert inflate(data, encoding, MEGABYTE) == TEXT


@pytest.mark.parametrize(
    ("status", "encoding", "data"),
    [
        (415, "br", TEXT),
        (415, "zstd", TEXT),
        (415, "gzip, br", compressed(TEXT)),
        (415, "aws-chunked", TEXT),
        (415, "x" * 10_000, TEXT),
        (415, "gzip, gzip, gzip", compressed(compressed(compressed(TEXT)))),
        (415, ",".join(["gzip"] * 5000), compressed(TEXT)),
        (400, "gzip", TEXT),
        (400, "gzip", b""),
        (400, "gzip", compressed(TEXT)[:-1]),
        (400, "gzip", compressed(TEXT)[:20]),
        (400, "gzip", compressed(TEXT)[:-8] + bytes(8)),  # checksum
        (400, "gzip", compressed(TEXT) + b"x"),
        (400, "gzip", compressed(TEXT) + bytes(512)),
        (400, "gzip", compressed(TEXT) + compressed(TEXT)),  # a reader may take the first member alone
        (400, "gzip", zlib.compress(TEXT)),
        (400, "deflate", raw_deflate(TEXT)),
        (400, "deflate", compressed(TEXT)),
        (400, "deflate", zlib.compress(TEXT)[:-2]),
        (400, "gzip, deflate", compressed(zlib.compress(TEXT))),  # the wrong way round
    ],
)
def test_what_cannot_be_inflated_surely_is_refused(status: int, encoding: str, data: bytes) -> None:
    with pytest.raises(RequestRefused) as refused:
        inflate(data, encoding, MEGABYTE)
    assert (refused.value.status, refused.value.issues[0].rule) == (status, "content-encoding")
    assert len(refused.value.issues[0].text) < 200


@pytest.mark.parametrize("size", [0, 1, json_body.STEP - 1, json_body.STEP, json_body.STEP + 1, 2 * json_body.STEP])
@pytest.mark.parametrize("level", [0, 9])
def test_a_body_is_inflated_whole_at_any_size_up_to_the_limit(size: int, level: int) -> None:
    data = bytes(size)
    assert inflate(compressed(data, level), "gzip", size) == data
    with pytest.raises(RequestRefused) as refused:
        inflate(compressed(data + b"x", level), "gzip", size)
    assert refused.value.status == 413


def test_a_bomb_is_refused_before_it_takes_memory() -> None:
    bomb = compressed(bytes(200 * MEGABYTE))
    nested = compressed(compressed(bytes(200 * MEGABYTE)))
    tracemalloc.start()
    try:
        for data, encoding in ((bomb, "gzip"), (nested, "gzip, gzip")):
            with pytest.raises(RequestRefused) as refused:
                inflate(data, encoding, 4 * MEGABYTE)
            assert (refused.value.status, refused.value.issues[0].code) == (413, "too-long")
        assert tracemalloc.get_traced_memory()[1] < 10 * MEGABYTE
    finally:
        tracemalloc.stop()


# -- JSON -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED)
def test_malformed_json_is_refused(data: bytes) -> None:
    status, rule = refusal(data)
    assert status == 400
    assert rule in {"json-malformed", "unreadable"}


@pytest.mark.parametrize("data", [b"", b"  ", b'"x"', b"5", b"null", '{"a":1}'.encode("utf-16"), b"\x00", b"a=b"])
def test_what_is_neither_json_nor_xml_is_refused(data: bytes) -> None:
    assert refusal(data) == (400, "unreadable")


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
        found = answered(opened * depth + b"1" + closed * depth)
        if isinstance(found, RequestRefused):
            assert (found.status, found.issues[0].rule) == (400, "too-deep")
            assert depth > 300
        else:
            encode(found)


def test_what_is_read_can_be_walked_from_further_down_the_stack() -> None:
    def deeper(frames: int, document: dict[str, Any]) -> bytes:
        return deeper(frames - 1, document) if frames else encode(document)

    document = deepest()
    assert deeper(100, document)


def deepest() -> dict[str, Any]:
    """Give the deepest document that is still read here."""
    found: dict[str, Any] = {}
    for depth in range(100, 1000):
        try:
            found = parse_json(b'{"a":' * depth + b"1" + b"}" * depth)
        except RequestRefused:
            break
    return found


# -- names that stand twice -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", DUPLICATES.values(), ids=DUPLICATES)
def test_a_name_that_stands_twice_is_refused(data: bytes) -> None:
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
def test_names_that_differ_or_stand_apart_are_read(data: bytes) -> None:
    parse(data, FHIR_XML)


def test_a_message_about_a_long_name_is_short() -> None:
    name = b'"%b":1' % (b"n" * 100_000)
    with pytest.raises(RequestRefused) as refused:
        parse(b"{%b,%b}" % (name, name), FHIR_XML)
    assert len(refused.value.issues[0].text) < 200


def says_a_name_twice(text: str) -> bool:
    """Read JSON the slow and plain way."""
    found = []

    def notice(pairs: list[tuple[str, Any]]) -> None:
        names = [name for name, _ in pairs]
        found.append(len(names) != len(set(names)))

    json.loads(text, object_pairs_hook=notice)
    return any(found)


@settings(max_examples=400, deadline=None)
@given(texts())
def test_whether_a_name_stands_twice_is_found_as_by_a_slow_and_plain_reader(value: str) -> None:
    data = f'{{"x":{value}}}'.encode()
    assert (repeated_name(data, encode(decode(data)).count(b":")) is not None) == says_a_name_twice(data.decode())


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60) | texts().map(str.encode) | st.text('{}[]":,\\u0de+-.1 ', max_size=40).map(str.encode))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    found = answered(data)
    if isinstance(found, RequestRefused):
        assert found.status == 400
    else:
        assert decode(encode(found)) == found
