"""Which elements an expression reads and what its result is, found without evaluating it."""

import pytest
from support.places import RULES

from cgm_proxy.core.rules.fhirpath import Expressions
from cgm_proxy.core.rules.static_analysis import ElementRead, analyse
from cgm_proxy.rulekit.loading import r4_model

MODEL = r4_model(RULES)
STATUS = ElementRead("Observation", "status")
VALUE = ElementRead("Observation", "value[x]")

READS = [
    ("status = 'final'", "", {STATUS}),
    ("status.exists()", "", set()),
    ("%resource.status = 'final'", "", {STATUS}),
    ("value.ofType(Quantity).unit = 'mg/dl'", "", {ElementRead("Quantity", "unit")}),
    ("unit = 'mg/dl'", "value.ofType(Quantity)", {ElementRead("Quantity", "unit")}),
    ("effective.toString().length() > 10", "", {ElementRead("Observation", "effective[x]", "length")}),
    ("iif(status = 'final', value, issued).exists()", "", {STATUS, VALUE, ElementRead("Observation", "issued")}),
    ("hasMember.resolve().status = 'final'", "", {ElementRead("*", "status"), ElementRead("Observation", "hasMember")}),
]


@pytest.mark.parametrize(("text", "at", "reads"), READS)
def test_the_elements_that_influence_the_result_are_found(text: str, at: str, reads: set[ElementRead]) -> None:
    analysis, types = analyse(MODEL, Expressions(), text, "Observation", at)
    assert (analysis.problems, analysis.reads, analysis.everything) == ([], reads, False)
    assert types == {"boolean"}


@pytest.mark.parametrize(
    "text", ["descendants().exists()", "conformsTo('http://e.org/p')", "repeat(hasMember).exists()"]
)
def test_an_expression_that_may_read_everything_is_found(text: str) -> None:
    assert analyse(MODEL, Expressions(), text, "Observation")[0].everything


@pytest.mark.parametrize(
    ("text", "types"),
    [
        ("status", {"code"}),
        ("value as Quantity", {"Quantity"}),
        ("code.coding.first()", {"Coding"}),
        ("hasMember.resolve()", None),
        ("status.length() + 1", {"decimal"}),
        ("{}", set()),
    ],
)
def test_the_types_of_a_result_are_found(text: str, types: set[str] | None) -> None:
    _, found = analyse(MODEL, Expressions(), text, "Observation")
    assert found == types
