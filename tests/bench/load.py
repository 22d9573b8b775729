"""A small HTTP load generator, in case wrk is not installed: `python load.py URL SECONDS CONNECTIONS`.

It prints the number of complete responses a second, and fails at the first response whose status is not 200.
"""

import asyncio
import sys
import time
from urllib.parse import urlsplit


async def read_response(reader: asyncio.StreamReader) -> bool:
    """Read one response with a known or chunked length; return whether the server keeps the connection open."""
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
    """Send requests on one connection, or on its successors, until the `deadline`; return their number."""
    parts = urlsplit(url)
    request = f"GET {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n".encode()
    count = 0
    while time.monotonic() < deadline:
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        keep_alive = True
        while keep_alive and time.monotonic() < deadline:
            writer.write(request)
            keep_alive = await read_response(reader)
            count += 1
        writer.close()
    return count


async def load(url: str, seconds: float, connections: int) -> float:
    """Return the number of responses a second on several connections at once."""
    start = time.monotonic()
    counts = await asyncio.gather(*(connection(url, start + seconds) for _ in range(connections)))
    return sum(counts) / (time.monotonic() - start)


if __name__ == "__main__":
    print(asyncio.run(load(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]))))
