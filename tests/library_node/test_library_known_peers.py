"""Known peers: kept for the next start, and never a reason to fail."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from node_library_kit import FakeNetwork, who

from converge_p2p.core import limits
from converge_p2p.core.codec import encode
from converge_p2p.node.known_peers import PEERS_KEY, SAVE_INTERVAL_S, KnownPeers
from converge_p2p.store.memory import MemoryStore


@pytest.fixture
def network() -> Any:
    return FakeNetwork(who(1))


async def test_addresses_are_read_back(network: Any) -> None:
    store = MemoryStore()
    network.good = ("/ip4/10.0.0.1/tcp/1/p2p/a", "/ip4/10.0.0.2/tcp/1/p2p/b")
    await KnownPeers(store).save(network)
    assert await KnownPeers(store).read() == network.good


async def test_nobody_reached_keeps_what_was_written_before(network: Any) -> None:
    store = MemoryStore()
    network.good = ("/ip4/10.0.0.1/tcp/1/p2p/a",)
    await KnownPeers(store).save(network)
    network.good = ()
    await KnownPeers(store).save(network)
    assert await KnownPeers(store).read() == ("/ip4/10.0.0.1/tcp/1/p2p/a",)


@pytest.mark.parametrize("data", [b"\xff", encode({"a": 1}), encode([1, "x"])])
async def test_a_damaged_list_counts_as_none(data: bytes) -> None:
    store = MemoryStore()
    store.put(PEERS_KEY, data)
    assert await KnownPeers(store).read() == ()


async def test_the_list_is_bounded_in_both_directions(network: Any) -> None:
    store = MemoryStore()
    many = [f"/ip4/10.0.0.1/tcp/{port}/p2p/a" for port in range(limits.KNOWN_PEERS_MAX + 9)]
    network.good = tuple(many)
    await KnownPeers(store).save(network)
    assert len(await KnownPeers(store).read()) == limits.KNOWN_PEERS_MAX
    store.put(PEERS_KEY, encode(many))
    assert len(await KnownPeers(store).read()) == limits.KNOWN_PEERS_MAX


async def test_a_store_that_cannot_write_is_logged_and_does_not_end_the_node(
    network: Any, caplog: pytest.LogCaptureFixture
) -> None:
    store = MemoryStore()
    known = KnownPeers(store)
    network.good = ("/ip4/10.0.0.1/tcp/1/p2p/a",)
    store.close()
    await known.save(network)
    assert "not kept" in caplog.text


async def test_they_are_saved_soon_after_the_start_and_then_from_time_to_time(
    network: Any, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[float] = []
    known = KnownPeers(MemoryStore())

    async def save(_network: Any) -> None:
        saved.append(trio.current_time())

    monkeypatch.setattr(known, "save", save)
    start = trio.current_time()
    with trio.move_on_after(300):
        await known.run(network)
    assert saved[0] - start < 2
    assert saved[-1] - saved[-2] == pytest.approx(SAVE_INTERVAL_S)
