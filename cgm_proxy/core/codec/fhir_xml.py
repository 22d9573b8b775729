"""FHIR XML to FHIR JSON and back (https://hl7.org/fhir/R4/xml.html).

How XML is read:

1. Nothing is dropped silently. What R4 does not know stays under a name that no JSON element has: an unknown element under
   its own name (`_name`, which has a meaning in JSON, as `<_name>`), a misplaced attribute as `@name`, misplaced text as
   `#text`. If an element repeats that must not, its values become a list. The rules then refuse it and name the entry
   and the element. Comments and processing instructions are not content.
2. Nothing is fetched or expanded. A document type declaration is refused before the body is parsed, so the only entities
   are XML's own five.
3. The body bounds the cost. The parser builds no tree, nesting is limited, and only UTF-8 is read.
"""

import codecs
import re
from collections.abc import Callable
from typing import Any, cast

from lxml import etree

from cgm_proxy.core.codec.xml_reader import ResourceReader
from cgm_proxy.core.codec.xml_schema import XmlSchema
from cgm_proxy.core.codec.xml_writer import ResourceWriter
from cgm_proxy.core.issues import refuse
from cgm_proxy.core.json_values import JsonObject
from cgm_proxy.core.r4.model import Model

#: The XML declaration (XML 1.0, 2.8), and what it may state.
DECLARATION = re.compile(rb"<\?xml\s[^>]{0,200}?\?>")
ENCODING = re.compile(rb"encoding\s*=\s*[\"']([^\"']*)[\"']")
VERSION = re.compile(rb"version\s*=\s*[\"']1\.0[\"']")

#: Bytes of a body that are checked for valid UTF-8 at a time.
STEP = 2**16


class FhirXml:
    """Reads and writes resources in XML by R4's definitions; `depth` limits the nesting of elements that are read."""

    def __init__(self, model: Model, depth: int) -> None:
        self._schema = XmlSchema(model)
        self._depth = depth

    def to_xml(self, resource: JsonObject) -> bytes:
        """Return a resource as XML in UTF-8, its elements in the order of the specification.

        Members that the type does not have come last, if XML can name them; characters that XML cannot hold become U+FFFD.
        """
        return ResourceWriter(self._schema).write(resource)

    def to_json(self, body: bytes, pack: Callable[[JsonObject], object] | None = None) -> JsonObject:
        """Return a resource in XML as FHIR JSON; numbers become int or Decimal and keep their digits.

        `pack` replaces each entry of a Bundle as soon as it is read, to save memory.

        Raises `RequestRefused` (400): malformed, not UTF-8, with a document type, of another namespace, or nested too
        deep.
        """
        body = body.removeprefix(codecs.BOM_UTF8)
        _refuse_other_encodings(body)
        # After the prolog it could only be in a comment or CDATA section, where no submitter needs it.
        if b"<!DOCTYPE" in body:
            text = "the body has a document type declaration (<!DOCTYPE); FHIR XML needs none: leave it out"
            raise refuse(400, "xml-doctype", text, code="structure")
        # huge_tree: base64 in an attribute may be longer than 10 MB. It also lifts the limits of expansion and nesting;
        # that does no harm, because there are no entities without a document type and the reader limits nesting.
        # resolve_entities keeps its default (XML's own and internal entities): without it libxml2 returns "&#38;" for
        # the "&amp;" of an attribute.
        reader = ResourceReader(self._schema, self._depth, pack)
        parser = etree.XMLParser(
            target=cast(Any, reader),
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
        finally:
            reader.release()


def _refuse_other_encodings(body: bytes) -> None:
    """Refuse a body that is not UTF-8, FHIR's only encoding (https://hl7.org/fhir/R4/http.html#mime-type), or declares another."""
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
        text = f'the body declares encoding "{name}"; FHIR XML is UTF-8: declare UTF-8 or no encoding'
        raise refuse(400, "xml-encoding", text)
    if not VERSION.search(declaration[0]):
        raise refuse(400, "xml-malformed", "the body declares a version of XML other than 1.0", code="structure")
