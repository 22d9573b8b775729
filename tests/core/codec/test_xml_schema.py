"""The elements that XML is read and written by are those of R4, in its order."""

from decimal import Decimal

import pytest
from support.r4 import FHIR_XML, R4

from cgm_proxy.core.codec.xml_schema import FHIR, FHIR_TAG, Kind, XmlSchema, boolean, decimal, integer
from cgm_proxy.core.r4.narrative import XHTML_TAG

SCHEMA = XmlSchema(R4)


@pytest.mark.parametrize(
    ("type_name", "name", "kind", "many", "read"),
    [
        ("Observation", "status", Kind.PRIMITIVE, False, str),
        ("Observation", "category", Kind.COMPLEX, True, str),
        ("Observation", "contained", Kind.RESOURCE, True, str),
        ("Observation", "id", Kind.PRIMITIVE, False, str),
        ("Observation", "valueInteger", Kind.PRIMITIVE, False, integer),
        ("Observation.component", "id", Kind.ATTRIBUTE, False, str),
        ("Extension", "url", Kind.ATTRIBUTE, False, str),
        ("Narrative", "div", Kind.XHTML, False, str),
        ("Quantity", "value", Kind.PRIMITIVE, False, decimal),
        ("Patient", "deceasedBoolean", Kind.PRIMITIVE, False, boolean),
        ("HumanName", "given", Kind.PRIMITIVE, True, str),
        ("Attachment", "data", Kind.PRIMITIVE, False, str),
        ("Bundle.entry", "resource", Kind.RESOURCE, False, str),
        ("Encounter", "class", Kind.COMPLEX, False, str),
    ],
)
def test_elements_are_what_the_specification_says(type_name, name, kind, many, read):
    element = SCHEMA.elements(type_name)[name]
    assert (element.kind, element.many, element.read) == (kind, many, read)


def test_elements_are_in_the_order_of_the_specification():
    assert [*SCHEMA.elements("Bundle.entry")] == [
        "id", "extension", "modifierExtension", "link", "fullUrl", "resource", "search", "request", "response",
    ]  # fmt: skip
    assert [*SCHEMA.elements("Observation")][:9] == [
        "id", "meta", "implicitRules", "language", "text", "contained", "extension", "modifierExtension", "identifier",
    ]  # fmt: skip


def test_a_content_reference_has_the_elements_that_it_refers_to():
    inside = SCHEMA.elements("Observation.component")["referenceRange"]
    assert (inside.type, inside.many) == ("Observation.referenceRange", True)
    assert "low" in SCHEMA.elements(inside.type)


def test_tags_carry_the_namespace_that_each_element_belongs_to():
    by_tag = SCHEMA.elements_by_tag("Narrative")
    assert by_tag[FHIR_TAG + "status"].kind is Kind.PRIMITIVE
    assert by_tag[XHTML_TAG + "div"].kind is Kind.XHTML
    assert by_tag[FHIR_TAG + "div"].kind is Kind.ATTRIBUTE


#: R4 and R4B differ in 18 resource types and some data types: only R4 has these resource types and elements.
ONLY_R4 = [
    ("EffectEvidenceSynthesis", "population", Kind.COMPLEX, False),
    ("MedicinalProduct", "name", Kind.COMPLEX, True),
    ("MedicinalProductIngredient", "substance", Kind.COMPLEX, False),
    ("RiskEvidenceSynthesis", "sampleSize", Kind.COMPLEX, False),
    ("SubstanceSpecification", "moiety", Kind.COMPLEX, True),
    ("SubstanceProtein", "sequenceType", Kind.COMPLEX, False),
    ("Evidence", "exposureBackground", Kind.COMPLEX, False),
    ("Evidence", "outcome", Kind.COMPLEX, True),
    ("EvidenceVariable", "effectivePeriod", Kind.COMPLEX, False),
    ("EvidenceVariable.characteristic", "participantEffectiveDateTime", Kind.PRIMITIVE, False),
    ("Extension", "valueMeta", Kind.COMPLEX, False),
]


@pytest.mark.parametrize(("type_name", "name", "kind", "many"), ONLY_R4)
def test_elements_that_only_r4_has_are_known(type_name, name, kind, many):
    element = SCHEMA.elements(type_name)[name]
    assert (element.kind, element.many) == (kind, many)


ONLY_R4B = [
    ("ActivityDefinition", "subjectCanonical"),
    ("Evidence", "assertion"),
    ("EvidenceVariable", "handling"),
    ("Extension", "valueCodeableReference"),
    ("Extension", "valueRatioRange"),
    ("PlanDefinition", "subjectCanonical"),
]


@pytest.mark.parametrize(("type_name", "name"), ONLY_R4B)
def test_elements_that_only_r4b_has_are_not_known(type_name, name):
    assert name not in SCHEMA.elements(type_name)


@pytest.mark.parametrize("name", ["Citation", "Ingredient", "NutritionProduct", "SubscriptionStatus"])
def test_resource_types_that_only_r4b_has_are_not_known(name):
    assert not SCHEMA.is_resource(name)
    assert not SCHEMA.elements(name)


def test_an_element_that_changed_its_type_has_the_one_of_r4():
    assert SCHEMA.elements("EvidenceVariable.characteristic")["timeFromStart"].type == "Duration"


@pytest.mark.parametrize(
    "resource",
    [
        {
            "resourceType": "MedicinalProduct",
            "id": "a",
            "name": [{"productName": "p", "namePart": [{"part": "x", "type": {"code": "y"}}]}],
        },
        {
            "resourceType": "EffectEvidenceSynthesis",
            "population": {"reference": "EvidenceVariable/p"},
            "sampleSize": {"numberOfStudies": 3, "numberOfParticipants": 400},
            "effectEstimate": [{"value": Decimal("1.50"), "precisionEstimate": [{"level": Decimal("0.95")}]}],
        },
        {"resourceType": "Evidence", "topic": [{"text": "t"}], "outcome": [{"reference": "EvidenceVariable/o"}]},
        {"resourceType": "Basic", "extension": [{"url": "http://x.example/e", "valueMeta": {"tag": [{"code": "c"}]}}]},
    ],
    ids=lambda resource: resource["resourceType"],
)
def test_resources_that_only_r4_has_come_back_as_they_were(resource):
    assert repr(FHIR_XML.to_json(FHIR_XML.to_xml(resource))) == repr(resource)


def test_an_element_of_r4b_is_read_as_unknown_so_that_its_number_stays_text():
    xml = f'<Evidence xmlns="{FHIR}"><statistic><quantity><value value="1.5"/></quantity></statistic></Evidence>'
    assert FHIR_XML.to_json(xml.encode()) == {
        "resourceType": "Evidence",
        "statistic": {"quantity": {"value": "1.5"}},
    }


def test_data_types_and_backbone_elements_are_no_resources():
    assert [SCHEMA.is_resource(name) for name in ("Observation", "HumanName", "Observation.component")] == [
        True,
        False,
        False,
    ]
    read = FHIR_XML.to_json(f'<HumanName xmlns="{FHIR}"><given value="a"/></HumanName>'.encode())
    assert read == {"resourceType": "HumanName", "given": "a"}


def test_unknown_names_fill_no_cache():
    schema = XmlSchema(R4)
    reader = FHIR_XML
    for number in range(50):
        reader.to_json(f'<Bogus{number} xmlns="{FHIR}"/>'.encode())
        assert not schema.elements(f"Bogus{number}")
        assert not schema.elements_by_tag(f"Bogus{number}")
    assert not schema._elements
    assert not schema._by_tag
    assert not [name for name in (*reader._schema._elements, *reader._schema._by_tag) if "Bogus" in name]


@pytest.mark.parametrize(
    ("convert", "text", "expected"),
    [
        (boolean, "true", True),
        (boolean, "false", False),
        (boolean, "1", "1"),
        (integer, "-0", 0),
        (integer, "+12", 12),
        (integer, "007", "007"),
        (integer, "9" * 1001, "9" * 1001),
        (decimal, "5.60", Decimal("5.60")),
        (decimal, "100", Decimal(100)),
        (decimal, "1e-3", Decimal("0.001")),
        (decimal, "1e9999999", "1e9999999"),
        (decimal, "+5", "+5"),
        (decimal, ".5", ".5"),
        (decimal, "\u0665", "\u0665"),  # a digit for Python, but not ASCII
    ],
)
def test_numbers_keep_their_digits_and_other_text_stays(convert, text, expected):
    assert str(convert(text)) == str(expected)
    assert isinstance(convert(text), str) == isinstance(expected, str)
