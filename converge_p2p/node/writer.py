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
from converge_p2p.store.api import NodeStore

_NO_POOL = PoolId(bytes(32))
"""For a batch without operations."""

Batch = tuple[PoolId, Sequence[tuple[OperationId, bytes]]]


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
    """

    def __init__(self, store: NodeStore) -> None:
        """Make a writer; `run` does the writing.

        Args:
            store: where to.
        """
        self._store = store
        self._waiting: list[tuple[Batch, bool, Callable[[], None]] | _Compaction] = []
        self._kept: dict[str, bytes] = {}
        self._bytes = 0
        self._wake = trio.Event()
        self._idle = trio.Event()
        self._idle.set()
        self._ended = False
        self.commits = 0

    @property
    def full(self) -> bool:
        """Whether so much waits that nothing more should be taken from peers (`limits.PENDING_WRITE_BYTES_MAX`)."""
        return self._bytes > limits.PENDING_WRITE_BYTES_MAX

    def put(self, pool: PoolId, operations: tuple[bytes, ...], durable: bool, done: Callable[[], None]) -> None:
        """Hand over a batch. After the end of `run` it is dropped, and `done` is never called.

        Args:
            pool: the pool it belongs to.
            operations: signed operations.
            durable: it must survive a loss of power before `done` is called.
            done: called in the event loop once it is written.
        """
        if self._ended:
            return
        rows = [(operation_id(signed), signed) for signed in operations]
        self._bytes += sum(map(len, operations))
        self._add(((pool, rows), durable, done))

    def compact(
        self, pool: PoolId, snapshot: bytes, drop: tuple[OperationId, ...], entries: Mapping[str, bytes]
    ) -> None:
        """Replace operations by a snapshot, after all that was handed over before. See `OperationStore.compact`."""
        if not self._ended:
            self._add(_Compaction(pool, snapshot, drop, entries))

    def _add(self, item: tuple[Batch, bool, Callable[[], None]] | _Compaction) -> None:
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
            self.put(_NO_POOL, (), False, passed.set)
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
                await self._commit()
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
        taken = []
        for item in self._waiting:
            if isinstance(item, _Compaction):
                break
            taken.append(item)
        del self._waiting[: len(taken)]
        kept, self._kept = self._kept, {}
        for key, value in kept.items():
            await trio.to_thread.run_sync(self._store.put, key, value)
        batches = [batch for batch, _, _ in taken]
        durable = any(must for _, must, _ in taken)
        await trio.to_thread.run_sync(functools.partial(self._store.append_many, batches, durable=durable))
        self.commits += 1
        for (_, rows), _, done in taken:
            self._bytes -= sum(len(signed) for _, signed in rows)
            done()


def _nothing() -> None:
    """Nobody waits for this batch."""
