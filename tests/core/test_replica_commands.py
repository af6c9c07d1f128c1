"""Commands and the proposer: what a replica signs for its own identity, and when."""

from __future__ import annotations

import pytest
from pool_kit import (
    Pool,
    claim,
    feed,
    lock,
    notices,
    now,
    published,
    release,
    report as proposal,
    settle_writes,
    signed,
    value_of,
)

from converge_p2p.core import limits
from converge_p2p.core.codec import encode_value
from converge_p2p.core.errors import Conflict, LimitExceeded, LocalError, NotAuthorised, NotFound
from converge_p2p.core.identity import Identity
from converge_p2p.core.model.pool import AdmissionKind
from converge_p2p.core.model.task import Outcome, TaskSpec, TaskState
from converge_p2p.core.oplog.bodies import ClaimBody, Genesis, JoinBody, LeaveBody, Phase, ReportBody, SubmitBody
from converge_p2p.core.oplog.operation import Operation, decode_operation
from converge_p2p.core.replica import events as ev
from converge_p2p.core.replica.machine import Replica
from converge_p2p.core.types import TaskId

RESULT = encode_value({"n": 1})
UNKNOWN = TaskId(bytes(32))


class Case:
    """A worker is a replica; the electors are played by hand."""

    def __init__(self, **terms: object) -> None:
        self.pool = Pool(**terms)  # type: ignore[arg-type]
        self.stored: list[bytes] = []
        self.replica = Replica(self.pool.workers[0].identity, self.pool.id)
        self.task, submit = self.pool.submit()
        self.give(*self.pool.base, submit)

    def give(self, *operations: Operation) -> list[ev.Effect]:
        return self._keep(feed(self.replica, operations))

    def do(self, command: ev.Command) -> list[ev.Effect]:
        return self._keep(settle_writes(self.replica, self.replica.handle(command, now())))

    def _keep(self, effects: list[ev.Effect]) -> list[ev.Effect]:
        for effect in effects:
            if isinstance(effect, ev.Persist):
                self.stored.extend(effect.operations)
        return effects

    def restart(self) -> list[ev.Effect]:
        self.replica = Replica(self.replica.identity, self.pool.id)
        return settle_writes(self.replica, self.replica.handle(ev.Restored(tuple(self.stored)), now()))

    def own_claim(self) -> Operation:
        """Claim the task; the claim as an operation the electors can name."""
        self.do(ev.Claim(self.task))
        return decode_operation(self.stored[-1], self.pool.id)

    def win(self, number: int, operation: Operation) -> list[ev.Effect]:
        return self.give(*(self.pool.grant(index, self.task, number, operation) for index in (0, 1)))


@pytest.fixture
def case() -> Case:
    return Case()


def reports(effects: list[ev.Effect]) -> list[ReportBody]:
    return [body for body in published(effects) if isinstance(body, ReportBody)]


@pytest.mark.parametrize(
    ("command", "error"),
    [
        (ev.Claim(UNKNOWN), NotFound),
        (ev.Cancel(UNKNOWN), NotFound),
        (ev.Report(UNKNOWN, Outcome.COMPLETED, RESULT), NotFound),
        (ev.Release(UNKNOWN), NotFound),
        ("cancel", NotAuthorised),
        ("release", Conflict),
        ("report", Conflict),
        ("cancelled report", LocalError),
        ("large report", LimitExceeded),
        (ev.Submit(TaskSpec(b"", "x", b"")), LocalError),
        (ev.Submit(TaskSpec(b"k", "x", bytes(limits.TASK_INPUT_BYTES_MAX + 1))), LimitExceeded),
        (ev.Join(("b", "a"), b"x" * (limits.ADMISSION_PROOF_BYTES_MAX + 1)), LocalError),
    ],
)
def test_a_command_that_cannot_be_done_raises_and_changes_nothing(
    case: Case, command: ev.Command | str, error: type[Exception]
) -> None:
    made: dict[str, ev.Command] = {
        "cancel": ev.Cancel(case.task),
        "release": ev.Release(case.task),
        "report": ev.Report(case.task, Outcome.COMPLETED, RESULT),
        "cancelled report": ev.Report(case.task, Outcome.CANCELLED, RESULT),
        "large report": ev.Report(case.task, Outcome.COMPLETED, bytes(limits.RESULT_BYTES_MAX + 1)),
    }
    state, digest = case.replica.view.state_bytes(), case.replica.log.digest()
    with pytest.raises((error, LimitExceeded) if isinstance(command, ev.Join) else error):
        case.replica.handle(made[command] if isinstance(command, str) else command, now())
    assert case.replica.view.state_bytes() == state
    assert case.replica.log.digest() == digest
    # nothing is left behind for the next turn either
    assert published(case.give()) == []


def test_nobody_submits_or_claims_before_the_pool_is_known_or_as_a_stranger() -> None:
    pool = Pool()
    stranger = Replica(Identity.from_seed(b"s" * 32), pool.id)
    for command in (ev.Submit(TaskSpec(b"k", "x", b"")), ev.Join(), ev.Claim(UNKNOWN)):
        with pytest.raises(LocalError):
            stranger.handle(command, now())
    task, submit = pool.submit()
    feed(stranger, [*pool.base, submit])
    for command in (ev.Submit(TaskSpec(b"k", "x", b"")), ev.Claim(task)):
        with pytest.raises(NotAuthorised):
            stranger.handle(command, now())
    assert JoinBody() in published(settle_writes(stranger, stranger.handle(ev.Join(), now())))


def test_who_is_not_on_the_list_cannot_join() -> None:
    pool = Pool(admission=AdmissionKind.WHITELIST)
    stranger = Replica(Identity.from_seed(b"s" * 32), pool.id)
    feed(stranger, [pool.genesis])
    with pytest.raises(NotAuthorised):
        stranger.handle(ev.Join(), now())


def test_founding_must_match_the_id_and_happens_once() -> None:
    pool, other = Pool(), Pool(electors=1)
    creator = Replica(pool.people[0].identity, pool.id)
    with pytest.raises(LocalError):
        creator.handle(ev.Found(other.spec), now())
    effects = settle_writes(creator, creator.handle(ev.Found(pool.spec), now()))
    assert published(effects) == [Genesis(pool.spec)]
    assert creator.ready
    with pytest.raises(LocalError):
        creator.handle(ev.Found(pool.spec), now())


def test_a_repeated_submit_is_one_task() -> None:
    pool = Pool()
    creator = Replica(pool.people[0].identity, pool.id)
    settle_writes(creator, creator.handle(ev.Found(pool.spec), now()))
    spec = TaskSpec(b"once", "work", RESULT)
    # the second comes while the first is still being written, the third afterwards
    first = creator.handle(ev.Submit(spec), now())
    second = creator.handle(ev.Submit(spec), now())
    effects = settle_writes(creator, first) + settle_writes(creator, second)
    effects += settle_writes(creator, creator.handle(ev.Submit(spec), now()))
    assert [body for body in published(effects) if isinstance(body, SubmitBody)] == [SubmitBody(spec)]
    assert len(list(creator.view.tasks())) == 1


def test_a_repeated_claim_is_one_claim(case: Case) -> None:
    assert [type(body) for body in published(case.do(ev.Claim(case.task)))] == [ClaimBody]
    assert published(case.do(ev.Claim(case.task))) == []


def test_an_own_operation_is_sent_only_when_it_is_written(case: Case) -> None:
    effects = case.replica.handle(ev.Claim(case.task), now())
    assert published(effects) == []
    assert not notices(effects, ev.Acknowledged)
    length = case.replica.log.length(case.replica.identity.public_key)
    (persist,) = [effect for effect in effects if isinstance(effect, ev.Persist)]
    assert persist.durable
    effects = case.replica.handle(ev.Persisted((persist.token,)), now())
    assert len(published(effects)) == len(notices(effects, ev.Acknowledged)) == 1
    assert case.replica.log.length(case.replica.identity.public_key) == length + 1
    assert case.replica.handle(ev.Persisted((persist.token,)), now()) == [], "said twice"


def test_a_claim_that_wins_is_told_once_and_the_result_reported_once(case: Case) -> None:
    operation = case.own_claim()
    won = case.win(0, operation)
    assert notices(won, ev.ClaimWon) == [ev.ClaimWon(case.task, 0, 0)]
    (report,) = reports(case.do(ev.Report(case.task, Outcome.COMPLETED, RESULT)))
    assert report.round == 0
    assert len(report.grants) == 2
    assert reports(case.do(ev.Report(case.task, Outcome.COMPLETED, RESULT))) == []
    assert reports(case.restart()) == [], "reported before the crash"
    assert not notices(case.give(), ev.ClaimWon)


def test_work_lost_in_a_crash_is_asked_for_again(case: Case) -> None:
    operation = case.own_claim()
    case.win(0, operation)
    effects = case.restart()
    assert notices(effects, ev.ClaimWon) == [ev.ClaimWon(case.task, 0, 0)]
    assert len(reports(case.do(ev.Report(case.task, Outcome.COMPLETED, RESULT)))) == 1


def test_finished_work_is_kept_and_reported_when_the_claim_is_won_again(case: Case) -> None:
    operation = case.own_claim()
    case.win(0, operation)
    rival = claim(case.pool.workers[1], case.task)
    effects = case.give(rival, *(case.pool.grant(index, case.task, 1, rival) for index in (0, 1)))
    assert [notice.round for notice in notices(effects, ev.ClaimLost)] == [0]
    assert reports(case.do(ev.Report(case.task, Outcome.COMPLETED, RESULT))) == [], "nothing to report it in"
    effects = case.give(
        release(case.pool.workers[1], case.task, 1), *(case.pool.grant(i, case.task, 2, operation) for i in (0, 1))
    )
    (report,) = reports(effects)
    assert (report.round, report.value.result) == (2, RESULT)


def test_a_claim_that_is_granted_after_it_was_given_back_is_given_back_again(case: Case) -> None:
    operation = case.own_claim()
    case.do(ev.Release(case.task))
    # these electors had not heard of the release
    assert notices(case.win(0, operation), ev.ClaimWon) == [ev.ClaimWon(case.task, 0, 0)]
    view = case.replica.view.task(case.task)
    assert view is not None
    assert view.assigned_to == case.replica.identity.public_key
    case.do(ev.Release(case.task, reason="given back before it was granted"))
    view = case.replica.view.task(case.task)
    assert view is not None
    assert view.state is TaskState.PENDING
    with pytest.raises(Conflict, match="no claim"):
        case.do(ev.Release(case.task))


def test_a_lock_is_repeated_without_being_asked(case: Case) -> None:
    rival = case.pool.workers[1]
    theirs, value = claim(rival, case.task), value_of(rival)
    grants = [case.pool.grant(index, case.task, 0, theirs) for index in (0, 1)]
    case.give(theirs, *grants, proposal(rival, case.task, 0, value, grants))
    case.give(*case.pool.votes(Phase.ENDORSE, case.task, 0, value.hash, (0, 1)))
    operation = case.own_claim()
    effects = case.give(
        case.pool.grant(0, case.task, 1, operation, lock(0, value)), case.pool.grant(1, case.task, 1, operation)
    )
    (report,) = reports(effects)
    assert (report.round, report.value) == (1, value)
    assert not notices(effects, ev.ClaimWon)


def test_a_settled_task_takes_no_more_commands(case: Case) -> None:
    value = value_of(case.pool.workers[1])
    theirs = claim(case.pool.workers[1], case.task)
    case.give(theirs, proposal(case.pool.workers[1], case.task, 0, value, []))
    case.give(*case.pool.votes(Phase.ACCEPT, case.task, 0, value.hash, (0, 1)))
    for command in (ev.Claim(case.task), ev.Release(case.task), ev.Report(case.task, Outcome.COMPLETED, RESULT)):
        with pytest.raises(Conflict):
            case.replica.handle(command, now())


def test_leaving_and_joining_again_is_told_once_each(case: Case) -> None:
    left = case.do(ev.Leave())
    assert LeaveBody() in published(left)
    assert [notice.joined for notice in notices(left, ev.MembersChanged)] == [False]
    assert [notice.joined for notice in notices(case.do(ev.Join()), ev.MembersChanged)] == [True]


def test_the_state_after_a_restart_equals_the_state_before(case: Case) -> None:
    case.win(0, case.own_claim())
    case.do(ev.Report(case.task, Outcome.COMPLETED, RESULT))
    before = case.replica.view.state_bytes(), case.replica.log.digest()
    case.restart()
    assert (case.replica.view.state_bytes(), case.replica.log.digest()) == before
    assert len(set(case.stored)) == len(case.stored), "nothing is written twice"
    assert set(signed(case.pool.base)) <= set(case.stored)
