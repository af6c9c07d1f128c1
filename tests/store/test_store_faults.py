"""A disk that is full or cannot be written: it is said in words, nothing acknowledged is lost, and work goes on later.

The disks are file systems in memory, mounted in a namespace of their own, which takes root.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from converge_p2p.core.errors import StoreError
from converge_p2p.core.types import OperationId, PoolId
from converge_p2p.store.sqlite import SqliteStore

POOL = PoolId(b"p" * 32)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a file system takes root")


def operation(number: int) -> tuple[OperationId, bytes]:
    return OperationId(number.to_bytes(32, "big")), number.to_bytes(4, "big") * 250


def on_a_disk_of(megabytes: int, folder: Path, script: str) -> list[str]:
    """Run a script with `folder` on a disk of its own; return the lines that it printed."""
    here, python = shlex.quote(str(folder)), shlex.quote(sys.executable)
    commands = f'mount -t tmpfs -o size={megabytes}m none {here} && {python} -c "$0" {here}'
    run = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", commands, script],
        check=False, capture_output=True, text=True, timeout=60,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


FULL = """
import sys
from pathlib import Path
from converge_p2p.core.errors import StoreError
from converge_p2p.store.sqlite import SqliteStore

def operation(number):
    return number.to_bytes(32, "big"), number.to_bytes(4, "big") * 250

folder, pool, acknowledged = Path(sys.argv[1]), b"p" * 32, 0
filler = folder / "filler"
filler.write_bytes(bytes(2 << 20))
store = SqliteStore(folder / "store.db")
try:
    while True:
        store.append(pool, [operation(acknowledged)], durable=True)
        acknowledged += 1
except StoreError as error:
    print(error)
    print(error.hint)
assert acknowledged > 100
assert store.count(pool) == acknowledged, "it can still be read"
try:
    store.put("more", bytes(100_000))
    raise AssertionError("the disk is full")
except StoreError:
    assert store.get("more") is None
SqliteStore(folder / "store.db").close()
filler.unlink()
store.append(pool, [operation(acknowledged)], durable=True)
store.close()
store = SqliteStore(folder / "store.db")
store.check_integrity()
assert list(store.load(pool)) == [operation(number)[1] for number in range(acknowledged + 1)]
print("all there")
"""


@needs_root
def test_a_full_disk_loses_nothing_and_the_store_goes_on_when_there_is_room_again(tmp_path: Path) -> None:
    said, hint, end = on_a_disk_of(6, tmp_path, FULL)
    assert f"no space left for {tmp_path}" in said
    assert "free space" in hint
    assert "nothing that was acknowledged is lost" in hint
    assert end == "all there"


def test_a_store_that_may_not_grow_is_like_a_full_disk(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "store.db")
    assert store._connection is not None
    store._connection.execute("PRAGMA max_page_count = 60")
    acknowledged = 0
    with pytest.raises(StoreError, match="no space left"):  # noqa: PT012 - which one fails is not known
        while True:
            store.append_many([(POOL, [operation(acknowledged * 2), operation(acknowledged * 2 + 1)])], durable=True)
            acknowledged += 1
    assert list(store.load(POOL)) == [operation(number)[1] for number in range(acknowledged * 2)]
    store._connection.execute("PRAGMA max_page_count = 100000")
    store.append(POOL, [operation(acknowledged * 2)], durable=True)
    assert store.count(POOL) == acknowledged * 2 + 1
    store.close()


READ_ONLY = """
import os, subprocess, sys
from pathlib import Path
from converge_p2p.core.errors import StoreError
from converge_p2p.store.copies import copy_database, reading, shrink_database
from converge_p2p.store.sqlite import SqliteStore

folder, pool = Path(sys.argv[1]), b"p" * 32
path = folder / "store.db"
child = os.fork()
store = SqliteStore(path) if child == 0 else None
if store is not None:
    store.append(pool, [(b"1" * 32, b"one")], durable=True)
    if ENDS_WELL:
        store.close()
    os._exit(0)
os.waitpid(child, 0)
subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
for attempt in (SqliteStore, shrink_database):
    try:
        attempt(path)
        raise AssertionError("the disk is read-only")
    except StoreError as error:
        print(error, error.hint)
with reading(path) as database:
    print([data for _, _, data in database.operations()], database.check())
copy_database(path, Path("/dev/shm") / f"copy-{os.getpid()}")
with reading(Path("/dev/shm") / f"copy-{os.getpid()}") as copy:
    print([data for _, _, data in copy.operations()], copy.check())
os.unlink(f"/dev/shm/copy-{os.getpid()}")
"""


@needs_root
@pytest.mark.parametrize("ends_well", [True, False])
def test_a_read_only_disk_is_named_and_what_is_on_it_can_be_read_and_copied(tmp_path: Path, ends_well: bool) -> None:
    lines = on_a_disk_of(4, tmp_path, READ_ONLY.replace("ENDS_WELL", str(ends_well)))
    assert len(lines) == 4
    for refused in lines[:2]:
        assert f"cannot write {tmp_path / 'store.db'}" in refused
        assert "not mounted read-only" in refused
    assert lines[2:] == ["[b'one'] []"] * 2


NODE = """
import shutil
import sys
from pathlib import Path
import trio
from converge_p2p import Node, Task
from converge_p2p.core.errors import ConvergeError
from converge_p2p.store.upkeep import examine_database

folder = Path(sys.argv[1])
filler, home = folder / "filler", folder / "home"
acknowledged = []

def leaves(error):
    inside = getattr(error, "exceptions", None)
    return [error] if inside is None else [leaf for each in inside for leaf in leaves(each)]

async def fill():
    async with Node(home=home, listen=["/ip4/127.0.0.1/tcp/0"]) as node:
        pool = await node.create_pool("demo")
        filler.write_bytes(bytes(shutil.disk_usage(folder).free - (1 << 20)))
        while True:
            acknowledged.append((await pool.submit(Task("count", {"ballast": "x" * 30_000}))).id)

async def look():
    async with Node(home=home, listen=["/ip4/127.0.0.1/tcp/0"]) as node:
        (pool,) = node.pools.values()
        assert all(pool.find_task(task) for task in acknowledged)
        await pool.submit(Task("count"))
        assert pool.frozen() == []

try:
    trio.run(fill)
except BaseException as error:
    print(*sorted({str(each) for each in leaves(error) if isinstance(each, ConvergeError)}), sep=" / ")
assert len(acknowledged) > 10
assert examine_database(home / "node.sqlite").wrong == 0
filler.unlink()
trio.run(look)
print("all there")
"""


@needs_root
def test_a_node_on_a_full_disk_ends_and_says_why_and_has_every_task_that_it_acknowledged(tmp_path: Path) -> None:
    said, end = on_a_disk_of(8, tmp_path, NODE)
    assert f"no space left for {tmp_path / 'home' / 'node.sqlite'}" in said
    assert end == "all there"
