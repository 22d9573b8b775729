"""The store of kept submissions: a SQLite file, which survives crashes of the process and of the machine.

A commit is on the disk before it returns (write-ahead log, synchronous=FULL). Large bodies and results are stored in
pieces, so that they are never copied whole. Deleted data is overwritten, in the file and in its log, so that credentials
and patient data are gone as soon as they are no longer needed. Only the file's owner can read it (0600), and only one
process can open it: it is locked while it is open. The file holds hashes of job ids, not the ids, so that a reader of the
file can't fetch results.

Overwriting takes as much room in the log as what is overwritten. So that a full disk does not keep jobs from being closed,
`RESERVE` bytes stay free when a job is added, and what can't be overwritten at once is overwritten piece by piece.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cgm_proxy.core.codec.json_body import Buffer
from cgm_proxy.regular_files import require_regular
from cgm_proxy.settings import loading

#: Size of a piece of a body or result (bytes).
PIECE = 2**20

#: Room that stays free when a job is added (bytes): for up to 4 MiB that are in the log and not yet in the file (SQLite's
#: default), and for the log of closing a job, which needs little more than a piece.
RESERVE = 8 * PIECE

#: How long to wait for another process to close the file (seconds); at a restart the two may overlap a little.
BUSY_TIMEOUT = 5.0

#: Names of tables and columns are part of the file's format: files of earlier versions must stay readable.
_SCHEMA = """
CREATE TABLE IF NOT EXISTS job (
    number INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL UNIQUE, patient TEXT NOT NULL, format TEXT NOT NULL,
    created REAL NOT NULL, attempts INTEGER NOT NULL DEFAULT 0, size INTEGER NOT NULL, asked BLOB, expires REAL);
CREATE TABLE IF NOT EXISTS piece (
    job INTEGER NOT NULL REFERENCES job ON DELETE CASCADE, place INTEGER NOT NULL, data BLOB NOT NULL,
    UNIQUE (job, place));
"""

#: The pieces of bodies that could not be overwritten when their jobs were finished.
_LEFTOVERS = "FROM piece JOIN job ON number = job WHERE expires IS NOT NULL AND place * ? >= size"

#: When a job has expired that is to be removed at once (seconds since 1970).
EXPIRED = 0.0

_PRAGMAS = (
    "locking_mode = EXCLUSIVE",
    "journal_mode = WAL",
    "synchronous = FULL",
    "secure_delete = ON",
    "foreign_keys = ON",
    "temp_store = MEMORY",
)


class StoreFull(Exception):  # noqa: N818 -- it reads as what happened
    """The limit of unfinished jobs, or of their bytes, is reached."""


class StoreFailed(Exception):  # noqa: N818 -- it reads as what happened
    """An operation failed and changed nothing, for instance because the disk is full."""


class StoreUnusable(Exception):  # noqa: N818 -- it reads as what happened
    """The store can't be opened. The text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Job:
    """A submission to store: the hash of its id, its patient, the format of the result, its encoded request, its body."""

    key: str
    patient: str
    format: str
    request: bytes
    body: Buffer
    owner: str = ""
    """A hash of the credentials that it came with."""


@dataclass(frozen=True, slots=True)
class JobStatus:
    """The status of a job. `created` and `expires` are in seconds since 1970; `expires` is None until the job is finished."""

    patient: str
    format: str
    created: float
    expires: float | None
    attempts: int
    ahead: int
    """Number of unfinished jobs that were accepted before this one."""
    size: int
    """Size of the body or, if the job is finished, of its result (bytes)."""
    owner: str | None = None
    """A hash of the credentials that it came with; None in a file of an earlier version."""


class JobStore(Protocol):
    """A store of jobs. All calls come from one thread; each may raise `StoreFailed`."""

    def add(self, job: Job, now: float) -> None:
        """Store a job durably. Raises `StoreFull`."""

    def unfinished(self) -> list[tuple[str, int]]:
        """Return the key and the number of attempts of each unfinished job, the oldest first."""

    def begin(self, key: str) -> int:
        """Count one more attempt durably, and return their number; 0 if the job is finished or deleted."""

    def put_back(self, key: str) -> None:
        """Uncount the last attempt, because it was stopped and did not crash."""

    def load(self, key: str) -> tuple[bytes, bytearray]:
        """Return the request and the body of a job."""

    def finish(self, key: str, result: bytes, expires: float, otherwise: bytes) -> bool:
        """Replace the request and body by the result, or by `otherwise` (short) if the disk has no room for the result.

        The oldest results are removed if there are too many bytes of them. Return whether the result itself was stored.
        """

    def find(self, key: str, now: float) -> JobStatus | None:
        """Return the status of a job; None if it does not exist or its result has expired."""

    def piece(self, key: str, place: int) -> bytes | None:
        """Return one piece of a result; None if there is no such piece, or the result was removed."""

    def delete(self, key: str) -> bool:
        """Remove all of a job. Return whether there was anything to remove."""

    def sweep(self, now: float) -> int:
        """Remove expired results, and return their number."""

    def close(self) -> None:
        """Close the store."""


class SqliteStore:
    """A `JobStore` in a file. Raises `StoreUnusable` if the file can't be opened."""

    def __init__(self, path: Path, limits: loading.JobSettings) -> None:
        self._limits = limits
        self._path = path
        try:
            with suppress(FileNotFoundError):
                require_regular(path)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            path.chmod(0o600)
            self._db = sqlite3.connect(path, BUSY_TIMEOUT, isolation_level=None, check_same_thread=False)
        except (OSError, sqlite3.Error) as error:
            raise StoreUnusable(f"can't be opened: {error}; name a file in a directory that can be written") from None
        try:
            for pragma in _PRAGMAS:
                self._db.execute(f"PRAGMA {pragma}")
            self._db.executescript(_SCHEMA)
            if "owner" not in {name for _, name, *_ in self._db.execute("PRAGMA table_info(job)").fetchall()}:
                self._db.execute("ALTER TABLE job ADD COLUMN owner TEXT")  # a file of version 0.1.0 has none
            self._truncate_log()
        except sqlite3.Error as error:
            self._db.close()
            busy = error.sqlite_errorcode == sqlite3.SQLITE_BUSY
            why = "another process has it open; each proxy needs its own" if busy else f"{error}; name another file"
            raise StoreUnusable(f"can't be used: {why}") from None

    def add(self, job: Job, now: float) -> None:
        """See `JobStore`."""
        size = len(job.body)
        with self._transaction():
            jobs, size_of_all = self._row("SELECT count(*), total(size) FROM job WHERE expires IS NULL")
            if jobs >= self._limits.waiting or size_of_all + size > self._limits.waiting_bytes:
                raise StoreFull
            if not self._has_room(size):
                raise StoreFailed("the disk is full")
            added = self._db.execute(
                "INSERT INTO job (key, patient, format, created, size, asked, owner) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (job.key, job.patient, job.format, now, size, job.request, job.owner),
            )
            self._insert_pieces(added.lastrowid, job.body)

    def unfinished(self) -> list[tuple[str, int]]:
        """See `JobStore`."""
        with self._faults():
            return self._db.execute("SELECT key, attempts FROM job WHERE expires IS NULL ORDER BY number").fetchall()

    def begin(self, key: str) -> int:
        """See `JobStore`."""
        with self._transaction():
            query = "UPDATE job SET attempts = attempts + 1 WHERE key = ? AND expires IS NULL RETURNING attempts"
            (attempts,) = self._row(query, key) or (0,)
        return int(attempts)

    def put_back(self, key: str) -> None:
        """See `JobStore`."""
        with self._transaction():
            self._db.execute("UPDATE job SET attempts = attempts - 1 WHERE key = ? AND expires IS NULL", (key,))

    def load(self, key: str) -> tuple[bytes, bytearray]:
        """See `JobStore`."""
        body = bytearray()
        with self._faults():
            number, request = self._row("SELECT number, asked FROM job WHERE key = ?", key)
            for (data,) in self._db.execute("SELECT data FROM piece WHERE job = ? ORDER BY place", (number,)):
                body += data
        return request, body

    def finish(self, key: str, result: bytes, expires: float, otherwise: bytes) -> bool:
        """See `JobStore`."""
        with self._faults():
            (number,) = self._row("SELECT number FROM job WHERE key = ? AND expires IS NULL", key) or (None,)
        if number is None:
            return True
        with suppress(StoreFailed):
            self._store_result(number, result, expires)
            return True
        with self._transaction():  # the body stays, except its first piece
            self._mark(number, len(otherwise), expires)
            self._db.execute("INSERT OR REPLACE INTO piece (job, place, data) VALUES (?, 0, ?)", (number, otherwise))
            for old in self._oldest(number, len(result)):
                self._mark(old, 0, EXPIRED)
        with suppress(StoreFailed):
            self._remove_leftovers()
            self._store_result(number, result, expires)
            return True
        return False

    def _store_result(self, number: int, result: bytes, expires: float) -> None:
        with self._transaction():
            for old in self._oldest(number, len(result)):
                self._db.execute("DELETE FROM job WHERE number = ?", (old,))
            self._db.execute("DELETE FROM piece WHERE job = ?", (number,))
            self._mark(number, len(result), expires)
            self._insert_pieces(number, result)
        self._truncate_log()

    def _mark(self, number: int, size: int, expires: float) -> None:
        """Record that a job is finished: its request is no longer needed, and only pieces within `size` are its result."""
        query = "UPDATE job SET asked = NULL, size = ?, expires = ? WHERE number = ?"
        self._db.execute(query, (size, expires, number))

    def find(self, key: str, now: float) -> JobStatus | None:
        """See `JobStore`."""
        query = "SELECT patient, format, created, expires, attempts, number, size, owner FROM job WHERE key = ?"
        with self._faults():
            row = self._row(f"{query} AND (expires IS NULL OR expires > ?)", key, now)
            if not row:
                return None
            patient, response_format, created, expires, attempts, number, size, owner = row
            (ahead,) = self._row("SELECT count(*) FROM job WHERE expires IS NULL AND number < ?", number)
        return JobStatus(patient, response_format, created, expires, attempts, ahead, size, owner)

    def piece(self, key: str, place: int) -> bytes | None:
        """See `JobStore`."""
        query = (
            "SELECT data FROM piece JOIN job ON number = job "
            "WHERE key = ? AND place = ? AND expires IS NOT NULL AND place * ? < size"
        )
        with self._faults():
            row = self._row(query, key, place, PIECE)
        return bytes(row[0]) if row else None

    def delete(self, key: str) -> bool:
        """See `JobStore`."""
        return self._delete_where("key = ?", key) > 0

    def sweep(self, now: float) -> int:
        """See `JobStore`."""
        with self._faults():
            leftovers = self._row(f"SELECT 1 {_LEFTOVERS} LIMIT 1", PIECE)
        if leftovers:
            self._remove_leftovers()
        return self._delete_where("expires <= ?", now)

    def close(self) -> None:
        """See `JobStore`."""
        self._db.close()

    def _delete_where(self, condition: str, *arguments: object) -> int:
        try:
            removed = self._delete_at_once(condition, *arguments)
        except StoreFailed:
            with self._transaction():
                query = f"SELECT number FROM job WHERE {condition}"  # noqa: S608 -- constants
                for (number,) in self._db.execute(query, arguments).fetchall():
                    self._mark(number, 0, EXPIRED)
            self._remove_leftovers()
            removed = self._delete_at_once("expires = ?", EXPIRED)
        if removed:
            self._truncate_log()
        return removed

    def _delete_at_once(self, condition: str, *arguments: object) -> int:
        with self._transaction():
            return self._db.execute(f"DELETE FROM job WHERE {condition}", arguments).rowcount  # noqa: S608 -- constants

    def _oldest(self, beside: int, size: int) -> list[int]:
        """Return the numbers of the oldest results that have to go so that one more of this size fits."""
        query = "SELECT number, size FROM job WHERE expires IS NOT NULL AND number != ? ORDER BY expires"
        results = self._db.execute(query, (beside,)).fetchall()
        excess = sum(result_size for _, result_size in results) + size - self._limits.kept_bytes
        oldest = []
        for number, result_size in results:
            if excess <= 0:
                break
            oldest.append(number)
            excess -= result_size
        return oldest

    def _remove_leftovers(self) -> None:
        """Remove what remains of the bodies of finished jobs one by one, which needs no more room in the log than a piece."""
        with self._faults():
            leftovers = self._db.execute(f"SELECT piece.rowid {_LEFTOVERS}", (PIECE,)).fetchall()
        for leftover in leftovers:
            with self._transaction():
                self._db.execute("DELETE FROM piece WHERE rowid = ?", leftover)
            self._truncate_log()

    def _has_room(self, size: int) -> bool:
        """Whether the disk has room for a body, in the file and in its log, and for closing jobs afterwards."""
        disk = os.statvfs(self._path)
        (unused,), (page,) = self._row("PRAGMA freelist_count"), self._row("PRAGMA page_size")
        needed: int = size + max(0, size - unused * page) + RESERVE
        return needed <= disk.f_bavail * disk.f_frsize

    def _insert_pieces(self, number: int | None, data: Buffer) -> None:
        view = memoryview(data)
        self._db.executemany(
            "INSERT INTO piece (job, place, data) VALUES (?, ?, ?)",
            ((number, start // PIECE, view[start : start + PIECE]) for start in range(0, len(data), PIECE)),
        )

    def _row(self, query: str, *arguments: object) -> tuple[Any, ...]:
        """Return the only row of the query's result; an empty tuple if there is none."""
        row: tuple[Any, ...] | None = self._db.execute(query, arguments).fetchone()
        return row or ()

    def _truncate_log(self) -> None:
        """Empty the write-ahead log, which still holds the deleted data. If this fails, the next call does it."""
        with suppress(sqlite3.Error):
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Run the statements of the context in a transaction."""
        with self._faults():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except sqlite3.Error:
                self._roll_back()
                self._truncate_log()  # it may have filled the disk with what was rolled back
                raise
            finally:
                self._roll_back()

    def _roll_back(self) -> None:
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")

    @contextmanager
    def _faults(self) -> Iterator[None]:
        """Raise `StoreFailed` for an error of SQLite."""
        try:
            yield
        except sqlite3.Error as error:
            raise StoreFailed(error.sqlite_errorname) from error
