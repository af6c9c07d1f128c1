"""An elector of ours among hand-made others: what it votes, what it never votes, and what it remembers."""

from __future__ import annotations

import pytest
from pool_kit import Author, Pool, ballots_in, claim, feed, lock, now, release, report, settle_writes, timers, value_of

from converge_p2p.core import limits
from converge_p2p.core.model.pool import AssignmentRule, GovernanceKind, ModelTerms, PoolPolicy
from converge_p2p.core.oplog.bodies import Ballot, ClaimBody, JoinBody, LeaveBody, Phase, Purpose, Token
from converge_p2p.core.oplog.operation import Operation
from converge_p2p.core.replica import events as ev
from converge_p2p.core.replica.machine import Replica
from converge_p2p.core.types import OperationId
from converge_p2p.core.view.tasks import TaskRegister

R0 = Token(0, 0)
QUICK = PoolPolicy(hold_off_ms=0, grant_timer_ms=100, claim_ttl_ms=1000, max_retries=1)


class Case:
    """Electors 0 and 1 and the workers are played by hand; elector 2 is a replica."""

    def __init__(self, **terms: object) -> None:
        terms.setdefault("policy", QUICK)
        self.pool = Pool(**terms)  # type: ignore[arg-type]
        self.worker, self.rival = self.pool.workers
        self.stored: list[bytes] = []
        self.elector = Replica(self.pool.electors[-1].identity, self.pool.id)
        self.task, submit = self.pool.submit(required_capabilities=())
        self.give(*self.pool.base, submit)

    def give(self, *operations: Operation, at_ms: int = 0) -> list[Ballot]:
        effects = feed(self.elector, operations, at_ms)
        return self._keep(effects)

    def held(self, operation: Operation) -> None:
        """Let a claim win round 0 with our elector's promise among the others'."""
        assert self.give(operation)
        self.give(*self.grants(0, operation))

    def fire(self, kind: ev.TimerKind, at_ms: int) -> list[Ballot]:
        effects = self.elector.handle(ev.TimerFired(ev.TimerKey(kind, self.task)), now(at_ms))
        return self._keep(settle_writes(self.elector, effects, at_ms))

    def _keep(self, effects: list[ev.Effect]) -> list[Ballot]:
        self.effects = effects
        for effect in effects:
            if isinstance(effect, ev.Persist):
                self.stored.extend(effect.operations)
        return ballots_in(effects)

    def restart(self) -> Replica:
        replica = Replica(self.elector.identity, self.pool.id)
        settle_writes(replica, replica.handle(ev.Restored(tuple(self.stored)), now()))
        return replica

    def grants(self, number: int, operation: Operation, who: tuple[int, ...] = (0, 1)) -> list[Operation]:
        return [self.pool.grant(index, self.task, number, operation) for index in who]


@pytest.fixture
def case() -> Case:
    return Case()


def grant_of(case: Case, number: int, operation: Operation) -> Ballot:
    return Ballot(Phase.GRANT, case.task, number, operation.id)


def test_it_grants_round_0_to_a_claim(case: Case) -> None:
    operation = claim(case.worker, case.task)
    assert case.give(operation) == [grant_of(case, 0, operation)]


def test_it_grants_a_round_once(case: Case) -> None:
    case.give(claim(case.worker, case.task))
    assert case.give(claim(case.rival, case.task)) == []


def test_it_waits_for_rivals_and_then_all_choose_alike() -> None:
    choices = set()
    for swapped in (False, True):
        case = Case(policy=PoolPolicy(hold_off_ms=50))
        rivals = [claim(case.worker, case.task), claim(case.rival, case.task)]
        assert case.give(*(reversed(rivals) if swapped else rivals)) == []
        assert timers(case.effects)[ev.TimerKind.HOLD_OFF] == 50
        (ballot,) = case.fire(ev.TimerKind.HOLD_OFF, 50)
        choices.add(ballot.ref)
    assert len(choices) == 1


def test_it_grants_nothing_to_strangers_leavers_or_the_unable() -> None:
    case = Case()
    stranger = Author(77, case.pool.id)
    assert case.give(stranger.sign(JoinBody()), stranger.sign(LeaveBody()), claim(stranger, case.task)) == []
    task, submit = case.pool.submit(b"other", required_capabilities=("gpu",))
    assert case.give(submit, claim(case.rival, task)) == [], "the rival did not declare gpu"
    able = claim(case.worker, task)
    assert case.give(able) == [Ballot(Phase.GRANT, task, 0, able.id)]


def test_it_follows_a_higher_round_and_never_grants_below_it(case: Case) -> None:
    operation = claim(case.worker, case.task)
    voted = case.give(operation, *case.grants(4, operation, (0,)))
    assert voted == [grant_of(case, 4, operation)]
    assert case.give(*case.grants(2, operation, (1,))) == []


def endorsable(case: Case, number: int = 0, content: object = 1) -> tuple[Operation, list[Operation]]:
    operation = claim(case.worker, case.task)
    grants = case.grants(number, operation)
    return report(case.worker, case.task, number, value_of(case.worker, content), grants), [operation, *grants]


def test_it_endorses_the_first_valid_report_and_accepts_what_a_quorum_endorsed(case: Case) -> None:
    proposal, before = endorsable(case)
    value = value_of(case.worker)
    assert Ballot(Phase.ENDORSE, case.task, 0, value.hash) in case.give(*before, proposal)
    other = report(case.worker, case.task, 0, value_of(case.worker, 2), before[1:])
    assert case.give(other) == [], "a second value in the round"
    # its own endorsement and one more are the quorum
    assert case.give(*case.pool.votes(Phase.ENDORSE, case.task, 0, value.hash, (0,))) == [
        Ballot(Phase.ACCEPT, case.task, 0, value.hash)
    ]


def test_it_accepts_what_others_endorsed_even_if_it_endorsed_another(case: Case) -> None:
    proposal, before = endorsable(case)
    case.give(*before, proposal)
    other = value_of(case.worker, 2)
    case.give(report(case.worker, case.task, 0, other, before[1:]))
    assert case.give(*case.pool.votes(Phase.ENDORSE, case.task, 0, other.hash, (0, 1))) == [
        Ballot(Phase.ACCEPT, case.task, 0, other.hash)
    ]


def test_it_neither_endorses_nor_accepts_below_its_promise(case: Case) -> None:
    proposal, before = endorsable(case)
    value = value_of(case.worker)
    operation, first, second = before
    case.give(operation, first, *case.grants(3, operation, (0,)))
    assert case.give(second, proposal) == [], "endorsing round 0 after promising round 3"
    assert case.give(*case.pool.votes(Phase.ENDORSE, case.task, 0, value.hash, (0, 1))) == []


def test_a_promise_tells_of_the_accepted_value(case: Case) -> None:
    proposal, before = endorsable(case)
    value = value_of(case.worker)
    case.give(*before, proposal, *case.pool.votes(Phase.ENDORSE, case.task, 0, value.hash, (0, 1)))
    rival = claim(case.rival, case.task)
    (ballot,) = case.give(rival, *case.grants(1, rival, (0,)))
    assert (ballot.phase, ballot.round, ballot.lock) == (Phase.GRANT, 1, lock(0, value))


def test_an_accept_and_a_grant_of_one_turn_do_not_contradict_each_other(case: Case) -> None:
    proposal, before = endorsable(case)
    value = value_of(case.worker)
    rival = claim(case.rival, case.task)
    voted = case.give(
        *before, proposal, rival,
        *case.pool.votes(Phase.ENDORSE, case.task, 0, value.hash, (0, 1)), *case.grants(1, rival, (0,)),
    )  # fmt: skip
    grants = [ballot for ballot in voted if ballot.phase is Phase.GRANT and ballot.round == 1]
    accepts = [ballot for ballot in voted if ballot.phase is Phase.ACCEPT]
    assert len(accepts) == 1
    assert [ballot.lock for ballot in grants] == [lock(0, value)]


@pytest.mark.parametrize(("last", "later"), [(limits.ROUND_MAX - 1, [limits.ROUND_MAX]), (limits.ROUND_MAX, [])])
def test_it_opens_no_round_beyond_the_last_that_can_be_written(case: Case, last: int, later: list[int]) -> None:
    operation = claim(case.worker, case.task)
    assert case.give(operation, *case.grants(last, operation, (0,))) == [grant_of(case, last, operation)]
    case.give(claim(case.rival, case.task))
    voted = case.fire(ev.TimerKind.CLAIM, 100_000) + case.fire(ev.TimerKind.HOLD_OFF, 200_000)
    assert [ballot.round for ballot in voted] == later


def test_a_split_vote_opens_the_next_round(case: Case) -> None:
    # three electors, three claims: no claim can reach a quorum any more
    third = case.pool.electors[0]
    claims = [claim(case.worker, case.task), claim(case.rival, case.task), claim(third, case.task)]
    (mine,) = case.give(claims[0])
    assert mine.ref == claims[0].id
    (later,) = case.give(*claims[1:], *case.grants(0, claims[1], (0,)), *case.grants(0, claims[2], (1,)))
    assert (later.phase, later.round) == (Phase.GRANT, 1)


def test_release_expiry_and_silence_open_the_next_round_and_nothing_else(case: Case) -> None:
    operation = claim(case.worker, case.task)
    case.held(operation)
    at_ms = timers(case.effects).get(ev.TimerKind.CLAIM)
    assert case.give(rival := claim(case.rival, case.task)) == [], "the holder has time"
    assert at_ms == QUICK.claim_ttl_ms
    (ballot,) = case.fire(ev.TimerKind.CLAIM, 1000)
    assert (ballot.round, ballot.ref, ballot.expired) == (1, rival.id, 0), "superseded holders come last"


def test_a_release_opens_the_next_round_at_once(case: Case) -> None:
    operation, rival = claim(case.worker, case.task), claim(case.rival, case.task)
    case.held(operation)
    case.give(rival)
    (ballot,) = case.give(release(case.worker, case.task, 0))
    assert (ballot.round, ballot.ref) == (1, rival.id)


def test_whoever_did_not_grant_a_certified_round_does_not_open_the_next_but_follows(case: Case) -> None:
    operation, rival = claim(case.worker, case.task), claim(case.rival, case.task)
    case.give(operation, *case.grants(0, operation), rival)
    assert case.fire(ev.TimerKind.CLAIM, 1000) == []
    (ballot,) = case.give(*case.grants(1, rival, (0,)))
    assert (ballot.round, ballot.ref) == (1, rival.id)


def test_late_and_repeated_timers_are_harmless(case: Case) -> None:
    operation = claim(case.worker, case.task)
    case.held(operation)
    before = case.elector.view.state_bytes()
    for kind in ev.TimerKind:
        if kind is not ev.TimerKind.CLAIM:
            for at_ms in (1, 50_000):
                assert case.fire(kind, at_ms) == []
    assert case.elector.view.state_bytes() == before
    (first,) = case.fire(ev.TimerKind.CLAIM, 2000)
    assert first.round == 1
    assert case.fire(ev.TimerKind.CLAIM, 2001) == []


def test_timers_of_settled_and_unknown_tasks_are_harmless(case: Case) -> None:
    value = value_of(case.worker)
    proposal, before = endorsable(case)
    case.give(*before, proposal, *case.pool.votes(Phase.ACCEPT, case.task, 0, value.hash, (0, 1)))
    assert case.elector.view.registers[case.task].state.terminal
    for kind in ev.TimerKind:
        assert case.fire(kind, 9000) == []
    effects = case.elector.handle(ev.TimerFired(ev.TimerKey(ev.TimerKind.CLAIM, None)), now())
    assert ballots_in(effects) == []


def test_only_the_submitter_may_stand_for_a_cancellation(case: Case) -> None:
    operation = claim(case.worker, case.task)
    case.held(operation)
    assert case.give(claim(case.rival, case.task, Purpose.CANCEL)) == []
    cancel = claim(case.pool.electors[0], case.task, Purpose.CANCEL)
    (ballot,) = case.give(cancel)
    assert (ballot.round, ballot.ref) == (1, cancel.id), "a cancellation does not wait for the holder"


def test_exhausted_retries_leave_only_a_claim_to_fail(case: Case) -> None:
    operation = claim(case.worker, case.task)
    case.give(operation)
    for number in (0, 1):
        case.give(*case.grants(number, operation))
        released = release(case.worker, case.task, number, failed=True)
        operation = claim(case.worker, case.task)
        case.give(released, operation)
    assert case.elector.view.registers[case.task].exhausted()
    assert ev.TimerKind.CLOSE in timers(case.effects)
    voted = case.give(claim(case.rival, case.task), claim(case.rival, case.task, Purpose.FAIL))
    assert voted == [], "no more work, and a stranger cannot settle the failure"
    fail = claim(case.pool.electors[0], case.task, Purpose.FAIL)
    (ballot,) = case.give(fail)
    assert ballot.ref == fail.id


def test_reports_of_strangers_and_in_rounds_nobody_granted_are_not_even_looked_at(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[object] = []
    monkeypatch.setattr(TaskRegister, "valid", lambda register, token, proposal: looked.append(proposal))
    operation = claim(case.worker, case.task)
    grants = case.grants(0, operation)
    case.give(operation, *grants)
    spam = [report(case.rival, case.task, number % 50, value_of(case.rival, number), grants) for number in range(100)]
    for proposal in spam:
        assert case.give(proposal) == []
    assert looked == []
    case.give(report(case.worker, case.task, 0, value_of(case.worker), grants))
    assert len(looked) == 1


# ------------------------------------------------------------ memory


def test_its_memory_after_a_restart_is_what_it_signed(case: Case) -> None:
    proposal, before = endorsable(case)
    value = value_of(case.worker)
    case.give(*before, proposal, *case.pool.votes(Phase.ENDORSE, case.task, 0, value.hash, (0,)))
    rival = claim(case.rival, case.task)
    case.give(rival, *case.grants(1, rival, (0,)))
    again = case.restart()
    assert again._elector.promises == case.elector._elector.promises
    assert again.view.state_bytes() == case.elector.view.state_bytes()
    assert again.log.digest() == case.elector.log.digest()


def test_after_a_restart_it_never_contradicts_itself(case: Case) -> None:
    operation, rival = claim(case.worker, case.task), claim(case.rival, case.task)
    (first,) = case.give(rival)
    again = case.restart()
    effects = feed(again, [operation, *case.grants(0, operation, (0,))])
    assert [ballot for ballot in ballots_in(effects) if ballot[:3] == first[:3]] == []


def test_what_was_signed_and_not_written_was_never_said(case: Case) -> None:
    operation = claim(case.worker, case.task)
    effects = case.elector.handle(ev.Received((operation.signed,)), now())
    assert ballots_in(effects) == []
    assert [effect.durable for effect in effects if isinstance(effect, ev.Persist)] == [False, True]
    own = next(effect for effect in effects if isinstance(effect, ev.Persist) and effect.durable)
    assert not case.elector.log.holds(OperationId(bytes(32)))
    published = case.elector.handle(ev.Persisted((own.token,)), now())
    assert [effect.operations for effect in published if isinstance(effect, ev.Publish)] == [own.operations]


def test_votes_collect_while_one_is_being_written(case: Case) -> None:
    tasks = [case.pool.submit(b"n%d" % number) for number in range(5)]
    first, *rest = [(submit, claim(case.worker, task)) for task, submit in tasks]
    effects = case.elector.handle(ev.Received(tuple(item.signed for item in first)), now())
    (token,) = [effect.token for effect in effects if isinstance(effect, ev.Persist) and effect.durable]
    for pair in rest:
        more = case.elector.handle(ev.Received(tuple(item.signed for item in pair)), now())
        assert not [effect for effect in more if isinstance(effect, ev.Persist) and effect.durable]
    effects = case.elector.handle(ev.Persisted((token,)), now())
    (vote,) = [effect for effect in effects if isinstance(effect, ev.Persist) and effect.durable]
    assert len(vote.operations) == 1
    assert len(ballots_in(settle_writes(case.elector, effects))) == 1 + 4


# ------------------------------------------------------------ whom the pool prefers


def chosen(case: Case, *claims: Operation) -> bytes:
    """Which of some claims is granted once they were collected."""
    assert case.give(*claims) == []
    (ballot,) = case.fire(ev.TimerKind.HOLD_OFF, 50)
    return ballot.ref


def preferring(rule: AssignmentRule) -> Case:
    return Case(policy=PoolPolicy(hold_off_ms=50, assignment=rule))


@pytest.mark.parametrize("cheap", [0, 1])
def test_the_lower_bid_is_granted_where_bids_decide(cheap: int) -> None:
    case = preferring(AssignmentRule.BEST_BID)
    workers = [case.worker, case.rival]
    bids = [
        worker.sign(ClaimBody(case.task, Purpose.WORK, 5 + (index != cheap))) for index, worker in enumerate(workers)
    ]
    assert chosen(case, *bids) == bids[cheap].id


def test_an_only_elector_waits_for_rivals_just_where_one_may_be_better_than_the_first() -> None:
    for rule in AssignmentRule:
        case = Case(electors=1, policy=PoolPolicy(hold_off_ms=50, assignment=rule))
        granted = case.give(claim(case.worker, case.task))
        assert bool(granted) is (rule is AssignmentRule.FIRST)
        assert (ev.TimerKind.HOLD_OFF in timers(case.effects)) is not bool(granted)


def test_whoever_can_do_least_besides_is_granted_where_fit_decides() -> None:
    case = preferring(AssignmentRule.FIT)
    able, fitting = claim(case.worker, case.task), claim(case.rival, case.task)
    assert chosen(case, able, fitting) == fitting.id, "the first worker declared gpu, which the task does not need"


def test_whoever_failed_before_comes_after_a_newcomer_where_trust_decides() -> None:
    case = preferring(AssignmentRule.TRUST)
    other, submit = case.pool.submit(b"earlier")
    failed = claim(case.worker, other)
    case.give(submit, failed, *(case.pool.grant(index, other, 0, failed) for index in (0, 1)))
    case.give(release(case.worker, other, 0, failed=True))
    mine, newcomer = claim(case.worker, case.task), claim(case.rival, case.task)
    assert chosen(case, mine, newcomer) == newcomer.id


def test_a_witness_goes_along_with_its_leader_to_the_next_rounds_and_nobody_else_makes_it() -> None:
    people = [Author(number + 1, Pool().id).key for number in range(2)]
    model = ModelTerms(leader=people[0], successor=people[1])
    case = Case(electors=5, faults=1, governance=GovernanceKind.DICTATORIAL, model=model)
    standing = claim(case.worker, case.task)
    assert case.give(standing, *case.grants(0, standing, (0, 1, 3)))
    assert case.elector.view.registers[case.task].certified_id(R0) == standing.id
    assert case.give(*case.grants(1, standing, (3,))) == [], "another witness leads nobody"
    for number in (1, 2):
        (ballot,) = case.give(*case.grants(number, standing, (0,)))
        assert (ballot.phase, ballot.round, ballot.ref) == (Phase.GRANT, number, standing.id)
