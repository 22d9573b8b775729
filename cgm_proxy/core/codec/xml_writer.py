"""Writes FHIR JSON as FHIR XML (https://hl7.org/fhir/R4/xml.html), for responses to submitters that read XML."""

import re
from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

from cgm_proxy.core.codec.xhtml import ATTRIBUTE_ESCAPES, div_as_xml, legal
from cgm_proxy.core.codec.xml_schema import FHIR, NO_ELEMENTS, Kind, XmlElement, XmlSchema
from cgm_proxy.core.json_values import JsonObject

#: Names of members that can be names of XML elements, within ASCII.
NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]*")

#: The JSON types that are not a single primitive value.
COMPOUND = (list, dict, type(None))

#: The definition of a member that its type does not have.
UNKNOWN = XmlElement("", Kind.UNKNOWN)

#: Members that may be attributes.
ATTRIBUTES = ("id", "url")


class ResourceWriter:
    """Writes one resource."""

    def __init__(self, schema: XmlSchema) -> None:
        self._schema = schema
        self._parts = ['<?xml version="1.0" encoding="UTF-8"?>\n']

    def write(self, resource: JsonObject) -> bytes:
        """Return the resource as XML in UTF-8, its elements in the order of the specification.

        Members that the type does not have come last, if XML can name them; characters that XML cannot hold become U+FFFD.
        """
        self._resource(resource, f' xmlns="{FHIR}"')
        return "".join(self._parts).encode("utf-8")

    def _resource(self, resource: JsonObject, xmlns: str = "") -> None:
        type_name = resource.get("resourceType")
        name = type_name if isinstance(type_name, str) and NAME.fullmatch(type_name) else "Basic"
        self._parts.append(f"<{name}{xmlns}>")
        self._children(resource, self._schema.elements(name))
        self._parts.append(f"</{name}>")

    def _children(self, content: JsonObject, elements: Mapping[str, XmlElement]) -> None:
        for name in _in_order(content, elements):
            element = elements.get(name) or UNKNOWN
            value, companion = content.get(name), content.get(f"_{name}")
            if companion is None and element.kind is Kind.PRIMITIVE and not isinstance(value, COMPOUND):
                self._parts.append(f'<{name} value="{_text(value)}"/>')
                continue
            if element.kind is Kind.ATTRIBUTE or not NAME.fullmatch(name):
                continue
            for item, item_companion in zip_longest(_as_list(value), _as_list(companion)):
                if item is not None or item_companion is not None:
                    self._element(name, element, item, item_companion)

    def _element(self, name: str, element: XmlElement, value: Any, companion: Any) -> None:
        """Write one element; `companion` holds a primitive's id and extensions (`_name` in JSON)."""
        if element.kind is Kind.RESOURCE and isinstance(value, dict):
            self._parts.append(f"<{name}>")
            self._resource(value)
            self._parts.append(f"</{name}>")
        elif element.kind is Kind.XHTML and isinstance(value, str):
            self._parts.append(div_as_xml(value))
        elif isinstance(value, dict):
            elements = self._schema.elements(element.type) if element.kind is Kind.COMPLEX else NO_ELEMENTS
            self._complex(name, value, elements)
        else:
            attribute = "" if value is None else f' value="{_text(value)}"'
            inside = companion if isinstance(companion, dict) else {}
            self._complex(name, inside, self._schema.elements("Element"), attribute)

    def _complex(
        self, name: str, content: JsonObject, elements: Mapping[str, XmlElement], attributes: str = ""
    ) -> None:
        for name_of_attribute in ATTRIBUTES:
            value, element = content.get(name_of_attribute), elements.get(name_of_attribute)
            if isinstance(value, str) and element is not None and element.kind is Kind.ATTRIBUTE:
                attributes = f' {name_of_attribute}="{_text(value)}"{attributes}'
        if not content.keys() - {"id"}:
            self._parts.append(f"<{name}{attributes}/>")
            return
        self._parts.append(f"<{name}{attributes}>")
        self._children(content, elements)
        self._parts.append(f"</{name}>")


def _in_order(content: JsonObject, elements: Mapping[str, XmlElement]) -> list[str]:
    """Return the members' names: those of the type in its order, then the others; `_name` counts as `name`."""
    names = dict.fromkeys(name.removeprefix("_") for name in content if name != "resourceType")
    listed = [name for name in elements if name in names]
    if len(listed) < len(names):
        listed += [name for name in names if name not in elements]
    return listed


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return legal(str(value)).translate(ATTRIBUTE_ESCAPES)
