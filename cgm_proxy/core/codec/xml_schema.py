"""R4's types as an XML reader and writer need them: which elements are lists, numbers, resources or attributes.

XML has only elements with attributes, JSON has lists, numbers and booleans. Only the definition of an element tells them
apart (https://hl7.org/fhir/R4/json.html, https://hl7.org/fhir/R4/xml.html). The definitions are those of `core/r4/model.py`.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum, auto
from functools import cached_property
from typing import Any

from cgm_proxy.core.r4.model import PRIMITIVES, Model
from cgm_proxy.core.r4.narrative import XHTML_TAG

FHIR = "http://hl7.org/fhir"

#: The namespace in braces, with which an XML parser begins the names that it reports.
FHIR_TAG = f"{{{FHIR}}}"

#: How R4 writes numbers (https://hl7.org/fhir/R4/datatypes.html). Other text stays text, and the rules refuse it.
#: Python converts at most 4,300 digits to an int; 1,000 are plenty.
INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,999})")
DECIMAL = re.compile(r"-?(?:0|[1-9][0-9]{0,999})(?:\.[0-9]{1,999}|(?:\.[0-9]{1,999})?[eE][+-]?[0-9]{1,6})")

#: FHIRPath's System.String: the type of an element's `id` and an extension's `url`, which are R4's only attributes besides
#: `value`, and of a resource's `id`, which is an element.
SYSTEM_STRING = "String"


class Kind(Enum):
    """What an element holds."""

    PRIMITIVE = auto()
    COMPLEX = auto()
    RESOURCE = auto()
    """Another element that is named by a resource type: `contained`, `Bundle.entry.resource`."""
    XHTML = auto()
    ATTRIBUTE = auto()
    """An attribute in XML: the `id` of an element, the `url` of an extension."""
    UNKNOWN = auto()


@dataclass(frozen=True, slots=True)
class XmlElement:
    """An element as its parent's type defines it; `type` names the type of a complex one."""

    name: str
    kind: Kind
    many: bool = False
    type: str = ""
    read: Callable[[str], Any] = str
    """Converts a primitive's text in XML to its JSON value."""


#: The elements of a type that R4 does not have.
NO_ELEMENTS: Mapping[str, XmlElement] = {}


class XmlSchema:
    """The elements of R4's types, each type read from the definitions when it is first needed."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._elements: dict[str, Mapping[str, XmlElement]] = {}
        self._by_tag: dict[str, Mapping[str, XmlElement]] = {}

    def is_resource(self, type_name: str) -> bool:
        """Whether R4 has a resource type of this name."""
        return type_name in self._model.resources

    def elements(self, type_name: str) -> Mapping[str, XmlElement]:
        """Return a type's elements by JSON name, in the order of the specification; none for unknown types."""
        elements = self._elements.get(type_name)
        if elements is None:
            definition = self._model.type(type_name)
            if definition is None:
                return NO_ELEMENTS  # not cached: submitters can send any number of unknown names
            in_resource = "implicitRules" in definition.elements
            elements = self._elements[type_name] = {
                name: _xml_element(name, type_, many=element.many, in_resource=in_resource)
                for name, (element, type_) in definition.members.items()
            }
        return elements

    def elements_by_tag(self, type_name: str) -> Mapping[str, XmlElement]:
        """Return a type's elements by `{namespace}name`; none for unknown types.

        A `div` in FHIR's own namespace is as misplaced as an attribute that is written as an element.
        """
        by_tag = self._by_tag.get(type_name)
        if by_tag is None:
            elements = self.elements(type_name)
            if not elements:
                return NO_ELEMENTS
            by_tag = {FHIR_TAG + name: element for name, element in elements.items()}
            for name, element in elements.items():
                if element.kind is Kind.XHTML:
                    by_tag[FHIR_TAG + name] = XmlElement(name, Kind.ATTRIBUTE)
                    by_tag[XHTML_TAG + name] = element
            self._by_tag[type_name] = by_tag
        return by_tag

    @cached_property
    def entry(self) -> XmlElement:
        """An entry of a Bundle."""
        return self.elements("Bundle")["entry"]


def _xml_element(name: str, type_: str, *, many: bool, in_resource: bool) -> XmlElement:
    if type_ == SYSTEM_STRING and not in_resource:
        return XmlElement(name, Kind.ATTRIBUTE)
    if type_ == "xhtml":
        return XmlElement(name, Kind.XHTML, many)
    if type_ == "Resource":
        return XmlElement(name, Kind.RESOURCE, many)
    if type_ in PRIMITIVES:
        return XmlElement(name, Kind.PRIMITIVE, many, read=READERS.get(type_, str))
    return XmlElement(name, Kind.COMPLEX, many, type_)


def boolean(text: str) -> bool | str:
    """Return a boolean; other text comes back as it is."""
    return {"true": True, "false": False}.get(text, text)


def integer(text: str) -> int | str:
    """Return an integer; other text comes back as it is."""
    return int(text) if INTEGER.fullmatch(text) else text


def decimal(text: str) -> int | Decimal | str:
    """Return a number with its digits, as a JSON parser does: an int if it has neither fraction nor exponent.

    Other text comes back as it is.
    """
    if DECIMAL.fullmatch(text):
        return Decimal(text)
    return integer(text) if text[:1] != "+" else text


#: Primitive types whose JSON is not a string.
READERS: Mapping[str, Callable[[str], Any]] = {
    "boolean": boolean,
    "decimal": decimal,
    **dict.fromkeys(("integer", "positiveInt", "unsignedInt"), integer),
}
