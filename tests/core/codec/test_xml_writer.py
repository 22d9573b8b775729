"""Resources are written as XML in the order of the specification, whatever their members hold."""

from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import etree
from support.r4 import FHIR_XML
from support.xml_samples import observation

from cgm_proxy.core.r4.narrative import XHTML

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
def test_any_json_is_written_as_well_formed_xml(junk):
    etree.fromstring(
        FHIR_XML.to_xml({"resourceType": "Observation"} | {k: v for k, v in junk.items() if k != "resourceType"})
    )


@pytest.mark.parametrize(
    ("resource", "expected"),
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
def test_members_become_elements_in_the_order_of_the_specification(resource, expected):
    written = FHIR_XML.to_xml({"resourceType": "Observation"} | resource).decode()
    assert written == f'<?xml version="1.0" encoding="UTF-8"?>\n{observation(expected)}'
