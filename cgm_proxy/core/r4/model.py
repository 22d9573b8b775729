"""The element model of FHIR R4: which elements a type has, how often, of which types, bound to which codes.

The data is `rules/r4/*.ndjson`, made from HL7's definitions (`rulekit/r4_definitions.py`). Each line is decoded when it is
first needed.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec

from cgm_proxy.core.r4.ucum import Ucum

CORE = "http://hl7.org/fhir/StructureDefinition/"
VALUE_SET = "http://hl7.org/fhir/ValueSet/"
UCUM = "http://unitsofmeasure.org"

#: The codes of a value set by code system; None if any code of the system is in it.
ValueSet = Mapping[str, frozenset[str] | None]

#: An element in `types.ndjson`: cardinality, types, required value set (`=`) or other value set (`~`).
_LINE = re.compile(r"^(\d+)\.\.(\d+|\*) ?(.*?)(?: =(\S+))?(?: ~(\S+))?$")
_TYPE = re.compile(r"([^|(]+)(?:\(([^)]*)\))?")

#: Types whose JSON is a string, number or boolean (https://hl7.org/fhir/R4/datatypes.html#primitive). `String` is FHIRPath's:
#: the type of the `id` of resources and elements, and of the `url` of extensions.
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
    """A constraint of the specification: its key, its text, and FHIRPath for the node that declares it."""

    key: str
    human: str
    expression: str


@dataclass(frozen=True, slots=True)
class ElementDefinition:
    """An element of a type.

    `least` and `most` are its cardinality, with None for `*`; `types` maps each of its types to the resource types that a
    Reference or canonical may mean; `binding` is the value set that its codes must come from.
    """

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
        """Whether its JSON name ends with its type: `value[x]`."""
        return self.name.endswith("[x]")


@dataclass(frozen=True, slots=True)
class Type:
    """A type: its elements by name (`value[x]`), and by JSON name with the type (`valueQuantity`), in the order of R4."""

    name: str
    base: str | None
    """The type that it specializes; None for Element and Resource."""
    elements: Mapping[str, ElementDefinition]
    members: Mapping[str, tuple[ElementDefinition, str]]
    invariants: tuple[Invariant, ...]

    @property
    def required(self) -> Iterator[ElementDefinition]:
        """The elements that every object of the type must have."""
        return (element for element in self.elements.values() if element.least)


def parse_element(name: str, line: str, invariants: tuple[Invariant, ...] = ()) -> ElementDefinition:
    """Parse an element such as `1..1 code =observation-status` or `0..1 Reference(Patient|Group)`; raise ValueError."""
    found = _LINE.match(line)
    if found is None:
        raise ValueError(f"{name}: {line!r} is not an element")
    least, most, types, binding, weak = found.groups()
    targets = {type_: tuple(names.split("|")) if names else () for type_, names in _TYPE.findall(types)}
    return ElementDefinition(name, int(least), None if most == "*" else int(most), targets, binding, invariants, weak)


def choice_ending(type_: str) -> str:
    """Return the ending of a choice's JSON name; a profiled Quantity (`doseQuantity`) is named after the type that it profiles."""
    return "Quantity" if type_ in {"SimpleQuantity", "MoneyQuantity"} else type_[0].upper() + type_[1:]


def json_names(element: ElementDefinition) -> Iterator[tuple[str, str]]:
    """Yield the JSON names of an element with the type of each: `valueQuantity`, `valueString`, ..."""
    for type_ in element.types:
        yield (
            (element.name.removesuffix("[x]") + choice_ending(type_), type_)
            if element.choice
            else (element.name, type_)
        )


@dataclass(frozen=True, slots=True)
class ExtensionDefinition:
    """An extension that HL7 defines: the elements that it is allowed in (`element:Patient`), and its own elements by id."""

    url: str
    contexts: tuple[str, ...]
    modifier: bool
    elements: Mapping[str, ElementDefinition]


def _lines(content: bytes, key: str) -> dict[str, bytes]:
    """Return the lines that have a key, by its value; each is decoded when it is first asked for."""
    pattern = re.compile(rb'"%s":"([^"]*)"' % key.encode())
    return {m[1].decode(): line for line in content.splitlines() if (m := pattern.search(line))}


class Model:
    """The types, extensions and codes of FHIR R4, and those that a guide adds (`codes.ndjson` beside its rules).

    The arguments are the contents of the files of `rules/r4`.
    """

    def __init__(self, *, types: bytes, extensions: bytes, codes: bytes, common: bytes) -> None:
        self._types = _lines(types, "type")
        self._extensions = _lines(extensions, "extension")
        self._systems = _lines(codes, "system") | _lines(common, "system")
        self._sets = _lines(codes, "valueSet")
        self.ucum = _parse_ucum(_lines(common, "ucum"))
        self._definitions: dict[tuple[str, str], Any] = {}
        self._codes: dict[tuple[str, str], Any] = {}

    def with_codes(self, *contents: bytes) -> "Model":
        """Return this model with the code systems and value sets of a guide: the contents of its `codes.ndjson`."""
        extended = copy(self)
        extended._systems, extended._sets, extended._codes = dict(self._systems), dict(self._sets), {}  # noqa: SLF001 -- its own
        for content in contents:
            extended._systems.update(_lines(content, "system"))  # noqa: SLF001 -- its own
            extended._sets.update(_lines(content, "valueSet"))  # noqa: SLF001 -- its own
        return extended

    def type(self, name: str) -> Type | None:
        """Return a type (`Observation`, `Observation.component`, `Quantity`), or None if R4 has none of that name."""
        found: Type | None = self._decoded("type", name, self._types, self._parse_type)
        return found

    @property
    def types(self) -> Iterable[str]:
        """The names of all types."""
        return self._types

    def resource(self, name: object) -> Type | None:
        """Return a concrete resource type, or None for any other value."""
        return self.type(name) if isinstance(name, str) and name in self.resources else None

    @cached_property
    def resources(self) -> frozenset[str]:
        """The concrete resource types."""
        bases = {name: msgspec.json.decode(line)["of"] for name, line in self._types.items() if "." not in name}
        resources = {name for name, base in bases.items() if base in {"DomainResource", "Resource"}}
        return frozenset(resources - {"DomainResource"})

    def extension(self, url: str) -> ExtensionDefinition | None:
        """Return HL7's definition of an extension, by its URL, or None."""
        found: ExtensionDefinition | None = self._decoded("extension", url, self._extensions, _parse_extension)
        return found

    def system(self, url: str) -> frozenset[str] | None:
        """Return the codes of a code system, or None if the system is not known."""
        found: frozenset[str] | None = self._decoded(
            "system", url, self._systems, lambda line: frozenset(line["codes"])
        )
        return found

    def has_code(self, coding: Mapping[str, Any]) -> bool | None:
        """Whether a coding's system has its code; None if the system or its codes are not known."""
        system, code = coding.get("system"), coding.get("code")
        if not isinstance(system, str) or not isinstance(code, str):
            return None
        codes = self.ucum if system == UCUM else self.system(system)
        return None if codes is None else code in codes

    def value_set(self, name: str) -> ValueSet | None:
        """Return the codes of a value set by system (None: any code of the system), or None if the set is not known."""
        url = name if "/" in name else VALUE_SET + name
        found: ValueSet | None = self._decoded("valueSet", url.split("|")[0], self._sets, _parse_value_set)
        return found

    def _decoded(self, kind: str, name: str, lines: Mapping[str, bytes], parse: Any) -> Any:
        key, parsed = (kind, name), self._definitions if kind in {"type", "extension"} else self._codes
        if key not in parsed:
            if name not in lines:
                return None  # not cached: submitters can send any number of unknown names
            parsed[key] = parse(msgspec.json.decode(lines[name]))
        return parsed[key]

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
