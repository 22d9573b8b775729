"""The format of a body is found, its compression is undone within limits, and its content decides how it is parsed."""

import gzip
import tracemalloc
import zlib

import pytest
from support.json_samples import BOM
from support.r4 import FHIR_XML

from cgm_proxy.core.codec import bodies
from cgm_proxy.core.codec.bodies import inflate, media_type, parse, sniff
from cgm_proxy.core.issues import RequestRefused

MEGABYTE = 2**20


def compressed(data: bytes, level: int = 9) -> bytes:
    """Compress without a time stamp, so that a case has the same name each time."""
    return gzip.compress(data, level, mtime=0)


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
def test_the_first_byte_suggests_the_format(data: bytes, expected: str | None) -> None:
    assert sniff(data) == expected


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
def test_damaged_ambiguous_or_unknown_encodings_are_refused(status: int, encoding: str, data: bytes) -> None:
    with pytest.raises(RequestRefused) as refused:
        inflate(data, encoding, MEGABYTE)
    assert (refused.value.status, refused.value.issues[0].rule) == (status, "content-encoding")
    assert len(refused.value.issues[0].text) < 200


@pytest.mark.parametrize("size", [0, 1, bodies.STEP - 1, bodies.STEP, bodies.STEP + 1, 2 * bodies.STEP])
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


@pytest.mark.parametrize("data", [b"", b"  ", b'"x"', b"5", b"null", '{"a":1}'.encode("utf-16"), b"\x00", b"a=b"])
def test_a_body_that_is_neither_json_nor_xml_is_refused(data: bytes) -> None:
    with pytest.raises(RequestRefused) as refused:
        parse(data, FHIR_XML)
    assert (refused.value.status, refused.value.issues[0].rule) == (400, "unreadable")


def test_a_body_of_either_format_is_parsed_to_the_same_json() -> None:
    xml = b'<Basic xmlns="http://hl7.org/fhir"><id value="a"/></Basic>'
    expected = {"resourceType": "Basic", "id": "a"}
    assert parse(xml, FHIR_XML) == parse(b'{"resourceType":"Basic","id":"a"}', FHIR_XML) == expected
