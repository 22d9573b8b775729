"""FHIR JSON to FHIR XML (https://hl7.org/fhir/R4/xml.html), for answers to submitters that read XML."""

import re
from collections.abc import Iterable, Mapping
from itertools import zip_longest
from typing import Any

from cgm_proxy.core.codec.xhtml import ATTRIBUTE, as_xml, legal
from cgm_proxy.core.codec.xml_schema import FHIR, Kind, XmlElement, elements
from cgm_proxy.core.json_values import JsonObject

#: Names of members that can be names of elements: what XML allows, within ASCII.
NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]*")


def to_xml(resource: JsonObject) -> bytes:
    """Write a resource as XML in UTF-8, its elements in the order of the specification.

    Members that the type does not have follow, where XML can name them; characters that XML cannot hold become U+FFFD.
    """
    parts = ['<?xml version="1.0" encoding="UTF-8"?>\n']
    _resource(parts, resource, f' xmlns="{FHIR}"')
    return "".join(parts).encode("utf-8")


def _resource(parts: list[str], resource: JsonObject, xmlns: str = "") -> None:
    kind = resource.get("resourceType")
    name = kind if isinstance(kind, str) and NAME.fullmatch(kind) else "Basic"
    parts.append(f"<{name}{xmlns}>")
    _children(parts, resource, elements(name))
    parts.append(f"</{name}>")


def _children(parts: list[str], content: JsonObject, known: Mapping[str, XmlElement]) -> None:
    for name in _in_order(content, known):
        element = known.get(name) or UNKNOWN
        value, extras = content.get(name), content.get(f"_{name}")
        if extras is None and element.kind is Kind.PRIMITIVE and not isinstance(value, COMPOUND):
            parts.append(f'<{name} value="{_text(value)}"/>')
            continue
        if element.kind is Kind.ATTRIBUTE or not NAME.fullmatch(name):
            continue
        for item, extra in zip_longest(_listed(value), _listed(extras)):
            if item is not None or extra is not None:
                _write(parts, name, element, item, extra)


def _in_order(content: JsonObject, known: Mapping[str, XmlElement]) -> Iterable[str]:
    """List the names of a type's elements in its order, then the others; `_name` goes with `name`."""
    names = {name.removeprefix("_") for name in content if name != "resourceType"}
    yield from (name for name in known if name in names)
    if names - known.keys():
        yield from dict.fromkeys(
            name.removeprefix("_") for name in content if name.removeprefix("_") in names - known.keys()
        )


def _write(parts: list[str], name: str, element: XmlElement, value: Any, extras: Any) -> None:
    if element.kind is Kind.RESOURCE and isinstance(value, dict):
        parts.append(f"<{name}>")
        _resource(parts, value)
        parts.append(f"</{name}>")
    elif element.kind is Kind.XHTML and isinstance(value, str):
        parts.append(as_xml(value))
    elif isinstance(value, dict):
        _open(parts, name, value, elements(element.type) if element.kind is Kind.COMPLEX else {})
    else:
        text = "" if value is None else f' value="{_text(value)}"'
        _open(parts, name, extras if isinstance(extras, dict) else {}, elements("Element"), text)


def _open(
    parts: list[str], name: str, content: JsonObject, known: Mapping[str, XmlElement], attributes: str = ""
) -> None:
    for attribute, element in known.items():
        if element.kind is Kind.ATTRIBUTE and isinstance(content.get(attribute), str):
            attributes = f' {attribute}="{_text(content[attribute])}"{attributes}'
    if not content.keys() - ATTRIBUTES:
        parts.append(f"<{name}{attributes}/>")
        return
    parts.append(f"<{name}{attributes}>")
    _children(parts, content, known)
    parts.append(f"</{name}>")


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return legal(str(value)).translate(ATTRIBUTE)


#: What is not one primitive value.
COMPOUND = (list, dict, type(None))

UNKNOWN = XmlElement("", Kind.UNKNOWN)

#: Members that an element of attributes alone may have.
ATTRIBUTES = frozenset({"id"})
