"""Objects are found in JSON of any shape."""

import pytest

from cgm_proxy.core.json_values import nested_objects, objects


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([{"a": 1}, 5, None, [{}], "x", {}], [{"a": 1}, {}]),
        ({"a": 1}, []),
        ("x", []),
        (None, []),
        ([], []),
    ],
)
def test_only_the_objects_of_a_list_are_returned(value: object, expected: list[object]) -> None:
    assert objects(value) == expected


def test_nested_objects_are_found_at_any_depth() -> None:
    inner = {"c": [1, [{"d": 2}]]}
    value = [{"a": {"b": inner}}, "x"]
    found = list(nested_objects(value))
    assert len(found) == 4
    for expected in (value[0], {"b": inner}, inner, {"d": 2}):
        assert expected in found


@pytest.mark.parametrize("value", [None, 5, "x", [], [1, [2]]])
def test_a_value_without_objects_has_none(value: object) -> None:
    assert list(nested_objects(value)) == []


def test_deep_nesting_needs_no_deep_stack() -> None:
    value: object = {}
    for _ in range(100_000):
        value = [value]
    assert list(nested_objects(value)) == [{}]
