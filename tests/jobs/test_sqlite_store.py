"""The file of kept submissions: operations are atomic, deleted data is overwritten, and only its owner can read it."""

import sqlite3
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from support.later import files, largest

from cgm_proxy.jobs.sqlite_store import PIECE, Job, SqliteStore, StoreFailed, StoreFull, StoreUnusable
from cgm_proxy.settings.loading import JobSettings

JOB = Job("k1", "Patient/p1", "json", b"Authorization: s3cr3t", b"body-of-one")
LIMITS = JobSettings(waiting=3, waiting_bytes=3 * PIECE, kept_bytes=2 * PIECE)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.sqlite"


@pytest.fixture
def store(path: Path):
    store = SqliteStore(path, LIMITS)
    yield store
    store.close()


def result_of(store: SqliteStore, key: str) -> bytes:
    places = iter(range(1000))
    return b"".join(iter(lambda: store.piece(key, next(places)), None))


@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE])
@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_bodies_and_results_are_read_as_they_were_written(store: SqliteStore, size: int, kind) -> None:
    body = kind(b"\x1f\x8b\x00" * (size // 3 + 1))[:size]
    store.add(replace(JOB, body=body), 1.0)
    assert store.load("k1") == (JOB.request, body)
    assert result_of(store, "k1") == b""  # a body is no result
    store.finish("k1", bytes(body), 10.0, b"lost")
    assert result_of(store, "k1") == body


def test_attempts_are_counted_until_the_job_is_finished(store: SqliteStore) -> None:
    store.add(JOB, 1.0)
    assert [store.begin("k1"), store.begin("k1")] == [1, 2]
    store.put_back("k1")
    assert store.unfinished() == [("k1", 1)]
    store.finish("k1", b"{}", 10.0, b"lost")
    assert store.unfinished() == []
    assert store.begin("k1") == 0
    store.put_back("k1")
    store.finish("k1", b"another", 99.0, b"lost")
    assert result_of(store, "k1") == b"{}"
    assert store.begin("never") == 0


def test_jobs_are_found_in_their_order_and_until_they_expire(store: SqliteStore) -> None:
    for key in ("k1", "k2", "k3"):
        store.add(replace(JOB, key=key), 5.0)
    assert [key for key, _ in store.unfinished()] == ["k1", "k2", "k3"]
    assert [store.find(key, 6.0).ahead for key in ("k1", "k2", "k3")] == [0, 1, 2]
    store.finish("k1", b"{}", 10.0, b"lost")
    assert [store.find(key, 6.0).ahead for key in ("k2", "k3")] == [0, 1]
    assert store.find("k1", 9.9).expires == 10.0
    assert store.find("k1", 10.0) is None
    assert (store.sweep(9.9), store.sweep(10.0), store.sweep(10.0)) == (0, 1, 0)
    assert store.find("k2", 1e12).expires is None


FULL = {"submissions": [b"", b"", b""], "bytes": [b"x" * 2 * PIECE, b"x" * PIECE]}


@pytest.mark.parametrize("bodies", FULL.values(), ids=FULL)
def test_a_job_over_the_limit_leaves_nothing_behind(store: SqliteStore, bodies: list[bytes]) -> None:
    for number, body in enumerate(bodies):
        store.add(replace(JOB, key=f"k{number}", body=body), 1.0)
    with pytest.raises(StoreFull):
        store.add(replace(JOB, key="late", body=b"y"), 1.0)
    assert store.find("late", 2.0) is None
    assert store.delete("k0")
    store.add(replace(JOB, key="late", body=b"y"), 1.0)


def test_an_operation_on_a_full_disk_leaves_nothing_behind(store: SqliteStore) -> None:
    store.add(JOB, 1.0)
    (pages,) = store._db.execute("PRAGMA page_count").fetchone()
    store._db.execute(f"PRAGMA max_page_count = {pages + 20}")
    with pytest.raises(StoreFailed, match="SQLITE_FULL"):
        store.add(replace(JOB, key="large", body=b"x" * PIECE), 1.0)
    assert store.unfinished() == [("k1", 0)]
    assert not store.finish("k1", b"r" * PIECE, 10.0, b"lost")
    assert result_of(store, "k1") == b"lost"
    store.add(replace(JOB, key="small"), 1.0)
    assert store.finish("small", b"{}", 10.0, b"lost")


def test_the_oldest_results_make_room_but_no_unfinished_job_does(store: SqliteStore) -> None:
    for number in range(3):
        store.add(replace(JOB, key=f"k{number}"), 1.0)
    store.finish("k1", b"1" * PIECE, 11.0, b"lost")
    store.finish("k0", b"0" * PIECE, 12.0, b"lost")
    store.add(replace(JOB, key="k3"), 1.0)
    store.finish("k2", b"2", 13.0, b"lost")
    assert [bool(store.find(f"k{number}", 2.0)) for number in range(4)] == [True, False, True, True]


@pytest.mark.parametrize("size", [100, 3 * PIECE])
def test_deleted_data_is_overwritten(store: SqliteStore, path: Path, size: int) -> None:
    body = (b"valueQuantity-" * (size // 14 + 1))[:size]
    store.add(replace(JOB, body=body), 1.0)
    assert b"s3cr3t" in files(path)
    store.finish("k1", b"location-of-one " * 10, 10.0, b"lost")
    assert b"s3cr3t" not in files(path)
    assert b"valueQuantity" not in files(path)
    assert store.delete("k1")
    assert b"location-of-one" not in files(path)
    assert b"Patient/p1" not in files(path)
    assert not store.delete("k1")


def test_only_the_owner_can_read_the_file_even_if_others_could_before(path: Path) -> None:
    path.touch(0o666)
    path.chmod(0o666)
    store = SqliteStore(path, LIMITS)
    store.add(JOB, 1.0)
    modes = {stat.S_IMODE(file.stat().st_mode) for file in path.parent.glob("jobs.sqlite*")}
    store.close()
    assert modes == {0o600}


def test_a_second_process_cannot_open_the_file(store: SqliteStore, path: Path, monkeypatch) -> None:
    monkeypatch.setattr("cgm_proxy.jobs.sqlite_store.BUSY_TIMEOUT", 0.1)
    with pytest.raises(StoreUnusable, match="another process has it open"):
        SqliteStore(path, LIMITS)
    store.add(JOB, 1.0)


def test_a_damaged_file_raises_store_failed(store: SqliteStore, path: Path) -> None:
    store.add(replace(JOB, body=b"x" * PIECE), 1.0)
    store._truncate_log()
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (largest(path) - 4096))
    store._db.close()
    store._db = sqlite3.connect(path)
    for call in (lambda: store.load("k1"), lambda: store.find("k1", 1.0), lambda: store.add(JOB, 1.0)):
        with pytest.raises(StoreFailed):
            call()
