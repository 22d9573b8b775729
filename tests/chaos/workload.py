"""What the submitters send: a function of seed, submitter and step alone, so that a run can be repeated.

All submitters walk through the same patients' time at about one pace, so that what they send overlaps all the time.
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

#: What a submission is made of, and how often.
KINDS = ("readings", "readings", "readings", "everything", "summary")

#: How many readings it has.
SIZES = (3, 12, 30, 80)

#: Readings by which each step is later than the one before, and by how many a submission may reach back.
ADVANCE = 6
BACK = 48

#: Readings for which a sensor is worn, and sensors that a patient wears in turn.
WORN = 150
SENSORS = 3

#: Steps after which all submitters send the same at once.
TOGETHER = 5

#: Readings that a summary is of; most begin at a multiple of it, so that several submitters send the same one.
SUMMARIZED = 48

EAST = timezone(timedelta(hours=2))


@dataclass(frozen=True)
class Patient:
    """A patient, and whether it has standing orders, which ask for readings in `units`."""

    name: str
    units: Units
    ordered: bool

    @property
    def reference(self) -> str:
        return f"Patient/{self.name}"

    def before(self) -> list[JsonObject]:
        """Give what is stored of the patient before the run: also devices, to which some readings refer by their place."""
        orders = [order for dialect in DIALECTS for order in standing_orders(dialect, self.reference, units=self.units)]
        return [patient(self.name), *(orders if self.ordered else []), *self.known_devices()]

    def known_devices(self) -> list[JsonObject]:
        """Give the clinic's own records of the patient's sensors."""
        sent = [
            self.device(SimulatedSubmitter("1.0.0", self.reference), number)["resource"] for number in range(SENSORS)
        ]
        return [
            device | {"id": f"{self.name}-{n}", "note": [{"text": "from the clinic"}]} for n, device in enumerate(sent)
        ]

    def device(self, submitter: SimulatedSubmitter, number: int) -> JsonObject:
        """Return the entry of one of the patient's sensors."""
        return submitter.device(f"{self.name}-{number}")


@dataclass(frozen=True)
class Workload:
    """All that could ever be sent in a run."""

    seed: int
    patients: tuple[Patient, ...]
    submitters: int

    def submission(self, submitter: int, step: int) -> Submission:
        """Make what a submitter sends at a step: something new, or again what it or another one sent, in another order."""
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
    """A submission's entries in their natural order; those in `faulty` have to be refused."""

    about: Patient
    submitter: SimulatedSubmitter
    atomic: bool
    entries: list[JsonObject]
    faulty: list[JsonObject]

    def submission(self, name: str, random: Random) -> Submission:
        """Send the entries, some of them twice, in some order."""
        entries = [
            *self.entries,
            *self.faulty,
            *(_twin(entry, random) for entry in self.entries if random.random() < 0.02),
        ]
        if random.random() < 0.5:
            random.shuffle(entries)
        made = bundle(self.submitter.dialect, entries, START)
        if self.atomic:
            made["type"] = "transaction"
        known = {f"Device/{device['id']}": device for device in self.about.known_devices()}
        return Submission(name, self.submitter.dialect, made, sent(name, entries, known, self.faulty))


def sent(
    name: str, entries: Sequence[JsonObject], known: Mapping[str, JsonObject], faulty: Sequence[JsonObject] = ()
) -> tuple[Entry, ...]:
    """Give a Bundle's entries as the checker wants them; `known` are stored resources to which they refer."""
    resolve = ({name: entry["resource"] for entry in entries for name in _names(entry)} | known).get
    return tuple(
        Entry(f"submission {name}, entry {number}", entry["resource"], resolve, entry in faulty)
        for number, entry in enumerate(entries)
    )


def _draft(random: Random, patients: tuple[Patient, ...], step: int) -> _Draft:
    about, dialect = random.choice(patients), random.choice(DIALECTS)
    units = about.units if about.ordered else random.choice(UNITS)
    submitter = SimulatedSubmitter(dialect, about.reference, units, random.choice(("urn", "urn", "url", "relative")))
    atomic = dialect == "argo" and random.random() < 0.25
    kind = random.choice(KINDS)
    entries, faulty = [], []
    if kind != "summary":
        entries = _readings(random, about, submitter, max(0, step * ADVANCE - random.randrange(BACK)))
        if not atomic and random.random() < 0.2:
            faulty = [submitter.reading(*_reading(step), unit="mg")]
    if kind != "readings":
        entries = entries + _summary(random, submitter, step * ADVANCE // SUMMARIZED * SUMMARIZED)
    return _Draft(about, submitter, atomic, entries, faulty)


def _readings(random: Random, about: Patient, submitter: SimulatedSubmitter, first: int) -> list[JsonObject]:
    """Write readings, and the devices that they refer to unless these are referred to by their places, or not at all."""
    how, zone = random.choice(("sent", "sent", "known", "none")), random.choice((UTC, UTC, EAST))
    indices = range(first, first + random.choice(SIZES))
    worn = {index // WORN % SENSORS for index in indices} if how == "sent" else set()
    devices = {number: about.device(submitter, number) for number in sorted(worn)}
    written = []
    for index in indices:
        number, (instant, value) = index // WORN % SENSORS, _reading(index)
        values = [value, value + 20] if index % 30 == 0 else [value]  # real exports have two values of one instant
        for each in values:
            entry = submitter.reading(instant.astimezone(zone), each, devices.get(number))
            if how == "known":
                entry["resource"]["device"] = {"reference": f"Device/{about.name}-{number}"}
            if index % 3 == 0 or (index % 7 == 0 and submitter.dialect == "argo"):
                _add_digit(entry["resource"]["valueQuantity"])
            written.append(entry)
    return [*devices.values(), *written]


def _reading(index: int) -> Reading:
    minutes = index * STEP_MINUTES
    return START + timedelta(minutes=minutes), simulated_glucose(minutes)


def _add_digit(quantity: JsonObject) -> None:
    """Write one more digit, which says nothing and is to be kept."""
    value = Decimal(quantity["value"])
    quantity["value"] = value.quantize(Decimal(1).scaleb(int(value.as_tuple().exponent) - 1))


def _summary(random: Random, submitter: SimulatedSubmitter, first: int) -> list[JsonObject]:
    """Write a summary with its members and the report on it; readings are summarized that need not be sent."""
    if random.random() < 0.3:
        first += random.randrange(SUMMARIZED)
    computed = figures([_reading(index) for index in range(first, first + SUMMARIZED)])
    members = submitter.members(computed)
    summary = submitter.summary(computed, members)
    return [*members, summary, submitter.report(computed, [summary] if random.random() < 0.7 else ())]


def _twin(entry: JsonObject, random: Random) -> JsonObject:
    """Write an entry once more, under another name."""
    made, resource = str(UUID(int=random.getrandbits(128), version=4)), entry["resource"]
    if "id" in resource:
        resource = resource | {"id": made}
    return entry | {"fullUrl": entry["fullUrl"][: -len(made)] + made, "resource": resource}


def _names(entry: JsonObject) -> tuple[str, ...]:
    """Give the references that mean an entry: its fullUrl, and type and id at the end of that."""
    return entry["fullUrl"], "/".join(entry["fullUrl"].split("/")[-2:])
