"""The time of small GETs through the proxy while a large submission is in flight, through the proxy or directly to HAPI."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.figures import Runs
from bench.submissions import new_readings, timed
from support import servers
from support.client import Client

#: Readings of the large submission: 90 days, one every 5 minutes.
LARGE = 25_920

PROBE = Path(__file__).with_name("probe.py")


@contextmanager
def probing(url: str) -> Iterator[dict[str, float]]:
    """Get `url` again and again in a process of its own during the context; then fill in the times."""
    times: dict[str, float] = {}
    command = [sys.executable, str(PROBE), url]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield times
        except BaseException:
            process.kill()
            raise
        printed, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{url} stopped answering")
    times |= json.loads(printed)


def isolate(runs: Runs, hapi: servers.Running, proxy: servers.Running) -> None:
    """Post a large submission directly to HAPI and another through the proxy, and time GETs through the proxy meanwhile."""
    patient = new_readings(Client(hapi.url), 1)["entry"][0]["resource"]["subject"]["reference"]
    for way, base in (("direct", hapi.url), ("proxy", proxy.url)):
        bundle = new_readings(Client(hapi.url), LARGE)
        with probing(f"{proxy.url}/{patient}") as times:
            seconds = timed(base, bundle, "201")
        runs.add(f"beside_{way}_p99", times["p99"])
        runs.add(f"beside_{way}_p50", times["p50"])
        runs.add(f"beside_{way}_longest", times["longest"])
        runs.add(f"beside_{way}_seconds", seconds)
