"""Contained resources: dom-2 to dom-5, and the ids that references to them use.

https://hl7.org/fhir/R4/domainresource.html#invs
"""

import re
from collections.abc import Iterator
from typing import Any

from cgm_proxy.core.json_values import JsonObject, nested_objects
from cgm_proxy.core.r4.findings import Fault
from cgm_proxy.core.r4.primitives import show

#: The targets of links and images in a narrative.
LINKED = re.compile(r"""(?:href|src)\s*=\s*["']([^"']*)["']""")


def contained_faults(container: JsonObject) -> Iterator[Fault]:
    """Yield the faults of the resources that a resource contains."""
    contained = container.get("contained")
    resources = contained if isinstance(contained, list) else []
    ids = [resource.get("id") if isinstance(resource, dict) else None for resource in resources]
    for index, resource in enumerate(resources):
        if isinstance(resource, dict):
            for rule, below, text in _faults(container, resource, ids[:index]):
                yield rule, f"contained[{index}].{below}" if below else f"contained[{index}]", text


def _faults(container: JsonObject, resource: JsonObject, ids_before: list[Any]) -> Iterator[Fault]:
    name = resource.get("id")
    if name is None:
        yield "r4-required", "", "has no id; references to a contained resource use its id"
    elif name in ids_before:
        yield "r4-duplicate-id", "id", f"is {show(name)}, the id of another contained resource; give each its own"
    if "contained" in resource:
        yield "dom-2", "", "contains resources itself; put them beside it"
    meta = resource.get("meta")
    for key, rule in (("versionId", "dom-4"), ("lastUpdated", "dom-4"), ("security", "dom-5")):
        if isinstance(meta, dict) and key in meta:
            yield rule, f"meta.{key}", "is not allowed; leave it out"
    if not _is_referenced(container, resource, f"#{name}"):
        yield "dom-3", "", f"is not referenced; refer to it as #{name} or leave it out"


def _is_referenced(container: JsonObject, resource: JsonObject, reference: str) -> bool:
    """Whether the container refers to a contained resource, or that to its container."""
    if any(text == reference for text in _texts(container)) or any(text == "#" for text in _texts(resource)):
        return True
    narrative = container.get("text")
    return isinstance(narrative, dict) and reference in LINKED.findall(str(narrative.get("div")))


def _texts(value: Any) -> Iterator[str]:
    for item in nested_objects(value):
        for member in item.values():
            yield from (text for text in (member if isinstance(member, list) else [member]) if isinstance(text, str))
