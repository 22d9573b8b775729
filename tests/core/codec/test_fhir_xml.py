"""FHIR XML and JSON say the same; what is no FHIR is refused, or kept where the rules refuse it by name."""

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
from support.places import GUIDE, RULES

from cgm_proxy.core.codec.fhir_xml import to_json, to_xml
from cgm_proxy.core.codec.xml_schema import DECIMAL, FHIR, TYPES, XHTML, Kind, boolean, decimal, elements, integer
from cgm_proxy.core.issues import RequestRefused
from cgm_proxy.core.rules.rulebook import RuleBook

DEPTH = 64
encode = msgspec.json.Encoder(decimal_format="number", order="sorted").encode
decode = msgspec.json.Decoder(dict, float_hook=Decimal).decode


@pytest.fixture(scope="module")
def book():
    return RuleBook.load(RULES)


def read(xml, depth=DEPTH):
    return to_json(xml.encode() if isinstance(xml, str) else xml, depth=depth)


def observation(inside, attributes=""):
    return f'<Observation xmlns="{FHIR}"{attributes}>{inside}</Observation>'


def content(inside, attributes=""):
    """Read an Observation and give what is in it."""
    found = read(observation(inside, attributes))
    assert found.pop("resourceType") == "Observation"
    return found


EXTENSION = '<extension url="http://x.example/e"><valueBoolean value="true"/></extension>'
EXTENSIONS = {"extension": [{"url": "http://x.example/e", "valueBoolean": True}]}


@pytest.mark.parametrize(
    ("xml", "wanted"),
    [
        ('<status value="final"/>', {"status": "final"}),
        ('<id value="a"/>', {"id": "a"}),
        ('<valueBoolean value="false"/>', {"valueBoolean": False}),
        ('<valueInteger value="-7"/>', {"valueInteger": -7}),
        ('<valueInteger value="+7"/>', {"valueInteger": 7}),
        ('<valueQuantity><value value="100.0"/></valueQuantity>', {"valueQuantity": {"value": Decimal("100.0")}}),
        ('<valueQuantity><value value="120"/></valueQuantity>', {"valueQuantity": {"value": 120}}),
        ('<valueQuantity><value value="1e2"/></valueQuantity>', {"valueQuantity": {"value": Decimal("1E+2")}}),
        ('<identifier><value value="a"/></identifier>', {"identifier": [{"value": "a"}]}),
        ('<code id="c"><text value="t"/></code>', {"code": {"id": "c", "text": "t"}}),
        (f'<status value="final">{EXTENSION}</status>', {"status": "final", "_status": EXTENSIONS}),
        (f"<status>{EXTENSION}</status>", {"_status": EXTENSIONS}),
        ('<status id="s" value="final"/>', {"status": "final", "_status": {"id": "s"}}),
        (
            "<contained><Patient><id value='p'/></Patient></contained><contained><Device/></contained>",
            {"contained": [{"resourceType": "Patient", "id": "p"}, {"resourceType": "Device"}]},
        ),
        (
            f'<text><status value="generated"/><div xmlns="{XHTML}">a &lt; b<br/><b class="x">c</b></div></text>',
            {
                "text": {
                    "status": "generated",
                    "div": f'<div xmlns="{XHTML}">a &lt; b<br/><b class="x">c</b></div>',
                }
            },
        ),
        ("<!-- no content --><?nor this?><status value='final'/>", {"status": "final"}),
        ('<status value="&#102;inal"/>', {"status": "final"}),
        ('<valueString value="a&#10;b&amp;&lt;c"/>', {"valueString": "a\nb&<c"}),
        ("<component><code/></component>\n <component/>\n", {"component": [{"code": {}}, {}]}),
    ],
)
def test_reads(xml, wanted):
    assert repr(content(xml)) == repr(wanted)


GIVEN = [
    ('<given value="a"/><given value="b"/>', {"given": ["a", "b"]}),
    ('<given value="a"/><given value="b" id="i"/>', {"given": ["a", "b"], "_given": [None, {"id": "i"}]}),
    ('<given id="i"/><given value="b"/>', {"given": [None, "b"], "_given": [{"id": "i"}, None]}),
    ('<given id="i"/><given id="j"/>', {"_given": [{"id": "i"}, {"id": "j"}]}),
    ('<given value="a"/><family value="f"/><given value="b"/>', {"given": ["a", "b"], "family": "f"}),
]


@pytest.mark.parametrize(("xml", "wanted"), GIVEN)
def test_reads_lists_of_primitives(xml, wanted):
    assert read(f'<Patient xmlns="{FHIR}"><name>{xml}</name></Patient>')["name"] == [wanted]


NO_FHIR = [
    ('<bogus value="x"/>', {"bogus": "x"}),
    ('<bogus value="x"/><bogus value="y"/>', {"bogus": ["x", "y"]}),
    ('<bogus><deep value="x"/></bogus>', {"bogus": {"deep": "x"}}),
    ('<bogus a="1" value="x"/>', {"bogus": {"@a": "1", "@value": "x"}}),
    ("<bogus/>", {"bogus": {}}),
    ("<status/>", {"_status": {}}),
    ('<status value=""/>', {"status": ""}),
    ("<status>final</status>", {"_status": {"#text": "final"}}),
    ("<status><![CDATA[final]]></status>", {"_status": {"#text": "final"}}),
    ("stray", {"#text": "stray"}),
    ('<status value="final"/><status value="final"/>', {"status": ["final", "final"]}),
    ('<status id="i"/><status value="final"/>', {"_status": [{"id": "i"}], "status": [None, "final"]}),
    ("<code/><code/>", {"code": [{}, {}]}),
    ('<code value="x"/>', {"code": {"@value": "x"}}),
    ('<valueQuantity value="5"/>', {"valueQuantity": {"@value": "5"}}),
    ('<code><id value="i"/></code>', {"code": {"id": {"@value": "i"}}}),
    ('<extension><url value="u"/></extension>', {"extension": [{"url": {"@value": "u"}}]}),
    ('<text><div value="x"/></text>', {"text": {"div": {"@value": "x"}}}),
    ("<contained/>", {"contained": [{}]}),
    (
        '<contained a="b"><Device/></contained>',
        {"contained": [{"@a": "b", "resource": {"resourceType": "Device"}}]},
    ),
    (
        "<contained><Device/><Device/></contained>",
        {"contained": [[{"resourceType": "Device"}, {"resourceType": "Device"}]]},
    ),
    ("<contained><Bogus><a value='1'/></Bogus></contained>", {"contained": [{"resourceType": "Bogus", "a": "1"}]}),
    ('<valueBoolean value="1"/>', {"valueBoolean": "1"}),
    ('<valueInteger value="1.0"/>', {"valueInteger": "1.0"}),
    ('<valueQuantity><value value=" 5"/></valueQuantity>', {"valueQuantity": {"value": " 5"}}),
    ('<valueQuantity><value value="NaN"/></valueQuantity>', {"valueQuantity": {"value": "NaN"}}),
    ('<valueQuantity><value value="+5"/></valueQuantity>', {"valueQuantity": {"value": "+5"}}),
    ('<valueQuantity><value value="1e9999999"/></valueQuantity>', {"valueQuantity": {"value": "1e9999999"}}),
]


@pytest.mark.parametrize(("xml", "wanted"), NO_FHIR)
def test_what_is_no_fhir_stays_visible(xml, wanted):
    assert repr(content(xml)) == repr(wanted)


@pytest.mark.parametrize("xml", [xml for xml, _ in NO_FHIR])
def test_what_is_no_fhir_is_refused_by_name(xml, book):
    needed = ('<status value="final"/>', '<code><text value="t"/></code>')
    resource = read(observation(xml + "".join(part for part in needed if part[:5] != xml[:5])))
    found = book.examine(resource, [], lambda _: None, encoded=encode(resource), dialect="1.0.0")
    element = re.match(r"<?([A-Za-z]+)", xml)[1] if xml != "stray" else "#text"
    assert any(issue.refuses and (issue.expression or "").startswith(f"Observation.{element}") for issue in found), (
        found
    )


def test_a_resource_type_cannot_be_said_twice():
    assert read(observation('<resourceType value="Patient"/>'))["resourceType"] == ["Observation", "Patient"]


def test_a_resources_id_is_no_attribute():
    assert content("", ' id="a"') == {"@id": "a"}


def test_schema_location_says_nothing():
    xsi = "http://www.w3.org/2001/XMLSchema-instance"
    assert content("", f' xmlns:xsi="{xsi}" xsi:schemaLocation="{FHIR} o.xsd"') == {}


def test_prefixes_do_not_matter():
    xml = f'<f:Observation xmlns:f="{FHIR}"><f:status value="final"/></f:Observation>'
    assert read(xml) == {"resourceType": "Observation", "status": "final"}


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
    xml = observation('<code><text value="t"/></code>')
    if fine:
        assert read(xml, depth)["code"] == {"text": "t"}
    else:
        with pytest.raises(RequestRefused, match="too-deep"):
            read(xml, depth)


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


def test_names_of_submitters_fill_no_cache():
    before = elements.__module__, len(TYPES)
    for number in range(50):
        read(f'<Bogus{number} xmlns="{FHIR}"/>')
        assert elements(f"Bogus{number}") == {}
    assert (elements.__module__, len(TYPES)) == before


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
EXTRAS = st.fixed_dictionaries({"id": TEXT}) | st.fixed_dictionaries(
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
    known = [e for e in elements(type_name).values() if levels or e.kind not in {Kind.COMPLEX, Kind.RESOURCE}]
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
        value, extras = draw(st.tuples(values, st.none()) | st.tuples(st.none() | values, EXTRAS))
        return {k: v for k, v in ((name, value), (f"_{name}", extras)) if v is not None}
    pairs = st.tuples(values, st.none() | EXTRAS) | st.tuples(st.none(), EXTRAS)
    drawn = draw(st.lists(pairs, min_size=1, max_size=3))
    lists = {name: [value for value, _ in drawn], f"_{name}": [extras for _, extras in drawn]}
    return {k: v for k, v in lists.items() if any(item is not None for item in v)}


@st.composite
def resources(draw, levels):
    kind = draw(st.sampled_from(RESOURCES[:-1]))
    return {"resourceType": kind} | draw(contents(kind, levels))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(resources(3))
def test_any_resource_comes_back_as_it_was(resource):
    assert encode(to_json(to_xml(resource), depth=DEPTH)) == encode(resource)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode), st.booleans())
def test_any_bytes_are_read_or_refused(noise, inside):
    body = observation("@").encode().replace(b"@", noise) if inside else noise
    with suppress(RequestRefused):
        assert "resourceType" in to_json(body, depth=DEPTH)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text(max_size=8) | st.sampled_from(["text", "div", "code", "_status", "id"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["status", "text", "contained", "code", "x y", "_status", "meta"]) | st.text(max_size=5), JSON
    )
)
def test_whatever_is_written_is_xml(junk):
    etree.fromstring(to_xml({"resourceType": "Observation"} | {k: v for k, v in junk.items() if k != "resourceType"}))


@pytest.mark.parametrize(
    ("resource", "wanted"),
    [
        (
            {"subject": {"reference": "Patient/a"}, "status": "final"},
            '<status value="final"/><subject><reference value="Patient/a"/></subject>',
        ),
        ({"bogus": [1, {"a": "b"}], "id": "i"}, '<id value="i"/><bogus value="1"/><bogus><a value="b"/></bogus>'),
        (
            {"valueString": 'a\0\ud800\n"<&'},
            '<valueString value="a\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}&#10;&quot;&lt;&amp;"/>',
        ),
        ({"text": {"div": "no <XHTML"}}, f'<text><div xmlns="{XHTML}">no &lt;XHTML</div></text>'),
        ({"valueQuantity": {"value": Decimal("100.0")}}, '<valueQuantity><value value="100.0"/></valueQuantity>'),
        ({"x y": 1, "#text": "t", "@a": "b"}, ""),
        ({"status": None, "code": []}, ""),
    ],
)
def test_writes(resource, wanted):
    written = to_xml({"resourceType": "Observation"} | resource).decode()
    assert written == f'<?xml version="1.0" encoding="UTF-8"?>\n{observation(wanted)}'


@pytest.mark.parametrize(
    ("type_name", "name", "kind", "many", "read"),
    [
        ("Observation", "status", Kind.PRIMITIVE, False, str),
        ("Observation", "category", Kind.COMPLEX, True, str),
        ("Observation", "contained", Kind.RESOURCE, True, str),
        ("Observation", "id", Kind.PRIMITIVE, False, str),
        ("Observation", "valueInteger", Kind.PRIMITIVE, False, integer),
        ("ObservationComponent", "id", Kind.ATTRIBUTE, False, str),
        ("Extension", "url", Kind.ATTRIBUTE, False, str),
        ("Narrative", "div", Kind.XHTML, False, str),
        ("Quantity", "value", Kind.PRIMITIVE, False, decimal),
        ("Patient", "deceasedBoolean", Kind.PRIMITIVE, False, boolean),
        ("HumanName", "given", Kind.PRIMITIVE, True, str),
        ("Attachment", "data", Kind.PRIMITIVE, False, str),
        ("BundleEntry", "resource", Kind.RESOURCE, False, str),
        ("Encounter", "class", Kind.COMPLEX, False, str),
    ],
)
def test_elements_are_what_the_specification_says(type_name, name, kind, many, read):
    element = elements(type_name)[name]
    assert (element.kind, element.many, element.read) == (kind, many, read)


def without_divs(value):
    """Make narratives comparable: canonical XML, as quotes, entities and empty elements have several spellings."""
    if isinstance(value, dict):
        return {
            k: etree.canonicalize(v) if k == "div" and isinstance(v, str) else without_divs(v) for k, v in value.items()
        }
    return [without_divs(item) for item in value] if isinstance(value, list) else value


def valid_cases(lines):
    """Give the corpus' resources that the validator passed, and the names that they go by."""
    for line in lines:
        case = json.loads(line)
        if case["verdict"] == "pass":
            yield decode(line)["resource"]


if GUIDE.exists():  # the guides and the corpus lie beside the repository, where they are at all
    EXAMPLES = sorted((GUIDE / "ig").glob("*/*.json")) + sorted((GUIDE / "ig").glob("*/examples/*.json"))

    @pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: f"{path.parent.parent.name}-{path.stem}")
    def test_the_guides_resources_come_back_as_they_were(path):
        resource = decode(path.read_bytes())
        assert encode(without_divs(to_json(to_xml(resource), depth=DEPTH))) == encode(without_divs(resource))

    def test_the_valid_resources_of_the_corpus_come_back_as_they_were():
        for resource in valid_cases((GUIDE / "corpus" / "public.ndjson").read_bytes().splitlines()):
            back = to_json(to_xml(resource), depth=DEPTH)
            assert encode(without_divs(back)) == encode(without_divs(resource)), resource.get("id")
