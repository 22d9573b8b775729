"""The canonical form of content: numbers, times, lists, references and contained resources."""

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.proxying import rules

from cgm_proxy.core.codec.json_body import decode
from cgm_proxy.core.r4.model import PRIMITIVES, Model
from cgm_proxy.core.submission.canonical import TIME_ENDINGS, TIMES, UNORDERED, canonical_json, canonical_number


def canonical(content: Any) -> Any:
    return decode(canonical_json(content, str).encode())


NUMBERS = st.decimals(allow_nan=False, allow_infinity=False) | st.integers()


@given(NUMBERS, NUMBERS)
def test_canonical_numbers_are_equal_exactly_if_the_numbers_are(one: Decimal | int, other: Decimal | int) -> None:
    assert (canonical_number(one) == canonical_number(other)) == (one == other)


@given(st.integers(), st.integers(0, 30))
def test_trailing_zeros_and_exponents_do_not_matter(number: int, zeros: int) -> None:
    written = canonical_number(number)
    assert canonical_number(Decimal(f"{number}.{'0' * zeros}")) == canonical_number(Decimal(f"{number}e0")) == written
    assert canonical_number(Decimal(f"{number}{'0' * zeros}e-{zeros}")) == written


@pytest.mark.parametrize("number", ["1e999999999", "-1e-999999999", "9e999999999999999999", "0e999999999", "1" * 4000])
def test_the_canonical_form_of_a_huge_number_is_short(number: str) -> None:
    assert len(canonical_number(Decimal(number))) <= len(number) + 20
    assert len(canonical_json(Decimal(number), str)) <= len(number) + 60


def test_zero_has_no_sign() -> None:
    assert canonical_number(Decimal("-0.0")) == canonical_number(0) == "0"


@pytest.mark.parametrize("wrong", [None, True, "100", [], {}])
def test_a_value_that_is_not_a_number_has_no_canonical_form(wrong: Any) -> None:
    assert canonical_number(wrong) == ""


@pytest.mark.parametrize(
    ("sent", "plain"),
    [
        ("6.80", "6.8"),
        ("100.0", "100"),
        ("1e2", "100"),
        ("-5", "-5"),
        ("0.00", "0"),
        ("1e-50", "1e-50"),
        ("12e50", "12e50"),
    ],
)
def test_numbers_are_written_with_all_their_digits_unless_there_are_too_many(sent: str, plain: str) -> None:
    assert canonical_json({"value": Decimal(sent)}, str) == f'{{"value":{plain}}}'


@pytest.mark.parametrize("value", [True, False, None, "6.80", "", [], {}])
def test_other_values_stay(value: Any) -> None:
    assert canonical({"x": value}) == {"x": value}


@pytest.mark.parametrize(
    ("name", "changed"),
    [("effectiveDateTime", True), ("valueInstant", True), ("issued", True), ("start", True), ("valueString", False)],
)
def test_only_elements_of_times_are_read_as_times(name: str, changed: bool) -> None:
    text = "2024-05-01T02:00:00.0+02:00"
    assert canonical({name: text}) == {name: "2024-05-01T00:00:00Z" if changed else text}


def test_only_objects_in_lists_whose_order_means_nothing_are_sorted() -> None:
    two = [{"x": 2}, {"x": 1}]
    assert canonical({"component": two, "note": two, "category": [3, {"x": 1}]}) == {
        "component": two[::-1],
        "note": two,
        "category": [3, {"x": 1}],
    }


def test_the_type_beside_a_reference_is_left_out() -> None:
    assert canonical({"device": {"reference": "Device/1", "type": "Device"}}) == {"device": {"reference": "Device/1"}}
    assert canonical({"device": {"type": "Device"}}) == {"device": {"type": "Device"}}


def members(model: Model, *types: str) -> Iterator[tuple[str, str, bool]]:
    """Yield name, type and whether it is a list, of each member of these types and of the types that they are made of."""
    seen, remaining = {"Extension", "Meta", *model.resources}, [*types]
    while remaining:
        name = remaining.pop()
        found = model.type(name)
        for member, (element, type_) in found.members.items() if found else ():
            yield member, type_, element.many
            inner = {type_, f"{name}.{element.name}"} - seen
            remaining += inner
            seen |= inner


def test_each_list_and_each_time_of_the_types_that_are_stored_is_known() -> None:
    """A list that is not known to have no order makes two resources of one, if it is written in another order."""
    found = list(members(rules().model("1.0.0"), "Observation", "DiagnosticReport", "Device"))
    lists = {name for name, type_, many in found if many and type_ not in PRIMITIVES}
    assert lists - {"note", "media"} == UNORDERED
    times = {name for name, type_, _ in found if type_ in {"dateTime", "instant"}}
    assert {name for name in times if not name.endswith(TIME_ENDINGS)} == TIMES


CONTAINED = {"resourceType": "Device", "serialNumber": "1"}


def with_contained(*ids: str, used: str, **more: Any) -> dict[str, Any]:
    held = [CONTAINED | {"id": name, "serialNumber": str(number), **more} for number, name in enumerate(ids)]
    return {"contained": held, "device": {"reference": f"#{used}"}}


def test_the_ids_of_contained_resources_mean_nothing() -> None:
    one = canonical(with_contained("a", "b", used="a"))
    assert one == canonical(with_contained("x", "y", used="x"))
    assert one == canonical(with_contained("b", "a", used="b"))
    assert one != canonical(with_contained("a", "b", used="b"))
    assert one != canonical(with_contained("a", "b", used="#c"))


def test_contained_resources_that_refer_to_one_another_keep_their_ids() -> None:
    parent = {"parent": {"reference": "#b"}}
    assert canonical(with_contained("a", "b", used="a", **parent)) == canonical(
        with_contained("a", "b", used="a", **parent)
    )
    assert canonical(with_contained("a", "b", used="a", **parent)) != canonical(
        with_contained("b", "a", used="a", **parent)
    )
