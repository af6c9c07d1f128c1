"""Where a removed author is cut: nobody takes an elector's word for what is not held here."""

from __future__ import annotations

import pytest
from pool_kit import Pool, claim, feed, published, report

from converge_p2p.core.model.task import Outcome, TaskValue
from converge_p2p.core.oplog.bodies import Ballot, ClaimBody, Cut, Phase, Purpose, ReportBody, VoteBody
from converge_p2p.core.oplog.log import OperationLog
from converge_p2p.core.oplog.motions import YES, OpinionBody, move_change
from converge_p2p.core.oplog.operation import Operation
from converge_p2p.core.replica.machine import Replica
from converge_p2p.core.types import OperationId, TaskId
from converge_p2p.core.view.epochs import EpochValue, epoch_subject

NOWHERE = OperationId(b"?" * 32)


class Removal:
    """A pool of four electors, one of whom may lie, that removes its second worker."""

    def __init__(self) -> None:
        self.pool = Pool(4, 2, faults=1)
        self.task, submit = self.pool.submit()
        self.gone = self.pool.workers[1]
        self.words = [claim(self.gone, self.task) for _ in range(3)]
        motion = self.pool.electors[0].sign(move_change((self.gone.key,), None, "silent"))
        yes = [elector.sign(OpinionBody(motion.id, YES)) for elector in self.pool.electors[:3]]
        self.subject: TaskId = epoch_subject(self.pool.id, 1)
        self.claim = self.pool.electors[0].sign(ClaimBody(self.subject, Purpose.EPOCH, 0, "", motion.id))
        self.motion = motion
        self.base = [*self.pool.base, submit, motion, *yes, self.claim]

    @property
    def truth(self) -> Cut:
        """What there is of the removed author: its join and three claims."""
        return Cut(self.gone.key, 4, self.words[-1].id)

    def promise(self, elector: int, cut: Cut) -> Operation:
        ballot = Ballot(Phase.GRANT, self.subject, 0, self.claim.id, held=(cut,))
        return self.pool.electors[elector].sign(VoteBody((ballot,)))

    def proposal(self, promises: list[Operation]) -> Operation:
        """The first elector proposes the epoch that follows from these promises."""
        held = [cut for one in promises for cut in one.body.ballots[0].held]  # type: ignore[union-attr]
        cut = max(held, key=lambda each: (each.length, each.head or b""))
        names = tuple(sorted(one.id for one in promises))
        epoch = EpochValue(1, self.pool.id, self.motion.id, self.pool.spec, (cut,), names)
        value = TaskValue(Outcome.COMPLETED, self.pool.electors[0].key, epoch.to_bytes())
        return report(self.pool.electors[0], self.subject, 0, value, promises)

    def elector(self, number: int) -> Replica:
        return Replica(self.pool.electors[number].identity, self.pool.id)


def endorsed(replica: Replica, subject: TaskId) -> bool:
    return any(votes.endorsed for votes in replica.view.subject(subject).rounds.values())  # type: ignore[union-attr]


def test_a_log_vouches_for_what_it_holds_and_for_nothing_else() -> None:
    pool = Pool()
    log, author = OperationLog(pool.id), pool.workers[0]
    made = [pool.joins[0], *(author.sign(ClaimBody(TaskId(bytes([number]) * 32))) for number in range(4))]
    assert log.vouches(Cut(author.key, 0, None))
    assert not log.vouches(Cut(author.key, 1, made[0].id))
    for operation in made[:3]:
        log.insert(operation)
    assert all(log.vouches(Cut(author.key, number + 1, made[number].id)) for number in range(3))
    assert not log.vouches(Cut(author.key, 4, made[3].id))
    assert not log.vouches(Cut(author.key, 3, made[1].id))
    assert not log.vouches(Cut(pool.workers[1].key, 3, made[2].id))
    assert not log.vouches(Cut(author.key, 10**6, made[2].id))


def test_beyond_a_fork_anything_may_be_said_for_nothing_there_counts() -> None:
    pool = Pool()
    log, author = OperationLog(pool.id), pool.workers[0]
    log.insert(pool.joins[0])
    other = author.branch()
    for one in (author, other):
        log.insert(one.sign(ClaimBody(TaskId(one.hlc.to_bytes(1, "big") * 32), bid=1 if one is author else 2)))
    assert log.forked(author.key)
    assert log.vouches(Cut(author.key, 1, pool.joins[0].id))
    assert log.vouches(Cut(author.key, 2, NOWHERE))
    assert not log.vouches(Cut(author.key, 1, NOWHERE))


@pytest.mark.parametrize("length", [5, 10**6])
def test_no_honest_elector_endorses_an_epoch_that_cuts_where_it_holds_nothing(length: int) -> None:
    removal = Removal()
    promises = [removal.promise(number, removal.truth) for number in (0, 1)]
    lie = removal.promise(3, Cut(removal.gone.key, length, NOWHERE))
    replica = removal.elector(1)
    feed(replica, [*removal.base, *removal.words, *promises, lie, removal.proposal([*promises, lie])])
    assert not endorsed(replica, removal.subject)


def test_an_elector_endorses_as_soon_as_it_holds_what_the_promises_speak_of() -> None:
    removal = Removal()
    promises = [removal.promise(number, removal.truth) for number in (0, 2, 3)]
    replica = removal.elector(1)
    feed(replica, [*removal.base, *removal.words[:2], *promises, removal.proposal(promises)])
    assert not endorsed(replica, removal.subject), "the last word of the removed author is not here"
    feed(replica, removal.words[2:])
    assert endorsed(replica, removal.subject)


def test_a_proposer_leaves_out_a_promise_that_says_what_it_cannot_see() -> None:
    removal = Removal()
    proposer = removal.elector(0)
    lie = removal.promise(3, Cut(removal.gone.key, 9, NOWHERE))
    own = removal.promise(0, removal.truth)
    effects = feed(proposer, [*removal.base, *removal.words, own, lie, removal.promise(1, removal.truth)])
    assert not [body for body in published(effects) if isinstance(body, ReportBody)]
    effects = feed(proposer, [removal.promise(2, removal.truth)])
    (made,) = [body for body in published(effects) if isinstance(body, ReportBody)]
    assert EpochValue.from_bytes(made.value.result).cuts == (removal.truth,)
    assert lie.id not in made.grants
