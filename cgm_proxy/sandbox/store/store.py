"""Versions of resources in SQLite, and the index by which they are found.

Nothing is ever changed in `version`: an update adds a row, a deletion adds one without a body. A commit is on the disk
before it returns (write-ahead log, synchronous=FULL), so that what was answered outlives the process and the machine.
"""

# ruff: noqa: S608 -- the SQL is put together from this file's constants; values are always arguments

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from cgm_proxy.core.json_values import JsonObject
from cgm_proxy.sandbox.store import indexes, moments, references, wire

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
CREATE TABLE IF NOT EXISTS link (
    target_id TEXT NOT NULL, target_type TEXT NOT NULL, path TEXT NOT NULL, key INTEGER NOT NULL,
    PRIMARY KEY (target_id, target_type, path, key)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS token_key ON token (key);
CREATE INDEX IF NOT EXISTS date_key ON date (key);
CREATE INDEX IF NOT EXISTS link_key ON link (key);
"""

_VERSION = """
SELECT r.key, r.type, r.id, v.number, v.updated, v.method, v.body
FROM resource r JOIN version v ON v.key = r.key
"""


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a resource as it is stored; `body` is None for a deletion, `updated` milliseconds since 1970."""

    key: int
    type: str
    id: str
    number: int
    updated: int
    method: str
    body: bytes | None

    @property
    def reference(self) -> str:
        """The relative reference without version."""
        return f"{self.type}/{self.id}"

    @property
    def location(self) -> str:
        """The relative location of this version."""
        return f"{self.type}/{self.id}/_history/{self.number}"

    @property
    def content(self) -> wire.Raw:
        """The stored JSON, to be put into an answer as it is."""
        return wire.Raw(self.body or b"null")


@dataclass(frozen=True, slots=True)
class Slot:
    """The place of a resource, whether or not anything is stored there yet; `version` 0 is none."""

    key: int
    type: str
    id: str
    version: int = 0
    deleted: bool = True

    @property
    def reference(self) -> str:
        """The relative reference."""
        return f"{self.type}/{self.id}"


class Store:
    """All resources, in memory or in the file at `path`; used from one thread."""

    def __init__(self, path: str | None = None) -> None:
        self._database = sqlite3.connect(path or ":memory:", isolation_level=None)
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = FULL")
        self._database.executescript(_SCHEMA)
        self._depth = 0

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    @contextmanager
    def atomic(self) -> Iterator[None]:
        """Keep all or nothing of what the block writes; a block inside another can fail on its own."""
        begin, keep, undo = (
            ("SAVEPOINT inner", "RELEASE inner", "ROLLBACK TO inner; RELEASE inner")
            if self._depth
            else ("BEGIN IMMEDIATE", "COMMIT", "ROLLBACK")
        )
        self._database.execute(begin)
        self._depth += 1
        try:
            yield
        except BaseException:
            for statement in undo.split("; "):
                self._database.execute(statement)
            raise
        else:
            self._database.execute(keep)
        finally:
            self._depth -= 1

    def select(self, sql: str, arguments: Sequence[Any] = ()) -> list[Any]:
        """Run a query and give its rows."""
        return self._database.execute(sql, arguments).fetchall()

    def slot(self, resource_type: str, resource_id: str) -> Slot | None:
        """Find the place of a resource, deleted or not."""
        rows = self.select(
            "SELECT key, type, id, version, deleted FROM resource WHERE type = ? AND id = ?",
            (resource_type, resource_id),
        )
        return Slot(*rows[0]) if rows else None

    def version(self, key: int, number: int) -> Version | None:
        """Find one version of a resource."""
        rows = self.select(f"{_VERSION} WHERE v.key = ? AND v.number = ?", (key, number))
        return Version(*rows[0]) if rows else None

    def history(self, key: int) -> list[Version]:
        """Give all versions of a resource, the newest first."""
        return [Version(*row) for row in self.select(f"{_VERSION} WHERE v.key = ? ORDER BY v.number DESC", (key,))]

    def current(self, keys: Sequence[int]) -> list[Version]:
        """Give the current versions of resources in the order of `keys`, leaving out the deleted ones."""
        wanted = wire.encode(keys).decode()
        rows = self.select(
            f"{_VERSION} WHERE v.number = r.version AND NOT r.deleted AND r.key IN (SELECT value FROM json_each(?))",
            (wanted,),
        )
        found = {row[0]: Version(*row) for row in rows}
        return [found[key] for key in keys if key in found]

    def allocate(self, resource_type: str, resource_id: str | None = None) -> Slot:
        """Make the place of a new resource; without an id it gets the next number."""
        insert = "INSERT INTO resource (type, id) VALUES (?, ?)"
        key = self._database.execute(insert, (resource_type, resource_id)).lastrowid
        if key is None:
            raise AssertionError("an INSERT has a row id")
        if resource_id is None:
            resource_id = str(key)
            self._database.execute("UPDATE resource SET id = ? WHERE key = ?", (resource_id, key))
        return Slot(key, resource_type, resource_id)

    def write(self, slot: Slot, method: str, resource: JsonObject) -> Version:
        """Store the next version of a resource, with its id and `meta`, and index it."""
        updated = moments.now()
        meta = resource.get("meta") if isinstance(resource.get("meta"), dict) else {}
        stamp = {"versionId": str(slot.version + 1), "lastUpdated": moments.instant(updated)}
        head = {"resourceType": slot.type, "id": slot.id, "meta": {**stamp, **(meta or {}), **stamp}}
        stored = head | {name: value for name, value in resource.items() if name not in head}
        version = self._add(slot, updated, method, wire.encode(stored))
        self._index(slot, stored)
        return version

    def delete(self, slot: Slot) -> Version:
        """Store a deletion as the next version."""
        return self._add(slot, moments.now(), "DELETE", None)

    def _add(self, slot: Slot, updated: int, method: str, body: bytes | None) -> Version:
        version = Version(slot.key, slot.type, slot.id, slot.version + 1, updated, method, body)
        self._database.execute(
            "INSERT INTO version (key, number, method, updated, body) VALUES (?, ?, ?, ?, ?)",
            (slot.key, version.number, method, updated, body),
        )
        self._database.execute(
            "UPDATE resource SET version = ?, updated = ?, deleted = ? WHERE key = ?",
            (version.number, updated, body is None, slot.key),
        )
        if slot.version:
            for table in ("token", "date", "link"):
                self._database.execute(f"DELETE FROM {table} WHERE key = ?", (slot.key,))
        return version

    def _index(self, slot: Slot, resource: JsonObject) -> None:
        kind, key, many = slot.type, slot.key, self._database.executemany
        many(
            "INSERT INTO token (type, name, system, code, key) VALUES (?, ?, ?, ?, ?)",
            [(kind, *row, key) for row in indexes.tokens(resource)],
        )
        many(
            "INSERT INTO date (type, name, low, high, key) VALUES (?, ?, ?, ?, ?)",
            [(kind, *row, key) for row in indexes.dates(resource)],
        )
        many(
            "INSERT OR IGNORE INTO link (path, target_type, target_id, key) VALUES (?, ?, ?, ?)",
            [(link.path, link.type, link.id, key) for link in references.links(resource)],
        )
