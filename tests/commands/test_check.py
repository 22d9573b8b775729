"""`check` on NDJSON: every line gets a verdict, whatever is in it."""

import json

import pytest

from cgm_proxy.commands.check import check_file
from cgm_proxy.commands.check_lines import check_line
from cgm_proxy.core.rules.rulebook import RuleBook
from cgm_proxy.rulekit.loading import rule_book
from cgm_proxy.settings.loading import Settings

DEVICE = "http://argo.run/cgm/StructureDefinition/cgm-device"
GOOD = {
    "resourceType": "Device",
    "identifier": [{"value": "1"}],
    "serialNumber": "A",
    "deviceName": [{"name": "Acme", "type": "user-friendly-name"}],
}


@pytest.fixture(scope="module")
def book(pytestconfig: pytest.Config) -> RuleBook:
    return rule_book(pytestconfig.rootpath / "rules")


def line(resource: object, **more: object) -> bytes:
    return json.dumps({"id": "x", "profile": DEVICE, "resource": resource} | more).encode()


def test_a_good_line_passes(book: RuleBook) -> None:
    assert check_line(line(GOOD), book).as_json() == {"id": "x", "verdict": "pass", "errors": []}


SEX = "http://hl7.org/fhir/us/core/StructureDefinition/us-core-birthsex"

BAD = {
    "not JSON": (b"nope", "unreadable"),
    "not an object": (b"[1]", "json-malformed"),
    "a name twice": (b'{"id": 1, "resource": {"a": 1, "a": 2}}', "json-duplicate-key"),
    "NaN": (b'{"id": 1, "resource": {"a": NaN}}', "json-malformed"),
    "nested too deep": (b'{"resource":' + b"[" * 3000 + b"]" * 3000 + b"}", "too-deep"),
    "no resource": (line(None), "r4-json"),
    "an array": (line([]), "r4-json"),
    "empty": (line({}), "r4-resource-type"),
    "no type": (line({"resourceType": 5}), "r4-resource-type"),
    "an unknown type": (line({"resourceType": "Reading"}), "r4-resource-type"),
    "an abstract type": (line({"resourceType": "DomainResource"}), "r4-resource-type"),
    "another type": (line({"resourceType": "Basic", "code": {"text": "x"}}), "cgm-device/type"),
    "an unknown profile": (line(GOOD, profile="http://e.org/p"), "unknown-profile"),
    "no profile": (line(GOOD, profile=None), "unknown-profile"),
    "a wrong element": (line({**GOOD, "serialNumber": None}), "r4-json"),
    "an extension with a type that is a list": (
        line({**GOOD, "extension": [{"url": SEX, "valueCode": "F", "resourceType": []}]}),
        "r4-unknown-element",
    ),
}


@pytest.mark.parametrize(("text", "rule"), BAD.values(), ids=BAD)
def test_a_bad_line_fails_with_a_reason(book: RuleBook, text: bytes, rule: str) -> None:
    checked = check_line(text, book).as_json()
    assert checked["verdict"] == "fail"
    assert rule in {error["rule"] for error in checked["errors"]}


@pytest.mark.parametrize("kind", [[], {}, 5, None])
def test_a_file_of_no_resource_type_fails_with_a_reason(book: RuleBook, kind: object) -> None:
    (checked,) = check_file("x", json.dumps({"resourceType": kind}).encode(), book, Settings())
    assert [issue.rule for issue in checked.issues] == ["entry-resource"]


def test_references_mean_what_the_context_has(book: RuleBook) -> None:
    profile = "http://argo.run/cgm/StructureDefinition/cgm-sensor-reading-mass"
    reading = {
        "resourceType": "Observation",
        "status": "final",
        "category": [
            {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/observation-category", "code": "laboratory"}]}
        ],
        "code": {"coding": [{"system": "http://loinc.org", "code": "99504-3"}]},
        "subject": {"reference": "Patient/1"},
        "effectiveDateTime": "2024-05-01",
        "valueQuantity": {"value": 100, "unit": "mg/dl"},
    }
    nameless = {"resourceType": "Patient", "id": "1"}
    assert check_line(line(reading, profile=profile), book).passed
    assert not check_line(line(reading, profile=profile, context=[nameless]), book).passed


def test_text_shows_each_issue_with_its_rule(book: RuleBook) -> None:
    text = check_line(line({**GOOD, "status": "on"}), book).as_line("text")
    assert text == (
        'FAIL x\n  error Device.status status is "on"; R4 requires one of active, entered-in-error, inactive, unknown [r4-code]'
    )
