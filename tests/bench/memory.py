"""The proxy's peak memory for the largest submission, with an upstream that answers at once."""

import sys
from datetime import timedelta
from pathlib import Path

from bench.figures import Runs
from bench.submissions import timed
from support import servers

from cgm_proxy.core.codec.json_body import encode
from cgm_proxy.sandbox.simulation.readings import START, simulated_readings
from cgm_proxy.sandbox.simulation.submissions import submission

#: Readings of 90 days, one a minute.
MINUTES = 129_600

STANDIN = Path(__file__).with_name("standin.py")

#: Settings of a hospital that accepts such submissions.
SETTINGS = {"limits.entries": 150_000, "limits.body_bytes": 256 * 2**20, "limits.seconds": 900}


def standin(folder: Path) -> servers.Running:
    """Return the upstream that answers at once."""
    port = servers.free_port()
    base = f"http://127.0.0.1:{port}/fhir"
    command = [sys.executable, str(STANDIN), str(port)]
    return servers.Running(command, base, f"{base}/metadata", folder / f"standin-{port}.log")


def measure(runs: Runs, folder: Path, rounds: int = 2) -> None:
    """Submit 90 days of readings, one a minute, to a new proxy several times; add the ratio of its peak memory to the body."""
    with servers.running(standin(folder)) as upstream, servers.proxy(upstream.url, folder, SETTINGS, "large") as proxy:
        idle = proxy.peak_bytes()
        for number in range(rounds):
            start = START + timedelta(days=100 * number)
            readings = simulated_readings(MINUTES, start=start, step_minutes=1)
            bundle = submission("argo", "Patient/large", readings=readings, summary=False, pdf=False, device=False)
            size = len(encode(bundle))
            before = proxy.cpu_seconds()
            timed(proxy.url, bundle, "201")
            runs.add("us_per_reading_129600", (proxy.cpu_seconds() - before) / MINUTES * 1e6)
            runs.add("peak_memory", proxy.peak_bytes() / size)
            runs.add("peak_memory_above_idle", (proxy.peak_bytes() - idle) / size)
