"""Kept submissions and real processes: killed, stopped, out of disk space, and what the upstream holds in the end."""

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
from support.later import ASYNC, files, keep, result, rules, status, statuses, submission_entry
from support.proxying import World
from support.proxying import statuses as now

from cgm_proxy.core.codec.json_body import encode
from cgm_proxy.jobs.job_queue import ATTEMPTS
from cgm_proxy.sandbox.simulation.submissions import patient, submission


@dataclass
class ProxyProcess:
    """A proxy as a process in front of a scripted upstream; `world` is its client."""

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
async def proxy_process(folder: Path, **settings) -> AsyncIterator[ProxyProcess]:
    """Run a proxy that keeps submissions in front of a scripted upstream."""
    path = folder / "jobs.sqlite"
    dotted = {"jobs.path": path} | {name.replace("__", "."): value for name, value in settings.items()}
    async with fake_upstream() as fake, aiohttp.ClientSession() as session:
        running = servers.proxy(fake.url, folder, dotted)
        server = await asyncio.to_thread(running.__enter__)
        try:
            world = World(fake, SimpleNamespace(port=int(re.search(r":(\d+)", server.url)[1])), session)
            await world.put(patient("p1"))
            yield ProxyProcess(server, world, path)
        finally:
            await asyncio.to_thread(running.__exit__, None, None, None)


def gated(fake: FakeUpstream) -> Gate:
    """Hold the next transaction at a gate."""
    gate = Gate()
    fake.script(transactions, gate)
    return gate


#: When the proxy is killed: after how many transactions, and whether the upstream has committed the next one.
MOMENTS = {
    "before the first transaction": (0, False),
    "before the first response": (0, True),
    "between two transactions": (2, False),
    "before the last response": (4, True),
}


@pytest.mark.parametrize(("done", "late"), MOMENTS.values(), ids=MOMENTS)
async def test_a_killed_proxy_continues_after_its_start_and_stores_each_entry_once(
    tmp_path: Path, done: int, late: bool
) -> None:
    async with proxy_process(tmp_path, forward__chunk=2, forward__concurrency=1) as proxy:
        world = proxy.world
        gates = [Gate(late=late) for _ in range(done + 1)]
        world.fake.script(transactions, *gates)
        path = await keep(world, world.readings(10))
        for gate in gates[:-1]:
            await gate.reached.wait()
            gate.opened.set()
        await gates[-1].reached.wait()
        await proxy.restart()
        kept = await result(world, path)
        assert statuses(kept).count(200) == 2 * (done + late)
        assert await world.count() == 10
        stored = {f"Observation/{one['id']}" for one in await world.stored()}
        locations = [entry["response"]["location"] for entry in submission_entry(kept)["resource"]["entry"]]
        assert {location.partition("/_history")[0] for location in locations} == stored


async def test_an_accepted_submission_is_on_the_disk(tmp_path: Path) -> None:
    async with proxy_process(tmp_path, jobs__at_once=1) as proxy:
        world = proxy.world
        gate = gated(world.fake)
        first = await keep(world, world.readings(1))
        await gate.reached.wait()
        rest = [await keep(world, world.readings(n), Accept="application/fhir+xml") for n in (2, 3, 4)]
        await proxy.kill()
        assert proxy.path.stat().st_mode & 0o777 == 0o600
        await proxy.start()
        answers = [await result(world, path) for path in (first, *rest)]
        assert [len(statuses(answer)) for answer in answers] == [1, 2, 3, 4]
        assert answers[-1].headers["Content-Type"].startswith("application/fhir+xml")
        assert await world.count() == 4
        (taken_up,) = [event for event in proxy.events if event["event"] == "kept submissions taken up again"]
        assert taken_up["count"] == 4


async def test_a_result_survives_a_restart(tmp_path: Path) -> None:
    async with proxy_process(tmp_path) as proxy:
        path = await keep(proxy.world, proxy.world.readings(3))
        first = await result(proxy.world, path)
        await proxy.restart()
        assert (await result(proxy.world, path)).data == first.data


async def test_a_submission_that_crashes_the_process_is_given_up_and_others_are_not(tmp_path: Path) -> None:
    async with proxy_process(tmp_path, jobs__at_once=3) as proxy:
        world = proxy.world
        await world.put(patient("p2"))
        innocent_gate, guilty_gates = Gate(), [Gate() for _ in range(ATTEMPTS)]
        world.fake.script(holding("Patient/p2"), innocent_gate)
        world.fake.script(holding("Patient/p1"), *guilty_gates)
        guilty = await keep(world, world.readings(2))
        innocent = await keep(
            world, submission("argo", "Patient/p2", readings=1, summary=False, pdf=False, device=False)
        )
        await innocent_gate.reached.wait()
        for gate in guilty_gates:
            await gate.reached.wait()
            await proxy.restart()
        answer = await result(world, guilty)
        assert (status(answer), rules(answer)) == (500, ["async-given-up"])
        assert statuses(await result(world, innocent)) == [201]
        assert [event["attempts"] for event in proxy.events if event["event"] == "kept submission given up"] == [
            ATTEMPTS
        ]
        assert now(await world.submit(world.readings(2))) == [201, 201]


@pytest.mark.parametrize("seconds", [0, 0.3])
async def test_a_stopped_proxy_leaves_the_rest_to_its_next_start(tmp_path: Path, seconds: float) -> None:
    async with proxy_process(tmp_path, listen__stop_timeout=seconds, jobs__at_once=1) as proxy:
        world = proxy.world
        gates = [Gate() for _ in range(ATTEMPTS + 1)]
        world.fake.script(transactions, *gates)
        path = await keep(world, world.readings(3))
        waiting = await keep(world, world.readings(4))
        for gate in gates:  # more often than `ATTEMPTS`: a regular stop does not count
            await gate.reached.wait()
            assert await asyncio.to_thread(proxy.server.stop, 20) == 0
            assert proxy.events[-2]["count"] == 2
            await proxy.start()
        assert statuses(await result(world, path)) == [201] * 3
        assert statuses(await result(world, waiting)) == [200] * 3 + [201]
        assert await world.count() == 4


async def test_a_stopping_proxy_waits_for_jobs_in_progress(tmp_path: Path) -> None:
    async with proxy_process(tmp_path) as proxy:
        world = proxy.world
        gate = gated(world.fake)
        path = await keep(world, world.readings(3))
        await gate.reached.wait()
        proxy.server.process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.3)
        gate.opened.set()
        assert await asyncio.to_thread(proxy.server.process.wait, 20) == 0
        assert await world.count() == 3
        await proxy.start()
        assert statuses(await result(world, path)) == [201] * 3


async def test_a_submitter_that_hangs_up_before_the_response_can_send_again(tmp_path: Path) -> None:
    async with proxy_process(tmp_path) as proxy:
        world = proxy.world
        gate = Gate(late=True)
        world.fake.script(lambda request: str(request).startswith("GET Patient"), gate)
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


async def test_with_a_full_disk_new_submissions_are_refused_and_kept_ones_are_answered(tmp_path: Path) -> None:
    async with proxy_process(tmp_path, jobs__at_once=1) as proxy:
        world = proxy.world
        gate = gated(world.fake)
        path = await keep(world, world.readings(5))
        waiting = [await keep(world, world.readings(number)) for number in (6, 7)]
        await gate.reached.wait()
        pid, unlimited = proxy.server.process.pid, resource.RLIM_INFINITY
        before = files(proxy.path)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, unlimited))  # like a full disk: nothing can be written
        for size in (1, 2000):
            answer = await world.submit(world.readings(size), **ASYNC)
            assert (answer.status, answer.rules) == (503, ["async-store"])
            assert answer.headers["Retry-After"] == "5"
        assert len(files(proxy.path)) == len(before)
        gate.opened.set()
        lost = await result(world, path)
        assert (status(lost), rules(lost)) == (500, ["async-result-lost"])
        assert await world.count() == 5
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (unlimited, unlimited))
        assert rules(await result(world, path)) == ["async-result-lost"]
        assert [statuses(await result(world, each)) for each in waiting] == [[200] * 5 + [201], [200] * 6 + [201]]
        assert statuses(await result(world, await keep(world, world.readings(5)))) == [200] * 5


async def test_only_one_process_can_open_the_file(tmp_path: Path) -> None:
    async with proxy_process(tmp_path) as proxy:
        path = await keep(proxy.world, proxy.world.readings(1))
        other = servers.Running(
            proxy.server.command,
            "",
            "http://127.0.0.1:9/",
            tmp_path / "other.log",
            {**proxy.server.environ, "CGM_PROXY_LISTEN_PORT": "0", "CGM_PROXY_LISTEN_OPS_PORT": "0"},
        )
        with pytest.raises(RuntimeError, match=r"jobs\.path: .* another process has it open; each proxy needs its own"):
            await asyncio.to_thread(other.start)
        assert other.process.returncode == 2
        assert statuses(await result(proxy.world, path)) == [201]


UNUSABLE = {
    "in a directory that does not exist": ("none/jobs", "none/jobs can't be opened"),
    "a directory": (".", "can't be opened"),
    "another file": ("text", "file is not a database; name another file"),
}


@pytest.mark.parametrize(("name", "text"), UNUSABLE.values(), ids=UNUSABLE)
def test_a_file_that_cannot_be_used_stops_the_start(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "text").write_text("something else " * 1000)
    command = [str(Path(sys.executable).parent / "cgm-proxy"), "serve"]
    environ = {"CGM_PROXY_JOBS_PATH": str(tmp_path / name), "CGM_PROXY_LISTEN_PORT": "0"}
    completed = subprocess.run(
        command, env=os.environ | environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert completed.returncode == 2
    assert completed.stderr.startswith("cgm-proxy: jobs.path: ")
    assert text in completed.stderr
    assert "Traceback" not in completed.stderr


def until(condition: Callable[[], bool], seconds: float = 120) -> None:
    """Wait until the condition is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.hapi
def test_a_killed_proxy_stores_each_entry_once_on_hapi(hapi: str, tmp_path: Path) -> None:
    store = Client(hapi)
    assert store.put("Patient/async-kill", patient("async-kill")).status in {200, 201}
    bundle = submission("argo", "Patient/async-kill", readings=600)
    observations = sum(entry["resource"]["resourceType"] == "Observation" for entry in bundle["entry"])
    with servers.proxy(hapi, tmp_path, {"jobs.path": tmp_path / "jobs.sqlite", "forward.chunk": 20}) as server:
        kept = Client(server.url).submit("argo", bundle, Prefer="respond-async")
        assert kept.status == 202
        path = kept.headers["Content-Location"].removeprefix(f"{server.url}/")
        for least in (60, 200):
            until(lambda least=least: store.total("Observation?subject=Patient/async-kill") >= least)
            server.kill()
            server.start()
        until(lambda: Client(server.url).get(path).status == 200)
        answer = Client(server.url).get(path)
    entries = answer.body["entry"][0]["resource"]["entry"]
    assert {entry["response"]["status"][:3] for entry in entries} == {"200", "201"}
    assert store.total("Observation?subject=Patient/async-kill") == observations
    assert len({entry["response"]["location"] for entry in entries}) == len(bundle["entry"])
