"""Small GETs on connections kept alive, by a process of its own."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

CONNECTIONS = 8

LOAD = Path(__file__).with_name("load.py")


def requests_per_second(url: str, seconds: int) -> float:
    """Ask for `url` on 8 connections for `seconds`, by wrk if it is installed; any answer but 200 raises."""
    if wrk := shutil.which("wrk"):
        return _wrk(wrk, url, seconds)
    printed = subprocess.run(
        [sys.executable, LOAD, url, str(seconds), str(CONNECTIONS)], check=True, capture_output=True, text=True
    )
    return float(printed.stdout)


def _wrk(wrk: str, url: str, seconds: int) -> float:
    command = [wrk, "--threads=1", f"--connections={CONNECTIONS}", f"--duration={seconds}s", url]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    if faults := re.findall(r"(?:Socket errors|Non-2xx).*", printed):
        raise ValueError(f"{url}: {faults}")
    return float(re.findall(r"Requests/sec:\s+([\d.]+)", printed)[0])
