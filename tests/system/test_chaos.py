"""The chaos run finds what is wrong, and nothing where nothing is; a short one of it on a real HAPI."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from chaos.checker import KINDS, Answer, Checker, Entry, Submission, Violation
from chaos.report import Options, Report
from chaos.storm import Upstream, storm
from chaos.workload import Patient, Workload, sent

from cgm_proxy.sandbox.simulation.submissions import patient, submission

VALKEY = shutil.which("valkey-server") or shutil.which("redis-server")
BEFORE = {"Patient/p": patient("p")}
STAMP = {"system": "urn:ietf:rfc:3986", "value": "urn:uuid:0c0e5a54-0000-8000-8000-000000000000"}


class World:
    """A submission, a store that holds it, and the answers that say so, until a case spoils something."""

    def __init__(self) -> None:
        bundle = submission("argo", "Patient/p", readings=2)
        entries = bundle["entry"]
        self.sent = list(sent("0.0", entries, BEFORE))
        self.submissions = [Submission("0.0", "argo", bundle, self.sent)]
        kinds = [entry["resource"]["resourceType"] for entry in entries]
        self.places = {e["fullUrl"]: f"{kind}/{n}" for n, (e, kind) in enumerate(zip(entries, kinds, strict=True))}
        self.held = {place: self.stored(entry) for place, entry in zip(self.places.values(), self.sent, strict=True)}
        self.answers = [Answer(entry, 201, place) for place, entry in zip(self.held, self.sent, strict=True)]
        self.abandoned: set[str] = set()

    def stored(self, entry: Entry) -> Any:
        """Give a resource as a server holds it: stamped, and with references to what is stored."""
        held = self._placed(entry.resource)
        return held | {"id": "x", "identifier": [*held.get("identifier", ()), STAMP]}

    def _placed(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {k: self.places.get(v, v) if k == "reference" else self._placed(v) for k, v in value.items()}
        return [self._placed(each) for each in value] if isinstance(value, list) else value

    def change(self, place: str, **elements: Any) -> None:
        self.held[place] = self.held[place] | elements

    def answer(self, number: int, status: int, place: str | None = None) -> None:
        self.answers[number] = Answer(self.sent[number], status, place)

    def found(self) -> set[str]:
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


def same_in_other_words(world: World) -> None:
    """A reading is sent again with other digits, of another time zone, and is where the first one is."""
    given = world.sent[1].resource
    quantity = given["valueQuantity"] | {"value": Decimal(f"{given['valueQuantity']['value']}.00")}
    again = given | {"valueQuantity": quantity, "effectiveDateTime": "2024-05-01T02:00:00+02:00"}
    world.sent.append(replace(world.sent[1], resource=again))
    world.answers.append(Answer(world.sent[-1], 200, FIRST))


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


def not_all_stored(world: World, *places: str) -> None:
    """A submitter that gave up after a 503 left a part of what it sent."""
    world.answers = [Answer(entry, 503) for entry in world.sent]
    world.abandoned = {"0.0"}
    for place in places:
        del world.held[place]


def atomic(world: World, *places: str) -> None:
    world.submissions[0].bundle["type"] = "transaction"
    not_all_stored(world, *places)


def faulty_stored(world: World) -> None:
    world.sent[1] = replace(world.sent[1], faulty=True)
    world.answer(1, 201, FIRST)


def unlike(world: World) -> None:
    world.held["Observation/99"] = world.held[FIRST] | {"effectiveDateTime": "2024-05-02T00:00:00Z"}


def answered_late(world: World) -> None:
    world.answers.insert(0, Answer(world.sent[1], 503))


#: What goes wrong, and all kinds of violation by which it shows.
CASES: dict[str, tuple[Callable[[World], object], set[str]]] = {
    "all is well": (lambda _: None, set()),
    "answered at last": (answered_late, set()),
    "sent again in other words": (same_in_other_words, set()),
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
    "a part is stored that stands for itself": (lambda world: not_all_stored(world, FIRST, SECOND), set()),
    "the group is not stored": (lambda world: not_all_stored(world, REPORT, SUMMARY, *MEMBERS), set()),
    "members without their summary": (lambda world: not_all_stored(world, REPORT, SUMMARY), {"half group"}),
    "a summary without its report": (lambda world: not_all_stored(world, REPORT), {"half group"}),
    "an atomic submission without a reading": (lambda world: atomic(world, FIRST), {"half group"}),
    "an atomic submission that is not stored": (lambda world: atomic(world, *world.held), set()),
    "something unlike": (unlike, {"never sent"}),
    "a faulty one is stored": (faulty_stored, {"wrongly accepted", "never sent"}),
    "a sound one is refused": (lambda world: world.answer(1, 422), {"wrongly refused"}),
    "the proxy fails": (lambda world: world.answer(1, 500), {"wrongly refused"}),
    "never answered": (lambda world: world.answer(1, 503), {"unanswered"}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_checker_finds_what_is_wrong_and_nothing_else(case: str) -> None:
    spoil, expected = CASES[case]
    world = World()
    spoil(world)
    assert world.found() == expected


def test_each_kind_of_violation_has_a_case() -> None:
    assert {kind for _, expected in CASES.values() for kind in expected} == set(KINDS)


def test_the_same_seed_sends_the_same() -> None:
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
    ids=["nothing wrong", "fewer kills than wanted", "violations"],
)
def test_a_run_passes_after_its_kills_without_violations(kills: int, violations: list[Violation], passed: bool) -> None:
    report = Report(Options(seed=7, kills=3), {"kills": {"proxy": kills}}, violations)
    assert report.passed == passed
    assert report.flat["violations_lost"] == len(violations)
    assert "again: make chaos SEED=7 KILLS=3 SECONDS=900 STORE=postgresql" in report.table()


@pytest.mark.hapi
@pytest.mark.slow
@pytest.mark.skipif(not VALKEY, reason="needs valkey-server or redis-server")
class TestOnHapi:
    """What is killed here are proxies and Valkey, while the connections to HAPI, which other tests use too, are cut."""

    async def test_nothing_is_lost_or_doubled_whatever_is_killed(self, hapi: str, tmp_path: Path) -> None:
        report = await storm(Options(seed=7, kills=6, seconds=120), Upstream(hapi), tmp_path)
        assert report.passed, report.table()
        assert report.figures["cuts"], report.table()

    async def test_without_conditional_create_it_finds_what_is_stored_twice(self, hapi: str, tmp_path: Path) -> None:
        report = await storm(Options(seed=7, kills=4, seconds=120, strip=True), Upstream(hapi), tmp_path)
        assert report.of("stored twice"), report.table()
