"""Where submissions that are answered asynchronously are kept: a SQLite file, which outlives the process and the machine.

A commit is on the disk before it returns (write-ahead log, synchronous=FULL). Large bodies and results are stored in pieces,
as bytes, so that neither is copied whole. What is deleted is overwritten, in the file and in its log: credentials and
patient data are gone as soon as they are not needed. The file is for its owner alone (0600) and for one process alone: it is
locked for as long as it is open. Of an id only its hash is kept, so that who reads the file can't ask for a result.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cgm_proxy.core.codec.json_body import Buffer
from cgm_proxy.settings import loading

#: Size of a piece (bytes).
PIECE = 2**20

#: How long another process may hold the file before that is a fault (seconds): a restart overlaps a little.
BUSY_TIMEOUT = 5.0

_SCHEMA = """
CREATE TABLE IF NOT EXISTS job (
    number INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL UNIQUE, patient TEXT NOT NULL, format TEXT NOT NULL,
    created REAL NOT NULL, attempts INTEGER NOT NULL DEFAULT 0, size INTEGER NOT NULL, asked BLOB, expires REAL);
CREATE TABLE IF NOT EXISTS piece (
    job INTEGER NOT NULL REFERENCES job ON DELETE CASCADE, place INTEGER NOT NULL, data BLOB NOT NULL,
    UNIQUE (job, place));
"""

_PRAGMAS = (
    "locking_mode = EXCLUSIVE",
    "journal_mode = WAL",
    "synchronous = FULL",
    "secure_delete = ON",
    "foreign_keys = ON",
    "temp_store = MEMORY",
)


class StoreFull(Exception):  # noqa: N818 -- it reads as what happened
    """As many submissions wait, or as many bytes of them, as are allowed."""


class StoreFailed(Exception):  # noqa: N818 -- it reads as what happened
    """The store could not do it, and has done none of it: a full disk, say."""


class StoreUnusable(Exception):  # noqa: N818 -- it reads as what happened
    """The store can't be opened; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Job:
    """A submission to keep: the hash of its id, whom it is about, the format to answer in, and its request as bytes."""

    key: str
    patient: str
    format: str
    request: bytes
    body: Buffer


@dataclass(frozen=True, slots=True)
class JobStatus:
    """What is known of a submission: `created` and `expires` in seconds since 1970; `expires` is None until it is done."""

    patient: str
    format: str
    created: float
    expires: float | None
    attempts: int
    ahead: int
    """How many were accepted before it and are not done."""
    size: int
    """Bytes of its body or, when it is done, of its result."""


class JobStore(Protocol):
    """What keeps submissions; asked from one thread, one call after another. Each call may raise `StoreFailed`."""

    def add(self, job: Job, now: float) -> None:
        """Keep a submission so that nothing short of the disk's end loses it; raises `StoreFull`."""

    def unfinished(self) -> list[tuple[str, int]]:
        """List those that are not done, oldest first: key, and how often each was begun."""

    def begin(self, key: str) -> int:
        """Count one more attempt at it, for good, and give their number; 0 where it is not to be done (any more)."""

    def put_back(self, key: str) -> None:
        """Take the last attempt back: it was stopped in good order."""

    def load(self, key: str) -> tuple[bytes, bytearray]:
        """Give the request and the body."""

    def finish(self, key: str, result: bytes, expires: float) -> None:
        """Put the result in the place of request and body; the oldest results make room for it."""

    def find(self, key: str, now: float) -> JobStatus | None:
        """Tell what is known of it; None where it never was or has expired."""

    def piece(self, key: str, place: int) -> bytes | None:
        """Give one piece of a result; None where there is none (any more)."""

    def delete(self, key: str) -> bool:
        """Remove all of it; tell whether there was anything."""

    def sweep(self, now: float) -> int:
        """Remove the results that have expired; tell how many."""

    def close(self) -> None:
        """Let go of the store."""


class SqliteStore:
    """A `JobStore` in a file; raises `StoreUnusable` where that can't be opened."""

    def __init__(self, path: Path, room: loading.JobSettings) -> None:
        self._room = room
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            path.chmod(0o600)
            self._db = sqlite3.connect(path, BUSY_TIMEOUT, isolation_level=None, check_same_thread=False)
        except (OSError, sqlite3.Error) as error:
            raise StoreUnusable(f"can't be opened: {error}; name a file in a directory that can be written") from None
        try:
            for pragma in _PRAGMAS:
                self._db.execute(f"PRAGMA {pragma}")
            self._db.executescript(_SCHEMA)
            self._clean()
        except sqlite3.Error as error:
            self._db.close()
            busy = error.sqlite_errorcode == sqlite3.SQLITE_BUSY
            why = "another process has it open; each proxy needs its own" if busy else f"{error}; name another file"
            raise StoreUnusable(f"can't be used: {why}") from None

    def add(self, job: Job, now: float) -> None:
        """See `JobStore`."""
        size = len(job.body)
        with self._transaction():
            waiting, held = self._row("SELECT count(*), total(size) FROM job WHERE expires IS NULL")
            if waiting >= self._room.waiting or held + size > self._room.waiting_bytes:
                raise StoreFull
            added = self._db.execute(
                "INSERT INTO job (key, patient, format, created, size, asked) VALUES (?, ?, ?, ?, ?, ?)",
                (job.key, job.patient, job.format, now, size, job.request),
            )
            self._write(added.lastrowid, job.body)

    def unfinished(self) -> list[tuple[str, int]]:
        """See `JobStore`."""
        with self._faults():
            return self._db.execute("SELECT key, attempts FROM job WHERE expires IS NULL ORDER BY number").fetchall()

    def begin(self, key: str) -> int:
        """See `JobStore`."""
        with self._transaction():
            begun = "UPDATE job SET attempts = attempts + 1 WHERE key = ? AND expires IS NULL RETURNING attempts"
            (attempts,) = self._row(begun, key) or (0,)
        return int(attempts)

    def put_back(self, key: str) -> None:
        """See `JobStore`."""
        with self._transaction():
            self._db.execute("UPDATE job SET attempts = attempts - 1 WHERE key = ? AND expires IS NULL", (key,))

    def load(self, key: str) -> tuple[bytes, bytearray]:
        """See `JobStore`."""
        body = bytearray()
        with self._faults():
            number, asked = self._row("SELECT number, asked FROM job WHERE key = ?", key)
            for (data,) in self._db.execute("SELECT data FROM piece WHERE job = ? ORDER BY place", (number,)):
                body += data
        return asked, body

    def finish(self, key: str, result: bytes, expires: float) -> None:
        """See `JobStore`."""
        with self._transaction():
            found = self._row("SELECT number FROM job WHERE key = ? AND expires IS NULL", key)
            if not found:
                return
            self._make_room(len(result))
            self._db.execute("DELETE FROM piece WHERE job = ?", found)
            self._db.execute(
                "UPDATE job SET asked = NULL, size = ?, expires = ? WHERE number = ?", (len(result), expires, *found)
            )
            self._write(found[0], result)
        self._clean()

    def find(self, key: str, now: float) -> JobStatus | None:
        """See `JobStore`."""
        known = "SELECT patient, format, created, expires, attempts, number, size FROM job WHERE key = ?"
        with self._faults():
            row = self._row(f"{known} AND (expires IS NULL OR expires > ?)", key, now)
            if not row:
                return None
            patient, made, created, expires, attempts, number, size = row
            (ahead,) = self._row("SELECT count(*) FROM job WHERE expires IS NULL AND number < ?", number)
        return JobStatus(patient, made, created, expires, attempts, ahead, size)

    def piece(self, key: str, place: int) -> bytes | None:
        """See `JobStore`."""
        wanted = "SELECT data FROM piece JOIN job ON number = job WHERE key = ? AND place = ? AND expires IS NOT NULL"
        with self._faults():
            row = self._row(wanted, key, place)
        return bytes(row[0]) if row else None

    def delete(self, key: str) -> bool:
        """See `JobStore`."""
        return self._remove("key = ?", key) > 0

    def sweep(self, now: float) -> int:
        """See `JobStore`."""
        return self._remove("expires <= ?", now)

    def close(self) -> None:
        """See `JobStore`."""
        self._db.close()

    def _remove(self, which: str, *arguments: object) -> int:
        with self._transaction():
            removed = self._db.execute(f"DELETE FROM job WHERE {which}", arguments).rowcount  # noqa: S608 -- constants
        if removed:
            self._clean()
        return removed

    def _make_room(self, size: int) -> None:
        """Remove the oldest results until one of this size fits beside the others."""
        results = self._db.execute("SELECT number, size FROM job WHERE expires IS NOT NULL ORDER BY expires").fetchall()
        held = sum(size for _, size in results)
        for number, its_size in results:
            if held + size <= self._room.kept_bytes:
                break
            self._db.execute("DELETE FROM job WHERE number = ?", (number,))
            held -= its_size

    def _write(self, number: int | None, data: Buffer) -> None:
        whole = memoryview(data)
        self._db.executemany(
            "INSERT INTO piece (job, place, data) VALUES (?, ?, ?)",
            ((number, start // PIECE, whole[start : start + PIECE]) for start in range(0, len(data), PIECE)),
        )

    def _row(self, query: str, *arguments: object) -> tuple[Any, ...]:
        """Give the only row, or an empty one."""
        row: tuple[Any, ...] | None = self._db.execute(query, arguments).fetchone()
        return row or ()

    def _clean(self) -> None:
        """Empty the log, which still holds what was overwritten in the file; if that fails now, the next time does it."""
        with suppress(sqlite3.Error):
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Do all of it or none."""
        with self._faults():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StoreFailed(error.sqlite_errorname) from error
