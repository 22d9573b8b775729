"""Extensions that HL7 defines: where each may stand and what it may hold (https://hl7.org/fhir/R4/defining-extensions.html)."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from cgm_proxy.core.json_values import JsonObject, objects
from cgm_proxy.core.r4.model import ElementDefinition, ExtensionDefinition, Model, choice
from cgm_proxy.core.r4.primitives import show

#: A fault: rule, path below the extension, what a message says after the path.
Fault = tuple[str, str, str]


def places(model: Model, type_: str, element: str | None) -> frozenset[str]:
    """Give the names by which a context may call a place: its type, that type's bases, and its element's path."""
    found = {element.removesuffix("[x]")} if element else set()
    name: str | None = type_
    while name:
        found.add(name)
        known = model.type(name)
        name = known.of if known else None
    return frozenset(found)


def misplaced(url: str, contexts: Collection[str], at: frozenset[str]) -> Fault | None:
    """Say that an extension stands where its definition does not allow it."""
    if not contexts or "Element" in contexts or not at.isdisjoint(contexts):
        return None
    allowed = " or ".join(sorted(contexts)[:6])
    return (
        "r4-extension-context",
        "url",
        f"is {show(url)}, which is an extension of {allowed}, not of what it stands in",
    )


def faults(definition: ExtensionDefinition, data: JsonObject, at: frozenset[str], *, modifier: bool) -> Iterator[Fault]:
    """Judge an extension by its definition."""
    contexts = [context.partition(":")[2] for context in definition.contexts]
    if fault := misplaced(definition.url, contexts, at):
        yield fault
    if modifier != definition.modifier:
        kind = "a modifier" if definition.modifier else "no modifier"
        yield "r4-extension-modifier", "url", f"is {show(definition.url)}, which is {kind} extension"
    yield from _content(definition.elements, data, "", "")


def _content(elements: Mapping[str, ElementDefinition], data: JsonObject, prefix: str, where: str) -> Iterator[Fault]:
    value = elements.get(f"{prefix}value[x]")
    if value is not None:
        yield from _value(value, data, where)
    parts = _parts(elements, prefix)
    held = objects(data.get("extension"))
    for index, part in enumerate(held):
        url = part.get("url")
        if parts and isinstance(url, str) and url not in parts and ":" not in url:
            known = ", ".join(parts)
            yield "r4-extension-part", f"{where}extension[{index}].url", f"is {show(url)}; the extension has {known}"
    for name, element in parts.items():
        found = [(index, part) for index, part in enumerate(held) if part.get("url") == name]
        if len(found) < element.least or (element.most is not None and len(found) > element.most):
            wanted = f"{element.least} to {element.most or 'many'}"
            yield "r4-extension-part", f"{where}extension", f"has {len(found)} {name}; the extension wants {wanted}"
        for index, part in found:
            yield from _content(elements, part, f"{prefix}extension:{name}.", f"{where}extension[{index}].")


def _parts(elements: Mapping[str, ElementDefinition], prefix: str) -> dict[str, ElementDefinition]:
    start = f"{prefix}extension:"
    return {
        key[len(start) :]: element
        for key, element in elements.items()
        if key.startswith(start) and "." not in key[len(start) :]
    }


def _value(element: ElementDefinition, data: JsonObject, where: str) -> Iterator[Fault]:
    keys = [key.lstrip("_") for key in data if key.lstrip("_").startswith("value")]
    allowed = {"value" + choice(type_) for type_ in element.types}
    if element.most == 0 and keys:
        yield "r4-extension-value", f"{where}{keys[0]}", "is not allowed; the extension has parts and no value"
    elif element.most != 0 and keys and keys[0] not in allowed:
        yield (
            "r4-extension-value",
            f"{where}{keys[0]}",
            f"is not allowed; the extension wants {' or '.join(sorted(allowed))}",
        )
    elif element.least and not keys:
        yield (
            "r4-extension-value",
            where.rstrip("."),
            f"has no value; the extension wants {' or '.join(sorted(allowed))}",
        )


def bound(definition: ExtensionDefinition, data: JsonObject) -> tuple[str, Any] | None:
    """Give the code of a simple extension and the value set that it must be of, where the definition binds it."""
    element = definition.elements.get("value[x]")
    if element is None or element.binding is None or not isinstance(data.get("valueCode"), str):
        return None
    return element.binding, data["valueCode"]
