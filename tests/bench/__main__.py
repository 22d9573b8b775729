"""The benchmark: `make bench`, `make bench STORE=postgresql JSON=FILE LARGE=3`.

All figures come from one run on a real HAPI, except the peak memory, which is measured with a stand-in that answers at once.
After a warm-up, the ways that are compared take turns, so that other load on the machine affects all of them alike.
"""

import argparse
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from bench import figures, isolation, memory, shapes
from bench.streams import requests_per_second
from bench.submissions import conditional, new_readings, timed
from support import servers
from support.client import Client

TWO_WEEKS = 4032

#: Warm-up of small GETs before they are timed (seconds). HAPI becomes five times faster in this time.
WARM_UP = 60

NO_VERDICT_CACHE = Path(__file__).with_name("no_verdict_cache.py")


@dataclass(frozen=True)
class World:
    """The servers of one run; `store` is HAPI's database if that is a server."""

    hapi: servers.Running
    proxy: servers.Running
    nginx: servers.Running
    store: servers.Running | None = None

    def upstream_seconds(self) -> float:
        """Return the CPU time used by HAPI and its database."""
        return self.hapi.cpu_seconds() + (self.store.cpu_seconds() if self.store else 0)


@contextmanager
def world(options: argparse.Namespace, folder: Path) -> Iterator[World]:
    """Start the servers."""
    servers.build_hapi()
    arguments = [f"--owner={os.getpid()}"]
    with ExitStack() as stack:
        store = stack.enter_context(servers.postgresql(folder)) if options.store == "postgresql" else None
        if store:
            arguments += [f"--db={store.url}", "--user=hapi"]
        hapi = servers.hapi_process(folder, *arguments, heap="8g" if options.large else "4g", timed=True)
        stack.enter_context(servers.running(hapi))
        nginx = stack.enter_context(servers.nginx(hapi.url, folder))
        yield World(hapi, stack.enter_context(servers.proxy(hapi.url, folder)), nginx, store)


def submit(runs: figures.Runs, readings: int, world: World) -> None:
    """Post new readings directly to HAPI, others through the proxy, and these again; small submissions several times."""
    rounds = range(max(1, TWO_WEEKS // readings))
    hapi, proxy = world.hapi.url, world.proxy
    direct, proxied = ([new_readings(Client(hapi), readings) for _ in rounds] for _ in range(2))
    start = world.upstream_seconds()
    runs.add(f"direct_{readings}", mean(timed(hapi, bundle, "201") for bundle in direct))
    middle, before = world.upstream_seconds(), proxy.cpu_seconds()
    runs.add(f"proxy_{readings}", mean(timed(proxy.url, bundle, "201") for bundle in proxied))
    upstream, own = world.upstream_seconds() - middle, proxy.cpu_seconds() - before
    runs.add(f"again_{readings}", mean(timed(proxy.url, bundle, "200") for bundle in proxied))
    runs.add(f"direct_cpu_{readings}", (middle - start) / len(rounds))
    runs.add(f"proxy_cpu_{readings}", (upstream + own) / len(rounds))
    runs.add(f"us_per_reading_{readings}", own / len(rounds) / readings * 1e6)


def submit_all(options: argparse.Namespace, world: World, runs: figures.Runs) -> None:
    """Post submissions of each size; the ways take turns."""
    for _ in range(options.warm_up):
        submit(figures.Runs(), TWO_WEEKS, world)
    for _ in range(options.rounds):
        submit(runs, TWO_WEEKS, world)
        submit(runs, 288, world)
        bundle = conditional(new_readings(Client(world.hapi.url), TWO_WEEKS))
        runs.add("direct_conditional", timed(world.hapi.url, bundle, "201"))
    for _ in range(options.large):
        submit(runs, isolation.LARGE, world)
        isolation.isolate(runs, world.hapi, world.proxy)


def submit_without_verdict_cache(world: World, folder: Path, runs: figures.Runs) -> None:
    """Post to a proxy without verdict cache, twice, because the first submission includes what is compiled at first use."""
    program = [sys.executable, str(NO_VERDICT_CACHE)]
    with servers.proxy(world.hapi.url, folder, name="no-verdict-cache", program=program) as proxy:
        for _ in range(2):
            bundle, before = new_readings(Client(world.hapi.url), TWO_WEEKS), proxy.cpu_seconds()
            timed(proxy.url, bundle, "201")
            runs.add("us_per_reading_no_memory", (proxy.cpu_seconds() - before) / TWO_WEEKS * 1e6)


def stream_all(options: argparse.Namespace, world: World, runs: figures.Runs) -> None:
    """Get one small resource again and again; the ways take turns."""
    hapi = world.hapi.url
    patient = new_readings(Client(hapi), 1)["entry"][0]["resource"]["subject"]["reference"]
    bases = {"direct": hapi, "nginx": world.nginx.url, "proxy": world.proxy.url}
    requests_per_second(f"{hapi}/{patient}", WARM_UP)
    for number, (name, base) in enumerate([*bases.items()] * (2 * options.rounds + 1)):
        measured = requests_per_second(f"{base}/{patient}", options.seconds)
        if number >= len(bases):  # the first of each is not counted
            runs.add(f"stream_{name}", measured)


def measure(options: argparse.Namespace, folder: Path, runs: figures.Runs) -> None:
    """Measure first what needs no HAPI, then small GETs while HAPI's database is small, and then submissions."""
    parts = options.only
    if "shapes" in parts:
        shapes.measure(runs, TWO_WEEKS)
    if "memory" in parts:
        memory.measure(runs, folder)
    if "stream" not in parts and "submit" not in parts:
        return
    with world(options, folder) as started:
        if "stream" in parts:
            stream_all(options, started, runs)
        if "submit" in parts:
            submit_all(options, started, runs)
            submit_without_verdict_cache(started, folder, runs)


def parse_options() -> argparse.Namespace:
    """Return the options on the command line."""
    parts = ("shapes", "memory", "stream", "submit")
    parser = argparse.ArgumentParser(prog="make bench")
    parser.add_argument("--store", choices=("h2", "postgresql"), default="h2", help="HAPI's database")
    parser.add_argument("--json", type=Path, help="file for the figures, as one flat JSON object")
    parser.add_argument("--large", type=int, default=2, help="rounds of 25,920 readings (90 days)")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each way; the median counts")
    parser.add_argument("--warm-up", type=int, default=3, help="rounds of submissions before those that count")
    parser.add_argument("--only", choices=parts, nargs="+", default=parts, help="measure only these parts")
    parser.add_argument("--seconds", type=int, default=3, help="length of one run of small GETs")
    return parser.parse_args()


def main() -> None:
    """Measure, print the table and write the JSON."""
    options = parse_options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the servers stop, too
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    runs = figures.Runs()
    try:
        measure(options, folder, runs)
    finally:
        shutil.rmtree(folder)
    print(f"HAPI on {options.store}, {os.cpu_count()} cores\n\n{figures.table(runs)}")
    if options.json:
        options.json.write_bytes(figures.flat_json(runs))


main()
