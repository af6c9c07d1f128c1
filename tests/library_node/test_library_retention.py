"""What is kept for a time only goes after it, and nothing else does; a full store begins nothing more of its own."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from node_library_kit import POLICY, QUICK, founding, real_node, until, who

from converge_p2p import Task
from converge_p2p.core import limits
from converge_p2p.core.codec import encode, encode_value
from converge_p2p.core.errors import LocalError, StoreError, StoreFull
from converge_p2p.core.governance import Democratic
from converge_p2p.core.model.task import Outcome, TaskSpec, TaskState, TaskValue, TaskView
from converge_p2p.core.oplog.succession import rotation
from converge_p2p.core.types import BlobId, BlobRef, PoolId, TaskId
from converge_p2p.node import Node, Retention
from converge_p2p.node.driver import ENDED_ROW_KEY, ended_key, ended_rows
from converge_p2p.node.pools import LEFT_KEY
from converge_p2p.node.retention import FIRST_S, PAUSE_S, Keeper
from converge_p2p.node.room import FRESH_S, StoreRoom
from converge_p2p.node.writer import StoreWriter
from converge_p2p.store.blobs import Hold
from converge_p2p.store.home import BLOB_FOLDER, FORGOTTEN_KEY
from converge_p2p.store.memory import MemoryStore

POOL = PoolId(b"p" * 32)
DAY_S = 24 * 3600
NOW_S = 1_000 * DAY_S


class Rig:
    """A store that is looked after, at a time that the test sets."""

    def __init__(self, store: MemoryStore | None = None, **days: int) -> None:
        self.store = MemoryStore() if store is None else store
        self.now_s = float(NOW_S)
        self.jumped = False
        self.counters: Counter[str] = Counter()
        self.keeper = Keeper(
            self.store, SimpleNamespace(all=dict), SimpleNamespace(), Retention(**days),  # type: ignore[arg-type]
            counters=self.counters, clock_jumped=lambda: self.jumped, clock=lambda: self.now_s,
        )  # fmt: skip

    def ended(self, count: int, *, days_ago: float, first: int = 0) -> list[str]:
        """Own tasks that a checkpoint took from the log."""
        tasks = [TaskId((first + number).to_bytes(32, "big")) for number in range(count)]
        for task in tasks:
            self.store.put(ended_key(POOL, task), b"result")
        for row, value in ended_rows(POOL, tasks, round((NOW_S - days_ago * DAY_S) * 1000)).items():
            self.store.put(row, value)
        return [ended_key(POOL, task) for task in tasks]


async def test_results_go_after_their_time_and_younger_ones_stay() -> None:
    rig = Rig(results_days=30)
    old, young = rig.ended(600, days_ago=31), rig.ended(2, days_ago=29, first=600)
    await rig.keeper.prune()
    assert rig.store.list("ended/") == young
    assert rig.counters["kept_too_long"] == len(old)
    assert len(rig.store.list(ENDED_ROW_KEY)) == 1
    rig.now_s += 2 * DAY_S
    await rig.keeper.prune()
    assert rig.store.list("ended") == []


async def test_what_an_earlier_version_kept_is_there_since_the_first_look() -> None:
    rig = Rig(results_days=30)
    listed = rig.ended(1, days_ago=29)
    rig.store.put(ended_key(POOL, TaskId(b"x" * 32)), b"result")
    await rig.keeper.prune()
    rig.now_s += 2 * DAY_S
    await rig.keeper.prune()
    assert rig.store.list("ended/") == [ended_key(POOL, TaskId(b"x" * 32))], listed
    rig.now_s += 30 * DAY_S
    await rig.keeper.prune()
    assert rig.store.list("ended") == []


class Torn(MemoryStore):
    """A store whose process is killed before a removal that the test names."""

    def __init__(self) -> None:
        super().__init__()
        self.removals_left = 10**6

    def delete_many(self, keys: Any) -> int:
        self.removals_left -= 1
        if self.removals_left < 0:
            raise StoreError("killed")
        return super().delete_many(keys)


@pytest.mark.parametrize("removals", [0, 1])
async def test_a_kill_between_two_removals_leaves_what_the_next_look_removes(removals: int) -> None:
    store = Torn()
    rig = Rig(store, results_days=30)
    rig.ended(limits.KEYS_PER_DELETION_MAX + 5, days_ago=31)
    store.removals_left = removals
    with pytest.raises(StoreError):
        await rig.keeper.prune()
    assert store.list(ENDED_ROW_KEY), "the list goes last"
    store.removals_left = 10**6
    await rig.keeper.prune()
    assert store.list("ended") == []


async def test_recorded_turns_go_from_the_beginning_of_each_log() -> None:
    rig = Rig(records_days=7)
    for agent, ages in {"a": (9, 8, 1), "b": (2,), "c": (30,)}.items():
        for number, days in enumerate(ages):
            entry = [1, number, bytes(32), round((NOW_S - days * DAY_S) * 1000), 0, []]
            rig.store.put(f"replay/{who(1).id}/{agent}/{number:016d}", encode_value(entry))
    await rig.keeper.prune()
    assert [key.rpartition("/")[0][-1] + key[-1] for key in rig.store.list("replay/")] == ["a2", "b0"]


async def test_without_a_setting_nothing_is_ever_looked_at() -> None:
    rig = Rig()
    old = rig.ended(3, days_ago=10_000)
    await rig.keeper.run()
    await rig.keeper.prune()
    assert rig.store.list("ended/") == old


async def test_it_is_looked_each_hour_but_not_at_first_nor_while_the_clock_cannot_be_trusted(
    autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(results_days=30)
    looked: list[float] = []

    async def prune() -> None:
        looked.append(trio.current_time() - began)
        if len(looked) == 1:
            raise StoreError("the disk fails")

    monkeypatch.setattr(rig.keeper, "prune", prune)
    began, rig.jumped = trio.current_time(), True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rig.keeper.run)
        await trio.sleep(FIRST_S + 1)
        rig.jumped = False
        await trio.sleep(2 * PAUSE_S)
        nursery.cancel_scope.cancel()
    assert looked == pytest.approx([FIRST_S + PAUSE_S, FIRST_S + 2 * PAUSE_S]), "a store that fails does not end it"


class Bare:
    """A store that only does what every store does."""

    def __init__(self) -> None:
        inner = MemoryStore()
        self.get, self.put, self.list, self.delete = inner.get, inner.put, inner.list, inner.delete


def test_wrong_ages_and_stores_that_cannot_be_looked_after_are_refused() -> None:
    for days in (-1, limits.RETENTION_DAYS_MAX + 1):
        with pytest.raises(LocalError, match="days"):
            Rig(blobs_days=days)
    bare: Any = Bare()
    Rig(bare)
    with pytest.raises(LocalError, match="cannot remove many"):
        Rig(bare, results_days=1)
    with pytest.raises(LocalError, match="cannot say how much"):
        StoreRoom(bare, StoreWriter(bare), limits.STORE_HELD_BYTES_MIN)
    with pytest.raises(LocalError, match="at least"):
        StoreRoom(MemoryStore(), StoreWriter(MemoryStore()), 1)


# ------------------------------------------------------------- a bound


class Sized(MemoryStore):
    """A store that holds what the test says."""

    held = 0

    def held_bytes(self) -> int:
        return self.held


async def test_a_full_store_begins_nothing_and_what_waits_to_be_written_counts(autojump_clock: Any) -> None:
    store, bound = Sized(), limits.STORE_HELD_BYTES_MIN
    writer = StoreWriter(store)
    room = StoreRoom(store, writer, bound)
    store.held = bound - 1000
    await room.check("nothing was done")
    assert (room.full, room.nearly_full) == (False, True)
    writer.put(POOL, (b"x" * 1000,), True, lambda _: None)
    with pytest.raises(StoreFull, match="nothing was done") as refused:
        await room.check("nothing was done")
    assert refused.value.code == "store_full"
    store.held = 0
    with pytest.raises(StoreFull):
        # measured a moment ago
        await room.check("nothing was done")
    await trio.sleep(FRESH_S)
    await room.check("nothing was done")
    assert not room.nearly_full


async def test_without_a_bound_nothing_is_measured() -> None:
    room = StoreRoom(Bare(), StoreWriter(MemoryStore()), 0)  # type: ignore[arg-type]
    await room.check("nothing was done")
    await room.run()
    assert (room.held, room.full, room.nearly_full) == (0, False, False)


# ------------------------------------------------------------- with a node


def fill(node: Node, held: int) -> None:
    """Let a node find its store so full."""
    room = node._pools.room
    room.bytes_max, room._measured_at = limits.STORE_HELD_BYTES_MIN, trio.current_time() + 3600
    room._measured, room._written = held, node._writer.handed_over


@pytest.mark.network
async def test_a_full_node_submits_and_founds_nothing_and_ends_what_it_began() -> None:
    async with real_node(1) as node:
        pool = await node.create_pool("demo", governance=Democratic(), policy=POLICY)
        known = await pool.submit(Task("count", {"text": "a"}, key="known"))
        fill(node, limits.STORE_HELD_BYTES_MIN)
        with pytest.raises(StoreFull, match="not submitted"):
            await pool.submit(Task("count", {"text": "b" * 100_000}))
        assert node.blobs.list() == [], "what is refused leaves no blob behind"
        with pytest.raises(StoreFull, match="not founded"):
            await node.create_pool("more")
        with pytest.raises(StoreFull, match="not joined"):
            await node.join_pool(founding(who(2))[0], timeout_s=1)
        strange = founding(who(2))[0]
        with pytest.raises(StoreFull, match="not taken"):
            await node.take_place(strange, rotation(strange, who(2), who(1))[1], timeout_s=1)
        assert strange not in node.pools
        assert (await pool.submit(Task("count", {"text": "a"}, key="known"))).id == known.id
        await pool.claim(known.id)
        await pool.report(known.id, {"words": 1})
        assert (await known.result()).value == {"words": 1}
        assert [trouble.what for trouble in await node.observation.troubles()] == ["store_room"]
        text = node.observation.metrics_text()
        shown = text.rpartition("converge_store_allowed_bytes ")[2].split()[0]
        assert float(shown) == limits.STORE_HELD_BYTES_MIN
        fill(node, 0)
        await pool.submit(Task("count", {"text": "b"}))


@pytest.mark.network
async def test_a_left_pool_goes_after_its_time_and_who_comes_back_forks_nothing(tmp_path: Path) -> None:
    async with real_node(1) as one, real_node(2, one, home=tmp_path, config=QUICK) as two:
        electors = [f"key:{who(1).public_key.hex()}"]
        pool = await one.create_pool("demo", governance=Democratic(), electors=electors, policy=POLICY)
        remote = await two.join_pool(pool.id, timeout_s=15)
        task = await remote.submit(Task("count", key="a"))
        await until(lambda: pool.find_task(task.id), "the task on the elector")
        await remote.leave()
        assert await two._pools.drop_left(0) == 0, "it was left after that"
        assert two._store.count(pool.id)
        assert await two._pools.drop_left(2**40) == 1
        assert (two._store.count(pool.id), two._store.list("left/")) == (0, [])
        assert two._store.get(FORGOTTEN_KEY + pool.id.hex()) is not None
        again = await two.join_pool(pool.id, timeout_s=15)
        later = await again.submit(Task("count", key="b"))
        await until(lambda: pool.find_task(later.id), "the new task on the elector")
        assert again.find_task(task.id)
        assert pool.frozen() == again.frozen() == []
        await again.leave()
        await two.join_pool(pool.id, timeout_s=15)
        assert await two._pools.drop_left(2**40) == 0, "it came back before its time was over"


@pytest.mark.network
async def test_a_blob_that_was_used_in_a_short_run_is_not_taken_for_an_old_one(tmp_path: Path) -> None:
    async with real_node(1, home=tmp_path) as one:
        used, unused = [await one.blobs.put(content, hold=Hold.KEPT) for content in (b"used", b"unused")]
    for blob in (used, unused):
        os.utime(tmp_path / BLOB_FOLDER / blob.id.hex(), (1, 1))
    async with real_node(1, home=tmp_path) as one:
        assert await one.blobs.get(used) == b"used"
    async with real_node(1, home=tmp_path) as one:
        assert await one.blobs.expire(DAY_S, frozenset()) == 1
        assert [info.id for info in one.blobs.list()] == [used.id]


@pytest.mark.network
async def test_an_elector_that_left_keeps_what_it_wrote() -> None:
    async with real_node(1) as one:
        pool = await one.create_pool("demo", governance=Democratic(), policy=POLICY)
        # a crash while it left before it became one
        one._store.put(LEFT_KEY + pool.id.hex(), encode(1))
        await pool.leave()
        assert await one._pools.drop_left(2**40) == 0
        assert one._store.count(pool.id)


async def test_a_damaged_list_or_mark_is_named() -> None:
    rig = Rig(results_days=1)
    rig.store.put(f"{ENDED_ROW_KEY}{1:016x}/{POOL.hex()}/0", b"\xff")
    with pytest.raises(StoreError, match="damaged"):
        await rig.keeper.prune()


def _blob(number: int) -> BlobRef:
    return BlobRef(BlobId(bytes([number]) * 32), 10, who(1).public_key)


def _result(number: int) -> TaskValue:
    return TaskValue(Outcome.COMPLETED, who(1).public_key, encode_value({"file": _blob(number)}))


async def test_blobs_of_results_that_wait_to_be_settled_are_needed() -> None:
    """Electors may be away for days, and nobody else has what a worker reported meanwhile."""
    rig = Rig(blobs_days=1)
    inputs = encode_value([{"deep": _blob(1)}])
    views = [
        TaskView(
            TaskId(b"t" * 32), POOL, who(1).public_key, TaskSpec(b"k", "x", inputs), TaskState.ASSIGNED,
            reported=(_result(2),), unjudged=(_result(3),), awaiting=_result(4),
        ),
    ]  # fmt: skip
    pool = SimpleNamespace(ready=True, open_tasks=lambda: iter(views))
    rig.keeper._pools = SimpleNamespace(all=lambda: {POOL: pool})  # type: ignore[assignment]
    asked: list[Any] = []

    async def expire(before_s: float, needed: frozenset[BlobId]) -> int:
        asked.append((before_s, needed))
        return 0

    rig.keeper._blobs = SimpleNamespace(expire=expire)  # type: ignore[assignment]
    await rig.keeper.prune()
    assert asked == [(NOW_S - DAY_S, {_blob(number).id for number in range(1, 5)})]


async def test_a_turn_that_cannot_be_read_goes_only_with_an_older_one_after_it() -> None:
    rig = Rig(records_days=7)
    for agent, ages in {"a": (None, 9, None, 1), "b": (None, 2), "c": (None,)}.items():
        for number, days in enumerate(ages):
            entry = [9] if days is None else [1, number, bytes(32), round((NOW_S - days * DAY_S) * 1000), 0, []]
            rig.store.put(f"replay/{who(1).id}/{agent}/{number:016d}", encode_value(entry))
    await rig.keeper.prune()
    left = [key.rpartition("/")[0][-1] + key[-1] for key in rig.store.list("replay/")]
    assert left == ["a2", "a3", "b0", "b1", "c0"]
