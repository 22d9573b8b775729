"""The identity of what is stored, by which nothing is stored twice.

A reading is its patient, code, instant in UTC, value with unit, and device, where that can be identified. Anything else
(summary, report, device) is its patient and its content, in which references to entries of the same submission are
replaced by these entries' identities. A SHA-256 of it, written as a UUID of version 8 (RFC 9562), is stamped on the
stored resource as one more identifier, and conditional create asks for exactly that token.

The same instant with another value is another reading: real exports hold such pairs. So is one whose status takes back or
replaces an earlier one.
"""

import hashlib
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

import msgspec

from cgm_proxy.core.codec.json_body import encode
from cgm_proxy.core.json_values import JsonObject, objects
from cgm_proxy.core.submission.dates import utc
from cgm_proxy.core.submission.dialects import READING_CODES
from cgm_proxy.core.submission.model import REFERENCE_MEMBER, Entry, unescape

#: System of identifiers that are URIs (https://hl7.org/fhir/R4/identifier-registry.html).
IDENTITY_SYSTEM = "urn:ietf:rfc:3986"
_IDENTITY_SYSTEM = IDENTITY_SYSTEM.encode()

#: What identities look like: RFC 9562's version 8 is for such purposes, so few others use it.
IDENTITY_PATTERN = re.compile(r"urn:uuid:[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")

#: Hexadecimal digits with the bits of RFC 9562's variant (4.1).
UUID_VARIANT = dict(zip("0123456789abcdef", "89ab" * 4, strict=True))

#: Integers of fewer digits need no Decimal.
SMALL_INTEGER = 10**18

#: Statuses that take back or replace what was said before: such a reading is no repetition.
REVISION_STATUSES = frozenset({"amended", "corrected", "cancelled", "entered-in-error"})

#: Elements that differ when the same content is sent again.
VOLATILE_ELEMENTS = frozenset({"id", "meta", "text"})

_sorted = msgspec.json.Encoder(decimal_format="number", order="sorted")

#: From a reference to the resource it names, in the submission or stored; None where it can't be known.
ReferenceResolver = Callable[[str], JsonObject | None]


def compute_identity(entry: Entry, patient: str, resolve: ReferenceResolver, identities: Mapping[str, str]) -> str:
    """Give the identity of an entry, as `urn:uuid:…`.

    `identities` are those of the entries that it references, by reference.
    """
    resource = entry.resource
    key = _reading(resource, resolve) or _content(resource, identities)
    digest = hashlib.sha256(encode((patient, *key))).hexdigest()
    return f"urn:uuid:{digest[:8]}-{digest[8:12]}-8{digest[13:16]}-{UUID_VARIANT[digest[16]]}{digest[17:20]}-{digest[20:32]}"


def search_token(identity: str) -> str:
    """Give the search token of an identity, for `identifier=`."""
    return f"{IDENTITY_SYSTEM}|{identity}"


def has_foreign_identity(entry: Entry, identity: str) -> bool:
    """Tell whether a resource carries an identifier of this module's form (a UUID of version 8) that is not its own."""
    if _IDENTITY_SYSTEM not in entry.encoded:
        return False
    for identifier in objects(entry.resource.get("identifier")):
        value = identifier.get("value")
        if (
            identifier.get("system") == IDENTITY_SYSTEM
            and value != identity
            and IDENTITY_PATTERN.fullmatch(str(value).lower())
        ):
            return True
    return False


def stamp(entry: Entry, identity: str, locations: Mapping[str, str]) -> bytes:
    """Serialise an entry's resource as it is stored: with its identity, and with references replaced by `locations`."""
    encoded = _identified(entry, identity)
    if locations.keys().isdisjoint(entry.references):
        return encoded
    return REFERENCE_MEMBER.sub(lambda found: _relocate(found[1], found[0], locations), encoded)


def _identified(entry: Entry, identity: str) -> bytes:
    if b'"identifier":' not in entry.encoded:  # unescaped, it can only be a member's name
        return b'%b,"identifier":[{"system":"%b","value":"%b"}]}' % (
            entry.encoded[:-1],
            _IDENTITY_SYSTEM,
            identity.encode(),
        )
    resource = entry.resource
    given = resource.get("identifier", [])
    listed = list(given) if isinstance(given, list) else [given]
    own = {"system": IDENTITY_SYSTEM, "value": identity}
    if not any(identifier.items() >= own.items() for identifier in objects(listed)):
        listed.append(own)
    return encode({**resource, "identifier": listed})


def _relocate(reference: bytes, whole: bytes, locations: Mapping[str, str]) -> bytes:
    location = locations.get(unescape(reference))
    return b'"reference":' + encode(location) if location else whole


def _reading(resource: JsonObject, resolve: ReferenceResolver) -> tuple[str, ...] | None:
    """Give what identifies a sensor reading, or None for anything else and for one that can't be read."""
    code, instant, value = reading_code(resource), resource.get("effectiveDateTime"), _value(resource)
    if code is None or value is None or not isinstance(instant, str):
        return None
    status = resource.get("status")
    revision = (status,) if isinstance(status, str) and status in REVISION_STATUSES else ()
    return ("reading", code, utc(instant), *value, _device(resource.get("device"), resolve), *revision)


def reading_code(resource: JsonObject) -> str | None:
    """Give the token of the code that makes a resource a sensor reading, or None where it is none."""
    code = resource.get("code")
    for coding in objects(code.get("coding")) if isinstance(code, dict) else ():
        system, symbol = coding.get("system"), coding.get("code")
        if isinstance(system, str) and isinstance(symbol, str) and (system, symbol) in READING_CODES:
            return f"{system}|{symbol}"
    return None


def _value(resource: JsonObject) -> tuple[str, str] | None:
    """Give value and unit, or the reason for having none; None for a value that is no quantity with a number."""
    quantity = resource.get("valueQuantity")
    if isinstance(quantity, dict) and (number := canonical_number(quantity.get("value"))):
        unit = quantity.get("code") or quantity.get("unit") or ""
        return f"{quantity.get('comparator', '')}{number}", str(unit)
    if any(name.startswith("value") for name in resource):
        return None
    return "absent", _sorted.encode(resource.get("dataAbsentReason")).decode()


def canonical_number(number: Any) -> str:
    """Write a number so that equal numbers have equal texts, whatever their digits; "" for what is none.

    `100`, `100.0` and `1e2` are alike.
    """
    if type(number) is int and 0 < number < SMALL_INTEGER:
        written = str(number)
        significant = written.rstrip("0")
        return f"{significant}e{len(written) - len(significant)}"
    if isinstance(number, bool) or not isinstance(number, int | Decimal):
        return ""
    sign, digits, exponent = Decimal(number).as_tuple()
    written = "".join(map(str, digits)).lstrip("0")
    significant = written.rstrip("0")
    if not significant:
        return "0"
    return f"{'-' if sign else ''}{significant}e{int(exponent) + len(written) - len(significant)}"


def _device(element: Any, resolve: ReferenceResolver) -> str:
    """Name a device by serial number, UDI or identifier; one that has none, or can't be read, does not identify.

    The identity that a stored device was stamped with is none of its identifiers: it had none when it was submitted.
    """
    reference = element.get("reference") if isinstance(element, dict) else None
    device = resolve(reference) if isinstance(reference, str) else None
    if device is None:
        return ""
    if serial := device.get("serialNumber"):
        return f"serial:{serial}"
    for carrier in objects(device.get("udiCarrier")):
        if udi := carrier.get("deviceIdentifier") or carrier.get("carrierHRF"):
            return f"udi:{udi}"
    identifiers = [i for i in objects(device.get("identifier")) if i.get("value") and not _stamped(i)]
    tokens = sorted(f"{i.get('system', '')}|{i['value']}" for i in identifiers)
    return f"identifier:{tokens[0]}" if tokens else ""


def _stamped(identifier: Any) -> bool:
    """Tell whether an identifier is one that this module gave."""
    return isinstance(identifier, dict) and IDENTITY_PATTERN.fullmatch(str(identifier.get("value"))) is not None


def _content(resource: JsonObject, identities: Mapping[str, str]) -> tuple[str, ...]:
    content = {name: value for name, value in resource.items() if name not in VOLATILE_ELEMENTS}
    if isinstance(given := content.get("identifier"), list):  # what was read here and is sent back carries its identity
        content["identifier"] = [identifier for identifier in given if not _stamped(identifier)]
        if not content["identifier"]:
            del content["identifier"]
    encoded = REFERENCE_MEMBER.sub(lambda found: _relocate(found[1], found[0], identities), _sorted.encode(content))
    return ("content", encoded.decode())
