"""Forks, removals and restarts around an epoch: what a replica keeps does not depend on what it heard first."""

from __future__ import annotations

import contextlib
import itertools

import pytest
from pool_kit import Author, Pool, feed, settle_writes

from converge_p2p.core.codec import encode_value
from converge_p2p.core.errors import RemoteViolation
from converge_p2p.core.model.task import Outcome, TaskValue
from converge_p2p.core.oplog.bodies import Ballot, ClaimBody, JoinBody, LeaveBody, Phase, Purpose, ReportBody, VoteBody
from converge_p2p.core.oplog.log import OperationLog
from converge_p2p.core.oplog.operation import Operation, decode_operation
from converge_p2p.core.replica import events as ev
from converge_p2p.core.types import TaskId

TASK = TaskId(b"t" * 32)


@pytest.fixture
def pool() -> Pool:
    return Pool(3, 2)


def vote(author: Author, number: int) -> Operation:
    return author.sign(VoteBody((Ballot(Phase.ACCEPT, TASK, number, b"v" * 32),)))


def test_a_loose_vote_of_a_later_epoch_waits_for_it(pool: Pool) -> None:
    liar = pool.electors[1]
    other = liar.branch()
    log = OperationLog(pool.id)
    log.insert(liar.sign(JoinBody()))
    assert log.insert(other.sign(JoinBody(("gpu",)))).forked == liar.key
    later = other.sign(LeaveBody(), epoch=1)
    assert not log.insert(later).loose
    assert not log.holds(later.id)
    log.know_epoch(1)
    assert [operation.id for operation in log.unpark().loose] == [later.id]


def test_a_claim_named_like_an_epoch_does_not_hide_the_epoch(pool: Pool) -> None:
    replica = pool.replica()
    feed(replica, pool.base)
    change = replica.view.next_change
    feed(replica, [pool.workers[0].sign(ClaimBody(change.id, Purpose.WORK))])
    assert replica.view.subject(change.id) is change


def test_beyond_a_cut_the_order_of_fork_and_removal_does_not_matter(pool: Pool) -> None:
    liar = pool.workers[0]
    kept = pool.joins[0]
    other = liar.branch()
    value = TaskValue(Outcome.COMPLETED, liar.key, encode_value(1))
    first = [liar.sign(ClaimBody(TASK)), liar.sign(ReportBody(TASK, 0, value, ()))]
    second = [other.sign(ClaimBody(TASK, Purpose.CANCEL))]
    digests = set()
    for order in itertools.permutations(("first", "second", "cut")):
        log = OperationLog(pool.id)
        log.insert(kept)
        for step in order:
            match step:
                case "cut":
                    log.cut(liar.key, 1)
                case _:
                    for operation in first if step == "first" else second:
                        with contextlib.suppress(RemoteViolation):
                            log.insert(operation)
        digests.add(log.digest())
        assert log.holds(first[1].id), "what was certified may rest on the content of a report"
        assert not log.holds(first[0].id)
        assert not log.forked(liar.key)
    assert len(digests) == 1


def test_two_votes_of_one_number_beyond_a_cut_are_a_fork_whenever_they_are_heard_of(pool: Pool) -> None:
    liar = pool.electors[1]
    start = liar.sign(JoinBody())
    other = liar.branch()
    votes = [vote(liar, 0), vote(other, 1)]
    for place in range(3):
        log = OperationLog(pool.id)
        log.insert(start)
        for number, operation in enumerate((*votes, None)):
            if number == place:
                log.cut(liar.key, 1)
            if operation is not None:
                log.insert(operation)
        assert log.forked(liar.key)
        assert log.frozen_at(liar.key) == 1


def test_own_operations_that_have_to_wait_after_a_restart_keep_their_numbers(pool: Pool) -> None:
    me = pool.workers[0]
    mine = me.sign(ClaimBody(TASK), epoch=1)
    restarted = pool.replica(4)
    assert restarted.identity.public_key == me.key
    restarted.handle(ev.Restored((pool.genesis.signed, pool.joins[0].signed, mine.signed)), ev.Now(0, 0))
    assert restarted.log.length(me.key) == 1, "the epoch is not known, so the claim waits"
    effects = settle_writes(restarted, restarted.handle(ev.Join(("cpu",)), ev.Now(0, 0)))
    written = [effect for effect in effects if isinstance(effect, ev.Persist) and effect.durable]
    assert [decode_operation(signed, pool.id).seq for signed in written[0].operations] == [mine.seq + 1]
    assert decode_operation(written[0].operations[0], pool.id).prev == mine.id
