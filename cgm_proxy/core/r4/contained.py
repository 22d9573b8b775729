"""Contained resources: dom-2 to dom-5, and the ids by which they are referred to.

https://hl7.org/fhir/R4/domainresource.html#invs
"""

import re
from collections.abc import Iterator
from typing import Any

from cgm_proxy.core.json_values import JsonObject
from cgm_proxy.core.r4.findings import Node, last
from cgm_proxy.core.r4.primitives import show

#: A fault: rule, path, message.
Fault = tuple[str, str, str]

#: What a narrative links to, or shows.
LINKED = re.compile(r"""(?:href|src)\s*=\s*["']([^"']*)["']""")


def faults(node: Node) -> Iterator[Fault]:
    """Judge what a resource contains."""
    held = node.data.get("contained")
    names = [inner.get("id") for inner in held if isinstance(inner, dict)] if isinstance(held, list) else []
    for index, inner in enumerate(held if isinstance(held, list) else []):
        if isinstance(inner, dict):
            yield from _faults(node, inner, f"{node.path}.contained[{index}]", names[:index])


def _faults(node: Node, inner: JsonObject, at: str, before: list[Any]) -> Iterator[Fault]:
    name = inner.get("id")
    if name is None:
        yield "r4-required", at, f"{last(at)}.id is missing; a contained resource is referred to by it"
    elif name in before:
        yield "r4-duplicate-id", f"{at}.id", f"{last(at)}.id is {show(name)}, as another contained resource's"
    if "contained" in inner:
        yield "dom-2", at, f"{last(at)} contains resources itself; put them beside it"
    meta = inner.get("meta")
    for key, rule in (("versionId", "dom-4"), ("lastUpdated", "dom-4"), ("security", "dom-5")):
        if isinstance(meta, dict) and key in meta:
            yield rule, f"{at}.meta.{key}", f"{last(at)}.meta.{key} is not allowed; leave it out"
    if not _mentioned(node.data, inner, name):
        text = f"{last(at)} is referred to from nowhere; refer to it as #{name} or leave it out"
        yield "dom-3", at, text


def _mentioned(container: JsonObject, inner: JsonObject, name: Any) -> bool:
    wanted, text = f"#{name}", container.get("text")
    if any(said == wanted for said in _texts(container)) or any(said == "#" for said in _texts(inner)):
        return True
    return isinstance(text, dict) and wanted in LINKED.findall(str(text.get("div")))


def all_objects(value: Any) -> Iterator[JsonObject]:
    """Give every object at and below a value."""
    todo = [value]
    while todo:
        item = todo.pop()
        if isinstance(item, dict):
            yield item
            todo.extend(item.values())
        elif isinstance(item, list):
            todo.extend(item)


def _texts(value: Any) -> Iterator[str]:
    for held in all_objects(value):
        for item in held.values():
            yield from (text for text in (item if isinstance(item, list) else [item]) if isinstance(text, str))
