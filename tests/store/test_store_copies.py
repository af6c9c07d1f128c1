"""Database files as a whole: copies of one moment, rescue from damage, and shrinking."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from converge_p2p.core import limits
from converge_p2p.core.errors import Conflict, NotFound, StoreError
from converge_p2p.core.types import OperationId, PoolId
from converge_p2p.store import copies
from converge_p2p.store.copies import Edit, copy_database, edit_database, reading, salvage_database, shrink_database
from converge_p2p.store.sqlite import SqliteStore

POOL, OTHER = PoolId(b"p" * 32), PoolId(b"q" * 32)
PAGE = 4096

# writes pairs of operations and a value without end, and says so before the first and after each
WRITER = """
import sys
from converge_p2p.store.sqlite import SqliteStore
store, number = SqliteStore(sys.argv[1]), 0
while True:
    pair = [(n.to_bytes(32, "big"), bytes(3000)) for n in (number, number + 1)]
    store.append(b"p" * 32, pair, durable=False)
    number += 2
    print(number, flush=True)
"""


def rows(numbers: range, size: int = 900) -> list[tuple[OperationId, bytes]]:
    return [(OperationId(number.to_bytes(32, "big")), number.to_bytes(2, "big") * (size // 2)) for number in numbers]


def filled(path: Path, count: int = 600) -> None:
    store = SqliteStore(path)
    store.append(POOL, rows(range(count)), durable=True)
    for number in range(20):
        store.put(f"key/{number}", b"%d" % number * 200)
    store.compact(OTHER, b"snapshot", [], {})
    store.close()


def test_a_copy_taken_while_another_process_writes_is_of_one_moment(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        before = [int(writer.stdout.readline()) for _ in range(30)][-1]
        for number in range(5):
            copy_database(path, tmp_path / f"copy{number}")
            with reading(tmp_path / f"copy{number}") as copy:
                found = [int.from_bytes(name, "big") for _, name, _ in copy.operations()]
                assert copy.check() == []
            # whole batches, none missing in between, and all that was acknowledged before it began
            assert found == list(range(len(found)))
            assert len(found) % 2 == 0
            assert len(found) >= before
            before = int(writer.stdout.readline())
        assert writer.poll() is None, "the writer was not disturbed"
        writer.kill()
    assert not list(tmp_path.glob("copy*-*")), "a copy is one file"


def test_a_reader_that_stays_keeps_no_writer_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "STORE_WAL_BYTES_MAX", 64 * 1024)
    monkeypatch.setattr(limits, "STORE_CHECKPOINT_BUSY_MS", 20)
    store = SqliteStore(tmp_path / "store.db", busy_ms=60_000)
    store.append(POOL, rows(range(300)), durable=False)
    with reading(tmp_path / "store.db") as reader:
        reading_on = reader.operations()
        next(reading_on)
        reader._connection.execute("BEGIN")
        assert reader.counts() == {POOL: 300}
        # with a log over its bound at each of these, the test would time out if a checkpoint waited for the reader
        for first in range(300, 900, 100):
            store.append(POOL, rows(range(first, first + 100)), durable=False)
        assert reader.counts() == {POOL: 300}
    store.append(POOL, rows(range(900, 1000)), durable=False)
    assert store.count(POOL) == 1000
    assert (tmp_path / "store.db-wal").stat().st_size == 0, "the log is moved as soon as nobody reads"
    store.close()


def test_an_existing_file_is_not_overwritten_and_a_missing_one_is_named(tmp_path: Path) -> None:
    filled(tmp_path / "a")
    (tmp_path / "b").write_text("mine")
    with pytest.raises(Conflict, match="exists already"):
        copy_database(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_text() == "mine"
    with pytest.raises(NotFound, match="no database"):
        copy_database(tmp_path / "none", tmp_path / "c")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a", "b"]


def break_page(path: Path, holding: bytes) -> None:
    """Overwrite the page in which some bytes stand, as a failing disk would."""
    content = bytearray(path.read_bytes())
    at = content.index(holding) // PAGE * PAGE
    content[at : at + PAGE] = b"\xee" * PAGE
    path.write_bytes(content)


def test_a_corrupted_page_is_found_named_and_everything_else_can_be_saved(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    filled(path)
    break_page(path, rows(range(300, 301))[0][1])
    with reading(path) as database:
        assert database.check()
        with pytest.raises(StoreError, match="is damaged") as raised:
            list(database.operations())
    assert "store backup --salvage" in raised.value.hint
    damaged = path.read_bytes()
    with pytest.raises(StoreError, match="is damaged"):
        shrink_database(path)
    assert path.read_bytes() == damaged, "what is damaged is not written anew"
    lost = salvage_database(path, tmp_path / "saved")
    assert path.read_bytes() == damaged
    with reading(tmp_path / "saved") as saved:
        assert saved.check() == []
        found = {name: data for _, name, data in saved.operations()}
        assert list(saved.snapshots()) == [(OTHER, b"snapshot")]
        assert len(saved.keys("key/")) == 20
    wanted = dict(rows(range(600)))
    assert 1 <= lost <= 5, "a page holds four operations"
    assert found == {name: data for name, data in wanted.items() if name in found}
    assert len(found) == 600 - lost
    # the store goes on from it
    store = SqliteStore(tmp_path / "saved")
    store.append(POOL, rows(range(600)), durable=True)
    assert store.count(POOL) == 600
    store.close()


def test_compacting_gives_room_back_and_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    filled(path, 2000)
    edit_database(path, Edit(put={"mark": b"1"}, drop_operations=[(POOL, name) for name, _ in rows(range(1900))]))
    before = path.stat().st_size
    shrink_database(path)
    assert path.stat().st_size < before / 4
    store = SqliteStore(path)
    assert list(store.load(POOL)) == [data for _, data in rows(range(1900, 2000))]
    assert (store.get("mark"), store.snapshot(OTHER), len(store.list("key/"))) == (b"1", b"snapshot", 20)
    store.close()


def test_a_pool_is_removed_with_its_mark_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    filled(path, 10)
    with pytest.raises(StoreError):
        edit_database(path, Edit(put={"mark": None}, drop_pools=[POOL, OTHER]))  # type: ignore[dict-item]
    with reading(path) as database:
        assert (database.counts(), len(list(database.snapshots()))) == ({POOL: 10}, 1)
    edit_database(path, Edit(put={"mark": b"1"}, drop_pools=[POOL, OTHER]))
    with reading(path) as database:
        assert (database.counts(), list(database.snapshots()), database.value("mark")) == ({}, [], b"1")


def test_without_room_nothing_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "store.db"
    filled(path)
    monkeypatch.setattr(copies, "_free_bytes", lambda _: 100)
    with pytest.raises(StoreError, match="100 bytes free, and"):
        shrink_database(path)
    with pytest.raises(StoreError, match="100 bytes free, and"):
        copy_database(path, tmp_path / "copy")
    assert [each.name for each in tmp_path.iterdir()] == ["store.db"]
