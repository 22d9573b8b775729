"""The shipped definitions are those of R4: types with their elements in order, extensions, codes and value sets."""

import pytest
from support.r4 import R4

from cgm_proxy.core.r4.model import PRIMITIVES, choice_ending, json_names, parse_element


@pytest.mark.parametrize(
    ("line", "least", "most", "types", "binding", "weak"),
    [
        ("1..1 code =observation-status", 1, 1, {"code": ()}, "observation-status", None),
        ("0..* Reference(Patient|Group)", 0, None, {"Reference": ("Patient", "Group")}, None, None),
        ("0..1 Coding|Reference(Group) ~subject-type", 0, 1, {"Coding": (), "Reference": ("Group",)}, None, "subject-type"),
        ("0..0 code", 0, 0, {"code": ()}, None, None),
        ("0..* Observation.component", 0, None, {"Observation.component": ()}, None, None),
    ],
)  # fmt: skip
def test_an_element_is_read_from_its_line(
    line: str, least: int, most: int | None, types: dict[str, tuple[str, ...]], binding: str | None, weak: str | None
) -> None:
    element = parse_element("x", line)
    assert (element.least, element.most, element.types) == (least, most, types)
    assert (element.binding, element.weak_binding) == (binding, weak)
    assert element.many == (most is None)


def test_a_line_that_is_not_an_element_is_refused() -> None:
    with pytest.raises(ValueError, match=r"x: 'code' is not an element"):
        parse_element("x", "code")


def test_a_choice_has_a_json_name_for_each_type() -> None:
    element = parse_element("value[x]", "0..1 Quantity|string|SimpleQuantity")
    assert element.choice
    assert list(json_names(element)) == [
        ("valueQuantity", "Quantity"),
        ("valueString", "string"),
        ("valueQuantity", "SimpleQuantity"),
    ]
    assert choice_ending("dateTime") == "DateTime"


def test_a_type_has_the_elements_of_its_bases_first() -> None:
    observation = R4.type("Observation")
    assert observation
    assert observation.base == "DomainResource"
    names = list(observation.elements)
    assert names[:5] == ["id", "meta", "implicitRules", "language", "text"]
    assert names.index("status") < names.index("value[x]") < names.index("component")
    assert [element.name for element in observation.required] == ["status", "code"]
    element, type_ = observation.members["valueQuantity"]
    assert (element.name, type_) == ("value[x]", "Quantity")
    assert {rule.key for rule in observation.invariants} >= {"dom-2", "obs-6", "obs-7"}


def test_a_profiled_type_only_narrows_its_base() -> None:
    simple = R4.type("SimpleQuantity")
    assert simple
    assert simple.base == "Quantity"
    assert simple.elements["comparator"].most == 0
    assert "value" in simple.elements


def test_the_resource_types_are_the_concrete_ones_of_r4() -> None:
    assert len(R4.resources) == 146
    assert {"Observation", "Bundle", "MedicinalProduct"} <= R4.resources
    assert not R4.resources & {"Resource", "DomainResource", "HumanName", "Citation", "Observation.component"}
    assert R4.resource("Observation") is R4.type("Observation")
    assert R4.resource("HumanName") is R4.resource(5) is R4.resource(None) is None


def test_every_type_that_an_element_names_exists() -> None:
    for name in R4.types:
        definition = R4.type(name)
        assert definition
        for element in definition.elements.values():
            # A primitive's own value has a type of FHIRPath, such as Integer.
            known = [type_ in PRIMITIVES or R4.type(type_) for type_ in element.types]
            assert all(known) or (element.name == "value" and name[0].islower()), (name, element)


def test_an_extension_has_its_contexts_and_elements() -> None:
    nationality = R4.extension("http://hl7.org/fhir/StructureDefinition/patient-nationality")
    assert nationality
    assert (nationality.contexts, nationality.modifier) == (("element:Patient",), False)
    assert {"extension:code", "extension:period"} <= set(nationality.elements)
    assert R4.extension("http://x.example/e") is None


def test_codes_are_looked_up_by_system_and_by_value_set() -> None:
    assert "final" in (R4.system("http://hl7.org/fhir/observation-status") or ())
    status = R4.value_set("observation-status")
    assert status == R4.value_set("http://hl7.org/fhir/ValueSet/observation-status|4.0.1")
    assert status
    assert "amended" in (status["http://hl7.org/fhir/observation-status"] or ())
    assert R4.system("http://x.example") is R4.value_set("http://x.example/vs") is None


@pytest.mark.parametrize(
    ("coding", "expected"),
    [
        ({"system": "http://hl7.org/fhir/observation-status", "code": "final"}, True),
        ({"system": "http://hl7.org/fhir/observation-status", "code": "bogus"}, False),
        ({"system": "http://unitsofmeasure.org", "code": "mg/dL"}, True),
        ({"system": "http://unitsofmeasure.org", "code": "mmHg"}, False),
        ({"system": "http://loinc.org", "code": "99504-3"}, None),
        ({"system": "http://hl7.org/fhir/observation-status"}, None),
        ({"system": ["x"], "code": {}}, None),
    ],
)
def test_a_code_is_in_its_system_or_not_or_nobody_knows(coding: dict[str, object], expected: bool | None) -> None:
    assert R4.has_code(coding) is expected


def test_a_guide_adds_codes_without_changing_r4() -> None:
    system, value_set = "http://x.example/cs", "http://x.example/vs"
    lines = (
        f'{{"system":"{system}","codes":["a"]}}\n'
        f'{{"valueSet":"{value_set}","codes":{{"{system}":["a"],"urn:b":null}}}}\n'
    )
    extended = R4.with_codes(lines.encode())
    assert extended.system(system) == {"a"}
    assert extended.value_set(value_set) == {system: {"a"}, "urn:b": None}
    assert extended.system("http://hl7.org/fhir/observation-status")
    assert R4.system(system) is R4.value_set(value_set) is None


def test_unknown_names_fill_no_cache() -> None:
    sizes = len(R4._definitions), len(R4._codes)
    for number in range(50):
        name = f"http://x.example/{number}"
        assert R4.type(name) is R4.extension(name) is R4.system(name) is R4.value_set(name) is None
    assert (len(R4._definitions), len(R4._codes)) == sizes
