"""Units of UCUM (https://ucum.org/ucum): whether a code is a unit, by UCUM's grammar and tables.

The HL7 validator's reading counts, which is more lenient than UCUM: an annotation may replace a unit, and one closing
parenthesis too many is ignored at the end.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass

#: An annotation, an operator, a symbol (with digits first or in brackets), a number.
_TOKEN = re.compile(r"\{[\x01-\x7f]*?\}|[/.()]|[0-9]*(?:[A-Za-z%*^'\"_]|\[[0-9A-Za-z%*^'\"_.]*\]?)+|[+-]?[0-9]+")

#: Longer codes are not units; this limits the nesting, too.
LONGEST = 255


class _NotAUnitError(ValueError):
    """The text is not a unit."""


@dataclass(frozen=True, slots=True)
class Ucum:
    """UCUM's tables: the prefixes, the metric units (which may have a prefix) and the other units (which have none)."""

    prefixes: Collection[str]
    metric: Collection[str]
    others: Collection[str]

    def __contains__(self, code: object) -> bool:
        """Whether a code is a unit."""
        if not isinstance(code, str) or len(code) > LONGEST:
            return False
        tokens = [*_TOKEN.findall(code), ""]
        if "".join(tokens) != code:
            return False
        try:
            end = self._term(tokens, 0)
        except _NotAUnitError:
            return False
        return tokens[end:] in ([""], [")", ""])

    def _term(self, tokens: list[str], at: int) -> int:
        """Read units with operators between them; return where they end."""
        if not tokens[at]:
            return at
        while True:
            if tokens[at] == "/":
                at += 1
                continue
            at = at + 1 if tokens[at].startswith("{") else self._component(tokens, at)
            if tokens[at] in {"", ")"}:
                return at
            if tokens[at] in {"/", "."}:
                at += 1
            elif not tokens[at].startswith("{"):
                raise _NotAUnitError

    def _component(self, tokens: list[str], at: int) -> int:
        """Read a number, a unit with its exponent, or a term in parentheses; return where it ends."""
        word = tokens[at]
        if word == "(":
            at = self._term(tokens, at + 1)
            if tokens[at] != ")":
                raise _NotAUnitError
            return at + 1
        if _is_number(word):
            return at + 1
        if not self._is_unit(word):
            raise _NotAUnitError
        return at + 2 if _is_number(tokens[at + 1]) else at + 1

    def _is_unit(self, symbol: str) -> bool:
        if symbol in self.metric or symbol in self.others:
            return True
        return any(symbol.startswith(prefix) and symbol[len(prefix) :] in self.metric for prefix in self.prefixes)


def _is_number(word: str) -> bool:
    return word.lstrip("+-").isdecimal()
