"""The verdict cache changes no verdict and no message, stays within its bounds, and resolves references each time."""

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

from cgm_proxy.core.rules.rulebook import RuleBook
from cgm_proxy.core.rules.static_analysis import analyse
from cgm_proxy.core.rules.verdict_cache import VerdictCache, stand_ins
from cgm_proxy.rulekit.loading import rule_book

ARGO = "http://argo.run/cgm/StructureDefinition/cgm-sensor-reading-mass"
CACHING = rule_book(RULES)
PLAIN = rule_book(RULES)
PLAIN.verdict_cache = None
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
#: Values that must not be mistaken for one another: JSON of other types with the same text, stand-ins sent by a submitter,
#: other forms of one number or letter, and values that only a lenient reader accepts.
CONFUSABLE = [
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
    st.sampled_from(CONFUSABLE),
    st.text(max_size=5),
    st.integers(),
)  # fmt: skip


def caching() -> RuleBook:
    """Return a book whose cache is empty."""
    book = copy(CACHING)
    book.verdict_cache = VerdictCache()
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
    reading = deepcopy(READING)
    for path, value in draw(st.lists(st.tuples(st.sampled_from(PATHS), VALUES), max_size=3)):
        put(reading, path, value)
    for path in draw(st.lists(st.sampled_from(PATHS[:9]), max_size=1)):
        reading.pop(path[0], None)
    return {key: reading[key] for key in draw(st.permutations(sorted(reading)))}


#: The profiles and the dialect by which a reading is judged: those of two dialects, none (base validity alone), and both kinds.
DEMANDED = [((ARGO,), "argo"), ((MASS,), "1.0.0"), ((), "argo"), ((), None), ((MASS, MEAN), "1.0.0-ballot")]
#: How many readings the differential test compared, for the summary of the run.
COMPARED: Counter[str] = Counter()


@given(
    st.lists(st.tuples(readings(), st.sampled_from(DEMANDED)), min_size=1, max_size=8),
    st.sampled_from([None, PATIENT, {"resourceType": "Group", "id": "1"}]),
    st.randoms(use_true_random=False),
)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def compare(submission: list[tuple[dict[str, Any], Any]], found: dict | None, random: Random) -> None:
    """Judge readings in a row, and again in another order, with the cache and without it."""

    def resolve(reference: str) -> dict | None:
        return found if reference == "Patient/1" else None

    again = submission[:]
    random.shuffle(again)
    for reading, (profiles, dialect) in submission + again:
        cached = CACHING.examine(reading, profiles, resolve, dialect=dialect)
        assert cached == PLAIN.examine(reading, profiles, resolve, dialect=dialect)
        COMPARED["refused" if any(issue.refuses for issue in cached) else "accepted"] += 1


def test_verdicts_and_messages_equal_those_of_plain_evaluation(record_property: Callable[[str, object], None]) -> None:
    compare()
    known = len(CACHING.verdict_cache or ())
    summary = f"{COMPARED.total()} readings compared: {dict(sorted(COMPARED.items()))}, {known} shapes cached"
    record_property("verdicts with the cache, compared with those without it", summary)


@pytest.mark.parametrize(
    "path",
    [("valueQuantity", "value"), ("effectiveDateTime",), ("issued",), ("id",), ("identifier", 0, "value"), ("identifier",)],
    ids=lambda path: ".".join(map(str, path)),
)  # fmt: skip
def test_no_value_gets_the_verdict_of_another(path: tuple[Any, ...]) -> None:
    """Every pair of confusable values, in each member that may be replaced, in either order."""
    listed = [*CONFUSABLE, "a", "2024-05-01T10:15:00Z", 120]
    expected = []
    for value in listed:
        reading = deepcopy(READING)
        put(reading, path, value)
        expected.append((reading, PLAIN.examine(reading, (ARGO,), {}.get, dialect="argo")))
    for order in (expected, expected[::-1]):
        book = caching()
        for reading, issues in order * 2:
            assert book.examine(reading, (ARGO,), {}.get, dialect="argo") == issues, reading


@pytest.mark.parametrize(
    "path", [("valueQuantity", "unit"), ("code", "coding", 0, "code"), ("valueQuantity", "value"), ("id",)]
)
def test_no_value_implies_the_profile_of_another(path: tuple[Any, ...]) -> None:
    whens = [
        (p.url, p.when) for p in PLAIN.profiles.values() if (p.dialect, p.type) == ("argo", "Observation") and p.when
    ]
    for value in [*CONFUSABLE, "mg/dl", "mmol/l", "99504-3", "14745-4"] * 2:
        reading = deepcopy(READING)
        put(reading, path, value)
        assert set(CACHING.implied(reading, "argo")) == {url for url, when in whens if PLAIN.holds(when, reading)}


def test_a_book_that_is_replaced_is_freed() -> None:
    book = rule_book(RULES)
    book.examine(READING, book.implied(READING, "argo"), {}.get, dialect="argo")
    freed = weakref.ref(book)
    del book
    gc.collect()
    assert freed() is None


def test_readings_that_differ_only_in_replaced_members_share_one_shape() -> None:
    book = rule_book(RULES)
    for minute in range(50):
        reading = {**deepcopy(READING), "id": f"r{minute}", "effectiveDateTime": f"2024-05-01T10:{minute:02}:00Z"}
        reading["valueQuantity"]["value"] = 100 + minute
        assert book.examine(reading, [ARGO], {"Patient/1": PATIENT}.get, dialect="argo") == ()
    assert len(book.verdict_cache) == 1


def test_references_are_resolved_again_for_a_cached_verdict() -> None:
    book = rule_book(RULES)
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
    book = rule_book(RULES, tmp_path)
    texts = []
    for value in (100, 700, 100, 5):
        reading = deepcopy(READING)
        reading["valueQuantity"]["value"] = value
        texts.append([issue.text for issue in book.examine(reading, [ARGO], dialect="argo")])
    required = "cgm-sensor-reading-mass requires 20 to 600 mg/dL"
    assert texts == [[], [f"valueQuantity.value is 700; {required}"], [], [f"valueQuantity.value is 5; {required}"]]


@pytest.mark.parametrize("size", [10_000, 50_000])
def test_the_cache_stays_within_its_size(size: int) -> None:
    cache = VerdictCache(size)
    for number in range(500):
        cache.put(("argo", (), b"x" * 100 + str(number).encode()), (), [(f"Patient/{number}", PATIENT)])
    assert 0 < len(cache) <= size / 500
    cache.put(("argo", (), b"x" * 10**6), (), [])
    assert cache.get(("argo", (), b"x" * 10**6), lambda _: None) is None


def test_every_day_of_the_months_has_one_shape() -> None:
    book = rule_book(RULES)
    days = [
        (month, day)
        for month in range(1, 13)
        for day in (1, 28, 29, 30, 31)
        if day <= (28 if month == 2 else 31 - (month in {4, 6, 9, 11}))
    ]
    for month, day in days:
        reading = READING | {"effectiveDateTime": f"2025-{month:02}-{day:02}T10:15:00Z"}
        assert book.examine(reading, [ARGO], {}.get, dialect="argo") == ()
    assert book.verdict_cache is not None
    assert len(book.verdict_cache) == 1
    impossible = READING | {"effectiveDateTime": "2025-04-31T10:15:00Z"}
    assert book.examine(impossible, [ARGO], {}.get, dialect="argo")


@pytest.mark.parametrize(
    ("different", "evaluations"), [(False, [1, 2, 0, 0, 0]), (True, [1, 1, 1, 1, 1])], ids=["alike", "different"]
)
def test_a_verdict_with_issues_is_cached_only_when_its_shape_repeats(different: bool, evaluations: list[int]) -> None:
    book = caching()
    examine, calls = book._examine, []
    book._examine = lambda *arguments: (calls.append(arguments), examine(*arguments))[1]  # type: ignore[method-assign]
    counted = []
    for number in range(5):
        reading = {**deepcopy(READING), "status": "done", "id": f"r{number}"}
        reading |= {"note": [{"text": f"note {number}"}]} if different else {}
        assert [issue.rule for issue in book.examine(reading, [ARGO], dialect="argo")] != []
        counted.append(len(calls) - sum(counted))
    assert counted == evaluations


@pytest.mark.parametrize("first", ["abc", "zzz"])
@pytest.mark.parametrize(
    "referring",
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
def test_an_id_to_which_something_refers_is_part_of_the_shape(first: str, referring: dict[str, Any]) -> None:
    book = caching()
    for name in [first] * 3 + ["zzz", "abc"] * 3:
        reading = READING | referring | {"id": name}
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
def test_no_member_is_replaced_that_an_expression_reads(expression: str, read: set[str]) -> None:
    analysis, _ = analyse(CACHING.model("argo"), CACHING.expressions, expression, "Observation")
    replaced = {member for member, _ in stand_ins("Observation", [analysis])}
    assert replaced == {"id", "effectiveDateTime", "issued", "valueQuantity", "identifier"} - read


def test_a_resolved_resource_counts_by_its_size_in_memory() -> None:
    book = caching()
    assert book.verdict_cache is not None
    whole = book.verdict_cache._room
    device = {"resourceType": "Device", "id": "d", "note": [Decimal("0.1")] * 2000}
    reading = READING | {"device": {"reference": "Device/d"}}
    book.examine(reading, [ARGO], {"Device/d": device, "Patient/1": PATIENT}.get, dialect="argo")
    assert len(book.verdict_cache) == 1
    taken = sum(sys.getsizeof(number) + 8 for number in device["note"])
    assert whole - book.verdict_cache._room > taken


def test_unknown_claims_do_not_fill_the_cache_of_stand_ins() -> None:
    book = caching()
    book._stand_ins = lru_cache(1024)(book._find_stand_ins)
    for number in range(50):
        book.examine(READING | {"meta": {"profile": [f"http://e.org/{number}"]}}, [ARGO], dialect="argo")
    assert book._stand_ins.cache_info().currsize == 1
