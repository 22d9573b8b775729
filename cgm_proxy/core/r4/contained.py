"""Contained resources: dom-2 to dom-5, and the ids that references to them use.

https://hl7.org/fhir/R4/domainresource.html#invs
"""

import re
from collections.abc import Iterator
from typing import Any

from cgm_proxy.core.json_values import JsonObject, nested_objects
from cgm_proxy.core.r4.findings import Fault
from cgm_proxy.core.r4.primitives import LONGEST_SHOWN, show

#: The targets of links and images in a narrative.
LINKED = re.compile(r"""(?:href|src)\s*=\s*["']([^"']*)["']""")


def contained_faults(container: JsonObject) -> Iterator[Fault]:
    """Yield the faults of the resources that a resource contains."""
    contained = container.get("contained")
    resources = contained if isinstance(contained, list) else []
    references = _references(container) if resources else frozenset()
    ids: set[str] = set()
    for index, resource in enumerate(resources):
        if isinstance(resource, dict):
            for rule, below, text in _faults(resource, ids, references):
                yield rule, f"contained[{index}].{below}" if below else f"contained[{index}]", text


def _faults(resource: JsonObject, ids_before: set[str], references: frozenset[str]) -> Iterator[Fault]:
    name = str(resource.get("id"))
    if resource.get("id") is None:
        yield "r4-required", "", "has no id; references to a contained resource use its id"
    elif name in ids_before:
        text = f"is {show(resource['id'])}, the id of another contained resource; give each its own"
        yield "r4-duplicate-id", "id", text
    else:
        ids_before.add(name)
    if "contained" in resource:
        yield "dom-2", "", "contains resources itself; put them beside it"
    meta = resource.get("meta")
    for key, rule in (("versionId", "dom-4"), ("lastUpdated", "dom-4"), ("security", "dom-5")):
        if isinstance(meta, dict) and key in meta:
            yield rule, f"meta.{key}", "is not allowed; leave it out"
    if f"#{name}" not in references and not any(text == "#" for text in _texts(resource)):
        yield "dom-3", "", f"is not referenced; refer to it as #{name[:LONGEST_SHOWN]} or leave it out"


def _references(container: JsonObject) -> frozenset[str]:
    """Return all texts with which a container, or a resource in it, may refer to a contained resource."""
    narrative = container.get("text")
    links = LINKED.findall(str(narrative.get("div"))) if isinstance(narrative, dict) else []
    return frozenset(text for text in (*_texts(container), *links) if text.startswith("#"))


def _texts(value: Any) -> Iterator[str]:
    for item in nested_objects(value):
        for member in item.values():
            yield from (text for text in (member if isinstance(member, list) else [member]) if isinstance(text, str))
