"""FHIRPath as rules use it: what holds, the functions of FHIR, and expressions that are none."""

from typing import Any

import pytest

from cgm_proxy.core.rules.fhirpath import Expressions, FhirPathError, data_of, functions, node_at

PATIENT = {"resourceType": "Patient", "id": "1", "active": True, "name": [{"family": "P", "given": ["A", "B"]}]}
READING = {
    "resourceType": "Observation",
    "status": "final",
    "code": {"coding": [{"system": "http://loinc.org", "code": "99504-3"}]},
    "subject": {"reference": "Patient/1"},
    "performer": [{"reference": "Patient/1"}, {"reference": "Patient/2"}],
}
FUNCTIONS = functions(
    resolve=lambda item: PATIENT if item["reference"] == "Patient/1" else None,
    target_type=lambda item: item["reference"].partition("/")[0],
    conforms_to=lambda item, url: url == f"http://e.org/{item['resourceType']}",
    member_of=lambda _item, url: url == "http://e.org/codes",
    known_codes=lambda item: item["coding"][0]["code"] == "99504-3",
)

EXPRESSIONS = [
    ("status = 'final'", True),
    ("status = 'done'", False),
    ("status", False),  # not a boolean
    ("note.text = 'x'", False),  # empty
    ("status | code.coding.code", False),  # two items
    ("subject.resolve().active", True),
    ("subject.resolve().name.given.count() = 2", True),
    ("performer.resolve().count() = 1", True),
    ("performer.targetType().distinct() = 'Patient'", True),
    ("subject.resolve().conformsTo('http://e.org/Patient')", True),
    ("note.resolve().conformsTo('http://e.org/Patient')", False),
    ("code.memberOf('http://e.org/codes')", True),
    ("code.knownCodes()", True),
    ("status.hasValue()", True),
    ("code.hasValue()", False),
    ("%resource.status = 'final'", True),
]


@pytest.mark.parametrize(("text", "holds"), EXPRESSIONS)
def test_an_expression_holds_only_if_it_is_exactly_true(text: str, holds: bool) -> None:
    node = node_at(READING, "Observation", "Observation")
    assert Expressions()(text).holds(node, FUNCTIONS, {"resource": READING}) is holds


def test_nodes_are_those_that_a_path_selects() -> None:
    node = node_at(READING, "Observation", "Observation")
    assert [data_of(found) for found in Expressions()("code.coding.code").nodes(node, FUNCTIONS, {})] == ["99504-3"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("status = ", "status = : it ends too soon"),
        ("status final", "status final: unexpected `final` at letter 8"),
        ("status ? 1", "status ? 1: unexpected letter at letter 8"),
        ("nothing()", "nothing(): Not implemented: nothing"),
    ],
)
def test_a_text_that_is_no_expression_is_refused(text: str, message: str) -> None:
    with pytest.raises(FhirPathError) as raised:
        Expressions()(text).nodes(node_at(READING, "Observation", "Observation"), FUNCTIONS, {})
    assert str(raised.value) == message


def test_a_text_is_parsed_once() -> None:
    expressions = Expressions()
    tree: Any = expressions("status.exists()").tree()
    assert expressions("status.exists()").tree() is tree


def test_trace_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    node = node_at(PATIENT, "Patient", "Patient")
    assert Expressions()("name.trace('names').exists()").holds(node, FUNCTIONS, {})
    assert capsys.readouterr() == ("", "")
