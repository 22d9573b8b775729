"""One run: submitters against two proxies that share a Valkey, a monkey against all of it; then what is held is compared."""

import asyncio
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from uuid import uuid4

from chaos.checker import Checker
from chaos.monkey import Monkey, Victim
from chaos.report import Options, Report
from chaos.submitters import Submitters
from chaos.workload import Patient, Workload
from support import servers
from support.client import Client
from support.cutting import CuttingRelay, cutting_relay

from cgm_proxy.core.json_values import JsonObject
from cgm_proxy.sandbox.simulation.dialect_forms import Units

#: What makes a run nasty: small transactions, so that a submission is stored in several; short waits.
SETTINGS = {
    "forward.chunk": 25,
    "limits.seconds": 60,
    "listen.stop_timeout": 5,
    "upstream.connect_timeout": 2,
    "upstream.read_timeout": 8,
    "upstream.retries": 2,
}

#: Units and whether there are standing orders, of each patient.
PATIENTS: tuple[tuple[Units, bool], ...] = (("mass", True), ("mass", False), ("molar", True), ("molar", False))
SUBMITTERS = 8
REPLICAS = ("proxy-1", "proxy-2")

#: How long submissions may take to be answered once nothing goes wrong any more (seconds).
CALM = 180.0

#: What the relay writes for ifNoneExist where conditional create is to be taken away: HAPI ignores unknown elements.
STRIPPED = (b'"ifNoneExist"', b'"xfNoneExist"')

TYPES = {"Observation": "subject", "DiagnosticReport": "subject", "Device": "patient"}


@dataclass
class Upstream:
    """The FHIR server, and what of it may be killed: `hapi`, and the `store` beneath it."""

    url: str
    victims: Mapping[str, servers.Running] = field(default_factory=dict)


@contextmanager
def upstream(store: str, folder: Path) -> Iterator[Upstream]:
    """Run a HAPI of its own on a store that survives a kill."""
    owner = f"--owner={os.getpid()}"
    if store == "h2":
        hapi = servers.hapi_process(folder, owner, f"--db=jdbc:h2:file:{folder}/store;WRITE_DELAY=0")
        with servers.running(hapi):
            yield Upstream(hapi.url, {"hapi": hapi})
    else:
        with servers.postgresql(folder) as database:
            hapi = servers.hapi_process(folder, owner, f"--db={database.url}", "--user=hapi")
            with servers.running(hapi):
                yield Upstream(hapi.url, {"hapi": hapi, "store": database})


async def storm(options: Options, upstream: Upstream, folder: Path) -> Report:
    """Run it all, and compare what is held at the end with what was sent and answered."""
    started = time.monotonic()
    patients = tuple(Patient(f"chaos-{uuid4().hex[:8]}", units, ordered) for units, ordered in PATIENTS)
    store = Client(upstream.url)
    before = await asyncio.to_thread(_prepare, store, patients)
    instead = STRIPPED if options.strip else (b"", b"")
    async with cutting_relay(upstream.url, instead) as relay:
        with ExitStack() as stack:  # in a thread: while they start, they ask the relay
            proxies, valkey = await asyncio.to_thread(stack.enter_context, _behind(relay.url, folder))
            submitters = Submitters(Workload(options.seed, patients, SUBMITTERS), [proxy.url for proxy in proxies])
            monkey = Monkey(Random(options.seed), _victims(upstream, valkey, proxies, submitters, relay), relay)
            await _rage(options, submitters, monkey)
        await _calm(relay)
    held = await asyncio.to_thread(_held, store, patients, before)
    found = Checker(submitters.sent, submitters.answers, held, before, submitters.abandoned).violations()
    figures = {
        "seconds": {"in all": time.monotonic() - started},
        "sent": {
            "submissions": len(submitters.sent),
            "entries": sum(len(submission.entries) for submission in submitters.sent),
            "abandoned": len(submitters.abandoned),
            **submitters.counts,
        },
        "entries": Counter(f"answered {answer.status}" for answer in submitters.answers),
        "held": Counter(place.partition("/")[0] for place in held),
        "kills": monkey.killed,
        "vexations": monkey.vexed,
        "cuts": relay.cuts,
    }
    return Report(options, {group: dict(sorted(numbers.items())) for group, numbers in figures.items()}, found)


@contextmanager
def _behind(upstream: str, folder: Path) -> Iterator[tuple[Sequence[servers.Running], servers.Running]]:
    """Run the replicas, and the Valkey that they share, which keeps what it holds when it is killed."""
    with ExitStack() as stack:
        valkey = stack.enter_context(servers.valkey(folder, "--appendonly", "yes"))
        settings = SETTINGS | {"cache.shared": valkey.url}
        proxies = [
            stack.enter_context(
                servers.proxy(upstream, folder, settings | {"jobs.path": folder / f"{name}.sqlite"}, name)
            )
            for name in REPLICAS
        ]
        for proxy in proxies:
            proxy.ready = f"{proxy.ops}/healthz"  # it starts again while the upstream is down, too
        yield proxies, valkey


def _victims(
    upstream: Upstream,
    valkey: servers.Running,
    proxies: Sequence[servers.Running],
    submitters: Submitters,
    relay: CuttingRelay,
) -> list[Victim]:
    in_flight = submitters.in_flight
    return [
        *(Victim("proxy", proxy, lambda url=proxy.url: in_flight[url]) for proxy in proxies),
        Victim("valkey", valkey, in_flight.total),
        *(Victim(kind, server, lambda: relay.under_way) for kind, server in upstream.victims.items()),
    ]


async def _rage(options: Options, submitters: Submitters, monkey: Monkey) -> None:
    """Have the monkey rage while submissions are sent, and these answered when it has gone."""
    submitting = asyncio.create_task(submitters.submit_all())
    raging = asyncio.create_task(monkey.rage(options.kills, options.seconds))
    await asyncio.wait([submitting, raging], return_when=asyncio.FIRST_COMPLETED)
    submitters.ending = True
    await raging
    with suppress(TimeoutError):  # the checker says what is still unanswered
        await asyncio.wait_for(submitting, CALM)


async def _calm(relay: CuttingRelay) -> None:
    """Wait until the FHIR server has nothing to do any more, also of what was abandoned."""
    async with asyncio.timeout(CALM):
        while relay.under_way:  # noqa: ASYNC110 -- it happens once in a run
            await asyncio.sleep(0.1)


def _prepare(store: Client, patients: Sequence[Patient]) -> dict[str, JsonObject]:
    """Store what is there before the run; give it by `Type/id`."""
    before = {f"{each['resourceType']}/{each['id']}": each for patient in patients for each in patient.before()}
    for reference, resource in before.items():
        answer = store.put(reference, resource)
        assert answer.status in {200, 201}, answer.data
    return before


def _held(store: Client, patients: Sequence[Patient], before: Mapping[str, JsonObject]) -> dict[str, JsonObject]:
    """Read all that the store holds of the patients, page by page, but not what was there before."""
    held = {}
    for kind, name in TYPES.items():
        for patient in patients:
            found = _pages(store, f"{kind}?{name}={patient.reference}&_count=1000")
            held |= {f"{kind}/{resource['id']}": resource for resource in found}
    return {reference: resource for reference, resource in held.items() if reference not in before}


def _pages(store: Client, search: str) -> Iterator[JsonObject]:
    url: str | None = f"{store.base}/{search}"
    while url:
        answer = Client(url).get("", Cache_Control="no-cache")
        assert answer.status == 200, answer.data
        yield from (entry["resource"] for entry in answer.body.get("entry", ()))
        url = next((link["url"] for link in answer.body["link"] if link["relation"] == "next"), None)
