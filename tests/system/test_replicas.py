"""Two replicas as processes of their own, a real Valkey (or Redis) between them, and whatever may befall the three."""

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

#: The longest that an answer may take, whatever befalls Valkey, on a machine busy with other tests (seconds).
BOUND = 15.0


@dataclass
class Replicas:
    """Two proxies of one upstream, which `store` asks directly."""

    one: Running
    other: Running
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

    def restored(self) -> None:
        """Wait until both share again."""
        deadline = time.monotonic() + 10
        while not all(metric(each, "shared_memory_up") for each in (self.one, self.other)):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def metric(server: Running, name: str, **labels: str) -> float:
    """Add up a metric's values, of those with these labels."""
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    lines = Client(server.ops).get("metrics").data.decode().splitlines()
    return sum(
        float(line.rpartition(" ")[2])
        for line in lines
        if line.startswith(f"cgm_proxy_{name}") and all(each in line for each in wanted)
    )


def readings(about: str, number: int) -> dict[str, Any]:
    return submission("argo", about, readings=number, summary=False, pdf=False, device=False)


def submit(server: Running, bundle: dict[str, Any]) -> Response:
    """Submit, and hold that every entry is answered for, in time."""
    started = time.monotonic()
    answer = Client(server.url).submit("argo", bundle)
    assert answer.status == 200, answer.data
    assert len(answer.body["entry"]) == len(bundle["entry"])
    assert time.monotonic() - started < BOUND
    return answer


def statuses(answer: Response) -> dict[str, int]:
    return dict(Counter(entry["response"]["status"][:3] for entry in answer.body["entry"]))


def places(answer: Response) -> list[tuple[str, str]]:
    return [(entry["response"]["location"], entry["response"]["etag"]) for entry in answer.body["entry"]]


@contextmanager
def two(upstream: str, valkey: Running, folder: Path) -> Iterator[Replicas]:
    shared = {"cache.shared": valkey.url, "log_level": "debug"}
    with (
        servers.proxy(upstream, folder, shared, "one") as one,
        servers.proxy(upstream, folder, shared, "other") as other,
    ):
        yield Replicas(one, other, valkey, Client(upstream))


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
    """Give the replicas as they should be, and see that they are so after the test."""
    running.restored()
    yield running
    running.restored()


def test_what_one_replica_stored_another_answers_from_what_they_share(replicas: Replicas) -> None:
    about = replicas.new_patient(orders=True)
    bundle = submission("argo", about, readings=400)
    known, hits = metric(replicas.other, "duplicates_total", found="shared"), order_look_ups(replicas, "hit")
    first = submit(replicas.one, bundle)
    again = submit(replicas.other, bundle)
    assert statuses(first) == {"201": len(bundle["entry"])}
    assert statuses(again) == {"200": len(bundle["entry"])}
    assert places(again) == places(first)
    assert metric(replicas.other, "duplicates_total", found="shared") - known == len(bundle["entry"])
    assert order_look_ups(replicas, "hit") - hits == 1


def order_look_ups(replicas: Replicas, result: str) -> float:
    return sum(metric(each, "order_lookups_total", result=result) for each in (replicas.one, replicas.other))


#: Writes that remove one reading.
REMOVALS: dict[str, Callable[[Client, str], Response]] = {
    "DELETE": lambda client, place: client.request("DELETE", place),
    "batch": lambda client, place: client.post(
        "", {"resourceType": "Bundle", "type": "batch", "entry": [{"request": {"method": "DELETE", "url": place}}]}
    ),
    "conditional": lambda client, place: client.request("DELETE", f"Observation?_id={place.rpartition('/')[2]}"),
}


@pytest.mark.parametrize("remove", REMOVALS.values(), ids=REMOVALS)
def test_what_was_deleted_through_one_replica_is_stored_anew_at_once_through_the_other(
    replicas: Replicas, remove: Callable[[Client, str], Response]
) -> None:
    about = replicas.new_patient()
    bundle = readings(about, 400)
    submit(replicas.one, bundle)
    for number, (deleter, other) in enumerate([(replicas.one, replicas.other), (replicas.other, replicas.one)] * 3):
        place = places(submit(other, bundle))[17 * number + 3][0].partition("/_history")[0]
        assert remove(Client(deleter.url), place).status == 200
        assert statuses(submit(other, bundle)) == {"200": 399, "201": 1}
        assert replicas.stored(about) == 400


def test_an_order_that_is_written_through_one_replica_holds_at_the_other_at_once(replicas: Replicas) -> None:
    about = replicas.new_patient()
    assert statuses(submit(replicas.other, readings(about, 1))) == {"201": 1}
    for number in range(3):
        (order,) = standing_orders("argo", about)[:1]
        assert Client(replicas.one.url).put(f"ServiceRequest/{order['id']}", order).status in {200, 201}
        assert Client(replicas.other.url).submit("argo", readings(about, number + 1)).status == 422
        assert Client(replicas.one.url).request("DELETE", f"ServiceRequest/{order['id']}").status == 200
        assert Client(replicas.other.url).submit("argo", readings(about, number + 1)).status == 200


def test_a_submission_that_comes_to_both_at_the_same_moment_is_stored_once(replicas: Replicas) -> None:
    about, asked = replicas.new_patient(orders=True), order_look_ups(replicas, "miss")
    bundle = submission("argo", about, readings=600)
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(submit, [replicas.one, replicas.other] * 3, [bundle] * 6))
    total = sum((Counter(statuses(answer)) for answer in answers), Counter())
    assert total == {"201": len(bundle["entry"]), "200": 5 * len(bundle["entry"])}
    assert len({tuple(places(answer)) for answer in answers}) == 1
    observations = sum(entry["resource"]["resourceType"] == "Observation" for entry in bundle["entry"])
    assert replicas.stored(about) == observations
    assert order_look_ups(replicas, "miss") - asked == 1


def locked(server: Running) -> None:
    with Redis.from_url(server.url) as raw:
        raw.config_set("requirepass", "s3cr3t")
        raw.client_kill_filter(_type="normal", skipme=True)


def unlocked(server: Running) -> None:
    with Redis.from_url(server.url, password="s3cr3t") as raw:
        raw.config_set("requirepass", "")


def full(server: Running) -> None:
    with Redis.from_url(server.url) as raw:
        raw.config_set("maxmemory", "1")


def emptier(server: Running) -> None:
    with Redis.from_url(server.url) as raw:
        raw.config_set("maxmemory", "0")


def flushed(server: Running) -> None:
    with Redis.from_url(server.url) as raw:
        raw.flushall()


def nothing(_: Running) -> None:
    """Nothing has to end."""


#: What befalls Valkey, how it ends, and as what the replicas count it.
FAULTS: dict[str, tuple[Callable[[Running], object], Callable[[Running], object], str]] = {
    "killed": (lambda server: server.kill(), lambda server: server.start(), "refused"),
    "slow": (
        lambda server: server.process.send_signal(signal.SIGSTOP),
        lambda server: server.process.send_signal(signal.SIGCONT),
        "timeout",
    ),
    "full": (full, emptier, "error"),
    "locked": (locked, unlocked, "error"),
    "flushed": (flushed, nothing, ""),
}


@contextmanager
def befallen(valkey: Running, fault: str) -> Iterator[None]:
    begin, end, _ = FAULTS[fault]
    begin(valkey)
    try:
        yield
    finally:
        end(valkey)


@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_befalls_valkey_each_replica_answers_rightly_and_they_share_again(
    replicas: Replicas, fault: str
) -> None:
    about, newer = replicas.new_patient(), replicas.new_patient()
    bundle, kind = readings(about, 300), FAULTS[fault][2]
    first = submit(replicas.one, bundle)
    faults = metric(replicas.other, "shared_memory_faults_total", kind=kind)
    with befallen(replicas.valkey, fault):
        assert places(submit(replicas.other, bundle)) == places(first)
        assert statuses(submit(replicas.other, readings(newer, 300))) == {"201": 300}
        assert statuses(submit(replicas.one, readings(newer, 300))) == {"200": 300}
        gone = places(first)[150][0].partition("/_history")[0]
        assert Client(replicas.one.url).request("DELETE", gone).status == 200
        assert statuses(submit(replicas.one, bundle)) == {"200": 299, "201": 1}
        assert statuses(submit(replicas.other, bundle)) == {"200": 300}
        if kind:
            assert metric(replicas.other, "shared_memory_faults_total", kind=kind) > faults
        assert Client(replicas.other.ops).get("readyz").status == 200
    replicas.restored()
    submit(replicas.one, bundle)
    known = metric(replicas.other, "duplicates_total", found="shared")
    assert statuses(submit(replicas.other, bundle)) == {"200": 300}
    assert metric(replicas.other, "duplicates_total", found="shared") - known == 300
    assert (replicas.stored(about), replicas.stored(newer)) == (300, 300)


@pytest.mark.parametrize("fault", FAULTS)
def test_valkey_may_fail_in_the_middle_of_submissions(replicas: Replicas, fault: str) -> None:
    about = replicas.new_patient()
    bundles = [readings(about, number) for number in (1000, 1200, 1400, 1600)]
    with ThreadPoolExecutor(4) as pool:
        sending = [
            pool.submit(submit, server, bundle)
            for server, bundle in zip([replicas.one, replicas.other] * 2, bundles, strict=True)
        ]
        for _ in range(3):
            time.sleep(0.3)
            with befallen(replicas.valkey, fault):
                time.sleep(0.3)
        answers = [each.result() for each in sending]
    assert sum((Counter(statuses(answer)) for answer in answers), Counter()) == {"201": 1600, "200": 3600}
    assert replicas.stored(about) == 1600
    longest = places(answers[3])
    assert all(places(answer) == longest[: len(places(answer))] for answer in answers)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_replica_that_is_lost_in_the_middle_of_a_turn_delays_the_other_for_a_lease_at_most(
    sandbox: str, valkey: Running, tmp_path: Path, end: signal.Signals
) -> None:
    with two(sandbox, valkey, tmp_path) as replicas, ThreadPoolExecutor(1) as pool:
        about = replicas.new_patient()
        bundle = readings(about, 1500)
        lost = pool.submit(Client(replicas.one.url).submit, "argo", bundle)
        while not replicas.stored(about):
            time.sleep(0.02)
        replicas.one.process.send_signal(end)
        started = time.monotonic()
        again = submit(replicas.other, bundle)
        assert time.monotonic() - started < LEASE_SECONDS + 5
        if end == signal.SIGSTOP:
            replicas.one.process.send_signal(signal.SIGCONT)
            assert places(lost.result()) == places(again)
        else:
            assert isinstance(lost.exception(), OSError)
        assert set(statuses(again)) <= {"200", "201"}
        assert replicas.stored(about) == 1500


async def test_a_reading_whose_deleter_died_before_the_answer_is_stored_anew(valkey: Running, tmp_path: Path) -> None:
    """The upstream has deleted it, and the replica through which that went can't tell the other any more."""
    gate = Gate(late=True)

    def story(upstream: str, store: str) -> None:
        with two(upstream, valkey, tmp_path) as replicas, ThreadPoolExecutor(1) as pool:
            replicas.store = Client(store)
            about = replicas.new_patient()
            bundle = readings(about, 400)
            place = places(submit(replicas.one, bundle))[3][0].partition("/_history")[0]
            deleting = pool.submit(Client(replicas.one.url).request, "DELETE", place)
            while replicas.store.get(place).status == 200:
                time.sleep(0.02)
            replicas.one.kill()
            assert isinstance(deleting.exception(), OSError)
            assert statuses(submit(replicas.other, bundle)) == {"200": 399, "201": 1}
            assert replicas.stored(about) == 400

    async with fake_upstream() as fake:
        fake.script(lambda asked: asked.method == "DELETE", gate)
        try:
            await asyncio.to_thread(story, fake.url, fake.store)
        finally:
            gate.opened.set()


@pytest.mark.usefixtures("valkey_here")
def test_proxies_start_without_valkey_and_say_so(sandbox: str, tmp_path: Path) -> None:
    valkey = servers.valkey_process(tmp_path)
    with two(sandbox, valkey, tmp_path) as replicas:
        for server in (replicas.one, replicas.other):
            ready = Client(server.ops).get("readyz")
            assert (ready.status, ready.body) == (200, {"status": "ok", "shared memory": "away"})
            assert metric(server, "shared_memory_up") == 0
            assert '"shared memory is away"' in server.log.read_text()
        about = replicas.new_patient()
        first = submit(replicas.one, readings(about, 100))
        assert places(submit(replicas.other, readings(about, 100))) == places(first)
        valkey.start()
        try:
            replicas.restored()
            assert Client(replicas.one.ops).get("readyz").body == {"status": "ok"}
        finally:
            valkey.stop()
