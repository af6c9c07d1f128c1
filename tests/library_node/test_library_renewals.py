"""Renewals in the shell: sent to all, written nowhere, and whoever sends too many or false ones harms nobody."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from node_library_kit import DriverRig, spec_of, who
from test_library_switchboard import ME, PEER, SECOND, Rig, rig, settle

from converge_p2p.core import limits
from converge_p2p.core.identity import SIGNATURE_BYTES
from converge_p2p.core.model.task import task_id
from converge_p2p.core.oplog.bodies import Body, ClaimBody, JoinBody, Purpose, Token
from converge_p2p.core.oplog.operation import sign_operation
from converge_p2p.core.replica import events as ev
from converge_p2p.core.replica.renewal import RENEWAL_TAG, Renewal, sign_renewal
from converge_p2p.core.types import TaskId
from converge_p2p.node.switchboard import gossip_topic

__all__ = ["rig"]

RENEWAL = b"\x04"
WORKER = who(2)


class Working:
    """A task of a pool that the worker behind PEER holds in round 0."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.pool: DriverRig = rig.attach()
        self.driver = self.pool.driver
        rig.board.peer_up(PEER)
        spec = spec_of()
        self.task = task_id(self.driver.pool, ME.public_key, spec.key)
        self.driver.propose(ev.Submit(spec))
        self.pool.writer.commit()
        join = self._sign(JoinBody(()), 0, None)
        claim = self._sign(ClaimBody(self.task, Purpose.WORK), 1, join.id)
        self.driver.feed(ev.Received((join.signed, claim.signed)))
        while self.pool.writer.commit():
            pass
        register = self.driver.replica.view.registers[self.task]
        assert register.holder is not None
        assert register.holder.author == WORKER.public_key
        self.counter = 0

    def _sign(self, body: Body, seq: int, prev: Any) -> Any:
        return sign_operation(WORKER, self.driver.pool, body, seq=seq, prev=prev, epoch=0, hlc=seq + 1)

    def says(self, **changed: Any) -> bytes:
        self.counter += 1
        fields: dict[str, Any] = {"task": self.task, "token": Token(0, 0), "fraction": 5, "note": "n"} | changed
        renewal = Renewal(author=WORKER.public_key, counter=self.counter, **fields)
        return sign_renewal(WORKER, self.driver.pool, renewal)

    def frame(self, signed: bytes, peer: Any = PEER) -> None:
        self.rig.board.frame(peer, RENEWAL + self.driver.pool + signed)

    @property
    def progress(self) -> list[ev.TaskProgress]:
        return [notice for notice in self.pool.notices if isinstance(notice, ev.TaskProgress)]


def forged(signed: bytes) -> bytes:
    return who(3).sign(RENEWAL_TAG, signed[SIGNATURE_BYTES:]) + signed[SIGNATURE_BYTES:]


async def test_a_renewal_is_told_and_written_nowhere(rig: Rig) -> None:
    held = Working(rig)
    rows, digest = list(held.pool.writer.rows), held.driver.replica.log.digest()
    held.frame(held.says())
    assert [(notice.task, notice.fraction, notice.note) for notice in held.progress] == [(held.task, 5, "n")]
    assert held.pool.writer.rows == rows
    assert held.driver.replica.log.digest() == digest
    assert rig.network.blamed == []


async def test_a_flood_of_one_peer_costs_a_bounded_number_of_looks_and_leaves_others_theirs(
    rig: Rig, autojump_clock: trio.testing.MockClock
) -> None:
    held = Working(rig)
    rig.board.peer_up(SECOND)
    for _ in range(2 * limits.RENEWALS_PER_PEER_PER_SECOND_MAX):
        held.frame(held.says(task=TaskId(b"u" * 32)))
    assert rig.counters["renewals_dropped"] == limits.RENEWALS_PER_PEER_PER_SECOND_MAX
    assert held.driver.counters["rejected_renewal_unused"] == limits.RENEWALS_PER_PEER_PER_SECOND_MAX
    held.frame(held.says())
    assert held.progress == [], "the flooder spent its share"
    held.frame(held.says(), SECOND)
    assert len(held.progress) == 1
    await trio.sleep(1)
    held.frame(held.says())
    assert len(held.progress) == 2, "and gets it back"


@pytest.mark.parametrize("gossiped", [False, True])
async def test_a_forged_or_malformed_renewal_is_blamed_and_not_passed_on(rig: Rig, gossiped: bool) -> None:
    held = Working(rig)
    await settle()
    for number, bad in enumerate((forged(held.says()), b"x" * 100, bytes(limits.RENEWAL_BYTES_MAX + 1)), 1):
        if gossiped:
            # the neighbour of the fake network is a peer here
            assert not _bring(rig, held, RENEWAL + bad)
        else:
            held.frame(bad)
        assert len(rig.network.blamed) == number
    assert held.progress == []


async def test_a_replay_is_not_blamed_for_the_network_makes_them_too(rig: Rig) -> None:
    held = Working(rig)
    signed = held.says()
    for _ in range(3):
        held.frame(signed)
    held.frame(held.says(token=Token(0, 4)))
    assert len(held.progress) == 1
    assert rig.network.blamed == []


async def test_gossip_is_passed_on_once_also_if_it_came_by_a_stream_first(rig: Rig) -> None:
    held = Working(rig)
    await settle()
    signed = held.says()
    held.frame(signed)
    assert _bring(rig, held, RENEWAL + signed)
    assert not _bring(rig, held, RENEWAL + signed)
    assert len(held.progress) == 1


async def test_a_renewal_of_an_unknown_pool_is_answered_as_any_frame_is(rig: Rig) -> None:
    rig.board.peer_up(PEER)
    rig.board.frame(PEER, RENEWAL + b"p" * 32 + b"anything")
    rig.board.frame(PEER, RENEWAL + b"short")
    assert rig.frames(b"\x02") == [(PEER, b"\x02" + b"p" * 32)]
    assert rig.counters["frames_malformed"] == 1


async def test_the_own_renewal_goes_to_linked_peers_and_by_gossip_only_while_somebody_is_far(rig: Rig) -> None:
    pool = rig.attach()
    await settle()
    rig.board.peer_up(PEER)
    spec = spec_of()
    task = task_id(pool.driver.pool, ME.public_key, spec.key)
    for command in (ev.Submit(spec), ev.Claim(task)):
        pool.driver.propose(command)
        while pool.writer.commit():
            pass
    pool.driver.propose(ev.Renew(task, 100, "own"))
    await settle()
    ((peer, frame),) = rig.frames(RENEWAL)
    assert (peer, frame[1:33]) == (PEER, pool.driver.pool)
    assert rig.network.published == []
    # an elector without a link is waited for by nobody, and would lose its patience alone
    rig.board.broadcast_pool(pool.driver.pool, frame[33:], [PEER], {ME.public_key, who(3).public_key})
    await settle()
    assert rig.network.published == [(gossip_topic(pool.driver.pool), RENEWAL + frame[33:])]


def _bring(rig: Rig, held: Working, data: bytes) -> bool:
    _, validate = rig.network.topics[gossip_topic(held.driver.pool)]
    return bool(validate(PEER, data))
