"""A store in one SQLite file.

Knows: the schema, durability, and what SQLite's errors mean. Must not know: what keys, values and operations are about.
Source: sqlite.org/wal.html, /pragma.html#pragma_synchronous; the choice of binding is decision record 0003.

One connection under one lock: SQLite has one writer at a time anyway, and a node calls from worker threads. Other
processes may use the same file; SQLite's own locks stand between them.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from converge_p2p.core import limits
from converge_p2p.core.errors import StoreError
from converge_p2p.core.types import OperationId, PoolId
from converge_p2p.store.api import Batch, PoolIds, check_batches, check_compaction, check_key, check_prefix, check_value
from converge_p2p.store.private_files import make_private_folder

SCHEMA_VERSION = 2
APPLICATION_ID = 0x43563250
"""Marks the file as one of ours ("CV2P"), so that no other program's database is ever written into."""

_SCHEMA = (
    "CREATE TABLE entries (key TEXT PRIMARY KEY NOT NULL, value BLOB NOT NULL)",
    # the row number is the order of insertion: a new one is above all that are there
    "CREATE TABLE operations (row INTEGER PRIMARY KEY, pool BLOB NOT NULL, id BLOB NOT NULL, data BLOB NOT NULL)",
    "CREATE UNIQUE INDEX operations_by_id ON operations (pool, id)",
    "CREATE INDEX operations_by_pool ON operations (pool, row)",
)
_SINCE_2 = ("CREATE TABLE snapshots (pool BLOB PRIMARY KEY NOT NULL, data BLOB NOT NULL)",)
"""What version 2 added. Everything else is as it was, so an older file only gets the table."""

_LOAD_ROWS = 256
_ROW_OVERHEAD_BYTES = 512
_RETRY_S = 0.01
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_LOCKED = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


class SqliteStore:
    """Implements `Store` and `OperationStore` in one file, with mode 0600.

    Keys and values are always written durably. So are operations appended with `durable=True`; the others survive a
    crash of the process; a loss of power may take the newest of them, never an older one while a newer one stays.
    """

    def __init__(self, path: str | Path, *, busy_ms: int = limits.STORE_BUSY_MS) -> None:
        """Open the file, or make it with the folders above it.

        Args:
            path: where.
            busy_ms: how long to wait for other processes before an error.

        Raises:
            StoreError: damaged, no database of this library, of a newer version, locked, or not writable.
        """
        self.path = Path(path).absolute()
        self._lock = threading.RLock()
        self._unchecked_bytes = 0
        self._durable: bool | None = None
        make_private_folder(self.path.parent)
        _make_private(self.path)
        with self._explained("open"):
            self._connection: sqlite3.Connection | None = sqlite3.connect(
                self.path, timeout=busy_ms / 1000, isolation_level=None, check_same_thread=False
            )
            try:
                self._prepare_patiently(self._connection, busy_ms)
            except BaseException:
                self._connection.close()
                raise

    def put(self, key: str, value: bytes) -> None:
        """See `Store.put`."""
        check_key(key)
        check_value(value)
        with self._writing("put", durable=True, size=len(value)) as connection:
            connection.execute(
                "INSERT INTO entries VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value", (key, value)
            )

    def get(self, key: str) -> bytes | None:
        """See `Store.get`."""
        check_key(key)
        with self._using("get") as connection:
            row = connection.execute("SELECT value FROM entries WHERE key = ?", (key,)).fetchone()
        return None if row is None else row[0]

    def delete(self, key: str) -> bool:
        """See `Store.delete`."""
        check_key(key)
        with self._writing("delete", durable=True) as connection:
            return connection.execute("DELETE FROM entries WHERE key = ?", (key,)).rowcount == 1

    def list(self, prefix: str = "") -> list[str]:
        """See `Store.list`."""
        check_prefix(prefix)
        keys = []
        with self._using("list") as connection:
            # UTF-8 sorts like code points, so the keys with one prefix stand together, beginning at the prefix itself
            for (key,) in connection.execute("SELECT key FROM entries WHERE key >= ? ORDER BY key", (prefix,)):
                if not key.startswith(prefix):
                    break
                keys.append(key)
        return keys

    def put_if_absent(self, key: str, value: bytes) -> bool:
        """See `Store.put_if_absent`."""
        check_key(key)
        check_value(value)
        with self._writing("put_if_absent", durable=True, size=len(value)) as connection:
            # one statement under the file's write lock; the row count says whether this call wrote it
            done = connection.execute("INSERT INTO entries VALUES (?, ?) ON CONFLICT (key) DO NOTHING", (key, value))
            return done.rowcount == 1

    def append(self, pool: PoolId, operations: Sequence[tuple[OperationId, bytes]], *, durable: bool) -> None:
        """See `OperationStore.append`."""
        self.append_many([(pool, operations)], durable=durable)

    def append_many(self, batches: Sequence[Batch], *, durable: bool) -> None:
        """See `OperationStore.append_many`."""
        check_batches(batches)
        rows = [(pool, operation_id, data) for pool, operations in batches for operation_id, data in operations]
        if not rows:
            return
        size = sum(len(data) + _ROW_OVERHEAD_BYTES for _, _, data in rows)
        with self._writing("append", durable=durable, size=size) as connection:
            connection.executemany(
                "INSERT INTO operations (pool, id, data) VALUES (?, ?, ?) ON CONFLICT (pool, id) DO NOTHING", rows
            )

    def load(self, pool: PoolId) -> Iterator[bytes]:
        """See `OperationStore.load`. Reads a page at a time, so that writers need not wait for a slow reader."""
        last = -1
        while True:
            with self._using("load") as connection:
                rows = connection.execute(
                    "SELECT row, data FROM operations WHERE pool = ? AND row > ? ORDER BY row LIMIT ?",
                    (pool, last, _LOAD_ROWS),
                ).fetchall()
            if not rows:
                return
            last = rows[-1][0]
            yield from (data for _, data in rows)

    def compact(self, pool: PoolId, snapshot: bytes, drop: Sequence[OperationId], entries: Mapping[str, bytes]) -> None:
        """See `OperationStore.compact`."""
        check_compaction(pool, snapshot, entries)
        with self._writing("compact", durable=True, size=len(snapshot)) as connection:
            connection.execute(
                "INSERT INTO snapshots VALUES (?, ?) ON CONFLICT (pool) DO UPDATE SET data = excluded.data",
                (pool, snapshot),
            )
            connection.executemany(
                "DELETE FROM operations WHERE pool = ? AND id = ?", ((pool, operation_id) for operation_id in drop)
            )
            connection.executemany(
                "INSERT INTO entries VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
                entries.items(),
            )

    def snapshot(self, pool: PoolId) -> bytes | None:
        """See `OperationStore.snapshot`."""
        with self._using("snapshot") as connection:
            row = connection.execute("SELECT data FROM snapshots WHERE pool = ?", (pool,)).fetchone()
        return None if row is None else row[0]

    def pools(self) -> PoolIds:
        """See `OperationStore.pools`."""
        found: set[PoolId] = set()
        with self._using("pools") as connection:
            # one step through the index for each pool; DISTINCT would read the whole index
            last = b""
            while row := connection.execute(
                "SELECT pool FROM operations WHERE pool > ? ORDER BY pool LIMIT 1", (last,)
            ).fetchone():
                last = row[0]
                found.add(PoolId(last))
            found.update(PoolId(row[0]) for row in connection.execute("SELECT pool FROM snapshots"))
        return sorted(found)

    def count(self, pool: PoolId) -> int:
        """See `OperationStore.count`."""
        with self._using("count") as connection:
            return int(connection.execute("SELECT count(*) FROM operations WHERE pool = ?", (pool,)).fetchone()[0])

    def delete_pool(self, pool: PoolId) -> int:
        """See `OperationStore.delete_pool`."""
        with self._writing("delete_pool", durable=True) as connection:
            connection.execute("DELETE FROM snapshots WHERE pool = ?", (pool,))
            return connection.execute("DELETE FROM operations WHERE pool = ?", (pool,)).rowcount

    def check_integrity(self) -> None:
        """Read the whole file and check its structure. Takes long on a large store.

        Raises:
            StoreError: damaged.
        """
        with self._using("check") as connection:
            findings = [row[0] for row in connection.execute("PRAGMA integrity_check(5)")]
        if findings != ["ok"]:
            raise _damaged(self.path, "; ".join(findings))

    def close(self) -> None:
        """See `Store.close`."""
        with self._lock:
            connection, self._connection = self._connection, None
            if connection is not None:
                with self._explained("close"):
                    connection.close()

    def _prepare_patiently(self, connection: sqlite3.Connection, busy_ms: int) -> None:
        """Prepare, and try again while others are at it.

        SQLite does not wait, whatever its timeout says, when two connections switch a new file to a write-ahead log.
        """
        give_up_s = time.monotonic() + busy_ms / 1000
        while True:
            try:
                self._prepare(connection)
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF not in _LOCKED or time.monotonic() >= give_up_s:
                    raise
                time.sleep(_RETRY_S)

    def _prepare(self, connection: sqlite3.Connection) -> None:
        """Look whose file this is, before anything in it is changed; then make the tables if it is new."""
        # in one transaction, or another process could be seen in the middle of making its tables
        with _transaction(connection, "BEGIN"):
            _check_ours(self.path, connection)
        connection.execute("PRAGMA trusted_schema = OFF")
        mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if mode != "wal":
            raise StoreError(
                f"{self.path} cannot use a write-ahead log (journal mode is {mode})",
                hint="put the store on a local file system",
            )
        # checkpoints are run by `_checkpoint`, which says why
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        connection.execute("PRAGMA synchronous = FULL")
        with _transaction(connection, "BEGIN IMMEDIATE"):
            # another process may have made the tables since the first look
            version = _check_ours(self.path, connection)
            if version == 0:
                for statement in _SCHEMA:
                    connection.execute(statement)
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            if version < SCHEMA_VERSION:
                for statement in _SINCE_2:
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    @contextmanager
    def _using(self, what: str) -> Iterator[sqlite3.Connection]:
        with self._lock, self._explained(what):
            if self._connection is None:
                raise StoreError("the store is closed")
            yield self._connection

    @contextmanager
    def _writing(self, what: str, *, durable: bool, size: int = 0) -> Iterator[sqlite3.Connection]:
        """Run the block in one transaction: committed when it ends, undone if it raises."""
        with self._using(what) as connection:
            if durable is not self._durable:
                # FULL syncs the log at each commit, and with it every commit before; NORMAL only at checkpoints
                connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
                self._durable = durable
            with _transaction(connection, "BEGIN IMMEDIATE"):
                yield connection
            self._unchecked_bytes += size + _ROW_OVERHEAD_BYTES
            if self._unchecked_bytes >= limits.STORE_WAL_BYTES_MAX:
                self._checkpoint(connection)

    def _checkpoint(self, connection: sqlite3.Connection) -> None:
        """Move the log into the database.

        SQLite from 3.7.0 to 3.51.2 can corrupt a file if one connection starts the log anew while another moves it.
        SQLite's automatic checkpoints leave room for that; this kind holds the write lock throughout.
        """
        self._unchecked_bytes = 0
        try:
            # a row that says "busy" needs no care: the log is longer for a while, and the next checkpoint moves it all
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except sqlite3.OperationalError:
            # the write before is committed and must not be reported as failed; a full disk shows at the next write
            return

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise _store_error(self.path, what, error) from error


@contextmanager
def _transaction(connection: sqlite3.Connection, begin: str) -> Iterator[None]:
    connection.execute(begin)
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # some errors, such as a full disk, have already undone it
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _check_ours(path: Path, connection: sqlite3.Connection) -> int:
    """Return the schema version, 0 for an empty file."""
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    application = int(connection.execute("PRAGMA application_id").fetchone()[0])
    tables = int(connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0])
    if application == 0 and version == 0 and tables == 0:
        return 0
    if application != APPLICATION_ID:
        raise StoreError(
            f"{path} is a database of another program; it was not changed", hint="give another path for the store"
        )
    if version > SCHEMA_VERSION:
        raise StoreError(
            f"{path} has schema version {version}; this program knows versions up to {SCHEMA_VERSION}",
            hint="use the newer program that wrote it, or restore the backup made before its migration",
        )
    return version


def _make_private(path: Path) -> None:
    """Make the file with mode 0600, or take others' rights away; SQLite gives its side files the same mode."""
    try:
        try:
            # only a new file is opened here: closing one that this process has open elsewhere would drop SQLite's locks
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            if path.stat().st_mode & 0o077:
                path.chmod(0o600)
    except OSError as error:
        raise StoreError(
            f"cannot open store {path}: {error.strerror}", hint="check the path, its owner and its mode"
        ) from error


def _damaged(path: Path, finding: str) -> StoreError:
    return StoreError(
        f"{path} is damaged: {finding}",
        hint="stop the node, move the file and its -wal and -shm away, then restore a backup or sync from peers",
    )


def _store_error(path: Path, what: str, error: sqlite3.Error) -> StoreError:
    # the low byte is the primary code; the rest only refines it
    code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
    if code in _DAMAGED:
        return _damaged(path, str(error))
    if code in _LOCKED:
        return StoreError(
            f"{what}: {path} is locked by another process", hint="stop whatever holds it, or give it more time"
        )
    if code == sqlite3.SQLITE_FULL:
        return StoreError(f"{what}: no space left for {path}", hint="free space on the disk, then try again")
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return StoreError(f"{what}: cannot write {path}: {error}", hint="check the owner and mode of file and folder")
    return StoreError(f"{what}: {path}: {error}")
