"""A small HTTP load generator, for where wrk is not installed: `python load.py URL SECONDS CONNECTIONS`.

Prints the answers a second. It counts whole answers and stops at the first that is no 200.
"""

import asyncio
import sys
import time
from urllib.parse import urlsplit


async def answered(reader: asyncio.StreamReader) -> bool:
    """Read one answer of a known or chunked length; tell whether the server keeps the connection."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    if not head.startswith(b"http/1.1 200"):
        raise SystemExit(head.decode())
    if b"transfer-encoding: chunked" in head:
        while size := int(await reader.readline(), 16):
            await reader.readexactly(size + 2)
        await reader.readline()
    else:
        await reader.readexactly(int(head.partition(b"content-length:")[2].partition(b"\r\n")[0]))
    return b"connection: close" not in head


async def connection(url: str, deadline: float) -> int:
    """Ask again and again on one connection, or its successor, until the `deadline`; give how often."""
    parts = urlsplit(url)
    asked = f"GET {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n".encode()
    count = 0
    while time.monotonic() < deadline:
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        kept = True
        while kept and time.monotonic() < deadline:
            writer.write(asked)
            kept = await answered(reader)
            count += 1
        writer.close()
    return count


async def load(url: str, seconds: float, connections: int) -> float:
    """Give the answers a second that `connections` at once get."""
    start = time.monotonic()
    counts = await asyncio.gather(*(connection(url, start + seconds) for _ in range(connections)))
    return sum(counts) / (time.monotonic() - start)


if __name__ == "__main__":
    print(asyncio.run(load(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]))))
