"""XHTML of a narrative as text, from and to XML (https://hl7.org/fhir/R4/narrative.html)."""

from lxml import etree

from cgm_proxy.core.codec.xml_schema import XHTML

#: How XML 1.0 writes what text and attributes cannot hold as it is; white space in an attribute would become a blank.
TEXT = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "\r": "&#13;"})
ATTRIBUTE = TEXT | str.maketrans({'"': "&quot;", "\n": "&#10;", "\t": "&#9;"})

XML = "{http://www.w3.org/XML/1998/namespace}"


class Narrative:
    """Writes a `div` of which a parser reports start, text and end; `depth` is how many elements are open."""

    __slots__ = ("_open", "_parts", "_pending")

    def __init__(self, tag: str, attributes: dict[str, str]) -> None:
        self._parts: list[str] = []
        self._open: list[tuple[str, str]] = []
        self._pending = ""
        self.start(tag, attributes)

    @property
    def depth(self) -> int:
        """Count the open elements."""
        return len(self._open)

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        """Open an element; its namespace is declared where it is not its parent's."""
        self._flush()
        namespace, _, name = tag.rpartition("}")
        declared = self._open[-1][1] if self._open else None
        xmlns = "" if namespace == declared else f' xmlns="{namespace[1:].translate(ATTRIBUTE)}"'
        written = "".join(_attribute(number, *item) for number, item in enumerate(attributes.items()))
        self._parts.append(f"<{name}{xmlns}{written}")
        self._pending = "/>"
        self._open.append((name, namespace))

    def data(self, text: str) -> None:
        """Add text."""
        self._flush()
        self._parts.append(text.translate(TEXT))

    def end(self, _tag: str) -> None:
        """Close the element opened last."""
        name, _ = self._open.pop()
        self._parts.append(self._pending or f"</{name}>")
        self._pending = ""

    def text(self) -> str:
        """Give all that was written."""
        return "".join(self._parts)

    def _flush(self) -> None:
        if self._pending:
            self._parts.append(">")
            self._pending = ""


def _attribute(number: int, name: str, value: str) -> str:
    namespace, _, local = name.rpartition("}")
    quoted = f'="{value.translate(ATTRIBUTE)}"'
    if not namespace:
        return f" {name}{quoted}"
    if namespace + "}" == XML:
        return f" xml:{local}{quoted}"
    return f' xmlns:a{number}="{namespace[1:].translate(ATTRIBUTE)}" a{number}:{local}{quoted}'


def as_xml(div: str) -> str:
    """Give a narrative's `div` as it stands in XML; what is no XHTML element is shown as its text."""
    try:
        parser = etree.XMLParser(load_dtd=False, no_network=True, remove_pis=True)
        # A document type cannot follow the element that text in XML begins with.
        root = etree.fromstring(f"<x>{div}</x>", parser)
    except (etree.XMLSyntaxError, ValueError):
        root = None
    if root is None or len(root) != 1 or root[0].tag != f"{{{XHTML}}}div":
        return f'<div xmlns="{XHTML}">{legal(div).translate(TEXT)}</div>'
    return etree.tostring(root[0], encoding="unicode", with_tail=False)


def legal(text: str) -> str:
    """Replace the characters that XML 1.0 cannot hold at all (2.2), such as NUL."""
    return text if text.isprintable() else text.translate(_ILLEGAL)


#: Control characters but tab, line feed and carriage return; surrogates; the two non-characters.
_ILLEGAL = dict.fromkeys(
    [*range(9), 11, 12, *range(14, 32), *range(0xD800, 0xE000), 0xFFFE, 0xFFFF],
    "\N{REPLACEMENT CHARACTER}",
)
