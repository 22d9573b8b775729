"""A simulated patient and a clinic's orders for CGM data, in each dialect."""

from datetime import UTC, datetime, timedelta
from typing import Any

from cgm_proxy.core.json_values import JsonObject
from cgm_proxy.core.submission.dialects import DIALECTS_BY_ID, Dialect
from cgm_proxy.sandbox.simulation.readings import START
from cgm_proxy.sandbox.simulation.resources import FORMS, Units

#: Dialects before 0.1.0 of 2024-05-22 say how often as a Timing, later ones as a period.
FREQUENCY: JsonObject = {
    "url": "submissionFrequency",
    "valueTiming": {"repeat": {"frequency": 1, "period": 2, "periodUnit": "wk"}},
}
UCUM = "http://unitsofmeasure.org"
PERIODS: tuple[JsonObject, ...] = (
    {"url": "submissionPeriod", "valueQuantity": {"value": 2, "unit": "week", "system": UCUM, "code": "wk"}},
    {"url": "lookbackPeriod", "valueQuantity": {"value": 30, "unit": "day", "system": UCUM, "code": "d"}},
)
HOW_OFTEN: dict[str, tuple[JsonObject, ...]] = {"argo": (FREQUENCY,)}


def patient(patient_id: str = "example", family: str = "Peters") -> JsonObject:
    """Make a patient who conforms to US Core 6.1.0, with an id, to be stored by PUT."""
    return {
        "resourceType": "Patient",
        "id": patient_id,
        "identifier": [{"system": "http://clinic.example/mrn", "value": f"cgm-{patient_id}"}],
        "name": [{"family": family, "given": ["Amy"]}],
        "gender": "female",
        "birthDate": "1964-06-20",
    }


def standing_orders(
    dialect: str, patient_reference: str, *, units: Units = "mass", start: datetime = START
) -> tuple[JsonObject, ...]:
    """Make a patient's active orders in a dialect, with ids that name the patient, to be stored by PUT.

    The guide's example first, "summary statistics & PDF every 2 weeks"; then one for readings in `units`; then, where
    the dialect has them, a one-time order for the readings of the two weeks from `start`.
    """
    guide, form = DIALECTS_BY_ID[dialect], FORMS[dialect]
    often = HOW_OFTEN.get(dialect, PERIODS)
    reading = form.readings[units][0]
    standing = guide.order_codes[0]
    orders = [
        _order(
            guide, standing, patient_reference, "summary", _schedule(guide, often, "cgm-summary", "cgm-summary-pdf")
        ),
        _order(guide, standing, patient_reference, "readings", _schedule(guide, often, reading)),
    ]
    orders += [
        _order(guide, code, patient_reference, "once", _one_time(guide, start, reading))
        for code in guide.order_codes[1:]
    ]
    return tuple(orders)


def _order(guide: Dialect, code: str, patient_reference: str, about: str, extension: JsonObject) -> JsonObject:
    return {
        "resourceType": "ServiceRequest",
        "id": f"{guide.id}-{about}-{patient_reference.rpartition('/')[2]}"[:64],
        "status": "active",
        "intent": "order",
        "code": {"coding": [{"system": guide.code_system, "code": code}]},
        "subject": {"reference": patient_reference},
        "extension": [extension],
    }


def _schedule(guide: Dialect, often: tuple[JsonObject, ...], *profiles: str) -> JsonObject:
    return {"url": guide.canonical_url("data-submission-schedule"), "extension": [*often, *_wanted(guide, profiles)]}


def _one_time(guide: Dialect, start: datetime, *profiles: str) -> JsonObject:
    first = start.astimezone(UTC)
    period = {"start": f"{first:%Y-%m-%d}", "end": f"{first + timedelta(days=14):%Y-%m-%d}"}
    parts = [{"url": "timePeriod", "valuePeriod": period}, *_wanted(guide, profiles)]
    return {"url": guide.canonical_url("data-submission-one-time-spec"), "extension": parts}


def _wanted(guide: Dialect, profiles: tuple[str, ...]) -> list[dict[str, Any]]:
    return [{"url": "submissionDataProfile", "valueCanonical": guide.canonical_url(name)} for name in profiles]
