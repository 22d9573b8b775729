"""Codes must be in their known code systems, and in the value sets that R4 requires."""

from typing import Any

import pytest
from support.r4 import R4, faults

NULL = "http://terminology.hl7.org/CodeSystem/v3-NullFlavor"
ABSENT = "http://terminology.hl7.org/CodeSystem/data-absent-reason"
LOINC = "http://loinc.org"


def observation(**more: Any) -> dict[str, Any]:
    return {"resourceType": "Observation", "status": "final", "code": {"text": "x"}, **more}


def concept(*codings: tuple[str, Any]) -> dict[str, Any]:
    return {"coding": [{"system": system, "code": code} for system, code in codings]}


def test_a_code_of_the_value_set_has_no_fault() -> None:
    assert faults(observation()) == []


def test_a_message_lists_some_of_the_codes() -> None:
    ((rule, path, text),) = faults(observation(status="done"))
    assert (rule, path) == ("r4-code", "Observation.status")
    assert text == (
        'status is "done"; R4 requires one of amended, cancelled, corrected, entered-in-error, final, preliminary, '
        "registered, unknown"
    )
    ((_, _, text),) = faults(observation(language="EN"))
    assert text.endswith(", …")
    assert text.count(",") == 12


def test_extensions_do_not_replace_a_required_code() -> None:
    extension = {"extension": [{"url": "http://x.example/e", "valueString": "x"}]}
    resource = {**observation(), "_status": extension}
    del resource["status"]
    assert faults(resource) == [
        ("r4-code", "Observation.status", "status has no value; R4 requires a code of observation-status")
    ]
    assert faults(observation(_language=extension)) == []


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"method": concept((LOINC, "any"))}, None),
        ({"method": concept((NULL, "x"))}, ("r4-coding", "Observation.method.coding[0].code")),
        ({"method": concept((NULL, "x"), (LOINC, "any"))}, None),
        ({"method": concept((NULL, "x"), ("http://snomed.info/sct", "1"))}, ("r4-coding", "Observation.method.coding[0].code")),
        ({"valueQuantity": {"value": 1, "system": NULL, "code": "x"}}, ("r4-coding", "Observation.valueQuantity.code")),
        ({"valueQuantity": {"value": 1, "system": "x", "code": "x"}}, ("r4-coding", "Observation.valueQuantity.system")),
        (
            {"meta": {"tag": [{"system": "http://hl7.org/fhir/ValueSet/observation-status", "code": "final"}]}},
            ("r4-coding", "Observation.meta.tag[0].system"),
        ),
    ],
)  # fmt: skip
def test_a_code_that_its_system_lacks_is_a_fault_unless_another_coding_counts(
    more: dict[str, Any], expected: tuple[str, str] | None
) -> None:
    assert [(rule, path) for rule, path, _ in faults(observation(**more))] == ([expected] if expected else [])


def bound_element() -> tuple[str, str, str]:
    """Return a resource type, its element with a required binding to one complete system, and that system."""
    for name in R4.resources:
        definition = R4.type(name)
        for element in definition.elements.values() if definition else ():
            codes = R4.value_set(element.binding) if element.binding and "CodeableConcept" in element.types else None
            if codes and len(codes) == 1 and all(codes.values()):
                return name, element.name, next(iter(codes))
    raise AssertionError


@pytest.mark.parametrize("code", ["no such code", {}, ["a"], None, 5])
def test_a_concept_without_a_code_of_the_required_value_set_is_a_fault(code: Any) -> None:
    type_, element, system = bound_element()
    definition = R4.type(type_)
    assert definition
    value: Any = concept((system, code))
    resource = {"resourceType": type_, element: [value] if definition.elements[element].many else value}
    assert "r4-binding" in {rule for rule, _, _ in faults(resource)}
