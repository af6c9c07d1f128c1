"""What is in a node's home, whether it is whole, and how it is made smaller. For a node that runs or not, as each says.

Knows: the home's files, and what is written in the database where. Must not know: how a node runs.
Source: `docs/operations.md`, upkeep. Everything blocks.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from converge_p2p.core.codec import decode, encode
from converge_p2p.core.errors import CodecError, RemoteViolation, StoreError
from converge_p2p.core.oplog.operation import decode_operation, operation_id
from converge_p2p.core.types import OperationId, PoolId
from converge_p2p.core.view.snapshot import Snapshot
from converge_p2p.store.copies import DatabaseReader, Edit, edit_database, reading, shrink_database
from converge_p2p.store.home import (
    AGE_KEY,
    DATABASE_FILE,
    FORGOTTEN_KEY,
    LEARNED_KEY,
    LOCK_FILE,
    POOL_KEY,
    RESTORED_KEY,
    only_node_in,
)

FINDINGS_MAX: Final = 16


@dataclass(frozen=True, slots=True)
class PoolFacts:
    """What the database holds of one pool.

    Attributes:
        member: the node takes part in it; otherwise it left.
        in_doubt: nothing is signed there until electors said how far the own operations go.
    """

    pool: PoolId
    operations: int
    snapshot_bytes: int
    member: bool
    in_doubt: bool


@dataclass(frozen=True, slots=True)
class HomeFacts:
    """What the database of a home is.

    Attributes:
        version: of its schema.
        size: bytes of the file and its write-ahead log.
        free: bytes of it that hold nothing; `compact_home` gives them back.
        age: how often the node counted on (see `node.restored`).
        restored: it is, or was, an old copy that was put back.
        running: a node uses it now.
    """

    version: int
    size: int
    free: int
    age: int
    restored: bool
    running: bool
    pools: tuple[PoolFacts, ...]


@dataclass(slots=True)
class Examination:
    """What was looked at, and what is wrong.

    Attributes:
        operations, snapshots, blobs: how many were checked.
        findings: at most `FINDINGS_MAX` sentences; the rest is only counted.
        wrong: how many things are wrong.
        bad_operations, bad_snapshots: those that cannot be used.
    """

    operations: int = 0
    snapshots: int = 0
    blobs: int = 0
    wrong: int = 0
    findings: list[str] = field(default_factory=list)
    bad_operations: list[tuple[PoolId, OperationId]] = field(default_factory=list)
    bad_snapshots: list[PoolId] = field(default_factory=list)

    def add(self, finding: str) -> None:
        """Something is wrong."""
        self.wrong += 1
        if len(self.findings) < FINDINGS_MAX:
            self.findings.append(finding)


def home_facts(home: Path) -> HomeFacts:
    """Look what a home holds. A node may run there.

    Raises:
        NotFound: it has no database.
        StoreError: it cannot be read.
    """
    path = home / DATABASE_FILE
    with reading(path) as database:
        counts, snapshots = database.counts(), {pool: len(data) for pool, data in database.snapshots()}
        members = {PoolId(bytes.fromhex(key.removeprefix(POOL_KEY))) for key in database.keys(POOL_KEY)}
        learned = {key.removeprefix(LEARNED_KEY) for key in database.keys(LEARNED_KEY)}
        forgotten = {key.removeprefix(FORGOTTEN_KEY) for key in database.keys(FORGOTTEN_KEY)}
        restored = database.value(RESTORED_KEY) is not None
        log = path.with_name(f"{path.name}-wal")
        return HomeFacts(
            database.version,
            path.stat().st_size + (log.stat().st_size if log.exists() else 0),
            database.free_bytes,
            age_of(database),
            restored,
            is_used(home),
            tuple(
                PoolFacts(
                    pool,
                    counts.get(pool, 0),
                    snapshots.get(pool, 0),
                    pool in members,
                    (restored and pool.hex() not in learned) or pool.hex() in forgotten,
                )
                for pool in sorted(counts.keys() | snapshots.keys() | members)
            ),
        )


def age_of(database: DatabaseReader) -> int:
    """Return how often the node counted on, 0 if it never ran."""
    value = database.value(AGE_KEY)
    try:
        number = None if value is None else decode(value)
    except CodecError as error:
        raise StoreError(f"the store's age is damaged: {error}") from error
    return number if isinstance(number, int) else 0


def examine_database(path: Path) -> Examination:
    """Check the structure of a file, and the hash and signature of every operation in it. A node may run there.

    SQLite keeps no checksums. Operations and snapshots are checked in full; of values such as messages, only that they
    can be read.

    Raises:
        NotFound: there is no file.
        StoreError: no database of this library, or of a newer version.
    """
    found = Examination()
    with reading(path) as database:
        for step in (_check_structure, _check_operations, _check_snapshots):
            try:
                step(database, found)
            except StoreError as error:
                # where the one cannot be read the others may be
                found.add(str(error))
    return found


def compact_home(home: Path, *, left_pools: bool = False) -> tuple[int, int]:
    """Give room that the database no longer uses back to the disk, while no node runs.

    Args:
        home: the folder.
        left_pools: remove what is there of pools that the node left. It asks their electors how far its own operations
            go before it signs anything there again.

    Returns:
        Bytes before and after.

    Raises:
        NotFound: it has no database.
        StoreError: a node runs there, the database is damaged, or there is no room for a second one meanwhile.
    """
    before = home_facts(home).size
    path = home / DATABASE_FILE
    with only_node_in(home):
        if left_pools:
            gone = tuple(each.pool for each in home_facts(home).pools if not each.member)
            # in one transaction: a pool whose operations are gone without a mark would be signed in from number 0
            edit_database(path, Edit(put={FORGOTTEN_KEY + pool.hex(): encode(1) for pool in gone}, drop_pools=gone))
        shrink_database(path)
    return before, home_facts(home).size


def is_used(home: Path) -> bool:
    """Say whether a node runs in a home."""
    with held_if_free(home) as free:
        return not free


@contextmanager
def held_if_free(home: Path) -> Iterator[bool]:
    """Keep nodes off a home while the block runs, if none runs there; say whether that is so. Nothing is written."""
    try:
        handle = os.open(home / LOCK_FILE, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        # no node was ever here
        yield True
        return
    except OSError as error:
        raise StoreError(
            f"cannot use the folder {home}: {error.strerror}", hint="run this as the user of the node"
        ) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            free = True
        except BlockingIOError:
            free = False
        yield free
    finally:
        os.close(handle)


def _check_structure(database: DatabaseReader, found: Examination) -> None:
    for finding in database.check():
        found.add(f"structure: {finding}")


def _check_operations(database: DatabaseReader, found: Examination) -> None:
    for pool, name, data in database.operations():
        found.operations += 1
        wrong = ""
        try:
            decode_operation(data, pool)
            if operation_id(data) != name:
                wrong = "it stands under another id"
        except RemoteViolation as error:
            wrong = str(error)
        if wrong:
            found.bad_operations.append((pool, name))
            found.add(f"operation {name.hex()[:12]} of pool {pool.hex()[:12]}: {wrong}")


def _check_snapshots(database: DatabaseReader, found: Examination) -> None:
    for pool, data in database.snapshots():
        found.snapshots += 1
        try:
            Snapshot.read(data, pool)
        except CodecError as error:
            found.bad_snapshots.append(pool)
            found.add(f"snapshot of pool {pool.hex()[:12]}: {error}")
