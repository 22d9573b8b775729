"""Get one resource again and again until standard input ends: `python probe.py URL`.

It prints one JSON object: the number of responses, and the median, 99th percentile and longest of their times (ms).
"""

import asyncio
import json
import sys
import time
from statistics import quantiles
from urllib.parse import urlsplit

from load import read_response

#: Number of clients, and the pause of each after a response (seconds): a busy ward, not a flood.
CLIENTS = 4
PAUSE = 0.02


async def client(url: str, times: list[float]) -> None:
    """Send requests until cancelled, and add the time of each, from the request to the last byte of the response."""
    parts = urlsplit(url)
    request = f"GET {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n".encode()
    while True:
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        keep_alive = True
        while keep_alive:
            started = time.perf_counter()
            writer.write(request)
            keep_alive = await read_response(reader)
            times.append(1000 * (time.perf_counter() - started))
            await asyncio.sleep(PAUSE)
        writer.close()


async def probe(url: str) -> list[float]:
    """Return the times of all responses until the input ends; raise the exception of a client that fails."""
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
    times = asyncio.run(probe(sys.argv[1]))
    cuts = quantiles(times, n=100)
    print(json.dumps({"answers": len(times), "p50": cuts[49], "p99": cuts[98], "longest": max(times)}))
