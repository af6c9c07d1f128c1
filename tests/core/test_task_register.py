"""The register of a task: who may propose what, and what a set of votes makes of it. No elector of ours takes part."""

from __future__ import annotations

import pytest
from pool_kit import Author, Pool, claim, feed, lock, release, report, value_of

from converge_p2p.core.model.pool import GovernanceKind, ModelTerms, PoolPolicy
from converge_p2p.core.model.task import Outcome, TaskState
from converge_p2p.core.oplog.bodies import JoinBody, LeaveBody, Phase, Purpose, Token
from converge_p2p.core.oplog.operation import Operation
from converge_p2p.core.types import TaskId
from converge_p2p.core.view.register import NOBODY
from converge_p2p.core.view.tasks import TaskRegister

R0, R1 = Token(0, 0), Token(0, 1)


class Case:
    """A pool of three electors with one submitted task, seen by an observer."""

    def __init__(self, **terms: object) -> None:
        self.pool = Pool(**terms)  # type: ignore[arg-type]
        self.worker, self.rival = self.pool.workers[:2]
        self.task, submit = self.pool.submit()
        self.replica = self.pool.replica()
        self.add(*self.pool.base, submit)

    def add(self, *operations: Operation) -> None:
        feed(self.replica, operations)

    @property
    def register(self) -> TaskRegister:
        return self.replica.view.registers[self.task]

    @property
    def state(self) -> TaskState:
        return self.register.state

    def claimed(self, worker: Author, number: int = 0, who: tuple[int, ...] = (0, 1)) -> list[Operation]:
        """A claim and the grants of some electors; returns the grants."""
        operation = claim(worker, self.task)
        grants = [self.pool.grant(index, self.task, number, operation) for index in who]
        self.add(operation, *grants)
        return grants

    def is_valid(self, operation: Operation, token: Token = R0) -> bool:
        self.add(operation)
        return self.register.valid(token, self.register.round(token).reports[operation.id])


@pytest.fixture
def case() -> Case:
    return Case()


def test_a_task_is_pending_until_a_quorum_grants_one_claim(case: Case) -> None:
    operation = claim(case.worker, case.task)
    case.add(operation, case.pool.grant(0, case.task, 0, operation))
    assert case.state is TaskState.PENDING
    case.add(case.pool.grant(2, case.task, 0, operation))
    assert case.state is TaskState.ASSIGNED
    view = case.replica.view.task(case.task)
    assert view is not None
    assert view.assigned_to == case.worker.key
    assert (view.epoch, view.round) == R0


def test_one_elector_voting_twice_is_one_vote(case: Case) -> None:
    operation = claim(case.worker, case.task)
    case.add(operation, *(case.pool.grant(0, case.task, 0, operation) for _ in range(3)))
    assert case.state is TaskState.PENDING


def test_votes_of_others_than_electors_count_nothing(case: Case) -> None:
    operation = claim(case.worker, case.task)
    votes = [person.sign(case.pool.grant(0, case.task, 0, operation).body) for person in case.pool.workers]
    case.add(operation, *votes)
    assert not case.register.rounds


def test_a_split_vote_certifies_nobody(case: Case) -> None:
    one, other = claim(case.worker, case.task), claim(case.rival, case.task)
    case.add(one, other, case.pool.grant(0, case.task, 0, one), case.pool.grant(1, case.task, 0, other))
    assert case.register.certified_id(R0) is None


def test_a_higher_granted_round_supersedes_the_holder(case: Case) -> None:
    case.claimed(case.worker)
    other = claim(case.rival, case.task)
    case.add(other, case.pool.grant(2, case.task, 1, other))
    assert case.state is TaskState.PENDING
    assert case.register.top == R1


def test_a_quorum_of_accepts_settles_for_ever(case: Case) -> None:
    grants = case.claimed(case.worker)
    first, second = value_of(case.worker, 1), value_of(case.worker, 2)
    case.add(report(case.worker, case.task, 0, first, grants))
    case.add(*case.pool.votes(Phase.ENDORSE, case.task, 0, first.hash, (0, 1)))
    case.add(*case.pool.votes(Phase.ACCEPT, case.task, 0, first.hash, (0,)))
    assert not case.state.terminal
    case.add(*case.pool.votes(Phase.ACCEPT, case.task, 0, first.hash, (1,)))
    assert case.state is TaskState.COMPLETED
    case.add(*case.pool.votes(Phase.ACCEPT, case.task, 1, second.hash, (2,)))
    case.add(*case.pool.votes(Phase.GRANT, case.task, 5, grants[0].id, (0, 1)))
    assert case.register.value == first
    assert not case.register.conflict


def test_accepts_of_different_rounds_are_not_added_up(case: Case) -> None:
    value = value_of(case.worker)
    case.add(*case.pool.votes(Phase.ACCEPT, case.task, 0, value.hash, (0,)))
    case.add(*case.pool.votes(Phase.ACCEPT, case.task, 1, value.hash, (1,)))
    assert case.register.settled is None


def test_a_settlement_is_known_before_its_content_and_shown_with_it(case: Case) -> None:
    value = value_of(case.worker)
    grants = case.claimed(case.worker)
    case.add(*case.pool.votes(Phase.ACCEPT, case.task, 0, value.hash, (0, 1)))
    assert case.register.settled == value.hash
    assert case.state is TaskState.ASSIGNED
    assert case.register.holder is None
    case.add(report(case.worker, case.task, 0, value, grants))
    assert case.state is TaskState.COMPLETED


def test_a_settlement_without_content_looks_the_same_whether_grants_came_before_or_after() -> None:
    early, late = Case(), Case()
    value = value_of(early.worker)
    operation = claim(early.worker, early.task)
    first, second = (early.pool.grant(index, early.task, 0, operation) for index in (0, 2))
    accepts = early.pool.votes(Phase.ACCEPT, early.task, 0, value.hash, (0, 1))
    early.add(operation, first, second, *accepts)
    late.add(operation, first, *accepts, second)
    assert early.state is late.state is TaskState.ASSIGNED


def test_a_second_certificate_is_noticed() -> None:
    case = Case()
    one, other = value_of(case.worker, 1), value_of(case.worker, 2)
    case.add(*case.pool.votes(Phase.ACCEPT, case.task, 0, one.hash, (0, 1)))
    case.add(*case.pool.votes(Phase.ACCEPT, case.task, 1, other.hash, (1, 2)))
    assert case.register.settled == one.hash
    assert case.register.conflict


# ------------------------------------------------------------ proposals


def test_a_report_rests_on_a_quorum_of_promises_for_its_claim(case: Case) -> None:
    grants = case.claimed(case.worker)
    value = value_of(case.worker)
    assert case.is_valid(report(case.worker, case.task, 0, value, grants))
    assert not case.is_valid(report(case.worker, case.task, 0, value, grants[:1])), "one promise is no quorum"
    assert not case.is_valid(report(case.worker, case.task, 0, value, []))


def test_promises_of_another_round_or_claim_do_not_count(case: Case) -> None:
    grants = case.claimed(case.worker)
    other = claim(case.rival, case.task)
    theirs = case.pool.grant(2, case.task, 0, other)
    later = [case.pool.grant(index, case.task, 1, other) for index in (0, 1)]
    case.add(other, theirs, *later)
    assert not case.is_valid(report(case.worker, case.task, 0, value_of(case.worker), [grants[0], theirs]))
    assert not case.is_valid(report(case.worker, case.task, 0, value_of(case.worker), later))
    assert case.is_valid(report(case.rival, case.task, 1, value_of(case.rival), later), R1)


def test_only_the_claimant_reports_and_for_itself(case: Case) -> None:
    grants = case.claimed(case.worker)
    assert not case.is_valid(report(case.rival, case.task, 0, value_of(case.rival), grants))
    assert not case.is_valid(report(case.worker, case.task, 0, value_of(case.rival), grants)), "credited to another"


def test_a_promise_that_is_not_here_yet_makes_it_valid_when_it_comes(case: Case) -> None:
    operation = claim(case.worker, case.task)
    grants = [case.pool.grant(index, case.task, 0, operation) for index in (0, 1)]
    proposal = report(case.worker, case.task, 0, value_of(case.worker), grants)
    case.add(operation, grants[0])
    assert not case.is_valid(proposal)
    case.add(grants[1])
    assert case.is_valid(proposal)


@pytest.mark.parametrize(
    ("purpose", "outcome", "allowed"),
    [
        (Purpose.WORK, Outcome.COMPLETED, True),
        (Purpose.WORK, Outcome.FAILED, True),
        (Purpose.WORK, Outcome.CANCELLED, False),
        (Purpose.CANCEL, Outcome.CANCELLED, True),
        (Purpose.CANCEL, Outcome.COMPLETED, False),
        (Purpose.FAIL, Outcome.FAILED, True),
        (Purpose.FAIL, Outcome.CANCELLED, False),
    ],
)
def test_the_purpose_of_the_claim_says_what_may_be_proposed(
    case: Case, purpose: Purpose, outcome: Outcome, allowed: bool
) -> None:
    operation = claim(case.worker, case.task, purpose)
    grants = [case.pool.grant(index, case.task, 0, operation) for index in (0, 1)]
    case.add(operation, *grants)
    proposal = report(case.worker, case.task, 0, value_of(case.worker, 1, outcome), grants)
    assert case.is_valid(proposal) is allowed


def locked(case: Case, *, endorsed: bool) -> tuple[list[Operation], TaskId]:
    """Elector 0 accepted the worker's value in round 0; the rival holds round 1 with a promise that says so."""
    value = value_of(case.worker)
    grants = case.claimed(case.worker)
    case.add(report(case.worker, case.task, 0, value, grants))
    if endorsed:
        case.add(*case.pool.votes(Phase.ENDORSE, case.task, 0, value.hash, (0, 1)))
    operation = claim(case.rival, case.task)
    later = [
        case.pool.grant(0, case.task, 1, operation, lock(0, value)),
        case.pool.grant(2, case.task, 1, operation),
    ]
    case.add(operation, *later)
    return later, case.task


def test_a_report_repeats_the_value_of_the_highest_lock(case: Case) -> None:
    grants, task = locked(case, endorsed=True)
    assert not case.is_valid(report(case.rival, task, 1, value_of(case.rival), grants), R1)
    assert case.is_valid(report(case.rival, task, 1, value_of(case.worker), grants), R1)


def test_a_lock_counts_only_with_a_quorum_of_endorsements(case: Case) -> None:
    grants, task = locked(case, endorsed=False)
    assert not case.is_valid(report(case.rival, task, 1, value_of(case.worker), grants), R1)
    assert not case.is_valid(report(case.rival, task, 1, value_of(case.rival), grants), R1)


def test_of_two_locks_the_one_of_the_higher_round_binds(case: Case) -> None:
    low, high = value_of(case.worker, "low"), value_of(case.worker, "high")
    operation = claim(case.worker, case.task)
    case.add(operation)
    for number, value in ((0, low), (1, high)):
        grants = [case.pool.grant(index, case.task, number, operation) for index in (0, 1)]
        case.add(*grants, report(case.worker, case.task, number, value, grants))
        case.add(*case.pool.votes(Phase.ENDORSE, case.task, number, value.hash, (0, 1)))
    other = claim(case.rival, case.task)
    later = [
        case.pool.grant(0, case.task, 2, other, lock(0, low)),
        case.pool.grant(1, case.task, 2, other, lock(1, high)),
    ]
    case.add(other, *later)
    assert not case.is_valid(report(case.rival, case.task, 2, low, later), Token(0, 2))
    assert case.is_valid(report(case.rival, case.task, 2, high, later), Token(0, 2))


# ------------------------------------------------------------ claims, failures, members


def test_a_claim_stands_for_every_round_until_it_is_released(case: Case) -> None:
    operation = claim(case.worker, case.task)
    case.add(operation)
    assert case.register.stands(case.register.claims[operation.id])
    case.add(release(case.worker, case.task, -1))
    assert not case.register.stands(case.register.claims[operation.id])
    again = claim(case.worker, case.task)
    case.add(again)
    assert case.register.stands(case.register.claims[again.id])


def test_a_release_of_the_holder_opens_the_task(case: Case) -> None:
    case.claimed(case.worker)
    case.add(release(case.worker, case.task, 0))
    assert case.state is TaskState.PENDING
    assert case.register.failures() == 0


def test_failed_releases_use_up_the_retries() -> None:
    case = Case(policy=PoolPolicy(max_retries=1))
    for number in (0, 1):
        case.claimed(case.worker, number)
        assert not case.register.exhausted()
        case.add(release(case.worker, case.task, number, failed=True))
    assert case.register.failures() == 2
    assert case.register.exhausted()


def test_a_release_by_somebody_else_releases_nothing(case: Case) -> None:
    case.claimed(case.worker)
    case.add(release(case.rival, case.task, 0, failed=True))
    assert case.state is TaskState.ASSIGNED
    assert case.register.failures() == 0


def test_whoever_proposes_two_values_in_a_round_is_known_for_it(case: Case) -> None:
    grants = case.claimed(case.worker)
    case.add(report(case.worker, case.task, 0, value_of(case.worker, 1), grants))
    assert not case.register.reported_twice(case.worker.key)
    case.add(report(case.worker, case.task, 0, value_of(case.worker, 2), grants))
    assert case.register.reported_twice(case.worker.key)
    assert not case.register.reported_twice(case.rival.key)


def test_of_two_submits_with_one_key_the_first_in_the_chain_stands(case: Case) -> None:
    task, second = case.pool.submit(priority=9)
    assert task == case.task
    case.add(second)
    view = case.replica.view.task(task)
    assert view is not None
    assert view.spec.priority == 0


def test_whoever_left_has_no_effect_until_it_joins_again(case: Case) -> None:
    case.add(case.worker.sign(LeaveBody()))
    case.add(first := claim(case.worker, case.task))
    assert first.id not in case.register.claims
    case.add(case.worker.sign(JoinBody()), second := claim(case.worker, case.task))
    assert second.id in case.register.claims


def test_the_data_of_a_forked_author_is_void_and_its_votes_stay(case: Case) -> None:
    branch = case.worker.branch()
    grants = case.claimed(case.worker)
    case.add(report(case.worker, case.task, 0, value_of(case.worker), grants))
    case.add(branch.sign(LeaveBody()))
    assert not case.register.claims
    assert case.state is TaskState.PENDING
    assert case.replica.view.members.frozen() == {case.worker.key: 1}
    assert not case.replica.view.members.active(case.worker.key)
    liar = case.pool.electors[1]
    branch = liar.branch()
    value = value_of(case.worker)
    case.add(*case.pool.votes(Phase.ACCEPT, case.task, 0, value.hash, (1,)), branch.sign(JoinBody()))
    assert liar.key in case.replica.view.members.frozen()
    case.add(*case.pool.votes(Phase.ACCEPT, case.task, 0, value.hash, (0,)))
    assert case.register.settled == value.hash, "a frozen elector's vote still counts"


def test_a_settled_result_outlives_the_fork_of_its_worker(case: Case) -> None:
    branch = case.worker.branch()
    grants = case.claimed(case.worker)
    value = value_of(case.worker)
    case.add(report(case.worker, case.task, 0, value, grants))
    case.add(*case.pool.votes(Phase.ACCEPT, case.task, 0, value.hash, (0, 1)))
    case.add(branch.sign(LeaveBody()))
    assert case.state is TaskState.COMPLETED
    assert case.register.value == value


def test_what_a_fork_takes_back_leaves_the_content_of_a_value_in_every_order(case: Case) -> None:
    # no member any more, so the report has no effect in the chain; as an operation of a forked author it is kept
    branch, value = case.worker.branch(), value_of(case.worker)
    told = [case.worker.sign(LeaveBody()), report(case.worker, case.task, 0, value, [])]
    fork = branch.sign(JoinBody())
    accepts = case.pool.votes(Phase.ACCEPT, case.task, 0, value.hash, (0, 1))
    other = Case()
    case.add(*told, fork, *accepts)
    other.add(fork, *told, *accepts)
    assert case.register.value == other.register.value == value
    assert case.state is other.state is TaskState.COMPLETED


def test_where_several_may_work_it_is_everybodys_turn_within_so_many_rounds() -> None:
    case = Case(workers=5, governance=GovernanceKind.EMPIRICAL, model=ModelTerms(speculative=2))
    case.add(*(claim(worker, case.task) for worker in case.pool.workers for _ in range(2)))
    turns = []
    for number in range(3):
        case.add(*case.pool.votes(Phase.GRANT, case.task, number, NOBODY))
        turns.append({one.author for one in case.register.workers()})
    assert all(len(turn) == 2 for turn in turns)
    assert set.union(*turns) == {worker.key for worker in case.pool.workers}


def test_where_a_round_names_nobody_a_later_claim_makes_no_valid_proposal_invalid() -> None:
    case = Case(governance=GovernanceKind.EMPIRICAL, model=ModelTerms(speculative=2))
    submitter = case.pool.electors[0]
    case.add(claim(submitter, case.task, Purpose.CANCEL))
    grants = case.pool.votes(Phase.GRANT, case.task, 0, NOBODY)
    case.add(*grants)
    cancelled = report(submitter, case.task, 0, value_of(submitter, "enough", Outcome.CANCELLED), grants)
    assert case.is_valid(cancelled)
    for purpose in (Purpose.WORK, Purpose.FAIL):
        case.add(claim(submitter, case.task, purpose))
        assert case.is_valid(cancelled)
    assert not case.is_valid(report(case.worker, case.task, 0, value_of(case.worker, 1, Outcome.CANCELLED), grants))
