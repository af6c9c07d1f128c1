"""The switchboard: each frame to its pool, and nothing a peer sends harms more than the peer itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
from node_library_kit import DriverRig, FakeNetwork, ManualWriter, founding, spec_of, who

from converge_p2p.core import limits
from converge_p2p.core.codec import encode
from converge_p2p.core.replica import events as ev
from converge_p2p.core.replica.wire import Operations, encode_message
from converge_p2p.core.types import PoolId
from converge_p2p.net import peer_id_of
from converge_p2p.node.discovery import DiscoveryService
from converge_p2p.node.mail import Mail
from converge_p2p.node.replay_journal import ReplayJournal
from converge_p2p.node.switchboard import (
    PULSE_S,
    SILENT_S,
    Switchboard,
    gossip_topic,
)
from converge_p2p.store.memory import MemoryStore

ME = who(1)
PEER, SECOND = peer_id_of(who(2).public_key), peer_id_of(who(3).public_key)
POOL_FRAME, ANNOUNCE, NOT_HERE, PULSE = b"\x00", b"\x01", b"\x02", b"\x03"


class Rig:
    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        self.network: Any = FakeNetwork(ME)
        self.writer = ManualWriter()
        self.counters: Counter[str] = Counter()
        self.mail = Mail(ME, lambda _message, /, *, private: None, ReplayJournal(MemoryStore()))
        self.discovery = DiscoveryService(ME, MemoryStore(), self.counters, self.mail.registry)
        self.board = Switchboard(self.mail, self.writer, self.discovery, self.counters)  # type: ignore[arg-type]

    async def open(self) -> None:
        await self.mail.start(self.nursery, trusted=True)
        await self.board.open(self.network, self.nursery)

    def attach(self) -> DriverRig:
        """A pool of this node, driven for real, whose frames go through the switchboard."""
        pool = DriverRig(ME)
        pool.driver._wire = self.board
        pool.found()
        self.board.attach(pool.driver)
        return pool

    async def keep_alive(self, peer: Any) -> None:
        """Play a peer that has nothing to say, and lives."""
        while True:
            await trio.sleep(PULSE_S)
            self.board.frame(peer, PULSE)

    def frames(self, kind: bytes) -> list[tuple[Any, bytes]]:
        return [(peer, frame) for peer, frame in self.network.frames if frame[:1] == kind]


@pytest.fixture
async def rig(nursery: trio.Nursery) -> AsyncIterator[Rig]:
    rig = Rig(nursery)
    await rig.open()
    yield rig
    nursery.cancel_scope.cancel()


async def settle() -> None:
    await trio.testing.wait_all_tasks_blocked()


@pytest.mark.parametrize(
    "frame", [b"", b"\x09", b"\x00short", b"\x02" + b"x" * 31, b"\x01junk", b"\x01" + encode([[1]])]
)
async def test_a_malformed_frame_is_counted_and_nothing_else_happens(rig: Rig, frame: bytes) -> None:
    rig.attach()
    rig.board.peer_up(PEER)
    sent = list(rig.network.frames)
    rig.board.frame(PEER, frame)
    assert rig.counters["frames_malformed"] + rig.counters["announcements_refused"] == 1
    assert rig.network.frames == sent


async def test_a_frame_for_a_pool_that_is_not_here_is_answered_so_that_the_peer_stops(rig: Rig) -> None:
    rig.board.peer_up(PEER)
    rig.board.frame(PEER, POOL_FRAME + b"p" * 32 + b"anything")
    assert rig.frames(NOT_HERE) == [(PEER, NOT_HERE + b"p" * 32)]
    # the answer to that answer is silence, or two nodes would answer each other for ever
    rig.board.frame(PEER, NOT_HERE + b"p" * 32)
    assert len(rig.frames(NOT_HERE)) == 1


async def test_a_peer_without_the_pool_is_left_alone_until_it_speaks_of_it(rig: Rig) -> None:
    pool = rig.attach()
    rig.board.peer_up(PEER)
    assert pool.driver.replica.has_peer(PEER)
    rig.board.frame(PEER, NOT_HERE + pool.driver.pool)
    assert not pool.driver.replica.has_peer(PEER)
    rig.board.frame(PEER, POOL_FRAME + pool.driver.pool + encode_message(Operations(())))
    assert pool.driver.replica.has_peer(PEER)


async def test_a_peer_that_falls_silent_is_given_up_and_one_that_pulses_is_not(
    rig: Rig, autojump_clock: trio.testing.MockClock
) -> None:
    pool = rig.attach()
    for peer in (PEER, SECOND):
        rig.board.peer_up(peer)
    rounds = int(3 * SILENT_S / PULSE_S)
    for _ in range(rounds):
        await trio.sleep(PULSE_S)
        rig.board.frame(SECOND, PULSE)
    assert rig.network.disconnected == [PEER]
    assert rig.board.connected == {who(3).public_key}
    assert not pool.driver.replica.has_peer(PEER)
    assert pool.driver.replica.has_peer(SECOND)
    assert rig.counters["peers_silent"] == 1
    # both sides say that they live, as long as they believe in each other
    pulses = [peer for peer, _ in rig.frames(PULSE)]
    assert pulses.count(SECOND) >= rounds - 1
    assert 0 < pulses.count(PEER) <= SILENT_S / PULSE_S


async def test_a_new_peer_hears_of_all_pools_and_the_others_of_a_new_pool(rig: Rig) -> None:
    pool = rig.attach()
    rig.board.peer_up(PEER)
    assert len(rig.frames(ANNOUNCE)) == 1
    assert pool.driver.pool in rig.frames(ANNOUNCE)[0][1]
    rig.board.peer_up(SECOND)
    rig.network.frames.clear()
    heard, operation = founding(who(5), 5)
    rig.board.frame(PEER, ANNOUNCE + encode([[heard, operation.signed]]))
    # passed on once, and not back to where it came from
    assert [peer for peer, _ in rig.frames(ANNOUNCE)] == [SECOND]
    rig.board.frame(SECOND, ANNOUNCE + encode([[heard, operation.signed]]))
    assert len(rig.frames(ANNOUNCE)) == 1


async def test_watchers_get_the_known_pools_first_and_then_the_new_ones(rig: Rig) -> None:
    pool = rig.attach()
    heard, operation = founding(who(5), 5)
    async with rig.board.watch_pools() as channel:
        rig.board.peer_up(PEER)
        rig.board.frame(PEER, ANNOUNCE + encode([[heard, operation.signed]]))
        assert [channel.receive_nowait().id for _ in range(2)] == [pool.driver.pool, heard]


async def test_while_the_writer_is_full_frames_are_dropped_and_counted(rig: Rig) -> None:
    pool = rig.attach()
    rig.writer.full = True
    rig.board.frame(PEER, POOL_FRAME + pool.driver.pool + encode_message(Operations(())))
    assert rig.counters["frames_dropped_writer_full"] == 1
    assert not pool.driver.replica.has_peer(PEER)


async def test_operations_go_to_connected_members_directly_and_are_not_gossiped_too(rig: Rig) -> None:
    pool = rig.attach()
    rig.board.peer_up(PEER)
    rig.network.frames.clear()
    pool.driver.propose(ev.Submit(spec_of()))
    pool.writer.commit()
    await settle()
    carried = [frame for peer, frame in rig.frames(POOL_FRAME) if peer == PEER]
    assert any(pool.writer.rows[-1][1] in frame for frame in carried)
    assert rig.network.published == []


async def test_operations_are_gossiped_while_a_member_is_heard_of_who_is_not_connected(
    rig: Rig, autojump_clock: Any
) -> None:
    pool = rig.attach()
    await settle()
    far = DriverRig(who(7), pool.driver.pool)
    far.driver.feed(ev.Received((pool.writer.rows[0][1],)))
    far.writer.commit()
    far.driver.propose(ev.Join())
    far.writer.commit()
    join = far.writer.rows[-1][1]
    assert rig.network.bring(gossip_topic(pool.driver.pool), encode_message(Operations((join,))))
    pool.driver.propose(ev.Submit(spec_of(key=b"1")))
    pool.writer.commit()
    await settle()
    assert [topic for topic, _ in rig.network.published] == [gossip_topic(pool.driver.pool)]
    # a minute later, without another word of it, the gossip ends
    await trio.sleep(61)
    pool.driver.propose(ev.Submit(spec_of(key=b"2")))
    pool.writer.commit()
    await settle()
    assert len(rig.network.published) == 1


async def test_gossip_of_a_peer_is_not_passed_on_when_it_is_not_genuine(rig: Rig) -> None:
    pool = rig.attach()
    await settle()
    genesis = pool.writer.rows[0][1]
    forged = genesis[:-1] + bytes([genesis[-1] ^ 1])
    assert not rig.network.bring(gossip_topic(pool.driver.pool), encode_message(Operations((forged,))))


async def test_a_pool_that_is_left_is_announced_no_more_and_one_that_comes_back_is_subscribed(rig: Rig) -> None:
    pool = rig.attach()
    rig.board.peer_up(PEER)
    await settle()
    rig.board.detach(pool.driver.pool)
    assert rig.frames(NOT_HERE) == [(PEER, NOT_HERE + pool.driver.pool)]
    assert rig.board.directory.all() == []
    again = DriverRig(ME)
    again.driver.feed(ev.Restored(tuple(row[1] for row in pool.writer.rows)))
    # at once, while the end of the subscription is still under way
    rig.board.attach(again.driver)
    await settle()
    assert gossip_topic(pool.driver.pool) in rig.network.topics
    assert [item.id for item in rig.board.directory.all()] == [pool.driver.pool]


async def test_closing_tells_the_peers_of_every_pool_and_ends_the_watchers(rig: Rig) -> None:
    pool = rig.attach()
    rig.board.peer_up(PEER)
    async with rig.board.watch_pools() as channel:
        rig.board.close()
        assert len([item async for item in channel]) == 1
    assert rig.frames(NOT_HERE) == [(PEER, NOT_HERE + pool.driver.pool)]


async def test_a_stranger_that_announces_for_ever_gets_no_more_than_its_quota(rig: Rig) -> None:
    pool = rig.attach()
    for round_ in range(6):
        rig.board.peer_up(PEER)
        for number in range(20):
            item: tuple[PoolId, Any] = founding(who(5), 100 * round_ + number)
            rig.board.frame(PEER, ANNOUNCE + encode([[item[0], item[1].signed]]))
        rig.board.peer_down(PEER)
    assert len(rig.board.directory.all()) == 1 + limits.POOLS_PER_PEER_ANNOUNCED_MAX
    assert rig.board.directory.get(pool.driver.pool) is not None
