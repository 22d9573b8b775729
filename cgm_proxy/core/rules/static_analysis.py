"""Static analysis of FHIRPath: which elements an expression reads and of which types its result is, without evaluating it.

The linter uses it to refuse paths that no element has, unknown functions and expressions that are never true or false. The
verdict cache (`verdict_cache.py`) uses it to know which values can influence a verdict.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Literal

from cgm_proxy.core.r4.model import PRIMITIVES, Model
from cgm_proxy.core.rules.fhirpath import Expressions, FhirPathError

How = Literal["value", "length"]
#: The possible types of a result; None if they are not known.
Types = frozenset[str] | None
BOOLEAN = frozenset({"boolean"})
NUMBER = frozenset({"decimal"})
STRING = frozenset({"string"})
#: FHIRPath's own types, in addition to FHIR's.
SYSTEM = frozenset({"Boolean", "String", "Integer", "Decimal", "Date", "DateTime", "Time", "Any"})


@dataclass(frozen=True, slots=True)
class ElementRead:
    """An element whose content influences the result; `how` is `length` if only its number of characters does."""

    type: str
    element: str
    how: How = "value"


@dataclass(frozen=True, slots=True)
class StaticType:
    """The result of an expression: its possible types, and the elements that its items may be."""

    types: Types
    origins: frozenset[ElementRead] = frozenset()
    own: bool = False
    """Whether the result may be the very resource that is judged."""


@dataclass(slots=True)
class Analysis:
    """What was found: the problems of the expression, and the elements that it reads."""

    problems: list[str] = field(default_factory=list)
    reads: set[ElementRead] = field(default_factory=set)
    everything: bool = False
    """Whether it may read any element."""


@dataclass(frozen=True, slots=True)
class Function:
    """A FHIRPath function: how many parameters it takes, what it returns, and whether it reads the content of its input."""

    arity: tuple[int, ...]
    returns: Types | Literal["same", "any", "type", "resource"]
    """Types; or `same` as the input's, of the `type` that is the parameter, a `resource`, or `any`."""
    reads: bool = True
    inner: bool = False
    """Whether the parameters are evaluated on each item of the input."""


FUNCTIONS: Mapping[str, Function] = {
    **dict.fromkeys(("empty", "count", "hasValue"), Function((0,), BOOLEAN, reads=False)),
    "count": Function((0,), NUMBER, reads=False),
    "exists": Function((0, 1), BOOLEAN, reads=False, inner=True),
    "all": Function((1,), BOOLEAN, reads=False, inner=True),
    "where": Function((1,), "same", reads=False, inner=True),
    "select": Function((1,), "any", reads=True, inner=True),
    **dict.fromkeys(("first", "last", "tail", "single"), Function((0,), "same", reads=False)),
    **dict.fromkeys(("skip", "take"), Function((1,), "same", reads=False)),
    **dict.fromkeys(("ofType", "as"), Function((1,), "type", reads=False)),
    "is": Function((1,), BOOLEAN, reads=False),
    "distinct": Function((0,), "same"),
    "isDistinct": Function((0,), BOOLEAN),
    **dict.fromkeys(("intersect", "exclude", "union", "combine"), Function((1,), "same")),
    **dict.fromkeys(("subsetOf", "supersetOf"), Function((1,), BOOLEAN)),
    **dict.fromkeys(("not", "allTrue", "anyTrue", "allFalse", "anyFalse"), Function((0,), BOOLEAN)),
    **dict.fromkeys(("contains", "startsWith", "endsWith", "matches"), Function((1,), BOOLEAN)),
    **dict.fromkeys(("conformsTo", "memberOf"), Function((1,), BOOLEAN)),
    "knownCodes": Function((0,), BOOLEAN),
    **dict.fromkeys(
        ("toInteger", "toDecimal", "abs", "ceiling", "floor", "round", "truncate"), Function((0, 1), NUMBER)
    ),
    **dict.fromkeys(("upper", "lower", "trim", "targetType"), Function((0,), STRING)),
    **dict.fromkeys(("substring", "replace", "replaceMatches", "join", "split"), Function((0, 1, 2), STRING)),
    "indexOf": Function((1,), NUMBER),
    "toString": Function((0,), STRING, reads=False),
    "length": Function((0,), NUMBER),
    "iif": Function((2, 3), "any"),
    "trace": Function((1, 2), "same", reads=False),
    "resolve": Function((0,), "resource"),
    "extension": Function((1,), frozenset({"Extension"}), reads=False),
    **dict.fromkeys(("descendants", "children"), Function((0,), "any")),
    "repeat": Function((1,), "any", inner=True),
}
#: Functions that read all elements below a node, whatever their names are.
SEES_ALL = frozenset({"descendants", "children", "repeat"})
LOGIC = frozenset({"AndExpression", "OrExpression", "ImpliesExpression"})
COMPARE = frozenset({"EqualityExpression", "InequalityExpression", "MembershipExpression"})
COUNT = frozenset({"AdditiveExpression", "MultiplicativeExpression", "PolarityExpression"})
LITERALS = {
    "StringLiteral": STRING,
    "NumberLiteral": NUMBER,
    "BooleanLiteral": BOOLEAN,
    "NullLiteral": frozenset[str](),
}


class Analyser:
    """Analyses one expression against a model; `root` is the type of %resource."""

    def __init__(self, model: Model, root: str) -> None:
        self.model = model
        self.root = StaticType(frozenset({root}) if model.type(root) else None, own=True)
        self.found = Analysis()

    def infer(self, node: Any, focus: StaticType) -> StaticType:
        """Return the result of a node of the syntax tree on `focus`."""
        kind, parts = node.get("type"), node.get("children", [])
        if kind == "InvocationExpression":
            for part in parts:
                focus = self.infer(part, focus)
            return focus
        if kind in LOGIC | COMPARE | COUNT:
            return self.operator(kind, [self.infer(part, focus) for part in parts])
        if kind == "UnionExpression":
            sides = [self.infer(part, focus) for part in parts]
            for side in sides:  # their content is read: a union drops equal items
                self.read(side)
            return _any_of(sides, frozenset().union(*(s.origins for s in sides)))
        if kind == "IndexerExpression":
            self.read(self.infer(parts[1], focus))
            return self.infer(parts[0], focus)
        if kind == "TypeExpression":
            return self.typed(node, self.infer(parts[0], focus))
        if kind in LITERALS:
            return StaticType(LITERALS[kind])
        return self.leaf(kind, node, parts, focus)

    def leaf(self, kind: str, node: Any, parts: list[Any], focus: StaticType) -> StaticType:
        """Return the result of a member, function, variable or parenthesis."""
        if kind == "MemberInvocation":
            return self.member(_name(node), focus)
        if kind == "FunctionInvocation":
            return self.function(parts[0], focus)
        if kind == "ThisInvocation":
            return focus
        if kind == "ExternalConstantTerm":
            known = {
                "resource": self.root,
                "rootResource": StaticType(None, own=True),
                "context": focus,
                "ucum": StaticType(STRING),
            }
            if _name(node) not in known:
                self.found.problems.append(f"unknown variable %{_name(node)}; known: {', '.join(known)}")
            return known.get(_name(node), StaticType(None))
        result = focus if parts else StaticType(None)
        for part in parts[:1]:
            result = self.infer(part, focus)
        return result

    def operator(self, kind: str, sides: list[StaticType]) -> StaticType:
        """Return the result of an operator; it reads both sides."""
        for side in sides:
            self.read(side)
        return StaticType(NUMBER if kind in COUNT else BOOLEAN)

    def typed(self, node: Any, left: StaticType) -> StaticType:
        """Return the result of `x is T` and `x as T`."""
        name = node["children"][1]["text"].rpartition(".")[2].strip("`")
        self.check_type(name)
        if node["terminalNodeText"][0] == "is":
            return StaticType(BOOLEAN)
        return StaticType(frozenset({name}), left.origins, left.own)

    def check_type(self, name: str) -> None:
        """Record a problem if FHIR R4 has no such type."""
        if name not in SYSTEM | PRIMITIVES and self.model.type(name) is None:
            self.found.problems.append(
                f"unknown type {name}{suggestion(name, (*SYSTEM, *PRIMITIVES, *self.model.types))}"
            )

    def member(self, name: str, focus: StaticType) -> StaticType:
        """Return the elements that a name selects."""
        if focus.types is None:
            return StaticType(None, frozenset({ElementRead("*", name)}))
        if name in focus.types:  # a path may begin with the type's own name: Observation.code
            return focus
        types: set[str] = set()
        origins: set[ElementRead] = set()
        for holder in focus.types:
            type_ = self.model.type(holder) if holder not in SYSTEM else None
            if holder == "Resource" or name == "resourceType":
                return StaticType(None, frozenset({ElementRead("*", name)}))
            element = (type_.elements.get(name) or type_.elements.get(name + "[x]")) if type_ else None
            if element:
                types |= set(element.types)
                origins.add(ElementRead(holder, element.name))
        if not origins:
            held = [e for t in focus.types if t not in SYSTEM and (found := self.model.type(t)) for e in found.elements]
            near = suggestion(name, (e.removesuffix("[x]") for e in held))
            holders = " or ".join(sorted(focus.types)) or "an empty result"
            self.found.problems.append(f"{holders} has no element `{name}`{near}")
            return StaticType(None)
        return StaticType(None if types & {"Resource"} else frozenset(types), frozenset(origins))

    def function(self, node: Any, focus: StaticType) -> StaticType:
        """Return the result of a function; record a problem if it is unknown or its parameters are too many or too few."""
        name = node["children"][0]["text"].strip("`")
        parameters = node["children"][1]["children"] if len(node["children"]) > 1 else []
        function = FUNCTIONS.get(name)
        if function is None:
            self.found.problems.append(f"unknown function {name}(){suggestion(name, FUNCTIONS)}")
            return StaticType(None)
        if len(parameters) not in function.arity:
            allowed = " or ".join(str(number) for number in function.arity)
            self.found.problems.append(f"{name}() takes {allowed} parameters, not {len(parameters)}")
            return StaticType(None)
        self.found.everything |= name in SEES_ALL or (name == "conformsTo" and focus.own)
        if function.returns == "type" or name == "is":
            return self.of_type(parameters[0], focus, name)
        if function.reads:
            self.read(focus, "length" if name == "length" else "value")
        inner = [self.infer(part, focus if function.inner or name == "iif" else self.root) for part in parameters]
        for result in inner:
            self.read(result)
        return self.result_of(name, function, focus, inner)

    def result_of(self, name: str, function: Function, focus: StaticType, inner: list[StaticType]) -> StaticType:
        """Return the result of a function; `inner` are the results of its parameters."""
        if name == "toString":
            return StaticType(STRING, focus.origins)
        if function.returns == "same":
            return focus
        if name == "iif":
            return _any_of(inner[1:])
        if function.returns == "resource":
            return StaticType(None, frozenset())
        if name == "select":
            return inner[0]
        return StaticType(None if isinstance(function.returns, str) else function.returns)

    def of_type(self, node: Any, focus: StaticType, name: str) -> StaticType:
        """Return the result of ofType(T), as(T) and is(T)."""
        type_ = str(node["text"]).strip("`").rpartition(".")[2]
        self.check_type(type_)
        if name == "is":
            return StaticType(BOOLEAN)
        if focus.types is not None and type_ not in focus.types and type_ not in self.model.resources:
            self.found.problems.append(f"the element is {' or '.join(sorted(focus.types))}, never {type_}")
        return StaticType(frozenset({type_}), focus.origins, focus.own)

    def read(self, result: StaticType, how: How = "value") -> None:
        """Record that the content of the elements in a result influences the verdict."""
        self.found.reads |= {ElementRead(r.type, r.element, how) for r in result.origins}


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return the end of a message that suggests the most similar known name; "" if none is similar."""
    near = get_close_matches(name, sorted(set(known)), 1)
    return f"; did you mean {near[0]}?" if near else ""


def _name(node: Any) -> str:
    while node.get("type") != "Identifier":
        node = node["children"][0]
    return str(node["text"]).strip("`")


def _any_of(results: Sequence[StaticType], origins: frozenset[ElementRead] = frozenset()) -> StaticType:
    return StaticType(_union(result.types for result in results), origins, any(result.own for result in results))


def _union(sides: Iterable[Types]) -> Types:
    listed = list(sides)
    return None if any(side is None for side in listed) else frozenset().union(*(side or () for side in listed))


def analyse(model: Model, expressions: Expressions, text: str, root: str, at: str = "") -> tuple[Analysis, Types]:
    """Analyse an expression on the nodes that `at` selects in a resource of type `root`; return the types of its result too.

    A syntax error is a problem like any other.
    """
    analyser = Analyser(model, root)
    focus = analyser.root
    result = StaticType(None)
    for step in (at, text):
        if not step:
            continue
        try:
            tree = expressions(step).tree()
        except FhirPathError as error:
            analyser.found.problems.append(f"not FHIRPath: {str(error)[:120]}")
            return analyser.found, None
        result = focus = analyser.infer(tree["children"][0], focus)
    analyser.read(result)
    return analyser.found, result.types
