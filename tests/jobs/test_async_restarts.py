"""Kept submissions and real processes: killed, stopped, starved of disk, and what the upstream holds in the end."""

import asyncio
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import aiohttp
import pytest
from support import servers
from support.client import JSON, Client
from support.fake_upstream import FakeUpstream, Gate, fake_upstream, holding, transactions
from support.later import ASYNC, files, keep, largest, result, rules, status, statuses, told
from support.proxying import World
from support.proxying import statuses as now

from cgm_proxy.core.codec.json_body import encode
from cgm_proxy.jobs.job_queue import ATTEMPTS
from cgm_proxy.sandbox.simulation.submissions import patient, submission


@dataclass
class Place:
    """A proxy as a process before a scripted upstream; `world` speaks with it."""

    server: servers.Running
    world: World
    path: Path

    async def start(self) -> None:
        await asyncio.to_thread(self.server.start)

    async def kill(self) -> None:
        await asyncio.to_thread(self.server.kill)

    async def restart(self) -> None:
        await self.kill()
        await self.start()

    @property
    def events(self) -> list[dict]:
        return [json.loads(line) for line in self.server.log.read_text().splitlines() if line.startswith("{")]


@asynccontextmanager
async def placed(folder: Path, **settings) -> AsyncIterator[Place]:
    """Run a proxy that keeps submissions before a scripted upstream."""
    path = folder / "jobs.sqlite"
    given = {"jobs.path": path} | {name.replace("__", "."): value for name, value in settings.items()}
    async with fake_upstream() as fake, aiohttp.ClientSession() as session:
        running = servers.proxy(fake.url, folder, given)
        server = await asyncio.to_thread(running.__enter__)
        try:
            world = World(fake, SimpleNamespace(port=int(re.search(r":(\d+)", server.url)[1])), session)
            await world.put(patient("p1"))
            yield Place(server, world, path)
        finally:
            await asyncio.to_thread(running.__exit__, None, None, None)


async def gated(fake: FakeUpstream, *, late: bool = False) -> Gate:
    gate = Gate(late=late)
    fake.script(transactions, gate)
    return gate


#: At which transaction of the submission, and whether the upstream has carried it out, the proxy is killed.
MOMENTS = {
    "before the first transaction": (0, False),
    "before the first answer": (0, True),
    "between two transactions": (2, False),
    "before the last answer": (4, True),
}


@pytest.mark.parametrize(("done", "late"), MOMENTS.values(), ids=MOMENTS)
async def test_a_killed_proxy_goes_on_after_its_start_and_stores_each_once(
    tmp_path: Path, done: int, late: bool
) -> None:
    async with placed(tmp_path, forward__chunk=2, forward__concurrency=1) as here:
        world = here.world
        gates = [Gate(late=late) for _ in range(done + 1)]
        world.fake.script(transactions, *gates)
        where = await keep(world, world.readings(10))
        for gate in gates[:-1]:
            await gate.reached.wait()
            gate.opened.set()
        await gates[-1].reached.wait()
        await here.restart()
        kept = await result(world, where)
        assert statuses(kept).count(200) == 2 * (done + late)
        assert await world.count() == 10
        stored = {f"Observation/{one['id']}" for one in await world.stored()}
        locations = [entry["response"]["location"] for entry in told(kept)["resource"]["entry"]]
        assert {location.partition("/_history")[0] for location in locations} == stored


async def test_what_was_answered_202_is_on_the_disk(tmp_path: Path) -> None:
    async with placed(tmp_path, jobs__at_once=1) as here:
        world = here.world
        gate = await gated(world.fake)
        first = await keep(world, world.readings(1))
        await gate.reached.wait()
        rest = [await keep(world, world.readings(n), Accept="application/fhir+xml") for n in (2, 3, 4)]
        await here.kill()
        assert here.path.stat().st_mode & 0o777 == 0o600
        await here.start()
        answers = [await result(world, where) for where in (first, *rest)]
        assert [len(statuses(answer)) for answer in answers] == [1, 2, 3, 4]
        assert answers[-1].headers["Content-Type"].startswith("application/fhir+xml")
        assert await world.count() == 4
        (taken_up,) = [event for event in here.events if event["event"] == "kept submissions taken up again"]
        assert taken_up["count"] == 4


async def test_a_result_outlives_the_process(tmp_path: Path) -> None:
    async with placed(tmp_path) as here:
        where = await keep(here.world, here.world.readings(3))
        first = await result(here.world, where)
        await here.restart()
        assert (await result(here.world, where)).data == first.data


async def test_a_submission_that_ends_the_process_is_given_up_and_its_neighbours_are_not(tmp_path: Path) -> None:
    async with placed(tmp_path, jobs__at_once=3) as here:
        world = here.world
        await world.put(patient("p2"))
        beside, poison = Gate(), [Gate() for _ in range(ATTEMPTS)]
        world.fake.script(holding("Patient/p2"), beside)
        world.fake.script(holding("Patient/p1"), *poison)
        guilty = await keep(world, world.readings(2))
        innocent = await keep(
            world, submission("argo", "Patient/p2", readings=1, summary=False, pdf=False, device=False)
        )
        await beside.reached.wait()
        for gate in poison:
            await gate.reached.wait()
            await here.restart()
        answer = await result(world, guilty)
        assert (status(answer), rules(answer)) == (500, ["async-given-up"])
        assert statuses(await result(world, innocent)) == [201]
        assert [event["attempts"] for event in here.events if event["event"] == "kept submission given up"] == [
            ATTEMPTS
        ]
        assert now(await world.submit(world.readings(2))) == [201, 201]


@pytest.mark.parametrize("seconds", [0, 0.3])
async def test_a_proxy_that_is_told_to_stop_leaves_the_rest_to_its_next_start(tmp_path: Path, seconds: float) -> None:
    async with placed(tmp_path, listen__stop_timeout=seconds, jobs__at_once=1) as here:
        world = here.world
        gates = [Gate() for _ in range(ATTEMPTS + 1)]
        world.fake.script(transactions, *gates)
        where = await keep(world, world.readings(3))
        waiting = await keep(world, world.readings(4))
        for gate in gates:  # more often than it may end the process: to be stopped is no fault of a submission
            await gate.reached.wait()
            assert await asyncio.to_thread(here.server.stop, 20) == 0
            assert here.events[-2]["count"] == 2
            await here.start()
        assert statuses(await result(world, where)) == [201] * 3
        assert statuses(await result(world, waiting)) == [200] * 3 + [201]
        assert await world.count() == 4


async def test_a_proxy_that_is_told_to_stop_lets_what_is_under_way_end_in_time(tmp_path: Path) -> None:
    async with placed(tmp_path) as here:
        world = here.world
        gate = await gated(world.fake)
        where = await keep(world, world.readings(3))
        await gate.reached.wait()
        here.server.process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.3)
        gate.opened.set()
        assert await asyncio.to_thread(here.server.process.wait, 20) == 0
        assert await world.count() == 3
        await here.start()
        assert statuses(await result(world, where)) == [201] * 3


async def test_a_submitter_that_hangs_up_before_it_hears_of_it_has_lost_nothing(tmp_path: Path) -> None:
    async with placed(tmp_path) as here:
        world = here.world
        gate = Gate(late=True)
        world.fake.script(lambda asked: str(asked).startswith("GET Patient"), gate)
        body = encode(world.readings(6))
        head = f"POST /fhir HTTP/1.1\r\nHost: x\r\nContent-Type: {JSON}\r\nPrefer: respond-async\r\n"
        _, writer = await asyncio.open_connection("127.0.0.1", world.proxy.port)
        with closing(writer):
            writer.write(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            await gate.reached.wait()
            writer.transport.abort()
        gate.opened.set()
        again = await result(world, await keep(world, world.readings(6)))
        assert set(statuses(again)) <= {200, 201}
        assert await world.count() == 6


async def test_a_full_disk_refuses_new_ones_and_holds_up_the_kept_ones(tmp_path: Path) -> None:
    async with placed(tmp_path, jobs__at_once=1) as here:
        world = here.world
        gate = await gated(world.fake)
        where = await keep(world, world.readings(5))
        await gate.reached.wait()
        pid, plenty = here.server.process.pid, resource.RLIM_INFINITY
        before = files(here.path)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (largest(here.path), plenty))  # as a full disk: its log can't grow
        for size in (1, 2000):
            answer = await world.submit(world.readings(size), **ASYNC)
            assert (answer.status, answer.rules) == (503, ["async-store"])
            assert answer.headers["Retry-After"] == "5"
        assert len(files(here.path)) == len(before)
        gate.opened.set()
        await asyncio.sleep(0.5)
        assert (await world.request("GET", where)).status == 202
        assert await world.count() == 5
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (plenty, plenty))
        assert statuses(await result(world, where)) == [201] * 5
        assert statuses(await result(world, await keep(world, world.readings(5)))) == [200] * 5


async def test_the_file_belongs_to_one_process(tmp_path: Path) -> None:
    async with placed(tmp_path) as here:
        where = await keep(here.world, here.world.readings(1))
        other = servers.Running(
            here.server.command,
            "",
            "http://127.0.0.1:9/",
            tmp_path / "other.log",
            {**here.server.environ, "CGM_PROXY_LISTEN_PORT": "0", "CGM_PROXY_LISTEN_OPS_PORT": "0"},
        )
        with pytest.raises(RuntimeError, match=r"jobs\.path: .* another process has it open; each proxy needs its own"):
            await asyncio.to_thread(other.start)
        assert other.process.returncode == 2
        assert statuses(await result(here.world, where)) == [201]


UNUSABLE = {
    "in no directory": ("none/jobs", "none/jobs can't be opened"),
    "a directory": (".", "can't be opened"),
    "another file": ("text", "file is not a database; name another file"),
}


@pytest.mark.parametrize(("name", "text"), UNUSABLE.values(), ids=UNUSABLE)
def test_a_file_that_cannot_be_used_stops_the_start(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "text").write_text("something else " * 1000)
    command = [str(Path(sys.executable).parent / "cgm-proxy"), "serve"]
    environ = {"CGM_PROXY_JOBS_PATH": str(tmp_path / name), "CGM_PROXY_LISTEN_PORT": "0"}
    ended = subprocess.run(command, env=os.environ | environ, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith("cgm-proxy: jobs.path: ")
    assert text in ended.stderr
    assert "Traceback" not in ended.stderr


def until(true: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.hapi
def test_a_killed_proxy_stores_each_once_on_hapi(hapi: str, tmp_path: Path) -> None:
    store = Client(hapi)
    assert store.put("Patient/async-kill", patient("async-kill")).status in {200, 201}
    bundle = submission("argo", "Patient/async-kill", readings=600)
    observations = sum(entry["resource"]["resourceType"] == "Observation" for entry in bundle["entry"])
    with servers.proxy(hapi, tmp_path, {"jobs.path": tmp_path / "jobs.sqlite", "forward.chunk": 20}) as server:
        kept = Client(server.url).submit("argo", bundle, Prefer="respond-async")
        assert kept.status == 202
        where = kept.headers["Content-Location"].removeprefix(f"{server.url}/")
        for wanted in (60, 200):
            until(lambda least=wanted: store.total("Observation?subject=Patient/async-kill") >= least)
            server.kill()
            server.start()
        until(lambda: Client(server.url).get(where).status == 200)
        answer = Client(server.url).get(where)
    entries = answer.body["entry"][0]["resource"]["entry"]
    assert {entry["response"]["status"][:3] for entry in entries} == {"200", "201"}
    assert store.total("Observation?subject=Patient/async-kill") == observations
    assert len({entry["response"]["location"] for entry in entries}) == len(bundle["entry"])
