"""A contained resource has an id of its own, contains nothing itself, and is referenced."""

from typing import Any

import pytest

from cgm_proxy.core.r4.contained import contained_faults

DEVICE = {"resourceType": "Device", "id": "d"}
XHTML = "http://www.w3.org/1999/xhtml"


def observation(*contained: Any, **more: Any) -> dict[str, Any]:
    return {"resourceType": "Observation", "contained": list(contained), "device": {"reference": "#d"}, **more}


@pytest.mark.parametrize(
    "resource",
    [
        {"resourceType": "Observation"},
        {"resourceType": "Observation", "contained": "x"},
        observation(),
        observation(DEVICE),
        observation(DEVICE, 5),
        observation(DEVICE | {"owner": {"reference": "#"}}, device=None),
        observation(DEVICE, device=None, text={"div": f'<div xmlns="{XHTML}"><a href="#d">x</a></div>'}),
        observation(DEVICE, device=None, text={"div": f"<div xmlns='{XHTML}'><img src = '#d'/></div>"}),
        observation(DEVICE | {"meta": {"profile": ["http://x.example/p"]}}),
    ],
)
def test_a_contained_resource_that_is_referenced_has_no_fault(resource: dict[str, Any]) -> None:
    assert list(contained_faults(resource)) == []


@pytest.mark.parametrize(
    ("resource", "expected"),
    [
        (
            observation({"resourceType": "Device", "owner": {"reference": "#"}}),
            [("r4-required", "contained[0]", "has no id; references to a contained resource use its id")],
        ),
        (
            observation(DEVICE, DEVICE),
            [
                (
                    "r4-duplicate-id",
                    "contained[1].id",
                    'is "d", the id of another contained resource; give each its own',
                )
            ],
        ),
        (
            observation(DEVICE | {"contained": []}),
            [("dom-2", "contained[0]", "contains resources itself; put them beside it")],
        ),
        (
            observation(DEVICE | {"meta": {"versionId": "1", "lastUpdated": "2024", "security": []}}),
            [
                ("dom-4", "contained[0].meta.versionId", "is not allowed; leave it out"),
                ("dom-4", "contained[0].meta.lastUpdated", "is not allowed; leave it out"),
                ("dom-5", "contained[0].meta.security", "is not allowed; leave it out"),
            ],
        ),
        (
            observation(DEVICE, device={"reference": "Device/d"}),
            [("dom-3", "contained[0]", "is not referenced; refer to it as #d or leave it out")],
        ),
        (
            observation(DEVICE, {"resourceType": "Patient", "id": "p"}, device={"reference": "#d"}),
            [("dom-3", "contained[1]", "is not referenced; refer to it as #p or leave it out")],
        ),
    ],
)
def test_each_fault_has_its_rule_path_and_message(resource: dict[str, Any], expected: list[Any]) -> None:
    assert list(contained_faults(resource)) == expected
