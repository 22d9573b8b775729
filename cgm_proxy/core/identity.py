"""The identity of what is stored, by which nothing is stored twice.

A reading is its patient, code, instant in UTC, value with unit, and device, where that can be identified. Anything else
(summary, report, device) is its patient and its content, in which references to entries of the same submission are
replaced by these entries' identities. A SHA-256 of it, written as a UUID of version 8 (RFC 9562), is stamped on the stored resource as one more
identifier, and conditional create asks for exactly that token.

The same instant with another value is another reading: real exports hold such pairs.
"""

import hashlib
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

import msgspec

from cgm_proxy.core.body import encode
from cgm_proxy.core.bundle import REFERENCE, Entry
from cgm_proxy.core.dialects import READING_CODES
from cgm_proxy.core.errors import Json
from cgm_proxy.core.instants import utc

#: System of identifiers that are URIs (https://hl7.org/fhir/R4/identifier-registry.html).
SYSTEM = "urn:ietf:rfc:3986"

#: What identities look like: RFC 9562's version 8 is for such purposes, so few others use it.
FORM = re.compile(r"urn:uuid:[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")

#: Elements that differ when the same content is sent again.
NOT_CONTENT = frozenset({"id", "meta", "text"})

_sorted = msgspec.json.Encoder(decimal_format="number", order="sorted")

#: From a reference to the resource it names, in the submission or stored; None where it can't be known.
Resolve = Callable[[str], Json | None]


def identity(entry: Entry, patient: str, resolve: Resolve, identities: Mapping[str, str]) -> str:
    """Give the identity of an entry, as `urn:uuid:…`.

    `identities` are those of the entries that it references, by reference.
    """
    key = _reading(entry.resource, resolve) or _content(entry.resource, identities)
    digest = hashlib.sha256("\x1f".join((patient, *key)).encode()).hexdigest()
    variant = "89ab"[int(digest[16], 16) % 4]
    return f"urn:uuid:{digest[:8]}-{digest[8:12]}-8{digest[13:16]}-{variant}{digest[17:20]}-{digest[20:32]}"


def token(identity: str) -> str:
    """Give the search token of an identity, for `identifier=`."""
    return f"{SYSTEM}|{identity}"


def foreign_identity(entry: Entry, identity: str) -> bool:
    """Tell whether a resource carries an identifier of this module's form (a UUID of version 8) that is not its own."""
    if SYSTEM.encode() not in entry.encoded:
        return False
    for identifier in entry.resource.get("identifier") or ():
        value = identifier.get("value")
        if identifier.get("system") == SYSTEM and value != identity and FORM.fullmatch(str(value).lower()):
            return True
    return False


def stamp(entry: Entry, identity: str, locations: Mapping[str, str]) -> bytes:
    """Serialise an entry's resource as it is stored: with its identity, and with references replaced by `locations`."""
    given = entry.resource.get("identifier") or ()
    listed = [
        *given,
        *(() if any(i.get("value") == identity for i in given) else ({"system": SYSTEM, "value": identity},)),
    ]
    encoded = encode({**entry.resource, "identifier": listed})
    if not any(reference in locations for reference in entry.references):
        return encoded
    return REFERENCE.sub(lambda found: _relocate(found[1], found[0], locations), encoded)


def _relocate(reference: bytes, whole: bytes, locations: Mapping[str, str]) -> bytes:
    location = locations.get(reference.decode())
    return b'"reference":' + encode(location) if location else whole


def _reading(resource: Json, resolve: Resolve) -> tuple[str, ...] | None:
    """Give what identifies a sensor reading, or None for anything else."""
    code = reading_code(resource)
    instant = resource.get("effectiveDateTime")
    if code is None or not isinstance(instant, str):
        return None
    return ("reading", code, utc(instant), *_value(resource), _device(resource.get("device"), resolve))


def reading_code(resource: Json) -> str | None:
    """Give the token of the code that makes a resource a sensor reading, or None where it is none."""
    code = resource.get("code")
    for coding in (code.get("coding") or ()) if isinstance(code, dict) else ():
        if (coding.get("system"), coding.get("code")) in READING_CODES:
            return f"{coding['system']}|{coding['code']}"
    return None


def _value(resource: Json) -> tuple[str, str]:
    quantity = resource.get("valueQuantity")
    if not isinstance(quantity, dict):
        return "absent", _sorted.encode(resource.get("dataAbsentReason")).decode()
    unit = quantity.get("code") or quantity.get("unit") or ""
    return f"{quantity.get('comparator', '')}{canonical(quantity.get('value'))}", str(unit)


def canonical(number: Any) -> str:
    """Write a number so that equal numbers have equal texts, whatever their digits: `100`, `100.0` and `1e2` alike."""
    if not isinstance(number, int | Decimal):
        return ""
    sign, digits, exponent = Decimal(number).as_tuple()
    written = "".join(map(str, digits)).lstrip("0")
    significant = written.rstrip("0")
    if not significant:
        return "0"
    return f"{'-' if sign else ''}{significant}e{int(exponent) + len(written) - len(significant)}"


def _device(element: Any, resolve: Resolve) -> str:
    """Name a device by serial number, UDI or identifier; one that has none, or can't be read, does not identify."""
    reference = element.get("reference") if isinstance(element, dict) else None
    device = resolve(reference) if isinstance(reference, str) else None
    if device is None:
        return ""
    if serial := device.get("serialNumber"):
        return f"serial:{serial}"
    for carrier in device.get("udiCarrier") or ():
        if udi := carrier.get("deviceIdentifier") or carrier.get("carrierHRF"):
            return f"udi:{udi}"
    tokens = sorted(f"{i.get('system', '')}|{i['value']}" for i in device.get("identifier") or () if i.get("value"))
    return f"identifier:{tokens[0]}" if tokens else ""


def _content(resource: Json, identities: Mapping[str, str]) -> tuple[str, ...]:
    content = {name: value for name, value in resource.items() if name not in NOT_CONTENT}
    if given := content.get("identifier"):  # what was read here and is sent back carries its identity
        content["identifier"] = [i for i in given if not FORM.fullmatch(str(i.get("value")))]
    encoded = REFERENCE.sub(lambda found: _relocate(found[1], found[0], identities), _sorted.encode(content))
    return ("content", encoded.decode())
