"""A reference means a contained resource, an entry of its Bundle, or a resource that the resolver finds."""

from typing import Any

import pytest
from support.r4 import R4

from cgm_proxy.core.r4.reference_scope import Scope, literal_type, resolve_nothing, resolver_among

DEVICE = {"resourceType": "Device", "id": "d"}
OBSERVATION: dict[str, Any] = {"resourceType": "Observation", "id": "o", "contained": [DEVICE]}
PATIENT = {"resourceType": "Patient", "id": "p"}
BUNDLE = {
    "resourceType": "Bundle",
    "entry": [
        {"fullUrl": "urn:uuid:1", "resource": OBSERVATION},
        {"fullUrl": "http://a.example/fhir/Patient/p", "resource": PATIENT},
        {"resource": 5},
        "x",
    ],
}
ELSEWHERE = {"resourceType": "Device", "id": "e", "contained": [{"resourceType": "Organization", "id": "org"}]}


def resolve(reference: str) -> dict[str, Any] | None:
    return ELSEWHERE if reference == "Device/e" else None


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("#d", DEVICE),
        ("#x", None),
        ("#", OBSERVATION),
        ("urn:uuid:1", OBSERVATION),
        ("http://a.example/fhir/Patient/p", PATIENT),
        ("http://a.example/fhir/Patient/p/_history/2", PATIENT),
        ("Patient/p", PATIENT),
        ("Patient/p/_history/2", PATIENT),
        ("http://b.example/Patient/p", PATIENT),
        ("Device/e", ELSEWHERE),
        ("Patient/other", None),
    ],
)
def test_a_reference_in_an_entry_is_resolved(reference: str, expected: dict[str, Any] | None) -> None:
    assert Scope(BUNDLE, resolve).find(reference, OBSERVATION) is expected


def test_a_fragment_in_a_contained_resource_means_one_beside_it() -> None:
    scope = Scope(OBSERVATION)
    assert scope.container(DEVICE) is OBSERVATION
    assert scope.container(OBSERVATION) is OBSERVATION
    assert scope.find("#d", DEVICE) is DEVICE
    assert scope.find("#", DEVICE) is OBSERVATION


def test_a_resource_found_elsewhere_has_its_own_contained_resources() -> None:
    scope = Scope(OBSERVATION, resolve)
    found = scope.find("Device/e", OBSERVATION)
    assert found is ELSEWHERE
    assert scope.find("#org", found) is ELSEWHERE["contained"][0]
    assert scope.container(ELSEWHERE["contained"][0]) is ELSEWHERE


def test_another_root_keeps_what_is_outside() -> None:
    scope = Scope(OBSERVATION, resolve).with_root(PATIENT)
    assert scope.root is PATIENT
    assert scope.find("Device/e", PATIENT) is ELSEWHERE
    assert scope.find("#d", PATIENT) is None


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ({"reference": "#d"}, "Device"),
        ({"reference": "Device/e", "type": "Patient"}, "Device"),
        ({"reference": "http://b.example/Group/1"}, "Group"),
        ({"reference": "urn:uuid:9", "type": "Group"}, "Group"),
        ({"reference": "urn:uuid:9", "type": "NoSuchType"}, None),
        ({"reference": "NoSuchType/1"}, None),
        ({"reference": "Observation.component/1"}, None),
        ({"type": "Group"}, None),
        ("Patient/1", None),
        (None, None),
    ],
)
def test_the_target_type_comes_from_the_resource_the_reference_or_its_type(
    reference: Any, expected: str | None
) -> None:
    assert Scope(OBSERVATION, resolve).target_type(reference, OBSERVATION, R4) == expected


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("Patient/1", "Patient"),
        ("Patient/1/", "Patient"),
        ("http://x.example/fhir/Patient/1", "Patient"),
        ("Patient/1/_history/2", "Patient"),
        ("Patient/{{id}}", "Patient"),
        ("#a/b", None),
        ("x", None),
    ],
)
def test_a_literal_reference_names_its_type(reference: str, expected: str | None) -> None:
    assert literal_type(reference) == expected


def test_a_resolver_finds_resources_by_type_and_id() -> None:
    find = resolver_among([PATIENT, DEVICE])
    assert find("Patient/p") is PATIENT
    assert find("Patient/d") is None
    assert resolver_among([]) is resolve_nothing
    assert resolve_nothing("Patient/p") is None
