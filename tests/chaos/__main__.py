"""Chaos, bounded and seeded: `make chaos SEED=7 KILLS=100 SECONDS=900 STORE=postgresql JSON=FILE`; STRIP=1 must fail."""

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
    """Run, print the table and write the JSON; 1 if anything is wrong, and then the servers' logs are kept."""
    parser = argparse.ArgumentParser(prog="make chaos")
    parser.add_argument("--seed", type=int, default=SystemRandom().randrange(10**6), help="of all that is random")
    parser.add_argument("--kills", type=int, default=100, help="by SIGKILL, each with submissions in flight")
    parser.add_argument("--seconds", type=float, default=900, help="longest time for these")
    parser.add_argument("--store", choices=("postgresql", "h2"), default="postgresql", help="what HAPI stores in")
    parser.add_argument("--strip", action="store_true", help="take conditional create away, which has to be found")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    given = parser.parse_args()
    options = Options(given.seed, given.kills, given.seconds, given.store, given.strip)
    print(options.again, flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the servers end too
    servers.build_hapi()
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    with upstream(options.store, folder) as server:
        report = asyncio.run(storm(options, server, folder))
    print(report.table())
    if given.json:
        given.json.write_text(json.dumps(report.flat, indent=2))
    if report.passed:
        shutil.rmtree(folder)
    else:
        print(f"logs: {folder}")
    return not report.passed


sys.exit(main())
