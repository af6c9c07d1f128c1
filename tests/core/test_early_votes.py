"""Votes for the next epoch that count without their predecessors: a lying elector cannot make them many."""

from __future__ import annotations

import pytest
from pool_kit import WALL_MS, Author, Mesh, feed, stored_by
from test_epochs import Live, removal_that_the_removed_certified

from converge_p2p.core import limits
from converge_p2p.core.oplog.bodies import Ballot, Phase, VoteBody
from converge_p2p.core.oplog.operation import Operation
from converge_p2p.core.replica import events as ev
from converge_p2p.core.types import OperationId
from converge_p2p.core.view.epochs import epoch_subject

FLOOD = 48


def flood(live: Live, liar: Author) -> list[Operation]:
    """Votes of an elector far ahead of its chain, each of as many rounds as a vote may have."""
    subject, made = epoch_subject(live.pool.id, 1), []
    for number in range(FLOOD):
        rounds = range(number * limits.BALLOTS_PER_VOTE_MAX, (number + 1) * limits.BALLOTS_PER_VOTE_MAX)
        ballots = tuple(Ballot(Phase.ACCEPT, subject, each, bytes([each % 256]) * 32) for each in rounds)
        body = VoteBody(ballots)
        made.append(liar.branch().sign(body, seq=100_000 + number, prev=OperationId(bytes(32)), hlc=WALL_MS << 16))
    return made


@pytest.mark.no_cover
@pytest.mark.parametrize("nonce", range(3))
def test_a_flood_of_a_liar_is_bounded_and_what_the_epoch_rests_on_still_counts(nonce: int) -> None:
    live = removal_that_the_removed_certified(nonce)
    newcomer = live.pool.replica(digest_interval_ms=500)
    stored = stored_by(newcomer)
    feed(newcomer, [live.pool.genesis])
    assert newcomer.ready
    many = flood(live, live.pool.people[2])
    assert sum(len(operation.signed) for operation in many) > 3 * limits.EARLY_BYTES_PER_AUTHOR_MAX
    for operation in many:
        feed(newcomer, [operation])
    assert sum(map(len, stored)) <= limits.EARLY_BYTES_PER_AUTHOR_MAX + limits.OPERATION_BYTES_MAX
    change = newcomer.view.changes_at(1)
    assert 0 < sum(map(len, change.early.values())) <= limits.EARLY_BYTES_PER_AUTHOR_MAX
    assert len(change.rounds) < FLOOD * limits.BALLOTS_PER_VOTE_MAX / 3

    pair = Mesh([live.mesh.replicas[0], newcomer], gossip=False)
    pair.now_ms = live.mesh.now_ms
    pair.connect()
    pair.run(lambda: newcomer.epoch == 1)
    assert newcomer.view.epochs[1].hash == live.mesh.replicas[0].view.epochs[1].hash
    first, *others = dict.fromkeys(stored)
    again = live.pool.replica()
    again.handle(ev.Restored((first, *others)), ev.Now(0, 0))
    assert again.epoch == 1, "what counted before a restart counts after it, whatever came first"
    again = live.pool.replica()
    again.handle(ev.Restored((first, *reversed(others))), ev.Now(0, 0))
    assert again.epoch == 1
