"""References: their form, and the types that they and `Reference.type` name (https://hl7.org/fhir/R4/references.html)."""

from collections.abc import Iterator

from cgm_proxy.core.r4.findings import Fault, Node
from cgm_proxy.core.r4.model import Model
from cgm_proxy.core.r4.primitives import show
from cgm_proxy.core.r4.reference_scope import Scope
from cgm_proxy.core.r4.uris import BLANK, SEARCH, SPACE

RESOURCE_TYPES = "http://hl7.org/fhir/resource-types"


def reference_faults(model: Model, scope: Scope, node: Node, allowed: tuple[str, ...]) -> Iterator[Fault]:
    """Yield the faults of a Reference that may mean resources of the allowed types; of any type if none is named."""
    reference, stated = node.data.get("reference"), node.data.get("type")
    target = scope.target_type(node.data, node.resource, model)
    any_type = not allowed or "Resource" in allowed
    expected = " or ".join(allowed)
    if isinstance(reference, str):
        if SPACE.search(reference):
            yield "r4-reference", "reference", f"is {show(reference)}; R4 requires a URL without spaces"
        type_, question_mark, _ = reference.partition("?")
        if question_mark and type_ in model.resources and not SEARCH.fullmatch(reference):
            text = f"is {show(reference)}; R4 requires a conditional reference as Type?name=value"
            yield "r4-reference", "reference", text
    if isinstance(stated, str) and stated and not BLANK.fullmatch(stated):
        if stated not in (model.system(RESOURCE_TYPES) or ()):
            yield "r4-reference", "type", f"is {show(stated)}, which is not a resource type"
        if "reference" in node.data:
            if target is not None and stated != target:
                yield "r4-reference", "type", f"is {show(stated)}, but the reference is to a {target}"
            if not any_type and stated not in allowed:
                yield "r4-reference", "type", f"is {show(stated)}; R4 requires {expected}"
    if target is not None and not any_type and target not in allowed:
        yield "r4-reference", "reference", f"is {show(reference)}, a {target}; R4 requires {expected}"
