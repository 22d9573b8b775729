"""JSON in and out, so that numbers keep the digits that they were sent with."""

from decimal import Decimal
from typing import Any

import msgspec

from cgm_proxy.core.json_values import JsonObject
from cgm_proxy.sandbox.store.faults import Refused

_decoder = msgspec.json.Decoder(dict[str, Any], float_hook=Decimal)
_encoder = msgspec.json.Encoder(decimal_format="number")
_sorting_encoder = msgspec.json.Encoder(decimal_format="number", order="sorted")

#: A resource that is stored already, to be put into an answer byte by byte.
Raw = msgspec.Raw


def decode(body: bytes | str) -> JsonObject:
    """Read a JSON object; a number with a fraction becomes a Decimal. Malformed JSON raises Refused (400)."""
    try:
        return _decoder.decode(body)
    except msgspec.DecodeError as fault:
        raise _unreadable(f"HAPI-1861: Failed to parse JSON encoded FHIR content: {fault}") from None
    except RecursionError:
        raise _unreadable("HAPI-1861: Failed to parse JSON encoded FHIR content: nested too deeply") from None


def encode(value: Any) -> bytes:
    """Write JSON, Decimals as numbers with their digits, `Raw` parts as they are."""
    return _encoder.encode(value)


def canonical(value: Any) -> bytes:
    """Write JSON with sorted keys, to compare contents (`100.0` and `100` differ)."""
    return _sorting_encoder.encode(value)


def resource_of(body: bytes, wanted: str | None) -> JsonObject:
    """Read a resource of the `wanted` type, or of any; raises Refused (400)."""
    resource = decode(body)
    found = resource.get("resourceType")
    if not isinstance(found, str):
        raise _unreadable("HAPI-1838: Invalid JSON content detected, missing required element: 'resourceType'")
    if wanted is not None and found != wanted:
        raise _unreadable(f'HAPI-1814: Incorrect resource type found, expected "{wanted}" but found "{found}"')
    return resource


def _unreadable(text: str) -> Refused:
    return Refused(400, f"HAPI-0450: Failed to parse request body as JSON resource. Error was: {text}")
