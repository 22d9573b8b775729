"""The identity of a stored resource, which ensures that nothing is stored twice.

A reading is identified by its patient, code, instant in UTC, value with unit, device, and status unless that is `final`. Any
other resource (summary, report, device) is identified by its patient and its content in canonical form, in which references to
entries of the same submission, and to resources that this receiver stored, are replaced by their identities. The SHA-256 of
that, written as a UUID of version 8 (RFC 9562), becomes one more identifier of the stored resource, and the conditional create
asks for exactly this identifier.

The same instant with another value is another reading: real exports have such pairs. So is a reading with another status:
neither takes the place of the other.
"""

import hashlib
import re
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any

from cgm_proxy.core.codec.json_body import encode
from cgm_proxy.core.json_values import JsonObject, objects
from cgm_proxy.core.r4.dates import utc
from cgm_proxy.core.r4.reference_scope import ReferenceResolver
from cgm_proxy.core.submission.canonical import canonical_json, canonical_number
from cgm_proxy.core.submission.dialects import READING_CODES
from cgm_proxy.core.submission.model import REFERENCE_MEMBER, Entry, unescape

#: System of identifiers that are URIs (https://hl7.org/fhir/R4/identifier-registry.html).
IDENTITY_SYSTEM = "urn:ietf:rfc:3986"

#: The form of an identity. RFC 9562 leaves version 8 to applications, so few other identifiers have this form.
IDENTITY_PATTERN = re.compile(r"urn:uuid:[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
_IDENTITY_BYTES = re.compile(IDENTITY_PATTERN.pattern.encode())

#: Hexadecimal digits with the two highest bits set to RFC 9562's variant (section 4.1).
UUID_VARIANT = dict(zip("0123456789abcdef", "89ab" * 4, strict=True))

#: Elements of a reading that change the meaning of all others (https://hl7.org/fhir/R4/conformance-rules.html#isModifier).
MODIFIERS = ("modifierExtension", "implicitRules")

#: Elements that may differ although the content is the same.
VOLATILE_ELEMENTS = frozenset({"id", "meta", "text"})


class IdentityScope:
    """What the identities of one submission's entries depend on besides the entries.

    `entry_identity` returns the identity of the entry that a reference means, or None; `resolve` returns the entry's or stored
    resource; `localize` makes references to this server relative.
    """

    def __init__(
        self,
        patient: str,
        entry_identity: Callable[[str], str | None],
        resolve: ReferenceResolver,
        localize: Callable[[str], str],
    ) -> None:
        self.patient = patient
        self._entry_identity = entry_identity
        self._resolve = resolve
        self._localize = localize
        self._device_keys: dict[str, str] = {}

    def meaning(self, reference: str) -> str:
        """Return what a reference means, however it is written.

        That is the identity of an entry or of a resource that this receiver stored; otherwise the reference relative to this
        server, without a version.
        """
        if identity := self._entry_identity(reference):
            return identity
        stored = self._resolve(reference) or {}
        identities = [each["value"] for each in objects(stored.get("identifier")) if _is_identity(each)]
        if identities:
            return str(min(identities))
        if "?" in reference and "id" in stored:
            return f"{stored.get('resourceType')}/{stored['id']}"
        return self._localize(reference).partition("/_history/")[0]

    def device_key(self, reference: str) -> str:
        """Return what identifies the entry or stored device that a reference means; "" if nothing does."""
        key = self._device_keys.get(reference)
        if key is None:
            key = self._device_keys[reference] = _key_in_device(self._resolve(reference) or {})
        return key


def compute_identity(entry: Entry, scope: IdentityScope) -> str:
    """Return the identity of an entry, as `urn:uuid:…`."""
    resource = entry.resource
    key = _reading_key(resource, scope) or _content_key(resource, scope)
    digest = hashlib.sha256(encode((scope.patient, *key))).hexdigest()
    return f"urn:uuid:{digest[:8]}-{digest[8:12]}-8{digest[13:16]}-{UUID_VARIANT[digest[16]]}{digest[17:20]}-{digest[20:32]}"


def search_token(identity: str) -> str:
    """Return an identity as a search token, for `identifier=`."""
    return f"{IDENTITY_SYSTEM}|{identity}"


def _reading_key(resource: JsonObject, scope: IdentityScope) -> tuple[str, ...] | None:
    """Return what identifies a sensor reading; None for another resource and for a reading that cannot be interpreted."""
    code, instant, value = reading_code(resource), resource.get("effectiveDateTime"), _value_and_unit(resource)
    if code is None or value is None or not isinstance(instant, str):
        return None
    status = resource.get("status")
    other_status = (status,) if isinstance(status, str) and status != "final" else ()
    modifiers = [canonical_json({name: resource[name]}, scope.meaning) for name in MODIFIERS if name in resource]
    return ("reading", code, utc(instant), *value, _device_key(resource, scope), *other_status, *modifiers)


def reading_code(resource: JsonObject) -> str | None:
    """Return the code, as a token, that makes a resource a sensor reading; None for other resources."""
    concept = resource.get("code")
    found = None
    for coding in objects(concept.get("coding")) if isinstance(concept, dict) else ():
        system, code = coding.get("system"), coding.get("code")
        if isinstance(system, str) and isinstance(code, str) and (system, code) in READING_CODES:
            token = f"{system}|{code}"
            if found is None or token < found:  # of several, the same one in any order
                found = token
    return found


def _value_and_unit(resource: JsonObject) -> tuple[str, str] | None:
    """Return value and unit, or the reason why they are absent; None for a value that is not a number with a unit."""
    quantity = resource.get("valueQuantity")
    if isinstance(quantity, dict) and (number := canonical_number(quantity.get("value"))):
        unit = quantity.get("code") or quantity.get("unit") or ""
        return f"{quantity.get('comparator', '')}{number}", str(unit)
    if any(name.startswith("value") for name in resource):
        return None
    return "absent", canonical_json(resource.get("dataAbsentReason"), str)


def _device_key(resource: JsonObject, scope: IdentityScope) -> str:
    """Return what identifies a reading's device, however it is named; "" without a device.

    A device without serial number and identifier is identified by its content if it is contained, and otherwise by what the
    reference means.
    """
    element = resource.get("device")
    if not isinstance(element, dict) or not element:
        return ""
    reference = element.get("reference")
    if isinstance(reference, str):
        if reference.startswith("#"):
            contained = [each for each in objects(resource.get("contained")) if each.get("id") == reference[1:]]
            device = {**contained[0], "id": None} if contained else {}
            return _key_in_device(device) or f"contained:{canonical_json(device, scope.meaning)}"
        if key := scope.device_key(reference):
            return key
    if token := _first_token([element.get("identifier")]):
        return f"identifier:{token}"
    if isinstance(reference, str):
        return f"reference:{scope.meaning(reference)}"
    return f"element:{canonical_json(element, scope.meaning)}"


def _key_in_device(device: JsonObject) -> str:
    """Return a device's serial number or first identifier; "" if it has neither: a UDI may name only the model."""
    if serial := device.get("serialNumber"):
        return f"serial:{serial}"
    token = _first_token(device.get("identifier"))
    return f"identifier:{token}" if token else ""


def _first_token(identifiers: Any) -> str | None:
    """Return the first of identifiers, in alphabetical order, as a token.

    The identity of a stored device does not count: the device did not have it when it was submitted.
    """
    tokens = (
        f"{identifier.get('system', '')}|{identifier['value']}"
        for identifier in objects(identifiers)
        if identifier.get("value") and not _is_identity(identifier)
    )
    return min(tokens, default=None)


def _content_key(resource: JsonObject, scope: IdentityScope) -> tuple[str, ...]:
    content = {name: value for name, value in resource.items() if name not in VOLATILE_ELEMENTS}
    if isinstance(identifiers := content.get("identifier"), list):
        # a resource that was read from this server and is sent again has its identity
        content["identifier"] = [identifier for identifier in identifiers if not _is_identity(identifier)]
        if not content["identifier"]:
            del content["identifier"]
    subject = "patient" if resource.get("resourceType") == "Device" else "subject"
    element = content.get(subject)
    if isinstance(element, dict) and scope.meaning(str(element.get("reference"))) == scope.patient:
        content[subject] = {"reference": scope.patient}
    return ("content", canonical_json(content, scope.meaning))


def _is_identity(identifier: Any) -> bool:
    return (
        isinstance(identifier, dict)
        and identifier.get("system") == IDENTITY_SYSTEM
        and IDENTITY_PATTERN.fullmatch(str(identifier.get("value"))) is not None
    )


def has_foreign_identity(entry: Entry, identity: str) -> bool:
    """Whether a resource was sent with an identifier that a server could take for an identity but is not its own."""
    encoded = entry.encoded
    if b'"identifier":' not in encoded:
        return False
    if encoded.isascii() and b"\\" not in encoded and not _IDENTITY_BYTES.search(encoded.lower()):
        return False
    for identifier in objects(entry.resource.get("identifier")):
        system, value = identifier.get("system"), identifier.get("value")
        has_form = _folded(system) == IDENTITY_SYSTEM and IDENTITY_PATTERN.fullmatch(_folded(value))
        if has_form and value != identity:
            return True
    return False


def _folded(text: Any) -> str:
    """Return a text without anything that some database leaves out of comparisons: case, width, white space and other signs."""
    return re.sub(r"[^0-9a-z:-]", "", unicodedata.normalize("NFKC", str(text)).casefold())


def stamp(entry: Entry, identity: str, locations: Mapping[str, str]) -> bytes:
    """Return an entry's resource, serialised, as it is stored: with its identity, and `locations` in place of references."""
    if b'"identifier":' not in entry.encoded:  # unescaped quotes: only a member's name looks like this
        own = b',"identifier":[{"system":"%b","value":"%b"}]}' % (IDENTITY_SYSTEM.encode(), identity.encode())
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
