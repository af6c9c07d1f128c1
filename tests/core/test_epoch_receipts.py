"""A receipt of a later epoch: the electors of each epoch certify the next, from the pool's id on, offline."""

from __future__ import annotations

from dataclasses import replace

import pytest
from pool_kit import Author, Pool, feed, report, value_of
from test_epochs import Live
from test_vetoes import Vetoed

from converge_p2p.core import limits
from converge_p2p.core.codec import decode, encode, encode_value
from converge_p2p.core.errors import CodecError, SignatureError
from converge_p2p.core.model.pool import GovernanceKind, ModelTerms
from converge_p2p.core.model.task import Outcome, TaskValue
from converge_p2p.core.oplog.bodies import Ballot, ClaimBody, Phase, Purpose, ReportBody, VoteBody
from converge_p2p.core.oplog.motions import move_change
from converge_p2p.core.replica import events as ev
from converge_p2p.core.types import TaskId
from converge_p2p.core.view.epochs import EpochValue, epoch_subject
from converge_p2p.core.view.receipt import EpochProof, Receipt, receipt_of


def receipt_at(live: Live, task: TaskId, node: int = 0) -> Receipt:
    replica = live.mesh.replicas[node]
    receipt = receipt_of(replica.view, replica.log, task)
    assert receipt is not None
    return receipt


@pytest.fixture(scope="module")
def twice_changed() -> tuple[Live, list[Receipt]]:
    """A pool whose electors were {0, 1, 2}, then {0, 1, 2, 3}, then {1, 2, 3, 4}; a task settled in each epoch."""
    live = Live(3, 3)
    receipts = []
    for epoch, people in enumerate(((), (0, 1, 2, 3), (1, 2, 3, 4))):
        if people:
            live.agree = {0, 1, 2, 3}
            live.move(terms=live.electors_of(*people))
            live.reach(epoch)
        task = live.submit(b"task%d" % epoch)
        live.settle(task)
        receipts.append(receipt_at(live, task, node=5))
    return live, receipts


def test_the_receipt_of_a_task_carries_every_epoch_up_to_its_own(twice_changed: tuple[Live, list[Receipt]]) -> None:
    _, receipts = twice_changed
    for epoch, receipt in enumerate(receipts):
        assert len(receipt.epochs) == epoch
        receipt.check()
        assert Receipt.from_bytes(receipt.to_bytes()) == receipt


@pytest.mark.parametrize(
    "what", ["none", "first left out", "last left out", "swapped", "few votes", "votes of another epoch", "other terms"]
)
def test_a_chain_of_epochs_that_was_changed_proves_nothing(
    twice_changed: tuple[Live, list[Receipt]], what: str
) -> None:
    live, (_, _, receipt) = twice_changed
    one, two = receipt.epochs
    content = EpochValue.from_bytes(two.value.result)
    mine = replace(content.spec, electors=(live.key(5),))
    other = replace(two.value, result=replace(content, spec=mine).to_bytes())
    epochs = {
        "none": (),
        "first left out": (two,),
        "last left out": (one,),
        "swapped": (two, one),
        "few votes": (one, EpochProof(two.value, two.votes[:1])),
        "votes of another epoch": (one, EpochProof(two.value, one.votes)),
        "other terms": (one, EpochProof(other, two.votes)),
    }[what]
    assert not replace(receipt, epochs=epochs).verify()


def test_electors_of_an_epoch_settle_nothing_in_another() -> None:
    # three electors, of whom two are removed: what they sign later in the name of epoch 1 counts for nothing
    live = Live(3, 2)
    live.move(terms=live.electors_of(2, 3, 4))
    live.reach(1)
    task = live.submit(b"x")
    live.settle(task)
    receipt = receipt_at(live, task)
    receipt.check()
    former = [Author(number, live.pool.id) for number in (1, 2)]
    lie = replace(receipt.value, result=encode_value("a lie"))
    ballots = VoteBody((Ballot(Phase.ACCEPT, task, 7, lie.hash),))
    for epoch in (0, 1, 2):
        votes = tuple(author.sign(ballots, epoch=epoch).signed for author in former)
        # what they settle in epoch 0, where they were electors, they do settle: at most f of them ever lie
        assert replace(receipt, value=lie, votes=votes).verify() is (epoch == 0)
    # nor do votes of two epochs together
    mixed = (former[0].sign(ballots, epoch=0).signed, former[1].sign(ballots, epoch=1).signed)
    assert not replace(receipt, value=lie, votes=mixed).verify()
    # and nobody certifies an epoch by votes that name another one than that before it
    subject = epoch_subject(live.pool.id, 1)
    proof = receipt.epochs[0]
    again = VoteBody((Ballot(Phase.ACCEPT, subject, 3, proof.value.hash),))
    late = tuple(author.sign(again, epoch=1).signed for author in former)
    assert not replace(receipt, epochs=(EpochProof(proof.value, late),)).verify()
    early = tuple(author.sign(again, epoch=0).signed for author in former)
    assert replace(receipt, epochs=(EpochProof(proof.value, early),)).verify()


def test_an_epoch_whose_terms_cannot_be_safe_proves_nothing() -> None:
    pool = Pool(1, 2)
    leader = pool.electors[0]
    apart = replace(pool.spec, electors=tuple(sorted(author.key for author in pool.people)), quorum=1)
    result = EpochValue(1, pool.id, pool.genesis.id, apart, (), ()).to_bytes()
    value = replace(value_of(leader), result=result)
    certify = leader.sign(VoteBody((Ballot(Phase.ACCEPT, epoch_subject(pool.id, 1), 0, value.hash),)))
    task, settled = TaskId(bytes(32)), value_of(leader, "x")
    accept = leader.sign(VoteBody((Ballot(Phase.ACCEPT, task, 0, settled.hash),)), epoch=1)
    proof = (EpochProof(value, (certify.signed,)),)
    receipt = Receipt(pool.id, task, settled, pool.genesis.signed, (accept.signed,), proof)
    with pytest.raises(SignatureError, match="unsafe governance"):
        receipt.check()


@pytest.mark.parametrize("word", [True, False])
def test_a_veto_that_is_decided_in_a_later_epoch_than_the_result_is_proven_there(word: bool) -> None:
    live = Vetoed(window_ms=60_000)
    task = live.submit(b"x")
    live.await_veto(task)
    live.move(terms=live.electors_of(0, 1, 2, 3))
    live.reach(1)
    live.word = word
    live.mesh.at(1, 4, ev.Veto(task, word, "late"))
    live.settle(task)
    receipt = receipt_at(live, task)
    assert receipt.veto is not None
    assert receipt.value.outcome is (Outcome.FAILED if word else Outcome.COMPLETED)
    assert len(receipt.epochs) == 1
    receipt.check()
    assert Receipt.from_bytes(receipt.to_bytes()) == receipt
    assert not replace(receipt, epochs=()).verify()
    with pytest.raises(SignatureError, match="might deny"):
        replace(receipt, value=receipt.veto.result, veto=None).check()


def test_a_result_that_no_veto_was_asked_for_is_not_proven_once_there_were_vetoers() -> None:
    # who could show that nothing was accepted of it while they had a say?
    live = Vetoed(window_ms=50)
    live.settle(live.submit(b"before"))
    live.move(terms=replace(live.terms, governance=GovernanceKind.DEMOCRATIC, model=ModelTerms()))
    live.reach(1)
    task = live.submit(b"after")
    live.settle(task)
    with pytest.raises(SignatureError, match="might deny"):
        receipt_at(live, task).check()


def test_a_vote_that_certified_an_epoch_while_it_waited_for_a_predecessor_is_in_the_receipt() -> None:
    pool = Pool(3, 1)
    leader, subject = pool.electors[0], epoch_subject(pool.id, 1)
    motion = leader.sign(move_change((), replace(pool.spec, quorum=3)))
    standing = leader.sign(ClaimBody(subject, Purpose.EPOCH, ref=motion.id))
    promises = pool.votes(Phase.GRANT, subject, 0, standing.id, (0, 1))
    names = tuple(sorted(promise.id for promise in promises))
    content = EpochValue(1, pool.id, motion.id, replace(pool.spec, quorum=3), (), names)
    value = TaskValue(Outcome.COMPLETED, leader.key, content.to_bytes())
    proposal = report(leader, subject, 0, value, promises)
    # what the third elector said before is not here, and may be nowhere any more
    accepts = [
        pool.electors[0].sign(VoteBody((Ballot(Phase.ACCEPT, subject, 0, value.hash),))),
        pool.electors[2].sign(VoteBody((Ballot(Phase.ACCEPT, subject, 0, value.hash),)), seq=5, prev=bytes(32)),
    ]
    replica = pool.replica()
    feed(replica, [*pool.base, motion, standing, *promises, proposal, *accepts])
    assert replica.epoch == 1
    assert replica.log.get(accepts[1].id) is None
    task, submit = pool.submit()
    result = value_of(pool.workers[0])
    pool.electors[2].seq, pool.electors[2].prev = 0, None
    late = VoteBody((Ballot(Phase.ACCEPT, task, 0, result.hash),))
    settling = [elector.sign(late, epoch=1) for elector in pool.electors]
    told = pool.workers[0].sign(ReportBody(task, 0, result, ()), epoch=1)
    feed(replica, [submit, told, *settling])
    receipt = receipt_of(replica.view, replica.log, task)
    assert receipt is not None
    receipt.check()
    assert accepts[1].signed in receipt.epochs[0].votes


def test_the_bytes_of_a_receipt_are_bounded_and_of_this_version_only(
    twice_changed: tuple[Live, list[Receipt]],
) -> None:
    _, (_, _, receipt) = twice_changed
    plain = decode(receipt.to_bytes())
    assert plain[0] == 2
    for position, wrong in (
        (0, 1), (0, True), (5, None), (5, [[1]]), (5, [[plain[5][0][0], plain[5][0][1], 1]]),
        (5, [plain[5][0]] * (limits.RECEIPT_EPOCHS_MAX + 1)), (5, [[plain[5][0][0], [1]]]),
    ):  # fmt: skip
        changed = list(plain)
        changed[position] = wrong
        with pytest.raises(CodecError):
            Receipt.from_bytes(encode(changed))
