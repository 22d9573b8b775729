"""A Reference has the form of a URL and means a resource of an allowed type."""

from typing import Any

import pytest
from support.r4 import R4

from cgm_proxy.core.r4.findings import Node
from cgm_proxy.core.r4.reference_scope import Scope
from cgm_proxy.core.r4.references import reference_faults

ROOT: dict[str, Any] = {"resourceType": "Observation", "contained": [{"resourceType": "Device", "id": "d"}]}


def faults(data: dict[str, Any], *allowed: str) -> list[tuple[str, str]]:
    type_ = R4.type("Reference")
    assert type_
    node = Node("Observation.subject", data, type_, ROOT)
    found = list(reference_faults(R4, Scope(ROOT), node, allowed))
    assert {rule for rule, _, _ in found} <= {"r4-reference"}
    return [(path, text) for _, path, text in found]


@pytest.mark.parametrize(
    ("data", "allowed"),
    [
        ({"display": "x"}, ["Patient"]),
        ({"reference": "Patient/1"}, ["Patient", "Group"]),
        ({"reference": "Patient/1"}, []),
        ({"reference": "Device/1"}, ["Resource"]),
        ({"reference": "urn:uuid:x"}, ["Patient"]),
        ({"reference": "Foo/1"}, ["Patient"]),
        ({"reference": "Patient?identifier=a|b"}, ["Patient"]),
        ({"reference": "Patient/1", "type": "Patient"}, ["Patient"]),
        ({"type": "Patient"}, ["Group"]),
        ({"reference": "Patient/1", "type": " "}, ["Patient"]),
        ({"reference": 5}, ["Patient"]),
        ({"reference": "#d"}, ["Device"]),
    ],
)
def test_a_valid_reference_has_no_fault(data: dict[str, Any], allowed: list[str]) -> None:
    assert faults(data, *allowed) == []


@pytest.mark.parametrize(
    ("data", "allowed", "expected"),
    [
        ({"reference": "a b"}, [], ("reference", 'is "a b"; R4 requires a URL without spaces')),
        (
            {"reference": "Patient?"},
            [],
            ("reference", 'is "Patient?"; R4 requires a conditional reference as Type?name=value'),
        ),
        (
            {"reference": "Device/1"},
            ["Patient", "Group"],
            ("reference", 'is "Device/1", a Device; R4 requires Patient or Group'),
        ),
        ({"reference": "#d"}, ["Patient"], ("reference", 'is "#d", a Device; R4 requires Patient')),
        ({"type": "Foo"}, ["Patient"], ("type", 'is "Foo", which is not a resource type')),
        (
            {"reference": "Patient/1", "type": "Group"},
            [],
            ("type", 'is "Group", but the reference is to a Patient'),
        ),
        ({"reference": "urn:uuid:x", "type": "Device"}, ["Patient"], ("type", 'is "Device"; R4 requires Patient')),
    ],
)
def test_a_wrong_reference_is_named_with_what_is_required(
    data: dict[str, Any], allowed: list[str], expected: tuple[str, str]
) -> None:
    assert expected in faults(data, *allowed)
