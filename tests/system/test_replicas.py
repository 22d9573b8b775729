"""Two replicas as processes of their own that share a real Valkey (or Redis), and faults of all three."""

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from redis import Redis
from support import servers
from support.client import Client, Response
from support.fake_upstream import Gate, fake_upstream
from support.servers import Running

from cgm_proxy.cache.valkey_lease import LEASE_SECONDS
from cgm_proxy.sandbox.simulation.submissions import patient, standing_orders, submission

#: Longest time of a response, in spite of faults of Valkey and of other tests on the machine (seconds).
MAX_SECONDS = 15.0


@dataclass
class Replicas:
    """Two proxies in front of one upstream; `store` is a client of the upstream itself."""

    first: Running
    second: Running
    valkey: Running
    store: Client

    def new_patient(self, *, orders: bool = False) -> str:
        about = f"Patient/p{uuid4().hex[:12]}"
        self.put(patient(about.rpartition("/")[2]))
        for order in standing_orders("argo", about) if orders else ():
            self.put(order)
        return about

    def put(self, resource: dict[str, Any]) -> None:
        assert self.store.put(f"{resource['resourceType']}/{resource['id']}", resource).status in {200, 201}

    def stored(self, about: str) -> int:
        return self.store.total(f"Observation?subject={about}")

    def wait_until_shared(self) -> None:
        """Wait until both use Valkey again."""
        deadline = time.monotonic() + 10
        while not all(metric(replica, "shared_memory_up") for replica in (self.first, self.second)):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def metric(server: Running, name: str, **labels: str) -> float:
    """Return the sum of a metric's values that have these labels."""
    pairs = [f'{label}="{value}"' for label, value in labels.items()]
    lines = Client(server.ops).get("metrics").data.decode().splitlines()
    return sum(
        float(line.rpartition(" ")[2])
        for line in lines
        if line.startswith(f"cgm_proxy_{name}") and all(pair in line for pair in pairs)
    )


def readings(about: str, number: int) -> dict[str, Any]:
    return submission("argo", about, readings=number, summary=False, pdf=False, device=False)


def submit(server: Running, bundle: dict[str, Any]) -> Response:
    """Submit, and check that every entry is answered in time."""
    started = time.monotonic()
    response = Client(server.url).submit("argo", bundle)
    assert response.status == 200, response.data
    assert len(response.body["entry"]) == len(bundle["entry"])
    assert time.monotonic() - started < MAX_SECONDS
    return response


def statuses(response: Response) -> dict[str, int]:
    return dict(Counter(entry["response"]["status"][:3] for entry in response.body["entry"]))


def locations(response: Response) -> list[tuple[str, str]]:
    return [(entry["response"]["location"], entry["response"]["etag"]) for entry in response.body["entry"]]


@contextmanager
def two(upstream: str, valkey: Running, folder: Path) -> Iterator[Replicas]:
    shared = {"cache.shared": valkey.url, "log_level": "debug"}
    with (
        servers.proxy(upstream, folder, shared, "first") as first,
        servers.proxy(upstream, folder, shared, "second") as second,
    ):
        yield Replicas(first, second, valkey, Client(upstream))


@pytest.fixture(scope="module")
def running(
    sandbox: str,
    tmp_path_factory: pytest.TempPathFactory,
    valkey_here: None,  # noqa: ARG001
) -> Iterator[Replicas]:
    folder = tmp_path_factory.mktemp("replicas")
    with servers.valkey(folder) as valkey, two(sandbox, valkey, folder) as replicas:
        yield replicas


@pytest.fixture
def replicas(running: Replicas) -> Iterator[Replicas]:
    """The replicas, which use Valkey before and after the test."""
    running.wait_until_shared()
    yield running
    running.wait_until_shared()


def test_a_replica_answers_from_the_shared_cache_for_what_the_other_stored(replicas: Replicas) -> None:
    about = replicas.new_patient(orders=True)
    bundle = submission("argo", about, readings=400)
    known, hits = metric(replicas.second, "duplicates_total", found="shared"), order_lookups(replicas, "hit")
    first = submit(replicas.first, bundle)
    again = submit(replicas.second, bundle)
    assert statuses(first) == {"201": len(bundle["entry"])}
    assert statuses(again) == {"200": len(bundle["entry"])}
    assert locations(again) == locations(first)
    assert metric(replicas.second, "duplicates_total", found="shared") - known == len(bundle["entry"])
    assert order_lookups(replicas, "hit") - hits == 1


def order_lookups(replicas: Replicas, result: str) -> float:
    return sum(metric(replica, "order_lookups_total", result=result) for replica in (replicas.first, replicas.second))


#: Writes that remove one reading.
REMOVALS: dict[str, Callable[[Client, str], Response]] = {
    "DELETE": lambda client, location: client.request("DELETE", location),
    "batch": lambda client, location: client.post(
        "", {"resourceType": "Bundle", "type": "batch", "entry": [{"request": {"method": "DELETE", "url": location}}]}
    ),
    "conditional": lambda client, location: client.request("DELETE", f"Observation?_id={location.rpartition('/')[2]}"),
}


@pytest.mark.parametrize("remove", REMOVALS.values(), ids=REMOVALS)
def test_a_reading_deleted_through_one_replica_is_stored_again_at_once_through_the_other(
    replicas: Replicas, remove: Callable[[Client, str], Response]
) -> None:
    about = replicas.new_patient()
    bundle = readings(about, 400)
    submit(replicas.first, bundle)
    for number, (deleter, other) in enumerate(
        [(replicas.first, replicas.second), (replicas.second, replicas.first)] * 3
    ):
        location = locations(submit(other, bundle))[17 * number + 3][0].partition("/_history")[0]
        assert remove(Client(deleter.url), location).status == 200
        assert statuses(submit(other, bundle)) == {"200": 399, "201": 1}
        assert replicas.stored(about) == 400


def test_an_order_written_through_one_replica_applies_to_the_other_at_once(replicas: Replicas) -> None:
    about = replicas.new_patient()
    assert statuses(submit(replicas.second, readings(about, 1))) == {"201": 1}
    for number in range(3):
        (order,) = standing_orders("argo", about)[:1]
        assert Client(replicas.first.url).put(f"ServiceRequest/{order['id']}", order).status in {200, 201}
        assert Client(replicas.second.url).submit("argo", readings(about, number + 1)).status == 422
        assert Client(replicas.first.url).request("DELETE", f"ServiceRequest/{order['id']}").status == 200
        assert Client(replicas.second.url).submit("argo", readings(about, number + 1)).status == 200


def test_a_submission_to_both_at_the_same_time_is_stored_once(replicas: Replicas) -> None:
    about, lookups = replicas.new_patient(orders=True), order_lookups(replicas, "miss")
    bundle = submission("argo", about, readings=600)
    with ThreadPoolExecutor(6) as pool:
        responses = list(pool.map(submit, [replicas.first, replicas.second] * 3, [bundle] * 6))
    total = sum((Counter(statuses(response)) for response in responses), Counter())
    assert total == {"201": len(bundle["entry"]), "200": 5 * len(bundle["entry"])}
    assert len({tuple(locations(response)) for response in responses}) == 1
    observations = sum(entry["resource"]["resourceType"] == "Observation" for entry in bundle["entry"])
    assert replicas.stored(about) == observations
    assert order_lookups(replicas, "miss") - lookups == 1


def lock(server: Running) -> None:
    with Redis.from_url(server.url) as raw:
        raw.config_set("requirepass", "s3cr3t")
        raw.client_kill_filter(_type="normal", skipme=True)


def unlock(server: Running) -> None:
    with Redis.from_url(server.url, password="s3cr3t") as raw:
        raw.config_set("requirepass", "")


def fill(server: Running) -> None:
    with Redis.from_url(server.url) as raw:
        raw.config_set("maxmemory", "1")


def make_room(server: Running) -> None:
    with Redis.from_url(server.url) as raw:
        raw.config_set("maxmemory", "0")


def flush(server: Running) -> None:
    with Redis.from_url(server.url) as raw:
        raw.flushall()


def nothing(_: Running) -> None:
    """Do nothing: the fault needs no end."""


#: Faults of Valkey: how each begins and ends, and the kind as which the replicas count it.
FAULTS: dict[str, tuple[Callable[[Running], object], Callable[[Running], object], str]] = {
    "killed": (lambda server: server.kill(), lambda server: server.start(), "refused"),
    "slow": (
        lambda server: server.process.send_signal(signal.SIGSTOP),
        lambda server: server.process.send_signal(signal.SIGCONT),
        "timeout",
    ),
    "full": (fill, make_room, "error"),
    "locked": (lock, unlock, "error"),
    "flushed": (flush, nothing, ""),
}


@contextmanager
def fault_of(valkey: Running, fault: str) -> Iterator[None]:
    begin, end, _ = FAULTS[fault]
    begin(valkey)
    try:
        yield
    finally:
        end(valkey)


@pytest.mark.parametrize("fault", FAULTS)
def test_replicas_answer_correctly_during_a_fault_of_valkey_and_share_again_afterwards(
    replicas: Replicas, fault: str
) -> None:
    about, newer = replicas.new_patient(), replicas.new_patient()
    bundle, kind = readings(about, 300), FAULTS[fault][2]
    first = submit(replicas.first, bundle)
    faults = metric(replicas.second, "shared_memory_faults_total", kind=kind)
    with fault_of(replicas.valkey, fault):
        assert locations(submit(replicas.second, bundle)) == locations(first)
        assert statuses(submit(replicas.second, readings(newer, 300))) == {"201": 300}
        assert statuses(submit(replicas.first, readings(newer, 300))) == {"200": 300}
        gone = locations(first)[150][0].partition("/_history")[0]
        assert Client(replicas.first.url).request("DELETE", gone).status == 200
        assert statuses(submit(replicas.first, bundle)) == {"200": 299, "201": 1}
        assert statuses(submit(replicas.second, bundle)) == {"200": 300}
        if kind:
            assert metric(replicas.second, "shared_memory_faults_total", kind=kind) > faults
        assert Client(replicas.second.ops).get("readyz").status == 200
    replicas.wait_until_shared()
    submit(replicas.first, bundle)
    known = metric(replicas.second, "duplicates_total", found="shared")
    assert statuses(submit(replicas.second, bundle)) == {"200": 300}
    assert metric(replicas.second, "duplicates_total", found="shared") - known == 300
    assert (replicas.stored(about), replicas.stored(newer)) == (300, 300)


@pytest.mark.parametrize("fault", FAULTS)
def test_valkey_may_fail_during_submissions(replicas: Replicas, fault: str) -> None:
    about = replicas.new_patient()
    bundles = [readings(about, number) for number in (1000, 1200, 1400, 1600)]
    with ThreadPoolExecutor(4) as pool:
        futures = [
            pool.submit(submit, server, bundle)
            for server, bundle in zip([replicas.first, replicas.second] * 2, bundles, strict=True)
        ]
        for _ in range(3):
            time.sleep(0.3)
            with fault_of(replicas.valkey, fault):
                time.sleep(0.3)
        responses = [future.result() for future in futures]
    assert sum((Counter(statuses(response)) for response in responses), Counter()) == {"201": 1600, "200": 3600}
    assert replicas.stored(about) == 1600
    longest = locations(responses[3])
    assert all(locations(response) == longest[: len(locations(response))] for response in responses)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_replica_that_fails_while_it_has_the_lock_delays_the_other_by_at_most_one_lease(
    sandbox: str, valkey: Running, tmp_path: Path, end: signal.Signals
) -> None:
    with two(sandbox, valkey, tmp_path) as replicas, ThreadPoolExecutor(1) as pool:
        about = replicas.new_patient()
        bundle = readings(about, 1500)
        future = pool.submit(Client(replicas.first.url).submit, "argo", bundle)
        while not replicas.stored(about):
            time.sleep(0.02)
        replicas.first.process.send_signal(end)
        started = time.monotonic()
        again = submit(replicas.second, bundle)
        assert time.monotonic() - started < LEASE_SECONDS + 5
        if end == signal.SIGSTOP:
            replicas.first.process.send_signal(signal.SIGCONT)
            assert locations(future.result()) == locations(again)
        else:
            assert isinstance(future.exception(), OSError)
        assert set(statuses(again)) <= {"200", "201"}
        assert replicas.stored(about) == 1500


async def test_a_reading_is_stored_again_if_the_replica_died_that_passed_on_its_deletion(
    valkey: Running, tmp_path: Path
) -> None:
    """The upstream has deleted the reading, and the replica dies before it can tell the other."""
    gate = Gate(late=True)

    def run(upstream: str, store: str) -> None:
        with two(upstream, valkey, tmp_path) as replicas, ThreadPoolExecutor(1) as pool:
            replicas.store = Client(store)
            about = replicas.new_patient()
            bundle = readings(about, 400)
            location = locations(submit(replicas.first, bundle))[3][0].partition("/_history")[0]
            deletion = pool.submit(Client(replicas.first.url).request, "DELETE", location)
            while replicas.store.get(location).status == 200:
                time.sleep(0.02)
            replicas.first.kill()
            assert isinstance(deletion.exception(), OSError)
            assert statuses(submit(replicas.second, bundle)) == {"200": 399, "201": 1}
            assert replicas.stored(about) == 400

    async with fake_upstream() as fake:
        fake.script(lambda request: request.method == "DELETE", gate)
        try:
            await asyncio.to_thread(run, fake.url, fake.store)
        finally:
            gate.opened.set()


@pytest.mark.usefixtures("valkey_here")
def test_proxies_start_without_valkey_and_report_it(sandbox: str, tmp_path: Path) -> None:
    valkey = servers.valkey_process(tmp_path)
    with two(sandbox, valkey, tmp_path) as replicas:
        for server in (replicas.first, replicas.second):
            ready = Client(server.ops).get("readyz")
            assert (ready.status, ready.body) == (200, {"status": "ok", "shared memory": "away"})
            assert metric(server, "shared_memory_up") == 0
            assert '"shared memory is away"' in server.log.read_text()
        about = replicas.new_patient()
        first = submit(replicas.first, readings(about, 100))
        assert locations(submit(replicas.second, readings(about, 100))) == locations(first)
        valkey.start()
        try:
            replicas.wait_until_shared()
            assert Client(replicas.first.ops).get("readyz").body == {"status": "ok"}
        finally:
            valkey.stop()
