"""Literal references: their form, and the types that they and `Reference.type` name (https://hl7.org/fhir/R4/references.html)."""

from typing import Any

from cgm_proxy.core.r4.findings import Findings, Node, last
from cgm_proxy.core.r4.model import Model
from cgm_proxy.core.r4.primitives import show
from cgm_proxy.core.r4.reference_scope import Scope
from cgm_proxy.core.r4.uris import BLANK, SEARCH, SPACE


class References:
    """Judges the References of one walk."""

    def __init__(self, model: Model, scope: Scope, found: Findings) -> None:
        self._model = model
        self._scope = scope
        self._found = found

    def check(self, node: Node, allowed: tuple[str, ...]) -> None:
        """Judge a Reference that may name resources of some types; of all when none is named."""
        reference, said = node.data.get("reference"), node.data.get("type")
        type_ = self._scope.target_type(node.data, node.resource, self._model)
        self._form(node, reference)
        if isinstance(said, str) and said and not BLANK.fullmatch(said):
            self._said(node, said, type_, allowed)
        if type_ is not None and allowed and "Resource" not in allowed and type_ not in allowed:
            text = f"is {show(reference)}, a {type_}; R4 wants {' or '.join(allowed)}"
            self._add(node, "reference", text)

    def _form(self, node: Node, reference: Any) -> None:
        if not isinstance(reference, str):
            return
        if SPACE.search(reference):
            self._add(node, "reference", f"is {show(reference)}; R4 wants a URL without spaces")
        conditional = reference.partition("?")[0] in self._model.resources and "?" in reference
        if conditional and not SEARCH.fullmatch(reference):
            self._add(node, "reference", f"is {show(reference)}; a conditional reference wants Type?name=value")

    def _said(self, node: Node, said: str, type_: str | None, allowed: tuple[str, ...]) -> None:
        """Check the type that is said: a resource type, allowed here, and that of what is referred to."""
        known = self._model.system("http://hl7.org/fhir/resource-types") or frozenset()
        if said not in known:
            self._add(node, "type", f"is {show(said)}, which is no resource type")
        if "reference" not in node.data:
            return
        if type_ is not None and said != type_:
            self._add(node, "type", f"is {show(said)}, but the reference is to a {type_}")
        if allowed and "Resource" not in allowed and said not in allowed:
            self._add(node, "type", f"is {show(said)}; R4 wants {' or '.join(allowed)}")

    def _add(self, node: Node, member: str, text: str) -> None:
        at = f"{node.path}.{member}"
        self._found.add("r4-reference", at, f"{last(at)} {text}")
