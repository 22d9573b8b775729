"""The benchmark: `make bench`, `make bench JSON=FILE`, `make bench LARGE=3`.

All figures come from one run on a real HAPI with its store in memory. After a warm-up, the ways that are compared take
turns, so that what else the machine does weighs on all of them.
"""

import argparse
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from statistics import mean

import servers
from bench import figures
from bench.streams import requests_per_second
from bench.submissions import conditional, new_readings, timed
from client import Client

TWO_WEEKS = 4032

#: How long HAPI is asked for small resources before that is timed (seconds): it gets five times faster meanwhile.
WARM_UP = 60


def submit(runs: figures.Runs, readings: int, hapi: servers.Running, proxy: servers.Running) -> None:
    """Post new readings straight to HAPI, others through the proxy, and these again; small ones several times."""
    several = range(max(1, TWO_WEEKS // readings))
    straight, new = ([new_readings(Client(hapi.url), readings) for _ in several] for _ in range(2))
    start = hapi.cpu_seconds()
    runs.add(f"direct_{readings}", mean(timed(hapi.url, each, "201") for each in straight))
    turn, before = hapi.cpu_seconds(), proxy.cpu_seconds()
    runs.add(f"proxy_{readings}", mean(timed(proxy.url, each, "201") for each in new))
    used, own = hapi.cpu_seconds() - turn, proxy.cpu_seconds() - before
    runs.add(f"again_{readings}", mean(timed(proxy.url, each, "200") for each in new))
    runs.add(f"direct_cpu_{readings}", (turn - start) / len(several))
    runs.add(f"proxy_cpu_{readings}", (used + own) / len(several))
    runs.add(f"us_per_reading_{readings}", own / len(several) / readings * 1e6)


def submit_all(options: argparse.Namespace, hapi: servers.Running, proxy: servers.Running) -> figures.Runs:
    """Post submissions of each size, the ways taking turns."""
    runs = figures.Runs()
    for _ in range(options.warm_up):
        submit(figures.Runs(), TWO_WEEKS, hapi, proxy)
    for _ in range(options.rounds):
        submit(runs, TWO_WEEKS, hapi, proxy)
        submit(runs, 288, hapi, proxy)
        careful = conditional(new_readings(Client(hapi.url), TWO_WEEKS))
        runs.add("direct_conditional", timed(hapi.url, careful, "201"))
    for _ in range(options.large):
        submit(runs, 25_920, hapi, proxy)
    return runs


def stream_all(options: argparse.Namespace, hapi: str, nginx: str, proxy: str) -> figures.Runs:
    """Ask for one small resource, the ways taking turns."""
    runs = figures.Runs()
    patient = new_readings(Client(hapi), 1)["entry"][0]["resource"]["subject"]["reference"]
    bases = {"direct": hapi, "nginx": nginx, "proxy": proxy}
    requests_per_second(f"{hapi}/{patient}", WARM_UP)
    for name, base in [*bases.items()] * (2 * options.rounds + 1):
        runs.add(f"stream_{name}", requests_per_second(f"{base}/{patient}", options.seconds))
    return figures.Runs({way: measured[1:] for way, measured in runs.of.items()})


def measure(options: argparse.Namespace, folder: Path) -> figures.Runs:
    """Start the servers and take all runs; small GETs first, while HAPI's store is small."""
    servers.build_hapi()
    heap = "8g" if options.large else "4g"
    runs: dict[str, list[float]] = {}
    with (
        servers.running(servers.hapi_process(folder, f"--owner={os.getpid()}", heap=heap, timed=True)) as hapi,
        servers.nginx(hapi.url, folder) as nginx,
        servers.proxy(hapi.url, folder) as proxy,
    ):
        if options.only != "submit":
            runs |= stream_all(options, hapi.url, nginx.url, proxy.url).of
        if options.only != "stream":
            runs |= submit_all(options, hapi, proxy).of
    return figures.Runs(runs)


def main() -> None:
    """Measure, print the table and write the JSON."""
    parser = argparse.ArgumentParser(prog="make bench")
    parser.add_argument("--json", type=Path, help="file to write the figures to, as one flat object")
    parser.add_argument("--large", type=int, default=0, help="also 25,920 readings (90 days), that many rounds")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each way, of which the median counts")
    parser.add_argument("--warm-up", type=int, default=3, help="rounds of submissions before those that count")
    parser.add_argument("--only", choices=("stream", "submit"), help="leave the other out")
    parser.add_argument("--seconds", type=int, default=3, help="length of one run of small GETs")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the servers end too
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        runs = measure(options, folder)
    finally:
        shutil.rmtree(folder)
    print(figures.table(runs))
    if options.json:
        options.json.write_bytes(figures.flat_json(runs))


main()
