"""Extensions that HL7 defines: where each is allowed and what it may hold.

https://hl7.org/fhir/R4/defining-extensions.html
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from cgm_proxy.core.json_values import JsonObject, objects
from cgm_proxy.core.r4.findings import Fault
from cgm_proxy.core.r4.model import ElementDefinition, ExtensionDefinition, Model, choice_ending
from cgm_proxy.core.r4.primitives import show


def contexts_of(model: Model, type_: str, element: str | None) -> frozenset[str]:
    """Return the names that a definition's context may use for an element: its type, that type's bases, and its path."""
    names = {element.removesuffix("[x]")} if element else set()
    name: str | None = type_
    while name:
        names.add(name)
        known = model.type(name)
        name = known.base if known else None
    return frozenset(names)


def misplaced(url: str, allowed: Collection[str], contexts: frozenset[str]) -> Fault | None:
    """Return the fault of an extension whose definition does not allow it where it is; `contexts` as in `contexts_of`."""
    if not allowed or "Element" in allowed or not contexts.isdisjoint(allowed):
        return None
    listed = " or ".join(sorted(allowed)[:6])
    return "r4-extension-context", "url", f"is {show(url)}, an extension of {listed} that is not allowed here"


def extension_faults(
    definition: ExtensionDefinition, data: JsonObject, contexts: frozenset[str], *, modifier: bool
) -> Iterator[Fault]:
    """Yield the faults of an extension by its definition; `modifier` is whether it is a modifier extension."""
    allowed = [context.partition(":")[2] for context in definition.contexts]
    if fault := misplaced(definition.url, allowed, contexts):
        yield fault
    if modifier != definition.modifier:
        member = "modifierExtension" if definition.modifier else "extension"
        yield "r4-extension-modifier", "url", f"is {show(definition.url)}, which belongs in {member}"
    yield from _content(definition.elements, data, "", "")


def _content(elements: Mapping[str, ElementDefinition], data: JsonObject, prefix: str, path: str) -> Iterator[Fault]:
    """Check the value and the parts of an extension, or of a part; `prefix` is its name in the definition's element ids."""
    value = elements.get(f"{prefix}value[x]")
    if value is not None:
        yield from _value(value, data, path)
    start = f"{prefix}extension:"
    parts = {
        key.removeprefix(start): element
        for key, element in elements.items()
        if key.startswith(start) and "." not in key.removeprefix(start)
    }
    extensions = objects(data.get("extension"))
    for index, extension in enumerate(extensions):
        url = extension.get("url")
        if parts and isinstance(url, str) and url not in parts and ":" not in url:
            known = ", ".join(parts)
            yield "r4-extension-part", f"{path}extension[{index}].url", f"is {show(url)}; the extension has {known}"
    for name, element in parts.items():
        found = [(index, extension) for index, extension in enumerate(extensions) if extension.get("url") == name]
        if len(found) < element.least or (element.most is not None and len(found) > element.most):
            expected = f"{element.least} to {element.most or 'many'}"
            yield "r4-extension-part", f"{path}extension", f"has {len(found)} {name}; the extension requires {expected}"
        for index, extension in found:
            yield from _content(elements, extension, f"{start}{name}.", f"{path}extension[{index}].")


def _value(element: ElementDefinition, data: JsonObject, path: str) -> Iterator[Fault]:
    names = [name.lstrip("_") for name in data if name.lstrip("_").startswith("value")]
    allowed = {"value" + choice_ending(type_) for type_ in element.types}
    expected = " or ".join(sorted(allowed))
    if element.most == 0:
        if names:
            yield "r4-extension-value", f"{path}{names[0]}", "is not allowed; the extension has parts and no value"
    elif names and names[0] not in allowed:
        yield "r4-extension-value", f"{path}{names[0]}", f"is not allowed; the extension requires {expected}"
    elif element.least and not names:
        yield "r4-extension-value", path.rstrip("."), f"has no value; the extension requires {expected}"


def bound_code(definition: ExtensionDefinition, data: JsonObject) -> tuple[str, Any] | None:
    """Return the value set that an extension's valueCode must come from, and the code; None without a binding or a code."""
    element = definition.elements.get("value[x]")
    if element is None or element.binding is None or not isinstance(data.get("valueCode"), str):
        return None
    return element.binding, data["valueCode"]
