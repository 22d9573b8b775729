"""The definitions of a guide become rules that a person can read."""

import tarfile
from io import BytesIO
from pathlib import Path
from shutil import copytree

import msgspec
import pytest
from support.places import GUIDE, ROOT

from cgm_proxy.cli import main
from cgm_proxy.core.rules.rule_files import RulesError
from cgm_proxy.rulekit.guide_files import LARGEST_FILE
from cgm_proxy.rulekit.importer import import_guide
from cgm_proxy.rulekit.loading import RuleFile, rule_book

IG = GUIDE / "ig"
URL = "http://hospital.example/StructureDefinition/"


def element(id_: str, **more: object) -> dict:
    return {"id": id_, "path": ".".join(part.partition(":")[0] for part in id_.split(".")), "min": 0, "max": "*"} | more


def definition(name: str, *elements: dict) -> dict:
    return {
        "resourceType": "StructureDefinition",
        "id": name,
        "url": URL + name,
        "name": name,
        "type": "Observation",
        "snapshot": {"element": [element("Observation"), *elements]},
    }


CODE = {"coding": [{"system": "http://loinc.org", "code": "1-8"}]}
ELEMENTS = {
    "a minimum": (element("Observation.subject", min=1, max="1"), "subject.exists()", ""),
    "a maximum": (element("Observation.note", max="1"), "note.count() <= 1", ""),
    "nothing allowed": (element("Observation.bodySite", max="0"), "bodySite.empty()", ""),
    "a type": (
        element("Observation.value[x]", max="1", type=[{"code": "Quantity"}]),
        "value.all($this is Quantity)",
        "",
    ),
    "a pattern": (
        element("Observation.code", min=1, max="1", patternCodeableConcept=CODE),
        "coding.where(system = 'http://loinc.org' and code = '1-8').exists()",
        "code",
    ),
    "a fixed value": (
        element("Observation.language", max="1", fixedCode="en"),
        "language.hasValue() implies language = 'en'",
        "",
    ),
    "a reference's target": (
        element(
            "Observation.subject",
            max="1",
            type=[{"code": "Reference", "targetProfile": ["http://hl7.org/fhir/StructureDefinition/Patient"]}],
        ),
        "targetType().empty() or targetType() in ('Patient')",
        "subject",
    ),
    "a binding that is not required": (
        element(
            "Observation.method",
            max="1",
            type=[{"code": "CodeableConcept"}],
            binding={"strength": "extensible", "valueSet": "http://hl7.org/fhir/ValueSet/observation-category"},
        ),
        "memberOf('http://hl7.org/fhir/ValueSet/observation-category') or knownCodes()",
        "method",
    ),
    "an invariant": (
        element(
            "Observation.method",
            max="1",
            constraint=[{"key": "h-1", "severity": "error", "human": "text", "expression": "text.exists()"}],
        ),
        "text.exists()",
        "method",
    ),
}


@pytest.mark.parametrize(("narrowed", "expression", "at"), ELEMENTS.values(), ids=ELEMENTS)
def test_what_a_profile_narrows_becomes_a_rule(tmp_path: Path, narrowed: dict, expression: str, at: str) -> None:
    (tmp_path / "p.json").write_bytes(msgspec.json.encode(definition("p", narrowed)))
    (file,) = import_guide(tmp_path, "mine", tmp_path / "out")
    rules = [(rule["expression"], rule.get("at", "")) for rule in RuleFile(file).rules.document.value["rules"]]
    assert (expression, at) in rules


def test_an_imported_guide_is_judged_by(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_bytes(msgspec.json.encode(definition("p", ELEMENTS["a pattern"][0])))
    import_guide(tmp_path, "mine", tmp_path / "out")
    book = rule_book(ROOT / "rules", tmp_path / "out")
    wrong = {"resourceType": "Observation", "status": "final", "code": {"text": "x"}}
    assert [i.rule for i in book.examine(wrong, [URL + "p"], dialect="mine")] == ["p/code"]
    assert book.implied(wrong | {"code": CODE}, "mine") == (URL + "p",)


#: The files of a package as published; three of them are not compiled.
PACKAGE = {
    "package/p.json": msgspec.json.encode(definition("p", ELEMENTS["a minimum"][0])),
    "package/package.json": b'{"name": "hospital", "url": "http://hospital.example"}',
    "package/.index.json": b'{"index-version": 1, "files": []}',
    "package/c.json": b'{"resourceType": "CapabilityStatement", "url": "http://hospital.example/c"}',
    "package/README.md": b"# no JSON",
    "package/example/q.json": b"{",
    "other/q.json": b"{",
}


def pack(file: Path, members: dict[str, bytes], *more: tarfile.TarInfo) -> Path:
    with tarfile.open(file, "w:gz") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, BytesIO(content))
        for member in more:
            archive.addfile(member)
    return file


def unpack(directory: Path, members: dict[str, bytes]) -> Path:
    for name, content in members.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)
    return directory


def test_a_package_gives_the_same_packed_and_unpacked(tmp_path: Path) -> None:
    unpacked = unpack(tmp_path / "unpacked", PACKAGE)
    sources = (pack(tmp_path / "p.tgz", PACKAGE), unpacked, unpacked / "package")
    written = [import_guide(s, "mine", tmp_path / f"out{n}") for n, s in enumerate(sources)]
    assert [[file.name for file in files] for files in written] == [["p.yaml"]] * 3
    assert len({files[0].read_text() for files in written}) == 1


def test_a_package_writes_nothing_but_rules(tmp_path: Path) -> None:
    """Neither where the path of a member leads nor where a link does; the targets of links are not read."""
    link, hard = tarfile.TarInfo("package/link.json"), tarfile.TarInfo("package/hard.json")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    hard.type, hard.linkname = tarfile.LNKTYPE, "package/README.md"
    members = PACKAGE | {"../evil.json": b"{", "package/../../evil.json": b"{", str(tmp_path / "evil.json"): b"{"}
    source = pack(tmp_path / "p.tgz", members, link, hard)
    (written,) = import_guide(source, "mine", tmp_path / "out")
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted([written, source])


SHORTENED = {k: v for k, v in definition("p").items() if k != "snapshot"}
NAMELESS = {k: v for k, v in definition("p").items() if k != "id"}
SYSTEM = {"resourceType": "CodeSystem", "url": "http://x.example/cs", "concept": [{"display": "x"}]}
VALUES = {"resourceType": "ValueSet", "url": "http://x.example/vs", "compose": {"include": "x"}}
ORPHAN = (
    "snapshot: the element `Observation.code.text` comes before its parent or without it; take the published snapshot"
)


def uncompiled(why: str, kind: str = "StructureDefinition") -> str:
    return f"{{}}: the {kind} can't be compiled: {why}; take it from the guide's published package"


#: A bad file of a package, and the message.
BAD = {
    "broken": (b"{", "{}: not valid JSON: Input data was truncated; download the guide again"),
    "no snapshot": (SHORTENED, uncompiled("Object missing required field `snapshot`")),
    "no elements": (
        definition("p") | {"snapshot": {"element": []}},
        uncompiled("Expected `array` of length >= 1 - at `$.snapshot.element`"),
    ),
    "no id": (NAMELESS, uncompiled("Object missing required field `id`")),
    "id that leads elsewhere": (
        definition("p") | {"id": "../p"},
        uncompiled("Expected `str` matching regex '^[A-Za-z0-9.-]{{1,64}}$' - at `$.id`"),
    ),
    "element without id": (
        definition("p", {"path": "Observation.code"}),
        uncompiled("Object missing required field `id` - at `$.snapshot.element[1]`"),
    ),
    "element of the wrong kind": (
        definition("p", element("Observation.code", type="x")),
        uncompiled("Expected `array`, got `str` - at `$.snapshot.element[1].type`"),
    ),
    "element without its parent": (definition("p", element("Observation.code.text")), f"{URL}p: {ORPHAN}"),
    "code system": (SYSTEM, uncompiled("Object missing required field `code` - at `$.concept[0]`", "CodeSystem")),
    "value set": (VALUES, uncompiled("Expected `array`, got `str` - at `$.compose.include`", "ValueSet")),
}


def refused(source: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Return the message of the command about a source that it refuses."""
    assert main(["rules", "import", str(source), "--dialect", "mine", "--out", str(out)]) == 2
    return capsys.readouterr().err.removeprefix("cgm-proxy: ").removesuffix("\n")


@pytest.mark.parametrize(("content", "message"), BAD.values(), ids=BAD)
def test_a_bad_definition_is_named_and_nothing_written(
    tmp_path: Path, content: bytes | dict, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = content if isinstance(content, bytes) else msgspec.json.encode(content)
    members, out = {"package/q.json": PACKAGE["package/p.json"], "package/z.json": raw}, tmp_path / "out"
    unpacked, packed = unpack(tmp_path / "unpacked", members), pack(tmp_path / "p.tgz", members)
    assert refused(packed, out, capsys) == message.format(f"{packed}: package/z.json")
    assert refused(unpacked, out, capsys) == message.format(unpacked / "package" / "z.json")
    assert not out.exists()


def test_a_value_set_that_includes_itself_adds_nothing_to_itself(tmp_path: Path) -> None:
    url = "http://x.example/vs"
    include = [{"valueSet": [f"{url}|1"]}, {"system": "http://x.example/cs", "concept": [{"code": "a"}]}]
    values = {"resourceType": "ValueSet", "url": url, "compose": {"include": include}}
    source = pack(tmp_path / "p.tgz", PACKAGE | {"package/v.json": msgspec.json.encode(values)})
    import_guide(source, "mine", tmp_path / "out")
    line = msgspec.json.decode((tmp_path / "out" / "codes.ndjson").read_bytes())
    assert line == {"valueSet": url, "codes": {"http://x.example/cs": ["a"]}}


def test_a_source_without_definitions_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nothing = {name: content for name, content in PACKAGE.items() if name != "package/p.json"}
    message = "has no FHIR definitions; name a guide's package (.tgz) or its unpacked JSON files"
    for source in (unpack(tmp_path / "unpacked", nothing), pack(tmp_path / "p.tgz", nothing)):
        assert refused(source, tmp_path / "out", capsys) == f"{source}: {message}"
    assert not (tmp_path / "out").exists()


def test_a_package_that_is_none_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "p.tgz"
    file.write_bytes(b"x")
    assert (
        refused(file, tmp_path / "out", capsys) == f"{file}: not a package (.tgz): not a gzip file; download it again"
    )
    pack(file, PACKAGE)
    file.write_bytes(file.read_bytes()[:200])
    assert refused(file, tmp_path / "out", capsys).startswith(f"{file}: not a package (.tgz): ")
    assert not (tmp_path / "out").exists()


def test_a_file_of_a_package_has_a_bound(tmp_path: Path) -> None:
    source = pack(tmp_path / "p.tgz", PACKAGE | {"package/z.json": b" " * (LARGEST_FILE + 1)})
    with pytest.raises(RulesError, match=r"package/z.json: larger than 16,777,216 bytes; leave it out"):
        import_guide(source, "mine", tmp_path / "out")


def test_where_nothing_can_be_written_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = pack(tmp_path / "p.tgz", PACKAGE), tmp_path / "out"
    out.write_text("a file")
    assert refused(source, out, capsys) == f"{out}: can't be written: File exists; name another directory by --out"
    assert refused(source, out / "below", capsys).startswith(f"{out / 'below'}: can't be written: ")


@pytest.mark.parametrize("option", ["IG", "--beside"])
def test_a_directory_that_is_none_is_refused(tmp_path: Path, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    nowhere = str(tmp_path / "nowhere")
    arguments = [nowhere] if option == "IG" else [str(tmp_path), option, nowhere]
    with pytest.raises(SystemExit) as ended:
        main(["rules", "import", *arguments, "--dialect", "mine", "--out", str(tmp_path / "out")])
    assert ended.value.code == 2
    assert f"{nowhere} is no directory" in capsys.readouterr().err


@pytest.mark.guide
@pytest.mark.parametrize("dialect", ["argo", "0.1.0", "1.0.0-ballot", "1.0.0"])
def test_what_is_shipped_is_what_the_guide_says(tmp_path: Path, dialect: str) -> None:
    shipped, us_core = ROOT / "rules" / dialect, IG / "us-core-6.1.0"
    out = copytree(shipped, tmp_path / dialect)
    import_guide(IG / dialect, dialect, out, beside=[us_core])
    if (repaired := IG / dialect / "repaired").exists():
        import_guide(repaired, dialect, out, beside=[us_core, IG / dialect])
    for path in sorted(shipped.glob("*.yaml")):
        assert RuleFile(out / path.name).rules.document.value == RuleFile(path).rules.document.value, path.name
