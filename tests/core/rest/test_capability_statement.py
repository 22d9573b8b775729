"""The CapabilityStatement says what the proxy adds, once, and keeps all else."""

from copy import deepcopy
from typing import Any

import pytest

from cgm_proxy.core.codec.json_body import decode, encode
from cgm_proxy.core.rest.capability_statement import add_receiver, publish
from cgm_proxy.core.submission.dialects import OPERATION_DEFINITION, RECEIVER_CAPABILITIES

OPERATION = {"name": "submit-cgm-bundle", "definition": OPERATION_DEFINITION}


def statement(**more: Any) -> dict[str, Any]:
    return {"resourceType": "CapabilityStatement", "rest": [{"mode": "server"}], **more}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, [RECEIVER_CAPABILITIES]),
        ([], [RECEIVER_CAPABILITIES]),
        (["http://b", "http://a", "http://c"], ["http://b", "http://a", "http://c", RECEIVER_CAPABILITIES]),
        ([RECEIVER_CAPABILITIES, "http://a"], [RECEIVER_CAPABILITIES, "http://a"]),
        ("http://a", ["http://a", RECEIVER_CAPABILITIES]),
        ([{"x": 1}, None], [{"x": 1}, None, RECEIVER_CAPABILITIES]),
    ],
)
def test_the_receiver_is_listed_once_after_what_was_there(given: Any, expected: list[Any]) -> None:
    assert add_receiver(statement(instantiates=given))["instantiates"] == expected


def test_the_operation_is_listed_for_the_server() -> None:
    added = add_receiver(statement(rest=[{"mode": "client"}, {"mode": "server", "operation": [{"name": "x"}]}]))
    assert added["rest"] == [{"mode": "client"}, {"mode": "server", "operation": [{"name": "x"}, OPERATION]}]


def test_adding_twice_is_adding_once() -> None:
    once = add_receiver(statement())
    assert add_receiver(once) == once


def test_an_upstream_that_knows_the_operation_itself_keeps_its_own_name_for_it() -> None:
    own = {"name": "cgm", "definition": OPERATION_DEFINITION}
    assert add_receiver(statement(rest=[{"mode": "server", "operation": [own]}]))["rest"][0]["operation"] == [own]


def test_what_was_given_is_not_changed_and_all_else_stays() -> None:
    given = decode(
        b'{"resourceType":"CapabilityStatement","x":{"y":[1.50]},"rest":[{"mode":"server","resource":[]}],"z":1}'
    )
    before = deepcopy(given)
    added = add_receiver(given)
    assert given == before
    assert encode(added).startswith(b'{"resourceType":"CapabilityStatement","x":{"y":[1.50]},"rest":[{"mode":"server"')


@pytest.mark.parametrize("other", [{}, {"resourceType": "OperationOutcome", "instantiates": 5}, {"resourceType": None}])
def test_what_is_no_capability_statement_stays_as_it_is(other: dict[str, Any]) -> None:
    assert add_receiver(other) is other


@pytest.mark.parametrize("wrong", [None, True, 5, "x", [], {}, [None], [5], ["x"], [[]], [{"mode": ["server"]}]])
def test_a_statement_of_wrong_types_is_added_to_all_the_same(wrong: Any) -> None:
    for field in ("instantiates", "rest"):
        assert RECEIVER_CAPABILITIES in add_receiver(statement(**{field: wrong}))["instantiates"]
    [rest] = add_receiver(statement(rest=[{"mode": "server", "operation": wrong}]))["rest"]
    assert OPERATION in rest["operation"]


def test_the_servers_own_urls_are_published_and_no_others() -> None:
    operations = [{"name": "x", "definition": "up/x"}, {"name": "y", "definition": "up/y"}]
    given = statement(
        url="up/metadata",
        implementation={"description": "up", "url": "up"},
        rest=[
            {"mode": "server", "operation": operations, "resource": [{"profile": "up", "operation": operations}, {}]}
        ],
    )
    before = deepcopy(given)
    published = [{"name": "x", "definition": "UP/X"}, {"name": "y", "definition": "UP/Y"}]
    assert publish(given, str.upper) == statement(
        url="up/metadata",
        implementation={"description": "up", "url": "UP"},
        rest=[{"mode": "server", "operation": published, "resource": [{"profile": "up", "operation": published}, {}]}],
    )
    assert given == before


@pytest.mark.parametrize(
    "wrong", [None, True, 5, [], {}, [None], [5], [[]], {"url": 5}, [{"operation": [{"definition": 5}]}]]
)
def test_where_a_statement_has_wrong_types_nothing_is_published(wrong: Any) -> None:
    given = statement(implementation=wrong, rest=wrong)
    assert publish(given, str.upper) == given
    assert publish({"resourceType": "Basic", "implementation": {"url": "up"}}, str.upper)["implementation"] == {
        "url": "up"
    }
