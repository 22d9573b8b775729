"""The definitions of a guide, read from its directory or package; the parts that are compiled are checked."""

import tarfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, NotRequired, TypedDict

import msgspec

from cgm_proxy.core.json_values import JsonObject
from cgm_proxy.core.rules.rule_files import RulesError
from cgm_proxy.regular_files import read_regular

#: Largest file of a package that is read (bytes), so that a package can't fill the memory.
LARGEST_FILE = 16 * 2**20
#: The folder of a package that has its definitions (https://wiki.hl7.org/FHIR_NPM_Package_Spec).
FOLDER = "package"


class _CodeableConcept(TypedDict):
    coding: NotRequired[list[JsonObject]]


class _Type(TypedDict):
    code: str
    profile: NotRequired[list[str]]
    targetProfile: NotRequired[list[str]]


class _Discriminator(TypedDict):
    type: str
    path: str


class _Slicing(TypedDict):
    discriminator: NotRequired[list[_Discriminator]]
    rules: NotRequired[str]


class _Binding(TypedDict):
    strength: NotRequired[str]
    valueSet: NotRequired[str]


class _Constraint(TypedDict):
    key: str
    severity: str
    human: str
    expression: NotRequired[str]


class _Element(TypedDict):
    id: str
    path: str
    min: NotRequired[int]
    max: NotRequired[Annotated[str, msgspec.Meta(pattern=r"^(\*|[0-9]+)$")]]
    sliceName: NotRequired[str]
    type: NotRequired[list[_Type]]
    slicing: NotRequired[_Slicing]
    binding: NotRequired[_Binding]
    constraint: NotRequired[list[_Constraint]]
    patternCodeableConcept: NotRequired[_CodeableConcept]
    fixedCodeableConcept: NotRequired[_CodeableConcept]


class _Snapshot(TypedDict):
    element: Annotated[list[_Element], msgspec.Meta(min_length=1)]


class _Context(TypedDict):
    expression: str


class _StructureDefinition(TypedDict):
    #: It also becomes the name of a file.
    id: Annotated[str, msgspec.Meta(pattern="^[A-Za-z0-9.-]{1,64}$")]
    url: str
    name: str
    title: NotRequired[str]
    type: str
    context: NotRequired[list[_Context]]
    snapshot: _Snapshot


class _Concept(TypedDict):
    code: str
    concept: NotRequired[list["_Concept"]]


class _CodeSystem(TypedDict):
    url: str
    concept: NotRequired[list[_Concept]]


class _Filter(TypedDict):
    op: str
    value: str


class _Include(TypedDict):
    system: NotRequired[str]
    concept: NotRequired[list[_Concept]]
    filter: NotRequired[list[_Filter]]
    valueSet: NotRequired[list[str]]


class _Compose(TypedDict):
    include: NotRequired[list[_Include]]
    exclude: NotRequired[list[_Include]]


class _ValueSet(TypedDict):
    url: str
    compose: NotRequired[_Compose]


#: The resources that are compiled, with the members that are used; examples, pages and the like are skipped.
COMPILED: dict[str, Any] = {
    "StructureDefinition": _StructureDefinition,
    "CodeSystem": _CodeSystem,
    "ValueSet": _ValueSet,
}


def read_definitions(source: Path) -> list[JsonObject]:
    """Return the definitions of a directory, an unpacked package or a package; raise RulesError if there are none."""
    if not source.is_dir():
        found = list(definitions(packed(source)))
    else:
        found = list(definitions(unpacked(source))) or list(definitions(unpacked(source / FOLDER)))
    if not found:
        raise RulesError(f"{source}: has no FHIR definitions; name a guide's package (.tgz) or its unpacked JSON files")
    return found


def unpacked(directory: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the JSON files of a directory: name and content."""
    for path in sorted(directory.glob("*.json")):
        try:
            yield str(path), read_regular(path)
        except OSError as error:
            raise RulesError(f"{path}: can't be read: {error.strerror}") from error


def packed(package: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the JSON files of a package: name and content. They are read in memory; links and other non-files are skipped."""
    try:
        with tarfile.open(package, "r:gz") as archive:
            for member in archive:
                path = PurePosixPath(member.name)
                if member.isreg() and path.parent == PurePosixPath(FOLDER) and path.suffix == ".json":
                    yield f"{package}: {member.name}", _member(archive, member, package)
    except OSError as error:
        raise RulesError(f"{package}: can't be read: {error.strerror or error}") from error
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise RulesError(f"{package}: not a package (.tgz): {error}; download it again") from error


def _member(archive: tarfile.TarFile, member: tarfile.TarInfo, package: Path) -> bytes:
    file = archive.extractfile(member) if member.size <= LARGEST_FILE else None
    if file is None:
        raise RulesError(f"{package}: {member.name}: larger than {LARGEST_FILE:,} bytes; leave it out")
    return file.read()


def definitions(files: Iterable[tuple[str, bytes]]) -> Iterator[JsonObject]:
    """Yield the resources that are compiled; raise RulesError for one that can't be."""
    for name, content in files:
        try:
            resource = msgspec.json.decode(content)
        except (msgspec.DecodeError, RecursionError) as error:
            raise RulesError(f"{name}: not valid JSON: {error}; download the guide again") from error
        type_ = str(resource.get("resourceType")) if isinstance(resource, dict) else ""
        if expected := COMPILED.get(type_):
            try:
                msgspec.convert(resource, expected)
            except msgspec.ValidationError as error:
                text = f"{name}: the {type_} can't be compiled: {error}; take it from the guide's published package"
                raise RulesError(text) from error
            yield resource
