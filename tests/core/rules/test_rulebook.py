"""The verdict on one resource: messages, implied profiles, references, dialects."""

from copy import deepcopy
from decimal import Decimal

import pytest
from support.places import RULES

from cgm_proxy.core.rules.rulebook import RuleBook
from cgm_proxy.rulekit.loading import rule_book

D = "http://hl7.org/fhir/uv/cgm/StructureDefinition"
READING = {
    "resourceType": "Observation",
    "id": "r1",
    "status": "final",
    "code": {"coding": [{"system": "http://loinc.org", "code": "99504-3"}]},
    "subject": {"reference": "Patient/1"},
    "effectiveDateTime": "2025-09-01T10:15:00Z",
    "valueQuantity": {
        "value": Decimal("120.0"),
        "unit": "mg/dl",
        "system": "http://unitsofmeasure.org",
        "code": "mg/dL",
    },
}
MASS = f"{D}/cgm-sensor-reading-mass-per-volume"


@pytest.fixture(scope="module")
def book() -> RuleBook:
    return rule_book(RULES)


def changed(path: str, value: object) -> dict:
    resource = deepcopy(READING)
    *above, last = path.split(".")
    at = resource
    for step in above:
        at = at[int(step) if step.isdigit() else step]
    if value is ...:
        del at[last]
    else:
        at[last] = value
    return resource


def texts(book: RuleBook, resource: dict) -> list[tuple[str, str | None, str]]:
    return [(i.rule, i.expression, i.text) for i in book.examine(resource, [MASS], dialect="1.0.0")]


def test_a_valid_reading_has_no_issue(book: RuleBook) -> None:
    assert texts(book, READING) == []


NAME = "cgm-sensor-reading-mass-per-volume"
MESSAGES = [
    (
        "valueQuantity.unit", "mg/dL", f"{NAME}/value-unit", "Observation.valueQuantity.unit",
        f'valueQuantity.unit is "mg/dL"; {NAME} requires "mg/dl" (the code stays "mg/dL")',
    ),
    ("subject", ..., f"{NAME}/subject", "Observation", f"subject is missing; {NAME} requires a subject"),
    (
        "status", "done", "r4-code", "Observation.status",
        ('status is "done"; R4 requires one of amended, cancelled, corrected, entered-in-error, final, preliminary, '
        "registered, unknown"),
    ),
    (
        "effectiveDateTime", "2025-02-30", "r4-value", "Observation.effectiveDateTime",
        ('effectiveDateTime is "2025-02-30"; R4 requires a date, or a date and time with seconds and zone such as '
        "2024-05-01T10:15:00Z"),
    ),
    (
        "glucose", 5, "r4-unknown-element", "Observation.glucose",
        "glucose is not an element of Observation in R4; leave it out or use an extension",
    ),
    (
        "subject.reference", "Practitioner/1", "r4-reference", "Observation.subject.reference",
        'subject.reference is "Practitioner/1", a Practitioner; R4 requires Patient or Group or Device or Location',
    ),
    (
        "valueQuantity.value", "120", "r4-value", "Observation.valueQuantity.value",
        'valueQuantity.value is "120"; R4 requires a number',
    ),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "rule", "where", "text"), MESSAGES)
def test_an_issue_says_what_was_found_and_what_is_required(
    book: RuleBook, path: str, value: object, rule: str, where: str, text: str
) -> None:
    assert (rule, where, text) in texts(book, changed(path, value))


def test_a_message_never_repeats_a_long_value(book: RuleBook) -> None:
    (issue,) = book.examine(changed("status", "x" * 10_000), [MASS], dialect="1.0.0")
    assert len(issue.text) < 300


def test_code_and_unit_imply_a_profile(book: RuleBook) -> None:
    assert book.implied(READING, "1.0.0") == (MASS,)
    assert book.implied({"resourceType": "Observation", "code": {"text": "glucose"}}, "1.0.0") == ()
    assert book.implied({"resourceType": ["Observation"]}, "1.0.0") == ()


def test_profiles_of_one_code_are_distinguished_by_their_unit(book: RuleBook) -> None:
    system = "http://argo.run/cgm/CodeSystem/cgm-summary-codes-temporary"
    mean = {"resourceType": "Observation", "code": {"coding": [{"system": system, "code": "mean-glucose"}]}}
    for unit, name in (("mg/dL", "mass"), ("mmol/L", "molar")):
        resource = {**mean, "valueQuantity": {"value": Decimal("7.1"), "unit": unit}}
        assert book.implied(resource, "argo") == (
            f"http://argo.run/cgm/StructureDefinition/cgm-summary-mean-glucose-{name}",
        )


def test_a_summary_is_made_of_its_members(book: RuleBook) -> None:
    members = {url.rsplit("/", 1)[1] for url in book.made_of(f"{D}/cgm-summary")}
    assert members == {
        "cgm-summary-times-in-ranges", "cgm-summary-gmi", "cgm-summary-coefficient-of-variation",
        "cgm-summary-days-of-wear", "cgm-summary-sensor-active-percentage",
        "cgm-summary-mean-glucose-mass-per-volume", "cgm-summary-mean-glucose-moles-per-volume",
    }  # fmt: skip


def test_readings_are_made_of_their_device_too(book: RuleBook) -> None:
    assert book.made_of(MASS) == {f"{D}/cgm-device"}


def test_a_canonical_names_each_dialects_own_profile(book: RuleBook) -> None:
    url = f"{D}/cgm-sensor-reading-moles-per-volume"
    codes = {dialect: book.profile(url, dialect).when for dialect in ("1.0.0-ballot", "1.0.0")}
    assert "105272-9" in codes["1.0.0"]
    assert book.profile(url).dialect == book.profile(f"{url}|1.0.0").dialect == "1.0.0"
    assert book.profile(f"{url}|9.9", "1.0.0") is None


def test_a_claimed_profile_of_the_dialect_is_checked_as_well(book: RuleBook) -> None:
    claiming = {**READING, "meta": {"profile": [f"{D}/cgm-summary-gmi"]}}
    assert any(i.rule == "cgm-summary-gmi/code" for i in book.examine(claiming, [MASS], dialect="1.0.0"))


def test_a_cycle_of_references_ends(book: RuleBook) -> None:
    summary = {
        **READING,
        "code": {"coding": [{"system": "http://loinc.org", "code": "107931-8"}]},
        "hasMember": [{"reference": "Observation/r1"}] * 6,
    }
    issues = book.examine(summary, [f"{D}/cgm-summary"], {"Observation/r1": summary}.get, dialect="1.0.0")
    assert issues
