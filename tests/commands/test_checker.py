"""Verdicts without an upstream server: each case and document gets one, whatever is in it."""

import json

import pytest

from cgm_proxy.commands.checker import Checker, CheckResult
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
def checker(pytestconfig: pytest.Config) -> Checker:
    return Checker(rule_book(pytestconfig.rootpath / "rules"), Settings())


def case(resource: object, **more: object) -> bytes:
    return json.dumps({"id": "x", "profile": DEVICE, "resource": resource} | more).encode()


def check(checker: Checker, data: bytes) -> CheckResult:
    (result,) = checker.check_file("file", data)
    return result


def test_a_good_case_passes(checker: Checker) -> None:
    assert json.loads(check(checker, case(GOOD)).as_json()) == {"id": "x", "verdict": "pass", "errors": []}


SEX = "http://hl7.org/fhir/us/core/StructureDefinition/us-core-birthsex"

BAD = {
    "not JSON": (b"nope", "unreadable"),
    "not an object": (b"[1]", "json-malformed"),
    "a name twice": (b'{"id": 1, "resource": {"a": 1, "a": 2}}', "json-duplicate-key"),
    "NaN": (b'{"id": 1, "resource": {"a": NaN}}', "json-malformed"),
    "nested too deep": (b'{"resource":' + b"[" * 3000 + b"]" * 3000 + b"}", "too-deep"),
    "no resource": (case(None), "r4-json"),
    "an array": (case([]), "r4-json"),
    "empty": (case({}), "r4-resource-type"),
    "no type": (case({"resourceType": 5}), "r4-resource-type"),
    "an unknown type": (case({"resourceType": "Reading"}), "r4-resource-type"),
    "an abstract type": (case({"resourceType": "DomainResource"}), "r4-resource-type"),
    "another type": (case({"resourceType": "Basic", "code": {"text": "x"}}), "cgm-device/type"),
    "an unknown profile": (case(GOOD, profile="http://e.org/p"), "unknown-profile"),
    "no profile": (case(GOOD, profile=None), "unknown-profile"),
    "a wrong element": (case({**GOOD, "serialNumber": None}), "r4-json"),
    "an extension with a type that is a list": (
        case({**GOOD, "extension": [{"url": SEX, "valueCode": "F", "resourceType": []}]}),
        "r4-unknown-element",
    ),
}


@pytest.mark.parametrize(("text", "rule"), BAD.values(), ids=BAD)
def test_a_bad_case_fails_with_a_reason(checker: Checker, text: bytes, rule: str) -> None:
    result = json.loads(check(checker, text).as_json())
    assert result["verdict"] == "fail"
    assert rule in {error["rule"] for error in result["errors"]}


@pytest.mark.parametrize("kind", [[], {}, 5, None])
def test_a_file_without_a_resource_type_fails_with_a_reason(checker: Checker, kind: object) -> None:
    result = check(checker, json.dumps({"resourceType": kind}).encode())
    assert [issue.rule for issue in result.issues] == ["entry-resource"]


def test_references_are_resolved_in_the_context(checker: Checker) -> None:
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
    assert check(checker, case(reading, profile=profile)).passed
    assert not check(checker, case(reading, profile=profile, context=[nameless])).passed


def test_text_shows_each_issue_with_its_rule(checker: Checker) -> None:
    text = check(checker, case({**GOOD, "status": "on"})).as_text()
    assert text == (
        'FAIL x\n  error Device.status status is "on"; R4 requires one of active, entered-in-error, inactive, unknown [r4-code]'
    )
