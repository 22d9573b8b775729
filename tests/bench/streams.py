"""Small GETs on connections that are kept alive, sent by a process of its own."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

CONNECTIONS = 8

LOAD = Path(__file__).with_name("load.py")


def requests_per_second(url: str, seconds: int) -> float:
    """Get `url` on 8 connections for `seconds`, with wrk if it is installed; raise if a response is not 200."""
    if wrk := shutil.which("wrk"):
        return _wrk(wrk, url, seconds)
    done = subprocess.run(
        [sys.executable, LOAD, url, str(seconds), str(CONNECTIONS)], check=True, capture_output=True, text=True
    )
    return float(done.stdout)


def _wrk(wrk: str, url: str, seconds: int) -> float:
    command = [wrk, "--threads=1", f"--connections={CONNECTIONS}", f"--duration={seconds}s", url]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    if faults := re.findall(r"(?:Socket errors|Non-2xx).*", printed):
        raise ValueError(f"{url}: {faults}")
    return float(re.findall(r"Requests/sec:\s+([\d.]+)", printed)[0])
