"""HL7's own extensions are allowed where, and hold what, their definitions say."""

from typing import Any

import pytest
from support.r4 import R4, faults

from cgm_proxy.core.r4.extensions import bound_code, contexts_of, extension_faults, misplaced

CORE = "http://hl7.org/fhir/StructureDefinition/"
ABSENT, NATIONALITY, BIRTH_TIME = (
    CORE + name for name in ("data-absent-reason", "patient-nationality", "patient-birthTime")
)
PATIENT = frozenset({"Patient", "DomainResource", "Resource"})


def definition(url: str) -> Any:
    found = R4.extension(url)
    assert found
    return found


def test_the_contexts_of_an_element_are_its_path_its_type_and_the_bases_of_that() -> None:
    assert contexts_of(R4, "Patient", None) == {"Patient", "DomainResource", "Resource"}
    assert contexts_of(R4, "Age", "Condition.onset[x]") == {"Condition.onset", "Age", "Quantity", "Element"}
    assert contexts_of(R4, "NoSuchType", "A.b") == {"NoSuchType", "A.b"}


@pytest.mark.parametrize(
    ("allowed", "is_misplaced"),
    [([], False), (["Element"], False), (["Patient"], False), (["Resource"], False), (["Observation", "Device"], True)],
)
def test_an_extension_is_allowed_in_any_of_its_contexts(allowed: list[str], is_misplaced: bool) -> None:
    fault = misplaced("u", allowed, PATIENT)
    text = 'is "u", an extension of Device or Observation that is not allowed here'
    assert fault == (("r4-extension-context", "url", text) if is_misplaced else None)


def code_part(name: str = "code", **value: Any) -> dict[str, Any]:
    return {"url": name, **(value or {"valueCodeableConcept": {"text": "x"}})}


CASES = {
    "parts": (NATIONALITY, {"extension": [code_part()]}, []),
    "a part of another extension": (NATIONALITY, {"extension": [code_part("http://x.example/e")]}, []),
    "an unknown part": (
        NATIONALITY,
        {"extension": [code_part(), code_part("bogus")]},
        [("r4-extension-part", "extension[1].url", 'is "bogus"; the extension has code, period')],
    ),
    "a part too often": (
        NATIONALITY,
        {"extension": [code_part(), code_part()]},
        [("r4-extension-part", "extension", "has 2 code; the extension requires 0 to 1")],
    ),
    "a part with another type": (
        NATIONALITY,
        {"extension": [code_part(valueString="x")]},
        [
            (
                "r4-extension-value",
                "extension[0].valueString",
                "is not allowed; the extension requires valueCodeableConcept",
            )
        ],
    ),
    "a value beside parts": (
        NATIONALITY,
        {"valueString": "x"},
        [("r4-extension-value", "valueString", "is not allowed; the extension has parts and no value")],
    ),
    "another type": (
        BIRTH_TIME,
        {"valueDate": "2024"},
        [("r4-extension-value", "valueDate", "is not allowed; the extension requires valueDateTime")],
    ),
    "no value": (BIRTH_TIME, {}, [("r4-extension-value", "", "has no value; the extension requires valueDateTime")]),
    "a value that is absent": (BIRTH_TIME, {"_valueDateTime": {"id": "a"}}, []),
}


@pytest.mark.parametrize(("url", "data", "expected"), CASES.values(), ids=CASES)
def test_the_content_is_checked_by_the_definition(url: str, data: dict[str, Any], expected: list[Any]) -> None:
    contexts = frozenset(context.partition(":")[2] for context in definition(url).contexts)
    assert list(extension_faults(definition(url), {"url": url, **data}, contexts, modifier=False)) == expected


def test_an_extension_belongs_in_the_member_for_its_kind() -> None:
    data = {"url": ABSENT, "valueCode": "unknown"}
    found = list(extension_faults(definition(ABSENT), data, PATIENT, modifier=True))
    assert found == [("r4-extension-modifier", "url", f'is "{ABSENT}", which belongs in extension')]


def test_only_a_code_with_a_binding_is_bound() -> None:
    assert bound_code(definition(ABSENT), {"valueCode": "unknown"}) == ("data-absent-reason", "unknown")
    assert bound_code(definition(ABSENT), {"valueCode": 5}) is None
    assert bound_code(definition(BIRTH_TIME), {"valueDateTime": "2024"}) is None


def test_a_resource_is_refused_for_a_misplaced_extension() -> None:
    resource = {"resourceType": "Device", "extension": [{"url": BIRTH_TIME, "valueDateTime": "2024"}]}
    text = f'extension[0].url is "{BIRTH_TIME}", an extension of Patient.birthDate that is not allowed here'
    assert faults(resource) == [("r4-extension-context", "Device.extension[0].url", text)]


def test_a_companion_gives_its_primitive_as_the_context() -> None:
    extended = {"extension": [{"url": BIRTH_TIME, "valueDateTime": "2024-05-01T10:15:00Z"}]}
    assert faults({"resourceType": "Patient", "birthDate": "2024-05-01", "_birthDate": extended}) == []
