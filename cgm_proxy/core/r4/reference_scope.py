"""What a reference means inside one examination: contained resources, the Bundle's entries, and what lies outside.

https://hl7.org/fhir/R4/references.html and https://hl7.org/fhir/R4/bundle.html#references
"""

import re
from collections.abc import Callable, Iterable
from typing import Any

from cgm_proxy.core.json_values import JsonObject, objects
from cgm_proxy.core.r4.model import Model

ReferenceResolver = Callable[[str], JsonObject | None]
#: `Patient/1`, `http://example.org/fhir/Patient/1`, `Patient/1/_history/2`
LITERAL = re.compile(r"(?:[a-z]+:(?:.*?/)?)?([A-Z][A-Za-z]+)/([A-Za-z0-9\-.]{1,64})(?:/_history/[A-Za-z0-9\-.]{1,64})?")


def nowhere(_reference: str) -> JsonObject | None:
    """Resolve nothing: what an examination without context uses."""
    return None


def resolver_among(resources: Iterable[JsonObject]) -> ReferenceResolver:
    """Return a resolver that finds `Type/id` among some resources."""
    known = {f"{r.get('resourceType')}/{r.get('id')}": r for r in resources}
    return known.get if known else nowhere


class Scope:
    """The resources that references inside `root` may mean."""

    def __init__(self, root: JsonObject, resolve: ReferenceResolver = nowhere) -> None:
        self.root = root
        self._outside = resolve
        self._homes: dict[int, JsonObject] = {}
        self._entries: dict[str, JsonObject] = {}
        self._own(root)
        if root.get("resourceType") == "Bundle":
            for entry in objects(root.get("entry")):
                self._add_entry(entry)

    def of(self, root: JsonObject) -> "Scope":
        """Give the scope of another form of the root, with the same outside."""
        return Scope(root, self._outside)

    def _own(self, resource: JsonObject) -> None:
        for contained in objects(resource.get("contained")):
            self._homes[id(contained)] = resource

    def _add_entry(self, entry: JsonObject) -> None:
        resource, url = entry.get("resource"), entry.get("fullUrl")
        if not isinstance(resource, dict):
            return
        self._own(resource)
        if isinstance(url, str):
            self._entries.setdefault(url, resource)
        self._entries.setdefault(f"{resource.get('resourceType')}/{resource.get('id')}", resource)

    def home(self, resource: JsonObject) -> JsonObject:
        """Give the resource that contains `resource`, or itself."""
        return self._homes.get(id(resource), resource)

    def find(self, reference: str, within: JsonObject) -> JsonObject | None:
        """Give what `reference` means in the resource `within`, or None."""
        home = self.home(within)
        if reference.startswith("#"):
            wanted = reference[1:]
            held = (c for c in objects(home.get("contained")) if c.get("id") == wanted)
            return next(held, None) if wanted else home
        plain = reference.split("/_history/")[0]
        found = self._entries.get(plain)
        if found is None and (literal := LITERAL.fullmatch(plain)):
            found = self._entries.get(f"{literal[1]}/{literal[2]}")
        found = found or self._outside(reference)
        if found is not None:
            self._own(found)
        return found

    def target_type(self, reference: Any, within: JsonObject, model: Model) -> str | None:
        """Give the type of what a Reference means: of the resource found, else as its literal reference says, else its `type`."""
        text = reference.get("reference") if isinstance(reference, dict) else None
        if not isinstance(text, str):
            return None
        found = self.find(text, within)
        if found is not None:
            return str(found.get("resourceType"))
        said = (literal_type(text), reference.get("type"))
        return next((name for name in said if isinstance(name, str) and "." not in name and model.type(name)), None)


def literal_type(reference: str) -> str | None:
    """Give the type that a literal reference names, whatever its id looks like; None where it names none."""
    parts = reference.rstrip("/").split("/")
    if len(parts) < 2 or reference.startswith("#"):
        return None
    return parts[-4] if len(parts) >= 4 and parts[-2] == "_history" else parts[-2]
