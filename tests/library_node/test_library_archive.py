"""Backups: whole or absent, checked before they are used, and put back so that the agent never signs a number twice."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import trio
from node_library_kit import POLICY, founding, real_node, until, who

from converge_p2p import Task
from converge_p2p.core.codec import encode
from converge_p2p.core.errors import Conflict, NotFound, OwnChainUnsure, StoreError
from converge_p2p.core.governance import Democratic
from converge_p2p.core.types import PoolId
from converge_p2p.node.restored import StoreAge
from converge_p2p.store.archive import (
    MANIFEST_FILE,
    backup_home,
    examine_backup,
    read_manifest,
    restore_home,
)
from converge_p2p.store.home import AGE_FILE, DATABASE_FILE, KEY_FILE, LEARNED_KEY, POOL_KEY, only_node_in
from converge_p2p.store.keyfile import load_or_create_identity
from converge_p2p.store.sqlite import SqliteStore
from converge_p2p.store.upkeep import compact_home, examine_database, home_facts

SEALED_POOLS = 3


def a_home(folder: Path) -> list[PoolId]:
    """A home that a node used once and ended in: a few pools, in each its founding."""
    load_or_create_identity(folder / KEY_FILE)
    store = SqliteStore(folder / DATABASE_FILE)
    age = StoreAge(store, folder)
    age.open_now(restored=False)
    pools = []
    for number in range(SEALED_POOLS):
        pool, operation = founding(who(1), number)
        store.append(pool, [(operation.id, operation.signed)], durable=True)
        store.put(POOL_KEY + pool.hex(), encode([1]))
        pools.append(pool)
    age.grow_now()
    store.close()
    with only_node_in(folder):
        pass
    return pools


def age_in(home: Path) -> StoreAge:
    store = SqliteStore(home / DATABASE_FILE)
    age = StoreAge(store, home)
    age.open_now(restored=False)
    store.close()
    return age


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(each.relative_to(folder)): each.read_bytes() for each in folder.rglob("*") if each.is_file()}


def spoil(path: Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    assert content.count(old) == 1
    path.write_bytes(content.replace(old, new))


def test_a_backup_holds_what_it_says_and_the_key_only_if_asked_for(tmp_path: Path) -> None:
    home = tmp_path / "home"
    a_home(home)
    plain = backup_home(home, tmp_path / "plain", agent=who(1))
    assert (plain.stopped, plain.operations, plain.pools, plain.agent) == (True, 3, 3, who(1).id)
    assert sorted(files_of(tmp_path / "plain")) == [MANIFEST_FILE, DATABASE_FILE]
    full = backup_home(home, tmp_path / "full", secret_files={KEY_FILE: home / KEY_FILE, "network.key": home / "none"})
    assert sorted(full.files) == [KEY_FILE, DATABASE_FILE]
    assert all(each.stat().st_mode & 0o077 == 0 for each in (tmp_path / "full", *(tmp_path / "full").iterdir()))
    for name in ("plain", "full"):
        manifest, found = examine_backup(tmp_path / name)
        assert (manifest.operations, found.operations, found.findings) == (3, 3, [])
    with pytest.raises(Conflict, match="exists already"):
        backup_home(home, tmp_path / "plain")
    with pytest.raises(NotFound, match="no database"):
        backup_home(tmp_path / "elsewhere", tmp_path / "new")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["full", "home", "plain"], "no half of one is left"


@pytest.mark.parametrize("name", [DATABASE_FILE, KEY_FILE])
@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_a_damaged_backup_is_found_out_and_not_put_back(tmp_path: Path, name: str, damage: str) -> None:
    home, backup, new = (tmp_path / each for each in ("home", "backup", "new"))
    a_home(home)
    backup_home(home, backup, secret_files={KEY_FILE: home / KEY_FILE})
    if damage == "missing":
        (backup / name).unlink()
    else:
        content = bytearray((backup / name).read_bytes())
        content[len(content) // 2] ^= 1
        (backup / name).write_bytes(content)
    _, found = examine_backup(backup)
    assert len(found.findings) == 1
    assert name in found.findings[0]
    with pytest.raises(StoreError, match=name) as raised:
        restore_home(backup, new)
    assert "use another backup" in raised.value.hint
    assert not new.exists()


def test_what_is_no_backup_or_of_another_format_is_refused(tmp_path: Path) -> None:
    home, backup = tmp_path / "home", tmp_path / "backup"
    a_home(home)
    backup_home(home, backup)
    for folder in (home, tmp_path / "none", home / KEY_FILE):
        with pytest.raises(NotFound, match="is no backup"):
            read_manifest(folder)
    manifest = (backup / MANIFEST_FILE).read_bytes()
    (backup / MANIFEST_FILE).write_bytes(manifest.replace(b'"format": 1', b'"format": 3'))
    with pytest.raises(StoreError, match="has format 3"):
        restore_home(backup, tmp_path / "new")
    (backup / MANIFEST_FILE).write_bytes(manifest.replace(b'"node.sqlite"', b'"../../escape"'))
    with pytest.raises(StoreError, match="names files that no backup has"):
        restore_home(backup, tmp_path / "new")
    (backup / MANIFEST_FILE).write_bytes(manifest[:-20])
    with pytest.raises(StoreError, match="is damaged"):
        restore_home(backup, tmp_path / "new")


def test_a_restored_home_doubts_every_pool_whatever_lies_beside_it(tmp_path: Path) -> None:
    home, backup = tmp_path / "home", tmp_path / "backup"
    pools = a_home(home)
    store = SqliteStore(home / DATABASE_FILE)
    store.put(LEARNED_KEY + pools[0].hex(), encode(3))
    store.close()
    backup_home(home, backup, secret_files={KEY_FILE: home / KEY_FILE})
    for kept in ("nothing", "the age of the store"):
        new = tmp_path / kept
        new.mkdir()
        if kept != "nothing":
            (new / AGE_FILE).write_bytes((home / AGE_FILE).read_bytes())
        restore_home(backup, new)
        assert (new / KEY_FILE).read_bytes() == (home / KEY_FILE).read_bytes()
        assert all(age_in(new).doubts(pool) for pool in pools)
        facts = home_facts(new)
        assert facts.restored
        assert all(pool.in_doubt and pool.member for pool in facts.pools)
    assert not any(age_in(home).doubts(pool) for pool in pools), "the original is none the wiser"


def test_a_home_that_moved_goes_on_at_once_but_not_from_a_backup_of_a_running_node(tmp_path: Path) -> None:
    home = tmp_path / "home"
    pools = a_home(home)
    backup_home(home, tmp_path / "stopped")
    with only_node_in(home):
        assert not backup_home(home, tmp_path / "running").stopped
    restore_home(tmp_path / "stopped", tmp_path / "moved", moved=True)
    assert not any(age_in(tmp_path / "moved").doubts(pool) for pool in pools)
    with pytest.raises(Conflict, match="made while the node ran"):
        restore_home(tmp_path / "running", tmp_path / "new", moved=True)


def test_a_home_with_anything_else_in_it_or_with_another_key_is_not_touched(tmp_path: Path) -> None:
    home, backup = tmp_path / "home", tmp_path / "backup"
    a_home(home)
    backup_home(home, backup, agent=who(1), secret_files={KEY_FILE: home / KEY_FILE})
    with pytest.raises(Conflict, match=r"is not empty: it holds node\.sqlite"):
        restore_home(backup, home)
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "thesis.tex").write_text("x")
    with pytest.raises(Conflict, match=r"it holds thesis\.tex"):
        restore_home(backup, strange)
    restore_home(backup, strange, beside=["thesis.tex"])
    other = tmp_path / "other"
    load_or_create_identity(other / KEY_FILE)
    key = (other / KEY_FILE).read_bytes()
    with pytest.raises(Conflict, match=r"node\.key is there already"):
        restore_home(backup, other)
    with pytest.raises(Conflict, match="is of agent"):
        restore_home(backup, tmp_path / "third", agent=who(2))
    assert (other / KEY_FILE).read_bytes() == key
    assert not (other / DATABASE_FILE).exists()
    with only_node_in(tmp_path / "busy"), pytest.raises(StoreError, match="another node runs"):
        restore_home(backup, tmp_path / "busy")


def test_a_restore_that_was_cut_short_can_be_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, backup, new = (tmp_path / each for each in ("home", "backup", "new"))
    a_home(home)
    backup_home(home, backup, secret_files={KEY_FILE: home / KEY_FILE})

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("converge_p2p.store.archive.edit_database", crash)
        with pytest.raises(KeyboardInterrupt):
            restore_home(backup, new)
    assert not (new / DATABASE_FILE).exists(), "an unmarked database must never be where a node finds it"
    restore_home(backup, new)
    assert sorted(each.name for each in new.iterdir() if each.name.startswith(".")) == []
    assert home_facts(new).restored


def test_an_operation_that_was_changed_on_the_disk_is_found_and_left_behind_by_a_rescue(tmp_path: Path) -> None:
    home = tmp_path / "home"
    pools = a_home(home)
    with closing(sqlite3.connect(home / DATABASE_FILE)) as database, database:
        data = database.execute("SELECT data FROM operations WHERE pool = ?", (pools[0],)).fetchone()[0]
        changed = data[:70] + bytes([data[70] ^ 1]) + data[71:]
        database.execute("UPDATE operations SET data = ? WHERE pool = ?", (changed, pools[0]))
        database.execute("UPDATE operations SET id = ? WHERE pool = ?", (b"x" * 32, pools[1]))
        database.execute("INSERT INTO snapshots VALUES (?, x'00')", (pools[2],))
    found = examine_database(home / DATABASE_FILE)
    assert (found.operations, found.snapshots, found.wrong) == (3, 1, 3)
    assert [pool for pool, _ in found.bad_operations] == pools[:2]
    assert any("stands under another id" in each for each in found.findings)
    manifest = backup_home(home, tmp_path / "saved", salvage=True)
    assert (manifest.operations, manifest.lost, manifest.stopped) == (1, 3, False)
    assert examine_backup(tmp_path / "saved")[1].wrong == 0


def test_a_damaged_database_is_not_backed_up_as_if_it_were_whole(tmp_path: Path) -> None:
    home = tmp_path / "home"
    a_home(home)
    path = home / DATABASE_FILE
    content = bytearray(path.read_bytes())
    # the last page belongs to an index
    content[-4096:] = b"\xee" * 4096
    path.write_bytes(content)
    with pytest.raises(StoreError, match="is damaged") as raised:
        backup_home(home, tmp_path / "backup")
    assert "--salvage" in raised.value.hint
    assert examine_database(path).wrong > 0
    saved = backup_home(home, tmp_path / "saved", salvage=True)
    assert examine_backup(tmp_path / "saved")[1].wrong == 0
    assert saved.operations + saved.lost >= 3


def test_compacting_forgets_left_pools_only_if_asked_and_remembers_that_it_did(tmp_path: Path) -> None:
    home = tmp_path / "home"
    left, *kept = a_home(home)
    store = SqliteStore(home / DATABASE_FILE)
    store.delete(POOL_KEY + left.hex())
    store.close()
    compact_home(home)
    assert len(home_facts(home).pools) == 3
    with only_node_in(home), pytest.raises(StoreError, match="another node runs"):
        compact_home(home, left_pools=True)
    compact_home(home, left_pools=True)
    assert [each.pool for each in home_facts(home).pools] == sorted(kept)
    assert not any(each.in_doubt for each in home_facts(home).pools)
    for _ in range(2):
        age = age_in(home)
        assert (age.doubts(left), age.doubts(kept[0]), age.restored) == (True, False, False)


async def test_a_pool_that_was_forgotten_is_no_longer_in_doubt_once_its_chain_is_learned(tmp_path: Path) -> None:
    home = tmp_path / "home"
    left, *_ = a_home(home)
    store = SqliteStore(home / DATABASE_FILE)
    store.delete(POOL_KEY + left.hex())
    store.close()
    compact_home(home, left_pools=True)
    store = SqliteStore(home / DATABASE_FILE)
    age = StoreAge(store, home)
    age.open_now(restored=False)
    await age.learned(left)
    assert not age.doubts(left)
    store.close()
    assert not age_in(home).doubts(left)


async def test_a_backup_of_a_running_node_is_put_back_elsewhere_and_the_agent_goes_on_without_a_fork(
    tmp_path: Path,
) -> None:
    home, new, backup = tmp_path / "home", tmp_path / "new", tmp_path / "backup"
    async with real_node(1) as one, real_node(2, one) as two:
        electors = [f"key:{who(number).public_key.hex()}" for number in (1, 2, 3)]
        async with real_node(3, one, two, home=home) as three:
            pool = await one.create_pool("demo", governance=Democratic(), electors=electors, policy=POLICY)
            await two.join_pool(pool.id, timeout_s=15)
            remote = await three.join_pool(pool.id, timeout_s=15)
            await remote.submit(Task("count", key="a"))
            manifest = await trio.to_thread.run_sync(backup_home, home, backup)
            assert not manifest.stopped
            late = await remote.submit(Task("count", key="late"))
            for node in (one, two):
                await until(lambda node=node: node.pools[pool.id].find_task(late.id), "the task on the electors")
        restore_home(backup, new)
        async with real_node(3, home=new) as three:
            alone = three.pools[pool.id]
            with pytest.raises(OwnChainUnsure):
                await alone.submit(Task("count", key="b"))
            for node in (one, two):
                await three.connect(node.addresses[0])
            with trio.fail_after(20):
                await alone.driver.wait_sure()
            assert alone.find_task(late.id), "what was signed after the backup came back from the electors"
            task = await alone.submit(Task("count", key="b"))
            await until(lambda: pool.find_task(task.id), "the new task on another node")
            assert pool.frozen() == []


async def test_who_comes_back_into_a_forgotten_pool_goes_on_where_its_chain_ended(tmp_path: Path) -> None:
    home = tmp_path / "home"
    async with real_node(1) as one, real_node(2, one) as two:
        electors = [f"key:{who(number).public_key.hex()}" for number in (1, 2)]
        pool = await one.create_pool("demo", governance=Democratic(), electors=electors, policy=POLICY)
        await two.join_pool(pool.id, timeout_s=15)
        async with real_node(3, one, two, home=home) as three:
            remote = await three.join_pool(pool.id, timeout_s=15)
            task = await remote.submit(Task("count", key="a"))
            await until(lambda: pool.find_task(task.id), "the task on an elector")
            await remote.leave()
        await trio.to_thread.run_sync(lambda: compact_home(home, left_pools=True))
        assert home_facts(home).pools == ()
        async with real_node(3, one, two, home=home) as three:
            again = await three.join_pool(pool.id, timeout_s=15)
            later = await again.submit(Task("count", key="b"))
            await until(lambda: pool.find_task(later.id), "the new task on an elector")
            assert again.find_task(task.id)
            assert pool.frozen() == again.frozen() == []


async def test_what_a_corrupted_page_held_comes_back_from_the_electors(tmp_path: Path) -> None:
    home, saved = tmp_path / "home", tmp_path / "saved"
    async with real_node(1) as one, real_node(2, one) as two:
        electors = [f"key:{who(number).public_key.hex()}" for number in (1, 2)]
        pool = await one.create_pool("demo", governance=Democratic(), electors=electors, policy=POLICY)
        await two.join_pool(pool.id, timeout_s=15)
        async with real_node(3, one, two, home=home) as three:
            remote = await three.join_pool(pool.id, timeout_s=15)
            tasks = [(await remote.submit(Task("count", {"mark": f"mark-{number}" * 99}))).id for number in range(20)]
            await until(lambda: all(pool.find_task(task) for task in tasks), "the tasks on an elector")
        path = home / DATABASE_FILE
        content = bytearray(path.read_bytes())
        page = content.index(b"mark-10mark-10") // 4096 * 4096
        content[page : page + 4096] = b"\xee" * 4096
        path.write_bytes(content)
        with pytest.raises(StoreError, match="is damaged"):
            async with real_node(3, home=home):
                pass
        manifest = backup_home(home, saved, salvage=True)
        assert manifest.lost >= 1
        assert manifest.operations >= 10
        path.rename(tmp_path / "damaged")
        restore_home(saved, home)
        async with real_node(3, one, two, home=home) as three:
            again = three.pools[pool.id]
            with trio.fail_after(20):
                await again.driver.wait_sure()
            await until(lambda: all(again.find_task(task) for task in tasks), "every task is back")
            assert pool.frozen() == again.frozen() == []


def test_what_a_backup_does_not_list_or_is_no_plain_file_is_not_put_back(tmp_path: Path) -> None:
    home, backup = tmp_path / "home", tmp_path / "backup"
    a_home(home)
    backup_home(home, backup, agent=who(1), secret_files={KEY_FILE: home / KEY_FILE})
    assert not examine_backup(backup)[1].wrong
    for suffix in ("-journal", "-wal"):
        # SQLite would carry out what is in there, whatever the hash of the database says
        planted = backup / f"{DATABASE_FILE}{suffix}"
        planted.write_bytes(b"planted")
        with pytest.raises(StoreError, match=suffix):
            restore_home(backup, tmp_path / "new")
        planted.unlink()
    key = backup / KEY_FILE
    key.rename(tmp_path / "elsewhere")
    key.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match=KEY_FILE):
        restore_home(backup, tmp_path / "new")
    key.unlink()
    os.mkfifo(key)
    with pytest.raises(StoreError, match="no plain file"):
        restore_home(backup, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    manifest = backup / MANIFEST_FILE
    size = read_manifest(backup).files[KEY_FILE].size
    manifest.write_text(manifest.read_text().replace(f'"size": {size},', f'"size": {2**40},'))
    with pytest.raises(StoreError, match="too long"):
        examine_backup(backup)
    manifest.unlink()
    os.mkfifo(manifest)
    with pytest.raises(StoreError, match="cannot read"):
        restore_home(backup, tmp_path / "new")


def test_a_restore_that_was_killed_while_it_wrote_the_key_can_be_done_again(tmp_path: Path) -> None:
    home, backup, new = (tmp_path / each for each in ("home", "backup", "new"))
    a_home(home)
    backup_home(home, backup, secret_files={KEY_FILE: home / KEY_FILE})
    new.mkdir()
    (new / f".{KEY_FILE}.{'0a' * 8}.new").write_bytes(b"half a key")
    restore_home(backup, new)
    assert (new / KEY_FILE).read_bytes() == (home / KEY_FILE).read_bytes()
    assert not [each.name for each in new.iterdir() if each.name.startswith(".")]
