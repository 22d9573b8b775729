"""The XHTML of a narrative: from a parser's events to text, and from text to XML.

https://hl7.org/fhir/R4/narrative.html
"""

from lxml import etree

from cgm_proxy.core.r4.narrative import XHTML, XHTML_TAG, XML_TAG

#: Characters that text and attributes must escape. XML parsers turn white space in an attribute into blanks unless it is
#: escaped (XML 1.0, 3.3.3).
TEXT_ESCAPES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "\r": "&#13;"})
ATTRIBUTE_ESCAPES = TEXT_ESCAPES | str.maketrans({'"': "&quot;", "\n": "&#10;", "\t": "&#9;"})

#: Characters that XML 1.0 cannot hold at all (2.2): control characters except tab, line feed and carriage return,
#: surrogates, and two non-characters.
_ILLEGAL = dict.fromkeys(
    [*range(9), 11, 12, *range(14, 32), *range(0xD800, 0xE000), 0xFFFE, 0xFFFF],
    "\N{REPLACEMENT CHARACTER}",
)


class DivWriter:
    """Writes a `div` as text while a parser reports its elements and text."""

    __slots__ = ("_open", "_parts", "_pending")

    def __init__(self, tag: str, attributes: dict[str, str]) -> None:
        self._parts: list[str] = []
        self._open: list[tuple[str, str]] = []
        self._pending = ""
        self.start(tag, attributes)

    @property
    def depth(self) -> int:
        """The number of open elements."""
        return len(self._open)

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        """Open an element; declare its namespace if it is not its parent's."""
        self._flush()
        namespace, _, name = tag.rpartition("}")
        inherited = self._open[-1][1] if self._open else None
        xmlns = "" if namespace == inherited else f' xmlns="{namespace[1:].translate(ATTRIBUTE_ESCAPES)}"'
        written = "".join(_attribute(number, *item) for number, item in enumerate(attributes.items()))
        self._parts.append(f"<{name}{xmlns}{written}")
        self._pending = "/>"
        self._open.append((name, namespace))

    def data(self, text: str) -> None:
        """Add text."""
        self._flush()
        self._parts.append(text.translate(TEXT_ESCAPES))

    def end(self) -> None:
        """Close the element that was opened last."""
        name, _ = self._open.pop()
        self._parts.append(self._pending or f"</{name}>")
        self._pending = ""

    def text(self) -> str:
        """Return the `div` as text."""
        return "".join(self._parts)

    def _flush(self) -> None:
        if self._pending:
            self._parts.append(">")
            self._pending = ""


def _attribute(number: int, name: str, value: str) -> str:
    namespace, _, local = name.rpartition("}")
    quoted = f'="{value.translate(ATTRIBUTE_ESCAPES)}"'
    if not namespace:
        return f" {name}{quoted}"
    if namespace + "}" == XML_TAG:
        return f" xml:{local}{quoted}"
    return f' xmlns:a{number}="{namespace[1:].translate(ATTRIBUTE_ESCAPES)}" a{number}:{local}{quoted}'


def div_as_xml(div: str) -> str:
    """Return a narrative's `div` as XML; anything but an XHTML `div` is shown as text."""
    try:
        parser = etree.XMLParser(load_dtd=False, no_network=True, remove_pis=True)
        # No document type can be in `div`: XML allows one only before the first element, which is <x> here.
        root = etree.fromstring(f"<x>{div}</x>", parser)
    except (etree.XMLSyntaxError, ValueError):
        root = None
    if root is None or len(root) != 1 or root[0].tag != f"{XHTML_TAG}div":
        return f'<div xmlns="{XHTML}">{legal(div).translate(TEXT_ESCAPES)}</div>'
    return etree.tostring(root[0], encoding="unicode", with_tail=False)


def legal(text: str) -> str:
    """Return the text with U+FFFD for each character that XML cannot hold, such as NUL."""
    return text if text.isprintable() else text.translate(_ILLEGAL)
