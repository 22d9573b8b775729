"""References between resources (https://hl7.org/fhir/R4/references.html): finding, rewriting and checking them."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from cgm_proxy.core.json_values import JsonObject
from cgm_proxy.sandbox.store.outcomes import StoreError
from cgm_proxy.sandbox.store.search_parameters import RESOURCE_TYPES

#: Logical URLs, as HAPI's starter configures them: such references need not resolve.
LOGICAL = re.compile(r"https?://(terminology\.hl7\.org|snomed\.info|unitsofmeasure\.org|loinc\.org)/")

_LOCAL = re.compile(r"([A-Za-z]+)/([A-Za-z0-9\-.]{1,64})(?:/_history/[^/]+)?")

#: Elements in which references are not checked, as on HAPI.
_UNCHECKED = frozenset({"extension", "modifierExtension", "contained"})


@dataclass(frozen=True, slots=True)
class LocalReference:
    """A reference from a resource to another one of this store; `path` is for example `Observation.subject`."""

    path: str
    type: str
    id: str


def rewrite(value: Any, replace: Callable[[str, str], str], element: str = "") -> Any:
    """Return a copy of a resource in which `replace(reference, element)` has replaced every `Reference.reference`."""
    if isinstance(value, dict):
        copy = {key: rewrite(item, replace, key) for key, item in value.items()}
        if isinstance(copy.get("reference"), str):
            copy["reference"] = replace(copy["reference"], element)
        return copy
    if isinstance(value, list):
        return [rewrite(item, replace, element) for item in value]
    return value


def local_references(resource: JsonObject) -> list[LocalReference]:
    """Return the references that must resolve in this store.

    Raises StoreError for a reference that never can: a placeholder, or one to another server.
    """
    found = _references(resource, str(resource["resourceType"]))
    return [_local(path, reference) for path, reference in found if _must_resolve(reference)]


def without_version(reference: str) -> str:
    """Return a local reference without its version, as HAPI stores it: `Patient/1/_history/2` becomes `Patient/1`."""
    match = _LOCAL.fullmatch(reference)
    return f"{match[1]}/{match[2]}" if match else reference


def _references(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, list):
        for item in value:
            yield from _references(item, path)
    elif isinstance(value, dict):
        if isinstance(value.get("reference"), str):
            yield path, value["reference"]
        for key, item in value.items():
            if isinstance(item, dict | list) and key not in _UNCHECKED:
                yield from _references(item, f"{path}.{key}")


def _must_resolve(reference: str) -> bool:
    return bool(reference) and not reference.startswith("#") and not LOGICAL.match(reference)


def _local(path: str, reference: str) -> LocalReference:
    match = _LOCAL.fullmatch(reference)
    if match and match[1] in RESOURCE_TYPES:
        return LocalReference(path, match[1], match[2])
    if match:
        text = f"Invalid reference found at path '{path}'. Resource type '{match[1]}' is not valid for this path"
        raise StoreError(422, f"HAPI-0931: {text}")
    if "://" in reference:
        text = f'HAPI-0507: Resource contains external reference to URL "{reference}" but this server is not configured'
        raise StoreError(400, f"{text} to allow external references")
    text = f"HAPI-0505: Invalid resource reference found at path[{path}] - Does not contain resource type"
    raise StoreError(400, f"{text} - {reference}")
