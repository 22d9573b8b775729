"""A submitter's own conditions: what they select, and which can be searched for together."""

import pytest

from cgm_proxy.core.submission.if_none_exist import Parameters, one_identifier, parameters

IDENTIFIER = (("identifier", "http://x.org|1"),)

CONDITIONS = [
    ("identifier=http://x.org|1", IDENTIFIER),
    ("?identifier=http://x.org|1", IDENTIFIER),
    ("Observation?identifier=http://x.org|1", IDENTIFIER),
    ("http://localhost/fhir/Observation?identifier=http://x.org|1", IDENTIFIER),
    ("identifier=http%3A%2F%2Fx.org%7C1", IDENTIFIER),
    ("identifier=http://x.org|1&_count=0&_elements=id&_sort=date", IDENTIFIER),
    ("identifier=http://x.org|1&_include:iterate=Observation:subject", IDENTIFIER),
    ("code=a&date=b", (("code", "a"), ("date", "b"))),
    ("Device?identifier=http://x.org|1", None),
    ("", None),
    ("identifier=", None),
    ("identifier=,", None),
    ("identifier=|", None),
    ("_count=1", None),
    ("nonsense", None),
]


@pytest.mark.parametrize(("text", "expected"), CONDITIONS)
def test_a_condition_is_read_unless_it_selects_nothing_or_another_type(text: str, expected: Parameters | None) -> None:
    assert parameters(text, "Observation") == expected


TOGETHER = [
    ((("identifier", "http://x.org|1"),), "http://x.org|1"),
    ((("identifier", "|1"),), "|1"),
    ((("identifier", "1"),), None),
    ((("identifier", "http://x.org|"),), None),
    ((("identifier", "http://x.org|1,http://x.org|2"),), None),
    ((("identifier", "http://x.org|a\\,b"),), None),
    ((("identifier", "http://x.org|1 "),), None),
    ((("identifier:not", "http://x.org|1"),), None),
    ((("identifier", "http://x.org|1"), ("code", "a")), None),
]


@pytest.mark.parametrize(("condition", "token"), TOGETHER)
def test_only_conditions_on_one_plain_identifier_are_searched_for_together(
    condition: Parameters, token: str | None
) -> None:
    assert one_identifier(condition) == token
