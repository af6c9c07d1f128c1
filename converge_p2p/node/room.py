"""Whether the store may take more that this node begins itself: what the operator allows, and how much is held.

Knows: a bound in bytes, and how much the store says it holds. Must not know: what is in it.
Source: `docs/operations.md`, room on the disk. The bound is on what a node begins: tasks it submits, pools it founds or
enters. What others write in its pools, and its own votes, results and claims there, are taken whatever it says: a
replica that left some of them out would be none, and what was taken on before has to be ended.
"""

from __future__ import annotations

import logging
from typing import Final

import trio

from converge_p2p.core import limits
from converge_p2p.core.errors import LocalError, StoreFull
from converge_p2p.node.writer import StoreWriter
from converge_p2p.store.api import KeptStore, NodeStore

_logger = logging.getLogger(__name__)

FRESH_S: Final = 2.0
"""So long a measurement is good, together with what was handed to the writer since."""
PAUSE_S: Final = 60.0


class StoreRoom:
    """Measures the store of a node, if it has a bound.

    Attributes:
        bytes_max: the bound, 0 if there is none.
    """

    def __init__(self, store: NodeStore, writer: StoreWriter, bytes_max: int) -> None:
        """Measure nothing yet.

        Raises:
            LocalError: there is a bound, and it is none that can be kept here.
        """
        if bytes_max and not isinstance(store, KeptStore):
            raise LocalError(
                "this store cannot say how much it holds, so it cannot have a bound",
                hint="let it have held_bytes and delete_many (store.api.KeptStore), or set no bound",
            )
        if bytes_max and bytes_max < limits.STORE_HELD_BYTES_MIN:
            raise LocalError(
                f"the store may hold {bytes_max} bytes; expected 0 for no bound, or at least "
                f"{limits.STORE_HELD_BYTES_MIN}"
            )
        self.bytes_max = bytes_max
        self._store = store
        self._writer = writer
        self._measured = self._written = 0
        self._measured_at = -FRESH_S
        self._measuring = trio.Lock()
        self._warned = 0.0

    @property
    def held(self) -> int:
        """Bytes that the store held when it was measured last, and what was handed over since; 0 without a bound."""
        return self._measured + self._writer.handed_over - self._written if self.bytes_max else 0

    @property
    def full(self) -> bool:
        """Whether nothing more of this node's own is begun."""
        return bool(self.bytes_max) and self.held >= self.bytes_max

    @property
    def nearly_full(self) -> bool:
        """Whether somebody should do something about it."""
        return bool(self.bytes_max) and self.held >= limits.STORE_WARN_SHARE * self.bytes_max

    async def check(self, what: str) -> None:
        """Return if this node may begin something.

        Args:
            what: for people, as "the task was not submitted".

        Raises:
            StoreFull: the store holds as much as it may.
            StoreError: it cannot be read.
        """
        if not self.bytes_max:
            return
        await self._measure()
        if self.full:
            raise StoreFull(
                f"the store holds {self.held} bytes and may hold {self.bytes_max}: {what}",
                hint="leave pools that are not needed, let results be kept for less time, or allow more: "
                "`store.max_bytes`, NodeConfig.store_bytes_max",
            )

    async def run(self) -> None:
        """Measure from time to time, and say in the log when it gets tight, until cancelled."""
        while self.bytes_max:
            await self._measure()
            share = 1.0 if self.full else limits.STORE_WARN_SHARE if self.nearly_full else 0.0
            if share > self._warned:
                _logger.warning(
                    "the store holds %d of %d bytes%s",
                    self.held,
                    self.bytes_max,
                    ": nothing more is submitted, founded or joined" if self.full else "",
                )
            self._warned = share
            await trio.sleep(PAUSE_S)

    async def _measure(self) -> None:
        async with self._measuring:
            if trio.current_time() < self._measured_at + FRESH_S:
                return
            assert isinstance(self._store, KeptStore)
            # what is written meanwhile may be counted twice for as long as this measurement is good, never not at all
            written = self._writer.handed_over - self._writer.waiting[1]
            self._measured = await trio.to_thread.run_sync(self._store.held_bytes)
            self._written = written
            self._measured_at = trio.current_time()
