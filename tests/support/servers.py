"""Real servers as processes of their own: HAPI, PostgreSQL, Valkey, the proxy and nginx.

Most are context managers that start a server and stop it at the end.
"""

import asyncio
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web
from support.places import ROOT

HAPI = ROOT / "tests" / "hapi" / "target" / "hapi.jar"


def free_port() -> int:
    """Return a port of 127.0.0.1 that nothing listens on."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]


def answers(url: str) -> bool:
    """Whether a GET of `url` returns a 2xx; for a `tcp:` URL, whether anything listens there."""
    try:
        if url.startswith("tcp:"):
            socket.create_connection((urlsplit(url).hostname, urlsplit(url).port), timeout=1).close()
            return True
        with urllib.request.urlopen(url, timeout=10) as response:
            response.read()
    except (urllib.error.URLError, OSError):
        return False
    return True


@dataclass
class Running:
    """A server's process. `url` is its base URL; it is ready when the URL `ready` answers. It can be started again.

    It runs as `user`, or as the current user.
    """

    command: Sequence[str]
    url: str
    ready: str
    log: Path
    environ: Mapping[str, str] = field(default_factory=dict)
    ops: str = ""
    seconds: float = 60
    user: str | None = None

    def start(self) -> None:
        """Start it and wait until it is ready; raise RuntimeError with the end of its log if it is not ready in time."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                env=os.environ | self.environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                **as_user(self.user),
            )
        deadline = time.monotonic() + self.seconds
        while not answers(self.ready):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"{self.command[0]} did not start:\n{self.log.read_text()[-4000:]}")
            time.sleep(0.05)

    def kill(self) -> None:
        """End it and its child processes by SIGKILL, like a crash."""
        for pid in _family(self.process.pid) if self.process.poll() is None else ():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def stop(self, seconds: float = 60) -> int:
        """End it by SIGTERM and return its exit status; kill it and raise TimeoutExpired if that takes too long."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def cpu_seconds(self) -> float:
        """Return the CPU time (user and system) of the process and its descendants, also of those that have ended."""
        return sum(_cpu_seconds(pid) for pid in _family(self.process.pid))

    def peak_bytes(self) -> int:
        """Return the sum of the largest resident sizes of the process and its living descendants."""
        return sum(_peak_bytes(pid) for pid in _family(self.process.pid))


def as_user(user: str | None) -> dict[str, Any]:
    """Return the arguments of Popen that run a process as another user."""
    return {"user": user, "group": user, "extra_groups": []} if user else {}


def _family(pid: int) -> list[int]:
    children = " ".join(path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")).split()
    return [pid, *(descendant for child in children for descendant in _family(int(child)))]


def _cpu_seconds(pid: int) -> float:
    times = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15]
    return sum(map(int, times)) / os.sysconf("SC_CLK_TCK")


def _peak_bytes(pid: int) -> int:
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


@contextmanager
def running(server: Running) -> Iterator[Running]:
    """Start `server`, and stop it at the end."""
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def proxy(
    upstream: str,
    folder: Path,
    settings: Mapping[str, object] | None = None,
    name: str = "proxy",
    program: Sequence[str] = (str(Path(sys.executable).parent / "cgm-proxy"),),
) -> Iterator[Running]:
    """Run `cgm-proxy serve` in front of `upstream`, with `settings` by their dotted keys: `{"forward.chunk": 50}`."""
    port, ops_port = free_port(), free_port()
    url, ops = f"http://127.0.0.1:{port}{urlsplit(upstream).path}", f"http://127.0.0.1:{ops_port}"
    listen = {"host": "127.0.0.1", "port": port, "public_url": url, "ops_host": "127.0.0.1", "ops_port": ops_port}
    values = {"upstream.url": upstream, **{f"listen.{key}": value for key, value in listen.items()}, **(settings or {})}
    environ = {f"CGM_PROXY_{key.upper().replace('.', '_')}": str(value) for key, value in values.items()}
    command = [*program, "serve"]
    with running(Running(command, url, f"{ops}/readyz", folder / f"{name}.log", environ, ops)) as server:
        yield server


NGINX = """\
daemon off;
{user}worker_processes {workers};
pid {folder}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  client_max_body_size 0;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  upstream fhir {{ server {upstream}; keepalive 64; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://fhir;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header Host $http_host;
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
      proxy_set_header X-Forwarded-Host $http_host;
      proxy_set_header X-Forwarded-Proto $scheme;
      proxy_request_buffering off;
      proxy_max_temp_file_size 0;
      proxy_read_timeout 600s;
    }}
  }}
}}
"""


@contextmanager
def nginx(upstream: str, folder: Path, workers: str = "auto") -> Iterator[Running]:
    """Run nginx as a plain reverse proxy that keeps connections alive on both sides and buffers nothing on disk."""
    port = free_port()
    home = folder / f"nginx-{port}"
    home.mkdir()
    user = "user root;\n" if os.geteuid() == 0 else ""
    address, path = urlsplit(upstream).netloc, urlsplit(upstream).path
    conf = home / "nginx.conf"
    conf.write_text(NGINX.format(user=user, workers=workers, folder=home, upstream=address, port=port))
    command = [shutil.which("nginx") or "/usr/sbin/nginx", "-e", "stderr", "-c", str(conf)]
    base = f"http://127.0.0.1:{port}{path}"
    with running(Running(command, base, f"{base}/metadata", home / "log")) as server:
        yield server


def build_hapi() -> None:
    """Build HAPI if its sources have changed; only one process at a time builds it."""
    HAPI.parent.mkdir(exist_ok=True)
    with (HAPI.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        subprocess.run(["make", "--silent", str(HAPI.relative_to(ROOT))], cwd=ROOT, check=True)


def hapi_process(
    folder: Path, *arguments: str, port: int | None = None, heap: str = "2g", timed: bool = False
) -> Running:
    """Return a HAPI that is not yet started; `arguments` are described in application.yaml of tests/hapi.

    Unless its work is `timed`, its code is compiled only lightly, which halves the time to start.
    """
    port = port or free_port()
    base = f"http://127.0.0.1:{port}/fhir"
    java = ["java", f"-Xmx{heap}", *([] if timed else ["-XX:TieredStopAtLevel=1"])]
    command = [*java, "-jar", str(HAPI), f"--port={port}", *arguments]
    return Running(command, base, f"{base}/metadata", folder / f"hapi-{port}.log", seconds=300)


def valkey_process(folder: Path, *arguments: str) -> Running:
    """Return a Valkey (or Redis) that is not yet started. It stores nothing on disk, unless `arguments` say otherwise."""
    port = free_port()
    command = shutil.which("valkey-server") or shutil.which("redis-server") or "valkey-server"
    options = ["--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder), "--save", "", *arguments]
    url, log = f"redis://127.0.0.1:{port}/0", folder / f"valkey-{port}.log"
    return Running([command, *options], url, f"tcp://127.0.0.1:{port}", log)


@contextmanager
def valkey(folder: Path, *arguments: str) -> Iterator[Running]:
    """Run a Valkey (or Redis)."""
    with running(valkey_process(folder, *arguments)) as server:
        yield server


@contextmanager
def postgresql(folder: Path) -> Iterator[Running]:
    """Run a new PostgreSQL, as Debian installs it; pass its `url` to `hapi_process` as `--db=`, with `--user=hapi`.

    Its data survives SIGKILL, but not a crash of the machine, because it does not wait for the disk.
    """
    installed = Path("/usr/lib/postgresql").glob("*/bin")
    programs = max(installed, key=lambda path: int(path.parent.name), default=None)
    if programs is None:
        raise RuntimeError("PostgreSQL is not installed: apt-get install postgresql")
    user = "postgres" if os.geteuid() == 0 else None  # PostgreSQL refuses to run as root
    home = Path(tempfile.mkdtemp(prefix="postgresql-"))
    if user:
        shutil.chown(home, user)
    initdb = [programs / "initdb", "-D", home / "data", "-A", "trust", "-U", "hapi", "--no-sync"]
    subprocess.run(initdb, check=True, cwd=home, stdout=subprocess.DEVNULL, **as_user(user))
    port = free_port()
    options = {"listen_addresses": "127.0.0.1", "port": port, "unix_socket_directories": "", "fsync": "off"}
    command = [str(programs / "postgres"), "-D", str(home / "data"), *(f"--{k}={v}" for k, v in options.items())]
    url, ready = f"jdbc:postgresql://127.0.0.1:{port}/postgres", f"tcp://127.0.0.1:{port}"
    try:
        with running(Running(command, url, ready, folder / f"postgresql-{port}.log", user=user)) as server:
            yield server
    finally:
        shutil.rmtree(home)


@contextmanager
def served(application: web.Application) -> Iterator[str]:
    """Serve `application` in a thread of its own, so that tests may block; yield its root URL."""
    loop = asyncio.new_event_loop()
    runner = web.AppRunner(application)

    async def start() -> str:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return f"http://127.0.0.1:{runner.addresses[0][1]}"

    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield asyncio.run_coroutine_threadsafe(start(), loop).result()
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
