"""The simulated submissions are what conformant submitters send, and their figures are true."""

import base64
import json
import re
import shutil
import statistics
import subprocess
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from importlib import import_module
from itertools import pairwise

import msgspec
import pytest
from support.places import GUIDE, ROOT, RULES

from cgm_proxy.core.rules.rulebook import RuleBook
from cgm_proxy.core.submission.dialects import DIALECTS_BY_ID
from cgm_proxy.sandbox.simulation.readings import Figures, figures, molar
from cgm_proxy.sandbox.simulation.resources import CODES, FORMS
from cgm_proxy.sandbox.simulation.submissions import (
    FAULTS,
    faulty_submission,
    patient,
    readings,
    standing_orders,
    submission,
)

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


class TestReadings:
    def test_two_weeks_look_like_a_sensor(self):
        values = [value for _, value in readings()]
        assert len(values) == 4032
        assert min(values) >= 40
        assert max(values) <= 400
        steps = [abs(b - a) for a, b in pairwise(values)]
        assert max(steps) < 40, "glucose does not jump"
        assert len(set(values[:288])) > 60, "no day is flat"
        days = [values[day : day + 288] for day in range(0, 4032, 288)]
        assert statistics.pstdev(statistics.mean(day) for day in days) > 5, "days differ: it is no periodic function"

    @pytest.mark.parametrize("step", [1, 5, 15])
    def test_instants_are_a_step_apart(self, step):
        taken = readings(100, start=START, step_minutes=step)
        assert taken[0][0] == START
        assert {b - a for (a, _), (b, _) in pairwise(taken)} == {timedelta(minutes=step)}

    def test_every_minute_passes_through_the_same_values(self):
        assert readings(500, step_minutes=1)[::5] == readings(100)

    def test_ninety_days_repeat_the_two_weeks(self):
        values = [value for _, value in readings(25_920)]
        assert values[4032:8064] == values[:4032]

    def test_data_file_says_how_it_was_made(self):
        header = (ROOT / "cgm_proxy/sandbox/simulation/readings.csv").read_text().splitlines()[:3]
        assert all(line.startswith("#") for line in header)
        for word in ("simglucose", "MIT", "seed", "simulate_readings.py"):
            assert word in "\n".join(header)


def at(*values, step=5):
    return [(START + timedelta(minutes=step * n), value) for n, value in enumerate(values)]


class TestFigures:
    def test_figures_of_a_known_series(self):
        found = figures(at(50, 60, 100, 200, 300))
        assert found == Figures(
            start=START,
            end=START + timedelta(minutes=20),
            count=5,
            mean=Decimal("142.0"),
            gmi=Decimal("6.7"),
            cv=Decimal("74.9"),
            days_of_wear=1,
            sensor_active=Decimal("100.0"),
            ranges=(Decimal("20.0"),) * 5,
        )

    @pytest.mark.parametrize(
        ("value", "place"),
        [(40, 0), (53, 0), (54, 1), (69, 1), (70, 2), (180, 2), (181, 3), (250, 3), (251, 4), (400, 4)],
    )
    def test_ranges_meet_without_gap_or_overlap(self, value, place):
        assert figures(at(value)).ranges[place] == Decimal("100.0")

    def test_ranges_sum_to_100_although_each_is_rounded(self):
        assert figures(at(50, 60, 100)).ranges == tuple(map(Decimal, ("33.4", "33.3", "33.3", "0.0", "0.0")))
        assert sum(figures(readings(1000)).ranges) == 100

    def test_gaps_lessen_sensor_active(self):
        taken = at(*[100] * 10)
        assert figures(taken[:4] + taken[9:]).sensor_active == Decimal("50.0")

    def test_days_of_wear_count_days_with_readings(self):
        assert figures([*at(100), (START + timedelta(days=3), 100)]).days_of_wear == 2

    def test_none_are_refused(self):
        with pytest.raises(ValueError, match="at least one"):
            figures([])

    def test_molar_keeps_one_decimal_place(self):
        assert [str(molar(value)) for value in (40, 100, 126, 180)] == ["2.2", "5.6", "7.0", "10.0"]


@pytest.mark.parametrize("dialect", DIALECTS)
class TestSubmission:
    def test_same_arguments_make_the_same_bytes(self, dialect):
        assert encode(submission(dialect, "Patient/a", readings=50)) == encode(
            submission(dialect, "Patient/a", readings=50)
        )

    def test_is_marked_as_its_dialect_marks_it(self, dialect):
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

    def test_equal_readings_stay_apart(self, dialect):
        bundle = submission(dialect, "Patient/a", readings=at(100) * 3)
        assert len({entry["fullUrl"] for entry in bundle["entry"]}) == len(bundle["entry"])

    @pytest.mark.parametrize("units", ["mass", "molar"])
    def test_readings_have_their_profile_code_and_lower_case_unit(self, dialect, units):
        bundle = submission(dialect, "Patient/a", readings=at(126), units=units)
        profile, code = FORMS[dialect].readings[units]
        reading = by_profile(bundle)[profile]
        assert reading["code"]["coding"][0]["code"] == code
        value = reading["valueQuantity"]
        wanted = {"mass": (126, "mg/dl", "mg/dL"), "molar": (Decimal("7.0"), "mmol/l", "mmol/L")}[units]
        assert (value["value"], value["unit"], value["code"]) == wanted
        assert reading["effectiveDateTime"] == "2026-03-01T00:00:00Z"

    def test_references_lead_to_entries(self, dialect):
        bundle = submission(dialect, "Patient/a", readings=3)
        places = {entry["fullUrl"] for entry in bundle["entry"]}
        found = set(re.findall(r'"reference":"(urn:[^"]+)"', encode(bundle).decode()))
        assert found <= places
        assert {
            reading["device"]["reference"] for reading in resources(bundle, "Observation") if "device" in reading
        } == {bundle["entry"][0]["fullUrl"]}

    def test_summary_has_its_members_and_the_report_its_summary(self, dialect):
        bundle = submission(dialect, "Patient/a", readings=100, send_readings=False)
        where = {entry["fullUrl"]: profile_of(entry["resource"]) for entry in bundle["entry"]}
        found = by_profile(bundle)
        members = [where[member["reference"]] for member in found["cgm-summary"]["hasMember"]]
        assert len(members) == len(set(members)) == {"argo": 10}.get(dialect, 6)
        assert [where[result["reference"]] for result in found["cgm-summary-pdf"]["result"]] == ["cgm-summary"]
        assert ("valueQuantity" in found["cgm-summary"]) == (dialect == "argo")

    def test_decimals_keep_their_place(self, dialect):
        found = by_profile(submission(dialect, "Patient/a", readings=288, send_readings=False))
        active = found["cgm-summary-sensor-active-percentage"]["valueQuantity"]
        assert b'"value":100.0,' in encode(active)
        assert found["cgm-summary-days-of-wear"]["valueQuantity"]["value"] == 1

    @pytest.mark.parametrize(
        ("left_out", "gone"),
        [
            ({"device": False}, "cgm-device"),
            ({"pdf": False}, "cgm-summary-pdf"),
            ({"summary": False}, "cgm-summary"),
            ({"send_readings": False}, "cgm-sensor-reading-mass-per-volume"),
        ],
    )
    def test_parts_can_be_left_out(self, dialect, left_out, gone):
        bundle = submission(dialect, "Patient/a", readings=2, **left_out)
        assert gone not in by_profile(bundle)

    def test_without_a_device_no_reading_names_one(self, dialect):
        bundle = submission(dialect, "Patient/a", readings=2, device=False)
        assert not any("device" in observation for observation in resources(bundle, "Observation"))

    @pytest.mark.parametrize(
        ("by", "wanted"), [("url", r"https://submitter\.example/fhir/\w+/"), ("relative", r"\w+/")]
    )
    def test_entries_can_refer_by_url_or_relatively(self, dialect, by, wanted):
        bundle = submission(dialect, "Patient/a", readings=2, by=by)
        for entry in bundle["entry"]:
            assert entry["fullUrl"].endswith(f"/{entry['resource']['resourceType']}/{entry['resource']['id']}")
        for member in by_profile(bundle)["cgm-summary"]["hasMember"]:
            assert re.fullmatch(wanted + "[0-9a-f-]{36}", member["reference"])

    def test_is_valid_base_fhir(self, dialect):
        bundles = import_module("fhir.resources.R4B.bundle")
        bundles.Bundle.model_validate_json(encode(submission(dialect, "Patient/a", readings=2)))
        bundles.Bundle.model_validate_json(encode(faulty_submission(dialect, "Patient/a", "Patient/b")))

    def test_faulty_ones_end_with_the_faults(self, dialect):
        entries = faulty_submission(dialect, "Patient/a", "Patient/b")["entry"]
        unit, summary, other, unasked = (entry["resource"] for entry in entries[-len(FAULTS) :])
        assert unit["valueQuantity"]["unit"] == "mg/dL"
        assert len(summary["hasMember"]) == {"argo": 9}.get(dialect, 5)
        assert other["subject"] == {"reference": "Patient/b"}
        assert unasked["valueQuantity"]["unit"] == "mmol/l"
        assert len({entry["fullUrl"] for entry in entries}) == len(entries)
        for entry in entries[: -len(FAULTS)]:
            assert entry["resource"].get("subject", {"reference": "Patient/a"}) == {"reference": "Patient/a"}


@pytest.fixture(scope="module")
def book():
    return RuleBook.load(RULES)


def refused(book, dialect, bundle):
    """Judge every entry by the profile that it claims; give the indexes and rules of those refused."""
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
    @pytest.mark.parametrize("by", ["urn", "url", "relative"])
    def test_every_entry_conforms_to_its_profile(self, book, dialect, units, by):
        assert not [*refused(book, dialect, submission(dialect, "Patient/a", readings=3, units=units, by=by))]

    def test_only_the_faults_of_form_do_not(self, book, dialect):
        bundle = faulty_submission(dialect, "Patient/a", "Patient/b")
        unit, summary = len(bundle["entry"]) - len(FAULTS), len(bundle["entry"]) - len(FAULTS) + 1
        found = {*refused(book, dialect, bundle)}
        assert {index for index, _ in found} == {unit, summary}
        assert {rule.rpartition("/")[2] for index, rule in found} >= {"value-unit", "hasMember-gmi"}

    def test_orders_conform(self, book, dialect):
        for order in standing_orders(dialect, "Patient/a"):
            code = order["code"]["coding"][0]["code"].replace(
                "cgm-submission-order", "cgm-data-submission-standing-order"
            )
            profile = DIALECTS_BY_ID[dialect].canonical_url(code)
            assert book.profile(profile, dialect)
            assert not book.examine(order, [profile], lambda _: None, encoded=encode(order), dialect=dialect)


def tag(system, code):
    return {"tag": [{"system": system, "code": code}]}


class TestOrders:
    def test_first_argo_order_is_the_guides_example(self):
        order = standing_orders("argo", "Patient/example")[0]
        assert order | {"id": "cgm-data-submission-order"} == {
            "resourceType": "ServiceRequest",
            "id": "cgm-data-submission-order",
            "status": "active",
            "intent": "order",
            "code": {"coding": [{"system": "http://argo.run/cgm/CodeSystem/cgm", "code": "cgm-submission-order"}]},
            "subject": {"reference": "Patient/example"},
            "extension": [
                {
                    "url": "http://argo.run/cgm/StructureDefinition/data-submission-schedule",
                    "extension": [
                        {
                            "url": "submissionFrequency",
                            "valueTiming": {"repeat": {"frequency": 1, "period": 2, "periodUnit": "wk"}},
                        },
                        {
                            "url": "submissionDataProfile",
                            "valueCanonical": "http://argo.run/cgm/StructureDefinition/cgm-summary",
                        },
                        {
                            "url": "submissionDataProfile",
                            "valueCanonical": "http://argo.run/cgm/StructureDefinition/cgm-summary-pdf",
                        },
                    ],
                }
            ],
        }

    @pytest.mark.parametrize("dialect", DIALECTS)
    def test_orders_ask_for_what_a_submission_holds(self, dialect):
        asked = set(re.findall(r'"valueCanonical":"([^"]+)"', encode(standing_orders(dialect, "Patient/a")).decode()))
        sent = {e["resource"]["meta"]["profile"][0] for e in submission(dialect, "Patient/a", readings=2)["entry"]}
        assert asked <= sent

    def test_only_the_latest_dialect_has_a_one_time_order(self):
        assert [len(standing_orders(dialect, "Patient/a")) for dialect in DIALECTS] == [2, 2, 2, 3]
        once = standing_orders("1.0.0", "Patient/a", start=START)[2]
        period = once["extension"][0]["extension"][0]["valuePeriod"]
        assert period == {"start": "2026-03-01", "end": "2026-03-15"}

    def test_ids_differ_between_patients_and_dialects(self):
        made = [o["id"] for d in DIALECTS for p in ("Patient/a", "Patient/b") for o in standing_orders(d, p)]
        assert len(set(made)) == len(made)
        assert all(re.fullmatch(r"[A-Za-z0-9.\-]{1,64}", order_id) for order_id in made)

    def test_orders_and_patient_are_valid_base_fhir(self):
        requests, patients = (import_module(f"fhir.resources.R4B.{name}") for name in ("servicerequest", "patient"))
        patients.Patient.model_validate_json(encode(patient()))
        for dialect in DIALECTS:
            for order in standing_orders(dialect, "Patient/a"):
                requests.ServiceRequest.model_validate_json(encode(order))


class TestPdf:
    @pytest.fixture
    def pdf(self):
        report = by_profile(submission("argo", "Patient/a", send_readings=False))["cgm-summary-pdf"]
        return base64.b64decode(report["presentedForm"][0]["data"], validate=True)

    def test_cross_references_point_at_their_objects(self, pdf):
        table = int(re.search(rb"startxref\n(\d+)\n%%EOF\n$", pdf)[1])
        assert pdf[table:].startswith(b"xref\n0 6\n")
        offsets = re.findall(rb"^(\d{10}) 00000 n $", pdf[table:], re.MULTILINE)
        for number, offset in enumerate(offsets, start=1):
            assert pdf[int(offset) :].startswith(b"%d 0 obj" % number)

    def test_shows_the_figures(self, pdf):
        found = figures(readings())
        for value in (found.mean, found.gmi, found.cv, found.sensor_active, *found.ranges):
            assert str(value).encode() in pdf

    @pytest.mark.skipif(not shutil.which("pdftotext"), reason="pdftotext is not installed")
    def test_a_reader_reads_it(self, pdf, tmp_path):
        (tmp_path / "report.pdf").write_bytes(pdf)
        text = subprocess.run(["pdftotext", tmp_path / "report.pdf", "-"], check=True, capture_output=True).stdout
        assert b"Glucose management indicator (GMI)" in text


def test_each_measure_has_one_code_in_each_system():
    for system in zip(*(codes for name, codes in CODES.items() if name != "mean-glucose"), strict=True):
        assert len(set(system)) == len(system)


if IG.exists():  # the compiled guides lie beside the repository, where they are at all

    @pytest.mark.parametrize("dialect", DIALECTS)
    def test_profiles_exist_in_the_guide(dialect):
        known = {json.loads(path.read_text())["url"] for path in (IG / dialect).glob("StructureDefinition-*.json")}
        for units in ("mass", "molar"):
            for made in (
                submission(dialect, "Patient/a", readings=2, units=units),
                standing_orders(dialect, "Patient/a"),
            ):
                assert set(re.findall(r'"(http://[^"]+/StructureDefinition/[^"]+)"', encode(made).decode())) <= known
