"""The table of the guide's versions: each has what detection, orders and rules need, and no code branches on a version."""

import ast

import pytest
from support.places import ROOT, RULES

from cgm_proxy.core.submission.dialects import (
    DEFAULT_DIALECT,
    DIALECTS,
    DIALECTS_BY_ID,
    DIALECTS_BY_TAG,
    ORDER_TOKENS,
    Dialect,
)

EACH_DIALECT = pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.id)


@EACH_DIALECT
def test_each_dialect_has_a_folder_of_rules(dialect: Dialect) -> None:
    assert any((RULES / dialect.id).glob("*.yaml"))


@EACH_DIALECT
def test_each_dialect_is_submitted_either_with_a_tag_or_by_the_operation(dialect: Dialect) -> None:
    assert bool(dialect.tags) != dialect.uses_operation


@EACH_DIALECT
def test_a_tag_means_one_dialect(dialect: Dialect) -> None:
    assert all(DIALECTS_BY_TAG[dialect.code_system, tag] is dialect for tag in dialect.tags)


@EACH_DIALECT
def test_canonical_urls_are_below_the_base(dialect: Dialect) -> None:
    assert dialect.canonical_url("cgm-summary") == f"{dialect.canonical_base}/StructureDefinition/cgm-summary"
    assert dialect.code_system == f"{dialect.canonical_base}/CodeSystem/cgm"


def test_of_dialects_that_share_the_operation_and_base_all_but_one_have_a_code_system_of_their_own() -> None:
    unmarked = [dialect for dialect in DIALECTS if dialect.uses_operation and not dialect.own_code_system]
    assert unmarked == [DEFAULT_DIALECT]


def test_ids_are_unique() -> None:
    assert len(DIALECTS_BY_ID) == len(DIALECTS)


def test_the_search_for_orders_has_the_codes_of_all_dialects_once() -> None:
    codes = {f"{dialect.code_system}|{code}" for dialect in DIALECTS for code in dialect.order_codes}
    assert sorted(ORDER_TOKENS) == sorted(codes)


def test_no_code_compares_with_the_id_of_a_dialect() -> None:
    """A difference between dialects is a column of the table; a comparison with an id would hide it elsewhere."""
    compared = [
        f"{path}:{node.lineno}"
        for path in (ROOT / "cgm_proxy").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Compare | ast.MatchValue)
        for constant in ast.walk(node)
        if isinstance(constant, ast.Constant) and constant.value in DIALECTS_BY_ID
    ]
    assert compared == []
