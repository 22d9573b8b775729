"""What references to what is no entry may lead to."""

from typing import Any

import pytest
from support.submissions import (
    PATIENT,
    context,
    device,
    entry,
    localize,
    observation,
    reading,
    report,
    submitted,
    urn,
)

from cgm_proxy.core.submission.references import belongs_to, conditionals, faults, literals

PUBLIC = "https://public.example/fhir/"
OTHER = {"reference": "Patient/2"}

#: References, and the rules of their faults when nothing was looked up, and when nothing was found.
REFERENCES = {
    PATIENT: ("", ""),
    f"{PATIENT}/_history/3": ("", ""),
    f"{PUBLIC}Patient/1": ("", ""),
    "Patient/2": ("reference-other-patient", "reference-other-patient"),
    "Patient/12": ("reference-other-patient", "reference-other-patient"),
    "Patient/2/_history/1": ("reference-other-patient", "reference-other-patient"),
    f"{PUBLIC}Patient/2": ("reference-other-patient", "reference-other-patient"),
    "http://up:8081/fhir/Patient/2": ("reference-other-patient", "reference-other-patient"),
    "https://other.example/fhir/Patient/1": ("reference-other-patient", "reference-other-patient"),
    "https://other.example/fhir/Patient/1/_history/1": ("reference-other-patient", "reference-other-patient"),
    "Patient?identifier=x": ("", "reference-unknown"),
    "Observation/9": ("", "reference-unknown"),
    "Observation/9/_history/1": ("", "reference-unknown"),
    f"{PUBLIC}Device/9": ("", "reference-unknown"),
    "Device?identifier=x": ("", "reference-unknown"),
    "MadeUp/1": ("", "reference-unknown"),
    "Practitioner/9": ("", ""),
    f"{PUBLIC}Organization/9": ("", ""),
    "Practitioner?identifier=x": ("", ""),
    "https://other.example/fhir/Observation/9": ("", ""),
    "https://other.example/documents": ("", ""),
    "urn:uuid:0b0fb34f-4fd6-4e10-9d6e-0cf1a7ad2cb1": ("reference-unknown", "reference-unknown"),
    "URN:UUID:0b0fb34f-4fd6-4e10-9d6e-0cf1a7ad2cb1": ("reference-unknown", "reference-unknown"),
    "https://other.example/fhir/Observation?identifier=x": ("reference-unknown", "reference-unknown"),
    "https://other.example/fhir/Observation/9#x": ("reference-unknown", "reference-unknown"),
    f"{PUBLIC}/Observation/9": ("reference-unknown", "reference-unknown"),
    "/Observation/9": ("reference-unknown", "reference-unknown"),
    "fhir/Observation/9": ("reference-unknown", "reference-unknown"),
    "../Observation/9": ("reference-unknown", "reference-unknown"),
    "Observation/9/": ("reference-unknown", "reference-unknown"),
    "Observation/": ("reference-unknown", "reference-unknown"),
    "Observation": ("reference-unknown", "reference-unknown"),
    "observation/9": ("reference-unknown", "reference-unknown"),
    " Observation/9": ("reference-unknown", "reference-unknown"),
    "Observation/9\n": ("reference-unknown", "reference-unknown"),
    "Observation/%39": ("reference-unknown", "reference-unknown"),
    "Device?": ("reference-unknown", "reference-unknown"),
    "?identifier=x": ("reference-unknown", "reference-unknown"),
    "": ("reference-unknown", "reference-unknown"),
}


@pytest.mark.parametrize(("reference", "rules"), REFERENCES.items())
def test_a_reference_has_a_fault_unless_it_leads_to_the_patients_data(reference: str, rules: tuple[str, str]) -> None:
    submission = submitted(entry(reading(focus=[{"reference": reference}])))
    for rule, stored in zip(rules, (None, {}), strict=True):
        found = faults(submission, context(stored_resources=stored))
        assert {name: issue.rule for name, issue in found.items()} == ({reference: rule} if rule else {})


def test_what_was_found_or_left_to_the_upstream_has_no_fault_and_what_is_too_much_has_one() -> None:
    names = "Observation/1", "Observation/2", "Device?identifier=x", "ServiceRequest/1"
    submission = submitted(entry(reading(focus=[{"reference": name} for name in names])))
    judging = context(
        stored_resources={names[0]: observation("x")}, allowed_references={names[3]}, excess_references={names[1]}
    )
    found = faults(submission, judging)
    assert {name: issue.rule for name, issue in found.items()} == {
        names[1]: "references-too-many",
        names[2]: "reference-unknown",
    }


def test_what_does_not_exist_and_what_is_not_the_patients_have_the_same_fault() -> None:
    submission = submitted(entry(reading(focus=[{"reference": "Observation/1"}, {"reference": "Observation/2"}])))
    one, two = faults(submission, context(stored_resources={})).values()
    assert one.text.replace("Observation/1", "Observation/2") == two.text
    assert one.rule == two.rule


def test_each_resource_is_looked_up_once_and_so_are_the_names_of_referenced_entries() -> None:
    names = "Observation/1", f"{PUBLIC}Observation/1", "Observation/1/_history/2", "Device/1", PATIENT, "Practitioner/1"
    searched = "Device?identifier=x", f"{PUBLIC}Device?identifier=x", "Practitioner?identifier=x"
    inner = f"{PUBLIC}Observation/new"
    submission = submitted(
        entry(reading(0, focus=[{"reference": name} for name in (*names, *searched, "Observation/new", urn(1))])),
        entry(reading(1), inner),
        entry(reading(2), urn(1)),
        entry(reading(3, id="new"), f"{PUBLIC}Observation/nobody-references-it"),
    )
    assert literals(submission, localize) == {
        "Observation/1": list(names[:3]),
        "Device/1": ["Device/1"],
        "Observation/new": [inner],
    }
    assert conditionals(submission) == {"Device?identifier=x": list(searched[:2])}


@pytest.mark.parametrize(
    ("resource", "mine"),
    [
        (reading(), True),
        (reading(subject={"reference": f"{PUBLIC}Patient/1/_history/2"}), True),
        (report(), True),
        (device(), True),
        ({"resourceType": "Device"}, True),
        ({"resourceType": "CareTeam"}, True),
        ({"resourceType": "Patient", "id": "1"}, True),
        ({"resourceType": "Immunization", "patient": {"reference": PATIENT}}, True),
        ({"resourceType": "Patient", "id": "2"}, False),
        (reading(subject=OTHER), False),
        (reading(subject={"reference": "Patient/12"}), False),
        (reading(subject={"reference": "https://other.example/fhir/Patient/1"}), False),
        (reading(subject={"identifier": {"value": "1"}}), False),
        (reading(subject={"reference": "Group/1"}), False),
        (reading(patient=OTHER), False),
        (device(patient=OTHER), False),
        (device(subject=OTHER), False),
        (device(patient={"display": "somebody"}), False),
        ({"resourceType": "Observation"}, False),
        ({"resourceType": "Observation", "subject": 5}, False),
        ({"resourceType": "Account", "subject": [{"reference": PATIENT}, OTHER]}, False),
        ({"subject": {"reference": 5}}, False),
        ({}, False),
    ],
)
def test_whom_a_stored_resource_is_about(resource: dict[str, Any], mine: bool) -> None:
    assert belongs_to(resource, PATIENT, localize) == mine
