"""One bad file for each mistake, with the exact message of the linter."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from support.places import RULES

from cgm_proxy.core.rules.rule_files import EXTENDS_KEYS, PROFILE_KEYS, RULE_KEYS, RulesError
from cgm_proxy.rulekit.lint import lint, load_rules
from cgm_proxy.rulekit.loading import RuleFile
from cgm_proxy.rulekit.samples import SAMPLE_KEYS, read_samples

HEAD = "extends: cgm-sensor-reading-mass\nrules:\n"
SAMPLES = (
    "---\nsamples:\n- {name: good, resource: {resourceType: Observation}, passes: [r]}\n"
    "- {name: bad, of: good, set: {}, fails: r}\n"
)


def keyed(of: st.SearchStrategy) -> st.SearchStrategy:
    keys = [*EXTENDS_KEYS, *PROFILE_KEYS, *RULE_KEYS, *SAMPLE_KEYS, "samples"]
    return st.dictionaries(st.sampled_from(keys), of, max_size=4)


def problems(directory: Path) -> list[str]:
    """Return the problems of a hospital's directory that stop a start and refuse a reload."""
    try:
        load_rules(directory)
    except RulesError as error:
        return str(error).splitlines()
    return []


def rule(expression: str = "status.exists()", more: str = "") -> str:
    return f'{HEAD}- id: r\n  expression: "{expression}"\n  text: it\n{more}'


#: One bad file for each mistake, and the one line that the linter reports.
BAD = {
    "no YAML": ("a: [", "{file}:2: not valid YAML: did not find expected node content"),
    "no mapping": ("- 1", "{file}:1: the file must be a mapping with the key `profile` or `extends`"),
    "unknown key": ("extends: x\nruls: []", "{file}:2: unknown key `ruls`; known: dialect, extends, rules, severity"),
    "key twice": (
        f"{HEAD}rules: []",
        "{file}:3: not valid YAML: the key `rules` is repeated (first on line 2); keep one",
    ),
    "nested without end": ("a: " + "[" * 200_000, "{file}:1: not valid YAML: nested deeper than 200"),
    "no expression before the end": (
        rule("status.exists() AND true"),
        "{file}:4: rule `r`: `expression`: not FHIRPath: status.exists() AND true: unexpected `AND` at letter 17",
    ),
    "number without end": (
        f"extends: {'9' * 5000}",
        "{file}:1: not valid YAML: a number of 5,000 characters; write it in quotes if it is text",
    ),
    "key that is a mapping": (
        "extends: x\n? {a: b}\n: c",
        "{file}:2: not valid YAML: a key must be text, not a list or mapping",
    ),
    "rules that are no list": ("extends: x\nrules: all", "{file}:2: `rules` must be a list"),
    "rule that is no mapping": ("extends: x\nrules: [status]", "{file}:2: `rules`: each must be a mapping, not status"),
    "severity that is no mapping": ("extends: x\nseverity: warning", "{file}:2: `severity` must be a mapping"),
    "names that are no text": ("extends: [1]", "{file}:1: `extends` must be text or a list of texts"),
    "key missing": ("profile: http://e.org/p\ntype: Observation\nrules: []", "{file}:1: the key `dialect` is missing"),
    "unknown key of a rule": (
        rule(more="  severety: error\n"),
        "{file}:6: unknown key `severety` of rule `r`; known: at, element, expression, id, severity, shows, text",
    ),
    "text missing": (
        HEAD + "- id: r\n  expression: status.exists()\n",
        "{file}:3: rule `r`: `text` is missing; add it",
    ),
    "text that is none": (rule(more="  element: [1]\n"), "{file}:6: `element` of rule `r` must be text"),
    "unknown severity": (
        rule(more="  severity: fatal\n"),
        "{file}:6: rule `r`: `severity: fatal`: write one of error, warning, information",
    ),
    "parenthesis": (rule("(("), "{file}:4: rule `r`: `expression`: not FHIRPath: ((: it ends too soon"),
    "operand": (rule("status = "), "{file}:4: rule `r`: `expression`: not FHIRPath: status = : it ends too soon"),
    "impossible path": (
        rule("Observation.valu.all(false)"),
        "{file}:4: rule `r`: `expression`: Observation has no element `valu`; did you mean value?",
    ),
    "impossible path below": (
        rule("code.codin.exists()"),
        "{file}:4: rule `r`: `expression`: CodeableConcept has no element `codin`; did you mean coding?",
    ),
    "impossible path on several lines": (
        f"{HEAD}- id: r\n  expression: >-\n    status.exists()\n    and code.codin.exists()\n  text: it\n",
        "{file}:4: rule `r`: `expression`: CodeableConcept has no element `codin`; did you mean coding?",
    ),
    "unknown function": (
        rule("status.exist()"),
        "{file}:4: rule `r`: `expression`: unknown function exist(); did you mean exists?",
    ),
    "parameters": (rule("status.empty(1)"), "{file}:4: rule `r`: `expression`: empty() takes 0 parameters, not 1"),
    "unknown variable": (
        rule("%reading.exists()"),
        "{file}:4: rule `r`: `expression`: unknown variable %reading; known: resource, rootResource, context, ucum",
    ),
    "unknown type": (
        rule("value is Quantiti"),
        "{file}:4: rule `r`: `expression`: unknown type Quantiti; did you mean Quantity?",
    ),
    "impossible type": (
        rule("value.ofType(Address).exists()"),
        (
            "{file}:4: rule `r`: `expression`: the element is CodeableConcept or Period or Quantity or Range or Ratio or "
            "SampledData or boolean or dateTime or integer or string or time, never Address"
        ),
    ),
    "never true or false": (
        rule("code.coding"),
        "{file}:4: rule `r`: `expression`: the result is Coding, never true or false",
    ),
    "id twice": (
        rule(more="- id: r\n  expression: subject.exists()\n  text: it\n"),
        "{file}:6: rule `r`: the id is used twice (first on line 3); choose another",
    ),
    "id twice on one line": (
        "extends: cgm-device\nrules: [{id: r, expression: type.exists(), text: a}, {id: r, expression: type.exists(), text: a}]\n"
        + SAMPLES.replace("Observation", "Device"),
        "{file}:2: rule `r`: the id is used twice (first on line 2); choose another",
    ),
    "id of a shipped rule": (
        rule().replace("id: r", "id: value-unit")
        + SAMPLES.replace("[r]", "[value-unit]").replace(": r}", ": value-unit}"),
        "{file}:3: rule `value-unit` exists already in {rules}/argo/cgm-sensor-reading-mass.yaml; choose another id",
    ),
    "shipped profile": (
        "profile: http://argo.run/cgm/StructureDefinition/cgm-device\ndialect: argo\ntype: Device\nrules: []",
        "{file}:1: `profile`: exists already in {rules}/argo/cgm-device.yaml; add to that one by `extends`",
    ),
    "unknown profile": (
        "extends: cgm-sensor\nrules: []",
        "{file}:1: `extends`: no profile is named cgm-sensor",
    ),
    "unknown rule": (
        "extends: cgm-sensor-reading-mass\nseverity:\n  valueunit: warning",
        "{file}:3: `severity`: no rule has the id valueunit; did you mean value-unit?",
    ),
    "no passing sample": (
        f"{rule()}---\nsamples:\n- {{name: b, resource: {{resourceType: Observation}}, fails: r}}\n",
        "{file}:3: rule `r`: has no passing sample; add one",
    ),
    "no failing sample": (
        f"{rule()}---\nsamples:\n- {{name: b, resource: {{resourceType: Observation}}, passes: [r]}}\n",
        "{file}:3: rule `r`: has no failing sample; add one",
    ),
    "samples that are no list": (
        f"{rule()}---\nsamples: all\n",
        "{file}:6: the second document must be a mapping with a list of `samples`",
    ),
    "unknown key of a sample": (
        f"{rule()}---\nsamples:\n- {{name: a, pases: [r]}}\n",
        "{file}:8: unknown key `pases` of sample `a`; known: context, fails, message, name, of, passes, profile, resource, set",
    ),
    "sample of none": (
        f"{rule()}---\nsamples:\n- {{name: a, of: b}}\n",
        "{file}:8: sample `a`: `of`: there is no sample `b` before it",
    ),
    "impossible path of a sample": (
        f"{rule()}---\nsamples:\n- {{name: a, resource: {{}}}}\n- {{name: b, of: a, set: {{x.y: 1}}}}\n",
        "{file}:9: sample `b`: `set`: the sample has no such path: 'x'",
    ),
    "expression that is empty": (
        rule(""),
        "{file}:4: rule `r`: `expression` is empty; write the condition that must hold",
    ),
    "text that is empty": (
        rule().replace("text: it", "text: ' '") + SAMPLES,
        "{file}:5: rule `r`: `text` is empty; write what the rule requires",
    ),
    "when that is empty": (
        "profile: http://e.org/p\ndialect: argo\ntype: Observation\nwhen: ''\nrules: []",
        "{file}:4: `when` is empty; write the condition that must hold",
    ),
    "extends nothing": (
        "extends: []\nrules: []",
        "{file}:1: `extends` is empty; name the profiles that the rules are for",
    ),
    "sample that passes an unknown rule": (
        f"{rule()}{SAMPLES}- {{name: b, of: good, passes: [r, value-unut]}}\n",
        "{file}:10: sample `b`: `passes`: cgm-sensor-reading-mass has no rule `value-unut`; did you mean value-unit?",
    ),
    "sample that fails an unknown rule": (
        f"{rule()}{SAMPLES}- {{name: b, of: good, fails: nope}}\n",
        "{file}:10: sample `b`: `fails`: cgm-sensor-reading-mass has no rule `nope`",
    ),
    "sample of another file's profile": (
        f"{rule()}{SAMPLES}- {{name: b, of: good, profile: cgm-device}}\n",
        "{file}:10: sample `b`: `profile: cgm-device`: the file has no such profile; write one of cgm-sensor-reading-mass",
    ),
    "sample of an unknown profile": (
        f"{rule()}{SAMPLES}- {{name: b, of: good, profile: cgm-nope}}\n",
        "{file}:10: sample `b`: `profile: cgm-nope`: the file has no such profile; write one of cgm-sensor-reading-mass",
    ),
}

#: One bad sample for each mistake, and the message.
BAD_SAMPLES = {
    "name twice": ("{name: good}", "{file}:10: sample `good`: the name is used twice; choose another"),
    "resource beside of": (
        "{name: b, of: good, resource: {}}",
        "{file}:10: sample `b`: has both `of` and `resource`; remove one",
    ),
    "set without of": (
        "{name: b, resource: {}, set: {}}",
        "{file}:10: sample `b`: has `set` without `of`; name the sample that it changes",
    ),
    "passes what it fails": (
        "{name: b, of: good, passes: [r], fails: r}",
        "{file}:10: sample `b`: both passes and fails rule `r`; remove it from one",
    ),
    "path that is empty": (
        "{name: b, of: good, set: {'': a}}",
        "{file}:10: sample `b`: `set`: the sample has no such path: ''",
    ),
    "path with an index in other digits": (
        "{name: b, of: good, set: {'a[²]': 1}}",
        "{file}:10: sample `b`: `set`: the sample has no such path: 'a[²]'",
    ),
    "path that is no text": (
        "{name: b, of: good, set: {1: 1}}",
        "{file}:10: sample `b`: `set`: the sample has no such path: 1",
    ),
    "index of what is no list": (
        "{name: b, of: good, set: {'code[0]': 1}}",
        "{file}:10: sample `b`: `set`: the sample has no such path: 0",
    ),
    "context that is no resource": (
        "{name: b, of: good, context: [1]}",
        "{file}:10: sample `b`: `context`: each must be a mapping",
    ),
    "context with a key that is no text": (
        "{name: b, of: good, context: [{1: a}]}",
        "{file}:10: sample `b`: `context` is not JSON; keys must be text, and numbers must be finite",
    ),
    "resource with a key that is no text": (
        "{name: b, resource: {code: {1: a}}}",
        "{file}:10: sample `b`: `resource` is not JSON; keys must be text, and numbers must be finite",
    ),
    "number that JSON lacks": (
        "{name: b, resource: {value: .nan}}",
        "{file}:10: sample `b`: `resource` is not JSON; keys must be text, and numbers must be finite",
    ),
    "resource in itself": (
        "{name: b, resource: &it {contained: [*it]}}",
        "{file}:10: not valid YAML: the alias `*it` stands inside what it names",
    ),
}


@pytest.mark.parametrize(("text", "message"), BAD.values(), ids=BAD)
def test_a_mistake_is_reported_with_file_line_and_key(
    tmp_path: Path,
    text: str,
    message: str,
    request: pytest.FixtureRequest,
    record_property: Callable[[str, object], None],
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text + ("\n" + SAMPLES if "  text: it" in text and "samples" not in text else ""))
    assert [line for line in problems(tmp_path) if str(file) in line] == [message.format(file=file, rules=RULES)]
    record_property("the linter's bad files", f"{request.node.callspec.id:32} {message.format(file='', rules='rules')}")


@pytest.mark.parametrize(("sample", "message"), BAD_SAMPLES.values(), ids=BAD_SAMPLES)
def test_a_mistake_in_a_sample_is_reported_with_file_line_and_name(tmp_path: Path, sample: str, message: str) -> None:
    file = tmp_path / "mine.yaml"
    samples = SAMPLES.replace("{resourceType: Observation}", "{resourceType: Observation, code: {}}")
    file.write_text(f"{rule()}{samples}- {sample}\n")
    with pytest.raises(RulesError) as raised:
        read_samples(RuleFile(file))
    assert str(raised.value) == message.format(file=file)


def test_a_severity_for_an_id_that_is_no_text_is_reported(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("extends: cgm-sensor-reading-mass\nseverity:\n  1: warning\n")
    assert lint(RULES, tmp_path) == [f"{file}:3: `severity`: 1 is not the id of a rule; if it is, write it in quotes"]


def test_a_sample_may_name_a_rule_of_another_file(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(f"{rule()}{SAMPLES}- {{name: b, of: good, passes: [q, value-unit]}}\n")
    (tmp_path / "b.yaml").write_text(
        f"{rule()}{SAMPLES}".replace("id: r", "id: q").replace("[r]", "[q]").replace(": r}", ": q}")
    )
    assert problems(tmp_path) == lint(RULES, tmp_path) == []


def test_a_rule_needs_a_passing_and_a_failing_sample(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(rule())
    assert [line for line in problems(tmp_path) if str(file) in line] == [
        f"{file}:3: rule `r`: has no passing sample; add one",
        f"{file}:3: rule `r`: has no failing sample; add one",
    ]


def test_lint_reports_what_would_stop_the_server(tmp_path: Path) -> None:
    for name, (text, _) in list(BAD.items())[::6]:
        (tmp_path / f"{name}.yaml").write_text(text)
    assert set(problems(tmp_path)) == set(lint(RULES, tmp_path))


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("extends: nothing\nrules: []\n")
    (tmp_path / "b.yaml").write_text(rule("status.exist()") + SAMPLES)
    assert [line.partition(":")[0] for line in problems(tmp_path)] == [
        str(tmp_path / "b.yaml"),
        str(tmp_path / "a.yaml"),
    ]


def test_a_directory_without_rules_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "mine.yaml").write_text(rule() + SAMPLES)
    (tmp_path / "notes.txt").write_text("x")
    assert problems(tmp_path) == [f"{tmp_path}: has no rules; name a directory that has files *.yaml"]


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "gone.yaml").symlink_to(tmp_path / "nowhere")
    assert problems(tmp_path) == [f"{tmp_path / 'gone.yaml'}: can't be read: No such file or directory"]


def test_a_volume_of_kubernetes_is_read_once(tmp_path: Path) -> None:
    """A ConfigMap's files are symbolic links into `..data`, itself a link to the directory of this version."""
    version = tmp_path / "..2025_09_01"
    version.mkdir()
    (version / "mine.yaml").write_text(rule() + SAMPLES)
    (tmp_path / "..data").symlink_to(version)
    (tmp_path / "mine.yaml").symlink_to(tmp_path / "..data" / "mine.yaml")
    (tmp_path / "more.yml").write_text(
        rule().replace("id: r", "id: q") + SAMPLES.replace("[r]", "[q]").replace(": r}", ": q}")
    )
    assert problems(tmp_path) == []


@given(
    st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=4), lambda of: st.lists(of) | keyed(of))
)
@settings(max_examples=150, deadline=None)
def test_any_yaml_is_read_or_refused_with_a_message(value: object) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder, "mine.yaml")
        path.write_text(yaml.safe_dump_all([value, value]))
        with suppress(RulesError):
            assert RuleFile(path).parsed
        with suppress(RulesError):
            read_samples(RuleFile(path))
