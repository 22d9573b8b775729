"""The chaos run: `make chaos SEED=7 KILLS=100 SECONDS=900 STORE=postgresql JSON=FILE`.

It kills servers while submissions are in flight, and then compares what is stored with what was sent and answered. With
STRIP=1 it has to fail.
"""

import argparse
import asyncio
import json
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from random import SystemRandom

from chaos.report import Options
from chaos.storm import storm, upstream
from support import servers


def main() -> int:
    """Run it, print the table and write the JSON; return 1 and keep the servers' logs if anything is wrong."""
    parser = argparse.ArgumentParser(prog="make chaos")
    parser.add_argument("--seed", type=int, default=SystemRandom().randrange(10**6), help="seed of the random numbers")
    parser.add_argument(
        "--kills", type=int, default=100, help="number of kills by SIGKILL, each while the server has work"
    )
    parser.add_argument("--seconds", type=float, default=900, help="longest time for the kills")
    parser.add_argument("--store", choices=("postgresql", "h2"), default="postgresql", help="HAPI's database")
    parser.add_argument(
        "--strip",
        action="store_true",
        help="remove conditional creates on the way to HAPI; the run must find the violations",
    )
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    options = Options(arguments.seed, arguments.kills, arguments.seconds, arguments.store, arguments.strip)
    print(options.command, flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the servers stop, too
    servers.build_hapi()
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    with upstream(options.store, folder) as server:
        report = asyncio.run(storm(options, server, folder))
    print(report.table())
    if arguments.json:
        arguments.json.write_text(json.dumps(report.flat, indent=2))
    if report.passed:
        shutil.rmtree(folder)
    else:
        print(f"logs: {folder}")
    return not report.passed


sys.exit(main())
