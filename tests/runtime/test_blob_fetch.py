"""Fetching blobs: how many at a time, and of whom."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import trio
import trio.testing

from converge_p2p.core import limits
from converge_p2p.core.errors import NetworkError
from converge_p2p.core.identity import Identity
from converge_p2p.core.types import BlobForm, BlobId, BlobRef, PeerId
from converge_p2p.net import peer_id_of
from converge_p2p.node.blob_fetch import BlobFetcher
from converge_p2p.store.blob_files import MemoryFiles
from converge_p2p.store.blobs import BlobStore

SLOW, HONEST = (Identity.from_seed(seed * 32).public_key for seed in (b"1", b"2"))


class Net:
    """A network in which one peer keeps whoever asks waiting, and nobody else has anything."""

    peer_id = PeerId("own")

    def __init__(self) -> None:
        self.asked = Counter[PeerId]()

    def peers(self) -> list[Any]:
        return []

    async def reach(self, peer: PeerId) -> None:
        self.asked[peer] += 1
        if peer == peer_id_of(SLOW):
            await trio.sleep_forever()
        raise NetworkError("it has nothing")


async def test_a_maker_who_keeps_everybody_waiting_does_not_take_all_places(
    autojump_clock: trio.testing.MockClock,
) -> None:
    net = Net()
    fetcher = BlobFetcher(BlobStore(MemoryFiles()), net, Counter())  # type: ignore[arg-type]
    async with trio.open_nursery() as nursery:
        for number in range(2 * limits.BLOB_FETCHES_MAX):
            reference = BlobRef(BlobId(bytes([number] * 32)), 9, SLOW, b"", BlobForm.HANDLE)
            nursery.start_soon(fetcher.fetch, reference, ())
        await trio.testing.wait_all_tasks_blocked()
        assert net.asked[peer_id_of(SLOW)] == limits.BLOB_FETCHES_PER_MAKER_MAX
        with trio.fail_after(60), pytest.raises(NetworkError, match="it has nothing"):
            await fetcher.fetch(BlobRef(BlobId(b"x" * 32), 9, HONEST, b"", BlobForm.HANDLE), ())
        nursery.cancel_scope.cancel()
    assert not fetcher._makers
    assert not fetcher._locks
