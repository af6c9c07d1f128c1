"""Who is kept out by people, where the network is a table: several changes at once, and a store that fails."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing
from node_library_kit import who

from converge_p2p.core.codec import decode
from converge_p2p.core.errors import LocalError, NotFound, StoreError
from converge_p2p.core.types import PeerId
from converge_p2p.net import peer_id_of
from converge_p2p.net.conduct import Conduct
from converge_p2p.node.links import BLOCKED_KEY, Links
from converge_p2p.store.memory import MemoryStore

EVE, BOB = (peer_id_of(who(number).public_key) for number in (2, 3))


class SlowStore(MemoryStore):
    """The first write waits until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.go = True, threading.Event()
        self.broken = False

    def put(self, key: str, value: bytes) -> None:
        if self.broken:
            raise StoreError("the disk is full")
        if self.first:
            self.first = False
            assert self.go.wait(10)
        super().put(key, value)


def links_over(store: MemoryStore, conduct: Conduct) -> Links:
    async def ban(peer: PeerId, seconds: float) -> None:
        conduct.ban(peer, seconds)

    known = SimpleNamespace(bans=lambda: conduct.bans(0.0))
    network: Any = SimpleNamespace(ban=ban, unban=conduct.unban, acquaintance=known)
    node: Any = SimpleNamespace(
        peer_id=peer_id_of(who(1).public_key),
        peers=list,
        observation=SimpleNamespace(tell=lambda *_a, **_b: None),
    )
    return Links(node, store, lambda: network)


async def test_two_that_are_kept_out_at_the_same_time_are_both_written_down() -> None:
    store = SlowStore()
    links = links_over(store, Conduct())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(links.block, EVE)
        await trio.testing.wait_all_tasks_blocked(0.01)
        nursery.start_soon(links.block, BOB)
        await trio.testing.wait_all_tasks_blocked(0.01)
        store.go.set()
    assert {peer for peer, _ in decode(store.get(BLOCKED_KEY) or b"")} == {EVE, BOB}


async def test_who_is_kept_out_comes_in_at_no_moment_of_a_change_of_the_time_nor_if_it_fails() -> None:
    store, conduct = SlowStore(), Conduct()
    links = links_over(store, conduct)
    conduct.ban(EVE)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(links.block, EVE, 60.0)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert conduct.banned(EVE, 0.0)
        store.go.set()
    assert conduct.bans(0.0) == {EVE: 60.0}
    store.broken = True
    for change in (links.block(EVE, 1.0), links.unblock(EVE)):
        with pytest.raises(StoreError):
            await change
    assert conduct.bans(0.0) == {EVE: 60.0}


def test_who_is_kept_out_is_named_by_the_digits_of_its_agent_as_when_it_was_connected() -> None:
    conduct = Conduct()
    links = links_over(SlowStore(), conduct)
    digits = who(2).id[:12]
    with pytest.raises(NotFound):
        links.find(digits)
    conduct.ban(EVE, 60.0)
    assert links.find(digits) == EVE


async def test_a_node_is_told_that_it_asks_itself() -> None:
    links = links_over(SlowStore(), Conduct())
    with pytest.raises(LocalError, match="this node itself"):
        await links.ping(peer_id_of(who(1).public_key))
