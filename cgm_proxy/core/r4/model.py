"""The element model of FHIR R4: which elements a type has, how often, of which types, bound to which codes.

The data is `rules/r4/*.ndjson`, made from HL7's definitions (`rules_base.py`). Each line is read when first asked for.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from cgm_proxy.core.r4.ucum import Ucum

CORE = "http://hl7.org/fhir/StructureDefinition/"
VALUE_SET = "http://hl7.org/fhir/ValueSet/"
UCUM = "http://unitsofmeasure.org"
ValueSet = Mapping[str, frozenset[str] | None]
_LINE = re.compile(r"^(\d+)\.\.(\d+|\*) ?(.*?)(?: =(\S+))?(?: ~(\S+))?$")
_TYPE = re.compile(r"([^|(]+)(?:\(([^)]*)\))?")

#: Types whose JSON is a string, number or boolean (https://hl7.org/fhir/R4/datatypes.html#primitive).
PRIMITIVES = frozenset(
    [
        "base64Binary",
        "boolean",
        "canonical",
        "code",
        "date",
        "dateTime",
        "decimal",
        "id",
        "instant",
        "integer",
        "markdown",
        "oid",
        "positiveInt",
        "string",
        "time",
        "unsignedInt",
        "uri",
        "url",
        "uuid",
        "xhtml",
        "String",
    ]
)


@dataclass(frozen=True, slots=True)
class Invariant:
    """A constraint of the specification: `key`, human text, FHIRPath on the node that declares it."""

    key: str
    human: str
    expression: str


@dataclass(frozen=True, slots=True)
class ElementDefinition:
    """An element of a type. `most` is None for `*`; `types` maps each type to the resource types a Reference may name."""

    name: str
    least: int
    most: int | None
    types: Mapping[str, tuple[str, ...]]
    binding: str | None = None
    invariants: tuple[Invariant, ...] = ()
    weak_binding: str | None = None
    """The value set that codes should, but need not, come from."""

    @property
    def many(self) -> bool:
        """Whether its JSON is an array."""
        return self.most != 1 and self.most != 0

    @property
    def choice(self) -> bool:
        """Whether its JSON name carries its type."""
        return self.name.endswith("[x]")


@dataclass(frozen=True, slots=True)
class Type:
    """A type: its elements by definition name, and by JSON name with the type that the name says."""

    name: str
    of: str | None
    elements: Mapping[str, ElementDefinition]
    members: Mapping[str, tuple[ElementDefinition, str]]
    invariants: tuple[Invariant, ...]

    @property
    def required(self) -> Iterator[ElementDefinition]:
        """The elements that must be there."""
        return (element for element in self.elements.values() if element.least)


def parse_element(name: str, line: str, invariants: tuple[Invariant, ...] = ()) -> ElementDefinition:
    """Read an element as `1..1 code =observation-status` or `0..1 Reference(Patient|Group)`."""
    found = _LINE.match(line)
    if found is None:
        raise ValueError(f"{name}: {line!r} is no element")
    least, most, types, binding, weak = found.groups()
    targets = {t: tuple(r.split("|")) if r else () for t, r in _TYPE.findall(types)}
    return ElementDefinition(name, int(least), None if most == "*" else int(most), targets, binding, invariants, weak)


def choice(type_: str) -> str:
    """Give what the JSON name of a choice ends with; a profiled Quantity (`doseQuantity`) is named as what it is a profile of."""
    return "Quantity" if type_ in {"SimpleQuantity", "MoneyQuantity"} else type_[0].upper() + type_[1:]


def json_names(element: ElementDefinition) -> Iterator[tuple[str, str]]:
    """Give the JSON names of an element with the type of each: `valueQuantity`, `valueString`, ..."""
    for type_ in element.types:
        yield (element.name[:-3] + choice(type_), type_) if element.choice else (element.name, type_)


@dataclass(frozen=True, slots=True)
class ExtensionDefinition:
    """An extension that HL7 defines: where it may stand (`element:Patient`) and its elements by id."""

    url: str
    contexts: tuple[str, ...]
    modifier: bool
    elements: Mapping[str, ElementDefinition]


def _lines(path: Path, key: str) -> dict[str, bytes]:
    pattern = re.compile(rb'"%s":"([^"]*)"' % key.encode())
    return {m[1].decode(): line for line in path.read_bytes().splitlines() if (m := pattern.search(line))}


class Model:
    """The types, extensions and codes of FHIR R4, and of what is added to them (`codes.ndjson` beside a guide's rules)."""

    def __init__(self, directory: Path) -> None:
        self._types = _lines(directory / "types.ndjson", "type")
        self._extensions = _lines(directory / "extensions.ndjson", "extension")
        common = directory / "common.ndjson"
        self._systems = _lines(directory / "codes.ndjson", "system") | _lines(common, "system")
        self._sets = _lines(directory / "codes.ndjson", "valueSet")
        self.ucum = _parse_ucum(_lines(common, "ucum"))
        self._read: dict[tuple[str, str], Any] = {}
        self._codes: dict[tuple[str, str], Any] = {}

    def with_codes(self, *paths: Path) -> "Model":
        """Give this model with more code systems and value sets: a guide's own (`codes.ndjson`)."""
        made = copy(self)
        made.add_codes(paths)
        return made

    def add_codes(self, paths: Iterable[Path]) -> None:
        """Add code systems and value sets to this very model."""
        self._systems, self._sets, self._codes = dict(self._systems), dict(self._sets), {}
        for path in paths:
            self._systems |= _lines(path, "system")
            self._sets |= _lines(path, "valueSet")

    def type(self, name: str) -> Type | None:
        """Give a type (`Observation`, `Observation.component`, `Quantity`), or None if R4 has none of that name."""
        found: Type | None = self._once("type", name, self._types, self._parse_type)
        return found

    @property
    def types(self) -> Iterable[str]:
        """The names of all types."""
        return self._types

    def resource(self, name: object) -> Type | None:
        """Give a concrete resource type, or None."""
        return self.type(name) if isinstance(name, str) and name in self.resources else None

    @cached_property
    def resources(self) -> frozenset[str]:
        """The concrete resource types."""
        tops = {name for name in self._types if "." not in name}
        of = {name: msgspec.json.decode(self._types[name])["of"] for name in tops}
        return frozenset(n for n in tops if of[n] in {"DomainResource", "Resource"} and n != "DomainResource")

    def extension(self, url: str) -> ExtensionDefinition | None:
        """Give what HL7 defines for an extension's url, or None."""
        found: ExtensionDefinition | None = self._once("extension", url, self._extensions, _parse_extension)
        return found

    def system(self, url: str) -> frozenset[str] | None:
        """Give a code system's codes, or None if the system is not known."""
        found: frozenset[str] | None = self._once("system", url, self._systems, lambda line: frozenset(line["codes"]))
        return found

    def has_code(self, coding: Mapping[str, Any]) -> bool | None:
        """Tell whether a coding's system has its code; None if that can't be known."""
        system, code = coding.get("system"), coding.get("code")
        if not isinstance(system, str) or not isinstance(code, str):
            return None
        codes = self.ucum if system == UCUM else self.system(system)
        return None if codes is None else code in codes

    def value_set(self, name: str) -> ValueSet | None:
        """Give a value set's codes by system (None: any code of it), or None if the set is not known."""
        url = name if "/" in name else VALUE_SET + name
        found: ValueSet | None = self._once("valueSet", url.split("|")[0], self._sets, _parse_value_set)
        return found

    def _once(self, kind: str, name: str, lines: Mapping[str, bytes], parse: Any) -> Any:
        key, memory = (kind, name), self._read if kind in {"type", "extension"} else self._codes
        if key not in memory:
            if name not in lines:
                return None  # not remembered: what is unknown comes from submitters, without bound
            memory[key] = parse(msgspec.json.decode(lines[name]))
        return memory[key]

    def _parse_type(self, line: dict[str, Any]) -> Type:
        base = self.type(line["of"]) if line["of"] else None
        elements = dict(base.elements) if base else {}
        own = line.get("on", {})
        for name, text in line["elements"].items():
            elements[name] = parse_element(name, text, _invariants(own.get(name, ())))
        members = {json: (element, type_) for element in elements.values() for json, type_ in json_names(element)}
        rules = {rule.key: rule for rule in (*(base.invariants if base else ()), *_invariants(line["invariants"]))}
        return Type(line["type"], line["of"], elements, members, tuple(rules.values()))


def _parse_ucum(lines: Mapping[str, bytes]) -> Ucum:
    (line,) = (msgspec.json.decode(line) for line in lines.values())
    return Ucum(line["prefixes"], frozenset(line["metric"]), frozenset(line["others"]))


def _invariants(rows: Any) -> tuple[Invariant, ...]:
    return tuple(Invariant(*row) for row in rows)


def _parse_extension(line: dict[str, Any]) -> ExtensionDefinition:
    elements = {name: parse_element(name, text) for name, text in line["elements"].items()}
    return ExtensionDefinition(line["extension"], tuple(line["context"]), line["modifier"], elements)


def _parse_value_set(line: dict[str, Any]) -> dict[str, frozenset[str] | None]:
    return {system: None if codes is None else frozenset(codes) for system, codes in line["codes"].items()}
