"""FHIR XML to FHIR JSON (https://hl7.org/fhir/R4/xml.html), reading the body once, from its start to its end.

Laws:

1. Nothing is dropped silently. What no element of the type is stays under a name that no JSON element has by right: an
   unknown element under its own name, a misplaced attribute as `@name`, stray text as `#text`; repetitions of what may
   stand once become a list. The rules refuse it there, by entry and name. Comments and processing instructions are no
   content.
2. Nothing is fetched or expanded: a document type declaration is refused before the body is parsed, so there are no
   entities but XML's own five.
3. Cost is bounded by the body: no tree is built, nesting is limited, and only UTF-8 is read.
"""

import codecs
import re
from collections.abc import Callable
from typing import Any, cast

from lxml import etree

from cgm_proxy.core.codec.xml_reader import Reader
from cgm_proxy.core.codec.xml_writer import to_xml
from cgm_proxy.core.issues import refuse
from cgm_proxy.core.json_values import JsonObject

__all__ = ["to_json", "to_xml"]

#: The XML declaration (XML 1.0, 2.8), and what it may say.
DECLARATION = re.compile(rb"<\?xml\s[^>]{0,200}?\?>")
ENCODING = re.compile(rb"encoding\s*=\s*[\"']([^\"']*)[\"']")
VERSION = re.compile(rb"version\s*=\s*[\"']1\.0[\"']")

#: Bytes that are checked for valid UTF-8 at a time.
STEP = 2**16


def to_json(body: bytes, *, depth: int, pack: Callable[[JsonObject], object] | None = None) -> JsonObject:
    """Read a resource in XML as FHIR's JSON; numbers become int or Decimal and keep their digits.

    `pack` makes something smaller of each entry of a Bundle, as soon as it is read.

    Raises `RequestRefused` (400): malformed, not UTF-8, with a document type, of another namespace, or with elements
    nested deeper than `depth`.
    """
    body = body.removeprefix(codecs.BOM_UTF8)
    _refuse_other_encodings(body)
    if (
        b"<!DOCTYPE" in body
    ):  # outside the prolog it could only stand in a comment or CDATA, where no submitter needs it
        text = "the body has a document type declaration (<!DOCTYPE); FHIR XML needs none: leave it out"
        raise refuse(400, "xml-doctype", text, code="structure")
    # huge_tree: base64 in an attribute may be longer than 10 MB. What it also lifts, the limits of expansion and nesting,
    # does not matter: without a document type there are no entities to expand, and the reader limits nesting.
    # resolve_entities stays at its default, XML's own and internal entities: without it libxml2 hands over "&#38;" for the
    # "&amp;" of an attribute.
    parser = etree.XMLParser(
        target=cast(Any, Reader(depth, pack)),
        encoding="utf-8",
        load_dtd=False,
        no_network=True,
        huge_tree=True,
    )
    try:
        return cast(JsonObject, etree.fromstring(body, parser))
    except etree.XMLSyntaxError as error:
        text = f"the body is not well-formed XML: {error.msg}"
        raise refuse(400, "xml-malformed", text, code="structure") from error


def _refuse_other_encodings(body: bytes) -> None:
    """Refuse what is not UTF-8, FHIR's one encoding (https://hl7.org/fhir/R4/http.html#mime-type), or claims not to be."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for start in range(0, len(body), STEP):
            decoder.decode(body[start : start + STEP])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise refuse(400, "xml-encoding", "the body is not UTF-8, FHIR's only encoding; send it in UTF-8") from error
    if (declaration := DECLARATION.match(body)) is None:
        return
    declared = ENCODING.search(declaration[0])
    if declared and declared[1].lower() != b"utf-8":
        name = declared[1][:40].decode()
        raise refuse(
            400, "xml-encoding", f'the body declares encoding "{name}"; FHIR XML is UTF-8: declare that or none'
        )
    if not VERSION.search(declaration[0]):
        raise refuse(400, "xml-malformed", "the body declares a version of XML other than 1.0", code="structure")
