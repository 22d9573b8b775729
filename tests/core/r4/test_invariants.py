"""The invariants that are checked without FHIRPath hold for exactly the data that the specification allows."""

from decimal import Decimal
from typing import Any

import pytest
from support.r4 import R4

from cgm_proxy.core.r4.findings import Node
from cgm_proxy.core.r4.invariants import NATIVE
from cgm_proxy.core.r4.reference_scope import Scope

ROOT: dict[str, Any] = {"resourceType": "Observation", "contained": [{"resourceType": "Patient", "id": "p"}]}
CONTAINED = ROOT["contained"][0]
SCOPE = Scope(ROOT)


def holds(key: str, data: dict[str, Any], resource: dict[str, Any] = ROOT) -> bool:
    type_ = R4.type("Element")
    assert type_
    return NATIVE[key](SCOPE, Node("Observation.x", data, type_, resource))


@pytest.mark.parametrize(
    ("key", "data", "expected"),
    [
        ("per-1", {}, True),
        ("per-1", {"start": "2024-05-01", "end": "2024-05-01"}, True),
        ("per-1", {"start": "2024-05-02", "end": "2024-05-01"}, False),
        ("per-1", {"start": "2024-05-01", "end": "2024"}, False),
        ("per-1", {"start": "2024-05-01", "end": "nonsense"}, False),
        ("per-1", {"start": "2024-05-02", "_end": {}}, True),
        ("rng-2", {"low": {"value": 1}, "high": {"value": Decimal("1.0")}}, True),
        ("rng-2", {"low": {"value": 2}, "high": {"value": 1}}, False),
        ("rng-2", {"low": {"value": 1, "unit": "g"}, "high": {"value": 2, "unit": "mg"}}, False),
        ("rng-2", {"low": {"value": 1}, "high": {}}, False),
        ("rng-2", {"low": {"value": 1}}, True),
        ("rng-2", {"low": {"value": "1"}, "high": {"value": 2}}, True),  # the value has its own fault
        ("qty-3", {"code": "mg"}, False),
        ("qty-3", {"code": "mg", "system": "s"}, True),
        ("qty-3", {"_code": {}, "_system": {}}, True),
        ("qty-3", {"system": "s"}, True),
        ("att-1", {"data": "AA=="}, False),
        ("att-1", {"data": "AA==", "contentType": "a/b"}, True),
        ("att-1", {"url": "u"}, True),
        ("ref-1", {"display": "x"}, True),
        ("ref-1", {"reference": "Patient/1"}, True),
        ("ref-1", {"reference": "#p"}, True),
        ("ref-1", {"reference": "#q"}, False),
        ("ref-1", {"reference": "#"}, False),
    ],
)
def test_an_invariant_holds_or_not(key: str, data: dict[str, Any], expected: bool) -> None:
    assert holds(key, data) is expected


def test_a_contained_resource_may_refer_to_its_container() -> None:
    assert holds("ref-1", {"reference": "#"}, CONTAINED)


@pytest.mark.parametrize("key", ["dom-2", "dom-3", "dom-4", "dom-5", "txt-1", "txt-2", "bdl-7", "bdl-8"])
def test_invariants_that_other_modules_check_always_hold_here(key: str) -> None:
    assert holds(key, {})


def test_every_key_is_an_invariant_of_the_specification() -> None:
    definitions = [definition for name in R4.types if (definition := R4.type(name))]
    declared = {invariant.key for definition in definitions for invariant in definition.invariants}
    declared |= {
        invariant.key
        for definition in definitions
        for element in definition.elements.values()
        for invariant in element.invariants
    }
    assert declared >= set(NATIVE)
