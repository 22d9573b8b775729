"""A guide's definitions become rules that a person can read."""

from pathlib import Path
from shutil import copytree

import msgspec
import pytest

from cgm_proxy.core.rulebook import documents
from cgm_proxy.core.rules import RuleBook
from cgm_proxy.rules_import import import_guide

ROOT = Path(__file__).parents[2]
GUIDE = ROOT.parent / "shared" / "guide" / "ig"
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


@pytest.mark.parametrize(("made", "expression", "at"), ELEMENTS.values(), ids=ELEMENTS)
def test_what_a_profile_narrows_becomes_a_rule(tmp_path: Path, made: dict, expression: str, at: str) -> None:
    (tmp_path / "p.json").write_bytes(msgspec.json.encode(definition("p", made)))
    (file,) = import_guide(tmp_path, "mine", tmp_path / "out", rules=ROOT / "rules")
    rules = [(rule["expression"], rule.get("at", "")) for rule in next(documents(file))["rules"]]
    assert (expression, at) in rules


def test_an_imported_guide_is_judged_by(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_bytes(msgspec.json.encode(definition("p", ELEMENTS["a pattern"][0])))
    import_guide(tmp_path, "mine", tmp_path / "out", rules=ROOT / "rules")
    book = RuleBook.load(ROOT / "rules", tmp_path / "out")
    wrong = {"resourceType": "Observation", "status": "final", "code": {"text": "x"}}
    assert [i.rule for i in book.examine(wrong, [URL + "p"], dialect="mine")] == ["p/code"]
    assert book.implied(wrong | {"code": CODE}, "mine") == (URL + "p",)


@pytest.mark.guide
@pytest.mark.parametrize("dialect", ["argo", "0.1.0", "1.0.0-ballot", "1.0.0"])
def test_what_is_shipped_is_what_the_guide_says(tmp_path: Path, dialect: str) -> None:
    shipped, us_core = ROOT / "rules" / dialect, GUIDE / "us-core-6.1.0"
    out = copytree(shipped, tmp_path / dialect)
    import_guide(GUIDE / dialect, dialect, out, rules=ROOT / "rules", beside=[us_core])
    if (repaired := GUIDE / dialect / "repaired").exists():
        import_guide(repaired, dialect, out, rules=ROOT / "rules", beside=[us_core, GUIDE / dialect])
    for path in sorted(shipped.glob("*.yaml")):
        assert next(documents(out / path.name)) == next(documents(path)), path.name
