"""The narrative's div: limited XHTML (https://hl7.org/fhir/R4/narrative.html#xhtml)."""

from xml.etree import ElementTree as ET

XHTML = "{http://www.w3.org/1999/xhtml}"
ELEMENTS = frozenset(
    [
        "p",
        "br",
        "div",
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
        "a",
        "span",
        "b",
        "em",
        "i",
        "strong",
        "small",
        "big",
        "tt",
        "dfn",
        "q",
        "var",
        "abbr",
        "acronym",
        "cite",
        "blockquote",
        "hr",
        "address",
        "bdo",
        "kbd",
        "sub",
        "sup",
        "ul",
        "ol",
        "li",
        "dl",
        "dt",
        "dd",
        "pre",
        "table",
        "caption",
        "colgroup",
        "col",
        "thead",
        "tr",
        "tfoot",
        "tbody",
        "th",
        "td",
        "code",
        "samp",
        "img",
        "map",
        "area",
        "del",
        "ins",
    ]
)
ATTRIBUTES = frozenset(
    [
        "title",
        "style",
        "class",
        "id",
        "lang",
        "dir",
        "accesskey",
        "tabindex",
        "span",
        "width",
        "align",
        "valign",
        "char",
        "charoff",
        "abbr",
        "axis",
        "headers",
        "scope",
        "rowspan",
        "colspan",
        "alt",
        "src",
        "href",
        "name",
        "rel",
        "rev",
        "type",
        "charset",
        "hreflang",
        "cite",
        "shape",
        "coords",
        "longdesc",
        "height",
        "usemap",
        "ismap",
        "border",
        "cellspacing",
        "cellpadding",
        "frame",
        "rules",
        "summary",
        "datetime",
        "compact",
        "bgcolor",
        "start",
        "value",
        "idref",
    ]
)


def narrative_fault(text: str) -> str | None:
    """Say what narrative must be when `text` is not that: a div of XHTML with content, no scripts, no entities."""
    if "<!" in text.replace("<!--", ""):
        return "XHTML without DOCTYPE or entities"
    try:
        div = ET.fromstring(text)  # noqa: S314 -- no DOCTYPE, so no entity can expand
    except ET.ParseError:
        return "well-formed XHTML"
    if div.tag != f"{XHTML}div":
        return 'a <div xmlns="http://www.w3.org/1999/xhtml">'
    for node in div.iter():
        tag = str(node.tag).removeprefix(XHTML)
        if tag not in ELEMENTS or any(name.split("}")[-1] not in ATTRIBUTES for name in node.attrib):
            return "only the XHTML of R4's narrative, without scripts, forms or events"
    if not "".join(div.itertext()).strip() and not any(node.tag == f"{XHTML}img" for node in div.iter()):
        return "a div that is not empty"
    return None
