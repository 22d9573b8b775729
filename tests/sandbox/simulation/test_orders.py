"""The simulated orders conform to the guide."""

import re
from datetime import UTC, datetime

import msgspec
import pytest
from fhir.resources.R4B.patient import Patient
from fhir.resources.R4B.servicerequest import ServiceRequest

from cgm_proxy.core.submission.dialects import DIALECTS_BY_ID
from cgm_proxy.sandbox.simulation.orders import patient, standing_orders
from cgm_proxy.sandbox.simulation.submissions import submission

DIALECTS = tuple(DIALECTS_BY_ID)
START = datetime(2026, 3, 1, tzinfo=UTC)
encode = msgspec.json.Encoder(decimal_format="number").encode


def test_the_first_argo_order_is_the_guides_example():
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
def test_orders_ask_for_what_a_submission_holds(dialect):
    ordered = set(re.findall(r'"valueCanonical":"([^"]+)"', encode(standing_orders(dialect, "Patient/a")).decode()))
    sent = {e["resource"]["meta"]["profile"][0] for e in submission(dialect, "Patient/a", readings=2)["entry"]}
    assert ordered <= sent


def test_only_the_latest_dialect_has_a_one_time_order():
    assert [len(standing_orders(dialect, "Patient/a")) for dialect in DIALECTS] == [2, 2, 2, 3]
    once = standing_orders("1.0.0", "Patient/a", start=START)[2]
    period = once["extension"][0]["extension"][0]["valuePeriod"]
    assert period == {"start": "2026-03-01", "end": "2026-03-15"}


def test_ids_differ_between_patients_and_dialects():
    ids = [o["id"] for d in DIALECTS for p in ("Patient/a", "Patient/b") for o in standing_orders(d, p)]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[A-Za-z0-9.\-]{1,64}", order_id) for order_id in ids)


def test_orders_and_patient_are_valid_base_fhir():
    Patient.model_validate_json(encode(patient()))
    for dialect in DIALECTS:
        for order in standing_orders(dialect, "Patient/a"):
            ServiceRequest.model_validate_json(encode(order))


@pytest.mark.parametrize("dialect", DIALECTS)
def test_orders_conform_to_their_profiles(book, dialect):
    for order in standing_orders(dialect, "Patient/a"):
        code = order["code"]["coding"][0]["code"].replace("cgm-submission-order", "cgm-data-submission-standing-order")
        profile = DIALECTS_BY_ID[dialect].canonical_url(code)
        assert book.profile(profile, dialect)
        assert not book.examine(order, [profile], lambda _: None, encoded=encode(order), dialect=dialect)
