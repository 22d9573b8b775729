"""Upstreams with different abilities and faults: each stores in the end what was sent, once."""

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

#: Small chunks, so that a submission has several, and short timeouts.
SETTINGS = {"forward.chunk": 10, "upstream.read_timeout": 20, "limits.seconds": 60}

#: Kinds of servers, with the arguments of `Faulty` that describe them.
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

#: How the proxy sends entries to each kind.
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
    """Run a server of that kind in front of the store, and two replicas of the proxy that share nothing in front of it."""
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
    """The submissions of a patient through the proxies, and the patient's resources in the store."""

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
        """Return a submission with a device, readings, a summary with its members, and a report."""
        return submission("argo", self.about, readings=readings)

    def bundle(self, entries: list[Json], kind: str = "batch") -> Json:
        return submission("argo", self.about, readings=1) | {"entry": entries, "type": kind}

    def submit(self, bundle: Json, proxy: int = 0) -> Response:
        return self.proxies[proxy].submit("argo", bundle)

    def persist(self, bundle: Json, proxy: int = 0) -> list[str]:
        """Send a submission until each entry is stored, as submitters do; return the locations."""
        for _ in range(60):
            response = self.submit(bundle, proxy)
            if response.status == 200 and set(statuses(response)) <= {200, 201}:
                return locations_of(response)
            assert response.status in {200, 502, 503, 504}, response.data
            assert set(statuses(response)) <= {200, 201, 424, 503}, response.data
        raise AssertionError(response.data)

    def held(self, kind: str = "Observation") -> list[Json]:
        """Return the patient's resources in the store."""
        parameter = "patient" if kind == "Device" else "subject"
        found = self.store.get(f"{kind}?{parameter}={self.about}&_count=1000", Cache_Control="no-cache").body
        assert not [link for link in found.get("link", ()) if link["relation"] == "next"]
        return [entry["resource"] for entry in found.get("entry", ())]

    def assert_stored_once(self, entries: list[Json], locations: list[str]) -> None:
        """Check that each reading is stored at its location, and nowhere else."""
        held = {reference_to(reading): reading for reading in self.held()}
        assert len(held) == len(entries)
        assert set(locations) == set(held)
        for entry, location in zip(entries, locations, strict=True):
            assert time_and_value(held[location]) == time_and_value(entry["resource"])

    def assert_whole(self) -> None:
        """Check that every referenced resource is stored."""
        held = [*self.held(), *self.held("DiagnosticReport")]
        stored = set(map(reference_to, [*held, *self.held("Device")]))
        for resource in held:
            references = [resource.get("device", {}), *resource.get("hasMember", ()), *resource.get("result", ())]
            assert {reference["reference"] for reference in references if reference} <= stored


def reference_to(resource: Json) -> str:
    return f"{resource['resourceType']}/{resource['id']}"


def locations_of(response: Response) -> list[str]:
    return [entry["response"]["location"].partition("/_history/")[0] for entry in response.body["entry"]]


def time_and_value(resource: Json) -> tuple[Any, Any]:
    return resource["effectiveDateTime"], resource["valueQuantity"]["value"]


def statuses(response: Response) -> list[int]:
    return [int(entry["response"]["status"][:3]) for entry in response.body["entry"]] if response.status == 200 else []


def test_each_kind_of_server_stores_a_submission_once_and_completely(kind: str, here: World) -> None:
    bundle = here.session(25)
    first = here.submit(bundle)
    assert set(statuses(first)) == {201}
    assert here.server.counts.keys() == {WAYS[kind]}
    held = here.held()
    assert len([*held, *here.held("DiagnosticReport"), *here.held("Device")]) == len(bundle["entry"])
    assert here.persist(bundle, 1) == locations_of(first)
    assert here.held() == held
    here.assert_whole()


def test_concurrent_submissions_that_overlap_are_stored_once(here: World) -> None:
    """Through two replicas without shared cache; through one if only the patient lock prevents duplicates."""
    replicas = 2 if here.server.conditional or here.server.update else 1
    entries = here.readings(60)
    spans = [(0, 40), (20, 60), (10, 50), (0, 60), (30, 60), (0, 30)]
    with ThreadPoolExecutor(len(spans)) as pool:
        found = pool.map(
            lambda n: here.persist(here.bundle(entries[slice(*spans[n])]), n % replicas), range(len(spans))
        )
    by_span = dict(zip(spans, found, strict=True))
    for (start, end), locations in by_span.items():
        assert locations == by_span[0, 60][start:end]
    here.assert_stored_once(entries, by_span[0, 60])


@pytest.mark.parametrize("seed", [1, 2])
def test_each_entry_is_stored_once_and_completely_in_spite_of_faults(seed: int, here: World) -> None:
    here.server.behave(troubles=TROUBLES, probability=0.35, seed=seed)
    bundle = here.session(40)
    locations = here.persist(bundle)
    assert sum(here.server.counts[trouble] for trouble in TROUBLES)
    held = [*here.held(), *here.held("DiagnosticReport"), *here.held("Device")]
    assert sorted(map(reference_to, held)) == sorted(locations)
    here.assert_whole()


def test_an_entry_that_the_server_refuses_excludes_only_those_that_refer_to_it(here: World) -> None:
    bundle = here.session(25)
    kinds = [entry["resource"]["meta"]["profile"][0].rpartition("/")[2] for entry in bundle["entry"]]
    reading = bundle["entry"][kinds.index(READING)]["resource"]
    here.server.behave(poisoned=("days-of-wear", reading["effectiveDateTime"]))
    response = dict(zip(kinds[::-1], statuses(here.submit(bundle))[::-1], strict=True))
    assert response[READING] == 422
    assert response["cgm-summary-days-of-wear"] == 422
    assert {response["cgm-summary"], response["cgm-summary-pdf"]} <= {422, 424}
    held = here.held()
    assert sum("valueQuantity" in resource and "99504-3" in str(resource["code"]) for resource in held) == 24
    assert here.held("DiagnosticReport") == []
    here.assert_whole()


def test_a_reading_with_a_dangling_reference_is_found_by_the_servers_message(here: World) -> None:
    entries = here.readings(10)
    entries[6]["resource"]["performer"] = [{"reference": "Practitioner/none-such"}]
    response = here.submit(here.bundle(entries))
    found = statuses(response)
    assert found[:6] + found[7:] == [201] * 9
    assert found[6] in {400, 422}
    assert "Practitioner/none-such" in response.body["entry"][6]["response"]["outcome"]["issue"][0]["diagnostics"]
    assert len(here.held()) == 9
    if here.server.entries > len(entries):
        assert here.server.counts["transaction"] + here.server.counts["batch"] <= 3


def test_an_atomic_submission_is_stored_completely_or_refused(kind: str, here: World) -> None:
    bundle = here.session(3) | {"type": "transaction"}
    whole = kind in {"as FHIR has it", "transactions, update as create", "transactions alone"}
    response = here.submit(bundle)
    if whole:
        assert set(statuses(response)) == {201}
        here.assert_whole()
        return
    assert (response.status, response.rules[0]) == (501, "atomic-not-supported")
    assert here.held() == here.held("Device") == here.held("DiagnosticReport") == []
    locations = here.persist(bundle | {"type": "batch"})
    assert locations_of(here.submit(bundle)) == locations


def test_these_checks_detect_duplicates(upstream: str, tmp_path: Path) -> None:
    """They fail if the proxy trusts in conditional create and the server ignores it."""
    server = Faulty(conditional=False)
    settings = SETTINGS | {"upstream.create": "conditional", "cache.known_seconds": 0}
    with faulty(upstream, server) as url, proxy(url, tmp_path, settings) as only:
        here = World(server, Client(upstream), [Client(only.url)])
        server.behave(troubles=("cut after",), probability=0.5, seed=1)
        entries = here.readings(30)
        locations = here.persist(here.bundle(entries))
        with pytest.raises(AssertionError):
            here.assert_stored_once(entries, locations)
