"""Valkey is slow, full, restarted, flushed, gone, locked, or no Valkey: the proxy continues without it until it is back."""

import asyncio
import signal
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import pytest
from redis import Redis
from support import servers
from support.sharing import ONE, STORED, TWO, finds_stored, found, replica, until

from cgm_proxy.cache.cache import Cache
from cgm_proxy.cache.writes import affected_by_write
from cgm_proxy.observability.metrics import REGISTRY

#: The longest that one call may take on a machine that is busy (seconds).
BOUND = 1.0

#: Timeout of a replica whose Valkey will not respond (seconds).
QUICK = 0.25


@dataclass
class Fault:
    """A fault of Valkey: how it begins and ends, and the kind under which it is counted."""

    begin: Callable[[servers.Running, Redis], object]
    end: Callable[[servers.Running, Redis], object]
    kind: str


def require_password(_: servers.Running, raw: Redis) -> None:
    raw.config_set("requirepass", "s3cr3t")
    raw.client_kill_filter(_type="normal", skipme=True)


FAULTS = {
    "slow": Fault(
        lambda server, _: server.process.send_signal(signal.SIGSTOP),
        lambda server, _: server.process.send_signal(signal.SIGCONT),
        "timeout",
    ),
    "killed": Fault(lambda server, _: server.kill(), lambda server, _: server.start(), "refused"),
    "locked": Fault(require_password, lambda _, raw: raw.config_set("requirepass", ""), "error"),
    "not allowed": Fault(
        lambda _, raw: raw.execute_command("ACL SETUSER default -info"),
        lambda _, raw: raw.execute_command("ACL SETUSER default +info"),
        "error",
    ),
    "a replica": Fault(
        lambda _, raw: raw.replicaof("127.0.0.1", "1"), lambda _, raw: raw.replicaof("NO", "ONE"), "error"
    ),
}


def faults_counted(kind: str) -> float:
    return REGISTRY.get_sample_value("cgm_proxy_shared_memory_faults_total", {"kind": kind}) or 0


def up_metric() -> float | None:
    return REGISTRY.get_sample_value("cgm_proxy_shared_memory_up")


@asynccontextmanager
async def quickly(seconds: float = BOUND) -> AsyncIterator[None]:
    started = perf_counter()
    yield
    assert perf_counter() - started < seconds


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
async def test_the_proxy_continues_without_valkey_and_returns_to_it(valkey: servers.Running, fault: Fault) -> None:
    with Redis.from_url(valkey.url) as raw:
        async with replica(valkey.url, shared_timeout=QUICK) as one:
            await one.add_stored_entries(STORED, await one.generation())
            before = faults_counted(fault.kind)
            fault.begin(valkey, raw)
            try:
                async with quickly():
                    await one.invalidate_stored_entries()
                async with quickly(0.2):
                    for _ in range(100):
                        assert not await finds_stored(one)
                        await one.add_stored_entries(STORED, await one.generation())
                        async with (
                            one.patient_lock("Patient/1") as lock,
                            one.invalidating(affected_by_write(["DELETE"], ["Observation", "1"])),
                        ):
                            assert not lock.held
                await until(lambda: faults_counted(fault.kind) > before)
                assert (one.available, up_metric()) == (False, 0)
            finally:
                fault.end(valkey, raw)
            await until(lambda: one.available)
            assert up_metric() == 1
            assert not await finds_stored(one)
            await one.add_stored_entries(STORED, await one.generation())
            assert await asyncio.gather(*(finds_stored(one) for _ in range(64))) == [True] * 64
            assert one.available


@pytest.mark.parametrize("fault", ["slow", "locked", "a replica"])
async def test_what_could_not_be_invalidated_is_invalidated_once_valkey_is_back(
    valkey: servers.Running, fault: str
) -> None:
    """Valkey still has the values: without this the other replica would find them."""
    with Redis.from_url(valkey.url) as raw:
        async with replica(valkey.url, shared_timeout=QUICK) as one, replica(valkey.url) as other:
            await one.add_stored_entries(STORED, await one.generation())
            assert await finds_stored(other)
            FAULTS[fault].begin(valkey, raw)
            async with one.invalidating(affected_by_write(["DELETE"], ["Observation", "7"])):
                pass
            FAULTS[fault].end(valkey, raw)
            await until(lambda: one.available)
            await until(lambda: other.available)
            assert not await finds_stored(other)
            assert await other.generation()


async def test_a_full_valkey_can_still_be_read_and_invalidated(valkey: servers.Running) -> None:
    with Redis.from_url(valkey.url) as raw:
        async with replica(valkey.url) as one, replica(valkey.url) as other:
            await one.add_stored_entries({ONE: STORED[ONE]}, await one.generation())
            raw.config_set("maxmemory", "1")
            before = faults_counted("error")
            await one.add_stored_entries({TWO: STORED[TWO]}, await one.generation())
            assert faults_counted("error") == before + 1
            assert await found(other, [ONE, TWO]) == {ONE: STORED[ONE]}
            async with one.patient_lock("Patient/1") as lock:
                assert not lock.held
            async with one.invalidating(affected_by_write(["DELETE"], ["Observation", "7"])):
                assert await other.generation() == ""
            assert not await finds_stored(other)
            assert other.available
            raw.config_set("maxmemory", "0")
            await other.add_stored_entries(STORED, await other.generation())
            assert await finds_stored(one)


async def test_values_are_cached_again_after_a_flush(valkey: servers.Running) -> None:
    with Redis.from_url(valkey.url) as raw:
        async with replica(valkey.url) as one, replica(valkey.url) as other:
            earlier = await one.generation()
            await one.add_stored_entries(STORED, earlier)
            raw.flushall()
            raw.script_flush()
            await one.add_stored_entries(STORED, earlier)
            assert not await finds_stored(other)
            await one.add_stored_entries(STORED, await one.generation())
            assert await finds_stored(other)
            assert (one.available, other.available) == (True, True)


async def test_a_generation_that_was_evicted_does_not_return(valkey: servers.Running) -> None:
    with Redis.from_url(valkey.url) as raw:
        async with replica(valkey.url) as one:
            await one.add_stored_entries(STORED, first := await one.generation())
            raw.delete(*raw.scan_iter("*:known:epoch"))
            assert await one.generation() != first
            assert not await finds_stored(one)


async def test_the_proxy_starts_without_valkey(tmp_path: Path) -> None:
    server = servers.valkey_process(tmp_path)
    async with quickly(), replica(server.url) as one:
        assert (one.available, up_metric()) == (False, 0)
        assert not await finds_stored(one)
    server.start()
    try:
        async with replica(server.url) as one:
            assert (one.available, up_metric()) == (True, 1)
    finally:
        server.stop()


#: Responses of a server that is no Valkey.
NONSENSE = [
    b"HTTP/1.1 400 Bad Request\r\n\r\n",
    b"$-5\r\n",
    b"$x\r\n",
    b"*x\r\n",
    b"*1\r\n" * 5000,
    b":1\r\n" * 100,
    b"+OK\r\n" * 100,
    b"$3\r\n\xff\xff\xff\r\n" * 100,
    b"*2\r\n$1\r\na\r\n" * 100,
    b"-NOPE\r\n" * 100,
    b"",
]


@pytest.mark.parametrize("nonsense", NONSENSE, ids=[str(each[:24]) for each in NONSENSE])
async def test_a_server_that_responds_with_nonsense_is_not_used(nonsense: bytes) -> None:
    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(65_536):
            writer.write(nonsense)
        writer.close()

    server = await asyncio.start_server(babble, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        async with quickly(2), replica(f"redis://127.0.0.1:{port}", shared_timeout=QUICK) as one:
            for _ in range(3):
                assert not await finds_stored(one)
                await one.add_stored_entries(STORED, await one.generation())
                assert await one.last_submission("Patient/1") is None
                async with (
                    one.patient_lock("Patient/1") as lock,
                    one.invalidating(affected_by_write(["DELETE"], ["Observation", "7"])),
                ):
                    assert not lock.held


def certificates(folder: Path) -> None:
    subject = ["-subj", "/CN=valkey", "-addext", "subjectAltName=IP:127.0.0.1"]
    keys = ["-newkey", "rsa:2048", "-nodes", "-keyout", folder / "key.pem", "-out", folder / "cert.pem", "-days", "1"]
    subprocess.run(["openssl", "req", "-x509", *keys, *subject], check=True, capture_output=True)


async def shares(url: str) -> bool:
    async with replica(url) as one, replica(url) as other:
        await one.add_stored_entries(STORED, await one.generation())
        return await finds_stored(other)


async def test_valkey_is_reached_through_tls_and_its_certificate_is_checked(tmp_path: Path) -> None:
    certificates(tmp_path)
    port = servers.free_port()
    files = ["--tls-cert-file", f"{tmp_path}/cert.pem", "--tls-key-file", f"{tmp_path}/key.pem"]
    options = [*files, "--tls-port", str(port), "--tls-auth-clients", "no"]
    with servers.valkey(tmp_path, *options):
        assert await shares(f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={tmp_path}/cert.pem")
        assert not await shares(f"rediss://127.0.0.1:{port}/0")
        assert not await shares(f"rediss://localhost:{port}/0?ssl_ca_certs={tmp_path}/cert.pem")


async def test_valkey_is_reached_through_a_socket_with_a_password(tmp_path: Path) -> None:
    socket = tmp_path / "s"
    with servers.valkey(tmp_path, "--unixsocket", str(socket), "--requirepass", "p@ss/word:1"):
        assert await shares(f"unix://:p%40ss%2Fword%3A1@{socket}")
        assert await shares(f"unix://:p%40ss%2Fword%3A1@{socket}?db=3")
        assert not await shares(f"unix://:wrong@{socket}")
        assert not await shares(f"unix://{socket}")


async def test_the_documented_rights_of_a_valkey_user_suffice(valkey: servers.Running) -> None:
    """The rights are those that the documentation names."""
    with Redis.from_url(valkey.url) as raw:
        raw.execute_command(
            "ACL SETUSER cgm on >pw ~cgm1:* resetchannels -@all "
            "+get +mget +set +del +exists +sadd +srem +expire +pexpire +info +time +evalsha +script|load"
        )
        async with replica(valkey.url.replace("//", "//cgm:pw@")) as one:
            await one.add_stored_entries(STORED, await one.generation())
            async with (
                one.patient_lock("Patient/1"),
                one.invalidating(affected_by_write(["DELETE"], ["Observation", "7"])),
            ):
                pass
            assert await one.generation()
            assert one.available


async def test_nothing_secret_is_logged(valkey: servers.Running, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    async with replica(valkey.url.replace("//", "//:s3cr3t@")) as one:
        assert not one.available
    text = "".join(str(record.__dict__) for record in caplog.records)
    assert "shared memory is away" in text
    assert "s3cr3t" not in text


async def test_a_stopped_cache_makes_no_calls(valkey: servers.Running) -> None:
    async with replica(valkey.url) as one:
        assert isinstance(one, Cache)
    with Redis.from_url(valkey.url) as raw:
        assert not await finds_stored(one)
        assert len(raw.client_list()) == 1
