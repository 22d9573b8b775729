"""The body of a request or response: its media type, its compression, and the format that its content has.

What is parsed is what is forwarded, so a body that two readers could read differently is refused.
"""

import re
import zlib
from typing import Literal

from cgm_proxy.core.codec.fhir_xml import FhirXml
from cgm_proxy.core.codec.json_body import Buffer, parse_json
from cgm_proxy.core.issues import RequestRefused, refuse
from cgm_proxy.core.json_values import JsonObject

Format = Literal["json", "xml"]

#: Media types of FHIR R4, and the generic ones that servers accept as well (https://hl7.org/fhir/R4/http.html#mime-type).
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

#: Bytes that are inflated at a time.
STEP = 2**18

#: Encodings that may be applied to one body, one after the other; each costs as much as the body.
MAX_ENCODINGS = 2

#: The first byte after a byte order mark of UTF-8 and white space.
_FIRST = re.compile(rb"(?:\xef\xbb\xbf)?\s*(.)", re.DOTALL)
_FORMATS: dict[bytes, Format] = {b"{": "json", b"[": "json", b"<": "xml"}


def media_type(content_type: str) -> Format | None:
    """Return the format that a Content-Type header names, or None for any other type."""
    return MEDIA_TYPES.get(content_type.partition(";")[0].strip().lower())


def sniff(data: Buffer) -> Format | None:
    """Return the format that the first byte suggests; None if it begins neither JSON nor XML."""
    first = _FIRST.match(data)
    return _FORMATS.get(first[1]) if first else None


def parse(data: bytes, xml: FhirXml) -> JsonObject:
    """Return a body of either format as JSON; the content decides on the format, not a header.

    Raises `RequestRefused` (400) for anything that two readers could read differently.
    """
    match sniff(data):
        case "json":
            return parse_json(data)
        case "xml":
            return xml.to_json(data)
    raise unreadable()


def unreadable() -> RequestRefused:
    """Return the 400 for a body that is neither JSON nor XML."""
    return refuse(400, "unreadable", "the body is neither JSON nor XML in UTF-8; send a FHIR resource in one of these")


def inflate(data: Buffer, content_encoding: str, limit: int) -> Buffer:
    """Return a body without its Content-Encoding, never producing more than `limit` bytes.

    Raises `RequestRefused`: 413 over the limit; 415 for an unknown encoding or too many; 400 for damaged data, and for
    several gzip members, because some readers read only the first of them (RFC 1952, 2.2).
    """
    names = [name for part in content_encoding.split(",") if (name := part.strip().lower()) not in {"", "identity"}]
    if len(names) > MAX_ENCODINGS:
        text = f"the body has more than {MAX_ENCODINGS} encodings; send gzip, deflate or none"
        raise refuse(415, "content-encoding", text)
    for name in reversed(names):
        if name not in ENCODINGS:
            text = f"Content-Encoding {name[:40]!r} is not supported; send gzip, deflate or none"
            raise refuse(415, "content-encoding", text)
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
        text = "the compressed body is incomplete or has bytes after its end; send it again"
        raise refuse(400, "content-encoding", text)
    return inflated


def too_large(limit: int) -> RequestRefused:
    """Return the 413 for a body of more than `limit` bytes."""
    return refuse(413, "too-large", f"the body is larger than {limit:,} bytes; split the submission", code="too-long")
