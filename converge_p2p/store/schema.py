"""The schema of the database: one numbered step from each version to the next.

Knows: the tables of each version. Must not know: what is in them, or how a file is
brought to another (see `migrations`).
Source: sqlite.org/pragma.html#pragma_user_version; docs/operations.md, schema versions.

A step is never changed once it was released: files that it made are out there. A new version is a new step at the end.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final, NamedTuple

from converge_p2p.core.errors import StoreError

APPLICATION_ID: Final = 0x43563250
"""Marks the file as one of ours ("CV2P"), so that no other program's database is ever written into."""


class Step(NamedTuple):
    """What leads to a version from the one before.

    Attributes:
        version: the version it leads to.
        statements: run in order, in one transaction with all other steps.
    """

    version: int
    statements: tuple[str, ...]


SNAPSHOTS_SINCE: Final = 2

STEPS: tuple[Step, ...] = (
    Step(
        1,
        (
            f"PRAGMA application_id = {APPLICATION_ID}",
            "CREATE TABLE entries (key TEXT PRIMARY KEY NOT NULL, value BLOB NOT NULL)",
            # the row number is the order of insertion: a new one is above all that are there
            "CREATE TABLE operations (row INTEGER PRIMARY KEY, pool BLOB NOT NULL, id BLOB NOT NULL, "
            "data BLOB NOT NULL)",
            "CREATE UNIQUE INDEX operations_by_id ON operations (pool, id)",
            "CREATE INDEX operations_by_pool ON operations (pool, row)",
        ),
    ),
    Step(SNAPSHOTS_SINCE, ("CREATE TABLE snapshots (pool BLOB PRIMARY KEY NOT NULL, data BLOB NOT NULL)",)),
)
SCHEMA_VERSION: Final = STEPS[-1].version
assert [step.version for step in STEPS] == list(range(1, len(STEPS) + 1)), "one step for each version"


def check_ours(path: Path, connection: sqlite3.Connection) -> int:
    """Return the schema version, 0 for an empty file.

    Raises:
        StoreError: another program's, or of a version that this program does not know.
    """
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    application = int(connection.execute("PRAGMA application_id").fetchone()[0])
    tables = int(connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0])
    if application == 0 and version == 0 and tables == 0:
        return 0
    if application != APPLICATION_ID:
        raise StoreError(
            f"{path} is a database of another program; it was not changed", hint="give another path for the store"
        )
    newest = STEPS[-1].version
    if version > newest:
        raise StoreError(
            f"{path} has schema version {version}; this program knows versions up to {newest}",
            hint="use the newer program that wrote it, or restore the backup made before its migration",
        )
    return version
