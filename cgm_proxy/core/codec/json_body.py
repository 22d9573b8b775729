"""JSON to values and back.

Numbers keep their digits (`100.0`), and an object that has a name twice is refused, because two readers could see two
documents (RFC 8259, section 4).
"""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from decimal import Decimal, DecimalException
from typing import Any, TypeVar

import msgspec

from cgm_proxy.core.issues import refuse
from cgm_proxy.core.json_values import JsonObject

#: A body while it is read.
Buffer = bytes | bytearray

T = TypeVar("T")

#: UTF-8's byte order mark.
BOM = b"\xef\xbb\xbf"

#: Stack frames that stay free while a document is parsed, because code that walks it later may run deeper in the stack (Python
#: 3.11 limits both by the same counter). A document that needs them is refused.
SPARE_FRAMES = 250

_decoder = msgspec.json.Decoder(dict[str, Any], float_hook=Decimal)
_text_decoder = msgspec.json.Decoder(str)
_encoder = msgspec.json.Encoder(decimal_format="number")


def encode(value: Any) -> bytes:
    """Return compact JSON; Decimals keep their digits."""
    return _encoder.encode(value)


def decode(data: Buffer) -> JsonObject:
    """Return a JSON object; numbers with a fraction or exponent become Decimals.

    Raises `msgspec.DecodeError` and, if it is nested deeper than the interpreter allows, `RecursionError`.
    """
    document: JsonObject = _decoder.decode(data)
    return document


def decode_text(data: bytes) -> str:
    """Return a JSON string."""
    return _text_decoder.decode(data)


def parse_json(data: bytes) -> JsonObject:
    """Return the JSON object of a submitted body.

    Raises `RequestRefused` (400): malformed, not an object, NaN, broken surrogates, a name twice, nested too deep.
    """
    data = data.removeprefix(BOM)
    with refusing_malformed():
        document = with_spare_frames(decode, data)
    refuse_repeated(data, encode(document).count(b":"))
    return document


@contextmanager
def refusing_malformed() -> Iterator[None]:
    """Turn the exceptions of the decoder into a `RequestRefused` (400)."""
    try:
        yield
    except RecursionError as error:
        raise refuse(400, "too-deep", "the JSON is nested deeper than any FHIR resource; flatten it") from error
    except DecimalException as error:
        text = "the exponent of a number is larger than computers can represent; correct the number"
        raise refuse(400, "json-malformed", text, code="value") from error
    except (msgspec.DecodeError, ValueError) as error:
        raise refuse(400, "json-malformed", f"the body is not a JSON object: {error}", code="structure") from error


def with_spare_frames(parse: Callable[[Buffer], T], data: Buffer, frames: int = SPARE_FRAMES) -> T:
    """Parse this many frames deeper in the stack, so that they are free for code that walks the document later."""
    return with_spare_frames(parse, data, frames - 1) if frames else parse(data)


def refuse_repeated(data: Buffer, colons: int) -> None:
    """Raise `RequestRefused` (400) if an object has a name twice; `colons` as in `repeated_name`."""
    if (name := repeated_name(data, colons)) is not None:
        text = f'a JSON object has the name "{name[:60]}" twice; leave one of them out'
        raise refuse(400, "json-duplicate-key", text, code="structure")


def repeated_name(data: Buffer, colons: int) -> str | None:
    r"""Return a name that an object in `data` has twice, or None; `colons` counts those of the parsed document as JSON again.

    Each member has one colon outside strings, and parsing drops the earlier of two members with the same name. Without `\u`
    escapes, which could hide a colon inside a string, equal counts mean that nothing was dropped. Otherwise the document
    is read a second time, slowly.
    """
    escaped = b"\\" in data and b"\\u" in data  # finding a single byte is many times faster than finding two
    if not escaped and data.count(b":") == colons:
        return None
    repeated: list[str] = []

    def collect(pairs: Iterable[tuple[str, Any]]) -> None:
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                repeated.append(name)
            seen.add(name)

    json.loads(data, object_pairs_hook=collect, parse_float=str, parse_int=str)
    return repeated[0] if repeated else None
