"""The resources, their versions and their search index, in SQLite.

A row of `version` never changes: an update adds one, and a deletion adds one without a body. A commit is on the disk when it
returns (write-ahead log, synchronous=FULL), so that what was answered survives a crash of the process or the machine.
"""

# ruff: noqa: S608 -- the SQL is put together from this file's constants; values are always arguments

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from msgspec import Raw

from cgm_proxy.core.codec.json_body import encode
from cgm_proxy.core.json_values import JsonObject
from cgm_proxy.sandbox.store import index_rows, references, time_spans

_SCHEMA = """
CREATE TABLE IF NOT EXISTS resource (
    key INTEGER PRIMARY KEY AUTOINCREMENT, type TEXT NOT NULL, id TEXT, version INTEGER NOT NULL DEFAULT 0,
    updated INTEGER NOT NULL DEFAULT 0, deleted INTEGER NOT NULL DEFAULT 1, UNIQUE (type, id));
CREATE TABLE IF NOT EXISTS version (
    key INTEGER NOT NULL, number INTEGER NOT NULL, method TEXT NOT NULL, updated INTEGER NOT NULL, body BLOB,
    UNIQUE (key, number));
CREATE TABLE IF NOT EXISTS token (
    type TEXT NOT NULL, name TEXT NOT NULL, code TEXT NOT NULL, system TEXT NOT NULL, key INTEGER NOT NULL,
    PRIMARY KEY (type, name, code, system, key)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS date (
    type TEXT NOT NULL, name TEXT NOT NULL, low INTEGER NOT NULL, high INTEGER NOT NULL, key INTEGER NOT NULL,
    PRIMARY KEY (type, name, low, high, key)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS reference (
    target_id TEXT NOT NULL, target_type TEXT NOT NULL, path TEXT NOT NULL, key INTEGER NOT NULL,
    PRIMARY KEY (target_id, target_type, path, key)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS token_key ON token (key);
CREATE INDEX IF NOT EXISTS date_key ON date (key);
CREATE INDEX IF NOT EXISTS reference_key ON reference (key);
"""

_VERSION = """
SELECT r.key, r.type, r.id, v.number, v.updated, v.method, v.body
FROM resource r JOIN version v ON v.key = r.key
"""


@dataclass(frozen=True, slots=True)
class Version:
    """A stored version of a resource; `body` is None for a deletion, `updated` is in milliseconds since 1970."""

    key: int
    type: str
    id: str
    number: int
    updated: int
    method: str
    body: bytes | None

    @property
    def reference(self) -> str:
        """The relative reference, without the version."""
        return f"{self.type}/{self.id}"

    @property
    def location(self) -> str:
        """The relative location of this version."""
        return f"{self.type}/{self.id}/_history/{self.number}"

    @property
    def content(self) -> Raw:
        """The stored JSON, to be put into a response byte by byte."""
        return Raw(self.body or b"null")


@dataclass(frozen=True, slots=True)
class ResourceRow:
    """The row of a resource, with its key, id and current version; 0 means that no version is stored yet."""

    key: int
    type: str
    id: str
    version: int = 0
    deleted: bool = True

    @property
    def reference(self) -> str:
        """The relative reference."""
        return f"{self.type}/{self.id}"


class Database:
    """All resources, in memory or in the file at `path`; to be used from one thread."""

    def __init__(self, path: str | None = None) -> None:
        self._connection = sqlite3.connect(path or ":memory:", isolation_level=None)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.executescript(_SCHEMA)
        self._depth = 0

    def close(self) -> None:
        """Close the database."""
        self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Store everything that the block writes, or nothing if it raises. A block inside another can fail on its own."""
        begin, commit, rollback = (
            ("SAVEPOINT inner", "RELEASE inner", "ROLLBACK TO inner; RELEASE inner")
            if self._depth
            else ("BEGIN IMMEDIATE", "COMMIT", "ROLLBACK")
        )
        self._connection.execute(begin)
        self._depth += 1
        try:
            yield
        except BaseException:
            for statement in rollback.split("; "):
                self._connection.execute(statement)
            raise
        else:
            self._connection.execute(commit)
        finally:
            self._depth -= 1

    def select(self, sql: str, arguments: Sequence[Any] = ()) -> list[Any]:
        """Return the rows of a query."""
        return self._connection.execute(sql, arguments).fetchall()

    def row(self, resource_type: str, resource_id: str) -> ResourceRow | None:
        """Return the row of a resource, deleted or not."""
        rows = self.select(
            "SELECT key, type, id, version, deleted FROM resource WHERE type = ? AND id = ?",
            (resource_type, resource_id),
        )
        return ResourceRow(*rows[0]) if rows else None

    def version(self, key: int, number: int) -> Version | None:
        """Return one version of a resource."""
        rows = self.select(f"{_VERSION} WHERE v.key = ? AND v.number = ?", (key, number))
        return Version(*rows[0]) if rows else None

    def history(self, key: int) -> list[Version]:
        """Return all versions of a resource, the newest first."""
        return [Version(*row) for row in self.select(f"{_VERSION} WHERE v.key = ? ORDER BY v.number DESC", (key,))]

    def current(self, keys: Sequence[int]) -> list[Version]:
        """Return the current versions of resources in the order of `keys`, without deleted ones."""
        rows = self.select(
            f"{_VERSION} WHERE v.number = r.version AND NOT r.deleted AND r.key IN (SELECT value FROM json_each(?))",
            (encode(keys).decode(),),
        )
        versions = {row[0]: Version(*row) for row in rows}
        return [versions[key] for key in keys if key in versions]

    def add_row(self, resource_type: str, resource_id: str | None = None) -> ResourceRow:
        """Add the row of a new resource; without an id the resource gets the next number."""
        insert = "INSERT INTO resource (type, id) VALUES (?, ?)"
        key = self._connection.execute(insert, (resource_type, resource_id)).lastrowid
        if key is None:
            raise AssertionError("an INSERT has a row id")
        if resource_id is None:
            resource_id = str(key)
            self._connection.execute("UPDATE resource SET id = ? WHERE key = ?", (resource_id, key))
        return ResourceRow(key, resource_type, resource_id)

    def write(self, row: ResourceRow, method: str, resource: JsonObject) -> Version:
        """Store and index the next version of a resource, with its id and `meta`."""
        updated = time_spans.now()
        meta = resource.get("meta") if isinstance(resource.get("meta"), dict) else {}
        own = {"versionId": str(row.version + 1), "lastUpdated": time_spans.format_instant(updated)}
        head = {"resourceType": row.type, "id": row.id, "meta": {**own, **(meta or {}), **own}}
        stored = head | {name: value for name, value in resource.items() if name not in head}
        version = self._add_version(row, updated, method, encode(stored))
        self._index(row, stored)
        return version

    def delete(self, row: ResourceRow) -> Version:
        """Store a deletion as the next version."""
        return self._add_version(row, time_spans.now(), "DELETE", None)

    def _add_version(self, row: ResourceRow, updated: int, method: str, body: bytes | None) -> Version:
        version = Version(row.key, row.type, row.id, row.version + 1, updated, method, body)
        self._connection.execute(
            "INSERT INTO version (key, number, method, updated, body) VALUES (?, ?, ?, ?, ?)",
            (row.key, version.number, method, updated, body),
        )
        self._connection.execute(
            "UPDATE resource SET version = ?, updated = ?, deleted = ? WHERE key = ?",
            (version.number, updated, body is None, row.key),
        )
        if row.version:
            for table in ("token", "date", "reference"):
                self._connection.execute(f"DELETE FROM {table} WHERE key = ?", (row.key,))
        return version

    def _index(self, row: ResourceRow, resource: JsonObject) -> None:
        self._connection.executemany(
            "INSERT INTO token (type, name, system, code, key) VALUES (?, ?, ?, ?, ?)",
            [(row.type, *values, row.key) for values in index_rows.token_rows(resource)],
        )
        self._connection.executemany(
            "INSERT INTO date (type, name, low, high, key) VALUES (?, ?, ?, ?, ?)",
            [(row.type, *values, row.key) for values in index_rows.date_rows(resource)],
        )
        self._connection.executemany(
            "INSERT OR IGNORE INTO reference (path, target_type, target_id, key) VALUES (?, ?, ?, ?)",
            [(target.path, target.type, target.id, row.key) for target in references.local_references(resource)],
        )
