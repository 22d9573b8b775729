"""FHIRPath, as the rules use it: fhirpathpy with R4's types and these functions.

- `resolve()`: what References mean (contained resources, the Bundle's entries, what lies outside);
- `targetType()`: the type of what a Reference means, by resolution or else by its literal reference;
- `conformsTo(url)`: whether a resource conforms to a profile;
- `memberOf(url)`: whether a code, Coding or CodeableConcept is in a value set;
- `knownCodes()`: whether a CodeableConcept has no code that its code system lacks; systems that are not known lack none.

An expression holds only if it gives exactly `true`: an empty result does not hold.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from antlr4.CommonTokenStream import CommonTokenStream
from antlr4.error.ErrorListener import ErrorListener
from antlr4.InputStream import InputStream
from antlr4.Token import Token
from antlr4.tree.Tree import ParseTreeWalker
from fhirpathpy import apply_parsed_path
from fhirpathpy.engine.nodes import ResourceNode
from fhirpathpy.models import models
from fhirpathpy.parser.ASTPathListener import ASTPathListener
from fhirpathpy.parser.generated.FHIRPathLexer import FHIRPathLexer
from fhirpathpy.parser.generated.FHIRPathParser import FHIRPathParser

from cgm_proxy.core.r4.uris import BLANK

R4 = models["r4"]
Functions = Mapping[str, Mapping[str, Any]]


class FhirPathError(ValueError):
    """An expression that cannot be read or evaluated."""


def functions(
    resolve: Callable[[Any], Any],
    target_type: Callable[[Any], Any],
    conforms_to: Callable[[Any, str], bool],
    member_of: Callable[[Any, str], bool],
    known_codes: Callable[[Any], bool],
) -> Functions:
    """Give the functions of FHIR to `evaluate`, over one examination's resources."""

    def each(function: Callable[[Any], Any]) -> Callable[[list[Any]], list[Any]]:
        return lambda inputs: [found for item in inputs if (found := function(item)) is not None]

    def every(function: Callable[[Any, str], bool]) -> Callable[[list[Any], str], list[bool]]:
        return lambda inputs, url: [all(function(item, url) for item in inputs)] if inputs else []

    return {
        "resolve": {"fn": each(resolve), "arity": {0: []}},
        "targetType": {"fn": each(target_type), "arity": {0: []}},
        "conformsTo": {"fn": every(conforms_to), "arity": {1: ["String"]}},
        "memberOf": {"fn": every(member_of), "arity": {1: ["String"]}},
        "knownCodes": {"fn": lambda inputs: [all(map(known_codes, inputs))], "arity": {0: []}},
        "hasValue": {"fn": lambda inputs: [len(inputs) == 1 and _is_value(inputs[0])], "arity": {0: []}},
    }


def _is_value(item: Any) -> bool:
    """Whether an element has a value: not extensions alone, and more than white space, as the HL7 validator reads it."""
    return not isinstance(item, dict) and not (isinstance(item, str) and (not item or BLANK.fullmatch(item)))


class _Strict(ErrorListener):
    """Raises what the parser would mend by guessing."""

    def syntaxError(self, _recognizer: Any, symbol: Any, _line: int, column: int, _message: str, _error: Any) -> None:  # noqa: N802 -- antlr's
        """Say where the expression ends to be one."""
        raise _unexpected(symbol, column)


def _unexpected(symbol: Any, column: int) -> FhirPathError:
    if symbol is not None and symbol.type == Token.EOF:
        return FhirPathError("it ends too soon")
    return FhirPathError(f"unexpected {f'`{symbol.text}`' if symbol else 'letter'} at letter {column + 1}")


def parse(text: str) -> Any:
    """Parse an expression into fhirpathpy's tree; unlike fhirpathpy's own `parse`, take no text that is none as a whole.

    Raises FhirPathError, and what fhirpathpy raises.
    """
    strict = _Strict()
    lexer = FHIRPathLexer(InputStream(text))
    parser = FHIRPathParser(CommonTokenStream(lexer))
    for recognizer in (lexer, parser):
        recognizer.removeErrorListeners()
        recognizer.addErrorListener(strict)
    tree = parser.expression()
    following = parser.getCurrentToken()
    if following.type != Token.EOF:
        raise _unexpected(following, following.column)
    listener = ASTPathListener()  # type: ignore[no-untyped-call]
    ParseTreeWalker().walk(listener, tree)
    return listener.parentStack[0]


def _silent(_values: Any, _label: Any) -> None:
    """Take what an expression traces, and say nothing: it may be a patient's."""


@dataclass(slots=True)
class Expression:
    """A FHIRPath expression, parsed when it is first needed (milliseconds) and then kept."""

    text: str
    _parsed: Any = None

    def tree(self) -> Any:
        """Give the parsed expression; raise FhirPathError if it is none."""
        if self._parsed is None:
            try:
                self._parsed = parse(self.text)
            except Exception as error:  # fhirpathpy raises bare ones, KeyError and others
                raise FhirPathError(f"{self.text}: {error}") from error
        return self._parsed

    def nodes(self, node: Any, using: Functions, variables: Mapping[str, Any]) -> list[Any]:
        """Evaluate on a node and give what it selects, as fhirpathpy's nodes (with `propName`, `path`, `data`)."""
        options = {"userInvocationTable": using, "returnRawData": True, "traceFn": _silent}
        try:
            found = apply_parsed_path(node, self.tree(), dict(variables), R4, options)  # type: ignore[no-untyped-call]
        except FhirPathError:
            raise
        except Exception as error:  # as above; a rule that can't be evaluated refuses, it never passes
            raise FhirPathError(f"{self.text}: {error}") from error
        return found if isinstance(found, list) else [found]

    def holds(self, node: Any, using: Functions, variables: Mapping[str, Any]) -> bool:
        """Whether the expression gives exactly true on the node."""
        found = self.nodes(node, using, variables)
        return len(found) == 1 and data_of(found[0]) is True


def data_of(node: Any) -> Any:
    """Give a node's data."""
    return node.data if isinstance(node, ResourceNode) else node


def node_at(data: Any, type_: str, path: str) -> ResourceNode:
    """Make a node of a type (`Observation.component`) at a path of its resource."""
    return ResourceNode(data, type_, propName=path)  # type: ignore[no-untyped-call]


_EXPRESSIONS: dict[str, Expression] = {}


def expression(text: str) -> Expression:
    """Give the expression of a text; the same text is parsed once. For the rules' texts only, never a submitter's."""
    return _EXPRESSIONS.setdefault(text, Expression(text))
