"""The submissions of a run. They depend only on seed, submitter and step, so that a run can be repeated.

All submitters proceed through the readings of the same patients at about the same pace, so that their submissions overlap.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, timedelta, timezone
from decimal import Decimal
from random import Random
from typing import Literal
from uuid import UUID

from chaos.checker import Entry, Submission

from cgm_proxy.core.json_values import JsonObject
from cgm_proxy.sandbox.simulation.dialect_forms import Units
from cgm_proxy.sandbox.simulation.readings import START, STEP_MINUTES, Reading, figures, simulated_glucose
from cgm_proxy.sandbox.simulation.resources import SimulatedSubmitter
from cgm_proxy.sandbox.simulation.submissions import bundle, patient, standing_orders

Dialect = Literal["argo", "1.0.0"]
DIALECTS: tuple[Dialect, ...] = ("argo", "1.0.0")
UNITS: tuple[Units, ...] = ("mass", "molar")

#: Contents of submissions; a content that is listed more often is more frequent.
KINDS = ("readings", "readings", "readings", "everything", "summary")

#: Numbers of readings in a submission.
SIZES = (3, 12, 30, 80)

#: Readings between the starts of two steps, and how many readings earlier a submission may start.
ADVANCE = 6
BACK = 48

#: Readings after which a patient changes the sensor, and the number of sensors.
WORN = 150
SENSORS = 3

#: In every fifth step all submitters send the same submission.
TOGETHER = 5

#: Readings of a summary. Most summaries begin at a multiple of it, so that several submitters send the same one.
SUMMARIZED = 48

EAST = timezone(timedelta(hours=2))


@dataclass(frozen=True)
class Patient:
    """A patient. If `ordered`, there are standing orders, which ask for readings in `units`."""

    name: str
    units: Units
    ordered: bool

    @property
    def reference(self) -> str:
        return f"Patient/{self.name}"

    def before(self) -> list[JsonObject]:
        """Return the resources that are stored before the run: patient, orders, and devices to which some readings refer."""
        orders = [order for dialect in DIALECTS for order in standing_orders(dialect, self.reference, units=self.units)]
        return [patient(self.name), *(orders if self.ordered else []), *self.known_devices()]

    def known_devices(self) -> list[JsonObject]:
        """Return the clinic's own records of the patient's sensors."""
        devices = [
            self.device(SimulatedSubmitter("1.0.0", self.reference), number)["resource"] for number in range(SENSORS)
        ]
        return [
            device | {"id": f"{self.name}-{n}", "note": [{"text": "from the clinic"}]}
            for n, device in enumerate(devices)
        ]

    def device(self, submitter: SimulatedSubmitter, number: int) -> JsonObject:
        """Return the entry of one of the patient's sensors."""
        return submitter.device(f"{self.name}-{number}")


@dataclass(frozen=True)
class Workload:
    """All submissions that a run may send."""

    seed: int
    patients: tuple[Patient, ...]
    submitters: int

    def submission(self, submitter: int, step: int) -> Submission:
        """Return the submission of a submitter at a step: a new one, or an earlier one of any submitter in another order."""
        random = Random(f"{self.seed} {submitter} {step}")
        author, then = submitter, step
        if step % TOGETHER == 0:
            author = 0
        elif random.random() < 0.3:
            author, then = random.randrange(self.submitters), max(0, step - random.randrange(6))
        draft = _draft(Random(f"{self.seed} {author} {then} content"), self.patients, then)
        return draft.submission(f"{submitter}.{step}", random)


@dataclass(frozen=True)
class _Draft:
    """The entries of a submission, before they are shuffled; the proxy has to refuse the `faulty` ones."""

    patient: Patient
    submitter: SimulatedSubmitter
    atomic: bool
    entries: list[JsonObject]
    faulty: list[JsonObject]

    def submission(self, name: str, random: Random) -> Submission:
        """Return the submission, with some entries duplicated, and in half of the cases shuffled."""
        entries = [
            *self.entries,
            *self.faulty,
            *(_duplicate(entry, random) for entry in self.entries if random.random() < 0.02),
        ]
        if random.random() < 0.5:
            random.shuffle(entries)
        posted = bundle(self.submitter.dialect, entries, START)
        if self.atomic:
            posted["type"] = "transaction"
        known = {f"Device/{device['id']}": device for device in self.patient.known_devices()}
        return Submission(name, self.submitter.dialect, posted, checker_entries(name, entries, known, self.faulty))


def checker_entries(
    name: str, entries: Sequence[JsonObject], known: Mapping[str, JsonObject], faulty: Sequence[JsonObject] = ()
) -> tuple[Entry, ...]:
    """Return the entries of a Bundle for the checker; `known` are stored resources to which they refer."""
    resolve = ({name: entry["resource"] for entry in entries for name in _references(entry)} | known).get
    return tuple(
        Entry(f"submission {name}, entry {number}", entry["resource"], resolve, entry in faulty)
        for number, entry in enumerate(entries)
    )


def _draft(random: Random, patients: tuple[Patient, ...], step: int) -> _Draft:
    patient_, dialect = random.choice(patients), random.choice(DIALECTS)
    units = patient_.units if patient_.ordered else random.choice(UNITS)
    submitter = SimulatedSubmitter(dialect, patient_.reference, units, random.choice(("urn", "urn", "url", "relative")))
    atomic = dialect == "argo" and random.random() < 0.25
    kind = random.choice(KINDS)
    entries, faulty = [], []
    if kind != "summary":
        entries = _readings(random, patient_, submitter, max(0, step * ADVANCE - random.randrange(BACK)))
        if not atomic and random.random() < 0.2:
            faulty = [submitter.reading(*_reading(step), unit="mg")]
    if kind != "readings":
        entries = entries + _summary(random, submitter, step * ADVANCE // SUMMARIZED * SUMMARIZED)
    return _Draft(patient_, submitter, atomic, entries, faulty)


def _readings(random: Random, patient_: Patient, submitter: SimulatedSubmitter, first: int) -> list[JsonObject]:
    """Return the entries of readings; they refer to devices that are sent with them, to stored devices, or to none."""
    device_source, zone = random.choice(("sent", "sent", "stored", "none")), random.choice((UTC, UTC, EAST))
    indices = range(first, first + random.choice(SIZES))
    worn = {index // WORN % SENSORS for index in indices} if device_source == "sent" else set()
    devices = {number: patient_.device(submitter, number) for number in sorted(worn)}
    entries = []
    for index in indices:
        number, (instant, value) = index // WORN % SENSORS, _reading(index)
        values = [value, value + 20] if index % 30 == 0 else [value]  # real exports have two values at one instant
        for mg_per_dl in values:
            entry = submitter.reading(instant.astimezone(zone), mg_per_dl, devices.get(number))
            if device_source == "stored":
                entry["resource"]["device"] = {"reference": f"Device/{patient_.name}-{number}"}
            if index % 3 == 0 or (index % 7 == 0 and submitter.dialect == "argo"):
                _add_digit(entry["resource"]["valueQuantity"])
            entries.append(entry)
    return [*devices.values(), *entries]


def _reading(index: int) -> Reading:
    minutes = index * STEP_MINUTES
    return START + timedelta(minutes=minutes), simulated_glucose(minutes)


def _add_digit(quantity: JsonObject) -> None:
    """Add a trailing zero, which the store has to keep."""
    value = Decimal(quantity["value"])
    quantity["value"] = value.quantize(Decimal(1).scaleb(int(value.as_tuple().exponent) - 1))


def _summary(random: Random, submitter: SimulatedSubmitter, first: int) -> list[JsonObject]:
    """Return a summary with its members and the report; the readings that it summarizes need not be sent."""
    if random.random() < 0.3:
        first += random.randrange(SUMMARIZED)
    computed = figures([_reading(index) for index in range(first, first + SUMMARIZED)])
    members = submitter.members(computed)
    summary = submitter.summary(computed, members)
    return [*members, summary, submitter.report(computed, [summary] if random.random() < 0.7 else ())]


def _duplicate(entry: JsonObject, random: Random) -> JsonObject:
    """Return a copy of an entry with another URL."""
    name, resource = str(UUID(int=random.getrandbits(128), version=4)), entry["resource"]
    if "id" in resource:
        resource = resource | {"id": name}
    return entry | {"fullUrl": entry["fullUrl"][: -len(name)] + name, "resource": resource}


def _references(entry: JsonObject) -> tuple[str, ...]:
    """Return the references that mean an entry: its fullUrl, and the type and id at the end of it."""
    return entry["fullUrl"], "/".join(entry["fullUrl"].split("/")[-2:])
