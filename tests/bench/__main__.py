"""The benchmark: `make bench`, `make bench JSON=FILE`, `make bench LARGE=1`.

All figures come from one run on a real HAPI with its store in memory. After a warm-up, the ways that are compared take
turns, so that what else the machine does weighs on all of them.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

import servers
from bench import figures
from bench.streams import requests_per_second
from bench.submissions import conditional, cpu_of, new_readings, timed
from client import Client

TWO_WEEKS = 4032


def submit(runs: figures.Runs, readings: int, hapi: str, proxy: servers.Running) -> None:
    """Post new readings straight to HAPI, others through the proxy, and these again."""
    store = Client(hapi)
    runs.add(f"direct_{readings}", timed(hapi, new_readings(store, readings), "201"))
    new = new_readings(store, readings)
    seconds, cpu = cpu_of(lambda: timed(proxy.url, new, "201"), proxy.cpu_seconds)
    runs.add(f"proxy_{readings}", seconds)
    runs.add(f"cpu_us_{readings}", cpu / readings * 1e6)
    runs.add(f"again_{readings}", timed(proxy.url, new, "200"))


def stream(runs: figures.Runs, bases: dict[str, str], path: str, seconds: int) -> None:
    """Ask each base in turn for the same small resource."""
    for name, base in bases.items():
        runs.add(name, requests_per_second(f"{base}/{path}", seconds))


def measure(options: argparse.Namespace, folder: Path) -> figures.Runs:
    """Start the servers and take all runs."""
    servers.build_hapi()
    runs, warm = figures.Runs(), figures.Runs()
    with (
        servers.running(servers.hapi_process(folder, heap="6g" if options.large else "4g")) as hapi,
        servers.nginx(hapi.url, folder) as nginx,
        servers.proxy(hapi.url, folder) as proxy,
    ):
        for _ in range(options.warm_up):
            submit(warm, TWO_WEEKS, hapi.url, proxy)
        for _ in range(options.rounds):
            submit(runs, TWO_WEEKS, hapi.url, proxy)
            submit(runs, 288, hapi.url, proxy)
            runs.add(
                "direct_conditional", timed(hapi.url, conditional(new_readings(Client(hapi.url), TWO_WEEKS)), "201")
            )
        path = new_readings(Client(hapi.url), 1)["entry"][0]["resource"]["subject"]["reference"]
        bases = {"stream_direct": hapi.url, "stream_nginx": nginx.url, "stream_proxy": proxy.url}
        for _ in range(options.warm_up):
            stream(warm, bases, path, options.seconds)
        for _ in range(2 * options.rounds):
            stream(runs, bases, path, options.seconds)
        for _ in range(options.rounds if options.large else 0):
            submit(runs, 25_920, hapi.url, proxy)
    return runs


def main() -> None:
    """Measure, print the table and write the JSON."""
    parser = argparse.ArgumentParser(prog="make bench")
    parser.add_argument("--json", type=Path, help="file to write the figures to, as one flat object")
    parser.add_argument("--large", action="store_true", help="also 25,920 readings (90 days)")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each way, of which the median counts")
    parser.add_argument("--warm-up", type=int, default=3, help="rounds before those that count")
    parser.add_argument("--seconds", type=int, default=3, help="length of one run of small GETs")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        runs = measure(options, folder)
    finally:
        shutil.rmtree(folder)
    print(figures.table(runs))
    if options.json:
        options.json.write_bytes(figures.flat_json(runs))


main()
