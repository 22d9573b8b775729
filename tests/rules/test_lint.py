"""One bad file a mistake, with the linter's exact words."""

from pathlib import Path

import pytest

from cgm_proxy.core.rules import RuleBook, RulesError
from cgm_proxy.rules_lint import lint

RULES = Path(__file__).parents[2] / "rules"
HEAD = "extends: cgm-sensor-reading-mass\nrules:\n"
SAMPLES = (
    "---\nsamples:\n- {name: good, resource: {resourceType: Observation}, passes: [r]}\n"
    "- {name: bad, of: good, set: {}, fails: r}\n"
)


def rule(expression: str = "status.exists()", more: str = "") -> str:
    return f'{HEAD}- id: r\n  expression: "{expression}"\n  text: it\n{more}'


BAD = {
    "no YAML": ("a: [", "{file}:2: no valid YAML: did not find expected node content"),
    "no mapping": ("- 1", "{file}:1: the file must be a mapping with the key `profile` or `extends`"),
    "unknown key": ("extends: x\nruls: []", "{file}:2: unknown key `ruls`; known: dialect, extends, rules, severity"),
    "unknown key of a rule": (
        rule(more="  severety: error\n"),
        "{file}:6: unknown key `severety` of rule `r`; known: at, element, expression, id, severity, shows, text",
    ),
    "text missing": (HEAD + "- id: r\n  expression: status.exists()\n", "{file}:3: rule `r`: `text` must be text"),
    "unknown severity": (
        rule(more="  severity: fatal\n"),
        "{file}:3: rule `r`: `severity: fatal`: want one of error, warning, information",
    ),
    "parenthesis": (rule("(("), "{file}:4: rule `r`: `expression`: no FHIRPath: something is missing"),
    "operand": (rule("status = "), "{file}:4: rule `r`: `expression`: no FHIRPath: an operand of = is missing"),
    "impossible path": (
        rule("Observation.valu.all(false)"),
        "{file}:4: rule `r`: `expression`: Observation has no element `valu`",
    ),
    "impossible path below": (
        rule("code.codin.exists()"),
        "{file}:4: rule `r`: `expression`: CodeableConcept has no element `codin`",
    ),
    "unknown function": (rule("status.exist()"), "{file}:4: rule `r`: `expression`: unknown function exist()"),
    "unknown variable": (rule("%reading.exists()"), "{file}:4: rule `r`: `expression`: unknown variable %reading"),
    "unknown type": (rule("value is Quantiti"), "{file}:4: rule `r`: `expression`: unknown type Quantiti"),
    "never true or false": (
        rule("code.coding"),
        "{file}:4: rule `r`: `expression`: gives Coding, never true or false",
    ),
    "id twice": (
        rule(more="- id: r\n  expression: subject.exists()\n  text: it\n"),
        "{file}:3: rule `r`: the id is used twice",
    ),
    "unknown profile": (
        "extends: cgm-sensor\nrules: []",
        "{file}:1: `extends`: no profile is named cgm-sensor",
    ),
    "unknown rule": (
        "extends: cgm-sensor-reading-mass\nseverity:\n  unit: warning",
        "{file}:3: `severity`: no rule is called unit",
    ),
}


@pytest.mark.parametrize(("text", "message"), BAD.values(), ids=BAD)
def test_a_mistake_is_told_with_file_line_and_key(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text + ("\n" + SAMPLES if "  text: it" in text else ""))
    assert [problem for problem in lint([RULES, tmp_path]) if str(file) in problem] == [message.format(file=file)]


def test_a_rule_wants_a_passing_and_a_failing_sample(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(rule())
    assert [p for p in lint([RULES, tmp_path]) if str(file) in p] == [
        f"{file}:3: rule `r`: has no passing sample",
        f"{file}:3: rule `r`: has no failing sample",
    ]


def test_the_server_refuses_what_it_cannot_load(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("extends: nothing\nrules: []\n")
    with pytest.raises(RulesError, match=r"mine.yaml:1: `extends`: no profile is named nothing"):
        RuleBook.load(RULES, tmp_path)


def test_a_severity_can_be_lowered(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("extends: cgm-sensor-reading-mass\nseverity:\n  value-unit: warning\n")
    profile = RuleBook.load(RULES, tmp_path).profile("http://argo.run/cgm/StructureDefinition/cgm-sensor-reading-mass")
    assert {r.severity for r in profile.rules if r.key.endswith("/value-unit")} == {"warning"}
