"""Base validity: whether a resource is well-formed FHIR R4, before any profile.

A table-driven walk over the JSON with the element model (`core/model.py`). It decides by itself for every resource type:
unknown elements, JSON shapes, cardinalities, primitives, choices, required bindings and known code systems, reference
targets, ele-1, extensions and their contexts, narrative, contained resources. The specification's other invariants
are FHIRPath and evaluated by the caller (`Findings.invariants`).

The models of fhir.resources, from which this part of the rules began, accept too much to be a verdict (unknown codes, numbers
as text, references of wrong types, `{}`) and cost 30 times as much; all that they refuse is refused here. They still say
how XML and JSON differ (`core/elements.py`).
"""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from cgm_proxy.core.json_values import JsonObject
from cgm_proxy.core.r4 import contained, extensions
from cgm_proxy.core.r4.datatypes import SPECIAL
from cgm_proxy.core.r4.dates import not_after
from cgm_proxy.core.r4.findings import Findings, Node, last
from cgm_proxy.core.r4.model import CORE, PRIMITIVES, ElementDefinition, Invariant, Model
from cgm_proxy.core.r4.narrative import narrative_fault
from cgm_proxy.core.r4.primitives import BYTE_ORDER_MARK, fault, show
from cgm_proxy.core.r4.reference_scope import Scope
from cgm_proxy.core.r4.references import References
from cgm_proxy.core.r4.terminology import Codes
from cgm_proxy.core.r4.uris import BLANK, absolute, uri_fault

#: Primitives that are no text, or text of a form of its own.
UNTEXTUAL = frozenset({"boolean", "decimal", "integer", "positiveInt", "unsignedInt", "xhtml"})
#: How extensions are called that stand for elements of other versions of FHIR.
OTHER_VERSION = re.compile(r"http://hl7\.org/fhir/\d+\.\d+/StructureDefinition/extension-")
#: Deepest nesting that is looked at; deeper is refused.
DEEPEST = 60


class Walk:
    """One walk over one resource."""

    def __init__(self, model: Model, scope: Scope) -> None:
        self.model = model
        self.scope = scope
        self.found = Findings()
        self._codes = Codes(model, self.found)
        self._references = References(model, scope, self.found)
        self._ids: set[tuple[int, str]] = set()

    def resource(self, data: JsonObject, path: str, parent: str | None = None) -> None:
        """Examine a resource: the root, a contained one or an entry's."""
        name = data.get("resourceType")
        type_ = self.model.resource(name)
        if type_ is None:
            what = f"resourceType is {show(name)}" if "resourceType" in data else "resourceType is missing"
            self.found.add("r4-resource-type", path, f"{what}; R4 wants the name of a resource type")
            return
        node = Node(path, data, type_, data, parent)
        self.found.resources.append(node)
        self._object(node)
        if "_id" in data and "id" not in data:
            self.found.add("r4-value", f"{path}.id", f"{last(path)}.id has no value; R4 wants one or no id at all")
        if parent is None or "Bundle" in parent:
            for rule, at, text in contained.faults(node):
                self.found.add(rule, at, text)

    def _object(self, node: Node) -> None:
        if not node.data:
            self.found.add("r4-empty", node.path, f"{last(node.path)} is an empty object; leave it out or fill it")
            return
        if node.path.count(".") > DEEPEST:
            self.found.add("r4-depth", node.path, f"{last(node.path)} is nested deeper than {DEEPEST} elements")
            return
        self._own_id(node)
        seen: dict[str, str] = {}
        for key in node.data:
            self._member(node, key, seen)
        self._required(node, seen)
        self._special(node)
        borrowed = (  # another element's content has its rules not, but a parameter's parts
            "." in node.type.name and node.parent not in {node.type.name, "Parameters.parameter.part"}
        )
        for rule in () if borrowed else node.type.invariants:
            self._invariant(node, rule)

    def _own_id(self, node: Node) -> None:
        name = node.data.get("id")
        if node.data is node.resource or not isinstance(name, str):
            return
        if (id(node.resource), name) in self._ids:
            self.found.add(
                "r4-duplicate-id", f"{node.path}.id", f"{last(node.path)}.id is {show(name)}, as another element's"
            )
        self._ids.add((id(node.resource), name))

    def _member(self, node: Node, key: str, seen: dict[str, str]) -> None:
        plain = key.removeprefix("_")
        if key == "resourceType" and node.data is node.resource:
            return
        known = node.type.members.get(plain)
        where = f"{node.path}.{plain}"
        if known is None or (plain != key and known[1] not in PRIMITIVES):
            text = f"{last(f'{node.path}.{key}')} is no element of {node.type.name} in R4; leave it out or use an extension"
            self.found.add("r4-unknown-element", f"{node.path}.{key}", text)
            return
        element, type_ = known
        other = seen.setdefault(element.name, plain)
        if other != plain:
            text = f"{last(where)} stands beside {other}; R4 wants one value for {element.name}"
            self.found.add("r4-choice", where, text)
        if plain == key:
            self._value(node, element, type_, key, where)
        else:
            self._companion(node, key, element, type_, where)

    def _value(self, node: Node, element: ElementDefinition, type_: str, key: str, where: str) -> None:
        value = node.data[key]
        if element.most == 0:
            self.found.add("r4-cardinality", where, f"{last(where)} is not allowed here; leave it out")
        elif not element.many:
            self._one(node, element, type_, value, where)
        elif not isinstance(value, list):
            self.found.add("r4-json", where, f"{last(where)} is {_kind(value)}; R4 wants an array: [ … ]")
        elif not value and (node.type.name, key) != ("Meta", "profile"):  # this one the HL7 validator lets pass
            self.found.add("r4-empty", where, f"{last(where)} is an empty array; leave it out or fill it")
        else:
            beside = node.data.get("_" + key)
            for index, item in enumerate(value):
                filled = isinstance(beside, list) and index < len(beside) and beside[index]
                if not (item is None and type_ in PRIMITIVES and filled):
                    self._one(node, element, type_, item, f"{where}[{index}]")

    def _one(self, node: Node, element: ElementDefinition, type_: str, value: Any, where: str) -> None:
        if type_ in PRIMITIVES:
            self._primitive(node, element, type_, value, where)
        elif not isinstance(value, dict):
            self.found.add("r4-json", where, f"{last(where)} is {_kind(value)}; R4 wants an object: {{ … }}")
        elif type_ == "Resource":
            self.resource(value, where, f"{node.type.name}.{element.name}")
        else:
            self._complex(node, element, type_, value, where)

    def _complex(self, node: Node, element: ElementDefinition, type_: str, value: JsonObject, where: str) -> None:
        known = self.model.type(type_)
        if known is None:
            return
        within = f"{node.type.name}.{element.name}"
        inner = Node(where, value, known, node.resource, within, element.name == "modifierExtension")
        if type_ == "Extension":
            inner = replace(inner, places=node.places or extensions.places(self.model, node.type.name, node.parent))
            self._extension(inner)
            inner = replace(inner, places=frozenset())
        self._object(inner)
        if type_ == "Reference":
            self._references.check(inner, element.types[type_])
        if within != "CodeableConcept.coding":  # there one valid coding of several is enough
            self._codes.bound(element, type_, value, where)
        for rule in element.invariants:
            self._invariant(inner, rule)

    def _extension(self, node: Node) -> None:
        self.found.extensions.append(node)
        url = node.data.get("url")
        if not url and "_url" in node.data:
            self.found.add(
                "r4-required", node.path, f"{last(node.path)}.url has no value; an extension is nothing without"
            )
        if not isinstance(url, str):
            return
        nested = node.parent == "Extension.extension"  # parts of an extension have plain names
        if wrong := uri_fault(url) or (None if nested or absolute(url) else "an absolute URL"):
            self.found.add("r4-value", f"{node.path}.url", f"{last(node.path)}.url is {show(url)}; R4 wants {wrong}")
        if what := self._no_extension(url):
            text = f"{last(node.path)}.url is {show(url)}, {what}; give the URL of an extension"
            self.found.add("r4-extension-context", f"{node.path}.url", text)
        definition = self.model.extension(url)
        if definition is None:
            return
        for rule, below, text in extensions.faults(definition, node.data, node.places, modifier=node.modifier):
            at = f"{node.path}.{below}" if below else node.path
            self.found.add(rule, at, f"{last(at)} {text}")
        if code := extensions.bound(definition, node.data):
            self._codes.code(*code, f"{node.path}.valueCode")

    def _no_extension(self, url: str) -> str | None:
        """Say what a URL means that can't be an extension's; None where it may be one."""
        if url.startswith(CORE) and self.model.type(url.removeprefix(CORE)):
            return "which is a type and no extension"
        if OTHER_VERSION.match(url):
            return "which is for another version of FHIR"
        plain, versioned, _ = url.partition("|")
        return "whose version does not belong there" if versioned and self.model.extension(plain) else None

    def _primitive(self, node: Node, element: ElementDefinition, type_: str, value: Any, where: str) -> None:
        if isinstance(value, dict | list) or value is None:
            self.found.add("r4-json", where, f"{last(where)} is {_kind(value)}; R4 wants {_simple(type_)}")
            return
        if isinstance(value, str):
            value = value.replace(BYTE_ORDER_MARK, "")
        if self._is_blank(node, element, type_, value) or (value == "" and self._is_extended(node, element, where)):
            self._codes.missing(element, where)
            return
        if type_ == "xhtml":
            pointed = self._ids_of_all() if '"#' in str(value) else frozenset[str]()
            wrong = fault("string", value) or narrative_fault(value, pointed)
        else:
            wrong = fault(self._pattern(node, element, type_), value)
        if type_ == "canonical" and not wrong:
            wrong = self._canonical(element, value)
        if wrong:
            self.found.add("r4-value", where, f"{last(where)} is {show(value)}; R4 wants {wrong}")
        elif element.binding and type_ == "code":
            self._codes.code(element.binding, value, where)

    def _canonical(self, element: ElementDefinition, url: str) -> str | None:
        """Say what a canonical must mean: something in the resource after a `#`, and no resource of another type."""
        if url.startswith("#"):
            return None if url[1:] in self._ids_of_all() else "the # and id of something in the resource"
        allowed, plain = element.types["canonical"], url.partition("|")[0]
        for kind, known in (("CodeSystem", self.model.system), ("ValueSet", self.model.value_set)):
            if (
                allowed
                and kind not in allowed
                and "Resource" not in allowed
                and ":" in plain
                and known(plain) is not None
            ):
                return f"the URL of a {' or '.join(allowed)}, not of a {kind}"
        return None

    def _ids_of_all(self) -> frozenset[str]:
        """Give the ids of all elements and resources."""
        return frozenset(str(held["id"]) for held in contained.all_objects(self.scope.root) if "id" in held)

    def _is_blank(self, node: Node, element: ElementDefinition, type_: str, value: Any) -> bool:
        """Whether a text is of white space only, which the HL7 validator warns of and does not look into."""
        if not isinstance(value, str) or type_ in UNTEXTUAL or not BLANK.fullmatch(value):
            return False
        return self._pattern(node, element, type_) != "id"

    def _is_extended(self, node: Node, element: ElementDefinition, where: str) -> bool:
        """Whether an empty primitive has extensions, which say then what it means; a resource's id never has."""
        if element.name == "id" and node.data is node.resource:
            return False
        name, _, index = where.rpartition(".")[2].rstrip("]").partition("[")
        beside = node.data.get(f"_{name}")
        if index and isinstance(beside, list):
            beside = beside[int(index)] if int(index) < len(beside) else None
        return isinstance(beside, dict) and "extension" in beside

    def _pattern(self, node: Node, element: ElementDefinition, type_: str) -> str:
        return "id" if type_ == "String" and element.name == "id" and node.data is node.resource else type_

    def _companion(self, node: Node, key: str, element: ElementDefinition, type_: str, where: str) -> None:
        value = node.data[key]
        plain = node.data.get(key[1:])
        items = value if isinstance(value, list) else [value]
        if isinstance(value, list) != element.many or not items:
            shape = "an array" if element.many else "an object"
            self.found.add("r4-json", where, f"{last(f'{node.path}.{key}')} is {_kind(value)}; R4 wants {shape}")
            return
        for index, item in enumerate(items):
            at = f"{where}[{index}]" if element.many else where
            absent = isinstance(plain, list) and index < len(plain) and plain[index] is not None
            if item is None and element.many and absent:
                continue
            if not isinstance(item, dict):
                self.found.add("r4-json", at, f"{last(f'{node.path}.{key}')} is {_kind(item)}; R4 wants an object")
            elif base := self.model.type("Element"):
                places = extensions.places(self.model, type_, f"{node.type.name}.{element.name}")
                self._object(Node(at, item, base, node.resource, f"{node.type.name}.{element.name}", places=places))
                beside = plain[index] if isinstance(plain, list) and index < len(plain) else plain
                self._alone(item, beside, at)
                if beside is None:
                    self._codes.missing(element, at)

    def _alone(self, companion: JsonObject, plain: Any, where: str) -> None:
        """Check ele-1 of a primitive: an id alone is no content."""
        if companion and plain is None and "extension" not in companion:
            self.found.add(
                "ele-1", where, f"{last(where)} has neither a value nor an extension; leave it out or fill it"
            )

    def _required(self, node: Node, seen: dict[str, str]) -> None:
        for element in node.type.required:
            if element.name not in seen:
                name = element.name.removesuffix("[x]")
                text = f"{last(f'{node.path}.{name}')} is missing; R4 wants it in every {node.type.name}"
                self.found.add("r4-required", node.path, text)

    def _invariant(self, node: Node, rule: Invariant) -> None:
        native = NATIVE.get(rule.key)
        if native is None:
            self.found.invariants.append((node, rule))
        elif not native(self, node):
            self.found.add(rule.key, node.path, f"{last(node.path)}: {rule.human} ({rule.key})")

    def _special(self, node: Node) -> None:
        check = SPECIAL.get(node.type.name)
        if check:
            for rule, where, text in check(node.data):
                at = f"{node.path}.{where}" if where else node.path
                self.found.add(rule, at, f"{last(at)} {text}")


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "an array", str: "text", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _simple(type_: str) -> str:
    return {"boolean": "true or false", "decimal": "a number", "integer": "a number"}.get(type_, f"a {type_}")


def _period(_walk: Walk, node: Node) -> bool:
    start, end = node.data.get("start"), node.data.get("end")
    if not isinstance(start, str) or not isinstance(end, str) or not start or not end:
        return True
    return not fault("dateTime", start) and not fault("dateTime", end) and not_after(start, end)


def _reference(walk: Walk, node: Node) -> bool:
    """ref-1: a `#` reference names a contained resource."""
    text = node.data.get("reference")
    if not isinstance(text, str) or not text.startswith("#"):
        return True
    if text == "#":  # the container, said by what is contained
        return walk.scope.home(node.resource) is not node.resource
    return walk.scope.find(text, node.resource) is not None


def _range(_walk: Walk, node: Node) -> bool:
    """rng-2: low ≤ high, which is certain only in one unit."""
    low, high = node.data.get("low"), node.data.get("high")
    if not isinstance(low, dict) or not isinstance(high, dict):
        return True
    least, most = low.get("value"), high.get("value")
    if least is None or most is None or low.get("unit") != high.get("unit"):
        return False
    return bool(fault("decimal", least) or fault("decimal", most) or least <= most)


def _has(data: JsonObject, name: str) -> bool:
    return name in data or f"_{name}" in data


def _always(_walk: Walk, _node: Node) -> bool:
    return True


#: Invariants decided here and not by FHIRPath: some for speed, some because the specification's expression needs what a
#: FHIRPath engine does not have (htmlChecks). dom-2 to dom-5 are checked with the container, narrative with its div.
NATIVE: dict[str, Callable[[Walk, Node], bool]] = {
    "per-1": _period,
    "ref-1": _reference,
    "rng-2": _range,
    **dict.fromkeys(("dom-2", "dom-3", "dom-4", "dom-5", "txt-1", "txt-2"), _always),
    "qty-3": lambda _walk, node: not _has(node.data, "code") or _has(node.data, "system"),
    **dict.fromkeys(("bdl-7", "bdl-8"), _always),
    "att-1": lambda _walk, node: "data" not in node.data or "contentType" in node.data,
}


def walk(model: Model, scope: Scope, data: JsonObject, path: str) -> Findings:
    """Examine one resource and give the findings."""
    walking = Walk(model, scope)
    walking.resource(data, path)
    return walking.found
