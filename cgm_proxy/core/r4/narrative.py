"""The narrative's div: limited XHTML (https://hl7.org/fhir/R4/narrative.html#xhtml), with the structure of HTML.

The tables say what the HL7 validator (its XhtmlValidator) allows.
"""

import re
from collections.abc import Iterator, Mapping
from xml.etree import ElementTree as ET

XHTML = "http://www.w3.org/1999/xhtml"
XHTML_TAG = f"{{{XHTML}}}"
XML_TAG = "{http://www.w3.org/XML/1998/namespace}"


def words(text: str) -> frozenset[str]:
    """Return the words of a text."""
    return frozenset(text.split())


ELEMENTS = words(
    "p br div h1 h2 h3 h4 h5 h6 a span b em i strong small big tt dfn q var abbr acronym cite blockquote hr "
    "address bdo kbd sub sup ul ol li dl dt dd pre table caption colgroup col thead tr tfoot tbody th td code "
    "samp img map area"
)

#: Attributes that any element may have, and those of single elements.
ATTRIBUTES = words(
    "title style class id lang dir accesskey tabindex span width align valign char charoff abbr axis headers "
    "scope rowspan colspan"
)
OWN_ATTRIBUTES: Mapping[str, frozenset[str]] = {
    "a": words("href name charset type hreflang rel rev shape coords"),
    "img": words("src border alt longdesc height width usemap ismap"),
    "area": words("shape coords href nohref alt"),
    "table": words("summary width border frame rules cellspacing cellpadding"),
    "blockquote": frozenset({"cite"}),
    "q": frozenset({"cite"}),
    "map": frozenset({"name"}),
    "pre": frozenset({"space"}),
    "td": frozenset({"nowrap"}),
}

#: The only parents that an element may have.
PARENTS: Mapping[str, frozenset[str]] = {
    "tr": frozenset({"table", "thead", "tfoot", "tbody"}),
    **dict.fromkeys(("tbody", "thead", "tfoot", "caption", "colgroup"), frozenset({"table"})),
    "col": frozenset({"colgroup", "table"}),
    **dict.fromkeys(("th", "td"), frozenset({"tr", "thead", "tfoot"})),
    "li": frozenset({"ul", "ol"}),
    **dict.fromkeys(("dd", "dt"), frozenset({"dl"})),
}

#: The only children that an element may have; it may have no text either.
CHILDREN: Mapping[str, frozenset[str]] = {
    "table": frozenset({"tbody", "tr", "caption", "thead", "tfoot", "col", "colgroup"}),
    "tr": frozenset({"td", "th"}),
    **dict.fromkeys(("tbody", "thead", "tfoot"), frozenset({"tr"})),
    **dict.fromkeys(("ul", "ol"), frozenset({"li"})),
    "dl": frozenset({"dd", "dt"}),
    "map": frozenset({"area"}),
    **dict.fromkeys(("br", "img", "hr", "area"), frozenset[str]()),
}

#: Elements that must not contain themselves, and those that must not contain a block.
INLINE = words("a b em i strong small big sub sup code tt dfn q var abbr acronym cite bdo kbd samp")
FLAT = INLINE | words("p h1 h2 h3 h4 h5 h6 pre address span caption dd dt")
BLOCKS = frozenset({"div", "pre", "table", "ul", "ol"})

#: Elements that must not be in a paragraph, at any depth.
NOT_IN_P = frozenset({"div", "blockquote", "table", "ol", "ul", "p"})

#: Schemes of links that lead nowhere (urn, cid) or run a script; browsers ignore the case of the latter.
ACTIVE = re.compile(r"(?:urn|cid|(?i:javascript|vbscript)):.")
DATA = re.compile(r"data:[^,]*,[^,]+")

#: Deepest nesting that is accepted, because later readers may recurse.
DEEPEST = 60

#: The white space of XML; a no-break space is text.
SPACES = " \t\r\n"
URL = re.compile(r"[\w;?:@&=+$.,/%\-~#\[\]!'()*|]+")


def narrative_fault(text: str, ids: frozenset[str] = frozenset()) -> str | None:
    """Return what R4 requires instead of `text` as a div, or None; `ids` are the ids in the resource, which it may link to."""
    if "<!" in text.replace("<!--", ""):
        return "XHTML without DOCTYPE or entities"
    try:
        div = ET.fromstring(text)  # noqa: S314 -- no DOCTYPE, so no entity can expand
    except ET.ParseError:
        return "well-formed XHTML"
    if div.tag != f"{XHTML_TAG}div":
        return 'a <div xmlns="http://www.w3.org/1999/xhtml">'
    if not "".join(div.itertext()).strip(SPACES) and not any(node.tag == f"{XHTML_TAG}img" for node in div.iter()):
        return "a div that is not empty"
    known = ids | {node.get(key, "") for node in div.iter() for key in ("id", "name")}
    return next(_faults(div, known), None)


def _faults(div: ET.Element, ids: frozenset[str]) -> Iterator[str]:
    """Yield what R4 requires instead, for each wrong element."""
    remaining: list[tuple[ET.Element, int, frozenset[str]]] = [(div, 1, frozenset())]
    while remaining:
        node, depth, ancestors = remaining.pop()
        name = _name(node)
        allowed = ATTRIBUTES | OWN_ATTRIBUTES.get(name, frozenset())
        if name not in ELEMENTS or any(
            key.removeprefix(XML_TAG) not in allowed for key in node.attrib if key != f"{XML_TAG}space"
        ):
            yield "only the XHTML of R4's narrative, without scripts, forms or events"
        if depth > DEEPEST:
            yield f"at most {DEEPEST} nested elements"
        yield from _structure(node, name, ancestors)
        yield from _links(node, name, ids)
        remaining += ((child, depth + 1, ancestors | {name}) for child in node)


def _structure(node: ET.Element, name: str, ancestors: frozenset[str]) -> Iterator[str]:
    names = [_name(child) for child in node]
    for child in names:
        if child in PARENTS and name not in PARENTS[child]:
            yield f"<{child}> in {' or '.join(f'<{parent}>' for parent in sorted(PARENTS[child]))}"
    allowed = CHILDREN.get(name)
    if allowed is not None and (set(names) - allowed or _has_text(node, allowed)):
        listed = ", ".join(f"<{child}>" for child in sorted(allowed))
        yield f"in <{name}> only {listed}" if allowed else f"an empty <{name}/>"
    if name in BLOCKS and ancestors & FLAT:
        yield f"no <{name}> in <{min(ancestors & FLAT)}>"
    if (name in NOT_IN_P and "p" in ancestors) or (name in INLINE and name in ancestors):
        yield f"no <{name}> in <{'p' if name in NOT_IN_P else name}>"


def _links(node: ET.Element, name: str, ids: frozenset[str]) -> Iterator[str]:
    for element, key in (("a", "href"), ("img", "src")):
        url = node.get(key) if name == element else None
        if url is None:
            continue
        if not url or not (DATA if url.startswith("data:") else URL).fullmatch(url):
            yield f"a URL in {key}, not {url[:40]!r}"
        elif name == "a" and ACTIVE.match(url):
            yield "links that lead to a page, without scripts"
        elif url.startswith("#") and (name == "img" or url != "#") and url[1:] not in ids:
            yield f"an element with the id {url[1:][:40]!r}, to which it refers"


def _has_text(node: ET.Element, allowed: frozenset[str]) -> bool:
    """Whether an element has text; if it must be empty, white space is text, too."""
    texts = [text for text in (node.text, *(child.tail for child in node)) if text]
    return any(text.strip(SPACES) for text in texts) if allowed else bool(texts)


def _name(node: ET.Element) -> str:
    tag = str(node.tag)
    return tag.removeprefix(XHTML_TAG) if tag.startswith(XHTML_TAG) else f"other {tag}"
