"""One run: submitters send to two proxies that share a Valkey, while a monkey disturbs all servers.

At the end, what the store holds is compared with what was sent and answered.
"""

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

#: Small transactions, so that a submission takes several, and short timeouts.
SETTINGS = {
    "forward.chunk": 25,
    "limits.seconds": 60,
    "listen.stop_timeout": 5,
    "upstream.connect_timeout": 2,
    "upstream.read_timeout": 8,
    "upstream.retries": 2,
}

#: For each patient: the units, and whether there are standing orders.
PATIENTS: tuple[tuple[Units, bool], ...] = (("mass", True), ("mass", False), ("molar", True), ("molar", False))
SUBMITTERS = 8
REPLICAS = ("proxy-1", "proxy-2")

#: Time for the last responses after the last fault (seconds).
CALM = 180.0

#: What the relay replaces to remove conditional creates. HAPI ignores unknown elements.
STRIPPED = (b'"ifNoneExist"', b'"xfNoneExist"')

TYPES = {"Observation": "subject", "DiagnosticReport": "subject", "Device": "patient"}


@dataclass
class Upstream:
    """The FHIR server, and those of its processes that may be killed: `hapi` and its `store`."""

    url: str
    victims: Mapping[str, servers.Running] = field(default_factory=dict)


@contextmanager
def upstream(store: str, folder: Path) -> Iterator[Upstream]:
    """Run a HAPI for this run alone, on a store that survives SIGKILL."""
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
    """Run the submitters and the monkey; return a report on what is stored at the end."""
    started = time.monotonic()
    patients = tuple(Patient(f"chaos-{uuid4().hex[:8]}", units, ordered) for units, ordered in PATIENTS)
    store = Client(upstream.url)
    before = await asyncio.to_thread(_prepare, store, patients)
    replacement = STRIPPED if options.strip else (b"", b"")
    async with cutting_relay(upstream.url, replacement) as relay:
        with ExitStack() as stack:  # in a thread, because the proxies send requests to the relay when they start
            proxies, valkey = await asyncio.to_thread(stack.enter_context, _proxies(relay.url, folder))
            submitters = Submitters(Workload(options.seed, patients, SUBMITTERS), [proxy.url for proxy in proxies])
            monkey = Monkey(Random(options.seed), _victims(upstream, valkey, proxies, submitters, relay), relay)
            await _rage(options, submitters, monkey)
        await _calm(relay)
    held = await asyncio.to_thread(_held, store, patients, before)
    violations = Checker(submitters.sent, submitters.answers, held, before, submitters.abandoned).violations()
    figures = {
        "seconds": {"in all": time.monotonic() - started},
        "sent": {
            "submissions": len(submitters.sent),
            "entries": sum(len(submission.entries) for submission in submitters.sent),
            "abandoned": len(submitters.abandoned),
            **submitters.counts,
        },
        "entries": Counter(f"answered {answer.status}" for answer in submitters.answers),
        "held": Counter(location.partition("/")[0] for location in held),
        "kills": monkey.killed,
        "vexations": monkey.vexed,
        "cuts": relay.cuts,
    }
    return Report(options, {group: dict(sorted(numbers.items())) for group, numbers in figures.items()}, violations)


@contextmanager
def _proxies(upstream: str, folder: Path) -> Iterator[tuple[Sequence[servers.Running], servers.Running]]:
    """Run the replicas and the Valkey that they share, whose data survives SIGKILL."""
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
            proxy.ready = f"{proxy.ops}/healthz"  # it can start even while the upstream is down
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
        *(Victim(kind, server, lambda: relay.in_flight) for kind, server in upstream.victims.items()),
    ]


async def _rage(options: Options, submitters: Submitters, monkey: Monkey) -> None:
    """Send submissions while the monkey rages, then wait for the last responses."""
    submitting = asyncio.create_task(submitters.submit_all())
    raging = asyncio.create_task(monkey.rage(options.kills, options.seconds))
    await asyncio.wait([submitting, raging], return_when=asyncio.FIRST_COMPLETED)
    submitters.ending = True
    await raging
    with suppress(TimeoutError):  # the checker reports entries without a final response
        await asyncio.wait_for(submitting, CALM)


async def _calm(relay: CuttingRelay) -> None:
    """Wait until the FHIR server has carried out all requests, also abandoned ones."""
    async with asyncio.timeout(CALM):
        while relay.in_flight:  # noqa: ASYNC110 -- only once in a run
            await asyncio.sleep(0.1)


def _prepare(store: Client, patients: Sequence[Patient]) -> dict[str, JsonObject]:
    """Store the resources that exist before the run; return them by `Type/id`."""
    resources = [resource for patient in patients for resource in patient.before()]
    before = {f"{resource['resourceType']}/{resource['id']}": resource for resource in resources}
    for reference, resource in before.items():
        response = store.put(reference, resource)
        assert response.status in {200, 201}, response.data
    return before


def _held(store: Client, patients: Sequence[Patient], before: Mapping[str, JsonObject]) -> dict[str, JsonObject]:
    """Return all resources of the patients that the store holds, except those from before the run."""
    held = {}
    for kind, name in TYPES.items():
        for patient in patients:
            resources = _search(store, f"{kind}?{name}={patient.reference}&_count=1000")
            held |= {f"{kind}/{resource['id']}": resource for resource in resources}
    return {reference: resource for reference, resource in held.items() if reference not in before}


def _search(store: Client, search: str) -> Iterator[JsonObject]:
    url: str | None = f"{store.base}/{search}"
    while url:
        page = Client(url).get("", Cache_Control="no-cache")
        assert page.status == 200, page.data
        yield from (entry["resource"] for entry in page.body.get("entry", ()))
        url = next((link["url"] for link in page.body["link"] if link["relation"] == "next"), None)
