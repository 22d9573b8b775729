"""The operator's own hands: files that are no files, files that never end, bombs in YAML, and a full disk."""

import asyncio
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support import servers
from support.client import Client
from support.later import ASYNC, files, keep, largest, result, rules, status, statuses

from cgm_proxy.core.codec.strict_yaml import YamlError, documents
from cgm_proxy.core.rules.rule_files import RulesError
from cgm_proxy.jobs import job_queue, sqlite_store
from cgm_proxy.jobs.sqlite_store import PIECE, Job, SqliteStore, StoreFailed, StoreUnusable
from cgm_proxy.rulekit.lint import lint, load_rules
from cgm_proxy.rulekit.loading import shipped_rules
from cgm_proxy.settings.loading import JobSettings, SettingsError, load


def in_time(call: Callable[[], Any], seconds: float = 30) -> Any:
    """Return what a call returns, and raise what it raises; fail if it has not ended in time."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append((call(), None))
        except BaseException as error:  # noqa: BLE001 -- it is raised below
            outcome.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert outcome, "it has not ended"
    result, error = outcome[0]
    if error:
        raise error
    return result


# ---- what is no regular file


def bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))


def link_to_fifo(path: Path) -> None:
    os.mkfifo(path.with_name("fifo"))
    path.symlink_to(path.with_name("fifo"))


NO_FILES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a FIFO": (os.mkfifo, "not a regular file"),
    "a link to a FIFO": (link_to_fifo, "not a regular file"),
    "a device that never ends": (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
    "a terminal": (lambda path: path.symlink_to("/dev/ptmx"), "not a regular file"),
    "a socket": (bind, "not a regular file"),
    "a directory": (Path.mkdir, "is a directory"),
    "a link to itself": (lambda path: path.symlink_to(path), "too many levels of symbolic links"),
    "a link to nothing": (lambda path: path.symlink_to(path.with_name("none")), "no such file or directory"),
}


@pytest.fixture(params=NO_FILES.values(), ids=NO_FILES)
def no_file(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    """Return the path of something that is no file, and what a message says about it."""
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    make, reason = request.param
    make(Path("x.yaml"))
    return tmp_path / "x.yaml", reason


def test_in_a_directory_of_rules_it_is_named(no_file: tuple[Path, str]) -> None:
    path, reason = no_file
    with pytest.raises(RulesError) as refused:
        in_time(lambda: load_rules(path.parent))
    assert str(refused.value).lower() == f"{path}: can't be read: {reason}".lower()
    assert in_time(lambda: [str(fault) for fault in lint(shipped_rules(), path.parent)]) == [str(refused.value)]


def test_beside_rules_it_is_named(no_file: tuple[Path, str], tmp_path: Path) -> None:
    path, reason = no_file
    path.rename(codes := tmp_path / "codes.ndjson")
    if not codes.exists():  # a link that leads nowhere
        return
    (tmp_path / "own.yaml").write_text(
        "{profile: 'http://x.org/p', dialect: 1.0.0, type: Observation, title: t, parent: true, rules: []}"
    )
    with pytest.raises(RulesError, match=f"codes.ndjson: can't be read: (?i:{reason})"):
        in_time(lambda: load_rules(tmp_path))


@pytest.mark.parametrize(
    "variable", ["CGM_PROXY_SETTINGS", "CGM_PROXY_UPSTREAM_TOKEN_FILE", "CGM_PROXY_CACHE_SHARED_FILE"]
)
def test_as_settings_or_secret_it_is_named(no_file: tuple[Path, str], variable: str) -> None:
    path, reason = no_file
    with pytest.raises(SettingsError) as refused:
        in_time(lambda: load(environ={variable: str(path)}))
    name = "settings" if variable == "CGM_PROXY_SETTINGS" else variable
    assert str(refused.value).lower() == f"{name}: can't read {path}: {reason}; name a readable file".lower()


def test_as_a_certificate_it_is_refused(no_file: tuple[Path, str]) -> None:
    path, _ = no_file
    with pytest.raises(SettingsError, match=r"names a file that can't be read; correct its ssl_ options"):
        load(environ={"CGM_PROXY_CACHE_SHARED": f"rediss://valkey?ssl_ca_certs={path}"})


def test_as_the_file_of_jobs_it_is_refused_and_left_alone(no_file: tuple[Path, str]) -> None:
    path, reason = no_file
    if reason.startswith("no such"):
        return  # the file is made there
    mode = Path("/dev/zero").stat().st_mode
    with pytest.raises(StoreUnusable, match=f"(?i)can't be opened: .*{reason}"):
        in_time(lambda: SqliteStore(path, JobSettings()))
    assert Path("/dev/zero").stat().st_mode == mode


# ---- reloads of a running proxy


def until_logged(server: servers.Running, text: str) -> None:
    deadline = time.monotonic() + 60
    while text not in server.log.read_text():
        assert time.monotonic() < deadline, server.log.read_text()[-2000:]
        time.sleep(0.05)


def test_a_fifo_among_the_rules_hangs_neither_a_reload_nor_the_stop(sandbox: str, tmp_path: Path) -> None:
    rules = tmp_path / "rules"
    rules.mkdir()
    (rules / "own.yaml").write_text("{extends: cgm-sensor-reading-mass-per-volume, dialect: 1.0.0, rules: []}")
    with servers.proxy(sandbox, tmp_path, {"rules": rules}) as server:
        os.mkfifo(rules / "pipe.yaml")
        os.kill(server.process.pid, signal.SIGHUP)
        until_logged(server, f"{rules / 'pipe.yaml'}: can't be read: Not a regular file")
        assert Client(server.url).get("metadata").status == 200
        assert server.stop(30) == 0


def test_a_reload_that_never_ends_does_not_keep_the_proxy_from_stopping(sandbox: str, tmp_path: Path) -> None:
    never = "import time, cgm_proxy.server.proxy as p; p.load_rules = lambda _: [print('reading', flush=True), time.sleep(600)]"
    program = (sys.executable, "-c", f"{never}; from cgm_proxy.cli import main; main()")
    with servers.proxy(sandbox, tmp_path, program=program) as server:
        os.kill(server.process.pid, signal.SIGHUP)
        until_logged(server, "reading")
        assert server.stop(30) == 0


# ---- bombs in YAML

#: Ten lines of aliases that stand for 10^9 values.
BOMB = "".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10 if level else ['x'] * 10)}]\n" for level in range(9)
)
BOMBS = {
    "a complex key": BOMB + "? *a8\n: x\n",
    "a key within a list": BOMB + "k: [? *a8 : x]\n",
    "a key of a key": BOMB + "? {? *a8 : x}\n: x\n",
    "a merge": BOMB + "k: {<<: *a8}\n",
    "merges of merges": "a0: &a0 {x: 1, y: 2}\n"
    + "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}], k{n}: 1}}\n" for n in range(1, 9)),
    "a value": BOMB + "k: *a8\n",
    "deep lists": "[" * 100_000,
    "deep keys": "? " * 100_000,
    "a long number": f"k: {'1' * 100_000}\n",
    "a long exponent": f"k: 1e{'9' * 99}\n",
    "sexagesimals": f"k: 1{':59' * 20_000}\n",
    "one key many times": "k: 1\n" * 20_000,
}


def seconds(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    in_time(call, 60)
    return time.perf_counter() - started


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_a_bomb_takes_no_longer_than_a_plain_file_of_its_size(bomb: str) -> None:
    def read(text: str) -> None:
        with suppress(YamlError):
            list(documents(text))

    plain = seconds(lambda: read("".join(f"key{number}: [value, 12, 3.5]\n" for number in range(5_000))))
    assert seconds(lambda: read(bomb)) < 3 * plain + 0.5


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_a_bomb_in_rules_or_settings_has_a_short_message(tmp_path: Path, bomb: str) -> None:
    path = tmp_path / "bomb.yaml"
    path.write_text(bomb)
    for read, error in ((lambda: load_rules(tmp_path), RulesError), (lambda: load(path, {}), SettingsError)):
        with pytest.raises(error) as refused:
            in_time(read, 60)
        assert "bomb.yaml" in str(refused.value)
        assert len(str(refused.value)) < 200_000


# ---- the disk of kept submissions is full

BODY = b"valueQuantity " * (8 * PIECE // 14)
JOB = Job("k1", "Patient/p1", "json", b"Authorization: s3cr3t", BODY)
LIMITS = JobSettings(kept_bytes=12 * PIECE)


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond a size, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture
def store(jobs_path: Path) -> Iterator[SqliteStore]:
    store = SqliteStore(jobs_path, LIMITS)
    store.add(JOB, 1.0)
    store._truncate_log()
    yield store
    store.close()


def result_of(store: SqliteStore, key: str = "k1") -> bytes:
    places = iter(range(1000))
    return b"".join(iter(lambda: store.piece(key, next(places)), None))


@pytest.mark.parametrize("pieces", [0, 1, 3, 7])
def test_a_job_is_closed_where_the_log_has_no_room_for_its_body(
    store: SqliteStore, jobs_path: Path, pieces: int
) -> None:
    with files_up_to(largest(jobs_path)):
        assert store.finish("k1", b"r" * pieces * PIECE, 10.0, b"lost")
    assert result_of(store) == b"r" * pieces * PIECE
    assert b"valueQuantity" not in files(jobs_path)
    assert b"s3cr3t" not in files(jobs_path)


def test_a_result_for_which_there_is_no_room_becomes_a_short_one(store: SqliteStore, jobs_path: Path) -> None:
    with files_up_to(largest(jobs_path)):
        assert not store.finish("k1", b"r" * 9 * PIECE, 10.0, b"lost")
    assert (result_of(store), store.find("k1", 2.0).size) == (b"lost", 4)
    assert store.unfinished() == []
    assert b"valueQuantity" not in files(jobs_path)


@pytest.mark.parametrize("remove", [lambda store: store.delete("k1"), lambda store: store.sweep(10.0)])
@pytest.mark.parametrize("finished", [True, False])
def test_a_job_is_removed_where_the_log_has_no_room_for_it(
    store: SqliteStore, jobs_path: Path, remove: Callable[[SqliteStore], int], finished: bool
) -> None:
    if finished:
        store.finish("k1", BODY, 10.0, b"lost")
    elif remove(store) == 0:  # a sweep leaves unfinished jobs alone
        return
    with files_up_to(largest(jobs_path)):
        assert remove(store) or not finished
    assert store.find("k1", 2.0) is None
    assert b"valueQuantity" not in files(jobs_path)
    store.add(JOB, 1.0)


def test_the_oldest_results_make_room_where_the_log_has_none_for_them(store: SqliteStore, jobs_path: Path) -> None:
    store.finish("k1", BODY, 10.0, b"lost")
    store.add(replace(JOB, key="k2"), 1.0)
    store._truncate_log()
    with files_up_to(largest(jobs_path)):  # k1, the body of k2 and its result take more
        assert store.finish("k2", b"r" * 5 * PIECE, 11.0, b"lost")
    assert store.find("k1", 2.0) is None
    assert result_of(store, "k2") == b"r" * 5 * PIECE


def test_what_remains_of_a_body_is_no_part_of_the_result_and_removed_later(
    store: SqliteStore, jobs_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched, files_up_to(largest(jobs_path)):
        patched.setattr(store, "_remove_leftovers", lambda: (_ for _ in ()).throw(StoreFailed("killed")))
        assert not store.finish("k1", b"r" * PIECE, 10.0, b"lost")
    assert result_of(store) == b"lost"
    assert b"valueQuantity" in files(jobs_path)
    assert store.sweep(2.0) == 0
    assert b"valueQuantity" not in files(jobs_path)
    assert result_of(store) == b"lost"


def test_a_body_is_refused_while_jobs_could_still_be_closed(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = sqlite_store.RESERVE + 2 * len(BODY)
    disk = SimpleNamespace(f_bavail=0, f_frsize=1)
    monkeypatch.setattr(sqlite_store.os, "statvfs", lambda _: disk)
    for disk.f_bavail in (0, free - 1):
        with pytest.raises(StoreFailed, match="the disk is full"):
            store.add(replace(JOB, key="k2"), 1.0)
    disk.f_bavail = free
    store.add(replace(JOB, key="k2"), 1.0)
    store.delete("k2")
    disk.f_bavail = free - len(BODY)  # the file has unused pages for the body
    store.add(replace(JOB, key="k3"), 1.0)


async def test_jobs_that_cannot_be_closed_hold_no_place_and_are_answered(
    keeping, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_queue, "PAUSES", (0.05,))
    async with keeping(jobs__at_once=1) as world:
        full = True
        finish = SqliteStore.finish

        def failing(store: SqliteStore, *arguments: Any) -> bool:
            if full:
                raise StoreFailed("SQLITE_FULL")
            return finish(store, *arguments)

        monkeypatch.setattr(SqliteStore, "finish", failing)
        paths = [await keep(world, world.readings(number)) for number in (1, 2, 3)]
        for path in paths:
            answer = await result(world, path)
            assert (status(answer), rules(answer)) == (500, ["async-result-lost"])
            assert answer.headers["Content-Length"] == str(len(answer.data))
        assert await world.count() == 3
        assert (await world.request("DELETE", paths[0])).status == 202
        assert (await world.request("GET", paths[0])).status == 404
        full = False
        await asyncio.wait(list(world.proxy._jobs._tasks.values()))
        assert rules(await result(world, paths[2])) == ["async-result-lost"]
        assert world.proxy._jobs._store.unfinished() == []
        assert statuses(await result(world, await keep(world, world.readings(3)))) == [200] * 3


async def test_a_job_that_cannot_be_closed_is_done_again_after_a_restart(
    keeping, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(SqliteStore, "finish", lambda *_: (_ for _ in ()).throw(StoreFailed("SQLITE_FULL")))
        async with keeping() as world:
            path = await keep(world, world.readings(2))
            assert rules(await result(world, path)) == ["async-result-lost"]
            assert (await world.submit(world.readings(2), **ASYNC)).status == 202
            patient = world.about
    async with keeping() as world:
        world.about = patient
        await world.put({"resourceType": "Patient", "id": patient.partition("/")[2]})
        assert statuses(await result(world, path)) == [201] * 2  # this world has a store of its own
