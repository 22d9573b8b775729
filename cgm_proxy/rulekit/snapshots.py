"""The snapshots of a guide as trees, and the FHIRPath of their patterns and slices."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from cgm_proxy.core.json_values import JsonObject
from cgm_proxy.core.r4.model import Model
from cgm_proxy.core.rules.rule_files import RulesError


@dataclass
class Tree:
    """An element of a snapshot with its children by name and its slices by slice name."""

    definition: JsonObject
    children: dict[str, "Tree"] = field(default_factory=dict)
    slices: dict[str, "Tree"] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The element's own name: `value[x]`."""
        return str(self.definition["path"]).rpartition(".")[2]


def tree_of(definition: JsonObject) -> Tree:
    """Return the tree of a snapshot, by the ids of its elements (`Observation.component:timeInLow.value[x]`)."""
    first, *others = definition["snapshot"]["element"]
    root = Tree(first)
    for element in others:
        try:
            place(root, element)
        except (KeyError, ValueError) as error:
            where = f"{definition['url']}: snapshot: the element `{element['id']}`"
            raise RulesError(f"{where} comes before its parent or without it; take the published snapshot") from error
    return root


def place(root: Tree, element: JsonObject) -> None:
    """Add an element to the tree by its id; raise KeyError or ValueError if its parent is missing."""
    at = root
    *above, last = element["id"].split(".")[1:]
    for step in above:
        at = child(at, step)
    name, _, slice_name = last.partition(":")
    if slice_name:
        at.children[name].slices[slice_name] = Tree(element)
    else:
        at.children[name] = Tree(element)


def child(at: Tree, step: str) -> Tree:
    """Return the child or slice that a step of an id (`component:timeInLow`) names."""
    name, _, slice_name = step.partition(":")
    found = at.children[name]
    return found.slices[slice_name] if slice_name else found


def fixed(definition: JsonObject) -> tuple[str, Any] | None:
    """Return whether an element has a `fixed` or a `pattern` value, and the value; None if it has neither."""
    for key, value in definition.items():
        for kind in ("fixed", "pattern"):
            if key.startswith(kind):
                return kind, value
    return None


def quoted(value: Any) -> str:
    """Return a primitive as a FHIRPath literal."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if not isinstance(value, str) else "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def coding(value: JsonObject) -> str:
    """Return the FHIRPath that selects the coding of a pattern: `system = '…' and code = '…'`."""
    return " and ".join(f"{key} = {quoted(item)}" for key, item in value.items())


def tests(value: Any) -> Iterator[str]:
    """Yield a FHIRPath test for each part of a pattern, to be evaluated on the element that has the pattern."""
    if not isinstance(value, dict):
        yield f"$this = {quoted(value)}"
        return
    for key, part in value.items():
        if key == "coding":
            yield from (f"coding.where({coding(item)}).exists()" for item in part)
        elif isinstance(part, dict):
            yield from (f"{key}.exists({test})" for test in tests(part))
        elif isinstance(part, list):
            yield from (f"{key}.where({test}).exists()" for item in part for test in tests(item))
        else:
            yield f"{key} = {quoted(part)}"


def both(conditions: Iterable[str]) -> str:
    """Join conditions with `and`."""
    return " and ".join(conditions)


class Guide:
    """The definitions of a guide, by canonical."""

    def __init__(self, model: Model, definitions: Iterable[JsonObject]) -> None:
        self.model = model
        listed = list(definitions)
        self.by_url = {d["url"]: d for d in listed if d["resourceType"] == "StructureDefinition"}
        self.sets = {d["url"] for d in listed if d["resourceType"] == "ValueSet"}
        self.trees = {url: tree_of(d) for url, d in self.by_url.items()}

    def code_tests(self, url: str, path: str = "code") -> list[str]:
        """Return the tests of the pattern that a profile has for an element; a discriminator may be the element."""
        tree = self.trees.get(url.split("|")[0])
        for step in path.split("."):
            tree = tree.children.get(step) if tree else None
        found = fixed(tree.definition) if tree else None
        return [f"{path}.{test}" for test in tests(found[1])] if found else []


def types(definition: JsonObject) -> list[str]:
    """Return the type codes of an element."""
    return [str(t["code"]).removeprefix("http://hl7.org/fhirpath/System.") for t in definition.get("type", [])]


def profiles(definition: JsonObject, key: str) -> list[str]:
    """Return the profiles (`profile`) or target profiles (`targetProfile`) of an element's types."""
    return [url for t in definition.get("type", []) for url in t.get(key, [])]


def criterion(guide: Guide, slice_: Tree, discriminator: JsonObject) -> list[str]:
    """Return the FHIRPath conditions by which a discriminator selects the elements of a slice; none if it does not narrow them."""
    kind, path = discriminator["type"], str(discriminator["path"])
    if kind == "type":
        at = slice_.definition if path == "$this" else at_path(slice_, path)
        narrowed = [t for t in types(at or {}) if t not in {"Resource", "BackboneElement"}]
        return [" or ".join(f"{path} is {t}" for t in narrowed)] if narrowed else []
    if kind == "profile":
        at = slice_.definition if path in {"$this", "resolve()"} else at_path(slice_, path)
        urls = profiles(at or {}, "targetProfile" if path == "resolve()" else "profile")
        return [" or ".join(f"{path}.conformsTo({quoted(url)})" for url in urls)] if urls else []
    return by_value(guide, slice_, path)


def at_path(slice_: Tree, path: str) -> JsonObject | None:
    """Return the definition at a simple path below a slice."""
    at: Tree | None = slice_
    for step in path.split("."):
        at = at.children.get(step) or at.children.get(step + "[x]") if at else None
    return at.definition if at else None


def by_value(guide: Guide, slice_: Tree, path: str) -> list[str]:
    """Return the conditions of a value or pattern discriminator."""
    if path.startswith("resolve()."):
        urls = profiles(slice_.definition, "targetProfile")
        return [f"resolve().{test}" for url in urls for test in guide.code_tests(url, path.removeprefix("resolve()."))]
    if found := re.match(r"resource\.ofType\((\w+)\)\.(.*)", path):
        resource = at_path(slice_, "resource") or {}
        urls = profiles(resource, "profile") if types(resource) == [found[1]] else []
        return [f"resource.ofType({found[1]}).{t}" for url in urls for t in guide.code_tests(url, found[2])]
    if path == "url" and (urls := profiles(slice_.definition, "profile")):
        return [f"url = {quoted(urls[0])}"]
    at = slice_.definition if path == "$this" else at_path(slice_, path)
    value = fixed(at) if at else None
    if value is None:
        return by_binding(at, path)
    if isinstance(value[1], dict):
        return [t if path == "$this" else f"{path}.{t}" for t in tests(value[1])]
    return [f"{path} = {quoted(value[1])}"]


def by_binding(at: JsonObject | None, path: str) -> list[str]:
    """Return the condition of a discriminator whose element has a required binding."""
    binding = (at or {}).get("binding", {})
    url = binding.get("valueSet") if binding.get("strength") == "required" else None
    return [f"{path}.memberOf({quoted(url.split('|')[0])})"] if url else []
