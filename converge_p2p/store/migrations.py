"""Brings a database to the newest version of its schema, and keeps a copy of what was there before.

Knows: the order: copy, then change. Must not know: the tables (see `schema`).
Source: docs/operations.md, schema versions.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from converge_p2p.store import schema
from converge_p2p.store.copies import copy_database, remove_left_over


def migrate(path: Path, connection: sqlite3.Connection) -> None:
    """Bring a file to the newest version. To be called in a transaction that holds the write lock.

    A file that holds something is copied to `backup_before` first: nobody else can write meanwhile, so the copy is what
    the older program left.

    Raises:
        StoreError: as `check_ours`, or there is no room for the copy; the file is as it was.
    """
    version = schema.check_ours(path, connection)
    steps = [step for step in schema.STEPS if step.version > version]
    if not steps:
        return
    if version:
        backup = backup_before(path, version)
        remove_left_over(backup)
        copy_database(path, backup, replace=True)
    for step in steps:
        for statement in step.statements:
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {step.version}")


def backup_before(path: Path, version: int) -> Path:
    """Return where a file of an older version is kept when it is brought to a newer one."""
    return path.with_name(f"{path.name}.v{version}")
