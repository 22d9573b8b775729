"""The benchmark: `make bench`, `make bench STORE=postgresql JSON=FILE LARGE=3`.

All figures come from one run on a real HAPI; only the peak memory is measured before an upstream that answers at once.
After a warm-up, the ways that are compared take turns, so that what else the machine does weighs on all of them.
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

#: How long HAPI is asked for small resources before that is timed (seconds): it gets five times faster meanwhile.
WARM_UP = 60

UNREMEMBERING = Path(__file__).with_name("unremembering.py")


@dataclass(frozen=True)
class World:
    """The servers of one run; `store` is what HAPI stores in, where that is a server."""

    hapi: servers.Running
    proxy: servers.Running
    nginx: servers.Running
    store: servers.Running | None = None

    def upstream_seconds(self) -> float:
        """Give the CPU time of HAPI and its store."""
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
    """Post new readings straight to HAPI, others through the proxy, and these again; small ones several times."""
    several = range(max(1, TWO_WEEKS // readings))
    hapi, proxy = world.hapi.url, world.proxy
    straight, new = ([new_readings(Client(hapi), readings) for _ in several] for _ in range(2))
    start = world.upstream_seconds()
    runs.add(f"direct_{readings}", mean(timed(hapi, each, "201") for each in straight))
    turn, before = world.upstream_seconds(), proxy.cpu_seconds()
    runs.add(f"proxy_{readings}", mean(timed(proxy.url, each, "201") for each in new))
    used, own = world.upstream_seconds() - turn, proxy.cpu_seconds() - before
    runs.add(f"again_{readings}", mean(timed(proxy.url, each, "200") for each in new))
    runs.add(f"direct_cpu_{readings}", (turn - start) / len(several))
    runs.add(f"proxy_cpu_{readings}", (used + own) / len(several))
    runs.add(f"us_per_reading_{readings}", own / len(several) / readings * 1e6)


def submit_all(options: argparse.Namespace, world: World, runs: figures.Runs) -> None:
    """Post submissions of each size, the ways taking turns."""
    for _ in range(options.warm_up):
        submit(figures.Runs(), TWO_WEEKS, world)
    for _ in range(options.rounds):
        submit(runs, TWO_WEEKS, world)
        submit(runs, 288, world)
        careful = conditional(new_readings(Client(world.hapi.url), TWO_WEEKS))
        runs.add("direct_conditional", timed(world.hapi.url, careful, "201"))
    for _ in range(options.large):
        submit(runs, isolation.LARGE, world)
        isolation.isolate(runs, world.hapi, world.proxy)


def submit_unremembered(world: World, folder: Path, runs: figures.Runs) -> None:
    """Post to a proxy whose rules remember no shape, twice: the first time, whatever is compiled at first use counts too."""
    program = [sys.executable, str(UNREMEMBERING)]
    with servers.proxy(world.hapi.url, folder, name="unremembering", program=program) as proxy:
        for _ in range(2):
            bundle, before = new_readings(Client(world.hapi.url), TWO_WEEKS), proxy.cpu_seconds()
            timed(proxy.url, bundle, "201")
            runs.add("us_per_reading_no_memory", (proxy.cpu_seconds() - before) / TWO_WEEKS * 1e6)


def stream_all(options: argparse.Namespace, world: World, runs: figures.Runs) -> None:
    """Ask for one small resource, the ways taking turns."""
    hapi = world.hapi.url
    patient = new_readings(Client(hapi), 1)["entry"][0]["resource"]["subject"]["reference"]
    bases = {"direct": hapi, "nginx": world.nginx.url, "proxy": world.proxy.url}
    requests_per_second(f"{hapi}/{patient}", WARM_UP)
    for number, (name, base) in enumerate([*bases.items()] * (2 * options.rounds + 1)):
        measured = requests_per_second(f"{base}/{patient}", options.seconds)
        if number >= len(bases):  # the first of each is not counted
            runs.add(f"stream_{name}", measured)


def measure(options: argparse.Namespace, folder: Path, runs: figures.Runs) -> None:
    """Take all runs: what needs no HAPI first, then small GETs, while HAPI's store is small."""
    wanted = options.only
    if "shapes" in wanted:
        shapes.measure(runs, TWO_WEEKS)
    if "memory" in wanted:
        memory.measure(runs, folder)
    if "stream" not in wanted and "submit" not in wanted:
        return
    with world(options, folder) as started:
        if "stream" in wanted:
            stream_all(options, started, runs)
        if "submit" in wanted:
            submit_all(options, started, runs)
            submit_unremembered(started, folder, runs)


def parsed() -> argparse.Namespace:
    """Read the command line."""
    parts = ("shapes", "memory", "stream", "submit")
    parser = argparse.ArgumentParser(prog="make bench")
    parser.add_argument("--store", choices=("h2", "postgresql"), default="h2", help="what HAPI stores in")
    parser.add_argument("--json", type=Path, help="file to write the figures to, as one flat object")
    parser.add_argument("--large", type=int, default=2, help="rounds of 25,920 readings (90 days)")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each way, of which the median counts")
    parser.add_argument("--warm-up", type=int, default=3, help="rounds of submissions before those that count")
    parser.add_argument("--only", choices=parts, nargs="+", default=parts, help="leave the others out")
    parser.add_argument("--seconds", type=int, default=3, help="length of one run of small GETs")
    return parser.parse_args()


def main() -> None:
    """Measure, print the table and write the JSON."""
    options = parsed()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the servers end too
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
