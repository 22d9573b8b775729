"""The simulated submissions conform to the guide, but for the faults that a faulty one has."""

import json
import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import msgspec
import pytest
from fhir.resources.R4B.bundle import Bundle
from support.places import GUIDE

from cgm_proxy.core.submission.dialects import DIALECTS_BY_ID
from cgm_proxy.sandbox.simulation.dialect_forms import CODES, FORMS
from cgm_proxy.sandbox.simulation.submissions import FAULTS, faulty_submission, standing_orders, submission

DIALECTS = tuple(DIALECTS_BY_ID)
IG = GUIDE / "ig"
START = datetime(2026, 3, 1, tzinfo=UTC)
encode = msgspec.json.Encoder(decimal_format="number").encode


def resources(bundle, kind):
    return [entry["resource"] for entry in bundle["entry"] if entry["resource"]["resourceType"] == kind]


def profile_of(resource):
    return resource["meta"]["profile"][0].rpartition("/")[2]


def by_profile(bundle):
    return {profile_of(entry["resource"]): entry["resource"] for entry in bundle["entry"]}


def at(*values, step=5):
    """Return readings of these values, one every `step` minutes."""
    return [(START + timedelta(minutes=step * n), value) for n, value in enumerate(values)]


def tag(system, code):
    return {"tag": [{"system": system, "code": code}]}


@pytest.mark.parametrize("dialect", DIALECTS)
class TestSubmission:
    def test_the_same_arguments_make_the_same_bytes(self, dialect):
        assert encode(submission(dialect, "Patient/a", readings=50)) == encode(
            submission(dialect, "Patient/a", readings=50)
        )

    def test_a_submission_has_the_type_and_tag_of_its_dialect(self, dialect):
        bundle = submission(dialect, "Patient/a", readings=2)
        assert (bundle["type"], bundle.get("meta")) == {
            "argo": ("batch", tag("http://argo.run/cgm/CodeSystem/cgm", "cgm-submission-bundle")),
            "0.1.0": ("batch", tag("http://hl7.org/uv/cgm/CodeSystem/cgm", "cgm-data-submission-bundle")),
            "1.0.0-ballot": ("transaction", None),
            "1.0.0": ("transaction", None),
        }[dialect]

    def test_every_entry_posts_its_resource_under_a_url_of_its_own(self, dialect):
        bundle = submission(dialect, "Patient/a", readings=20)
        assert len({entry["fullUrl"] for entry in bundle["entry"]}) == len(bundle["entry"])
        for entry in bundle["entry"]:
            assert re.fullmatch(r"urn:uuid:[0-9a-f-]{36}", entry["fullUrl"])
            assert entry["request"] == {"method": "POST", "url": entry["resource"]["resourceType"]}

    def test_equal_readings_have_urls_of_their_own(self, dialect):
        bundle = submission(dialect, "Patient/a", readings=at(100) * 3)
        assert len({entry["fullUrl"] for entry in bundle["entry"]}) == len(bundle["entry"])

    @pytest.mark.parametrize("units", ["mass", "molar"])
    def test_readings_have_their_profile_code_and_lower_case_unit(self, dialect, units):
        bundle = submission(dialect, "Patient/a", readings=at(126), units=units)
        profile, code = FORMS[dialect].readings[units]
        reading = by_profile(bundle)[profile]
        assert reading["code"]["coding"][0]["code"] == code
        value = reading["valueQuantity"]
        expected = {"mass": (126, "mg/dl", "mg/dL"), "molar": (Decimal("7.0"), "mmol/l", "mmol/L")}[units]
        assert (value["value"], value["unit"], value["code"]) == expected
        assert reading["effectiveDateTime"] == "2026-03-01T00:00:00Z"

    def test_references_are_to_entries(self, dialect):
        bundle = submission(dialect, "Patient/a", readings=3)
        full_urls = {entry["fullUrl"] for entry in bundle["entry"]}
        found = set(re.findall(r'"reference":"(urn:[^"]+)"', encode(bundle).decode()))
        assert found <= full_urls
        assert {
            reading["device"]["reference"] for reading in resources(bundle, "Observation") if "device" in reading
        } == {bundle["entry"][0]["fullUrl"]}

    def test_the_summary_refers_to_its_members_and_the_report_to_the_summary(self, dialect):
        bundle = submission(dialect, "Patient/a", readings=100, send_readings=False)
        profiles = {entry["fullUrl"]: profile_of(entry["resource"]) for entry in bundle["entry"]}
        found = by_profile(bundle)
        members = [profiles[member["reference"]] for member in found["cgm-summary"]["hasMember"]]
        assert len(members) == len(set(members)) == {"argo": 10}.get(dialect, 6)
        assert [profiles[result["reference"]] for result in found["cgm-summary-pdf"]["result"]] == ["cgm-summary"]
        assert ("valueQuantity" in found["cgm-summary"]) == (dialect == "argo")

    def test_decimals_keep_their_digits(self, dialect):
        found = by_profile(submission(dialect, "Patient/a", readings=288, send_readings=False))
        active = found["cgm-summary-sensor-active-percentage"]["valueQuantity"]
        assert b'"value":100.0,' in encode(active)
        assert found["cgm-summary-days-of-wear"]["valueQuantity"]["value"] == 1

    @pytest.mark.parametrize(
        ("options", "profile"),
        [
            ({"device": False}, "cgm-device"),
            ({"pdf": False}, "cgm-summary-pdf"),
            ({"summary": False}, "cgm-summary"),
            ({"send_readings": False}, "cgm-sensor-reading-mass-per-volume"),
        ],
    )
    def test_parts_can_be_left_out(self, dialect, options, profile):
        bundle = submission(dialect, "Patient/a", readings=2, **options)
        assert profile not in by_profile(bundle)

    def test_without_a_device_no_reading_refers_to_one(self, dialect):
        bundle = submission(dialect, "Patient/a", readings=2, device=False)
        assert not any("device" in observation for observation in resources(bundle, "Observation"))

    @pytest.mark.parametrize(
        ("style", "pattern"), [("url", r"https://submitter\.example/fhir/\w+/"), ("relative", r"\w+/")]
    )
    def test_references_can_be_urls_or_relative(self, dialect, style, pattern):
        bundle = submission(dialect, "Patient/a", readings=2, reference_style=style)
        for entry in bundle["entry"]:
            assert entry["fullUrl"].endswith(f"/{entry['resource']['resourceType']}/{entry['resource']['id']}")
        for member in by_profile(bundle)["cgm-summary"]["hasMember"]:
            assert re.fullmatch(pattern + "[0-9a-f-]{36}", member["reference"])

    def test_a_submission_is_valid_base_fhir(self, dialect):
        Bundle.model_validate_json(encode(submission(dialect, "Patient/a", readings=2)))
        Bundle.model_validate_json(encode(faulty_submission(dialect, "Patient/a", "Patient/b")))

    def test_a_faulty_submission_ends_with_the_faults(self, dialect):
        entries = faulty_submission(dialect, "Patient/a", "Patient/b")["entry"]
        unit, summary, other, unordered = (entry["resource"] for entry in entries[-len(FAULTS) :])
        assert unit["valueQuantity"]["unit"] == "mg/dL"
        assert len(summary["hasMember"]) == {"argo": 9}.get(dialect, 5)
        assert other["subject"] == {"reference": "Patient/b"}
        assert unordered["valueQuantity"]["unit"] == "mmol/l"
        assert len({entry["fullUrl"] for entry in entries}) == len(entries)
        for entry in entries[: -len(FAULTS)]:
            assert entry["resource"].get("subject", {"reference": "Patient/a"}) == {"reference": "Patient/a"}


def refused(book, dialect, bundle):
    """Yield index and rule of each fault that refuses an entry, by the profile that the entry claims."""
    bundle = msgspec.json.decode(encode(bundle))
    known = {entry["fullUrl"]: entry["resource"] for entry in bundle["entry"]}
    known |= {f"{found['resourceType']}/{found['id']}": found for found in known.values() if "id" in found}
    for index, entry in enumerate(bundle["entry"]):
        resource = entry["resource"]
        profiles = resource["meta"]["profile"]
        assert book.profile(profiles[0], dialect)
        found = book.examine(resource, profiles, known.get, encoded=encode(resource), dialect=dialect)
        yield from ((index, issue.rule) for issue in found if issue.refuses)


@pytest.mark.parametrize("dialect", DIALECTS)
class TestConformance:
    @pytest.mark.parametrize("units", ["mass", "molar"])
    @pytest.mark.parametrize("style", ["urn", "url", "relative"])
    def test_every_entry_conforms_to_its_profile(self, book, dialect, units, style):
        assert not [
            *refused(book, dialect, submission(dialect, "Patient/a", readings=3, units=units, reference_style=style))
        ]

    def test_of_the_faulty_entries_only_those_with_a_wrong_form_break_rules(self, book, dialect):
        bundle = faulty_submission(dialect, "Patient/a", "Patient/b")
        unit, summary = len(bundle["entry"]) - len(FAULTS), len(bundle["entry"]) - len(FAULTS) + 1
        found = {*refused(book, dialect, bundle)}
        assert {index for index, _ in found} == {unit, summary}
        assert {rule.rpartition("/")[2] for index, rule in found} >= {"value-unit", "hasMember-gmi"}


def test_each_measure_has_one_code_in_each_system():
    for system in zip(*(codes for name, codes in CODES.items() if name != "mean-glucose"), strict=True):
        assert len(set(system)) == len(system)


if IG.exists():  # the compiled guides are not part of the repository

    @pytest.mark.parametrize("dialect", DIALECTS)
    def test_profiles_exist_in_the_guide(dialect):
        known = {json.loads(path.read_text())["url"] for path in (IG / dialect).glob("StructureDefinition-*.json")}
        for units in ("mass", "molar"):
            for made in (
                submission(dialect, "Patient/a", readings=2, units=units),
                standing_orders(dialect, "Patient/a"),
            ):
                assert set(re.findall(r'"(http://[^"]+/StructureDefinition/[^"]+)"', encode(made).decode())) <= known
