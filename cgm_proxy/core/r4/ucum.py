"""Units of UCUM (https://ucum.org/ucum): whether a code is one, by its grammar and its tables.

Read as the HL7 validator reads them, which is more lenient than UCUM: an annotation may stand where a unit may, and a
closing parenthesis too many is let pass at the end.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass

#: An annotation, an operator, a symbol (its digits come first or in brackets), a number.
_TOKEN = re.compile(r"\{[\x01-\x7f]*?\}|[/.()]|[0-9]*(?:[A-Za-z%*^'\"_]|\[[0-9A-Za-z%*^'\"_.]*\]?)+|[+-]?[0-9]+")
#: Longer codes are none; this bounds the nesting too.
LONGEST = 255


class _NoUnitError(ValueError):
    """What was read is no unit."""


@dataclass(frozen=True, slots=True)
class Ucum:
    """UCUM's tables: prefixes, metric units (which take one), and the others (which take none)."""

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
            end = self._term(tokens, 0, first=True)
        except _NoUnitError:
            return False
        return tokens[end:] in ([""], [")", ""])

    def _term(self, tokens: list[str], at: int, *, first: bool) -> int:
        """Read units with operators between them; give where they end."""
        if first and not tokens[at]:
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
                raise _NoUnitError

    def _component(self, tokens: list[str], at: int) -> int:
        word = tokens[at]
        if word == "(":
            at = self._term(tokens, at + 1, first=True)
            if tokens[at] != ")":
                raise _NoUnitError
            return at + 1
        if _is_number(word):
            return at + 1
        if not self._is_symbol(word):
            raise _NoUnitError
        return at + 2 if _is_number(tokens[at + 1]) else at + 1

    def _is_symbol(self, word: str) -> bool:
        known = word in self.metric or word in self.others
        return known or any(word.startswith(p) and word[len(p) :] in self.metric for p in self.prefixes)


def _is_number(word: str) -> bool:
    return word.lstrip("+-").isdecimal()
