"""Whole simulated submissions, conformant and faulty, for the demo, the benchmarks and the tests.

The same arguments make the same submission, to the byte. Numbers are int or Decimal.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Literal

from cgm_proxy.core.json_values import JsonObject
from cgm_proxy.core.submission.dialects import DIALECTS_BY_ID
from cgm_proxy.sandbox.simulation.orders import patient, standing_orders
from cgm_proxy.sandbox.simulation.readings import START, TWO_WEEKS, Reading, figures, readings
from cgm_proxy.sandbox.simulation.resources import By, SimulatedSubmitter, Units, fhir_instant

__all__ = ["FAULTS", "faulty_submission", "patient", "readings", "standing_orders", "submission"]

Dialect = Literal["argo", "0.1.0", "1.0.0-ballot", "1.0.0"]

simulate = readings

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
    by: By = "urn",
) -> JsonObject:
    """Make a conformant submission of `readings`, or of that many simulated ones from `start`.

    In order: the Device, the readings, the summary's members, the summary, the PDF report. The readings can be left out
    and are summarized all the same. `by` says how entries refer to one another.
    """
    taken = simulate(readings, start=start) if isinstance(readings, int) else readings
    submitter, computed = SimulatedSubmitter(dialect, patient_reference, units, by), figures(taken)
    sensor = submitter.device() if device else None
    entries = [sensor] if sensor else []
    if send_readings:
        entries += [submitter.reading(*reading, sensor, number=number) for number, reading in enumerate(taken)]
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
    """Make a submission whose last entries are faulty, one for each of `FAULTS`, in their order; the others are good.

    A reading whose unit is "mg/dL"; a summary that lacks its GMI; a reading of another patient; a reading in mmol/L,
    which the simulated orders in "mass" do not ask for.
    """
    taken = simulate(12, start=start)
    submitter, computed = SimulatedSubmitter(dialect, patient_reference), figures(taken)
    sensor, members = submitter.device(), submitter.members(computed)
    good = [submitter.reading(*reading, sensor) for reading in taken[:-3]]
    gmi = submitter.members(computed)[-4]
    faulty = [
        submitter.reading(*taken[-3], sensor, unit="mg/dL"),
        submitter.summary(computed, [member for member in members if member != gmi]),
        SimulatedSubmitter(dialect, other_patient_reference).reading(*taken[-2]),
        SimulatedSubmitter(dialect, patient_reference, units="molar").reading(*taken[-1], sensor),
    ]
    return bundle(dialect, [sensor, *good, *members, submitter.report(computed), *faulty], computed.end)


def bundle(dialect: Dialect, entries: list[JsonObject], sent: datetime) -> JsonObject:
    """Make the Bundle by which a dialect submits: tagged and posted to the base, or handed to the operation."""
    guide = DIALECTS_BY_ID[dialect]
    made: JsonObject = {"resourceType": "Bundle"}
    if guide.tags:
        made["meta"] = {"tag": [{"system": guide.code_system, "code": guide.tags[0]}]}
    made |= {
        "type": "transaction" if guide.uses_operation else "batch",
        "timestamp": fhir_instant(sent),
        "entry": entries,
    }
    return made
