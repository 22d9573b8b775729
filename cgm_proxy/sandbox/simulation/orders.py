"""A simulated patient, and a clinic's orders for CGM data in each dialect."""

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

from fhir.resources.R4B.codeableconcept import CodeableConcept
from fhir.resources.R4B.coding import Coding
from fhir.resources.R4B.extension import Extension
from fhir.resources.R4B.humanname import HumanName
from fhir.resources.R4B.identifier import Identifier
from fhir.resources.R4B.patient import Patient
from fhir.resources.R4B.period import Period
from fhir.resources.R4B.quantity import Quantity
from fhir.resources.R4B.reference import Reference
from fhir.resources.R4B.servicerequest import ServiceRequest
from fhir.resources.R4B.timing import Timing, TimingRepeat

from cgm_proxy.core.codec.fhir_models import as_json
from cgm_proxy.core.json_values import JsonObject
from cgm_proxy.core.submission.dialects import DIALECTS_BY_ID, Dialect
from cgm_proxy.sandbox.simulation.dialect_forms import FORMS, Units
from cgm_proxy.sandbox.simulation.readings import START

UCUM = "http://unitsofmeasure.org"

#: How often to submit data and how far back it is to reach, from 0.1.0 on: every 2 weeks, 30 days.
PERIODS = (
    Extension(url="submissionPeriod", valueQuantity=Quantity(value=Decimal(2), unit="week", system=UCUM, code="wk")),
    Extension(url="lookbackPeriod", valueQuantity=Quantity(value=Decimal(30), unit="day", system=UCUM, code="d")),
)
#: Earlier dialects have a Timing instead, and no lookback period.
EVERY_TWO_WEEKS = Timing(repeat=TimingRepeat(frequency=1, period=Decimal(2), periodUnit="wk"))
FREQUENCIES = {"argo": (Extension(url="submissionFrequency", valueTiming=EVERY_TWO_WEEKS),)}


def patient(patient_id: str = "example", family: str = "Peters") -> JsonObject:
    """Return a patient who conforms to US Core 6.1.0, with an id, to be stored by PUT."""
    return as_json(
        Patient(
            id=patient_id,
            identifier=[Identifier(system="http://clinic.example/mrn", value=f"cgm-{patient_id}")],
            name=[HumanName(family=family, given=["Amy"])],
            gender="female",
            birthDate=date(1964, 6, 20),
        )
    )


def standing_orders(
    dialect: str, patient_reference: str, *, units: Units = "mass", start: datetime = START
) -> tuple[JsonObject, ...]:
    """Return a patient's active orders in a dialect, to be stored by PUT; their ids contain the patient's.

    The first is the guide's example, "summary statistics & PDF every 2 weeks". The second asks for readings in `units`.
    Where the dialect has one-time orders, the third asks for the readings of the two weeks from `start`.
    """
    guide = DIALECTS_BY_ID[dialect]
    reading = FORMS[dialect].readings[units][0]
    standing, *one_time = guide.order_codes
    orders = [
        _order(guide, standing, patient_reference, "summary", _schedule(guide, "cgm-summary", "cgm-summary-pdf")),
        _order(guide, standing, patient_reference, "readings", _schedule(guide, reading)),
        *(_order(guide, code, patient_reference, "once", _one_time(guide, start, reading)) for code in one_time),
    ]
    return tuple(as_json(order) for order in orders)


def _order(guide: Dialect, code: str, patient_reference: str, content: str, extension: Extension) -> ServiceRequest:
    return ServiceRequest(
        id=f"{guide.id}-{content}-{patient_reference.rpartition('/')[2]}"[:64],
        status="active",
        intent="order",
        code=CodeableConcept(coding=[Coding(system=guide.code_system, code=code)]),
        subject=Reference(reference=patient_reference),
        extension=[extension],
    )


def _schedule(guide: Dialect, *profiles: str) -> Extension:
    frequency = FREQUENCIES.get(guide.id, PERIODS)
    url = guide.canonical_url("data-submission-schedule")
    return Extension(url=url, extension=[*frequency, *_data_profiles(guide, profiles)])


def _one_time(guide: Dialect, start: datetime, *profiles: str) -> Extension:
    first = start.astimezone(UTC).date()
    # The models take dates here; their annotations have only datetimes.
    weeks = Period(start=first, end=first + timedelta(days=14))  # type: ignore[arg-type]
    period = Extension(url="timePeriod", valuePeriod=weeks)
    url = guide.canonical_url("data-submission-one-time-spec")
    return Extension(url=url, extension=[period, *_data_profiles(guide, profiles)])


def _data_profiles(guide: Dialect, profiles: tuple[str, ...]) -> list[Extension]:
    return [Extension(url="submissionDataProfile", valueCanonical=guide.canonical_url(name)) for name in profiles]
