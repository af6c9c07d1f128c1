"""Group commit: one writer for all pools of a node.

Knows: batches and who waits for them. Must not know: what operations say.
Source: `docs/protocol.md`, storage. While one commit is on its way the next batches collect, so that many operations
share one flush to disk.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import trio

from converge_p2p.core import limits
from converge_p2p.core.oplog.operation import operation_id
from converge_p2p.core.types import OperationId, PoolId
from converge_p2p.runtime.metrics import Metrics, NoMetrics
from converge_p2p.store.api import NodeStore

_NO_POOL = PoolId(bytes(32))
"""For a batch without operations."""

GATHER_TURNS = 8
"""Turns of the event loop that a commit lets pass first. In an idle node that is no time. In a busy one, frames wait to
be read, and what they cause shares the commit, and the frame in which it goes out."""

Batch = tuple[PoolId, Sequence[tuple[OperationId, bytes]]]


Done = Callable[[tuple[int, ...]], None]
"""Called with the tokens of the batches that were written."""


@dataclass(frozen=True, slots=True)
class _Writing:
    """Operations to append, and who is told."""

    batch: Batch
    durable: bool
    done: Done
    token: int


@dataclass(frozen=True, slots=True)
class _Compaction:
    """Operations of a pool that a snapshot replaces. See `OperationStore.compact`."""

    pool: PoolId
    snapshot: bytes
    drop: tuple[OperationId, ...]
    entries: Mapping[str, bytes]


class StoreWriter:
    """Writes operations in the order they were handed over, and says when each batch is on disk.

    Attributes:
        commits: how many there were.
        handed_over: bytes of operations that were handed over so far.
    """

    def __init__(self, store: NodeStore, metrics: Metrics | None = None) -> None:
        """Make a writer; `run` does the writing.

        Args:
            store: where to.
            metrics: is told how long commits take and how much they write.
        """
        self._store = store
        self._metrics: Metrics = NoMetrics() if metrics is None else metrics
        self._committing_since: float | None = None
        self._waiting: list[_Writing | _Compaction] = []
        self._kept: dict[str, bytes] = {}
        self._bytes = 0
        self._wake = trio.Event()
        self._idle = trio.Event()
        self._idle.set()
        self._ended = False
        self.commits = 0
        self.handed_over = 0

    @property
    def waiting(self) -> tuple[int, int]:
        """How many batches wait, and how many bytes of operations, those of the commit under way among them."""
        return len(self._waiting), self._bytes

    @property
    def stalled_s(self) -> float:
        """How long the commit under way has taken so far, seconds; 0 without one."""
        return 0.0 if self._committing_since is None else trio.current_time() - self._committing_since

    @property
    def full(self) -> bool:
        """Whether so much waits that nothing more should be taken from peers (`limits.PENDING_WRITE_BYTES_MAX`)."""
        return self._bytes > limits.PENDING_WRITE_BYTES_MAX

    def put(self, pool: PoolId, operations: tuple[bytes, ...], durable: bool, done: Done, token: int = 0) -> None:
        """Hand over a batch. After the end of `run` it is dropped, and `done` is never called.

        Args:
            pool: the pool it belongs to.
            operations: signed operations.
            durable: it must survive a loss of power before `done` is called.
            done: called in the event loop once it is written: once for all batches of a commit that name it, in the
                order they were handed over, so that what they cause can be one thing too.
            token: what `done` is told of this batch.
        """
        if self._ended:
            return
        rows = [(operation_id(signed), signed) for signed in operations]
        size = sum(map(len, operations))
        self._bytes += size
        self.handed_over += size
        self._add(_Writing((pool, rows), durable, done, token))

    def compact(
        self, pool: PoolId, snapshot: bytes, drop: tuple[OperationId, ...], entries: Mapping[str, bytes]
    ) -> None:
        """Replace operations by a snapshot, after all that was handed over before. See `OperationStore.compact`."""
        if not self._ended:
            self._add(_Compaction(pool, snapshot, drop, entries))

    def _add(self, item: _Writing | _Compaction) -> None:
        self._waiting.append(item)
        self._idle = trio.Event() if self._idle.is_set() else self._idle
        self._wake.set()

    def keep(self, key: str, value: bytes) -> None:
        """Set a value of the store, before every batch that is handed over later. Of several, the last one counts."""
        if not self._ended:
            self._kept[key] = value
            self.put(_NO_POOL, (), False, _nothing)

    async def barrier(self) -> None:
        """Wait until what was handed over so far is written, whatever comes after it."""
        if not self._ended:
            passed = trio.Event()
            self.put(_NO_POOL, (), False, lambda _tokens: passed.set())
            await passed.wait()

    async def flush(self) -> None:
        """Wait until everything handed over is written, and what its `done` handed over too; or until `run` ended."""
        await self._idle.wait()

    async def run(self) -> None:
        """Write until cancelled.

        Raises:
            StoreError: a write failed. Nothing of it was acknowledged; the node must stop.

        Cancellation: a commit that began is finished first.
        """
        try:
            while True:
                if not self._waiting:
                    self._idle.set()
                    self._wake = trio.Event()
                    await self._wake.wait()
                for _ in range(GATHER_TURNS):
                    await trio.lowlevel.checkpoint()
                began = self._committing_since = trio.current_time()
                await self._commit()
                self._committing_since = None
                self._metrics.observe("store_commit", trio.current_time() - began)
        finally:
            # whoever waits for a flush must not wait for ever
            self._ended = True
            self._waiting.clear()
            self._idle.set()

    async def _commit(self) -> None:
        if isinstance(first := self._waiting[0], _Compaction):
            del self._waiting[0]
            await trio.to_thread.run_sync(self._store.compact, first.pool, first.snapshot, first.drop, first.entries)
            self.commits += 1
            return
        taken: list[_Writing] = []
        for item in self._waiting:
            if isinstance(item, _Compaction):
                break
            taken.append(item)
        del self._waiting[: len(taken)]
        kept, self._kept = self._kept, {}
        for key, value in kept.items():
            await trio.to_thread.run_sync(self._store.put, key, value)
        batches = [item.batch for item in taken]
        durable = any(item.durable for item in taken)
        await trio.to_thread.run_sync(functools.partial(self._store.append_many, batches, durable=durable))
        self.commits += 1
        told: dict[Done, list[int]] = {}
        before = self._bytes
        for item in taken:
            self._bytes -= sum(len(signed) for _, signed in item.batch[1])
            told.setdefault(item.done, []).append(item.token)
        self._metrics.add("store_written_bytes", before - self._bytes)
        for done, tokens in told.items():
            done(tuple(tokens))


def _nothing(_tokens: tuple[int, ...]) -> None:
    """Nobody waits for this batch."""
