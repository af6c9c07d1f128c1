"""Schema versions: a step at a time, with a copy of the file before, and never backwards."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from converge_p2p.core.errors import StoreError
from converge_p2p.core.types import OperationId, PoolId
from converge_p2p.store import schema
from converge_p2p.store.copies import reading
from converge_p2p.store.migrations import backup_before
from converge_p2p.store.sqlite import SqliteStore

POOL = PoolId(b"p" * 32)
ONE = (OperationId(b"1" * 32), b"one")


def made_by_version(path: Path, version: int) -> None:
    """What the program of that version would have left."""
    with sqlite3.connect(path, isolation_level=None) as database:
        for step in schema.STEPS[:version]:
            for statement in step.statements:
                database.execute(statement)
        database.execute(f"PRAGMA user_version = {version}")
        database.execute("INSERT INTO operations (pool, id, data) VALUES (?, ?, ?)", (POOL, *ONE))
        database.execute("INSERT INTO entries VALUES ('a', x'01')")
    database.close()


def held(path: Path) -> tuple[int, list[bytes], bytes | None]:
    with reading(path) as database:
        return database.version, [data for _, _, data in database.operations()], database.value("a")


@pytest.mark.parametrize("version", range(1, schema.SCHEMA_VERSION + 1))
def test_every_older_version_is_taken_over_and_a_copy_of_it_stays(tmp_path: Path, version: int) -> None:
    path = tmp_path / "store.db"
    made_by_version(path, version)
    SqliteStore(path).close()
    assert held(path) == (schema.SCHEMA_VERSION, [b"one"], b"\1")
    backup = backup_before(path, version)
    assert backup.exists() == (version < schema.SCHEMA_VERSION)
    if backup.exists():
        assert held(backup) == (version, [b"one"], b"\1")
        assert backup.stat().st_mode & 0o777 == 0o600


def test_a_new_file_needs_no_copy(tmp_path: Path) -> None:
    SqliteStore(tmp_path / "store.db").close()
    assert [each.name for each in tmp_path.iterdir()] == ["store.db"]


def test_a_step_that_fails_leaves_the_file_as_it_was_and_usable_by_the_older_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, steps = tmp_path / "store.db", schema.STEPS
    store = SqliteStore(path)
    store.append(POOL, [ONE], durable=True)
    store.put("a", b"\1")
    store.close()
    newer = schema.Step(len(steps) + 1, ("CREATE TABLE more (x)", "CREATE TABLE entries (y)"))
    monkeypatch.setattr(schema, "STEPS", (*steps, newer))
    with pytest.raises(StoreError, match="entries already exists"):
        SqliteStore(path)
    monkeypatch.setattr(schema, "STEPS", steps)
    assert held(path) == (len(steps), [b"one"], b"\1")
    SqliteStore(path).close()
    # the next try makes the copy anew: the older program may have written since
    store = SqliteStore(path)
    store.put("a", b"\2")
    store.close()
    monkeypatch.setattr(schema, "STEPS", (*steps, schema.Step(len(steps) + 1, ("CREATE TABLE more (x)",))))
    SqliteStore(path).close()
    assert held(path) == (len(steps) + 1, [b"one"], b"\2")
    assert held(backup_before(path, len(steps))) == (len(steps), [b"one"], b"\2")


def test_without_room_for_the_copy_nothing_is_migrated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "store.db"
    made_by_version(path, 1)
    monkeypatch.setattr("converge_p2p.store.copies._free_bytes", lambda _: 100)
    with pytest.raises(StoreError, match="100 bytes free") as raised:
        SqliteStore(path)
    assert "free space" in raised.value.hint
    assert held(path)[0] == 1
    assert not backup_before(path, 1).exists()


def test_a_newer_file_is_refused_by_whoever_reads_or_opens_it(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    made_by_version(path, schema.SCHEMA_VERSION)
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    for opening in (SqliteStore, lambda path: reading(path).__enter__()):
        with pytest.raises(StoreError, match="schema version 99; this program knows versions up to"):
            opening(path)


def test_copies_that_were_cut_off_do_not_fill_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    made_by_version(path, 1)
    backup = backup_before(path, 1)
    for number in range(3):
        for suffix in ("", "-journal"):
            (tmp_path / f".{backup.name}.{number:016x}.new{suffix}").write_bytes(b"half a copy")
    SqliteStore(path).close()
    assert sorted(each.name for each in tmp_path.iterdir()) == [path.name, backup.name]
    assert held(backup) == (1, [b"one"], b"\1")
