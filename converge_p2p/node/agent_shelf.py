"""Descriptors of others, kept for the next start: a node that comes back knows whom it knew, and where they are.

Knows: a few keys of the store, and an index. Must not know: the network.
Source: `docs/operations.md`, files. What the shelf says was verified when it came. What expired since is left out, and
what was replaced is corrected by the first comparison with a peer.
"""

from __future__ import annotations

import logging

import trio

from converge_p2p.core import limits
from converge_p2p.core.codec import decode, encode, tagged_hash
from converge_p2p.core.errors import CodecError, StoreError
from converge_p2p.core.model.agent_index import AgentIndex
from converge_p2p.core.model.descriptor import AgentDescriptor
from converge_p2p.store.api import Store

_logger = logging.getLogger(__name__)

SHELF_KEY = "agents/known/"
SHELVES = 16
SAVE_INTERVAL_S = 60.0
SOURCE = "shelf"
_AT_ONCE = 256


class AgentShelf:
    """Reads and writes what is known of others, by the first digit of the agent id."""

    def __init__(self, store: Store, index: AgentIndex) -> None:
        """Nothing is read yet."""
        self._store = store
        self._index = index
        self._written: dict[int, bytes] = {}

    async def restore(self, now_ms: int) -> int:
        """Put what was kept into the index; say how many it took. A damaged shelf counts as empty: it is only a help.

        Raises:
            StoreError: the store cannot be read.
        """
        count = 0
        for number in range(SHELVES):
            read = await trio.to_thread.run_sync(self._read_now, number)
            for position, descriptor in enumerate(read):
                count += self._index.put(descriptor, SOURCE, now_ms).is_news
                if position % _AT_ONCE == _AT_ONCE - 1:
                    await trio.lowlevel.checkpoint()
        return count

    async def save(self) -> None:
        """Write the shelves that changed. A store that cannot write is only logged: the list is a help."""
        size = limits.AGENT_BUCKETS // SHELVES
        digests = self._index.digests()
        for number in range(SHELVES):
            buckets = range(number * size, (number + 1) * size)
            mark = tagged_hash("agent-shelf", *(digests[bucket] for bucket in buckets))
            if self._written.get(number) == mark:
                continue
            kept: list[bytes] = []
            room = limits.DESCRIPTORS_SHELF_BYTES_MAX
            for descriptor in (each for bucket in buckets for each in self._index.bucket(bucket)):
                data = descriptor.to_bytes()
                room -= len(data) + 8
                if room < 0:
                    break
                kept.append(data)
            try:
                await trio.to_thread.run_sync(self._write_now, number, kept)
            except StoreError as error:
                _logger.warning("descriptors of other agents were not kept: %s", error)
                return
            self._written[number] = mark

    async def run(self) -> None:
        """Save from time to time, until cancelled."""
        while True:
            await trio.sleep(SAVE_INTERVAL_S)
            await self.save()

    def _read_now(self, number: int) -> list[AgentDescriptor]:
        data = self._store.get(f"{SHELF_KEY}{number:x}")
        try:
            plain = [] if data is None else decode(data)
            return [AgentDescriptor.from_bytes(each) for each in plain]
        except (CodecError, TypeError) as error:
            _logger.warning("shelf %x of known agents is damaged: %s", number, error)
            return []

    def _write_now(self, number: int, kept: list[bytes]) -> None:
        self._store.put(f"{SHELF_KEY}{number:x}", encode(kept))
