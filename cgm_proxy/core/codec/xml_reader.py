"""Builds FHIR JSON of what an XML parser reports; `xml.py` says by which laws."""

from collections.abc import Callable
from functools import cache
from typing import Any

from cgm_proxy.core.codec.xhtml import Narrative
from cgm_proxy.core.codec.xml_schema import FHIR, TYPES, XHTML, Kind, XmlElement, elements
from cgm_proxy.core.issues import RequestRefused, refuse
from cgm_proxy.core.json_values import JsonObject

FHIR_TAG = f"{{{FHIR}}}"

#: Characters that are kept of text that should not be there.
SHOWN = 200

#: Attributes that say nothing about the resource.
IGNORED = frozenset({"{http://www.w3.org/2001/XMLSchema-instance}schemaLocation"})


class _Frame:
    """An element that is being read: what it is in its parent, what its children may be, and what was found so far."""

    __slots__ = ("content", "element", "gaps", "known", "text", "value")

    def __init__(self, element: XmlElement, known: dict[str, XmlElement], content: JsonObject) -> None:
        self.element = element
        self.known = known
        self.content = content
        self.value: str | None = None
        self.text = ""
        self.gaps: set[str] | None = None


class Reader:
    """Receives the parser's events and builds the JSON: a target of lxml's parser, which calls the methods by their names."""

    def __init__(self, depth: int, pack: Callable[[JsonObject], object] | None = None) -> None:
        self.depth = depth
        self.pack = pack
        self.stack = [_Frame(DOCUMENT, {}, {})]
        self.narrative: Narrative | None = None

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        """Begin an element."""
        if len(self.stack) > self.depth:
            raise _too_deep(self.depth)
        if self.narrative:
            self.narrative.start(tag, attributes)
            if self.narrative.depth + len(self.stack) > self.depth:
                raise _too_deep(self.depth)
            return
        parent = self.stack[-1]
        element = parent.known.get(tag) or _unlisted(parent, tag)
        if element.kind is Kind.XHTML:
            self.narrative = Narrative(tag, attributes)
            frame = _Frame(element, {}, {})
        elif parent.element.kind is Kind.RESOURCE:
            frame = _Frame(element, _children(element.name), {"resourceType": element.name})
        else:
            frame = _Frame(element, CHILDREN.get(element.kind) or _children(element.type), {})
        if attributes and element.kind is not Kind.XHTML:
            _take_attributes(frame, attributes)
        self.stack.append(frame)

    def data(self, text: str) -> None:
        """Take text; between elements only white space may stand."""
        if self.narrative:
            self.narrative.data(text)
        elif not text.isspace() and len(self.stack[-1].text) < SHOWN:
            self.stack[-1].text += text

    def end(self, tag: str) -> None:
        """Finish an element and put it into its parent."""
        if self.narrative:
            self.narrative.end(tag)
            if self.narrative.depth:
                return
            text, self.narrative = self.narrative.text(), None
            self.stack.pop()
            _put(self.stack[-1], "div", text, None)
            return
        frame, parent = self.stack.pop(), self.stack[-1]
        if frame.gaps:
            _close_gaps(frame.content, frame.gaps)
        if frame.text:
            frame.content["#text"] = frame.text.strip()[:SHOWN]
        FINISH[frame.element.kind](parent, frame)
        if self.pack and frame.element is ENTRY:
            parent.content["entry"][-1] = self.pack(frame.content)

    def doctype(self, name: str, _public: str | None, _system: str | None) -> None:
        """Refuse a document type, which `to_json` has refused before."""
        raise refuse(400, "xml-doctype", f"the body has a document type declaration ({name[:40]}); leave it out")

    def close(self) -> JsonObject | None:
        """Give the document's resource; None where the parser gave up before there was one."""
        return self.stack[0].content.get("resource")


def _take_attributes(frame: _Frame, attributes: dict[str, str]) -> None:
    kind, content = frame.element.kind, frame.content
    for name, value in attributes.items():
        if name == "value" and kind is Kind.PRIMITIVE:
            frame.value = value
        elif (known := frame.known.get(FHIR_TAG + name)) and known.kind is Kind.ATTRIBUTE:
            content[name] = value
        elif name not in IGNORED:
            content["@" + name] = value


def _unlisted(parent: _Frame, tag: str) -> XmlElement:
    """Make the element of a name that the parent's type does not have, or refuse another namespace."""
    if not tag.startswith(FHIR_TAG):
        namespace, _, name = tag.rpartition("}")
        text = (
            f'<{name[:40]}> is in namespace "{namespace[1:][:60]}"; FHIR\'s is "{FHIR}" (and XHTML for Narrative.div)'
        )
        raise refuse(400, "xml-namespace", text, code="structure")
    name = tag.removeprefix(FHIR_TAG)
    if parent.element.kind is Kind.RESOURCE:
        return XmlElement(name, Kind.COMPLEX, type=name)
    return XmlElement(name, Kind.UNKNOWN)


def _finish_primitive(parent: _Frame, frame: _Frame) -> None:
    element = frame.element
    value = None if frame.value is None else element.read(frame.value)
    extras = frame.content or (None if frame.value is not None else {})
    if element.many or extras is not None:
        _put_primitive(parent, element, value, extras)
    else:
        _put(parent, element.name, value, element)


def _put_primitive(parent: _Frame, element: XmlElement, value: Any, extras: JsonObject | None) -> None:
    """Put a value with its id and extensions, or into a list: `name` and `_name`, which run parallel."""
    name, content = element.name, parent.content
    if not element.many and name not in content and f"_{name}" not in content:
        if value is not None:
            content[name] = value
        content[f"_{name}"] = extras
        return
    values, extra = _as_list(content, name), content.get(f"_{name}")
    if extra is not None and not isinstance(extra, list):
        content[f"_{name}"] = [extra]
        values = values or _fill(content, name, [None])
    if extras is not None:
        more = content.setdefault(f"_{name}", [])
        more.extend([None] * (len(values) - len(more)))
        more.append(extras)
        parent.gaps = parent.gaps or set()
        parent.gaps.add(name)
    values.append(value)


def _as_list(content: JsonObject, name: str) -> list[Any]:
    known = content.get(name)
    if isinstance(known, list):
        return known
    return _fill(content, name, [] if known is None else [known])


def _fill(content: JsonObject, name: str, values: list[Any]) -> list[Any]:
    content[name] = values
    return values


def _close_gaps(content: JsonObject, names: set[str]) -> None:
    """Make `name` and `_name` equally long, and leave out the one that holds nothing."""
    for name in names:
        values, extras = content[name], content[f"_{name}"]
        extras.extend([None] * (len(values) - len(extras)))
        if all(value is None for value in values):
            del content[name]


def _put(parent: _Frame, name: str, value: Any, element: XmlElement | None) -> None:
    """Put a value under its name; a second one makes a list of what may stand once, which the rules then refuse."""
    content = parent.content
    if element is not None and element.many:
        content.setdefault(name, []).append(value)
    elif name not in content and f"_{name}" not in content:
        content[name] = value
    elif element is not None and element.kind is Kind.PRIMITIVE:
        _put_primitive(parent, element, value, None)
    else:
        _as_list(content, name).append(value)


def _finish_complex(parent: _Frame, frame: _Frame) -> None:
    if parent.element.kind is Kind.RESOURCE:
        _put(parent, "resource", frame.content, None)
    else:
        _put(parent, frame.element.name, frame.content, frame.element)


def _finish_resource(parent: _Frame, frame: _Frame) -> None:
    """Put the one resource inside; where it is not one, or something stands beside it, all of it."""
    inside = frame.content
    alone = inside["resource"] if inside.keys() == {"resource"} else inside
    _put(parent, frame.element.name, alone, frame.element)


def _finish_unknown(parent: _Frame, frame: _Frame) -> None:
    content: Any = frame.content
    if content.keys() == {"@value"} and frame.element.kind is Kind.UNKNOWN:
        content = content["@value"]
    _put(parent, frame.element.name, content, frame.element)


def _children(type_name: str) -> dict[str, XmlElement]:
    return _tags(type_name) if type_name in TYPES else {}  # so that no submitter's names fill the cache


@cache
def _tags(type_name: str) -> dict[str, XmlElement]:
    """Map the tags of a type's children to what they are; a `div` of FHIR's own namespace is as misplaced as an `id`."""
    known = {FHIR_TAG + element.name: element for element in elements(type_name).values()}
    for element in elements(type_name).values():
        if element.kind is Kind.XHTML:
            known[f"{{{XHTML}}}{element.name}"] = element
            known[FHIR_TAG + element.name] = XmlElement(element.name, Kind.ATTRIBUTE)
    return known


def _too_deep(depth: int) -> RequestRefused:
    return refuse(400, "too-deep", f"the XML is nested deeper than {depth} elements; flatten it", code="too-costly")


DOCUMENT = XmlElement("document", Kind.RESOURCE)

#: An entry of a Bundle.
ENTRY = elements("Bundle")["entry"]

#: What stands in a primitive is what stands in any element; nothing is known of what stands in an unknown one.
CHILDREN = {Kind.PRIMITIVE: _children("Element"), Kind.RESOURCE: {}, Kind.UNKNOWN: {}, Kind.ATTRIBUTE: {}}

FINISH = {
    Kind.PRIMITIVE: _finish_primitive,
    Kind.COMPLEX: _finish_complex,
    Kind.RESOURCE: _finish_resource,
    Kind.UNKNOWN: _finish_unknown,
    Kind.ATTRIBUTE: _finish_unknown,
}
