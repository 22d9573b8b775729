"""References between resources (https://hl7.org/fhir/R4/references.html): find them, rewrite them, take them apart."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from cgm_proxy.core.json_values import JsonObject
from cgm_proxy.sandbox.store.faults import Refused
from cgm_proxy.sandbox.store.parameters import RESOURCE_TYPES

#: Systems whose URLs are meant logically, as HAPI's starter has them: such references need not resolve.
LOGICAL = re.compile(r"https?://(terminology\.hl7\.org|snomed\.info|unitsofmeasure\.org|loinc\.org)/")

_LOCAL = re.compile(r"([A-Za-z]+)/([A-Za-z0-9\-.]{1,64})(?:/_history/[^/]+)?")

#: Where references are kept as they are, unchecked, as HAPI does.
_UNCHECKED = frozenset({"extension", "modifierExtension", "contained"})


@dataclass(frozen=True, slots=True)
class Link:
    """A reference from a resource to another one of this store; `path` is `Observation.subject`."""

    path: str
    type: str
    id: str


def rewrite(value: Any, replace: Callable[[str, str], str], element: str = "") -> Any:
    """Copy a resource with every `Reference.reference` in it replaced, by what `replace(reference, element)` gives."""
    if isinstance(value, dict):
        copy = {key: rewrite(inner, replace, key) for key, inner in value.items()}
        if isinstance(copy.get("reference"), str):
            copy["reference"] = replace(copy["reference"], element)
        return copy
    if isinstance(value, list):
        return [rewrite(inner, replace, element) for inner in value]
    return value


def links(resource: JsonObject) -> list[Link]:
    """Give the references that must resolve here; raises Refused for one that never can (a placeholder, another server)."""
    found = _found(resource, str(resource["resourceType"]))
    return [_link(path, reference) for path, reference in found if _must_resolve(reference)]


def without_version(reference: str) -> str:
    """Take the version from a local reference, as HAPI does: `Patient/1/_history/2` becomes `Patient/1`."""
    found = _LOCAL.fullmatch(reference)
    return f"{found[1]}/{found[2]}" if found else reference


def _found(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, list):
        for inner in value:
            yield from _found(inner, path)
    elif isinstance(value, dict):
        if isinstance(value.get("reference"), str):
            yield path, value["reference"]
        for key, inner in value.items():
            if isinstance(inner, dict | list) and key not in _UNCHECKED:
                yield from _found(inner, f"{path}.{key}")


def _must_resolve(reference: str) -> bool:
    return bool(reference) and not reference.startswith("#") and not LOGICAL.match(reference)


def _link(path: str, reference: str) -> Link:
    local = _LOCAL.fullmatch(reference)
    if local and local[1] in RESOURCE_TYPES:
        return Link(path, local[1], local[2])
    if local:
        kind = f"Invalid reference found at path '{path}'. Resource type '{local[1]}' is not valid for this path"
        raise Refused(422, f"HAPI-0931: {kind}")
    if "://" in reference:
        text = f'HAPI-0507: Resource contains external reference to URL "{reference}" but this server is not configured'
        raise Refused(400, f"{text} to allow external references")
    text = f"HAPI-0505: Invalid resource reference found at path[{path}] - Does not contain resource type"
    raise Refused(400, f"{text} - {reference}")
