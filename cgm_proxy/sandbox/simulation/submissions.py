"""Whole simulated submissions, conformant and faulty, for the demo, the benchmarks and the tests.

The same arguments always make the same bytes. Numbers are int or Decimal.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Literal

from fhir.resources.R4B.bundle import Bundle
from fhir.resources.R4B.coding import Coding
from fhir.resources.R4B.meta import Meta

from cgm_proxy.core.codec.fhir_models import as_json
from cgm_proxy.core.json_values import JsonObject
from cgm_proxy.core.submission.dialects import DIALECTS_BY_ID
from cgm_proxy.sandbox.simulation.dialect_forms import Units
from cgm_proxy.sandbox.simulation.orders import patient, standing_orders
from cgm_proxy.sandbox.simulation.readings import START, TWO_WEEKS, Reading, figures, simulated_readings
from cgm_proxy.sandbox.simulation.resources import ReferenceStyle, SimulatedSubmitter

__all__ = ["FAULTS", "faulty_submission", "patient", "standing_orders", "submission"]

Dialect = Literal["argo", "0.1.0", "1.0.0-ballot", "1.0.0"]

#: What is wrong with the last entries of a faulty submission, in their order.
FAULTS = ("unit", "missing member", "other patient", "not ordered")


def submission(
    dialect: Dialect,
    patient_reference: str,
    *,
    readings: int | Sequence[Reading] = TWO_WEEKS,
    start: datetime = START,
    units: Units = "mass",
    send_readings: bool = True,
    summary: bool = True,
    pdf: bool = True,
    device: bool = True,
    reference_style: ReferenceStyle = "urn",
) -> JsonObject:
    """Return a conformant submission of `readings`, or of that many simulated ones from `start`.

    The entries are the Device, the readings, the members of the summary, the summary and the PDF report, in this order.
    With `send_readings` false the summary and the report cover the readings, but the readings are not sent.
    """
    if isinstance(readings, int):
        readings = simulated_readings(readings, start=start)
    submitter, computed = SimulatedSubmitter(dialect, patient_reference, units, reference_style), figures(readings)
    sensor = submitter.device() if device else None
    entries = [sensor] if sensor else []
    if send_readings:
        entries += [submitter.reading(*reading, sensor, number=number) for number, reading in enumerate(readings)]
    results = []
    if summary:
        members = submitter.members(computed)
        results = [submitter.summary(computed, members)]
        entries += members + results
    if pdf:
        entries.append(submitter.report(computed, results))
    return bundle(dialect, entries, computed.end)


def faulty_submission(
    dialect: Dialect, patient_reference: str, other_patient_reference: str, *, start: datetime = START
) -> JsonObject:
    """Return a submission whose last entries are faulty, one for each of `FAULTS`, in their order.

    They are a reading with the unit "mg/dL"; a summary without its GMI; a reading of another patient; and a reading in
    mmol/L, which the simulated orders in "mass" do not ask for. The other entries are good.
    """
    readings = simulated_readings(12, start=start)
    submitter, computed = SimulatedSubmitter(dialect, patient_reference), figures(readings)
    sensor, members = submitter.device(), submitter.members(computed)
    gmi = members[-4]
    good = [submitter.reading(*reading, sensor) for reading in readings[:-3]]
    faulty = [
        submitter.reading(*readings[-3], sensor, unit="mg/dL"),
        submitter.summary(computed, [member for member in members if member != gmi]),
        SimulatedSubmitter(dialect, other_patient_reference).reading(*readings[-2]),
        SimulatedSubmitter(dialect, patient_reference, units="molar").reading(*readings[-1], sensor),
    ]
    return bundle(dialect, [sensor, *good, *members, submitter.report(computed), *faulty], computed.end)


def bundle(dialect: Dialect, entries: list[JsonObject], sent: datetime) -> JsonObject:
    """Return the Bundle in which a dialect submits entries: tagged and posted to the base, or posted to the operation."""
    guide = DIALECTS_BY_ID[dialect]
    head = Bundle(
        meta=Meta(tag=[Coding(system=guide.code_system, code=guide.tags[0])]) if guide.tags else None,
        type="transaction" if guide.uses_operation else "batch",
        timestamp=sent,
    )
    # The entries are already validated; to validate them again as a part of the Bundle would take 0.2 ms each.
    return as_json(head) | {"entry": entries}
