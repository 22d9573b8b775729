"""The identity of a stored resource, which ensures that nothing is stored twice.

A reading is identified by its patient, code, instant in UTC, value with unit, and device if that can be identified. Any other
resource (summary, report, device) is identified by its patient and its content, in which references to entries of the same
submission are replaced by the identities of these entries. The SHA-256 of that, written as a UUID of version 8 (RFC 9562),
becomes one more identifier of the stored resource, and the conditional create asks for exactly this identifier.

The same instant with another value is another reading: real exports have such pairs. So is a reading whose status says that it
revises an earlier one.
"""

import hashlib
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import msgspec

from cgm_proxy.core.codec.json_body import encode
from cgm_proxy.core.json_values import JsonObject, objects
from cgm_proxy.core.r4.dates import utc
from cgm_proxy.core.r4.reference_scope import ReferenceResolver
from cgm_proxy.core.submission.dialects import READING_CODES
from cgm_proxy.core.submission.model import REFERENCE_MEMBER, Entry, unescape

#: System of identifiers that are URIs (https://hl7.org/fhir/R4/identifier-registry.html).
IDENTITY_SYSTEM = "urn:ietf:rfc:3986"
_IDENTITY_SYSTEM = IDENTITY_SYSTEM.encode()

#: The form of an identity. RFC 9562 leaves version 8 to applications, so few other identifiers have this form.
IDENTITY_PATTERN = re.compile(r"urn:uuid:[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")

#: Hexadecimal digits with the two highest bits set to RFC 9562's variant (section 4.1).
UUID_VARIANT = dict(zip("0123456789abcdef", "89ab" * 4, strict=True))

#: Positive integers below this are written without a detour through Decimal.
SMALL_INTEGER = 10**18

#: Statuses of a reading that revises an earlier one; it is no repetition of that one.
REVISION_STATUSES = frozenset({"amended", "corrected", "cancelled", "entered-in-error"})

#: Elements that may differ although the content is the same.
VOLATILE_ELEMENTS = frozenset({"id", "meta", "text"})

_sorted = msgspec.json.Encoder(decimal_format="number", order="sorted")


def compute_identity(entry: Entry, patient: str, resolve: ReferenceResolver, identities: Mapping[str, str]) -> str:
    """Return the identity of an entry, as `urn:uuid:…`.

    `identities` are those of the entries that it references, by reference.
    """
    resource = entry.resource
    key = _reading_key(resource, resolve) or _content_key(resource, identities)
    digest = hashlib.sha256(encode((patient, *key))).hexdigest()
    return f"urn:uuid:{digest[:8]}-{digest[8:12]}-8{digest[13:16]}-{UUID_VARIANT[digest[16]]}{digest[17:20]}-{digest[20:32]}"


def search_token(identity: str) -> str:
    """Return an identity as a search token, for `identifier=`."""
    return f"{IDENTITY_SYSTEM}|{identity}"


def _reading_key(resource: JsonObject, resolve: ReferenceResolver) -> tuple[str, ...] | None:
    """Return what identifies a sensor reading; None for another resource and for a reading that cannot be interpreted."""
    code, instant, value = reading_code(resource), resource.get("effectiveDateTime"), _value_and_unit(resource)
    if code is None or value is None or not isinstance(instant, str):
        return None
    status = resource.get("status")
    revision = (status,) if isinstance(status, str) and status in REVISION_STATUSES else ()
    return ("reading", code, utc(instant), *value, _device_key(resource.get("device"), resolve), *revision)


def reading_code(resource: JsonObject) -> str | None:
    """Return the code, as a token, that makes a resource a sensor reading; None for other resources."""
    concept = resource.get("code")
    for coding in objects(concept.get("coding")) if isinstance(concept, dict) else ():
        system, code = coding.get("system"), coding.get("code")
        if isinstance(system, str) and isinstance(code, str) and (system, code) in READING_CODES:
            return f"{system}|{code}"
    return None


def _value_and_unit(resource: JsonObject) -> tuple[str, str] | None:
    """Return value and unit, or the reason why they are absent; None for a value that is not a number with a unit."""
    quantity = resource.get("valueQuantity")
    if isinstance(quantity, dict) and (number := canonical_number(quantity.get("value"))):
        unit = quantity.get("code") or quantity.get("unit") or ""
        return f"{quantity.get('comparator', '')}{number}", str(unit)
    if any(name.startswith("value") for name in resource):
        return None
    return "absent", _sorted.encode(resource.get("dataAbsentReason")).decode()


def canonical_number(number: Any) -> str:
    """Return the text that all equal numbers share, whatever their digits: `100`, `100.0` and `1e2` are equal.

    Anything but a number gives "".
    """
    if type(number) is int and 0 < number < SMALL_INTEGER:
        digits = str(number)
        significant = digits.rstrip("0")
        return f"{significant}e{len(digits) - len(significant)}"
    if isinstance(number, bool) or not isinstance(number, int | Decimal):
        return ""
    sign, digit_tuple, exponent = Decimal(number).as_tuple()
    digits = "".join(map(str, digit_tuple)).lstrip("0")
    significant = digits.rstrip("0")
    if not significant:
        return "0"
    return f"{'-' if sign else ''}{significant}e{int(exponent) + len(digits) - len(significant)}"


def _device_key(element: Any, resolve: ReferenceResolver) -> str:
    """Return the device's serial number, UDI or first identifier; "" if it has none of them or cannot be resolved.

    The identity of a stored device does not count: the device did not have it when it was submitted.
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
    tokens = sorted(
        f"{identifier.get('system', '')}|{identifier['value']}"
        for identifier in objects(device.get("identifier"))
        if identifier.get("value") and not _is_identity(identifier)
    )
    return f"identifier:{tokens[0]}" if tokens else ""


def _content_key(resource: JsonObject, identities: Mapping[str, str]) -> tuple[str, ...]:
    content = {name: value for name, value in resource.items() if name not in VOLATILE_ELEMENTS}
    if isinstance(identifiers := content.get("identifier"), list):
        # a resource that was read from this server and is sent again has its identity
        content["identifier"] = [identifier for identifier in identifiers if not _is_identity(identifier)]
        if not content["identifier"]:
            del content["identifier"]
    return ("content", _replace_references(_sorted.encode(content), identities).decode())


def _is_identity(identifier: Any) -> bool:
    return isinstance(identifier, dict) and IDENTITY_PATTERN.fullmatch(str(identifier.get("value"))) is not None


def has_foreign_identity(entry: Entry, identity: str) -> bool:
    """Whether a resource was sent with an identifier that has the form of an identity but is not its own."""
    if _IDENTITY_SYSTEM not in entry.encoded:
        return False
    for identifier in objects(entry.resource.get("identifier")):
        value = identifier.get("value")
        has_form = identifier.get("system") == IDENTITY_SYSTEM and IDENTITY_PATTERN.fullmatch(str(value).lower())
        if has_form and value != identity:
            return True
    return False


def stamp(entry: Entry, identity: str, locations: Mapping[str, str]) -> bytes:
    """Return an entry's resource, serialised, as it is stored: with its identity, and `locations` in place of references."""
    if b'"identifier":' not in entry.encoded:  # unescaped quotes: only a member's name looks like this
        own = b',"identifier":[{"system":"%b","value":"%b"}]}' % (_IDENTITY_SYSTEM, identity.encode())
        encoded = entry.encoded[:-1] + own
    else:
        resource = entry.resource
        sent = resource.get("identifier", [])
        identifiers = list(sent) if isinstance(sent, list) else [sent]
        own_identifier = {"system": IDENTITY_SYSTEM, "value": identity}
        if not any(identifier.items() >= own_identifier.items() for identifier in objects(identifiers)):
            identifiers.append(own_identifier)
        encoded = encode({**resource, "identifier": identifiers})
    return encoded if locations.keys().isdisjoint(entry.references) else _replace_references(encoded, locations)


def _replace_references(encoded: bytes, replacements: Mapping[str, str]) -> bytes:
    """Replace literal references in a serialised resource; those that are no key of `replacements` stay."""

    def replace(member: re.Match[bytes]) -> bytes:
        replacement = replacements.get(unescape(member[1]))
        return b'"reference":' + encode(replacement) if replacement else member[0]

    return REFERENCE_MEMBER.sub(replace, encoded)
