"""Make `rules/r4` from the definitions of FHIR R4, which HL7 publishes under CC0.

    python -m cgm_proxy.rulekit.r4_definitions DIRECTORY [OUT]

DIRECTORY holds the definitions in XML (profiles-types.xml, profiles-resources.xml, extension-definitions.xml,
v2-tables.xml, v3-codesystems.xml, valuesets.xml), for example the unpacked hapi-fhir-validation-resources-r4. The output is
one JSON object a line, so that a reviewer sees the changes:

- `types.ndjson`: the elements of a type as `"status": "1..1 code =observation-status"` (`~` if the binding is not required),
  and its invariants as FHIRPath;
- `codes.ndjson`: the codes of the code systems, and the value sets of bindings, expanded;
- `extensions.ndjson`: the contexts in which an extension of HL7 is allowed, and its values.

`common.ndjson` beside them is edited by hand: the codes of ISO 4217 (in either case), ISO 3166 and the USPS; UCUM's prefixes
and units.
"""

import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import msgspec

from cgm_proxy.core.json_values import JsonObject

FHIR = "{http://hl7.org/fhir}"
CORE = "http://hl7.org/fhir/StructureDefinition/"
VALUE_SET = "http://hl7.org/fhir/ValueSet/"
MAX_VALUE_SET = CORE + "elementdefinition-maxValueSet"
#: Extensions that the HL7 validator allows anywhere, because their lists of contexts are known to be incomplete.
ANYWHERE = frozenset(
    {"capabilitystatement-expectation", "capabilitystatement-prohibited", "structuredefinition-normative-version"}
)
#: The languages that the HL7 validator accepts: those of the preferred value set, although R4 allows all of BCP 47.
LANGUAGES = "languages"
#: Elements of a definition that occur at most once here; all others are read as lists.
SINGLE = frozenset(
    [
        "abstract",
        "baseDefinition",
        "binding",
        "code",
        "compose",
        "content",
        "contentReference",
        "derivation",
        "expression",
        "human",
        "id",
        "key",
        "kind",
        "max",
        "min",
        "path",
        "severity",
        "snapshot",
        "source",
        "strength",
        "system",
        "type@StructureDefinition",
        "url",
        "valueSet@binding",
        "valueCanonical",
        "valueUri",
        "property",
        "value",
        "op",
        "sliceName",
        "base",
    ]
)
SOURCES = ("extension", "profile", "valueset")


def read_xml(node: ET.Element) -> Any:
    """Return a FHIR XML element as FHIR JSON, as far as definitions need it: the value of a primitive, or an object."""
    if "value" in node.attrib:
        return node.attrib["value"]
    parent = node.tag.removeprefix(FHIR)
    found: JsonObject = {k: v for k, v in node.attrib.items() if k in {"url", "id"}}
    for child in node:
        name = child.tag.removeprefix(FHIR)
        if name in SINGLE or f"{name}@{parent}" in SINGLE or name.startswith(("fixed", "pattern")):
            found[name] = read_xml(child)
        elif child.tag.startswith(FHIR):
            found.setdefault(name, []).append(read_xml(child))
    return found


def definitions(directory: Path) -> Iterator[JsonObject]:
    """Yield the resources of the definitions' XML files, as JSON with their `resourceType`."""
    for path in sorted(directory.rglob("*.xml")):
        if path.parent.name not in SOURCES:
            continue
        for resource in ET.parse(path).getroot().iterfind(f"{FHIR}entry/{FHIR}resource/*"):  # noqa: S314 -- HL7's own
            yield {"resourceType": resource.tag.removeprefix(FHIR)} | read_xml(resource)


def short(url: str) -> str:
    """Return a canonical without its version; of FHIR's own ones only the last part."""
    url = url.split("|")[0]
    return url.rsplit("/", 1)[1] if url.startswith((CORE, VALUE_SET)) else url


def type_of(type_: JsonObject) -> str:
    """Return a type as `Quantity` or `Reference(Patient|Group)`; a profiled type by the profile's name (SimpleQuantity)."""
    code = str(type_["code"]).removeprefix("http://hl7.org/fhirpath/System.")
    profiles, targets = type_.get("profile") or [], type_.get("targetProfile") or []
    if profiles and profiles[0].startswith(CORE) and code != "Extension":
        return short(profiles[0])
    return f"{code}({'|'.join(short(target) for target in targets)})" if targets else code


def bound_set(element: JsonObject) -> str | None:
    """Return the value set that a code must be from: that of a required binding, or the largest one allowed."""
    binding = element.get("binding") or {}
    if binding.get("strength") == "required" and binding.get("valueSet"):
        return short(binding["valueSet"])
    for extension in binding.get("extension") or []:
        if extension["url"] == MAX_VALUE_SET:
            largest = short(extension.get("valueCanonical") or extension["valueUri"])
            return LANGUAGES if largest == f"all-{LANGUAGES}" else largest
    return None


def weakly_bound_set(element: JsonObject) -> str | None:
    """Return the value set that codes should be from: of several codings, only one that is in it counts."""
    binding = element.get("binding") or {}
    coded = {"CodeableConcept", "Coding"} & {type_["code"] for type_ in element.get("type", [])}
    weak = binding.get("strength") in {"preferred", "extensible"} and binding.get("valueSet")
    return short(binding["valueSet"]) if coded and weak else None


def element_line(element: JsonObject, *, nested: bool) -> str:
    """Return an element as `1..1 code =observation-status`, or `0..* Observation.component` for a nested one."""
    if reference := element.get("contentReference"):
        types = str(reference).split("#")[-1]
    elif nested:
        types = element["path"]
    else:
        types = "|".join(dict.fromkeys(type_of(type_) for type_ in element.get("type", [])))
    line = f"{element['min']}..{element['max']} {types}"
    if bound := bound_set(element):
        return f"{line} ={bound}"
    weak = weakly_bound_set(element)
    return f"{line} ~{weak}" if weak else line


def invariants(element: JsonObject) -> list[list[str]]:
    """Return `[key, human text, expression]` of each invariant of severity error that this very element declares."""
    return [
        [rule["key"], rule["human"], rule["expression"]]
        for rule in element.get("constraint", [])
        if rule["severity"] == "error" and "expression" in rule and rule["key"] not in {"ele-1", "ext-1"}
    ]


def inherited(definition: JsonObject) -> bool:
    """Whether the snapshot of a definition repeats the elements of its parent, as that of a specialization does."""
    return definition.get("derivation") == "specialization"


def types_of(definition: JsonObject, parents: dict[str, JsonObject]) -> Iterator[JsonObject]:
    """Yield the type of a definition, and a type for each of its elements that has children of its own."""
    elements = definition["snapshot"]["element"]
    known = own_names(parents.get(definition.get("baseDefinition", "")), definition)
    parents_of = {element["path"].rsplit(".", 1)[0] for element in elements if "." in element["path"]}
    base = short(definition["baseDefinition"]) if "baseDefinition" in definition else None
    for top in (element for element in elements if element["path"] in parents_of or "." not in element["path"]):
        path, children = top["path"], {}
        for element in elements:
            head, _, name = element["path"].rpartition(".")
            if head == path and (path != definition["type"] or name not in known):
                children[name] = element_line(element, nested=element["path"] in parents_of)
        of = base if "." not in path else top["type"][0]["code"]
        if "." in path:
            children = {k: v for k, v in children.items() if k not in {"id", "extension", "modifierExtension"}}
        yield {"type": path, "of": of, "elements": children, "invariants": invariants(top)} | leaf_rules(
            elements, path, parents_of
        )


def leaf_rules(elements: list[JsonObject], path: str, nested: set[str]) -> JsonObject:
    """Return the invariants that a type declares on its elements, as `{"on": {name: [...]}}`."""
    found = {
        element["path"].rpartition(".")[2]: rules
        for element in elements
        if element["path"].rpartition(".")[0] == path
        and element["path"] not in nested
        and (rules := invariants(element))
    }
    return {"on": found} if found else {}


def own_names(parent: JsonObject | None, definition: JsonObject) -> set[str]:
    """Return the names of the elements that a definition inherits from its parent."""
    if not parent or not inherited(definition):
        return set()
    return {e["path"].partition(".")[2] for e in parent["snapshot"]["element"] if e["path"].count(".") == 1}


def profiled_type(definition: JsonObject) -> JsonObject:
    """Return a profiled data type (SimpleQuantity, MoneyQuantity) as a type of its own, with the elements that it forbids."""
    elements = {
        e["path"].partition(".")[2]: element_line(e, nested=False) for e in definition["snapshot"]["element"][1:]
    }
    forbidden = {name: line for name, line in elements.items() if line.split()[0].endswith("..0")}
    return {
        "type": definition["id"],
        "of": definition["type"],
        "elements": forbidden,
        "invariants": invariants(definition["snapshot"]["element"][0]),
    }


def extension_line(definition: JsonObject) -> JsonObject:
    """Return the URL of an extension, its contexts, whether it is a modifier, and its own elements by id."""
    elements = {}
    for element in definition["snapshot"]["element"]:
        name = str(element["id"]).partition(".")[2]
        if name and name.rsplit(".")[-1].split(":")[0] not in {"id", "url"}:
            elements[name] = element_line(element, nested=False)
    contexts = [f"{c.get('type', ['element'])[0]}:{c['expression']}" for c in definition.get("context", [])]
    if definition["url"].removeprefix(CORE) in ANYWHERE:
        contexts = ["element:Element"]
    modifier = "true" in {str(e.get("isModifier", ["false"])[0]) for e in definition["snapshot"]["element"][:1]}
    return {"extension": definition["url"], "context": contexts, "modifier": modifier, "elements": elements}


def concepts(listed: Iterable[JsonObject]) -> Iterator[tuple[str, str | None]]:
    """Yield the concepts of a code system, however deep, each with its parent."""
    for concept in listed:
        yield concept["code"], None
        for code, parent in concepts(concept.get("concept", [])):
            yield code, parent or concept["code"]


class Terminology:
    """The code systems and value sets of the definitions."""

    def __init__(self, resources: Iterable[JsonObject]) -> None:
        listed = list(resources)
        self.systems = {r["url"]: r for r in listed if r["resourceType"] == "CodeSystem" and "concept" in r}
        self.sets = {r["url"]: r for r in listed if r["resourceType"] == "ValueSet"}

    def codes(self, system: str) -> dict[str, set[str]]:
        """Return the codes of a system, each with its parents (by nesting or the subsumedBy property)."""
        found: dict[str, set[str]] = {}
        for code, parent in concepts(self.systems[system]["concept"]):
            found.setdefault(code, set()).update({parent} if parent else ())
        for concept in self.systems[system]["concept"]:
            for prop in concept.get("property", []) if isinstance(concept.get("property"), list) else []:
                if prop.get("code") == "subsumedBy":
                    found[concept["code"]].add(prop["valueCode"][0])
        return found

    def expand(self, url: str, within: tuple[str, ...] = ()) -> dict[str, list[str] | None] | None:
        """Return the codes of a value set by system, or None if the set is not known.

        Instead of codes a system has None if all its codes are in the set and the system is not known here. `within` are the
        sets that include this one: a set that includes itself gains nothing.
        """
        url = url.split("|")[0]
        definition = self.sets.get(url)
        if definition is None or "compose" not in definition or url in within:
            return None
        within = (*within, url)
        found: dict[str, list[str] | None] = {}
        for part in definition["compose"].get("include", []):
            for system, codes in self.included(part, within).items():
                found[system] = None if codes is None else sorted({*(found.get(system) or []), *codes})
        for part in definition["compose"].get("exclude", []):
            for system, codes in self.included(part, within).items():
                found[system] = sorted({*(found.get(system) or [])} - {*(codes or [])})
        return found

    def included(self, part: JsonObject, within: tuple[str, ...]) -> dict[str, list[str] | None]:
        """Return the codes that an `include` or `exclude` of a value set names, by system."""
        system = part.get("system")
        if system is None:
            return {k: v for url in part.get("valueSet", []) for k, v in (self.expand(url, within) or {}).items()}
        if "concept" in part:
            return {system: [concept["code"] for concept in part["concept"]]}
        if system not in self.systems:
            return {system: None}
        known = self.codes(system)
        for rule in part.get("filter", []):
            known = {code: known[code] for code in known if self.passes(system, code, rule)}
        return {system: sorted(known)}

    def passes(self, system: str, code: str, rule: JsonObject) -> bool:
        """Whether a code passes a filter; all codes pass filters of other kinds (by a property)."""
        if rule["op"] not in {"is-a", "descendent-of"}:
            return True
        return (rule["op"] == "is-a" and code == rule["value"]) or rule["value"] in self.ancestors(system, code)

    def ancestors(self, system: str, code: str) -> set[str]:
        """Return all codes above a code."""
        above, parents = set(), self.codes(system)
        todo = set(parents.get(code, ()))
        while todo:
            above |= todo
            todo = {p for c in todo for p in parents.get(c, ())} - above
        return above


def write(path: Path, lines: Iterable[JsonObject]) -> None:
    """Write one JSON object a line, sorted."""
    encoded = sorted(msgspec.json.encode(line).decode() for line in lines)
    path.write_text("\n".join(encoded) + "\n", encoding="utf-8")


def named_sets(lines: Iterable[JsonObject]) -> set[str]:
    """Return the value sets of the bindings in lines of elements."""
    found = (re.search(r" [=~](\S+)$", text) for line in lines for text in line["elements"].values())
    bound = {match[1] for match in found if match}
    return {name if "/" in name else VALUE_SET + name for name in bound}


def main(directory: str, out: str = "rules/r4") -> None:
    """Write the three files of `rules/r4`."""
    resources = list(definitions(Path(directory)))
    structures = [r for r in resources if r["resourceType"] == "StructureDefinition" and "snapshot" in r]
    parents = {r["url"]: r for r in structures}
    types: list[JsonObject] = []
    extensions: list[JsonObject] = []
    for definition in structures:
        if definition.get("derivation") != "constraint" and definition["kind"] != "logical":
            types.extend(types_of(definition, parents))
        elif definition["type"] == "Extension":
            extensions.append(extension_line(definition))
        elif definition["kind"] == "complex-type" and definition["type"] == "Quantity":
            types.append(profiled_type(definition))
    terms = Terminology(resources)
    codes: list[JsonObject] = [{"system": url, "codes": sorted(terms.codes(url))} for url in terms.systems]
    sets = {url: terms.expand(url) for url in named_sets([*types, *extensions])}
    codes += [{"valueSet": url, "codes": found} for url, found in sets.items() if found]
    target = Path(out)
    write(target / "types.ndjson", types)
    write(target / "extensions.ndjson", extensions)
    write(target / "codes.ndjson", codes)


if __name__ == "__main__":
    main(*sys.argv[1:])
