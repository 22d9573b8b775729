"""Invariants of the specification that are checked here and not by FHIRPath.

Some are here because Python is faster, some because their expressions need functions that a FHIRPath engine does not have
(htmlChecks). dom-2 to dom-5 are checked with the container (`contained.py`), txt-1 and txt-2 with the narrative's div
(`narrative.py`), bdl-7 and bdl-8 with the Bundle (`datatypes.py`): their functions here return True.
"""

from collections.abc import Callable, Mapping

from cgm_proxy.core.json_values import JsonObject
from cgm_proxy.core.r4.dates import not_after
from cgm_proxy.core.r4.findings import Node
from cgm_proxy.core.r4.primitives import fault
from cgm_proxy.core.r4.reference_scope import Scope


def _per_1(_scope: Scope, node: Node) -> bool:
    """Whether a Period's start is not after its end; an invalid date has its own fault."""
    start, end = node.data.get("start"), node.data.get("end")
    if not isinstance(start, str) or not isinstance(end, str) or not start or not end:
        return True
    return not fault("dateTime", start) and not fault("dateTime", end) and not_after(start, end)


def _ref_1(scope: Scope, node: Node) -> bool:
    """Whether a `#` reference means a contained resource, or the container if a contained resource has it."""
    reference = node.data.get("reference")
    if not isinstance(reference, str) or not reference.startswith("#"):
        return True
    if reference == "#":
        return scope.container(node.resource) is not node.resource
    return scope.find(reference, node.resource) is not None


def _rng_2(_scope: Scope, node: Node) -> bool:
    """Whether low ≤ high, which is only certain if both have the same unit."""
    low, high = node.data.get("low"), node.data.get("high")
    if not isinstance(low, dict) or not isinstance(high, dict):
        return True
    least, most = low.get("value"), high.get("value")
    if least is None or most is None or low.get("unit") != high.get("unit"):
        return False
    return bool(fault("decimal", least) or fault("decimal", most) or least <= most)


def _qty_3(_scope: Scope, node: Node) -> bool:
    """Whether a Quantity with a code has a system."""
    return not _has(node.data, "code") or _has(node.data, "system")


def _att_1(_scope: Scope, node: Node) -> bool:
    """Whether an Attachment with data has a content type."""
    return "data" not in node.data or "contentType" in node.data


def _checked_elsewhere(_scope: Scope, _node: Node) -> bool:
    return True


def _has(data: JsonObject, name: str) -> bool:
    return name in data or f"_{name}" in data


#: Functions by the key of the invariant; each returns whether the invariant holds for a node.
NATIVE: Mapping[str, Callable[[Scope, Node], bool]] = {
    "att-1": _att_1,
    "per-1": _per_1,
    "qty-3": _qty_3,
    "ref-1": _ref_1,
    "rng-2": _rng_2,
    **dict.fromkeys(("bdl-7", "bdl-8", "dom-2", "dom-3", "dom-4", "dom-5", "txt-1", "txt-2"), _checked_elsewhere),
}
