"""Large bodies stream through a proxy's process in both directions, at the slower side's pace, without growing it."""

import asyncio
import sys
from pathlib import Path

import pytest
from support.relaying import TIMEOUT, listening

SIZE = 256 * 2**20
PIECE = b"0123456789abcdef" * 4096
#: What the process may grow by after a first small request: buffers of sockets and streams (bytes).
GROWTH = 24 * 2**20

PROXY = """
import asyncio, sys, uvloop
from aiohttp import web
from cgm_proxy.relay.relay import Relay
from cgm_proxy.settings.loading import Settings, UpstreamSettings
from cgm_proxy.relay.http_options import SERVER_OPTIONS

async def main():
    relay = Relay(Settings(upstream=UpstreamSettings(url=sys.argv[1])))
    await relay.start()
    make_protocol = web.Server(relay.pass_through, **SERVER_OPTIONS)
    server = await asyncio.get_running_loop().create_server(make_protocol, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await relay.close()

uvloop.run(main())
"""


class Bulk(asyncio.Protocol):
    """An upstream that answers a GET with SIZE bytes, and a POST with the number of bytes that it received."""

    def connection_made(self, transport):
        self.transport, self.taken, self.left, self.paused = transport, 0, 0, False
        self.head = b""

    def data_received(self, data):
        if not self.head.endswith(b"\r\n\r\n"):
            self.head += data[: (end := data.find(b"\r\n\r\n") + 4) or None]
            data = data[end:]
            if self.head.startswith(b"GET /small"):
                self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                self.head = b""
            elif self.head.startswith(b"GET"):
                framing = b"Transfer-Encoding: chunked" if b"chunks" in self.head else b"Content-Length: %d" % SIZE
                self.transport.write(b"HTTP/1.1 200 OK\r\n%b\r\n\r\n" % framing)
                self.left = SIZE
                self.send()
        self.taken += len(data)
        if self.head.startswith(b"POST") and self.taken >= SIZE:
            text = b"%d" % self.taken
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(text), text))

    def send(self):
        chunks = b"chunks" in self.head
        while self.left and not self.paused:
            self.transport.write(b"%x\r\n%b\r\n" % (len(PIECE), PIECE) if chunks else PIECE)
            self.left -= len(PIECE)
        if chunks and not self.left and not self.paused:
            self.transport.write(b"0\r\n\r\n")

    def pause_writing(self):
        self.paused = True

    def resume_writing(self):
        self.paused = False
        self.send()


def peak(pid: int) -> int:
    """Return a process's largest resident size so far (bytes)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


async def download(reader, writer, path):
    writer.write(b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % path)
    await reader.readuntil(b"\r\n\r\n")
    await asyncio.sleep(0.3)  # the slower side: what comes meanwhile must wait upstream
    taken = 0
    while taken < SIZE:
        taken += len(await reader.read(2**20))


async def upload(reader, writer, path):
    chunks = b"chunks" in path
    framing = b"Transfer-Encoding: chunked" if chunks else b"Content-Length: %d" % SIZE
    writer.write(b"POST %b HTTP/1.1\r\nHost: x\r\n%b\r\n\r\n" % (path, framing))
    for _ in range(SIZE // len(PIECE)):
        writer.write(b"%x\r\n%b\r\n" % (len(PIECE), PIECE) if chunks else PIECE)
        await writer.drain()
    if chunks:
        writer.write(b"0\r\n\r\n")
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")


@pytest.mark.slow
@pytest.mark.parametrize("path", [b"/sized", b"/chunks"])
@pytest.mark.parametrize("transfer", [download, upload])
async def test_a_large_body_does_not_grow_the_process(transfer, path):
    async with listening(Bulk) as port:
        pipe = asyncio.subprocess.PIPE
        url = f"http://127.0.0.1:{port}"
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", PROXY, url, stdin=pipe, stdout=pipe)
        own = int(await process.stdout.readline())
        reader, writer = await asyncio.open_connection("127.0.0.1", own, limit=2**20)
        writer.write(b"GET /small HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        before = peak(process.pid)
        async with asyncio.timeout(6 * TIMEOUT):
            await transfer(reader, writer, path)
        grown = peak(process.pid) - before
        writer.close()
        process.stdin.close()
        await process.wait()
        assert grown < GROWTH
