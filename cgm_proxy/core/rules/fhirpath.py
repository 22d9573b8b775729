"""FHIRPath as the rules use it: fhirpathpy with the types of R4 and these functions.

- `resolve()`: the resources that References name (contained, entries of the Bundle, or outside of it);
- `targetType()`: the type of the resource that a Reference names, found by resolution or else read from the reference;
- `conformsTo(url)`: whether a resource conforms to a profile;
- `memberOf(url)`: whether a code, Coding or CodeableConcept is in a value set;
- `knownCodes()`: whether no code of a CodeableConcept is missing in its code system; unknown systems have all codes.

An expression holds only if its result is exactly `true`; an empty result does not hold.
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
from fhirpathpy.engine.invocations import filtering
from fhirpathpy.engine.nodes import ResourceNode
from fhirpathpy.models import models
from fhirpathpy.parser.ASTPathListener import ASTPathListener
from fhirpathpy.parser.generated.FHIRPathLexer import FHIRPathLexer
from fhirpathpy.parser.generated.FHIRPathParser import FHIRPathParser

from cgm_proxy.core.r4.uris import BLANK

R4 = models["r4"]
Functions = Mapping[str, Mapping[str, Any]]


def _first_result(criterion: Callable[[Any], Any], item: Any) -> Any:
    """Return the first result of a criterion of `where()` or `exists()`, evaluated once."""
    results = criterion(item)
    return results[0] if results else False


# fhirpathpy evaluates a criterion twice on each item, and so a criterion within a criterion four times.
filtering.check_macro_expr = _first_result


class FhirPathError(ValueError):
    """An expression that cannot be read or evaluated."""


def functions(
    resolve: Callable[[Any], Any],
    target_type: Callable[[Any], Any],
    conforms_to: Callable[[Any, str], bool],
    member_of: Callable[[Any, str], bool],
    known_codes: Callable[[Any], bool],
) -> Functions:
    """Return the functions that FHIR adds to FHIRPath, for the resources of one examination."""

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


class _StrictListener(ErrorListener):
    """Raises the errors from which the parser would recover by guessing."""

    def syntaxError(self, _recognizer: Any, symbol: Any, _line: int, column: int, _message: str, _error: Any) -> None:  # noqa: N802 -- antlr's
        """Raise FhirPathError at the first letter that does not belong to an expression."""
        raise _unexpected(symbol, column)


def _unexpected(symbol: Any, column: int) -> FhirPathError:
    if symbol is not None and symbol.type == Token.EOF:
        return FhirPathError("it ends too soon")
    return FhirPathError(f"unexpected {f'`{symbol.text}`' if symbol else 'letter'} at letter {column + 1}")


def parse(text: str) -> Any:
    """Return fhirpathpy's tree of an expression; unlike fhirpathpy's own `parse`, refuse text after its end.

    Raises FhirPathError, and whatever fhirpathpy raises.
    """
    strict = _StrictListener()
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


def _ignore_trace(_values: Any, _label: Any) -> None:
    """Ignore the values that `trace()` prints by default: they may be a patient's."""


@dataclass(slots=True)
class Expression:
    """A FHIRPath expression, parsed when it is first needed, which takes milliseconds."""

    text: str
    _parsed: Any = None

    def tree(self) -> Any:
        """Return the parsed expression; raise FhirPathError if the text is none."""
        if self._parsed is None:
            try:
                self._parsed = parse(self.text)
            except Exception as error:  # fhirpathpy raises Exception, KeyError and others
                raise FhirPathError(f"{self.text}: {error}") from error
        return self._parsed

    def nodes(self, node: Any, using: Functions, variables: Mapping[str, Any]) -> list[Any]:
        """Evaluate on a node; return the selected nodes of fhirpathpy (with `propName`, `path`, `data`)."""
        options = {"userInvocationTable": using, "returnRawData": True, "traceFn": _ignore_trace}
        try:
            found = apply_parsed_path(node, self.tree(), dict(variables), R4, options)  # type: ignore[no-untyped-call]
        except FhirPathError:
            raise
        except Exception as error:  # as above; a rule that can't be evaluated refuses the resource
            raise FhirPathError(f"{self.text}: {error}") from error
        return found if isinstance(found, list) else [found]

    def holds(self, node: Any, using: Functions, variables: Mapping[str, Any]) -> bool:
        """Whether the expression is exactly true of the node."""
        found = self.nodes(node, using, variables)
        return len(found) == 1 and data_of(found[0]) is True


def data_of(node: Any) -> Any:
    """Return the data of a node."""
    return node.data if isinstance(node, ResourceNode) else node


def node_at(data: Any, type_: str, path: str) -> ResourceNode:
    """Return a node of a type (`Observation.component`) at a path of its resource."""
    return ResourceNode(data, type_, propName=path)  # type: ignore[no-untyped-call]


class Expressions:
    """The expressions of a set of rules, each parsed once.

    Only for texts of rules, never a submitter's: all are kept as long as the rules are.
    """

    def __init__(self) -> None:
        self._by_text: dict[str, Expression] = {}

    def __call__(self, text: str) -> Expression:
        """Return the expression of a text."""
        return self._by_text.setdefault(text, Expression(text))
