"""The memory of shapes changes no verdict and no message, holds no more than it may, and forgets nothing it must ask."""

from copy import deepcopy
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cgm_proxy.core.rules import RuleBook
from cgm_proxy.core.shapes import Shapes

RULES = Path(__file__).parents[2] / "rules"
ARGO = "http://argo.run/cgm/StructureDefinition/cgm-sensor-reading-mass"
REMEMBERING = RuleBook.load(RULES)
PLAIN = RuleBook.load(RULES)
PLAIN.shapes = None
PATIENT = {
    "resourceType": "Patient",
    "id": "1",
    "identifier": [{"system": "http://e.org", "value": "1"}],
    "name": [{"family": "P"}],
    "gender": "female",
}
READING: dict[str, Any] = {
    "resourceType": "Observation",
    "id": "r1",
    "identifier": [{"system": "http://e.org", "value": "a"}],
    "status": "final",
    "category": [
        {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/observation-category", "code": "laboratory"}]}
    ],
    "code": {"coding": [{"system": "http://loinc.org", "code": "99504-3"}]},
    "subject": {"reference": "Patient/1"},
    "effectiveDateTime": "2024-05-01T10:15:00Z",
    "issued": "2024-05-01T10:16:00Z",
    "valueQuantity": {"value": 120, "unit": "mg/dl", "system": "http://unitsofmeasure.org", "code": "mg/dL"},
}
PATHS = [
    ("id",), ("status",), ("subject",), ("subject", "reference"), ("effectiveDateTime",), ("issued",), ("valueQuantity",),
    ("valueQuantity", "value"), ("valueQuantity", "unit"), ("valueQuantity", "code"), ("identifier",), ("category",),
    ("identifier", 0, "value"), ("code", "coding", 0, "code"), ("extra",), ("_id",), ("_effectiveDateTime",), ("contained",),
    ("meta",), ("component",), ("hasMember",), ("language",), ("valueQuantity", "extension"), ("effectivePeriod",),
]  # fmt: skip
VALUES = st.one_of(
    st.sampled_from(
        [
            "", "x", "a b", "#o", "2024", "2024-02-30T10:00:00Z", "2024-02-29T10:00:00Z", "2024-05-01T10:15:00.25+02:00", "0",
            "1000-10-10T10:10:10Z", "Patient/1", "Patient/2", "Practitioner/1", "mg/dL", "mg/dl", "final", "99504-3", "é\u2028",
            None, True, [], {}, [{}], {"value": 1}, [{"value": "#o"}], {"profile": [ARGO]}, {"profile": ["http://x.y"]},
            {"extension": [{"url": "http://e.org", "valueString": "x"}]}, [{"resourceType": "Basic", "id": "o"}],
            {"start": "2024", "end": "2025"}, 0, -1, Decimal("5.60"), Decimal("1E+2"), 10**40,
        ]
    ),
    st.text(max_size=5),
    st.integers(),
)  # fmt: skip


def put(resource: dict[str, Any], path: tuple[Any, ...], value: Any) -> None:
    at: Any = resource
    for step in path[:-1]:
        try:
            at = at[step]
        except (KeyError, IndexError, TypeError):
            return
    if isinstance(at, dict) or (isinstance(at, list) and isinstance(path[-1], int) and path[-1] < len(at)):
        at[path[-1]] = value


@st.composite
def readings(draw: st.DrawFn) -> dict[str, Any]:
    made = deepcopy(READING)
    for path, value in draw(st.lists(st.tuples(st.sampled_from(PATHS), VALUES), max_size=3)):
        put(made, path, value)
    for path in draw(st.lists(st.sampled_from(PATHS[:9]), max_size=1)):
        made.pop(path[0], None)
    return {key: made[key] for key in draw(st.permutations(sorted(made)))}


@given(
    st.lists(readings(), min_size=1, max_size=6), st.sampled_from([None, PATIENT, {"resourceType": "Group", "id": "1"}])
)
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_verdicts_and_messages_equal_those_of_plain_evaluation(
    submission: list[dict[str, Any]], found: dict | None
) -> None:
    def resolve(reference: str) -> dict | None:
        return found if reference == "Patient/1" else None

    for reading in submission:
        assert REMEMBERING.examine(reading, [ARGO], resolve, dialect="argo") == PLAIN.examine(
            reading, [ARGO], resolve, dialect="argo"
        )


def test_readings_that_differ_only_in_free_leaves_share_one_shape() -> None:
    book = RuleBook.load(RULES)
    for minute in range(50):
        reading = {**deepcopy(READING), "id": f"r{minute}", "effectiveDateTime": f"2024-05-01T10:{minute:02}:00Z"}
        reading["valueQuantity"]["value"] = 100 + minute
        assert book.examine(reading, [ARGO], {"Patient/1": PATIENT}.get, dialect="argo") == ()
    assert len(book.shapes) == 1


def test_what_a_reference_means_is_asked_again() -> None:
    book = RuleBook.load(RULES)
    assert book.examine(READING, [ARGO], {"Patient/1": PATIENT}.get, dialect="argo") == ()
    nameless = {"resourceType": "Patient", "id": "1"}
    assert book.examine(READING, [ARGO], {"Patient/1": nameless}.get, dialect="argo") != ()
    assert book.examine(READING, [ARGO], {"Patient/1": PATIENT}.get, dialect="argo") == ()


def test_a_hospitals_rule_on_the_value_sees_every_value(tmp_path: Path) -> None:
    (tmp_path / "range.yaml").write_text(
        "extends: cgm-sensor-reading-mass\n"
        "rules:\n"
        "  - id: plausible\n"
        "    at: value.ofType(Quantity)\n"
        "    expression: value >= 20 and value <= 600\n"
        "    shows: value\n"
        "    text: 20 to 600 mg/dL\n"
        "    severity: warning\n"
    )
    book = RuleBook.load(RULES, tmp_path)
    told = []
    for value in (100, 700, 100, 5):
        reading = deepcopy(READING)
        reading["valueQuantity"]["value"] = value
        told.append([issue.text for issue in book.examine(reading, [ARGO], dialect="argo")])
    wants = "cgm-sensor-reading-mass wants 20 to 600 mg/dL"
    assert told == [[], [f"valueQuantity.value is 700; {wants}"], [], [f"valueQuantity.value is 5; {wants}"]]


@pytest.mark.parametrize("size", [10_000, 50_000])
def test_nothing_fills_the_memory(size: int) -> None:
    shapes = Shapes(size)
    for number in range(500):
        shapes.remember(("argo", (), b"x" * 100 + str(number).encode()), (), [(f"Patient/{number}", PATIENT)])
    assert 0 < len(shapes) <= size / 500
    shapes.remember(("argo", (), b"x" * 10**6), (), [])
    assert shapes.recall(("argo", (), b"x" * 10**6), lambda _: None) is None


def test_every_day_of_the_months_has_one_shape() -> None:
    book = RuleBook.load(RULES)
    days = [
        (month, day)
        for month in range(1, 13)
        for day in (1, 28, 29, 30, 31)
        if day <= (28 if month == 2 else 31 - (month in {4, 6, 9, 11}))
    ]
    for month, day in days:
        reading = READING | {"effectiveDateTime": f"2025-{month:02}-{day:02}T10:15:00Z"}
        assert book.examine(reading, [ARGO], {}.get, dialect="argo") == ()
    assert book.shapes is not None
    assert len(book.shapes) == 1
    impossible = READING | {"effectiveDateTime": "2025-04-31T10:15:00Z"}
    assert book.examine(impossible, [ARGO], {}.get, dialect="argo")
