"""What only the store on disk has to hold: crashes, other processes, damage, foreign and newer files, modes."""

from __future__ import annotations

import hashlib
import os
import signal
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hammer_put_if_absent import hammer

from converge_p2p.core import limits
from converge_p2p.core.errors import StoreError
from converge_p2p.core.types import OperationId, PoolId
from converge_p2p.store.sqlite import SCHEMA_VERSION, SqliteStore

POOL = PoolId(b"p" * 32)
BATCH = 7

# acknowledges each batch on its standard output after `append` returned, and writes until it is killed
WRITER = """
import sys
from converge_p2p.store.sqlite import SqliteStore
store, number = SqliteStore(sys.argv[1]), 0
while True:
    some = range(number, number + 7)
    store.append(b"p" * 32, [(n.to_bytes(32, "big"), b"%d" % n * 50) for n in some], durable=sys.argv[2] == "durable")
    store.put("last", b"%d" % number)
    print(number, flush=True)
    number += 7
"""


def operation(number: int) -> tuple[OperationId, bytes]:
    return OperationId(number.to_bytes(32, "big")), b"%d" % number * 50


@pytest.mark.parametrize("durable", ["durable", "fast"])
@pytest.mark.parametrize("after", [1, 20, 90])
def test_a_killed_process_loses_nothing_it_acknowledged_and_tears_no_batch(
    tmp_path: Path, durable: str, after: int
) -> None:
    path = tmp_path / "store.db"
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), durable], stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        acknowledged = [int(writer.stdout.readline()) for _ in range(after)]
        writer.send_signal(signal.SIGKILL)
        # what it said before it died counts too
        acknowledged += [int(line) for line in writer.stdout if line.endswith("\n")]
    store = SqliteStore(path)
    found = list(store.load(POOL))
    assert found == [operation(number)[1] for number in range(len(found))]
    assert len(found) % BATCH == 0
    assert len(found) >= acknowledged[-1] + BATCH
    assert int(store.get("last") or b"-1") >= acknowledged[-1]
    store.check_integrity()
    store.close()


def test_processes_that_race_for_keys_win_each_once(tmp_path: Path) -> None:
    tally = hammer(tmp_path / "store.db", keys=400, processes=3)
    assert tally.clean, tally
    # a race that one process wins throughout is none
    assert all(tally.wins_by_process), tally


def test_two_stores_on_one_file_see_each_other(tmp_path: Path) -> None:
    one, other = SqliteStore(tmp_path / "store.db"), SqliteStore(tmp_path / "store.db")
    one.append(POOL, [operation(1)], durable=True)
    other.append(POOL, [operation(1), operation(2)], durable=False)
    assert list(one.load(POOL)) == [operation(1)[1], operation(2)[1]]
    assert one.put_if_absent("a", b"1")
    assert not other.put_if_absent("a", b"2")
    one.close()
    other.close()


def test_what_is_removed_counts_for_the_write_ahead_log(tmp_path: Path) -> None:
    """A removal writes whole pages: 60,000 results of a kilobyte made the log half a gigabyte."""
    store, log = SqliteStore(tmp_path / "store.db"), tmp_path / "store.db-wal"
    keys = [hashlib.sha256(b"%d" % number).hexdigest() for number in range(6000)]
    store.append(POOL, [(OperationId(bytes.fromhex(key)), bytes(2000)) for key in keys], durable=False)
    with store._writing("put", durable=False, size=limits.STORE_WAL_BYTES_MAX) as connection:
        connection.executemany("INSERT INTO entries VALUES (?, ?)", [(key, bytes(1000)) for key in sorted(keys)])
    largest = 0
    for at in range(0, len(keys), limits.KEYS_PER_DELETION_MAX):
        assert store.delete_many(keys[at : at + limits.KEYS_PER_DELETION_MAX])
        largest = max(largest, log.stat().st_size)
    assert largest < 2 * limits.STORE_WAL_BYTES_MAX
    assert store.delete_pool(POOL) == 6000
    assert log.stat().st_size < limits.STORE_WAL_BYTES_MAX
    store.close()


def test_the_write_ahead_log_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "STORE_WAL_BYTES_MAX", 256 * 1024)
    store = SqliteStore(tmp_path / "store.db")
    largest = 0
    for first in range(0, 4000, 50):
        some = [(operation(number)[0], bytes(400)) for number in range(first, first + 50)]
        store.append(POOL, some, durable=False)
        largest = max(largest, (tmp_path / "store.db-wal").stat().st_size)
    assert largest < 2 * 1024 * 1024
    assert (tmp_path / "store.db").stat().st_size > 1024 * 1024
    assert store.count(POOL) == 4000
    store.close()


def test_a_failed_write_leaves_the_store_usable(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "store.db", busy_ms=0)
    store.put("a", b"1")
    with sqlite3.connect(tmp_path / "store.db", isolation_level=None) as holder:
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="locked by another process"):
            store.put("a", b"2")
        assert store.get("a") == b"1"
        holder.execute("ROLLBACK")
    holder.close()
    store.put("a", b"3")
    assert store.get("a") == b"3"
    store.close()


def test_a_newer_schema_is_refused_and_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    SqliteStore(path).close()
    database = sqlite3.connect(path)
    database.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    database.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match=f"schema version {SCHEMA_VERSION + 1}") as raised:
        SqliteStore(path)
    assert "newer program" in raised.value.hint
    assert path.read_bytes() == before


def test_a_database_of_another_program_is_refused_and_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE theirs (x)")
    database.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match="another program"):
        SqliteStore(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "content", [b"not a database at all, but long enough to be read as one" * 100, b"SQLite format 3\0"]
)
def test_a_file_that_is_no_database_is_called_damaged(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "store.db"
    path.write_bytes(content)
    with pytest.raises(StoreError, match="is damaged") as raised:
        SqliteStore(path)
    assert "backup" in raised.value.hint
    assert path.read_bytes() == content


def test_damage_inside_is_reported_as_such(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    store = SqliteStore(path)
    store.append(POOL, [operation(number) for number in range(2000)], durable=True)
    store.close()
    content = bytearray(path.read_bytes())
    # everything behind the first page, which holds the schema
    content[4096:] = bytes(index * 37 % 251 for index in range(len(content) - 4096))
    path.write_bytes(content)
    store = SqliteStore(path)
    with pytest.raises(StoreError, match="is damaged"):
        list(store.load(POOL))
    with pytest.raises(StoreError, match="is damaged"):
        store.check_integrity()
    store.close()


def test_a_truncated_file_is_reported_as_damaged(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    store = SqliteStore(path)
    store.append(POOL, [operation(number) for number in range(2000)], durable=True)
    store.close()
    os.truncate(path, 3 * 4096)
    with pytest.raises(StoreError, match="is damaged"):
        _read_all(path)


def _read_all(path: Path) -> None:
    store = SqliteStore(path)
    try:
        list(store.load(POOL))
        store.check_integrity()
    finally:
        store.close()


def test_files_and_folders_are_for_their_owner_only(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        store = SqliteStore(tmp_path / "new" / "folder" / "store.db")
        store.put("a", b"1")
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "new").rglob("*")}
    assert modes == {"folder": 0o700, "store.db": 0o600, "store.db-wal": 0o600, "store.db-shm": 0o600}
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700
    store.close()


def test_a_file_that_others_can_read_is_closed_to_them(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    SqliteStore(path).close()
    path.chmod(0o644)
    SqliteStore(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_path_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file" / "store.db", tmp_path):
        with pytest.raises(StoreError, match=str(path.parent if path != tmp_path else path)):
            SqliteStore(path)


def test_a_compaction_that_fails_in_the_middle_leaves_everything_as_it_was(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "store.db")
    store.append(POOL, [operation(1), operation(2)], durable=True)
    with sqlite3.connect(tmp_path / "store.db", isolation_level=None) as other:
        other.execute(
            f"CREATE TRIGGER refuse BEFORE DELETE ON operations WHEN old.id = x'{operation(2)[0].hex()}' "
            "BEGIN SELECT raise(ABORT, 'refused'); END"
        )
    other.close()
    with pytest.raises(StoreError):
        store.compact(POOL, b"snapshot", [operation(1)[0], operation(2)[0]], {"ended": b"value"})
    store.close()
    again = SqliteStore(tmp_path / "store.db")
    assert list(again.load(POOL)) == [operation(1)[1], operation(2)[1]]
    assert (again.snapshot(POOL), again.get("ended")) == (None, None)
    again.close()


def test_a_file_of_version_1_is_taken_over_with_what_is_in_it(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "store.db")
    store.append(POOL, [operation(1)], durable=True)
    store.close()
    with sqlite3.connect(tmp_path / "store.db", isolation_level=None) as older:
        older.execute("DROP TABLE snapshots")
        older.execute("PRAGMA user_version = 1")
    older.close()
    again = SqliteStore(tmp_path / "store.db")
    assert list(again.load(POOL)) == [operation(1)[1]]
    again.compact(POOL, b"snapshot", [operation(1)[0]], {})
    assert (again.snapshot(POOL), again.count(POOL)) == (b"snapshot", 0)
    again.close()
