"""What FHIR R4 says of each type's elements, as far as XML and JSON differ: read once from the models of fhir.resources.

In XML everything is an element with attributes; JSON knows lists, numbers and booleans. Only the type of an element tells
which (https://hl7.org/fhir/R4/json.html, https://hl7.org/fhir/R4/xml.html).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum, auto
from functools import cache
from typing import Any, get_args, get_origin

from fhir.resources.R4B import fhirtypes, get_fhir_model_class
from fhir_core.types import FhirBase, Xhtml

FHIR = "http://hl7.org/fhir"
XHTML = "http://www.w3.org/1999/xhtml"

#: How R4 writes numbers (https://hl7.org/fhir/R4/datatypes.html). Anything else stays text, which the rules refuse by name.
#: Python's own limit on the digits of an int is 4,300; no one means more than 1,000.
INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,999})")
DECIMAL = re.compile(r"-?(?:0|[1-9][0-9]{0,999})(?:\.[0-9]{1,999}|(?:\.[0-9]{1,999})?[eE][+-]?[0-9]{1,6})")


#: Every type and backbone type of R4 that there is a model of.
TYPES = frozenset(name.removesuffix("Type") for name in dir(fhirtypes) if name.endswith("Type"))


class Kind(Enum):
    """What an element holds."""

    PRIMITIVE = auto()
    COMPLEX = auto()
    RESOURCE = auto()
    """Another element, whose name is the resource's type: `contained`, `Bundle.entry.resource`."""
    XHTML = auto()
    ATTRIBUTE = auto()
    """No element in XML but an attribute: the `id` of an element, the `url` of an extension."""
    UNKNOWN = auto()


@dataclass(frozen=True, slots=True)
class XmlElement:
    """An element as its parent's type defines it; `type` is the type of a complex one."""

    name: str
    kind: Kind
    many: bool = False
    type: str = ""
    read: Callable[[str], Any] = str
    """Makes a primitive's JSON value of its text in XML."""


def elements(type_name: str) -> dict[str, XmlElement]:
    """Map the names of a type's elements to what they are, in the order of the specification; empty for unknown types."""
    return _elements(type_name) if type_name in TYPES else {}  # so that no submitter's names fill the cache


@cache
def _elements(type_name: str) -> dict[str, XmlElement]:
    model = get_fhir_model_class(type_name)
    fields = {field.alias or name: field.annotation for name, field in model.model_fields.items()}
    resource = "meta" in fields and "implicitRules" in fields
    attributes = frozenset() if resource else frozenset({"id", "url"} if type_name == "Extension" else {"id"})
    return {
        name: XmlElement(name, Kind.ATTRIBUTE) if name in attributes else _element(name, fields[name])
        for name in model.elements_sequence()
    }


def _element(name: str, annotation: Any) -> XmlElement:
    many = _is_list(annotation)
    leaves = tuple(_leaves(annotation))
    for leaf in leaves:
        if isinstance(leaf, type) and issubclass(leaf, FhirBase):
            type_name = leaf.__name__.removesuffix("Type")
            return XmlElement(name, Kind.RESOURCE if type_name == "Resource" else Kind.COMPLEX, many, type_name)
    if any(isinstance(leaf, Xhtml) for leaf in leaves):
        return XmlElement(name, Kind.XHTML, many)
    read = next((READERS[leaf] for leaf in leaves if isinstance(leaf, type) and leaf in READERS), str)
    return XmlElement(name, Kind.PRIMITIVE, many, read=read)


def _is_list(annotation: Any) -> bool:
    return get_origin(annotation) is list or any(_is_list(part) for part in get_args(annotation))


def _leaves(annotation: Any) -> Any:
    if parts := get_args(annotation):
        for part in parts:
            yield from _leaves(part)
    else:
        yield annotation


def boolean(text: str) -> bool | str:
    """Read a boolean; other text stays."""
    return {"true": True, "false": False}.get(text, text)


def integer(text: str) -> int | str:
    """Read an integer; other text stays."""
    return int(text) if INTEGER.fullmatch(text) else text


def decimal(text: str) -> int | Decimal | str:
    """Read a decimal with its digits, as a JSON parser would: an int where it has neither fraction nor exponent."""
    if DECIMAL.fullmatch(text):
        return Decimal(text)
    return integer(text) if text[:1] != "+" else text


READERS: dict[type, Callable[[str], Any]] = {bool: boolean, int: integer, Decimal: decimal}
