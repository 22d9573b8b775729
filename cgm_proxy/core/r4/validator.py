"""Base validity: whether a resource is well-formed FHIR R4, before any profile.

One walk over the JSON, driven by the definitions (`model.py`). For every resource type it checks unknown elements, JSON types,
cardinalities, primitives, choices, required bindings and known code systems, reference targets, ele-1, extensions and their
contexts, narrative and contained resources. The other invariants of the specification are FHIRPath, which the caller
evaluates (`Findings.invariants`).

The models of fhir.resources cannot do this: they accept unknown codes, numbers as text, references to wrong types and `{}`,
and take 30 times as long. Everything that they refuse is refused here.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from cgm_proxy.core.json_values import JsonObject, nested_objects
from cgm_proxy.core.r4.contained import contained_faults
from cgm_proxy.core.r4.datatypes import TYPE_CHECKS
from cgm_proxy.core.r4.extensions import bound_code, contexts_of, extension_faults
from cgm_proxy.core.r4.findings import Findings, Node, relative_path
from cgm_proxy.core.r4.invariants import NATIVE
from cgm_proxy.core.r4.model import CORE, PRIMITIVES, ElementDefinition, Invariant, Model
from cgm_proxy.core.r4.narrative import narrative_fault
from cgm_proxy.core.r4.primitives import BYTE_ORDER_MARK, fault, show
from cgm_proxy.core.r4.reference_scope import Scope
from cgm_proxy.core.r4.references import reference_faults
from cgm_proxy.core.r4.terminology import CodeChecks
from cgm_proxy.core.r4.uris import BLANK, absolute, uri_fault

#: Primitives that are not text, or text of a form of its own.
NOT_TEXT = frozenset({"boolean", "decimal", "integer", "positiveInt", "unsignedInt", "xhtml"})

#: URLs of the extensions that represent elements of other versions of FHIR (https://hl7.org/fhir/R4/versions.html#extensions).
OTHER_VERSION = re.compile(r"http://hl7\.org/fhir/\d+\.\d+/StructureDefinition/extension-")

#: Elements that are nested deeper are refused.
DEEPEST = 60

#: JSON values in words; any other type is a number.
JSON_KINDS: Mapping[type, str] = {
    dict: "an object",
    list: "an array",
    str: "text",
    bool: "a boolean",
    type(None): "null",
}

#: What the JSON of a primitive type must be, for types that are not named with "a".
PRIMITIVE_KINDS = {
    "boolean": "true or false",
    "decimal": "a number",
    "id": "an id",
    "instant": "an instant",
    "integer": "a number",
    "oid": "an oid",
    "String": "text",
    "unsignedInt": "an unsignedInt",
}


def do_not_pause() -> None:
    """Do nothing between two steps of an examination."""


def validate(
    model: Model, scope: Scope, resource: JsonObject, path: str, between: Callable[[], None] = do_not_pause
) -> Findings:
    """Return the findings for one resource; `path` is what the paths of its issues begin with.

    `between` is called before each of its objects.
    """
    walk = _Walk(model, scope, between)
    walk.resource(resource, path)
    return walk.findings


class _Walk:
    """One walk over one resource."""

    def __init__(self, model: Model, scope: Scope, between: Callable[[], None]) -> None:
        self.findings = Findings()
        self._model = model
        self._scope = scope
        self._between = between
        self._codes = CodeChecks(model, self.findings)
        self._ids: set[tuple[int, str]] = set()
        """The ids of elements, each with the identity of its resource."""
        self._all_ids: frozenset[str] | None = None

    def resource(self, data: JsonObject, path: str, parent: str | None = None) -> None:
        """Check a resource: the outermost one, a contained one or that of an entry."""
        name = data.get("resourceType")
        type_ = self._model.resource(name)
        if type_ is None:
            what = f"resourceType is {show(name)}" if "resourceType" in data else "resourceType is missing"
            self.findings.add("r4-resource-type", path, f"{what}; R4 requires the name of a resource type")
            return
        node = Node(path, data, type_, data, parent)
        self.findings.resources.append(node)
        self._object(node)
        if "_id" in data and "id" not in data:
            self.findings.add_fault(path, ("r4-value", "id", "has no value; give it one or leave the id out"))
        if parent is None or "Bundle" in parent:
            for contained_fault in contained_faults(data):
                self.findings.add_fault(path, contained_fault)

    def _object(self, node: Node) -> None:
        """Check an object: its members, what is missing, and the rules of its type."""
        self._between()
        if not node.data:
            self.findings.add_fault(node.path, ("r4-empty", "", "is an empty object; leave it out or fill it"))
            return
        if node.path.count(".") > DEEPEST:
            self.findings.add_fault(node.path, ("r4-depth", "", f"is nested deeper than {DEEPEST} elements"))
            return
        self._element_id(node)
        seen: dict[str, str] = {}
        for key in node.data:
            self._member(node, key, seen)
        for element in node.type.required:
            if element.name not in seen:
                name = f"{node.path}.{element.name.removesuffix('[x]')}"
                text = f"{relative_path(name)} is missing; R4 requires it in every {node.type.name}"
                self.findings.add("r4-required", node.path, text)
        if check := TYPE_CHECKS.get(node.type.name):
            for type_fault in check(node.data):
                self.findings.add_fault(node.path, type_fault)
        # A content reference takes over the elements of another element, but not its invariants; except in Parameters.
        own_type = "." not in node.type.name or node.parent in {node.type.name, "Parameters.parameter.part"}
        for invariant in node.type.invariants if own_type else ():
            self._invariant(node, invariant)

    def _element_id(self, node: Node) -> None:
        name = node.data.get("id")
        if node.data is node.resource or not isinstance(name, str):
            return
        if (id(node.resource), name) in self._ids:
            text = f"is {show(name)}, the id of another element; give each its own"
            self.findings.add_fault(node.path, ("r4-duplicate-id", "id", text))
        self._ids.add((id(node.resource), name))

    def _invariant(self, node: Node, invariant: Invariant) -> None:
        holds = NATIVE.get(invariant.key)
        if holds is None:
            self.findings.invariants.append((node, invariant))
        elif not holds(self._scope, node):
            text = f"{relative_path(node.path)}: {invariant.human} ({invariant.key})"
            self.findings.add(invariant.key, node.path, text)

    def _member(self, node: Node, key: str, seen: dict[str, str]) -> None:
        """Check one member; `seen` maps the elements found so far to their JSON names."""
        name = key.removeprefix("_")
        if key == "resourceType" and node.data is node.resource:
            return
        known = node.type.members.get(name)
        path = f"{node.path}.{name}"
        if known is None or (name != key and known[1] not in PRIMITIVES):
            text = f"is not an element of {node.type.name} in R4; leave it out or use an extension"
            self.findings.add_fault(node.path, ("r4-unknown-element", key, text))
            return
        element, type_ = known
        other = seen.setdefault(element.name, name)
        if other != name:
            self.findings.add_fault(
                path, ("r4-choice", "", f"is beside {other}; R4 allows one value for {element.name}")
            )
        if name == key:
            self._element(node, element, type_, key, path)
        else:
            self._companion(node, key, element, type_, path)

    def _element(self, node: Node, element: ElementDefinition, type_: str, key: str, path: str) -> None:
        """Check the value of an element, or each of its values."""
        value = node.data[key]
        if element.most == 0:
            self.findings.add_fault(path, ("r4-cardinality", "", "is not allowed here; leave it out"))
        elif not element.many:
            self._value(node, element, type_, value, path)
        elif not isinstance(value, list):
            self.findings.add_fault(path, ("r4-json", "", f"is {_kind(value)}; R4 requires an array: [ … ]"))
        elif not value and (node.type.name, key) != (
            "Meta",
            "profile",
        ):  # the HL7 validator accepts an empty meta.profile
            self.findings.add_fault(path, ("r4-empty", "", "is an empty array; leave it out or fill it"))
        else:
            companions = node.data.get("_" + key)
            for index, item in enumerate(value):
                companion = _item(companions, index) if isinstance(companions, list) else None
                if not (item is None and type_ in PRIMITIVES and companion):
                    self._value(node, element, type_, item, f"{path}[{index}]")

    def _value(self, node: Node, element: ElementDefinition, type_: str, value: Any, path: str) -> None:
        if type_ in PRIMITIVES:
            self._primitive(node, element, type_, value, path)
        elif not isinstance(value, dict):
            self.findings.add_fault(path, ("r4-json", "", f"is {_kind(value)}; R4 requires an object: {{ … }}"))
        elif type_ == "Resource":
            self.resource(value, path, f"{node.type.name}.{element.name}")
        else:
            self._complex(node, element, type_, value, path)

    def _complex(self, node: Node, element: ElementDefinition, type_: str, value: JsonObject, path: str) -> None:
        known = self._model.type(type_)
        if known is None:
            return
        parent = f"{node.type.name}.{element.name}"
        inner = Node(path, value, known, node.resource, parent, element.name == "modifierExtension")
        if type_ == "Extension":
            contexts = node.contexts or contexts_of(self._model, node.type.name, node.parent)
            self._extension(replace(inner, contexts=contexts))
        self._object(inner)
        if type_ == "Reference":
            for reference_fault in reference_faults(self._model, self._scope, inner, element.types[type_]):
                self.findings.add_fault(path, reference_fault)
        if parent != "CodeableConcept.coding":  # of several codings, one valid one is enough
            self._codes.coded_element(element, type_, value, path)
        for invariant in element.invariants:
            self._invariant(inner, invariant)

    def _extension(self, node: Node) -> None:
        self.findings.extensions.append(node)
        url = node.data.get("url")
        if not url and "_url" in node.data:
            text = f"{relative_path(node.path)}.url has no value; every extension needs a URL"
            self.findings.add("r4-required", node.path, text)
        if not isinstance(url, str):
            return
        nested = node.parent == "Extension.extension"  # the parts of an extension have plain names
        if expected := uri_fault(url) or (None if nested or absolute(url) else "an absolute URL"):
            self.findings.add_fault(node.path, ("r4-value", "url", f"is {show(url)}; R4 requires {expected}"))
        if other := self._other_meaning(url):
            text = f"is {show(url)}, {other}; give the URL of an extension"
            self.findings.add_fault(node.path, ("r4-extension-context", "url", text))
        definition = self._model.extension(url)
        if definition is None:
            return
        for extension_fault in extension_faults(definition, node.data, node.contexts, modifier=node.modifier):
            self.findings.add_fault(node.path, extension_fault)
        if bound := bound_code(definition, node.data):
            self._codes.code(*bound, f"{node.path}.valueCode")

    def _other_meaning(self, url: str) -> str | None:
        """Return what a URL means that cannot be an extension's; None if it can."""
        if url.startswith(CORE) and self._model.type(url.removeprefix(CORE)):
            return "which is a type and not an extension"
        if OTHER_VERSION.match(url):
            return "which is for another version of FHIR"
        plain, versioned, _ = url.partition("|")
        return "whose version does not belong there" if versioned and self._model.extension(plain) else None

    def _primitive(self, node: Node, element: ElementDefinition, type_: str, value: Any, path: str) -> None:
        if isinstance(value, dict | list) or value is None:
            kind = PRIMITIVE_KINDS.get(type_, f"a {type_}")
            self.findings.add_fault(path, ("r4-json", "", f"is {_kind(value)}; R4 requires {kind}"))
            return
        is_resource_id = element.name == "id" and node.data is node.resource
        if isinstance(value, str):
            value = value.replace(BYTE_ORDER_MARK, "")
            # The HL7 validator only warns of text of white space, and accepts an empty primitive with extensions.
            blank = type_ not in NOT_TEXT and not is_resource_id and type_ != "id" and BLANK.fullmatch(value)
            if blank or (not value and not is_resource_id and _has_extension(node, path)):
                self._codes.missing(element, path)
                return
        if type_ == "xhtml":
            ids = self._ids_to_link() if '"#' in str(value) else frozenset[str]()
            expected = fault("string", value) or narrative_fault(value, ids)
        else:
            expected = fault("id" if is_resource_id else type_, value)
        if type_ == "canonical" and not expected:
            expected = self._canonical_fault(element, value)
        if expected:
            self.findings.add_fault(path, ("r4-value", "", f"is {show(value)}; R4 requires {expected}"))
        elif element.binding and type_ == "code":
            self._codes.code(element.binding, value, path)

    def _canonical_fault(self, element: ElementDefinition, url: str) -> str | None:
        """Return what R4 requires instead of a canonical that refers to nothing, or to a resource of another type."""
        if url.startswith("#"):
            return None if url[1:] in self._ids_to_link() else "the # and id of something in the resource"
        allowed, plain = element.types["canonical"], url.partition("|")[0]
        if not allowed or "Resource" in allowed or ":" not in plain:
            return None
        for kind, known in (("CodeSystem", self._model.system), ("ValueSet", self._model.value_set)):
            if kind not in allowed and known(plain) is not None:
                return f"the URL of a {' or '.join(allowed)}, not of a {kind}"
        return None

    def _ids_to_link(self) -> frozenset[str]:
        """Return the ids of all elements and resources."""
        if self._all_ids is None:
            self._all_ids = frozenset(str(item["id"]) for item in nested_objects(self._scope.root) if "id" in item)
        return self._all_ids

    def _companion(self, node: Node, key: str, element: ElementDefinition, type_: str, path: str) -> None:
        """Check `_name`, which holds the id and extensions of a primitive."""
        companions, values = node.data[key], node.data.get(key[1:])
        key_path = relative_path(f"{node.path}.{key}")
        items = companions if isinstance(companions, list) else [companions]
        if isinstance(companions, list) != element.many or not items:
            expected = "an array" if element.many else "an object"
            self.findings.add("r4-json", path, f"{key_path} is {_kind(companions)}; R4 requires {expected}")
            return
        base, parent = self._model.type("Element"), f"{node.type.name}.{element.name}"
        contexts = contexts_of(self._model, type_, parent)
        for index, item in enumerate(items):
            item_path = f"{path}[{index}]" if element.many else path
            if item is None and element.many and isinstance(values, list) and _item(values, index) is not None:
                continue
            if not isinstance(item, dict):
                self.findings.add("r4-json", item_path, f"{key_path} is {_kind(item)}; R4 requires an object")
            elif base is not None:
                self._object(Node(item_path, item, base, node.resource, parent, contexts=contexts))
                value = values[index] if isinstance(values, list) and index < len(values) else values
                if value is None:
                    if item and "extension" not in item:
                        text = "has neither a value nor an extension; leave it out or fill it"
                        self.findings.add_fault(item_path, ("ele-1", "", text))
                    self._codes.missing(element, item_path)


def _has_extension(node: Node, path: str) -> bool:
    """Whether the primitive at a path has extensions."""
    name, _, index = path.rpartition(".")[2].rstrip("]").partition("[")
    companion = node.data.get(f"_{name}")
    if index and isinstance(companion, list):
        companion = _item(companion, int(index))
    return isinstance(companion, dict) and "extension" in companion


def _item(values: list[Any], index: int) -> Any:
    return values[index] if index < len(values) else None


def _kind(value: Any) -> str:
    return JSON_KINDS.get(type(value), "a number")
