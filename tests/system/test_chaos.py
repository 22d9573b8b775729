"""The chaos run finds every kind of violation and reports no false ones; short runs on a real HAPI."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from chaos.checker import KINDS, Checker, Entry, EntryAnswer, Submission, Violation
from chaos.report import Options, Report
from chaos.storm import Upstream, storm
from chaos.workload import Patient, Workload, checker_entries

from cgm_proxy.sandbox.simulation.submissions import patient, submission

VALKEY = shutil.which("valkey-server") or shutil.which("redis-server")
BEFORE = {"Patient/p": patient("p")}
STAMP = {"system": "urn:ietf:rfc:3986", "value": "urn:uuid:0c0e5a54-0000-8000-8000-000000000000"}


class World:
    """A submission, the store that holds it, and the responses to it. Each case then changes something."""

    def __init__(self) -> None:
        bundle = submission("argo", "Patient/p", readings=2)
        entries = bundle["entry"]
        self.sent = list(checker_entries("0.0", entries, BEFORE))
        self.submissions = [Submission("0.0", "argo", bundle, self.sent)]
        kinds = [entry["resource"]["resourceType"] for entry in entries]
        self.locations = {e["fullUrl"]: f"{kind}/{n}" for n, (e, kind) in enumerate(zip(entries, kinds, strict=True))}
        self.held = {
            location: self.stored(entry) for location, entry in zip(self.locations.values(), self.sent, strict=True)
        }
        self.answers = [EntryAnswer(entry, 201, location) for location, entry in zip(self.held, self.sent, strict=True)]
        self.abandoned: set[str] = set()

    def stored(self, entry: Entry) -> Any:
        """Return a resource as a server stores it: with the proxy's identifier, and with references to stored resources."""
        resource = self._with_locations(entry.resource)
        return resource | {"id": "x", "identifier": [*resource.get("identifier", ()), STAMP]}

    def _with_locations(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {
                k: self.locations.get(v, v) if k == "reference" else self._with_locations(v) for k, v in value.items()
            }
        return [self._with_locations(item) for item in value] if isinstance(value, list) else value

    def change(self, location: str, **elements: Any) -> None:
        self.held[location] = self.held[location] | elements

    def answer(self, number: int, status: int, location: str | None = None) -> None:
        self.answers[number] = EntryAnswer(self.sent[number], status, location)

    def violations(self) -> set[str]:
        checker = Checker(self.submissions, self.answers, self.held, BEFORE, self.abandoned)
        return {violation.kind for violation in checker.violations()}


#: Where the submission's entries are stored: the device, two readings, ten members, the summary and the report.
DEVICE, FIRST, SECOND, SUMMARY, REPORT = (
    "Device/0",
    "Observation/1",
    "Observation/2",
    "Observation/13",
    "DiagnosticReport/14",
)
MEMBER, *_ = MEMBERS = [f"Observation/{number}" for number in range(3, 13)]


def same_reading_in_another_form(world: World) -> None:
    """The same reading is sent again with other digits and another time zone, and gets the location of the first."""
    reading = world.sent[1].resource
    quantity = reading["valueQuantity"] | {"value": Decimal(f"{reading['valueQuantity']['value']}.00")}
    again = reading | {"valueQuantity": quantity, "effectiveDateTime": "2024-05-01T02:00:00+02:00"}
    world.sent.append(replace(world.sent[1], resource=again))
    world.answers.append(EntryAnswer(world.sent[-1], 200, FIRST))


def other_value(world: World) -> None:
    quantity = world.held[FIRST]["valueQuantity"]
    world.change(FIRST, valueQuantity=quantity | {"value": quantity["value"] + 1})


def other_digits(world: World) -> None:
    quantity = world.held[MEMBER]["valueQuantity"]
    world.change(MEMBER, valueQuantity=quantity | {"value": Decimal(f"{quantity['value']}0")})


def without_element(world: World) -> None:
    del world.held[FIRST]["category"]


def without_profile(world: World) -> None:
    world.change(FIRST, meta={"versionId": "1"})


def member_gone(world: World) -> None:
    del world.held[MEMBER]


def partly_stored(world: World, *missing: str) -> None:
    """A submitter gave up after a 503, when a part of its submission was stored."""
    world.answers = [EntryAnswer(entry, 503) for entry in world.sent]
    world.abandoned = {"0.0"}
    for location in missing:
        del world.held[location]


def atomic(world: World, *missing: str) -> None:
    world.submissions[0].bundle["type"] = "transaction"
    partly_stored(world, *missing)


def faulty_stored(world: World) -> None:
    world.sent[1] = replace(world.sent[1], faulty=True)
    world.answer(1, 201, FIRST)


def not_sent(world: World) -> None:
    world.held["Observation/99"] = world.held[FIRST] | {"effectiveDateTime": "2024-05-02T00:00:00Z"}


def answered_late(world: World) -> None:
    world.answers.insert(0, EntryAnswer(world.sent[1], 503))


#: What goes wrong, and the kinds of violations that the checker has to find.
CASES: dict[str, tuple[Callable[[World], object], set[str]]] = {
    "nothing goes wrong": (lambda _: None, set()),
    "answered at last": (answered_late, set()),
    "sent again in another form": (same_reading_in_another_form, set()),
    "a reading is gone": (lambda world: world.held.pop(FIRST), {"lost"}),
    "a report is gone": (lambda world: world.held.pop(REPORT), {"lost", "half group"}),
    "a reading is there twice": (lambda world: world.held.update({"Observation/99": world.held[FIRST]}), {"stored twice"}),
    "a device is there twice": (lambda world: world.held.update({"Device/99": world.held[DEVICE]}), {"stored twice"}),
    "a summary is there twice": (lambda world: world.held.update({"Observation/99": world.held[SUMMARY]}), {"stored twice"}),
    "another reading's location": (lambda world: world.answer(1, 200, SECOND), {"wrong location"}),
    "another type's location": (lambda world: world.answer(1, 200, DEVICE), {"wrong location"}),
    "no location": (lambda world: world.answer(1, 201), {"lost"}),
    "another value": (other_value, {"wrong location", "never sent"}),
    "another patient": (
        lambda world: world.change(FIRST, subject={"reference": "Patient/q"}),
        {"wrong location", "dangling reference", "never sent"},
    ),
    "other digits": (other_digits, {"altered"}),
    "an element is gone": (without_element, {"altered"}),
    "the profile is gone": (without_profile, {"altered"}),
    "a reference to nothing": (
        lambda world: world.change(FIRST, device={"reference": "urn:uuid:0"}),
        {"wrong location", "dangling reference", "never sent"},
    ),
    "a summary's member is gone": (member_gone, {"lost", "wrong location", "dangling reference", "half group", "never sent"}),
    "readings are missing, which belong to no group": (lambda world: partly_stored(world, FIRST, SECOND), set()),
    "the group is not stored": (lambda world: partly_stored(world, REPORT, SUMMARY, *MEMBERS), set()),
    "members without their summary": (lambda world: partly_stored(world, REPORT, SUMMARY), {"half group"}),
    "a summary without its report": (lambda world: partly_stored(world, REPORT), {"half group"}),
    "an atomic submission without a reading": (lambda world: atomic(world, FIRST), {"half group"}),
    "an atomic submission that is not stored": (lambda world: atomic(world, *world.held), set()),
    "a reading that was not sent": (not_sent, {"never sent"}),
    "a faulty reading is stored": (faulty_stored, {"wrongly accepted", "never sent"}),
    "a good reading is refused": (lambda world: world.answer(1, 422), {"wrongly refused"}),
    "the proxy fails": (lambda world: world.answer(1, 500), {"wrongly refused"}),
    "never answered": (lambda world: world.answer(1, 503), {"unanswered"}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_checker_finds_the_violations_and_no_others(case: str) -> None:
    change, expected = CASES[case]
    world = World()
    change(world)
    assert world.violations() == expected


def test_each_kind_of_violation_has_a_case() -> None:
    assert {kind for _, expected in CASES.values() for kind in expected} == set(KINDS)


def test_the_same_seed_sends_the_same_submissions() -> None:
    def bundles(seed: int) -> list[Any]:
        workload = Workload(seed, (Patient("p", "mass", ordered=True), Patient("q", "molar", ordered=False)), 2)
        return [workload.submission(submitter, step).bundle for submitter in range(2) for step in range(10)]

    assert bundles(1) == bundles(1) != bundles(2)


@pytest.mark.parametrize(
    ("kills", "violations", "passed"),
    [
        (3, [], True),
        (2, [], False),
        (3, [Violation("lost", "one"), Violation("lost", "another")], False),
    ],
    ids=["nothing wrong", "too few kills", "violations"],
)
def test_a_run_passes_after_its_kills_without_violations(kills: int, violations: list[Violation], passed: bool) -> None:
    report = Report(Options(seed=7, kills=3), {"kills": {"proxy": kills}}, violations)
    assert report.passed == passed
    assert report.flat["violations_lost"] == len(violations)
    assert "to repeat: make chaos SEED=7 KILLS=3 SECONDS=900 STORE=postgresql" in report.table()


@pytest.mark.hapi
@pytest.mark.slow
@pytest.mark.skipif(not VALKEY, reason="needs valkey-server or redis-server")
class TestOnHapi:
    """Proxies and Valkey are killed. HAPI is not, because other tests use it too; its connections are cut."""

    async def test_nothing_is_lost_or_stored_twice_in_spite_of_kills(self, hapi: str, tmp_path: Path) -> None:
        report = await storm(Options(seed=7, kills=6, seconds=120), Upstream(hapi), tmp_path)
        assert report.passed, report.table()
        assert report.figures["cuts"], report.table()

    async def test_without_conditional_create_the_run_finds_duplicates(self, hapi: str, tmp_path: Path) -> None:
        report = await storm(Options(seed=7, kills=4, seconds=120, strip=True), Upstream(hapi), tmp_path)
        assert report.count("stored twice"), report.table()
