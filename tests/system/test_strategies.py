"""Upstreams that differ: what each kind of server holds in the end, whatever befalls it on the way, is what was sent, once."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from support.client import Client, Response
from support.faulty import TROUBLES, Faulty, faulty
from support.servers import proxy

from cgm_proxy.sandbox.simulation.submissions import patient, submission

Json = dict[str, Any]

READING = "cgm-sensor-reading-mass"

#: Chunks so small that a submission has several; pauses that fit a test.
SETTINGS = {"forward.chunk": 10, "upstream.read_timeout": 20, "limits.seconds": 60}

#: Kinds of servers: what they can't do, and what may befall their writes beside what may befall all.
KINDS: dict[str, Json] = {
    "as FHIR has it": {},
    "transactions, update as create": {"conditional": False, "update": True},
    "transactions alone": {"conditional": False},
    "batches, conditional create": {"transactions": False},
    "batches, update as create": {"transactions": False, "conditional": False, "update": True},
    "batches alone": {"transactions": False, "conditional": False, "refusal_status": 405},
    "conditional create alone": {"transactions": False, "batches": False},
    "update as create alone": {"transactions": False, "batches": False, "conditional": False, "update": True},
    "creates alone": {"transactions": False, "batches": False, "conditional": False},
    "creates alone, and says nothing": {
        "transactions": False,
        "batches": False,
        "conditional": False,
        "undeclared": True,
    },
    "small transactions": {"entries": 4},
    "small batches": {"transactions": False, "entries": 4},
}

#: How entries go to each kind.
WAYS = {
    "as FHIR has it": "transaction",
    "transactions, update as create": "transaction",
    "transactions alone": "transaction",
    "batches, conditional create": "batch",
    "batches, update as create": "batch",
    "batches alone": "batch",
    "conditional create alone": "single POST",
    "update as create alone": "single PUT",
    "creates alone": "single POST",
    "creates alone, and says nothing": "single POST",
    "small transactions": "transaction",
    "small batches": "batch",
}


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def running(kind: str, upstream: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Faulty, list[str]]]:
    """Run a server of that kind before the store, and two replicas of the proxy before it, which share nothing."""
    server, folder = Faulty(**KINDS[kind]), tmp_path_factory.mktemp("strategies")
    with (
        faulty(upstream, server) as url,
        proxy(url, folder, SETTINGS, "one") as one,
        proxy(url, folder, SETTINGS, "two") as two,
    ):
        yield server, [one.url, two.url]


@pytest.fixture
def here(running: tuple[Faulty, list[str]], upstream: str) -> "World":
    server, urls = running
    server.behave()
    return World(server, Client(upstream), [Client(url) for url in urls])


class World:
    """A patient's submissions through the proxies, and what the store holds of them."""

    def __init__(self, server: Faulty, store: Client, proxies: list[Client]) -> None:
        self.server = server
        self.store = store
        self.proxies = proxies
        name = f"p{uuid4().hex[:12]}"
        assert store.put(f"Patient/{name}", patient(name)).status in {200, 201}
        self.about = f"Patient/{name}"

    def readings(self, number: int) -> list[Json]:
        bundle = submission("argo", self.about, readings=number, summary=False, pdf=False, device=False)
        return bundle["entry"]

    def session(self, readings: int) -> Json:
        """Readings of a device, a summary with its members, a report on it."""
        return submission("argo", self.about, readings=readings)

    def bundle(self, entries: list[Json], kind: str = "batch") -> Json:
        return submission("argo", self.about, readings=1) | {"entry": entries, "type": kind}

    def submit(self, bundle: Json, proxy: int = 0) -> Response:
        return self.proxies[proxy].submit("argo", bundle)

    def persist(self, bundle: Json, proxy: int = 0) -> list[str]:
        """Send it as submitters do, until each entry is stored; give their locations."""
        for _ in range(60):
            answer = self.submit(bundle, proxy)
            if answer.status == 200 and set(statuses(answer)) <= {200, 201}:
                return places(answer)
            assert answer.status in {200, 502, 503, 504}, answer.data
            assert set(statuses(answer)) <= {200, 201, 424, 503}, answer.data
        raise AssertionError(answer.data)

    def held(self, kind: str = "Observation") -> list[Json]:
        """What the store holds of the patient."""
        who = "patient" if kind == "Device" else "subject"
        found = self.store.get(f"{kind}?{who}={self.about}&_count=1000", Cache_Control="no-cache").body
        assert not [link for link in found.get("link", ()) if link["relation"] == "next"]
        return [entry["resource"] for entry in found.get("entry", ())]

    def assert_stored_once(self, entries: list[Json], locations: list[str]) -> None:
        """See that each reading is where it was said to be, and nowhere else."""
        found = {f"Observation/{each['id']}": each for each in self.held()}
        assert len(found) == len(entries)
        assert set(locations) == set(found)
        for entry, place in zip(entries, locations, strict=True):
            assert moment(found[place]) == moment(entry["resource"])

    def assert_whole(self) -> None:
        """See that all that is referenced is stored."""
        held = [*self.held(), *self.held("DiagnosticReport")]
        there = {f"{each['resourceType']}/{each['id']}" for each in [*held, *self.held("Device")]}
        for each in held:
            linked = [each.get("device", {}), *each.get("hasMember", ()), *each.get("result", ())]
            assert {one["reference"] for one in linked if one} <= there


def places(answer: Response) -> list[str]:
    return [entry["response"]["location"].partition("/_history/")[0] for entry in answer.body["entry"]]


def moment(resource: Json) -> tuple[Any, Any]:
    return resource["effectiveDateTime"], resource["valueQuantity"]["value"]


def statuses(answer: Response) -> list[int]:
    return [int(entry["response"]["status"][:3]) for entry in answer.body["entry"]] if answer.status == 200 else []


def test_each_kind_of_server_gets_its_way_and_holds_a_session_once_and_whole(kind: str, here: World) -> None:
    bundle = here.session(25)
    first = here.submit(bundle)
    assert set(statuses(first)) == {201}
    assert here.server.counts.keys() == {WAYS[kind]}
    held = here.held()
    assert len([*held, *here.held("DiagnosticReport"), *here.held("Device")]) == len(bundle["entry"])
    assert here.persist(bundle, 1) == places(first)
    assert here.held() == held
    here.assert_whole()


def test_submissions_that_overlap_at_once_are_stored_once(here: World) -> None:
    """At two replicas without a shared memory, but where the patient's turn is all there is."""
    replicas = 2 if here.server.conditional or here.server.update else 1
    entries = here.readings(60)
    spans = [(0, 40), (20, 60), (10, 50), (0, 60), (30, 60), (0, 30)]
    with ThreadPoolExecutor(len(spans)) as pool:
        told = pool.map(lambda n: here.persist(here.bundle(entries[slice(*spans[n])]), n % replicas), range(len(spans)))
    by_span = dict(zip(spans, told, strict=True))
    for (start, end), found in by_span.items():
        assert found == by_span[0, 60][start:end]
    here.assert_stored_once(entries, by_span[0, 60])


@pytest.mark.parametrize("seed", [1, 2])
def test_whatever_befalls_writes_each_entry_is_stored_once_and_nothing_in_part(seed: int, here: World) -> None:
    here.server.behave(troubles=TROUBLES, probability=0.35, seed=seed)
    bundle = here.session(40)
    told = here.persist(bundle)
    assert sum(here.server.counts[trouble] for trouble in TROUBLES)
    held = [*here.held(), *here.held("DiagnosticReport"), *here.held("Device")]
    assert sorted(f"{each['resourceType']}/{each['id']}" for each in held) == sorted(told)
    here.assert_whole()


def test_an_entry_that_the_server_refuses_keeps_out_what_rests_on_it_and_nothing_else(here: World) -> None:
    bundle = here.session(25)
    kinds = [entry["resource"]["meta"]["profile"][0].rpartition("/")[2] for entry in bundle["entry"]]
    reading = bundle["entry"][kinds.index(READING)]["resource"]
    here.server.behave(poisoned=("days-of-wear", reading["effectiveDateTime"]))
    answer = dict(zip(kinds[::-1], statuses(here.submit(bundle))[::-1], strict=True))
    assert answer[READING] == 422
    assert answer["cgm-summary-days-of-wear"] == 422
    assert {answer["cgm-summary"], answer["cgm-summary-pdf"]} <= {422, 424}
    held = here.held()
    assert sum("valueQuantity" in each and "99504-3" in str(each["code"]) for each in held) == 24
    assert here.held("DiagnosticReport") == []
    here.assert_whole()


def test_a_reading_that_references_what_the_server_has_not_is_found_by_the_servers_own_words(here: World) -> None:
    entries = here.readings(10)
    entries[6]["resource"]["performer"] = [{"reference": "Practitioner/none-such"}]
    answer = here.submit(here.bundle(entries))
    told = statuses(answer)
    assert told[:6] + told[7:] == [201] * 9
    assert told[6] in {400, 422}
    assert "Practitioner/none-such" in answer.body["entry"][6]["response"]["outcome"]["issue"][0]["diagnostics"]
    assert len(here.held()) == 9
    if here.server.entries > len(entries):
        assert here.server.counts["transaction"] + here.server.counts["batch"] <= 3


def test_what_must_be_stored_whole_is_stored_so_or_refused(kind: str, here: World) -> None:
    bundle = here.session(3) | {"type": "transaction"}
    whole = kind in {"as FHIR has it", "transactions, update as create", "transactions alone"}
    answer = here.submit(bundle)
    if whole:
        assert set(statuses(answer)) == {201}
        here.assert_whole()
        return
    assert (answer.status, answer.rules[0]) == (501, "atomic-not-supported")
    assert here.held() == here.held("Device") == here.held("DiagnosticReport") == []
    there = here.persist(bundle | {"type": "batch"})
    assert places(here.submit(bundle)) == there


def test_the_count_shows_it_where_a_server_ignores_conditions_that_are_trusted(upstream: str, tmp_path: Path) -> None:
    """What all of the above rests on: were a strategy wrong, the store would tell."""
    server = Faulty(conditional=False)
    settings = SETTINGS | {"upstream.create": "conditional", "cache.known_seconds": 0}
    with faulty(upstream, server) as url, proxy(url, tmp_path, settings) as only:
        here = World(server, Client(upstream), [Client(only.url)])
        server.behave(troubles=("cut after",), probability=0.5, seed=1)
        entries = here.readings(30)
        told = here.persist(here.bundle(entries))
        with pytest.raises(AssertionError):
            here.assert_stored_once(entries, told)
