"""UCUM codes as the HL7 validator reads them."""

import pytest
from support.r4 import R4

from cgm_proxy.core.r4.ucum import LONGEST

UCUM = R4.ucum
UNITS = [
    "mg/dL", "g%", "10*3/uL", "10^3/uL", "{a}", "{}", "%", "[degF]", "1", "2.mg", "mg2", "mg-2", "mg+2", "(mg)", "mg)",
    "m[H2O]", "dam", "Cel", "mCel", "[iU]/L", "k[iU]/L", "{a}/mL", "10*", "10*-3", "5", "B[SPL]", "[arb'U]", "ug", "L",
    "l", "lx", "mo", "mo_j", "wk", "[in_i]", "m3/s", "+3", "10*+3", "eq", "m/s2", "%{x}", "mol/kg{a}.s", "1/min", "/min",
    "/{b}", "((m))", "4.[pi].10*-7.N/A2", "d",
]  # fmt: skip
NOT_UNITS = [
    "{\u00e9}", "mmHg", "2mg", "mg--2", "(mg/dL", "/", "//", "mg/", ".mg", "mg..s", "kkg", "mg{a}s", "{a}mg", "mg {a}",
    'mg"', "\u00b5g", "Y", "kwk", "k[in_i]", "[in_i", "in_i]", "3m", "()", "m()", "m[pH]", " mg", "mg ", "mg/dl2a", "{a",
    "a}", "\u0663", None, 5,
]  # fmt: skip


@pytest.mark.parametrize("code", UNITS)
def test_a_unit_is_recognised(code: str) -> None:
    assert code in UCUM


@pytest.mark.parametrize("code", NOT_UNITS)
def test_other_values_are_not_units(code: object) -> None:
    assert code not in UCUM


def test_endless_nesting_is_not_a_unit_and_not_an_error() -> None:
    assert "(" * LONGEST not in UCUM
    assert "(" * 10**6 not in UCUM
    assert "(" * 100 + "m" + ")" * 100 in UCUM
