"""A store that was put back is known to be old, and nothing is signed before the end of the own chain is known."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import trio
from node_library_kit import POLICY, real_node, until, who

from converge_p2p import Task
from converge_p2p.core.codec import encode
from converge_p2p.core.errors import OwnChainUnsure
from converge_p2p.core.governance import Democratic
from converge_p2p.core.types import PoolId
from converge_p2p.node.known_peers import PEERS_KEY
from converge_p2p.node.restored import StoreAge
from converge_p2p.store.home import AGE_FILE, AGE_KEY, DATABASE_FILE
from converge_p2p.store.memory import MemoryStore
from converge_p2p.store.sqlite import SqliteStore

POOL, OTHER = PoolId(b"p" * 32), PoolId(b"q" * 32)


def opened(store: MemoryStore, home: Path | None, *, restored: bool = False) -> StoreAge:
    age = StoreAge(store, home)
    age.open_now(restored=restored)
    return age


def copy_of(store: MemoryStore) -> MemoryStore:
    copy = MemoryStore()
    for key in store.list():
        value = store.get(key)
        assert value is not None
        copy.put(key, value)
    return copy


def test_a_store_that_only_its_node_wrote_is_never_in_doubt(tmp_path: Path) -> None:
    store = MemoryStore()
    for _ in range(3):
        age = opened(store, tmp_path)
        assert not age.doubts(POOL)
        age.grow_now()


@pytest.mark.parametrize("later", ["another start", "a minute of the same run"])
def test_an_older_copy_of_the_store_is_in_doubt(tmp_path: Path, later: str) -> None:
    store = MemoryStore()
    age = opened(store, tmp_path)
    copy = copy_of(store)
    if later == "another start":
        opened(store, tmp_path)
    else:
        age.grow_now()
    assert opened(copy, tmp_path).doubts(POOL)


def test_an_empty_store_beside_a_used_file_is_in_doubt_and_so_is_a_store_without_its_file(tmp_path: Path) -> None:
    store = MemoryStore()
    opened(store, tmp_path)
    assert opened(MemoryStore(), tmp_path).doubts(POOL)
    (tmp_path / AGE_FILE).unlink()
    assert opened(store, tmp_path).doubts(POOL)


@pytest.mark.parametrize("content", [b"", b"rubbish", b"-3"])
def test_a_damaged_file_makes_the_store_doubtful(tmp_path: Path, content: bytes) -> None:
    store = MemoryStore()
    opened(store, tmp_path)
    (tmp_path / AGE_FILE).write_bytes(content)
    assert opened(store, tmp_path).doubts(POOL)


def test_a_crash_between_the_two_writes_is_no_doubt(tmp_path: Path) -> None:
    store = MemoryStore()
    (tmp_path / AGE_FILE).write_bytes(b"0\n")
    assert not opened(store, tmp_path).doubts(POOL)
    store.put(AGE_KEY, encode(7))
    assert not opened(store, tmp_path).doubts(POOL)


async def test_the_doubt_lasts_over_restarts_until_the_chain_of_that_pool_is_learned(tmp_path: Path) -> None:
    store = MemoryStore()
    assert opened(store, tmp_path, restored=True).doubts(POOL)
    age = opened(store, tmp_path)
    assert age.doubts(POOL)
    await age.learned(POOL)
    again = opened(store, tmp_path)
    assert (again.doubts(POOL), again.doubts(OTHER)) == (False, True)
    assert opened(store, tmp_path, restored=True).doubts(POOL), "it was put back once more"


async def test_a_node_whose_database_was_put_back_learns_its_chain_from_the_electors_and_goes_on(
    tmp_path: Path,
) -> None:
    home, backup = tmp_path / "home", tmp_path / "backup"
    async with real_node(1) as one, real_node(2, one) as two:
        electors = [f"key:{who(number).public_key.hex()}" for number in (1, 2, 3)]
        async with real_node(3, one, two, home=home) as three:
            pool = await one.create_pool("demo", governance=Democratic(), electors=electors, policy=POLICY)
            await two.join_pool(pool.id, timeout_s=15)
            remote = await three.join_pool(pool.id, timeout_s=15)
            await remote.submit(Task("count", key="a"))
        shutil.copy(home / DATABASE_FILE, backup)
        async with real_node(3, one, two, home=home) as three:
            late = await three.pools[pool.id].submit(Task("count", key="late"))
            for node in (one, two):
                await until(lambda node=node: node.pools[pool.id].find_task(late.id), "the task on the electors")
        shutil.copy(backup, home / DATABASE_FILE)
        store = SqliteStore(home / DATABASE_FILE)
        store.delete(PEERS_KEY)
        store.close()
        async with real_node(3, home=home) as three:
            alone = three.pools[pool.id]
            assert "too few electors" in alone.unsure
            with pytest.raises(OwnChainUnsure):
                await alone.submit(Task("count", key="b"))
            for node in (one, two):
                await three.connect(node.addresses[0])
            with trio.fail_after(20):
                await alone.driver.wait_sure()
            task = await alone.submit(Task("count", key="b"))
            await until(lambda: pool.find_task(task.id), "the new task on another node")
            assert pool.frozen() == []
        async with real_node(3, home=home) as three:
            assert three.pools[pool.id].unsure == ""
