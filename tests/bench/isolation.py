"""How long small GETs through the proxy take while a large submission is under way, through it or past it."""

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

#: Readings of the large submission: 90 days at 5 minutes.
LARGE = 25_920

PROBE = Path(__file__).with_name("probe.py")


@contextmanager
def probing(url: str) -> Iterator[dict[str, float]]:
    """Ask for `url` in a process of its own as long as the context lasts, and fill in what that took."""
    found: dict[str, float] = {}
    command = [sys.executable, str(PROBE), url]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield found
        except BaseException:
            process.kill()
            raise
        printed, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{url} stopped answering")
    found |= json.loads(printed)


def isolate(runs: Runs, hapi: servers.Running, proxy: servers.Running) -> None:
    """Post a large submission straight to HAPI, then another through the proxy, and time GETs through the proxy meanwhile."""
    patient = new_readings(Client(hapi.url), 1)["entry"][0]["resource"]["subject"]["reference"]
    for way, base in (("direct", hapi.url), ("proxy", proxy.url)):
        bundle = new_readings(Client(hapi.url), LARGE)
        with probing(f"{proxy.url}/{patient}") as found:
            seconds = timed(base, bundle, "201")
        runs.add(f"beside_{way}_p99", found["p99"])
        runs.add(f"beside_{way}_p50", found["p50"])
        runs.add(f"beside_{way}_longest", found["longest"])
        runs.add(f"beside_{way}_seconds", seconds)
