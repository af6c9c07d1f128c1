"""Group commit: order, durability, acknowledgement only after the write, and an end that leaves nobody waiting."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest
import trio

from converge_p2p.core import limits
from converge_p2p.core.errors import StoreError
from converge_p2p.core.types import PoolId
from converge_p2p.node.writer import StoreWriter
from converge_p2p.store.memory import MemoryStore

POOL = PoolId(b"p" * 32)
OTHER = PoolId(b"q" * 32)


class GateStore(MemoryStore):
    """A store whose next write waits until the test lets it go on."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.began = threading.Event()
        self.calls: list[tuple[list[bytes], bool]] = []

    def append_many(self, batches: Sequence[Any], *, durable: bool) -> None:
        self.began.set()
        assert self.gate.wait(10)
        self.calls.append(([data for _, rows in batches for _, data in rows], durable))
        super().append_many(batches, durable=durable)


def op(number: int) -> bytes:
    return b"s" * 64 + b"%d" % number


async def test_batches_are_written_in_order_and_acknowledged_only_after_the_write() -> None:
    store = GateStore()
    writer = StoreWriter(store)
    told: list[tuple[int, ...]] = []
    others: list[tuple[int, ...]] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.run)
        writer.put(POOL, (op(0),), True, told.append, 0)
        await trio.to_thread.run_sync(store.began.wait)
        assert told == []
        for number in (1, 2, 3):
            pool, tell = (OTHER, others.append) if number == 2 else (POOL, told.append)
            writer.put(pool, (op(number),), number == 3, tell, number)
        store.gate.set()
        await writer.flush()
        nursery.cancel_scope.cancel()
    # what came while the first was written shares one commit, durable because one of them must be
    assert store.calls == [([op(0)], True), ([op(1), op(2), op(3)], True)]
    assert writer.commits == 2
    assert list(store.load(POOL)) == [op(0), op(1), op(3)]
    # and whoever handed it over is told of all of it at once
    assert (told, others) == ([(0,), (1, 3)], [(2,)])


async def test_a_commit_in_which_nothing_must_survive_a_power_loss_is_not_forced_to_disk() -> None:
    store = GateStore()
    store.gate.set()
    writer = StoreWriter(store)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.run)
        writer.put(POOL, (op(0),), False, lambda _: None)
        await writer.flush()
        nursery.cancel_scope.cancel()
    assert store.calls == [([op(0)], False)]


async def test_a_flush_also_waits_for_what_an_acknowledgement_hands_over() -> None:
    store = MemoryStore()
    writer = StoreWriter(store)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.run)
        writer.put(POOL, (op(0),), True, lambda _: writer.put(POOL, (op(1),), True, lambda _: None))
        await writer.flush()
        assert list(store.load(POOL)) == [op(0), op(1)]
        nursery.cancel_scope.cancel()


async def test_a_barrier_does_not_wait_for_what_comes_after_it() -> None:
    store = MemoryStore()
    writer = StoreWriter(store)

    def again(_tokens: tuple[int, ...] = ()) -> None:
        writer.put(POOL, (op(1),), False, again)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.run)
        again()
        await writer.barrier()
        assert store.count(POOL) == 1
        nursery.cancel_scope.cancel()


async def test_it_is_full_above_the_bound_and_no_longer_after_the_write() -> None:
    writer = StoreWriter(MemoryStore())
    big = b"x" * (limits.PENDING_WRITE_BYTES_MAX // 2)
    writer.put(POOL, (big,), False, lambda _: None)
    writer.put(POOL, (big,), False, lambda _: None)
    assert not writer.full
    writer.put(POOL, (b"y",), False, lambda _: None)
    assert writer.full
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.run)
        await writer.flush()
        assert not writer.full
        nursery.cancel_scope.cancel()


async def test_a_failed_write_ends_it_acknowledges_nothing_and_leaves_nobody_waiting() -> None:
    store = MemoryStore()
    writer = StoreWriter(store)
    done: list[int] = []
    writer.put(POOL, (op(0),), True, done.extend, 0)
    store.close()
    with pytest.raises(StoreError):
        await writer.run()
    writer.put(POOL, (op(1),), True, done.extend, 1)
    with trio.fail_after(5):
        await writer.flush()
        await writer.barrier()
    assert done == []
