"""Ask for one resource again and again while something else goes on: `python probe.py URL`, until its input ends.

Prints one JSON object: how many answers there were, and the median, 99th percentile and longest of their times (ms).
"""

import asyncio
import json
import sys
import time
from statistics import quantiles
from urllib.parse import urlsplit

from load import answered

#: Clients that ask at once, and how long each waits after an answer (seconds): a busy ward, not a flood.
CLIENTS = 4
PAUSE = 0.02


async def client(url: str, times: list[float]) -> None:
    """Ask until cancelled, and note how long each answer took, from the request to its last byte."""
    parts = urlsplit(url)
    asked = f"GET {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n".encode()
    while True:
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        kept = True
        while kept:
            started = time.perf_counter()
            writer.write(asked)
            kept = await answered(reader)
            times.append(1000 * (time.perf_counter() - started))
            await asyncio.sleep(PAUSE)
        writer.close()


async def probe(url: str) -> list[float]:
    """Give the times of all answers until the input ends; a client that fails ends it by its exception."""
    times: list[float] = []
    clients = [asyncio.create_task(client(url, times)) for _ in range(CLIENTS)]
    ended = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
    done, waiting = await asyncio.wait([ended, *clients], return_when=asyncio.FIRST_COMPLETED)
    for task in waiting - {ended}:
        task.cancel()
    for task in done:
        task.result()
    return times


if __name__ == "__main__":
    taken = asyncio.run(probe(sys.argv[1]))
    cuts = quantiles(taken, n=100)
    print(json.dumps({"answers": len(taken), "p50": cuts[49], "p99": cuts[98], "longest": max(taken)}))
