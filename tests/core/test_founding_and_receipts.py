"""Who may write at all, by the founding terms alone; and proof of a settlement for somebody who was not there."""

from __future__ import annotations

from dataclasses import replace

import pytest
from pool_kit import Author, Pool, claim, feed, now, rejected, report, settle_writes, signed, value_of

from converge_p2p.core.codec import encode, encode_value
from converge_p2p.core.errors import CodecError, SignatureError
from converge_p2p.core.model.pool import AdmissionKind
from converge_p2p.core.model.task import Outcome, TaskValue
from converge_p2p.core.oplog.bodies import Ballot, JoinBody, LeaveBody, Phase, VoteBody
from converge_p2p.core.oplog.operation import Operation
from converge_p2p.core.replica import events as ev
from converge_p2p.core.replica.machine import Replica
from converge_p2p.core.types import TaskId
from converge_p2p.core.view.receipt import Receipt, receipt_of


def test_a_stranger_to_a_whitelist_pool_leaves_nothing_behind_at_any_sequence_number() -> None:
    pool = Pool(admission=AdmissionKind.WHITELIST)
    replica = pool.replica()
    feed(replica, [pool.genesis])
    before = replica.log.digest()
    stranger = Author(99, pool.id)
    chain = [stranger.sign(JoinBody()), stranger.sign(LeaveBody()), stranger.sign(JoinBody())]
    for operation in reversed(chain):
        # the chain of a successor begins with the word of another key, so only its first operation is to blame
        assert rejected(feed(replica, [operation])) == ["no_predecessor" if operation.seq else "not_member"]
    assert replica.log.digest() == before
    assert not replica.log.has_parked()


def test_a_creator_that_forks_at_its_first_operation_cannot_take_the_founding_away() -> None:
    pool = Pool()
    replica = pool.replica()
    feed(replica, [pool.genesis])
    twin = Author(1, pool.id)
    assert twin.key == pool.genesis.author
    assert rejected(feed(replica, [twin.sign(JoinBody())])) == ["bad_genesis"]
    assert replica.log.frozen_at(twin.key) is None
    # even a second founding of the same pool, which is a true fork, leaves newcomers something to begin with
    again = Author(1, pool.id)
    again.hlc = 77
    feed(replica, [again.sign(pool.genesis.body)])
    assert replica.log.frozen_at(twin.key) == 0
    answers = replica.handle(ev.SyncReceived("newcomer", encode([4])), now())  # type: ignore[arg-type]
    newcomer = pool.replica(201)
    for effect in answers:
        if isinstance(effect, ev.Send):
            newcomer.handle(ev.SyncReceived("replica", effect.payload), now())  # type: ignore[arg-type]
    assert newcomer.ready


def test_an_own_operation_that_finds_its_key_forked_does_not_break_the_replica() -> None:
    pool = Pool()
    me = Replica(pool.workers[0].identity, pool.id)
    feed(me, pool.base)
    # the same key at work on another machine
    twin = Author(0, pool.id)
    twin.identity, twin.key = pool.workers[0].identity, pool.workers[0].key
    effects = me.handle(ev.Join(("x",)), now())
    feed(me, [twin.sign(JoinBody(("y",))), twin.sign(LeaveBody())])
    settle_writes(me, effects)
    assert me.ready


def settled_pool() -> tuple[Pool, Replica, TaskValue, bytes]:
    """A replica that saw a task settled on a value, and the task."""
    pool = Pool()
    task, submit = pool.submit()
    worker = pool.workers[0]
    standing = claim(worker, task)
    grants = [pool.grant(who, task, 0, standing) for who in (0, 1)]
    value = value_of(worker)
    proposal = report(worker, task, 0, value, grants)
    endorsements = pool.votes(Phase.ENDORSE, task, 0, value.hash)
    accepts = pool.votes(Phase.ACCEPT, task, 0, value.hash, (0, 2))
    replica = pool.replica()
    feed(replica, [*pool.base, submit, standing, *grants, proposal, *endorsements, *accepts])
    return pool, replica, value, task


def test_a_receipt_proves_a_settlement_to_somebody_who_has_only_the_pool_id() -> None:
    pool, replica, value, task = settled_pool()
    receipt = receipt_of(replica.view, replica.log, task)  # type: ignore[arg-type]
    assert receipt is not None
    read = Receipt.from_bytes(receipt.to_bytes())
    assert read == receipt
    assert read.verify()
    assert read.pool == pool.id
    assert read.value == value
    assert set(read.signers) < {elector.key for elector in pool.electors}
    assert list(read.signers) == sorted(read.signers)
    assert len(read.signers) == 2


@pytest.mark.parametrize("what", ["value", "task", "pool", "votes", "few votes", "genesis", "signature"])
def test_a_receipt_that_was_changed_proves_nothing(what: str) -> None:
    pool, replica, value, task = settled_pool()
    receipt = receipt_of(replica.view, replica.log, task)  # type: ignore[arg-type]
    assert receipt is not None
    other = Pool(electors=1)
    broken = {
        "value": replace(receipt, value=TaskValue(Outcome.FAILED, value.worker, encode_value("no"))),
        "task": replace(receipt, task=bytes(32)),
        "pool": replace(receipt, pool=other.id),
        "votes": replace(receipt, votes=signed([pool.genesis, *pool.base[1:2]])),
        "few votes": replace(receipt, votes=receipt.votes[:1]),
        "genesis": replace(receipt, genesis=other.genesis.signed),
        "signature": replace(receipt, votes=(bytes(64) + receipt.votes[0][64:], receipt.votes[1])),
    }[what]
    assert not broken.verify()
    with pytest.raises(SignatureError):
        broken.check()
    with pytest.raises(SignatureError):
        _ = broken.signers


def test_votes_of_others_than_the_electors_do_not_settle_a_receipt() -> None:
    pool, replica, value, task = settled_pool()
    receipt = receipt_of(replica.view, replica.log, task)  # type: ignore[arg-type]
    assert receipt is not None
    liars: list[Operation] = []
    for number in (70, 71, 72):
        liar = Author(number, pool.id)
        liars.append(liar.sign(VoteBody((Ballot(Phase.ACCEPT, TaskId(task), 1, value.hash),))))
    assert not replace(receipt, votes=signed(liars)).verify()


def test_only_electors_are_named_as_signers_though_anybody_can_add_votes_to_a_proof() -> None:
    pool, replica, value, task = settled_pool()
    receipt = receipt_of(replica.view, replica.log, task)  # type: ignore[arg-type]
    assert receipt is not None
    stranger = Author(70, pool.id)
    accept = VoteBody((Ballot(Phase.ACCEPT, TaskId(task), 0, value.hash),))
    padded = replace(receipt, votes=(*receipt.votes, stranger.sign(accept).signed))
    assert padded.verify()
    assert padded.signers == receipt.signers
    proven = padded.prove()
    assert (proven.epoch, proven.signers, [terms.spec for terms in proven.terms]) == (0, receipt.signers, [pool.spec])


def test_there_is_no_receipt_before_the_settlement() -> None:
    pool = Pool()
    task, submit = pool.submit()
    replica = pool.replica()
    feed(replica, [*pool.base, submit])
    assert receipt_of(replica.view, replica.log, task) is None


@pytest.mark.parametrize("data", [b"", encode([1]), encode([2, b"", b"", [0, b"", b""], b"", []]), encode({})])
def test_what_is_no_receipt_is_refused(data: bytes) -> None:
    with pytest.raises(CodecError):
        Receipt.from_bytes(data)
