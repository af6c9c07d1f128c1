"""What SQLite's errors mean, and what to do about each.

Knows: SQLite's codes. Must not know: what is in the database.
Source: sqlite.org/rescode.html.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from converge_p2p.core.errors import StoreError

LOCKED = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_UNWRITABLE = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM)
_KEPT = "nothing that was acknowledged is lost"


@contextmanager
def explained(path: Path, what: str) -> Iterator[None]:
    """Run the block, and say in words what SQLite reports.

    Raises:
        StoreError: instead of SQLite's errors.
    """
    try:
        yield
    except sqlite3.Error as error:
        raise _store_error(path, what, error) from error


def damaged(path: Path, finding: str) -> StoreError:
    """Return the error for a file in which something is wrong."""
    return StoreError(
        f"{path} is damaged: {finding}",
        hint="stop the node, move the file and its -wal and -shm away, then restore a backup or sync from peers; "
        "`store backup --salvage` saves what can still be read",
    )


def unwritable(path: Path, what: str, reason: str) -> StoreError:
    """Return the error for a file that cannot be written."""
    return StoreError(
        f"{what}: cannot write {path}: {reason}",
        hint=f"check owner and mode of file and folder, and that the disk is not mounted read-only; {_KEPT}",
    )


def primary_code(error: sqlite3.Error) -> int:
    """Return the primary code of an error, 0 if it has none."""
    # the low byte is the primary code; the rest only refines it
    return (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF


def _store_error(path: Path, what: str, error: sqlite3.Error) -> StoreError:
    code = primary_code(error)
    if code in DAMAGED:
        return damaged(path, str(error))
    if code in LOCKED:
        return StoreError(
            f"{what}: {path} is locked by another process", hint="stop whatever holds it, or give it more time"
        )
    if code == sqlite3.SQLITE_FULL:
        return StoreError(f"{what}: no space left for {path}", hint=f"free space on the disk, then try again; {_KEPT}")
    if code in _UNWRITABLE:
        return unwritable(path, what, str(error))
    if code == sqlite3.SQLITE_IOERR:
        return StoreError(
            f"{what}: the disk of {path} fails: {error}",
            hint=f"look into the system's log for the disk, make a backup, then check with `store verify`; {_KEPT}",
        )
    return StoreError(f"{what}: {path}: {error}")
