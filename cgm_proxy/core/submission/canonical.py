"""The canonical form of content: the same for whatever means the same, another one for anything else.

FHIR lets the same content be written in many ways. Of these, the canonical form evens out:

- numbers: `6.8` and `6.80`
- times: `02:00:00+02:00`, `00:00:00Z` and `00:00:00.0Z`
- the order of members, and of lists whose order means nothing
- references: what they are replaced by depends on what they mean, and `Reference.type` beside them is left out
- the ids of contained resources
"""

import hashlib
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

import msgspec

from cgm_proxy.core.json_values import JsonObject, objects
from cgm_proxy.core.r4.dates import utc

#: Positive integers below this are written without a detour through Decimal.
SMALL_INTEGER = 10**18

#: Numbers with a larger exponent (or a smaller one, if negative) are written with it, others with all their digits.
LARGEST_EXPONENT = 40

#: Lists of objects in Observation, DiagnosticReport and Device whose order means nothing. It may mean something in `note` (a
#: dialogue) and `media` (the order in which to show them).
UNORDERED = frozenset(
    {
        "appliesTo",
        "basedOn",
        "category",
        "coding",
        "component",
        "conclusionCode",
        "contact",
        "contained",
        "derivedFrom",
        "deviceName",
        "extension",
        "focus",
        "hasMember",
        "identifier",
        "imagingStudy",
        "interpretation",
        "modifierExtension",
        "partOf",
        "performer",
        "presentedForm",
        "property",
        "referenceRange",
        "result",
        "resultsInterpreter",
        "safety",
        "specialization",
        "specimen",
        "statusReason",
        "udiCarrier",
        "valueCode",
        "valueQuantity",
        "version",
    }
)

#: Elements of the types dateTime and instant, besides those whose name ends with one of TIME_ENDINGS.
TIMES = frozenset({"creation", "end", "event", "expirationDate", "issued", "manufactureDate", "start", "time"})
TIME_ENDINGS = ("DateTime", "Instant")

_sorted = msgspec.json.Encoder(decimal_format="number", order="sorted")


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


def canonical_json(content: Any, meaning: Callable[[str], str]) -> str:
    """Return the canonical form of a resource or element, as JSON; `meaning` returns what takes the place of a reference."""
    names = _names_of_contained(content, meaning) if isinstance(content, dict) and "contained" in content else {}
    if names:
        contained = [
            {**held, "id": None} if f"#{held.get('id')}" in names else held for held in objects(content["contained"])
        ]
        content = {**content, "contained": contained}
    return _sorted.encode(_even_out(content, "", lambda reference: names.get(reference) or meaning(reference))).decode()


def _names_of_contained(content: JsonObject, meaning: Callable[[str], str]) -> Mapping[str, str]:
    """Return what takes the place of references to contained resources, whose ids are chosen anew whenever they are written.

    A contained resource that references another one keeps its id, so that nothing is followed in circles.
    """
    names = {}
    for held in objects(content["contained"]):
        encoded = _sorted.encode(_even_out({**held, "id": None}, "", meaning))
        if b'"reference":"#' not in encoded:
            names[f"#{held.get('id')}"] = f"#{hashlib.sha256(encoded).hexdigest()}"
    return names


def _even_out(value: Any, name: str, meaning: Callable[[str], str]) -> Any:
    """Return a value that serialises to its canonical form; `name` is the element that it belongs to."""
    if isinstance(value, dict):
        evened = {member: _even_out(inner, member, meaning) for member, inner in value.items()}
        if isinstance(evened.get("reference"), str):
            evened.pop("type", None)
        return evened
    if isinstance(value, list):
        items = [_even_out(item, name, meaning) for item in value]
        if len(items) > 1 and name in UNORDERED and all(isinstance(item, dict) for item in items):
            return [msgspec.Raw(item) for item in sorted(map(_sorted.encode, items))]
        return items
    if isinstance(value, str):
        if name == "reference":
            return meaning(value)
        is_time = value[10:11] == "T" and (name in TIMES or name.endswith(TIME_ENDINGS))
        return utc(value) if is_time else value
    return msgspec.Raw(_plain_digits(number).encode()) if (number := canonical_number(value)) else value


def _plain_digits(number: str) -> str:
    """Return a canonical number as most people write it."""
    exponent = int(number.partition("e")[2] or 0)
    return f"{Decimal(number):f}" if abs(exponent) <= LARGEST_EXPONENT else number
