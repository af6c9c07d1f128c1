"""Scripted schedules for rules that random seeds seldom miss: without the rule an invariant breaks, with it none.

Each schedule is the shortest that breaks without its rule; who hears what and when is written down.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from converge_p2p.core.governance.models import ProtocolRules
from converge_p2p.core.model.task import Outcome, TaskValue
from converge_p2p.core.oplog.bodies import Ballot, ClaimBody, Cut, Phase, Purpose, ReleaseBody, ReportBody, VoteBody
from converge_p2p.core.oplog.motions import YES, move_change
from converge_p2p.core.replica import events as ev
from converge_p2p.core.replica.events import TimerKind
from converge_p2p.core.types import OperationId, TaskId
from converge_p2p.core.view.epochs import EpochValue
from converge_p2p.testing.ledger import InvariantViolated
from converge_p2p.testing.stage import W1, W2, A, B, C, L, Stage

pytestmark = pytest.mark.simulation

SETTLED_TWICE, CERTIFIED_TWICE, CUT_TOO_LATE = 3, 4, 6
NONCES = 12


# ---------------------------------------------------------------- parts of schedules


def move(stage: Stage, *yes: int) -> OperationId:
    """A moves a change of the policy; the others of `yes` agree. Only they hear of it."""
    policy = replace(stage.spec.policy, max_retries=99)
    stage.event(A, ev.Move(move_change((), replace(stage.spec, policy=policy), "because")))
    motion = stage.said[A][-2].id
    for who in yes:
        stage.tell(A, who)
        stage.event(who, ev.Say(motion, YES))
    return motion


def settle_unseen(stage: Stage) -> TaskId:
    """A value is settled by A and B, and neither of them, nor C, knows that both accepted it."""
    task = stage.submit()
    stage.meet(A, B, C)
    stage.report(W1, task, 0, stage.value(W1, 1), stage.grants(task, 0, A, B), A, B)
    endorsed = len(stage.said[B])
    stage.tell(A, B)
    assert len(stage.said[B]) == endorsed + 1, "B accepts"
    stage.tell(B, A, but=1)
    return task


def found(stage: Stage) -> None:
    """C proposes the next epoch; A and C promise, endorse and accept it."""
    stage.fire(C, TimerKind.CLOSE, stage.change())
    stage.meet(A, C)
    assert stage.replicas[A].epoch == stage.replicas[C].epoch == 1


def settle_next(stage: Stage, task: TaskId) -> None:
    """In the next epoch W1 reports another value, to A and C."""
    stage.meet(A, C)
    stage.report(W1, task, 0, stage.value(W1, 2), stage.grants(task, 0, A, C, epoch=1), A, C, epoch=1)
    stage.meet(A, C)


# ---------------------------------------------------------------- tasks


def short_report(stage: Stage) -> None:
    """A settled value is locked by B; the next claimant names only the promise of C, which knows nothing of it."""
    task = settle_unseen(stage)
    _next_round(stage, task)
    stage.report(W2, task, 1, stage.value(W2, 2), stage.grants(task, 1, C), B, C)
    stage.meet(B, C)


def against_the_lock(stage: Stage) -> None:
    """The next claimant names the promises of B and C, and reports another value than B's lock."""
    task = settle_unseen(stage)
    _next_round(stage, task)
    stage.report(W2, task, 1, stage.value(W2, 2), stage.grants(task, 1, B, C), B, C)
    stage.meet(B, C)


def _next_round(stage: Stage, task: TaskId) -> None:
    """The time of W1 is over at B and C, and W2 stands; C never hears what W1 reported."""
    stage.sign(W2, ClaimBody(task))
    stage.tell(W2, B, C)
    for elector in (B, C):
        stage.fire(elector, TimerKind.CLAIM, task)
    stage.tell(B, C)
    stage.tell(C, B)


def below_the_promise(stage: Stage) -> None:
    """B endorses in round 0, promises round 1, and then hears that A endorsed as well."""
    task = stage.submit()
    stage.meet(A, B, C)
    stage.report(W1, task, 0, stage.value(W1, 1), stage.grants(task, 0, A, B), A, B)
    stage.tell(B, A)
    _next_round(stage, task)
    stage.report(W2, task, 1, stage.value(W2, 2), stage.grants(task, 1, B, C), B, C)
    stage.tell(C, B)
    stage.tell(A, B)
    stage.tell(B, C)


def two_reports_with_a_liar(stage: Stage) -> None:
    """A worker reports two values in one round, and one of four electors lies."""
    task = stage.submit()
    values = sorted((stage.value(W1, 1), stage.value(W1, 2)), key=lambda value: value.hash, reverse=True)
    _two_in_one_round(stage, task, stage.said[W1][-1].id, W1, values)


def _two_in_one_round(stage: Stage, subject: TaskId, claim: OperationId, who: int, values: list[TaskValue]) -> None:
    """The reports rest on different promises, so that A takes the first for valid, and B and C the second."""
    stage.vote(Phase.GRANT, subject, 0, claim)
    stage.tell(L, A, B, C)
    stage.tell(B, A)
    stage.tell(C, B)
    stage.tell(B, C)
    for value, names in zip(values, ((A, B, L), (B, C, L)), strict=True):
        stage.report(who, subject, 0, value, stage.grants(subject, 0, *names))
    stage.tell(who, A, B, C)
    stage.vote(Phase.ACCEPT, subject, 0, values[1].hash)
    for elector in (A, B):
        stage.fire(elector, TimerKind.CLAIM, subject)
    stage.vote(Phase.GRANT, subject, 1, claim)
    stage.tell(A, B)
    stage.tell(B, A)
    stage.tell(L, A, B)
    highest = max(values, key=lambda value: value.hash)
    stage.report(who, subject, 1, highest, stage.grants(subject, 1, A, B, L), A, B)
    stage.vote(Phase.ACCEPT, subject, 1, highest.hash)


# ---------------------------------------------------------------- tasks across epochs


def accepted_after_the_promise(stage: Stage) -> None:
    """A promises the next epoch, then hears that B endorsed and accepts; the promise tells nothing of that."""
    task = stage.submit()
    stage.meet(A, B, C)
    stage.report(W1, task, 0, stage.value(W1, 1), stage.grants(task, 0, A, B), A, B)
    move(stage, C)
    stage.tell(C, A)
    stage.fire(C, TimerKind.CLOSE, stage.change())
    stage.tell(C, A)
    assert stage.grants(stage.change(), 0, A), "A promised"
    stage.tell(B, A)
    stage.tell(A, B)
    stage.meet(A, C)
    settle_next(stage, task)


def settled_before_the_epoch(stage: Stage) -> None:
    """What A accepted before its promise binds the next epoch, although nobody there knows that it was settled."""
    task = settle_unseen(stage)
    move(stage, C)
    stage.tell(C, A)
    stage.fire(C, TimerKind.CLOSE, stage.change())
    # only now, when C has promised, it hears that B endorsed as well, so that what A accepted is justified
    stage.tell(B, C, but=1)
    stage.meet(A, C)
    assert stage.replicas[C].epoch == 1
    settle_next(stage, task)


def lock_of_an_earlier_epoch(stage: Stage) -> None:
    """B alone accepted a value in round 1 of the first epoch; in round 0 of the second another is settled."""
    task = stage.submit()
    stage.meet(A, B, C)
    stage.sign(W2, ClaimBody(task))
    stage.sign(W1, ReleaseBody(task, 0))
    for worker in (W1, W2):
        stage.tell(worker, A, B, C)
    stage.meet(A, B, C)
    old, new = stage.value(W2, 1), stage.value(W2, 2)
    stage.report(W2, task, 1, old, stage.grants(task, 1, A, B), A, B)
    stage.tell(A, B)
    move(stage, C)
    stage.tell(C, A)
    found(stage)
    stage.meet(A, C)
    stage.report(W2, task, 0, new, stage.grants(task, 0, A, C, epoch=1), A, C, epoch=1)
    stage.tell(A, C)
    stage.tell(C, A, but=1)
    # both accepted, and A does not know of C; B hears of the epoch, and of A's votes, but not of the new report
    stage.tell(C, B, but=2)
    stage.tell(A, B)
    stage.tell(C, B, but=2)
    assert stage.replicas[B].epoch == 1
    stage.sign(W1, ClaimBody(task), epoch=1)
    stage.tell(W1, A, B)
    for elector in (A, B):
        stage.fire(elector, TimerKind.CLAIM, task)
    stage.meet(A, B)
    stage.report(W1, task, 1, old, stage.grants(task, 1, A, B, epoch=1), A, B, epoch=1)
    stage.meet(A, B)


# ---------------------------------------------------------------- the register of an epoch


def _first_proposal(stage: Stage) -> None:
    """A proposes an epoch on its promise and B's; B endorses it, and A accepts. C knows nothing."""
    move(stage, B, C)
    for who in (B, C):
        stage.tell(B, who)
        stage.tell(C, who)
    stage.tell(B, A)
    stage.tell(C, A)
    stage.fire(A, TimerKind.CLOSE, stage.change())
    stage.tell(A, B)
    stage.tell(B, A)
    stage.tell(A, B, but=1)
    stage.tell(B, A)


def _second_proposal(stage: Stage) -> None:
    """C proposes another, on its promise and B's for the next round."""
    stage.fire(C, TimerKind.CLOSE, stage.change())
    stage.tell(C, B)
    stage.fire(B, TimerKind.CLAIM, stage.change())
    stage.tell(B, C)
    stage.tell(C, B)


def epoch_accepted_below_a_promise(stage: Stage) -> None:
    """B endorses the first proposal, promises and accepts the second, and then hears that A endorsed the first."""
    _first_proposal(stage)
    _second_proposal(stage)
    stage.tell(A, B)
    stage.tell(B, C)


def epoch_against_a_lock(stage: Stage) -> None:
    """A and B accept the first proposal, unseen by each other; B's promise for the next round tells of it."""
    _first_proposal(stage)
    stage.tell(A, B, but=1)
    stage.fire(C, TimerKind.CLOSE, stage.change())
    stage.tell(C, B)
    stage.fire(B, TimerKind.CLAIM, stage.change())
    stage.tell(B, C)
    # only now, when C has promised the round, it sees that B's lock is justified, and proposes all the same
    stage.tell(A, C, but=1)
    stage.tell(C, B)
    stage.tell(B, C)


def two_epochs_in_one_round(stage: Stage) -> None:
    """The elector that lies proposes two epochs in one round."""
    motion = move(stage, B, C)
    stage.meet(A, B, C)
    claim = stage.sign(L, ClaimBody(stage.change(), Purpose.EPOCH, 0, "", motion))
    stage.tell(L, A, B, C)
    stage.vote(Phase.GRANT, stage.change(), 0, claim.id)
    terms = replace(stage.spec, policy=replace(stage.spec.policy, max_retries=99))
    values = []
    for names in ((A, B, L), (B, C, L)):
        promises = stage.grants(stage.change(), 0, *names)
        epoch = EpochValue(1, stage.pool, motion, terms, (), promises)
        values.append(TaskValue(Outcome.COMPLETED, stage.people[L].public_key, epoch.to_bytes()))
    stage.said[L].pop()
    _two_in_one_round(stage, stage.change(), claim.id, L, values)


def a_cut_where_nobody_holds_anything(stage: Stage) -> None:
    """W2 is expelled; the elector that lies promises early, and says that it holds a thousand operations of W2."""
    stage.event(A, ev.Move(move_change((stage.people[W2].public_key,), None, "because")))
    motion = stage.said[A][-2].id
    for who in (B, C):
        stage.tell(A, who)
        stage.event(who, ev.Say(motion, YES))
    stage.meet(A, B, C)
    stage.fire(A, TimerKind.CLOSE, stage.change())
    claim = next(operation for operation in stage.said[A] if isinstance(operation.body, ClaimBody))
    held = (Cut(stage.people[W2].public_key, 1000, OperationId(bytes(32))),)
    stage.sign(L, VoteBody((Ballot(Phase.GRANT, stage.change(), 0, claim.id, held=held),)))
    stage.tell(L, A, B, C)
    stage.tell(A, B)
    stage.tell(B, A)
    stage.meet(A, B, C)
    assert {replica.epoch for replica in stage.replicas.values()} == {1}


SCHEDULES: list[tuple[str, Callable[[Stage], None], int, int]] = [
    ("check_named_grants", short_report, 0, SETTLED_TWICE),
    ("claims_need_promises", short_report, 0, SETTLED_TWICE),
    ("check_value_against_lock", against_the_lock, 0, SETTLED_TWICE),
    ("lock_rule", against_the_lock, 0, SETTLED_TWICE),
    ("fence_accepts", below_the_promise, 0, SETTLED_TWICE),
    ("endorse_phase", two_reports_with_a_liar, 1, SETTLED_TWICE),
    ("seal_at_promise", accepted_after_the_promise, 0, SETTLED_TWICE),
    ("seal_stops_votes", accepted_after_the_promise, 0, SETTLED_TWICE),
    ("initial_locks", settled_before_the_epoch, 0, SETTLED_TWICE),
    ("lock_by_epoch", lock_of_an_earlier_epoch, 0, SETTLED_TWICE),
    ("epoch_rounds", epoch_accepted_below_a_promise, 0, CERTIFIED_TWICE),
    ("epoch_locks", epoch_against_a_lock, 0, CERTIFIED_TWICE),
    ("epoch_endorse", two_epochs_in_one_round, 1, CERTIFIED_TWICE),
    ("check_cuts", a_cut_where_nobody_holds_anything, 1, CUT_TOO_LATE),
]


@pytest.mark.parametrize(("rule", "schedule", "faults", "invariant"), SCHEDULES, ids=[item[0] for item in SCHEDULES])
def test_without_the_rule_the_schedule_breaks_an_invariant(
    rule: str, schedule: Callable[[Stage], None], faults: int, invariant: int
) -> None:
    # which of two values ranks higher depends on their hashes, so with two in one round some pools are spared
    nonces = range(NONCES if faults else 1)
    violated = {_violated(schedule, ProtocolRules(**{rule: False}), faults, nonce) for nonce in nonces}
    assert violated - {None} == {invariant}
    assert {_violated(schedule, ProtocolRules(), faults, nonce) for nonce in nonces} == {None}


def _violated(schedule: Callable[[Stage], None], rules: ProtocolRules, faults: int, nonce: int) -> int | None:
    try:
        schedule(Stage(rules, faults=faults, nonce=nonce))
    except InvariantViolated as violation:
        return violation.invariant
    return None


def test_a_proposer_leaves_out_the_promise_of_an_elector_that_accepted_what_it_may_not() -> None:
    """The liar accepts what nobody endorsed, and is the first to promise: no honest elector would endorse on that."""
    stage = Stage(ProtocolRules(), faults=1)
    task = stage.submit()
    move(stage, B, C)
    stage.meet(A, B, C)
    stage.vote(Phase.ACCEPT, task, 0, bytes(32))
    stage.fire(A, TimerKind.CLOSE, stage.change())
    claim = next(operation for operation in stage.said[A] if isinstance(operation.body, ClaimBody))
    stage.vote(Phase.GRANT, stage.change(), 0, claim.id)
    stage.tell(L, A, B, C)
    stage.tell(A, B)
    stage.tell(B, A)
    assert not any(isinstance(operation.body, ReportBody) for operation in stage.said[A]), "two promises are too few"
    stage.meet(A, B, C)
    assert {replica.epoch for replica in stage.replicas.values()} == {1}
