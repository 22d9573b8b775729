"""Rule files become a RuleBook: which files are read, in which order, and with which codes."""

from pathlib import Path

import pytest
from support.places import RULES

from cgm_proxy.core.rules.rule_files import Profile, RulesError
from cgm_proxy.rulekit.loading import RuleFile, r4_model, rule_book, rule_files, shipped_rules

MASS = "http://argo.run/cgm/StructureDefinition/cgm-sensor-reading-mass"
PROFILE = "profile: http://e.org/weight\ndialect: mine\ntype: Observation\nrules: []\n"


def write(directory: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_the_shipped_rules_are_those_of_the_checkout() -> None:
    assert shipped_rules() == RULES


def test_the_directory_of_the_shipped_rules_must_have_the_definitions_of_r4(tmp_path: Path) -> None:
    for load in (r4_model, rule_book):
        with pytest.raises(RulesError, match=r"has no r4/types\.ndjson; name the shipped rules first"):
            load(tmp_path)


def test_yaml_files_are_read_in_order_and_hidden_ones_are_skipped(tmp_path: Path) -> None:
    write(tmp_path, dict.fromkeys(["b.yaml", "a/c.yml", "..data/b.yaml", ".d.yaml", "e.yamlx", "codes.ndjson"], ""))
    found = [str(file.path.relative_to(tmp_path)) for file in rule_files(tmp_path)]
    assert found == ["a/c.yml", "b.yaml"]


def test_the_samples_of_a_file_are_not_parsed_with_its_rules(tmp_path: Path) -> None:
    write(tmp_path, {"a.yaml": f"{PROFILE}---\nsamples: [\n"})
    file = RuleFile(tmp_path / "a.yaml")
    assert isinstance(file.parsed, Profile)
    with pytest.raises(RulesError, match=r"a\.yaml:7: not valid YAML"):
        _ = file.samples


def test_a_file_without_samples_has_an_empty_document(tmp_path: Path) -> None:
    write(tmp_path, {"a.yaml": PROFILE})
    assert RuleFile(tmp_path / "a.yaml").samples.document.value is None


def test_own_rules_are_added_to_the_shipped_ones(tmp_path: Path) -> None:
    write(tmp_path, {"a.yaml": PROFILE, "b.yaml": f"extends: {MASS}\nseverity: {{value-unit: warning}}\n"})
    book = rule_book(RULES, tmp_path)
    assert book.profile("http://e.org/weight", "mine") is not None
    severities = {rule.id: rule.severity for rule in book.profile(MASS, "argo").rules}
    assert (severities["value-unit"], severities["code"]) == ("warning", "error")


def test_the_codes_beside_a_profile_belong_to_its_dialect(tmp_path: Path) -> None:
    codes = '{"system":"http://e.org/codes","codes":["a"]}\n'
    write(tmp_path, {"a.yaml": PROFILE, "b.yaml": PROFILE.replace("weight", "height"), "codes.ndjson": codes})
    book = rule_book(RULES, tmp_path)
    coding = {"system": "http://e.org/codes", "code": "b"}
    assert book.model("mine").has_code(coding) is False
    assert book.model("argo").has_code(coding) is None


def test_what_is_loaded_again_shares_no_cache_with_what_was_loaded_before() -> None:
    first, second = rule_book(), rule_book()
    assert first.verdict_cache is not second.verdict_cache
    assert first.expressions("status.exists()") is not second.expressions("status.exists()")
    assert first.model("argo").type("Observation") is not second.model("argo").type("Observation")
