"""Builds FHIR JSON from the events of an XML parser; `fhir_xml.py` states the rules that it follows."""

from collections.abc import Callable, Mapping
from typing import Any

from cgm_proxy.core.codec.xhtml import DivWriter
from cgm_proxy.core.codec.xml_schema import FHIR, FHIR_TAG, NO_ELEMENTS, Kind, XmlElement, XmlSchema
from cgm_proxy.core.issues import RequestRefused, refuse
from cgm_proxy.core.json_values import JsonObject

#: Misplaced text is cut to this many characters: enough for a message.
MISPLACED_TEXT = 200

#: Attributes without meaning for the resource.
IGNORED = frozenset({"{http://www.w3.org/2001/XMLSchema-instance}schemaLocation"})

#: The document around the outermost resource.
DOCUMENT = XmlElement("document", Kind.RESOURCE)


class _OpenElement:
    """An element that is being read: its definition, its children's definitions by tag, and its JSON so far."""

    __slots__ = ("children", "content", "definition", "text", "uneven", "value")

    def __init__(self, definition: XmlElement, children: Mapping[str, XmlElement], content: JsonObject) -> None:
        self.definition = definition
        self.children = children
        self.content = content
        self.value: str | None = None
        self.text = ""
        self.uneven: set[str] | None = None
        """Names of lists whose `name` and `_name` may differ in length."""


class ResourceReader:
    """The target of an lxml parser, which calls `start`, `data`, `end`, `doctype` and `close`."""

    def __init__(self, schema: XmlSchema, depth: int, pack: Callable[[JsonObject], object] | None = None) -> None:
        self._schema = schema
        self._depth = depth
        self._pack = pack
        self._open = [_OpenElement(DOCUMENT, NO_ELEMENTS, {})]
        self._div: DivWriter | None = None
        self._primitive_children = schema.elements_by_tag("Element")
        self._entry = schema.entry

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        """Begin an element."""
        if len(self._open) > self._depth:
            raise _too_deep(self._depth)
        if self._div:
            self._div.start(tag, attributes)
            if self._div.depth + len(self._open) > self._depth:
                raise _too_deep(self._depth)
            return
        parent = self._open[-1]
        definition = parent.children.get(tag) or self._unlisted(parent, tag)
        kind = definition.kind
        if kind is Kind.XHTML:
            self._div = DivWriter(tag, attributes)
            self._open.append(_OpenElement(definition, NO_ELEMENTS, {}))
            return
        if kind is Kind.PRIMITIVE:
            element = _OpenElement(definition, self._primitive_children, {})
        elif kind is Kind.COMPLEX:
            content = {"resourceType": definition.name} if parent.definition.kind is Kind.RESOURCE else {}
            element = _OpenElement(definition, self._schema.elements_by_tag(definition.type), content)
        else:
            element = _OpenElement(definition, NO_ELEMENTS, {})
        if attributes:
            _take_attributes(element, attributes)
        self._open.append(element)

    def data(self, text: str) -> None:
        """Add text. Outside a narrative only white space belongs between elements; other text is kept as `#text`."""
        if self._div:
            self._div.data(text)
        elif not text.isspace() and len(self._open[-1].text) < MISPLACED_TEXT:
            self._open[-1].text += text

    def end(self, _tag: str) -> None:
        """Finish an element and put it into its parent."""
        if self._div:
            self._div.end()
            if not self._div.depth:
                self._open.pop()
                _put(self._open[-1], "div", self._div.text(), None)
                self._div = None
            return
        element = self._open.pop()
        parent, content, definition = self._open[-1], element.content, element.definition
        if element.uneven:
            _even_out(content, element.uneven)
        if element.text:
            content["#text"] = element.text.strip()[:MISPLACED_TEXT]
        kind = definition.kind
        if kind is Kind.PRIMITIVE:
            _finish_primitive(parent, element)
        elif kind is Kind.COMPLEX:
            if parent.definition.kind is Kind.RESOURCE:
                _put(parent, "resource", content, None)
            else:
                _put(parent, definition.name, content, definition)
                if self._pack and definition is self._entry:
                    parent.content["entry"][-1] = self._pack(content)
        elif kind is Kind.RESOURCE:
            # If there is not exactly one resource inside, everything that is there stays visible.
            alone = content.keys() == {"resource"}
            _put(parent, definition.name, content["resource"] if alone else content, definition)
        else:
            bare = kind is Kind.UNKNOWN and content.keys() == {"@value"}
            _put(parent, definition.name, content["@value"] if bare else content, definition)

    def doctype(self, name: str, _public: str | None, _system: str | None) -> None:
        """Refuse a document type; `FhirXml.to_json` refuses it before it parses the body."""
        raise refuse(400, "xml-doctype", f"the body has a document type declaration ({name[:40]}); leave it out")

    def close(self) -> JsonObject | None:
        """Return the document's resource; None if the parser failed before the resource was complete."""
        return self._open[0].content.get("resource")

    def release(self) -> None:
        """Release what was read: lxml's parser and its target refer to each other, so both stay for a while."""
        self._open.clear()
        self._div = None

    def _unlisted(self, parent: _OpenElement, tag: str) -> XmlElement:
        """Return a definition for a resource, or for an element that its parent's type does not have.

        Raise `RequestRefused` (400) for another namespace.
        """
        if not tag.startswith(FHIR_TAG):
            namespace, _, name = tag.rpartition("}")
            text = (
                f'<{name[:40]}> is in namespace "{namespace[1:][:60]}"; FHIR\'s is "{FHIR}" '
                "(and XHTML for Narrative.div)"
            )
            raise refuse(400, "xml-namespace", text, code="structure")
        name = tag.removeprefix(FHIR_TAG)
        if parent.definition.kind is Kind.RESOURCE:
            return XmlElement(name, Kind.COMPLEX, type=name if self._schema.is_resource(name) else "")
        return XmlElement(f"<{name}>" if name.startswith("_") else name, Kind.UNKNOWN)


def _take_attributes(element: _OpenElement, attributes: dict[str, str]) -> None:
    kind, content = element.definition.kind, element.content
    for name, value in attributes.items():
        if name == "value" and kind is Kind.PRIMITIVE:
            element.value = value
        elif (known := element.children.get(FHIR_TAG + name)) and known.kind is Kind.ATTRIBUTE:
            content[name] = value
        elif name not in IGNORED:
            content["@" + name] = value


def _finish_primitive(parent: _OpenElement, element: _OpenElement) -> None:
    definition = element.definition
    value = None if element.value is None else definition.read(element.value)
    companion = element.content or (None if element.value is not None else {})
    if definition.many or companion is not None:
        _put_primitive(parent, definition, value, companion)
    else:
        _put(parent, definition.name, value, definition)


def _put_primitive(parent: _OpenElement, definition: XmlElement, value: Any, companion: JsonObject | None) -> None:
    """Put a primitive that has an id or extensions (`companion`) or is in a list; `name` and `_name` are parallel lists.

    https://hl7.org/fhir/R4/json.html#primitive
    """
    name, content = definition.name, parent.content
    if not definition.many and name not in content and f"_{name}" not in content:
        if value is not None:
            content[name] = value
        content[f"_{name}"] = companion
        return
    values, companions = _make_list(content, name), content.get(f"_{name}")
    if companions is not None and not isinstance(companions, list):
        content[f"_{name}"] = [companions]
        if not values:
            values.append(None)
    if companion is not None:
        companions = content.setdefault(f"_{name}", [])
        companions.extend([None] * (len(values) - len(companions)))
        companions.append(companion)
        parent.uneven = parent.uneven or set()
        parent.uneven.add(name)
    values.append(value)


def _even_out(content: JsonObject, names: set[str]) -> None:
    """Make `name` and `_name` equally long, and leave out a `name` without any value."""
    for name in names:
        values, companions = content[name], content[f"_{name}"]
        companions.extend([None] * (len(values) - len(companions)))
        if all(value is None for value in values):
            del content[name]


def _put(parent: _OpenElement, name: str, value: Any, definition: XmlElement | None) -> None:
    """Put a value under its name. If only one is allowed, a second one makes a list, which the rules refuse."""
    content = parent.content
    if definition is not None and definition.many:
        content.setdefault(name, []).append(value)
    elif name not in content and f"_{name}" not in content:
        content[name] = value
    elif definition is not None and definition.kind is Kind.PRIMITIVE:
        _put_primitive(parent, definition, value, None)
    else:
        _make_list(content, name).append(value)


def _make_list(content: JsonObject, name: str) -> list[Any]:
    """Turn a member into a list unless it is one, and return it."""
    values = content.get(name)
    if not isinstance(values, list):
        values = content[name] = [] if values is None else [values]
    return values


def _too_deep(depth: int) -> RequestRefused:
    return refuse(400, "too-deep", f"the XML is nested deeper than {depth} elements; flatten it", code="too-costly")
