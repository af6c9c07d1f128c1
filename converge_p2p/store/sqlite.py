"""A store in one SQLite file.

Knows: the tables, and durability. Must not know: what keys, values and operations are about.
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
from converge_p2p.store.migrations import migrate
from converge_p2p.store.private_files import make_private_folder
from converge_p2p.store.schema import SCHEMA_VERSION as SCHEMA_VERSION, check_ours
from converge_p2p.store.sqlite_errors import LOCKED, damaged, explained, primary_code, unwritable

_LOAD_ROWS = 256
_ROW_OVERHEAD_BYTES = 512
_REMOVED_BYTES = 2 * 4096
"""What one row that is removed writes into the log at most, whatever its size: a page of the table, one of the index.
"""
_RETRY_S = 0.01


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
        self._busy_ms = busy_ms
        self._lock = threading.RLock()
        self._unchecked_bytes = 0
        self._durable: bool | None = None
        make_private_folder(self.path.parent)
        _make_private(self.path)
        with explained(self.path, "open"):
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

    def delete_many(self, keys: Sequence[str]) -> int:
        """See `KeptStore.delete_many`."""
        for key in keys:
            check_key(key)
        with self._writing("delete", durable=True, size=len(keys) * _REMOVED_BYTES) as connection:
            return sum(connection.execute("DELETE FROM entries WHERE key = ?", (key,)).rowcount for key in keys)

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
        # the log is moved at once: nobody knows how much this writes
        with self._writing("delete_pool", durable=True, size=limits.STORE_WAL_BYTES_MAX) as connection:
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
            raise damaged(self.path, "; ".join(findings))

    def held_bytes(self) -> int:
        """See `KeptStore.held_bytes`. What waits in the write-ahead log is among it."""
        with self._using("measure") as connection:
            pages, free, size = (
                int(connection.execute(f"PRAGMA {name}").fetchone()[0])
                for name in ("page_count", "freelist_count", "page_size")
            )
        return (pages - free) * size

    def close(self) -> None:
        """See `Store.close`."""
        with self._lock:
            connection, self._connection = self._connection, None
            if connection is not None:
                with explained(self.path, "close"):
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
                if primary_code(error) not in LOCKED or time.monotonic() >= give_up_s:
                    raise
                time.sleep(_RETRY_S)

    def _prepare(self, connection: sqlite3.Connection) -> None:
        """Look whose file this is, before anything in it is changed; then make the tables if it is new."""
        # in one transaction, or another process could be seen in the middle of making its tables
        with _transaction(connection, "BEGIN"):
            check_ours(self.path, connection)
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
            migrate(self.path, connection)

    @contextmanager
    def _using(self, what: str) -> Iterator[sqlite3.Connection]:
        with self._lock, explained(self.path, what):
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
            # long enough for the transactions of other processes, too short for readers such as a backup: writes
            # wait with it
            wait_ms = min(self._busy_ms, limits.STORE_CHECKPOINT_BUSY_MS)
            connection.execute(f"PRAGMA busy_timeout = {wait_ms}")
            # a row that says "busy" needs no care: the log is longer for a while, and the next checkpoint moves it all
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except sqlite3.OperationalError:
            # the write before is committed and must not be reported as failed; a full disk shows at the next write
            return
        finally:
            connection.execute(f"PRAGMA busy_timeout = {self._busy_ms}")


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


def _make_private(path: Path) -> None:
    """Make the file with mode 0600, or take others' rights away; SQLite gives its side files the same mode."""
    try:
        try:
            # only a new file is opened here: closing one that this process has open elsewhere would drop SQLite's locks
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            if path.stat().st_mode & 0o077:
                path.chmod(0o600)
        for each in (path, path.parent):
            # SQLite opens what it cannot write for reading, and says so at the first write only
            if not os.access(each, os.W_OK):
                raise unwritable(path, "open", f"{each} is read-only")
    except OSError as error:
        raise StoreError(
            f"cannot open store {path}: {error.strerror}", hint="check the path, its owner and its mode"
        ) from error
