"""Database files as a whole: read, copied, checked, shrunk, and rescued, without being opened as a store.

Knows: the tables. Must not know: what keys and operations are about; other files of a node (see `node.archive`).
Source: sqlite.org/backup.html, /wal.html#read_only_databases, /lang_vacuum.html.

Nothing here migrates: a file of an older version stays one.
"""

from __future__ import annotations

import glob
import os
import secrets
import shutil
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from converge_p2p.core import limits
from converge_p2p.core.errors import Conflict, NotFound, StoreError
from converge_p2p.core.types import OperationId, PoolId
from converge_p2p.store.private_files import sync_folder
from converge_p2p.store.schema import SNAPSHOTS_SINCE, STEPS, check_ours
from converge_p2p.store.sqlite_errors import DAMAGED, damaged, explained, primary_code, unwritable

_READ_ROWS = 256
_FINDINGS_MAX = 16


class DatabaseReader:
    """Reads a database while others write it. Nothing is changed. Every method raises `StoreError` where it is damaged.

    Attributes:
        path: the file.
        version: of its schema.
    """

    def __init__(self, path: Path) -> None:
        """Open a file.

        Raises:
            NotFound: there is none.
            StoreError: no database of this library, of a newer version, damaged, or not readable.
        """
        self.path = path.absolute()
        if not self.path.is_file():
            raise NotFound(f"there is no database {self.path}", hint="name another folder with --home DIR")
        with explained(self.path, "read"):
            self._connection = _open_to_read(self.path)
            try:
                self.version = check_ours(self.path, self._connection)
            except BaseException:
                self._connection.close()
                raise

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    @property
    def free_bytes(self) -> int:
        """Bytes inside the file that hold nothing."""
        return self._number("PRAGMA freelist_count") * self._number("PRAGMA page_size")

    def check(self) -> list[str]:
        """Read the whole file, and return what is wrong with its structure: at most 16 findings."""
        with explained(self.path, "check"):
            return _findings(self._connection)

    def value(self, key: str) -> bytes | None:
        """Return the value of a key, or None."""
        with explained(self.path, "read"):
            row = self._connection.execute("SELECT value FROM entries WHERE key = ?", (key,)).fetchone()
        return None if row is None else bytes(row[0])

    def keys(self, prefix: str) -> list[str]:
        """Return the keys that begin with `prefix`, sorted."""
        with explained(self.path, "read"):
            rows = self._connection.execute("SELECT key FROM entries WHERE key >= ? ORDER BY key", (prefix,))
            return [str(row[0]) for row in rows if row[0].startswith(prefix)]

    def counts(self) -> dict[PoolId, int]:
        """Return how many operations there are of each pool that has some."""
        with explained(self.path, "read"):
            return {
                PoolId(row[0]): int(row[1])
                for row in self._connection.execute("SELECT pool, count(*) FROM operations GROUP BY pool")
            }

    def operations(self) -> Iterator[tuple[PoolId, OperationId, bytes]]:
        """Yield all operations in the order they were added."""
        last = -1
        while True:
            with explained(self.path, "read"):
                rows = self._connection.execute(
                    "SELECT row, pool, id, data FROM operations WHERE row > ? ORDER BY row LIMIT ?", (last, _READ_ROWS)
                ).fetchall()
            if not rows:
                return
            last = rows[-1][0]
            yield from ((PoolId(pool), OperationId(name), data) for _, pool, name, data in rows)

    def snapshots(self) -> Iterator[tuple[PoolId, bytes]]:
        """Yield the snapshot of each pool that has one."""
        if self.version < SNAPSHOTS_SINCE:
            return
        with explained(self.path, "read"):
            for pool, data in self._connection.execute("SELECT pool, data FROM snapshots ORDER BY pool"):
                yield PoolId(pool), data

    def copy_to(self, target: Path) -> None:
        """Write what the database holds now to a file of its own, with mode 0600; it is synced.

        Writers go on meanwhile: the copy is of one moment. See `copy_database` for a name that is whole or absent.
        """
        _need_room(self.path, target.parent)
        os.close(os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        with explained(target, "copy"), closing(sqlite3.connect(target, isolation_level=None)) as copy:
            # in one step: in several, each write of another process would begin it anew
            self._connection.backup(copy)
            # the mode of the original; without it the copy is one file
            copy.execute("PRAGMA journal_mode = DELETE").fetchone()
        _sync(target)

    def _number(self, pragma: str) -> int:
        with explained(self.path, "read"):
            return int(self._connection.execute(pragma).fetchone()[0])


@contextmanager
def reading(path: Path) -> Iterator[DatabaseReader]:
    """Open a database to read while the block runs. Raises as `DatabaseReader`."""
    reader = DatabaseReader(path)
    try:
        yield reader
    finally:
        reader.close()


def copy_database(source: Path, target: Path, *, replace: bool = False) -> None:
    """Copy a database, also while it is used, so that the copy is whole or absent.

    Raises:
        Conflict: the target exists and `replace` is False.
        NotFound, StoreError: the source cannot be read, or the target not be written.
    """
    with _published(target, replace=replace) as temporary, reading(source) as reader:
        reader.copy_to(temporary)


def remove_left_over(target: Path) -> None:
    """Remove what copies to this name left behind that were cut off. To be called where nobody else makes one now.

    A node that is ended again and again in the middle of the same copy would fill its disk.
    """
    for left_over in target.parent.glob(f".{glob.escape(target.name)}.*.new*"):
        left_over.unlink(missing_ok=True)


def salvage_database(source: Path, target: Path) -> int:
    """Copy what can still be read of a damaged database, row by row; return how many rows were given up.

    Which rows there were is asked of the table, and of its index where the table cannot be read. SQLite keeps no
    checksums, so a cell may be wrong without a word: what can be checked has to be checked in the copy.

    Raises:
        Conflict: the target exists.
        NotFound, StoreError: nothing can be read, or the target not be written.
    """
    with _published(target, replace=False) as temporary, reading(source) as reader:
        damaged_one = reader._connection
        os.close(os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        with explained(target, "copy"), closing(sqlite3.connect(temporary, isolation_level=None)) as copy:
            copy.execute("BEGIN")
            for step in STEPS[: reader.version]:
                for statement in step.statements:
                    copy.execute(statement)
                copy.execute(f"PRAGMA user_version = {step.version}")
            lost = _rescue(damaged_one, copy, "entries", "rowid, key, value", "sqlite_autoindex_entries_1")
            lost += _rescue(damaged_one, copy, "operations", "row, pool, id, data", "operations_by_pool")
            if reader.version >= SNAPSHOTS_SINCE:
                lost += _rescue(damaged_one, copy, "snapshots", "rowid, pool, data", "sqlite_autoindex_snapshots_1")
            copy.execute("COMMIT")
        _sync(temporary)
    return lost


@dataclass(frozen=True, slots=True)
class Edit:
    """What is changed in a file that nobody uses.

    Attributes:
        put: values to set.
        drop_keys, drop_operations, drop_pools: what is removed; of a pool, its operations and its snapshot.
        drop_snapshots: of these pools.
    """

    put: Mapping[str, bytes] = field(default_factory=dict)
    drop_keys: Sequence[str] = ()
    drop_operations: Sequence[tuple[PoolId, OperationId]] = ()
    drop_snapshots: Sequence[PoolId] = ()
    drop_pools: Sequence[PoolId] = ()


def edit_database(path: Path, edit: Edit) -> None:
    """Carry out a change: all of it, or nothing.

    Raises:
        StoreError: it cannot be written.
    """
    pools = [(pool,) for pool in edit.drop_pools]
    with explained(path, "write"), closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("BEGIN IMMEDIATE")
        version = check_ours(path, connection)
        connection.executemany("DELETE FROM entries WHERE key = ?", [(key,) for key in edit.drop_keys])
        connection.executemany("DELETE FROM operations WHERE pool = ? AND id = ?", edit.drop_operations)
        connection.executemany("DELETE FROM operations WHERE pool = ?", pools)
        if version >= SNAPSHOTS_SINCE:
            gone = pools + [(pool,) for pool in edit.drop_snapshots]
            connection.executemany("DELETE FROM snapshots WHERE pool = ?", gone)
        connection.executemany(
            "INSERT INTO entries VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value", edit.put.items()
        )
        connection.execute("COMMIT")


def shrink_database(path: Path) -> None:
    """Write a database anew without the room that it no longer uses. Whatever happens, it is the old or the new one.

    Raises:
        StoreError: it is damaged or used by somebody, or there is no room for a second one meanwhile.
    """
    if not os.access(path, os.W_OK):
        raise unwritable(path, "compact", "it is read-only")
    _need_room(path, path.parent)
    with explained(path, "compact"), closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA busy_timeout = {limits.STORE_BUSY_MS}")
        # what is damaged must not be written anew: it would look whole
        if findings := _findings(connection):
            raise damaged(path, findings[0])
        connection.execute("VACUUM")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def _open_to_read(path: Path) -> sqlite3.Connection:
    log = path.with_name(f"{path.name}-wal")
    # who only reads leaves behind the log that it had to make; who could write takes an empty one away again
    mode = "ro" if log.exists() else "rw"
    connection = sqlite3.connect(
        f"{path.as_uri()}?mode={mode}", uri=True, isolation_level=None, timeout=limits.STORE_BUSY_MS / 1000
    )
    try:
        connection.execute("PRAGMA query_only = ON")
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        return connection
    except sqlite3.OperationalError:
        connection.close()
        if os.access(path.parent, os.W_OK) or (log.exists() and log.stat().st_size):
            raise
    # on a read-only disk the log cannot be made; without one there is nothing in it either
    return sqlite3.connect(f"{path.as_uri()}?mode=ro&immutable=1", uri=True, isolation_level=None)


@contextmanager
def _published(target: Path, *, replace: bool) -> Iterator[Path]:
    """Give a temporary name; what is there afterwards gets the real one."""
    if not replace and target.exists():
        raise Conflict(f"{target} exists already", hint="choose another path; it was not changed")
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.new")
    try:
        yield temporary
        temporary.replace(target)
        sync_folder(target.parent)
    except OSError as error:
        raise StoreError(
            f"cannot write {target}: {error.strerror}", hint="check the folder's owner and space"
        ) from error
    finally:
        for suffix in ("", "-journal", "-wal", "-shm"):
            temporary.with_name(temporary.name + suffix).unlink(missing_ok=True)


def _need_room(path: Path, folder: Path) -> None:
    """Check that a second database like this one fits into a folder."""
    log = path.with_name(f"{path.name}-wal")
    needed = path.stat().st_size + (log.stat().st_size if log.exists() else 0)
    free = _free_bytes(folder)
    if free < needed:
        raise StoreError(
            f"{folder} has {free} bytes free, and {needed} are needed",
            hint="free space on the disk; nothing was changed",
        )


def _findings(connection: sqlite3.Connection) -> list[str]:
    found: list[str] = []
    try:
        for (line,) in connection.execute(f"PRAGMA integrity_check({_FINDINGS_MAX})"):
            found.append(str(line))
    except sqlite3.DatabaseError as error:
        # where the damage is bad enough, the check itself ends with this error
        if primary_code(error) not in DAMAGED:
            raise
        found.append(str(error))
    return [] if found == ["ok"] else found


def _free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def _rescue(source: sqlite3.Connection, copy: sqlite3.Connection, table: str, columns: str, index: str) -> int:
    row = columns.split(",")[0]
    known: set[int] = set()
    for hint in ("NOT INDEXED", f"INDEXED BY {index}"):
        order = row if hint == "NOT INDEXED" else "1"
        try:
            cursor = source.execute(f"SELECT {row} FROM {table} {hint} ORDER BY {order}")
            known.update(found for (found,) in cursor)
        except sqlite3.DatabaseError:
            # what was read before the damaged page was taken
            continue
    marks = ", ".join("?" * len(columns.split(",")))
    lost = 0
    for number in sorted(known):
        try:
            found = source.execute(f"SELECT {columns} FROM {table} NOT INDEXED WHERE {row} = ?", (number,)).fetchone()
        except sqlite3.DatabaseError:
            found = None
        # types are checked, or a damaged cell could become a key that no store would take
        if found is None or any(part is None for part in found):
            lost += 1
            continue
        copy.execute(f"INSERT OR IGNORE INTO {table} ({columns}) VALUES ({marks})", found)
    return lost


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
