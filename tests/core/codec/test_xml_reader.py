"""XML is read as FHIR JSON, and content that R4 does not know stays visible, so that the rules refuse it by name."""

import re
from decimal import Decimal

import msgspec
import pytest
from support.places import RULES
from support.xml_samples import content, observation, read

from cgm_proxy.core.codec.xml_schema import FHIR
from cgm_proxy.core.r4.narrative import XHTML
from cgm_proxy.rulekit.loading import rule_book

encode = msgspec.json.Encoder(decimal_format="number").encode


@pytest.fixture(scope="module")
def book():
    return rule_book(RULES)


EXTENSION = '<extension url="http://x.example/e"><valueBoolean value="true"/></extension>'
EXTENSIONS = {"extension": [{"url": "http://x.example/e", "valueBoolean": True}]}


@pytest.mark.parametrize(
    ("xml", "expected"),
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
        ("<!-- comment --><?instruction?><status value='final'/>", {"status": "final"}),
        ('<status value="&#102;inal"/>', {"status": "final"}),
        ('<valueString value="a&#10;b&amp;&lt;c"/>', {"valueString": "a\nb&<c"}),
        ("<component><code/></component>\n <component/>\n", {"component": [{"code": {}}, {}]}),
    ],
)
def test_elements_become_members_of_their_json_type(xml, expected):
    assert repr(content(xml)) == repr(expected)


GIVEN = [
    ('<given value="a"/><given value="b"/>', {"given": ["a", "b"]}),
    ('<given value="a"/><given value="b" id="i"/>', {"given": ["a", "b"], "_given": [None, {"id": "i"}]}),
    ('<given id="i"/><given value="b"/>', {"given": [None, "b"], "_given": [{"id": "i"}, None]}),
    ('<given id="i"/><given id="j"/>', {"_given": [{"id": "i"}, {"id": "j"}]}),
    ('<given value="a"/><family value="f"/><given value="b"/>', {"given": ["a", "b"], "family": "f"}),
]


@pytest.mark.parametrize(("xml", "expected"), GIVEN)
def test_lists_of_primitives_stay_parallel_to_their_companions(xml, expected):
    assert read(f'<Patient xmlns="{FHIR}"><name>{xml}</name></Patient>')["name"] == [expected]


UNKNOWN = [
    ('<bogus value="x"/>', {"bogus": "x"}),
    ('<bogus value="x"/><bogus value="y"/>', {"bogus": ["x", "y"]}),
    ('<bogus><deep value="x"/></bogus>', {"bogus": {"deep": "x"}}),
    ('<bogus a="1" value="x"/>', {"bogus": {"@a": "1", "@value": "x"}}),
    ("<bogus/>", {"bogus": {}}),
    ('<_status><id value="i"/></_status>', {"<_status>": {"id": "i"}}),
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


@pytest.mark.parametrize(("xml", "expected"), UNKNOWN)
def test_content_that_r4_does_not_know_stays_visible(xml, expected):
    assert repr(content(xml)) == repr(expected)


@pytest.mark.parametrize("xml", [xml for xml, _ in UNKNOWN])
def test_content_that_r4_does_not_know_is_refused_by_name(xml, book):
    needed = ('<status value="final"/>', '<code><text value="t"/></code>')
    resource = read(observation(xml + "".join(part for part in needed if part[:5] != xml[:5])))
    found = book.examine(resource, [], lambda _: None, encoded=encode(resource), dialect="1.0.0")
    element = "#text" if xml == "stray" else "<_status>" if xml.startswith("<_") else re.match(r"<([A-Za-z]+)", xml)[1]
    assert any(issue.refuses and (issue.expression or "").startswith(f"Observation.{element}") for issue in found), (
        found
    )


def test_an_element_cannot_replace_the_resource_type():
    assert read(observation('<resourceType value="Patient"/>'))["resourceType"] == ["Observation", "Patient"]


def test_the_id_of_a_resource_is_no_attribute():
    assert content("", ' id="a"') == {"@id": "a"}


def test_schema_location_is_ignored():
    xsi = "http://www.w3.org/2001/XMLSchema-instance"
    assert content("", f' xmlns:xsi="{xsi}" xsi:schemaLocation="{FHIR} o.xsd"') == {}


def test_namespace_prefixes_do_not_matter():
    xml = f'<f:Observation xmlns:f="{FHIR}"><f:status value="final"/></f:Observation>'
    assert read(xml) == {"resourceType": "Observation", "status": "final"}
