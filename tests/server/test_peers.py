"""Several replicas: a poll is answered whichever replica it reaches."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import aiohttp
from support import servers
from support.client import XML, Response
from support.fake_upstream import Gate, before, fake_upstream, gets, transactions
from support.later import keep, raw, result, statuses
from support.proxying import World

from cgm_proxy.sandbox.simulation.submissions import patient

OWN = {"Authorization": "Bearer own"}


@asynccontextmanager
async def replicas(folder: Path) -> AsyncIterator[tuple[World, World, servers.Running]]:
    """Run two replicas as processes, named by their ports; yield them and the process of the first."""
    ports = [servers.free_port(), servers.free_port()]
    async with fake_upstream() as fake, aiohttp.ClientSession() as session:
        running = [
            servers.proxy(
                fake.url,
                folder,
                {
                    "listen.port": port,
                    "listen.public_url": "http://fhir.example.org/fhir",
                    "jobs.path": folder / f"jobs-{port}",
                    "jobs.replica": port,
                    "jobs.peers": "http://127.0.0.1:{replica}/fhir",
                },
                name=str(port),
            )
            for port in ports
        ]
        started = [await asyncio.to_thread(one.__enter__) for one in running]
        try:
            first, second = (World(fake, SimpleNamespace(port=port), session) for port in ports)
            await first.put(patient("p1"))
            yield first, second, started[0]
        finally:
            for one in running:
                await asyncio.to_thread(one.__exit__, None, None, None)


async def test_any_replica_answers_for_the_one_that_keeps_the_submission(tmp_path: Path) -> None:
    async with replicas(tmp_path) as (first, second, server):
        first.fake.always(
            lambda asked: gets("Patient/")(asked) and asked.headers.get("Authorization") != "Bearer own", before(403)
        )
        gate = Gate()
        first.fake.script(transactions, gate)
        where = await keep(first, first.readings(3), **OWN)
        assert re.fullmatch(r"\$cgm-submission-status/\d+\.[\w-]{43}", where)
        await gate.reached.wait()
        poll = await second.request("GET", where, **OWN)
        assert (poll.status, poll.headers["X-Progress"], poll.headers["Retry-After"]) == (202, "in progress", "2")
        gate.opened.set()
        mine, theirs = [await result(world, where, **OWN) for world in (first, second)]
        assert statuses(theirs) == [201] * 3
        assert theirs.data == mine.data
        assert kept_fields(theirs) == kept_fields(mine)
        as_xml = [await world.request("GET", where, Accept=XML, **OWN) for world in (first, second)]
        assert as_xml[0].data == as_xml[1].data
        assert (await second.request("GET", f"{where}?_format=xml", **OWN)).data == as_xml[0].data
        assert (await second.request("HEAD", where, **OWN)).headers["Content-Length"] == str(len(mine.data))
        assert (await second.request("GET", where, Authorization="Bearer other")).status == 403
        await asyncio.to_thread(server.kill)
        gone = await second.request("GET", where, **OWN)
        assert (gone.status, gone.rules, gone.headers["Retry-After"]) == (503, ["async-replica"], "5")
        await asyncio.to_thread(server.start)
        assert (await second.request("DELETE", where, **OWN)).status == 202
        assert [(await world.request("GET", where, **OWN)).status for world in (first, second)] == [404, 404]


def kept_fields(answer: Response) -> list[str | None]:
    return [answer.headers.get(name) for name in ("Content-Type", "Content-Length", "Cache-Control", "Expires")]


ELSEWHERE = [
    "evil.{id}",
    "1.2.3.4.{id}",
    "{own}.{other}.{id}",
    "999999.{id}",
    "x{other}.{id}",
    "{other}@evil.{id}",
    ".{id}",
    "{other}.x%0d%0aX-A:%20b",
    "{other}.x%3Fy%23z%252e",
]


async def test_an_id_leads_to_no_other_host(tmp_path: Path) -> None:
    async with replicas(tmp_path) as (first, second, _):
        where = await keep(first, first.readings(1))
        await result(first, where)
        secret = where.rpartition(".")[2]
        for name in ELSEWHERE:
            path = name.format(id=secret, own=second.proxy.port, other=first.proxy.port)
            answer = await raw(second.proxy.port, b"GET", f"/fhir/$cgm-submission-status/{path}")
            assert answer.startswith(b"HTTP/1.1 404"), name
            assert b"async-unknown" in answer, name
        assert statuses(await second.request("GET", where)) == [201]


async def test_a_forwarded_poll_is_not_forwarded_again(tmp_path: Path) -> None:
    async with replicas(tmp_path) as (first, second, _):
        where = await keep(first, first.readings(1))
        assert (await second.request("GET", where, X_CGM_Proxy_Peer="1")).status == 404
