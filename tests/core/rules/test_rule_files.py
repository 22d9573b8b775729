"""Rule files become profiles and additions; the messages about mistakes are in tests/rulekit/test_lint.py."""

import pytest

from cgm_proxy.core.codec.strict_yaml import document
from cgm_proxy.core.rules.rule_files import Addition, Profile, Rule, RulesError, Source, merge, parse_rule_file

PROFILE = """
profile: http://e.org/StructureDefinition/weight
dialect: 1.0.0
type: Observation
title: Weight
when: code.exists()
made_of: [http://e.org/StructureDefinition/scale]
rules:
- {id: unit, element: Observation.value, at: value, expression: unit = 'kg', shows: unit, text: '"kg"', severity: warning}
- {id: subject, expression: subject.exists(), text: a subject}
"""
ADDITION = """
extends: [weight, http://e.org/StructureDefinition/height]
dialect: 1.0.0
severity: {subject: information}
rules:
- {id: plausible, expression: value < 500, text: less than 500 kg}
"""
UNIT = Rule("weight/unit", "Observation.value", "value", "unit = 'kg'", "unit", '"kg"', "warning")
SUBJECT = Rule("weight/subject", "", "", "subject.exists()", "", "a subject", "error")


def parsed(text: str) -> Profile | Addition:
    return parse_rule_file(Source("f.yaml", document(text)))


def test_a_profile_has_all_that_its_file_says() -> None:
    assert parsed(PROFILE) == Profile(
        url="http://e.org/StructureDefinition/weight",
        dialect="1.0.0",
        type="Observation",
        title="Weight",
        rules=(UNIT, SUBJECT),
        when="code.exists()",
        made_of=frozenset({"http://e.org/StructureDefinition/scale"}),
        file="f.yaml",
    )


def test_the_title_of_a_profile_without_one_is_its_name() -> None:
    profile = parsed(PROFILE.replace("title: Weight\n", ""))
    assert isinstance(profile, Profile)
    assert (profile.name, profile.title) == ("weight", "weight")


def test_a_version_of_two_numbers_needs_no_quotes() -> None:
    profile = parsed(PROFILE.replace("dialect: 1.0.0", "dialect: 1.0"))
    assert isinstance(profile, Profile)
    assert profile.dialect == "1.0"


def test_an_addition_gives_rules_and_severities_to_the_profiles_that_it_names() -> None:
    profile, addition = parsed(PROFILE), parsed(ADDITION)
    assert isinstance(profile, Profile)
    assert isinstance(addition, Addition)
    height = Profile("http://e.org/StructureDefinition/height", "1.0.0", "Observation", "Height", ())
    old = Profile(profile.url, "0.9", "Observation", "Weight", ())
    weight, height, old = merge([profile, height, old], [addition])
    assert [(rule.key, rule.severity) for rule in weight.rules] == [
        ("weight/unit", "warning"),
        ("weight/subject", "information"),
        ("weight/plausible", "error"),
    ]
    assert [rule.key for rule in height.rules] == ["height/plausible"]
    assert old.rules == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: [weight, size]", "f.yaml:1: `extends`: no profile is named size"),
        (
            "extends: weight\nrules:\n- id: unit\n  expression: unit = 'g'\n  text: g",
            "f.yaml:3: rule `unit` exists already in f.yaml; choose another id",
        ),
    ],
)
def test_an_addition_that_does_not_fit_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(RulesError) as raised:
        merge([parsed(PROFILE)], [parsed(text)])
    assert str(raised.value) == message


def test_all_that_yaml_cannot_read_is_reported_at_once() -> None:
    with pytest.raises(RulesError) as raised:
        parsed("extends: weight\nextends: size\nrules: !x []")
    assert str(raised.value).splitlines() == [
        "f.yaml:2: not valid YAML: the key `extends` is repeated (first on line 1); keep one",
        "f.yaml:3: not valid YAML: the tag `!x` is not supported; leave it out",
    ]
