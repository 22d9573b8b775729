"""What an expression reads and gives, found without evaluating it.

The linter uses it to refuse paths that no element has, unknown functions and expressions that are never true or false;
the memory of shapes (`core/shapes.py`) uses it to know which values can influence a verdict.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Literal

from cgm_proxy.core.r4.model import PRIMITIVES, Model
from cgm_proxy.core.rules.fhirpath import FhirPathError, expression

How = Literal["value", "length"]
Types = frozenset[str] | None  # None: not known
BOOLEAN = frozenset({"boolean"})
NUMBER = frozenset({"decimal"})
STRING = frozenset({"string"})
#: FHIRPath's own types beside FHIR's.
SYSTEM = frozenset({"Boolean", "String", "Integer", "Decimal", "Date", "DateTime", "Time", "Any"})


@dataclass(frozen=True, slots=True)
class Read:
    """An element whose content influences the result; `how` is `length` when only its number of characters does."""

    type: str
    element: str
    how: How = "value"


@dataclass(frozen=True, slots=True)
class StaticType:
    """What an expression gives: the possible types, and the elements that the items are."""

    types: Types
    origins: frozenset[Read] = frozenset()
    own: bool = False
    """Whether it may be the resource itself that is judged."""


@dataclass(slots=True)
class Analysis:
    """What was found: problems for the linter, reads for the memory."""

    problems: list[str] = field(default_factory=list)
    reads: set[Read] = field(default_factory=set)
    everything: bool = False


@dataclass(frozen=True, slots=True)
class Function:
    """A FHIRPath function: how many parameters, what it gives, whether it reads its input's content.

    `gives` is the result's types, `same` for the input's, or `any`; `inner` says that the parameters are evaluated on each item.
    """

    arity: tuple[int, ...]
    gives: Types | Literal["same", "any", "type", "resource"]
    reads: bool = True
    inner: bool = False


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
#: Functions that see all below a node, whatever it is called.
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
        """Give what a node of the syntax tree gives when evaluated on `focus`."""
        kind, parts = node.get("type"), node.get("children", [])
        if kind == "InvocationExpression":
            for part in parts:
                focus = self.infer(part, focus)
            return focus
        if kind in LOGIC | COMPARE | COUNT:
            return self.operator(kind, [self.infer(part, focus) for part in parts])
        if kind == "UnionExpression":
            sides = [self.infer(part, focus) for part in parts]
            for side in sides:  # equal items become one
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
        """Give what a member, function, variable or parenthesis gives."""
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
        """Give an operator's type; it reads both sides."""
        for side in sides:
            self.read(side)
        return StaticType(NUMBER if kind in COUNT else BOOLEAN)

    def typed(self, node: Any, left: StaticType) -> StaticType:
        """Give what `x is T` and `x as T` give."""
        wanted = node["children"][1]["text"].rpartition(".")[2].strip("`")
        self.known_type(wanted)
        if node["terminalNodeText"][0] == "is":
            return StaticType(BOOLEAN)
        return StaticType(frozenset({wanted}), left.origins, left.own)

    def known_type(self, name: str) -> None:
        """Note a type that FHIR R4 does not have."""
        if name not in SYSTEM | PRIMITIVES and self.model.type(name) is None:
            self.found.problems.append(f"unknown type {name}{meant(name, (*SYSTEM, *PRIMITIVES, *self.model.types))}")

    def member(self, name: str, focus: StaticType) -> StaticType:
        """Give the elements that a name selects."""
        if focus.types is None:
            return StaticType(None, frozenset({Read("*", name)}))
        if name in focus.types:  # a path may begin with the type's own name: Observation.code
            return focus
        types: set[str] = set()
        origins: set[Read] = set()
        for holder in focus.types:
            type_ = self.model.type(holder) if holder not in SYSTEM else None
            if holder == "Resource" or name == "resourceType":
                return StaticType(None, frozenset({Read("*", name)}))
            element = (type_.elements.get(name) or type_.elements.get(name + "[x]")) if type_ else None
            if element:
                types |= set(element.types)
                origins.add(Read(holder, element.name))
        if not origins:
            held = [e for t in focus.types if t not in SYSTEM and (found := self.model.type(t)) for e in found.elements]
            near = meant(name, (e.removesuffix("[x]") for e in held))
            self.found.problems.append(f"{' or '.join(sorted(focus.types)) or 'nothing'} has no element `{name}`{near}")
            return StaticType(None)
        return StaticType(None if types & {"Resource"} else frozenset(types), frozenset(origins))

    def function(self, node: Any, focus: StaticType) -> StaticType:
        """Give what a function gives; note one that is unknown or has too many parameters."""
        name = node["children"][0]["text"].strip("`")
        given = node["children"][1]["children"] if len(node["children"]) > 1 else []
        function = FUNCTIONS.get(name)
        if function is None or len(given) not in function.arity:
            much = "unknown function" if function is None else f"{len(given)} parameters are wrong for"
            near = meant(name, FUNCTIONS) if function is None else ""
            self.found.problems.append(f"{much} {name}(){near}")
            return StaticType(None)
        self.found.everything |= name in SEES_ALL or (name == "conformsTo" and focus.own)
        if function.gives == "type" or name == "is":
            return self.of_type(given[0], focus, name)
        if function.reads:
            self.read(focus, "length" if name == "length" else "value")
        inner = [self.infer(part, focus if function.inner or name == "iif" else self.root) for part in given]
        for result in inner:
            self.read(result)
        return self.given(name, function, focus, inner)

    def given(self, name: str, function: Function, focus: StaticType, inner: list[StaticType]) -> StaticType:
        """Give a function's result."""
        if name == "toString":
            return StaticType(STRING, focus.origins)
        if function.gives == "same":
            return focus
        if name == "iif":
            return _any_of(inner[1:])
        if function.gives == "resource":
            return StaticType(None, frozenset())
        if name == "select":
            return inner[0]
        return StaticType(None if isinstance(function.gives, str) else function.gives)

    def of_type(self, node: Any, focus: StaticType, name: str) -> StaticType:
        """Give what ofType(T), as(T) and is(T) give."""
        wanted = str(node["text"]).strip("`").rpartition(".")[2]
        self.known_type(wanted)
        if name == "is":
            return StaticType(BOOLEAN)
        if focus.types is not None and wanted not in focus.types and wanted not in self.model.resources:
            self.found.problems.append(f"{' or '.join(sorted(focus.types))} is never a {wanted}")
        return StaticType(frozenset({wanted}), focus.origins, focus.own)

    def read(self, result: StaticType, how: How = "value") -> None:
        """Note that the content of what a result is made of influences the verdict."""
        self.found.reads |= {Read(r.type, r.element, how) for r in result.origins}


def meant(name: str, known: Iterable[str]) -> str:
    """Give the end of a message that names what was probably meant; nothing where nothing is near."""
    near = get_close_matches(name, sorted(set(known)), 1)
    return f"; did you mean {near[0]}?" if near else ""


def _name(node: Any) -> str:
    while node.get("type") != "Identifier":
        node = node["children"][0]
    return str(node["text"]).strip("`")


def _any_of(results: Sequence[StaticType], origins: frozenset[Read] = frozenset()) -> StaticType:
    return StaticType(_union(one.types for one in results), origins, any(one.own for one in results))


def _union(sides: Iterable[Types]) -> Types:
    listed = list(sides)
    return None if any(side is None for side in listed) else frozenset().union(*(side or () for side in listed))


def analyse(model: Model, text: str, root: str, at: str = "") -> tuple[Analysis, Types]:
    """Analyse an expression on the nodes that `at` selects in a resource of type `root`; give what it results in.

    A syntax error is a problem like any other.
    """
    analyser = Analyser(model, root)
    focus = analyser.root
    result = StaticType(None)
    for step in (at, text):
        if not step:
            continue
        try:
            tree = expression(step).tree()
        except FhirPathError as error:
            analyser.found.problems.append(f"no FHIRPath: {str(error)[:120]}")
            return analyser.found, None
        result = focus = analyser.infer(tree["children"][0], focus)
    analyser.read(result)
    return analyser.found, result.types
