"""The memory of shapes changes no verdict and no message, holds no more than it may, and forgets nothing it must ask."""

import gc
import sys
import weakref
from collections import Counter
from collections.abc import Callable
from copy import copy, deepcopy
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.places import RULES

from cgm_proxy.core.rules.rulebook import RuleBook, _holds
from cgm_proxy.core.rules.static_analysis import analyse
from cgm_proxy.core.rules.verdict_cache import VerdictCache, free_leaves

ARGO = "http://argo.run/cgm/StructureDefinition/cgm-sensor-reading-mass"
REMEMBERING = RuleBook.load(RULES)
PLAIN = RuleBook.load(RULES)
PLAIN.shapes = None
MASS = "http://hl7.org/fhir/uv/cgm/StructureDefinition/cgm-sensor-reading-mass-per-volume"
MEAN = "http://hl7.org/fhir/uv/cgm/StructureDefinition/cgm-summary-mean-glucose-mass-per-volume"
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
    ("identifier", 0, "value"), ("code", "coding", 0, "code"), ("extra",), ("_id",), ("_effectiveDateTime",),
    ("contained",), ("meta",), ("component",), ("hasMember",), ("language",), ("valueQuantity", "extension"),
    ("effectivePeriod",), ("identifier", 0, "system"), ("identifier", 0), ("valueQuantity", "_value"), ("_issued",),
    ("resourceType",), ("text",),
]  # fmt: skip
#: Two of a kind that must not be taken for one another: JSON of other types with the same text, stand-ins sent by a submitter,
#: other forms of one number or letter, what is valid to a lenient eye alone.
TWINS = [
    1, Decimal("1.0"), "1", True, Decimal("1e0"), 0, Decimal("0.0"), Decimal("0e0"), Decimal("-0.0"), "0", False, "", [0],
    {"value": 0}, 10**40, Decimal("1E+400"), Decimal("1E-400"), -(2**63), "\u00e9", "e\u0301", "\u2126", "\u03a9",
    "mg/dl\u200b", " ", "\u2028", "1000-10-10T10:10:10Z", "1000-10-10T10:10:10+00:00", "1000-10-10T10:10:10.0Z",
    "2024-05-01T10:15:00+14:00", "2024-05-01T10:15:60Z", "\u0662\u0660\u0662\u0664-05-01T10:15:00Z",
    "2024-05-01T10:15:0\u0660Z", "0000-05-01T10:15:00Z", "2023-02-29T10:15:00Z", "urn:ietf:rfc:3986",
    "https://tools.ietf.org/html/rfc4122", "urn:uuid:c757873d-ec9a-4326-a141-556f43239520", "#0", "a" * 64, "a" * 65,
    {"reference": "Patient/1"}, {"reference": "Patient/1", "type": "Patient"}, "Observation", "Patient",
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
    st.sampled_from(TWINS),
    st.text(max_size=5),
    st.integers(),
)  # fmt: skip


def remembering() -> RuleBook:
    """Give a book that remembers nothing yet."""
    book = copy(REMEMBERING)
    book.shapes = VerdictCache()
    return book


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


#: By what a reading is judged: two dialects' profiles, none (base validity alone), and both kinds at once.
DEMANDED = [((ARGO,), "argo"), ((MASS,), "1.0.0"), ((), "argo"), ((), None), ((MASS, MEAN), "1.0.0-ballot")]
#: How many readings the differential test compares in a run, for its summary.
COMPARED: Counter[str] = Counter()


@given(
    st.lists(st.tuples(readings(), st.sampled_from(DEMANDED)), min_size=1, max_size=8),
    st.sampled_from([None, PATIENT, {"resourceType": "Group", "id": "1"}]),
    st.randoms(use_true_random=False),
)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def compare(submission: list[tuple[dict[str, Any], Any]], found: dict | None, random: Random) -> None:
    """Judge readings in a row, then shuffled once more, with the memory and without it."""

    def resolve(reference: str) -> dict | None:
        return found if reference == "Patient/1" else None

    again = submission[:]
    random.shuffle(again)
    for reading, (profiles, dialect) in submission + again:
        remembered = REMEMBERING.examine(reading, profiles, resolve, dialect=dialect)
        assert remembered == PLAIN.examine(reading, profiles, resolve, dialect=dialect)
        COMPARED["refused" if any(issue.refuses for issue in remembered) else "accepted"] += 1


def test_verdicts_and_messages_equal_those_of_plain_evaluation(record_property: Callable[[str, object], None]) -> None:
    compare()
    known = len(REMEMBERING.shapes or ())
    told = f"{COMPARED.total()} readings compared: {dict(sorted(COMPARED.items()))}, {known} shapes remembered"
    record_property("judged once a shape, as without the memory", told)


@pytest.mark.parametrize(
    "path",
    [("valueQuantity", "value"), ("effectiveDateTime",), ("issued",), ("id",), ("identifier", 0, "value"), ("identifier",)],
    ids=lambda path: ".".join(map(str, path)),
)  # fmt: skip
def test_no_value_borrows_the_verdict_of_another(path: tuple[Any, ...]) -> None:
    """Every pair of what could be mistaken for one another, in each leaf that may be replaced, whichever comes first."""
    listed = [*TWINS, "a", "2024-05-01T10:15:00Z", 120]
    wanted = []
    for value in listed:
        reading = deepcopy(READING)
        put(reading, path, value)
        wanted.append((reading, PLAIN.examine(reading, (ARGO,), {}.get, dialect="argo")))
    for order in (wanted, wanted[::-1]):
        book = remembering()
        for reading, issues in order * 2:
            assert book.examine(reading, (ARGO,), {}.get, dialect="argo") == issues, reading


@pytest.mark.parametrize(
    "path", [("valueQuantity", "unit"), ("code", "coding", 0, "code"), ("valueQuantity", "value"), ("id",)]
)
def test_no_value_borrows_the_profile_that_another_implies(path: tuple[Any, ...]) -> None:
    whens = [
        (p.url, p.when) for p in PLAIN.profiles.values() if (p.dialect, p.type) == ("argo", "Observation") and p.when
    ]
    for value in [*TWINS, "mg/dl", "mmol/l", "99504-3", "14745-4"] * 2:
        reading = deepcopy(READING)
        put(reading, path, value)
        assert set(REMEMBERING.implied(reading, "argo")) == {url for url, when in whens if _holds(when, reading)}


def test_a_book_that_is_replaced_is_freed() -> None:
    book = RuleBook.load(RULES)
    book.examine(READING, book.implied(READING, "argo"), {}.get, dialect="argo")
    freed = weakref.ref(book)
    del book
    gc.collect()
    assert freed() is None


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
    shapes = VerdictCache(size)
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


@pytest.mark.parametrize(
    ("different", "evaluations"), [(False, [1, 2, 0, 0, 0]), (True, [1, 1, 1, 1, 1])], ids=["alike", "different"]
)
def test_a_faulty_shape_is_learned_only_when_it_comes_again(different: bool, evaluations: list[int]) -> None:
    book = remembering()
    plain, asked = book._plain, []
    book._plain = lambda *of: (asked.append(of), plain(*of))[1]  # type: ignore[method-assign]
    counted = []
    for number in range(5):
        reading = {**deepcopy(READING), "status": "done", "id": f"r{number}"}
        reading |= {"note": [{"text": f"note {number}"}]} if different else {}
        assert [issue.rule for issue in book.examine(reading, [ARGO], dialect="argo")] != []
        counted.append(len(asked) - sum(counted))
    assert counted == evaluations


@pytest.mark.parametrize("first", ["abc", "zzz"])
@pytest.mark.parametrize(
    "mentioning",
    [
        {
            "text": {
                "status": "generated",
                "div": '<div xmlns="http://www.w3.org/1999/xhtml"><a href="#abc">x</a></div>',
            }
        },
        {"extension": [{"url": "http://e.org", "valueCanonical": "#abc"}]},
    ],
    ids=["narrative", "canonical"],
)
def test_an_id_that_something_mentions_is_part_of_the_shape(first: str, mentioning: dict[str, Any]) -> None:
    book = remembering()
    for name in [first] * 3 + ["zzz", "abc"] * 3:
        reading = READING | mentioning | {"id": name}
        found = book.examine(reading, [ARGO], dialect="argo")
        assert found == PLAIN.examine(reading, [ARGO], dialect="argo")
        assert any(issue.refuses for issue in found) == (name == "zzz")


@pytest.mark.parametrize(
    ("expression", "read"),
    [
        ("(effective | issued).count() = 1", {"effectiveDateTime", "issued"}),
        ("(identifier | identifier).count() = 2", {"identifier"}),
        ("category.coding[value.ofType(Quantity).value.toInteger() - 120].exists()", {"valueQuantity"}),
        ("conformsTo('http://h/strict')", {"id", "effectiveDateTime", "issued", "valueQuantity", "identifier"}),
        (
            "%rootResource.conformsTo('http://h/strict')",
            {"id", "effectiveDateTime", "issued", "valueQuantity", "identifier"},
        ),
        (
            "iif(true, $this).conformsTo('http://h/strict')",
            {"id", "effectiveDateTime", "issued", "valueQuantity", "identifier"},
        ),
        ("hasMember.resolve().all(conformsTo('http://h/strict'))", set()),
        ("category.coding[0].exists()", set()),
    ],
)
def test_what_an_expression_reads_in_passing_is_not_free(expression: str, read: set[str]) -> None:
    found, _ = analyse(REMEMBERING.model("argo"), expression, "Observation")
    free = {member for member, _ in free_leaves("Observation", [found])}
    assert free == {"id", "effectiveDateTime", "issued", "valueQuantity", "identifier"} - read


def test_what_is_looked_up_counts_as_what_it_takes_when_parsed() -> None:
    book = remembering()
    assert book.shapes is not None
    whole = book.shapes._room
    device = {"resourceType": "Device", "id": "d", "note": [Decimal("0.1")] * 2000}
    reading = READING | {"device": {"reference": "Device/d"}}
    book.examine(reading, [ARGO], {"Device/d": device, "Patient/1": PATIENT}.get, dialect="argo")
    assert len(book.shapes) == 1
    taken = sum(sys.getsizeof(number) + 8 for number in device["note"])
    assert whole - book.shapes._room > taken


def test_claims_that_nobody_knows_do_not_fill_the_memory_of_leaves() -> None:
    book = remembering()
    book._leaves = lru_cache(1024)(book._find_leaves)
    for number in range(50):
        book.examine(READING | {"meta": {"profile": [f"http://e.org/{number}"]}}, [ARGO], dialect="argo")
    assert book._leaves.cache_info().currsize == 1
