"""From a body's bytes to a parsed document, within limits; whatever cannot be read surely is refused here.

What is parsed is what is forwarded: digits survive (`100.0`), and a document that says one name twice is refused, because
two readers could see two documents (RFC 8259, section 4).
"""

import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from decimal import Decimal, DecimalException
from typing import Any, Literal, TypeVar

import msgspec

from cgm_proxy.core.codec.fhir_xml import FhirXml
from cgm_proxy.core.issues import refuse
from cgm_proxy.core.json_values import JsonObject

Format = Literal["json", "xml"]

#: What a body is held in while it is read.
Buffer = bytes | bytearray

T = TypeVar("T")

#: Media types of FHIR R4 and the generic ones that servers take as well (https://hl7.org/fhir/R4/http.html#mime-type).
MEDIA_TYPES: dict[str, Format] = {
    "application/fhir+json": "json",
    "application/json": "json",
    "application/json+fhir": "json",
    "text/json": "json",
    "application/fhir+xml": "xml",
    "application/xml": "xml",
    "application/xml+fhir": "xml",
    "text/xml": "xml",
}
CONTENT_TYPES: dict[Format, str] = {"json": "application/fhir+json", "xml": "application/fhir+xml"}

#: zlib's window bits for each Content-Encoding; `deflate` is zlib's format (RFC 9110, 8.4.1.2).
ENCODINGS = {"gzip": 31, "x-gzip": 31, "deflate": 15}

#: How much is inflated at a time, bytes.
STEP = 2**18

#: Codings that one body may have on top of one another; each costs as much as the body.
MAX_ENCODINGS = 2

#: Frames of the stack that stay free when a document is parsed, for those who walk it later, from further down (Python
#: 3.11 counts both alike). What is nested so deep that it needs them is refused.
ROOM = 250

#: UTF-8's byte order mark.
BOM = b"\xef\xbb\xbf"

_START = re.compile(rb"(?:\xef\xbb\xbf)?\s*(.)", re.DOTALL)

_decoder = msgspec.json.Decoder(dict[str, Any], float_hook=Decimal)
_text_decoder = msgspec.json.Decoder(str)
_encoder = msgspec.json.Encoder(decimal_format="number")


def encode(value: Any) -> bytes:
    """Serialise compactly; Decimals keep their digits."""
    return _encoder.encode(value)


def decode(data: Buffer) -> JsonObject:
    """Parse JSON that is an object; numbers with a fraction or exponent become Decimals.

    Raises `msgspec.DecodeError` and, when nested deeper than the interpreter allows, `RecursionError`.
    """
    document: JsonObject = _decoder.decode(data)
    return document


def decode_text(data: bytes) -> str:
    """Parse JSON that is a string."""
    return _text_decoder.decode(data)


def media_type(content_type: str) -> Format | None:
    """Give the format that a Content-Type header names, or None for any other type."""
    return MEDIA_TYPES.get(content_type.partition(";")[0].strip().lower())


def inflate(data: Buffer, content_encoding: str, limit: int) -> Buffer:
    """Undo a Content-Encoding, never producing more than `limit` bytes.

    Raises `RequestRefused`: 413 over the limit, 415 for an unknown encoding or too many, 400 for damaged data, also for
    several gzip members, of which some readers take the first and some all (RFC 1952, 2.2).
    """
    names = [name for part in content_encoding.split(",") if (name := part.strip().lower()) not in {"", "identity"}]
    if len(names) > MAX_ENCODINGS:
        raise refuse(415, "content-encoding", "the body is compressed several times; send gzip, deflate or none")
    for name in reversed(names):
        if name not in ENCODINGS:
            raise refuse(
                415, "content-encoding", f"Content-Encoding {name[:40]!r} is not read here; send gzip, deflate or none"
            )
        data = _inflate(data, ENCODINGS[name], limit)
    return data


def _inflate(data: Buffer, window: int, limit: int) -> bytearray:
    stream = zlib.decompressobj(window)
    inflated, at = bytearray(), 0
    try:
        while at < len(data) and not stream.eof:
            inflated += stream.decompress(data[at : at + STEP], STEP)
            at = min(at + STEP, len(data)) - len(stream.unconsumed_tail)
            if len(inflated) > limit:
                raise too_large(limit)
    except zlib.error as error:
        raise refuse(400, "content-encoding", f"the compressed body is damaged ({error}); send it again") from error
    if not stream.eof or stream.unused_data or at < len(data):
        raise refuse(
            400, "content-encoding", "the compressed body is cut short or has bytes after its end; send it again"
        )
    return inflated


def too_large(limit: int) -> Exception:
    """Make the 413 for a body of more than `limit` bytes."""
    return refuse(413, "too-large", f"the body is larger than {limit:,} bytes; split the submission", code="too-long")


def sniff(data: Buffer) -> Format | None:
    """Tell JSON from XML by the first byte that is no white space or UTF-8 byte order mark."""
    start = _START.match(data)
    return {b"{": "json", b"[": "json", b"<": "xml"}.get(start[1] if start else b"")  # type: ignore[return-value]


def parse(data: bytes, xml: FhirXml) -> JsonObject:
    """Parse a body of either format, told apart by its content, not by what its header claims.

    Raises `RequestRefused` (400) for anything that two readers could read differently.
    """
    match sniff(data):
        case "json":
            return parse_json(data)
        case "xml":
            return xml.to_json(data)
    raise unreadable()


def unreadable() -> Exception:
    """Make the 400 for what is no format of FHIR's."""
    return refuse(400, "unreadable", "the body is neither JSON nor XML in UTF-8; send a FHIR resource in one of these")


def parse_json(data: bytes) -> JsonObject:
    """Parse a JSON object.

    Raises `RequestRefused` (400): malformed, not an object, NaN, broken surrogates, a name twice, nested too deep.
    """
    data = data.removeprefix(BOM)
    with refusing_malformed():
        document = with_room(decode, data)
    refuse_repeated(data, encode(document).count(b":"))
    return document


@contextmanager
def refusing_malformed() -> Iterator[None]:
    """Turn what the decoder raises into a `RequestRefused` (400)."""
    try:
        yield
    except RecursionError as error:
        raise refuse(400, "too-deep", "the JSON is nested deeper than any FHIR resource; flatten it") from error
    except DecimalException as error:
        text = "a number's exponent is larger than any computer's; correct the number"
        raise refuse(400, "json-malformed", text, code="value") from error
    except (msgspec.DecodeError, ValueError) as error:
        raise refuse(400, "json-malformed", f"the body is not a JSON object: {error}", code="structure") from error


def with_room(parse: Callable[[Buffer], T], data: Buffer, frames: int = ROOM) -> T:
    """Parse from further down the stack, so that so many frames stay free for those who walk the document later."""
    return with_room(parse, data, frames - 1) if frames else parse(data)


def refuse_repeated(data: Buffer, colons: int) -> None:
    """Raise `RequestRefused` (400) where an object has a name twice; `colons` as in `repeated_name`."""
    if (name := repeated_name(data, colons)) is not None:
        raise refuse(
            400, "json-duplicate-key", f'the JSON object says "{name[:60]}" twice; say it once', code="structure"
        )


def repeated_name(data: Buffer, colons: int) -> str | None:
    r"""Give a name that an object in `data` has twice, or None; `colons` are those of the same document serialised again.

    Each member has one colon outside strings, and parsing drops the earlier of two members: without `\u` escapes, which
    could hide a colon inside a string, equal counts of colons mean that nothing was dropped. Only otherwise is the
    document read again, slowly.
    """
    escaped = b"\\" in data and b"\\u" in data  # a single byte is found many times faster than two
    if not escaped and data.count(b":") == colons:
        return None
    twice: list[str] = []

    def notice(pairs: Iterable[tuple[str, Any]]) -> None:
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                twice.append(name)
            seen.add(name)

    json.loads(data, object_pairs_hook=notice, parse_float=str, parse_int=str)
    return twice[0] if twice else None
