"""Attacks by XML are refused, and any resource that is written as XML comes back as it was."""

import base64
import json
import re
import tracemalloc
from contextlib import suppress
from decimal import Decimal
from itertools import pairwise

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lxml import etree
from support.places import GUIDE
from support.r4 import FHIR_XML, R4
from support.xml_samples import observation, read

from cgm_proxy.core.codec.fhir_xml import FhirXml
from cgm_proxy.core.codec.xml_schema import DECIMAL, FHIR, Kind, XmlSchema, boolean, decimal, integer
from cgm_proxy.core.issues import RequestRefused
from cgm_proxy.core.r4.narrative import XHTML

SCHEMA = XmlSchema(R4)
encode = msgspec.json.Encoder(decimal_format="number", order="sorted").encode
decode = msgspec.json.Decoder(dict, float_hook=Decimal).decode

TENFOLD = [f'<!ENTITY {name} "{f"&{before};" * 10}">' for before, name in pairwise("abcdefghi")]
LAUGHS = f'<!DOCTYPE x [<!ENTITY a "ha">{"".join(TENFOLD)}]>'
DEEP = 1000

ATTACKS = {
    "billion laughs": (LAUGHS + observation('<valueString value="&i;"/>'), "xml-doctype"),
    "external entity": (
        '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]>' + observation("<status>&a;</status>"),
        "xml-doctype",
    ),
    "parameter entity": ('<!DOCTYPE x [<!ENTITY % a SYSTEM "http://127.0.0.1/">%a;]>' + observation(""), "xml-doctype"),
    "external document type": ('<!DOCTYPE x SYSTEM "http://127.0.0.1/x.dtd">' + observation(""), "xml-doctype"),
    "document type after a comment": ("<!-- c --><!DOCTYPE x>" + observation(""), "xml-doctype"),
    "document type in small letters": ("<!doctype x>" + observation(""), "xml-malformed"),
    "undefined entity": (observation('<valueString value="&nbsp;"/>'), "xml-malformed"),
    "1,000 deep": (observation("<extension>" * DEEP + "</extension>" * DEEP), "too-deep"),
    "1,000 deep, unknown": (observation("<a>" * DEEP + "</a>" * DEEP), "too-deep"),
    "100,000 deep": (observation("<a>" * 100_000), "too-deep"),
    "narrative 1,000 deep": (
        observation(f'<text><div xmlns="{XHTML}">{"<b>" * DEEP}{"</b>" * DEEP}</div></text>'),
        "too-deep",
    ),
    "NUL": (observation("\0"), "xml-malformed"),
    "NUL in an attribute": (observation('<status value="a\0"/>'), "xml-malformed"),
    "NUL by reference": (observation('<status value="&#0;"/>'), "xml-malformed"),
    "control character": (observation('<status value="\x0b"/>'), "xml-malformed"),
    "surrogate by reference": (observation('<status value="&#xD800;"/>'), "xml-malformed"),
    "invalid UTF-8": (observation('<status value="x"/>').encode().replace(b"x", b"\xff"), "xml-encoding"),
    "overlong UTF-8": (observation('<status value="x"/>').encode().replace(b'"x"', b'"\xc0\xbc"'), "xml-encoding"),
    "encoded surrogate": (
        observation('<status value="x"/>').encode().replace(b'"x"', b'"\xed\xa0\x80"'),
        "xml-encoding",
    ),
    "UTF-8 cut short": (observation("").encode() + b"\xe2\x82", "xml-encoding"),
    "UTF-16 with byte order mark": (observation("").encode("utf-16"), "xml-encoding"),
    "UTF-16 without": (observation("").encode("utf-16-le"), "xml-malformed"),
    "UTF-32": (observation("").encode("utf-32"), "xml-encoding"),
    "declared UTF-7": ('<?xml version="1.0" encoding="utf-7"?>' + observation(""), "xml-encoding"),
    "declared UTF-16": ('<?xml version="1.0" encoding="UTF-16"?>' + observation(""), "xml-encoding"),
    "declared Latin-1": ("<?xml version='1.0' encoding='ISO-8859-1'?>" + observation(""), "xml-encoding"),
    "declared EBCDIC": ("<?xml version='1.0' encoding = \"IBM037\" ?>" + observation(""), "xml-encoding"),
    "XML 1.1": ('<?xml version="1.1"?>' + observation(""), "xml-malformed"),
    "declaration after white space": (' <?xml version="1.0"?>' + observation(""), "xml-malformed"),
    "two roots": (observation("") * 2, "xml-malformed"),
    "text after the end": (observation("") + "x", "xml-malformed"),
    "not closed": (observation("<status>").removesuffix("</Observation>"), "xml-malformed"),
    "closed crosswise": (observation("<a><b></a></b>"), "xml-malformed"),
    "attribute without value": (observation("<status value/>"), "xml-malformed"),
    "attribute without quotes": (observation("<status value=final/>"), "xml-malformed"),
    "attribute twice": (observation('<status value="final" value="x"/>'), "xml-malformed"),
    "undeclared prefix": (observation("<a:status/>"), "xml-namespace"),
    "no namespace": ('<Observation><status value="final"/></Observation>', "xml-namespace"),
    "wrong namespace": ('<Observation xmlns="http://hl7.org/FHIR"/>', "xml-namespace"),
    "another namespace inside": (observation('<status xmlns="u" value="final"/>'), "xml-namespace"),
    "no namespace inside": (observation('<status xmlns="" value="final"/>'), "xml-namespace"),
    "XHTML where none belongs": (observation(f'<div xmlns="{XHTML}"/>'), "xml-namespace"),
    "SVG as the root": ('<svg xmlns="http://www.w3.org/2000/svg"/>', "xml-namespace"),
    "XInclude": (
        observation('<xi:include xmlns:xi="http://www.w3.org/2001/XInclude" href="file:///etc/passwd"/>'),
        "xml-namespace",
    ),
    "empty": ("", "xml-malformed"),
    "only white space": ("  \n", "xml-malformed"),
    "only a comment": ("<!-- -->", "xml-malformed"),
    "JSON": ('{"resourceType": "Observation"}', "xml-malformed"),
}


@pytest.mark.parametrize(("body", "rule"), ATTACKS.values(), ids=ATTACKS.keys())
def test_attacks_are_refused(body, rule):
    with pytest.raises(RequestRefused) as refused:
        read(body)
    (issue,) = refused.value.issues
    assert (refused.value.status, issue.rule) == (400, rule)
    assert 20 < len(issue.text) < 300


def test_byte_order_mark_and_declaration_are_fine():
    body = b'\xef\xbb\xbf<?xml version="1.0" encoding="utf-8"?>\n' + observation("").encode()
    assert read(body) == {"resourceType": "Observation"}


@pytest.mark.parametrize(("depth", "fine"), [(3, True), (2, False)])
def test_depth_counts_elements(depth, fine):
    xml = observation('<code><text value="t"/></code>').encode()
    reader = FhirXml(R4, depth)
    if fine:
        assert reader.to_json(xml)["code"] == {"text": "t"}
    else:
        with pytest.raises(RequestRefused, match="too-deep"):
            reader.to_json(xml)


def test_attributes_longer_than_ten_megabytes_are_read_whole():
    data = base64.b64encode(bytes(9_000_000)).decode()
    xml = f'<Binary xmlns="{FHIR}"><data value="{data}"/></Binary>'
    assert read(xml)["data"] == data


@pytest.mark.parametrize("junk", ["<a/>", "<status/>", "<component/>", "x<a/>", '<a a="1"/>', "<!--c-->", "<?p i?>"])
def test_memory_stays_in_proportion_to_the_body(junk):
    body = observation(junk * (500_000 // len(junk))).encode()
    tracemalloc.start()
    try:
        read(body)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 60 * len(body)


TEXT = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufffe\uffff"), max_size=12
) | st.just(" \t\r\n\"'&<>")
DECIMALS = st.from_regex(re.compile(DECIMAL.pattern.replace("999", "9"), re.ASCII), fullmatch=True).map(
    lambda text: decimal(str(decimal(text)))
)
PRIMITIVES = {
    boolean: st.booleans(),
    integer: st.integers(-(2**31), 2**31),
    decimal: DECIMALS | st.integers(0, 999),
    str: TEXT,
}
COMPANIONS = st.fixed_dictionaries({"id": TEXT}) | st.fixed_dictionaries(
    {"extension": st.lists(st.fixed_dictionaries({"url": TEXT, "valueDecimal": DECIMALS}), min_size=1, max_size=2)}
)
RESOURCES = (
    "Observation",
    "Patient",
    "Bundle",
    "DiagnosticReport",
    "Parameters",
    "OperationOutcome",
    "ElementDefinition",
)


@st.composite
def divs(draw):
    text = etree.Element("x")
    text.text = draw(TEXT.filter(bool))
    return f'<div xmlns="{XHTML}"><p>{etree.tostring(text, encoding="unicode")[3:-4]}</p></div>'


@st.composite
def contents(draw, type_name, levels):
    """Draw what a complex element or resource of a type holds, with at most `levels` levels of others in it."""
    made = {}
    known = [e for e in SCHEMA.elements(type_name).values() if levels or e.kind not in {Kind.COMPLEX, Kind.RESOURCE}]
    for element in draw(st.lists(st.sampled_from(known), max_size=4, unique_by=lambda e: e.name)) if known else []:
        if element.kind is Kind.PRIMITIVE:
            made |= draw(primitives(element))
        elif element.kind is Kind.ATTRIBUTE:
            made[element.name] = draw(TEXT)
        elif element.kind is Kind.XHTML:
            made[element.name] = draw(divs())
        else:
            inside = resources(levels - 1) if element.kind is Kind.RESOURCE else contents(element.type, levels - 1)
            made[element.name] = draw(st.lists(inside, min_size=1, max_size=2) if element.many else inside)
    return made


@st.composite
def primitives(draw, element):
    name, values = element.name, PRIMITIVES[element.read]
    if not element.many:
        value, companion = draw(st.tuples(values, st.none()) | st.tuples(st.none() | values, COMPANIONS))
        return {k: v for k, v in ((name, value), (f"_{name}", companion)) if v is not None}
    pairs = st.tuples(values, st.none() | COMPANIONS) | st.tuples(st.none(), COMPANIONS)
    drawn = draw(st.lists(pairs, min_size=1, max_size=3))
    lists = {name: [value for value, _ in drawn], f"_{name}": [companion for _, companion in drawn]}
    return {k: v for k, v in lists.items() if any(item is not None for item in v)}


@st.composite
def resources(draw, levels):
    kind = draw(st.sampled_from(RESOURCES[:-1]))
    return {"resourceType": kind} | draw(contents(kind, levels))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(resources(3))
def test_any_resource_comes_back_as_it_was(resource):
    assert encode(FHIR_XML.to_json(FHIR_XML.to_xml(resource))) == encode(resource)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode), st.booleans())
def test_any_bytes_are_read_or_refused(noise, inside):
    body = observation("@").encode().replace(b"@", noise) if inside else noise
    with suppress(RequestRefused):
        assert "resourceType" in read(body)


def without_divs(value):
    """Make narratives comparable: canonical XML, as quotes, entities and empty elements have several spellings."""
    if isinstance(value, dict):
        return {
            k: etree.canonicalize(v) if k == "div" and isinstance(v, str) else without_divs(v) for k, v in value.items()
        }
    return [without_divs(item) for item in value] if isinstance(value, list) else value


def valid_cases(lines):
    """Yield the corpus' resources that the validator passed."""
    for line in lines:
        case = json.loads(line)
        if case["verdict"] == "pass":
            yield decode(line)["resource"]


if GUIDE.exists():  # the guides and the corpus are beside the repository, if they are there at all
    EXAMPLES = sorted((GUIDE / "ig").glob("*/*.json")) + sorted((GUIDE / "ig").glob("*/examples/*.json"))

    @pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: f"{path.parent.parent.name}-{path.stem}")
    def test_the_guides_resources_come_back_as_they_were(path):
        resource = decode(path.read_bytes())
        assert encode(without_divs(FHIR_XML.to_json(FHIR_XML.to_xml(resource)))) == encode(without_divs(resource))

    def test_the_valid_resources_of_the_corpus_come_back_as_they_were():
        for resource in valid_cases((GUIDE / "corpus" / "public.ndjson").read_bytes().splitlines()):
            back = FHIR_XML.to_json(FHIR_XML.to_xml(resource))
            assert encode(without_divs(back)) == encode(without_divs(resource)), resource.get("id")
