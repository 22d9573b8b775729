"""What a reference means while a resource is examined: a contained resource, an entry of the Bundle, or a resource elsewhere.

https://hl7.org/fhir/R4/references.html and https://hl7.org/fhir/R4/bundle.html#references
"""

import re
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

from cgm_proxy.core.json_values import JsonObject, objects
from cgm_proxy.core.r4.model import Model

#: Returns the resource that a reference means, or None.
ReferenceResolver = Callable[[str], JsonObject | None]

#: `Patient/1`, `http://example.org/fhir/Patient/1`, `Patient/1/_history/2`
LITERAL = re.compile(r"(?:[a-z]+:(?:.*?/)?)?([A-Z][A-Za-z]+)/([A-Za-z0-9\-.]{1,64})(?:/_history/[A-Za-z0-9\-.]{1,64})?")


def resolve_nothing(_reference: str) -> JsonObject | None:
    """Return None: the resolver of an examination without other resources."""
    return None


def resolver_among(resources: Iterable[JsonObject]) -> ReferenceResolver:
    """Return a resolver that finds `Type/id` among these resources."""
    known = {f"{resource.get('resourceType')}/{resource.get('id')}": resource for resource in resources}
    return known.get if known else resolve_nothing


class Scope:
    """The resources that references inside `root` may mean; `resolve` finds those outside it."""

    def __init__(self, root: JsonObject, resolve: ReferenceResolver = resolve_nothing) -> None:
        self.root = root
        self._resolve = cache(resolve)
        self._containers: dict[int, JsonObject] = {}
        #: The contained resources by id, of each container by its id(); with the container, so that it stays alive.
        self._contained: dict[int, tuple[JsonObject, dict[str, JsonObject]]] = {}
        self._entries: dict[str, JsonObject] = {}
        self._add_contained(root)
        if root.get("resourceType") == "Bundle":
            for entry in objects(root.get("entry")):
                self._add_entry(entry)

    def with_root(self, root: JsonObject) -> "Scope":
        """Return the scope of another form of the root, with the same resources outside it."""
        return Scope(root, self._resolve)

    def _add_contained(self, resource: JsonObject) -> dict[str, JsonObject]:
        """Return the contained resources of a resource by id; the first time it is seen, they are found."""
        if id(resource) not in self._contained:
            held: dict[str, JsonObject] = {}
            for contained in objects(resource.get("contained")):
                self._containers[id(contained)] = resource
                held.setdefault(str(contained.get("id")), contained)
            self._contained[id(resource)] = resource, held
        return self._contained[id(resource)][1]

    def _add_entry(self, entry: JsonObject) -> None:
        resource, url = entry.get("resource"), entry.get("fullUrl")
        if not isinstance(resource, dict):
            return
        self._add_contained(resource)
        if isinstance(url, str):
            self._entries.setdefault(url, resource)
        self._entries.setdefault(f"{resource.get('resourceType')}/{resource.get('id')}", resource)

    def container(self, resource: JsonObject) -> JsonObject:
        """Return the resource that contains `resource`, or itself if none does."""
        return self._containers.get(id(resource), resource)

    def find(self, reference: str, within: JsonObject) -> JsonObject | None:
        """Return the resource that `reference` means inside the resource `within`, or None."""
        if reference.startswith("#"):
            container, name = self.container(within), reference[1:]
            if not name:
                return container
            return self._add_contained(container).get(name)
        plain = reference.split("/_history/")[0]
        found = self._entries.get(plain)
        if found is None and (literal := LITERAL.fullmatch(plain)):
            found = self._entries.get(f"{literal[1]}/{literal[2]}")
        found = found or self._resolve(reference)
        if found is not None:
            self._add_contained(found)
        return found

    def target_type(self, reference: Any, within: JsonObject, model: Model) -> str | None:
        """Return the type of the resource that a Reference means; None if nothing names it.

        That is the type of the resource found, otherwise the one in the literal reference, otherwise the Reference's `type`.
        """
        text = reference.get("reference") if isinstance(reference, dict) else None
        if not isinstance(text, str):
            return None
        found = self.find(text, within)
        if found is not None:
            return str(found.get("resourceType"))
        names = (literal_type(text), reference.get("type"))
        return next((name for name in names if isinstance(name, str) and "." not in name and model.type(name)), None)


def literal_type(reference: str) -> str | None:
    """Return the type that a literal reference names, whatever its id looks like; None if it names none."""
    parts = reference.rstrip("/").split("/")
    if len(parts) < 2 or reference.startswith("#"):
        return None
    return parts[-4] if len(parts) >= 4 and parts[-2] == "_history" else parts[-2]
