"""Trust from the log: a function of sets of events, and which events follow from what."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st
from pool_kit import Author, Pool, claim, feed, release, report, value_of

from converge_p2p.core import limits
from converge_p2p.core.codec import encode
from converge_p2p.core.governance import trust
from converge_p2p.core.governance.trust import (
    OVERALL,
    SCORE_DEFAULT,
    TrustEvent,
    TrustLedger,
    capability_context,
    contexts_of,
    objective_context,
    topic_context,
)
from converge_p2p.core.model.task import Outcome, TaskSpec, TaskValue
from converge_p2p.core.model.topic import Topic
from converge_p2p.core.oplog.bodies import Ballot, Phase, Purpose, VoteBody
from converge_p2p.core.oplog.motions import NO, YES, OpinionBody, dispute_result
from converge_p2p.core.oplog.operation import Operation
from converge_p2p.core.replica.machine import Replica
from converge_p2p.core.types import PublicKey, TaskId

ANN, BOB = PublicKey(b"a" * 32), PublicKey(b"b" * 32)
WORK = objective_context("work")

# ------------------------------------------------------------ the ledger

events = st.builds(
    TrustEvent,
    st.binary(min_size=1, max_size=2),
    st.sampled_from((ANN, BOB)),
    st.sampled_from(((), (b"x",), (b"y",))),
    st.integers(0, 70),
    st.integers(-limits.TRUST_POINTS_MAX, limits.TRUST_POINTS_MAX),
)


def added(told: Iterable[TrustEvent]) -> TrustLedger:
    ledger = TrustLedger()
    for event in told:
        ledger.add(event.id, event.author, event.contexts[0] if event.contexts else OVERALL, event.epoch, event.points)
    return ledger


@given(st.lists(events, max_size=20), st.randoms(use_true_random=False))
@settings(max_examples=200, deadline=None)
def test_any_order_and_duplicates_give_the_same_scores(told: list[TrustEvent], order: random.Random) -> None:
    ledger = added(told)
    again = told + order.sample(told, len(told) // 2)
    order.shuffle(again)
    other = added(again)
    assert other.state() == ledger.state()
    for author, context, epoch in itertools.product((ANN, BOB), (OVERALL, b"x", b"y"), (0, 35, 70, 200)):
        score = ledger.score(author, context, epoch)
        assert 0 <= score == other.score(author, context, epoch) <= 1000


@given(st.lists(events, max_size=20, unique_by=lambda event: event.id), st.data())
@settings(max_examples=200, deadline=None)
def test_what_is_taken_back_leaves_no_trace(told: list[TrustEvent], data: st.DataObject) -> None:
    gone = data.draw(st.sets(st.sampled_from(told)) if told else st.just(set[TrustEvent]()))
    ledger = added(told)
    for event in gone:
        ledger.remove(event.id)
        ledger.remove(event.id)
    stay = added(event for event in told if event not in gone)
    assert ledger.state() == stay.state()
    assert len(ledger) == len(stay)
    assert ledger.authors() == stay.authors()


@given(st.lists(st.lists(events, max_size=6, unique_by=lambda event: event.id), min_size=1, max_size=5))
@settings(max_examples=100, deadline=None)
def test_a_source_is_worth_what_it_says_last(versions: list[list[TrustEvent]]) -> None:
    ledger, last = TrustLedger(), TrustLedger()
    for version in versions:
        ledger.replace(b"task", version)
    last.replace(b"task", versions[-1])
    assert ledger.state() == last.state()
    ledger.replace(b"task", ())
    assert ledger.state() == []


@given(st.lists(events, max_size=10), events)
def test_a_gain_never_lowers_a_score_and_a_loss_never_raises_one(told: list[TrustEvent], last: TrustEvent) -> None:
    ledger = added(event for event in told if event.id != last.id)
    before = ledger.score(last.author, OVERALL, 70)
    ledger.add(last.id, last.author, OVERALL, last.epoch, last.points)
    after = ledger.score(last.author, OVERALL, 70)
    assert after >= before if last.points > 0 else after <= before


def test_a_stranger_has_half_and_so_has_everybody_in_a_context_nothing_is_known_of() -> None:
    ledger = TrustLedger()
    assert ledger.score(ANN) == SCORE_DEFAULT == 500
    ledger.add(b"1", ANN, b"x", 0, trust.COMPLETED)
    assert ledger.score(ANN) == ledger.score(ANN, b"x") == 1000 * 110 // 210
    assert ledger.score(ANN, b"y") == ledger.score(BOB) == 500


def test_an_event_fades_by_an_eighth_with_each_epoch_and_is_forgotten_in_the_end() -> None:
    ledger = TrustLedger()
    ledger.add(b"1", ANN, OVERALL, 10, 800)
    expected = {9: 500, 10: 1000 * 900 // 1000, 11: 1000 * 800 // 900, 12: 1000 * 712 // 812, 75: 500}
    assert {epoch: ledger.score(ANN, OVERALL, epoch) for epoch in expected} == expected
    assert trust.faded(1000, 64) == 1000 * 7**64 // 8**64
    ledger.add(b"2", BOB, OVERALL, 0, 1000)
    assert ledger.score(BOB, OVERALL, limits.TRUST_EPOCHS_MAX + 1) == 500


def test_successes_cannot_be_stored_up_against_failures() -> None:
    ledger = TrustLedger()
    for number in range(1000):
        ledger.add(b"good%d" % number, ANN, OVERALL, 0, trust.COMPLETED)
    high = ledger.score(ANN)
    for number in range(100):
        ledger.add(b"bad%d" % number, ANN, OVERALL, 0, trust.FAILED)
    assert high - ledger.score(ANN) > 50


def test_the_contexts_of_a_task_are_its_topic_objective_and_capabilities() -> None:
    topic = Topic("acme").to_bytes()
    spec = TaskSpec(b"k", "index", b"\x80", topic=topic, required_capabilities=("cpu", "gpu"))
    assert contexts_of(spec) == (
        topic_context(topic), objective_context("index"), capability_context("cpu"), capability_context("gpu"),
    )  # fmt: skip
    assert len({topic_context(b"a"), objective_context("a"), capability_context("a"), OVERALL}) == 4


# ------------------------------------------------------------ what follows from the log


class Case:
    """A pool of three electors and two workers, and one task."""

    def __init__(self) -> None:
        self.pool = Pool()
        self.worker, self.other = self.pool.workers
        self.task, submit = self.pool.submit()
        self.told: list[Operation] = [*self.pool.base, submit]

    def tell(self, *operations: Operation) -> None:
        self.told.extend(operations)

    def attempt(self, number: int, author: Author, purpose: Purpose = Purpose.WORK) -> list[Operation]:
        own = claim(author, self.task, purpose)
        grants = self.pool.votes(Phase.GRANT, self.task, number, own.id)
        self.tell(own, *grants)
        return grants

    def settle(self, number: int, value: TaskValue, who: tuple[int, ...] = (0, 1)) -> None:
        self.tell(*self.pool.votes(Phase.ACCEPT, self.task, number, value.hash, who))

    def dispute(self, author: Author, choice: int, who: tuple[int, ...] = (0, 1)) -> Operation:
        motion = author.sign(dispute_result(self.task))
        opinions = [self.pool.electors[index].sign(OpinionBody(motion.id, choice)) for index in who]
        self.tell(motion, *opinions)
        return motion

    def replica(self, seed: int = 0) -> Replica:
        replica, rest = self.pool.replica(), self.told[1:]
        if seed:
            random.Random(seed).shuffle(rest)
        feed(replica, [self.told[0]])
        for operation in rest:
            feed(replica, [operation])
        return replica

    def points(self, seed: int = 0) -> dict[PublicKey, tuple[int, int]]:
        """Author → (gains, losses), overall."""
        state = self.replica(seed).view.trust.ledger.state()
        return {author: (gain, loss) for author, context, _, gain, loss in state if context == OVERALL}


@pytest.fixture
def case() -> Case:
    return Case()


def check(case: Case, **expected: tuple[int, int]) -> None:
    """The points of worker, other and the electors, in the order of the story and in some others."""
    people = {"worker": case.worker, "other": case.other, "elector": case.pool.electors[0]}
    wanted = {people[name].key: points for name, points in expected.items()}
    for seed in range(6):
        assert case.points(seed) == wanted, f"in order {seed}"


def test_a_completed_task_is_to_the_credit_of_its_worker(case: Case) -> None:
    value = value_of(case.worker)
    case.tell(report(case.worker, case.task, 0, value, case.attempt(0, case.worker)))
    check(case)
    case.settle(0, value)
    check(case, worker=(10, 0))
    view = case.replica().view
    assert view.trust.score(case.worker.key) == view.trust.score(case.worker.key, WORK) == 1000 * 110 // 210
    assert view.trust.score(case.worker.key, objective_context("else")) == 500


def test_a_result_accepted_in_two_rounds_is_one_success(case: Case) -> None:
    value = value_of(case.worker)
    case.tell(report(case.worker, case.task, 0, value, case.attempt(0, case.worker)))
    case.attempt(1, case.other)
    case.settle(1, value)
    case.settle(0, value, (1, 2))
    check(case, worker=(10, 0))


def test_a_failed_attempt_and_one_that_ran_out_of_time_are_held_against_the_worker(case: Case) -> None:
    case.attempt(0, case.worker)
    case.tell(release(case.worker, case.task, 0, failed=True))
    own = claim(case.other, case.task)
    case.tell(own, *case.pool.votes(Phase.GRANT, case.task, 1, own.id))
    again = claim(case.worker, case.task)
    late = [VoteBody((Ballot(Phase.GRANT, case.task, 2, again.id, None, 1),)) for _ in range(2)]
    case.tell(again, *(elector.sign(body) for elector, body in zip(case.pool.electors, late, strict=False)))
    check(case, worker=(0, 10), other=(0, 10))


def test_a_claim_that_was_given_back_or_never_certified_is_held_against_nobody(case: Case) -> None:
    case.attempt(0, case.worker)
    case.tell(release(case.worker, case.task, 0))
    own = claim(case.other, case.task)
    case.tell(own, *case.pool.votes(Phase.GRANT, case.task, 1, own.id, (0,)))
    case.tell(release(case.other, case.task, 1, failed=True))
    check(case)


def test_a_worker_whose_time_ran_out_and_who_was_accepted_all_the_same_did_not_fail(case: Case) -> None:
    value = value_of(case.worker)
    case.tell(report(case.worker, case.task, 0, value, case.attempt(0, case.worker)))
    own = claim(case.other, case.task)
    case.tell(own)
    for elector in case.pool.electors[:2]:
        case.tell(elector.sign(VoteBody((Ballot(Phase.GRANT, case.task, 1, own.id, None, 0),))))
    case.settle(0, value, (1, 2))
    check(case, worker=(10, 0))


def test_two_values_in_one_round_are_held_against_the_reporter_though_the_task_is_settled(case: Case) -> None:
    value, grants = value_of(case.worker), case.attempt(0, case.worker)
    case.tell(report(case.worker, case.task, 0, value, grants))
    case.settle(0, value)
    case.tell(report(case.worker, case.task, 0, value_of(case.worker, 2), grants))
    check(case, worker=(10, 200))


def test_the_same_value_twice_is_no_offence(case: Case) -> None:
    value, grants = value_of(case.worker), case.attempt(0, case.worker)
    case.tell(*(report(case.worker, case.task, 0, value, grants) for _ in range(2)))
    check(case)


def test_a_worker_that_gave_up_failed_and_an_elector_that_closed_a_task_did_not(case: Case) -> None:
    gave_up = value_of(case.worker, "no", Outcome.FAILED)
    case.tell(report(case.worker, case.task, 0, gave_up, case.attempt(0, case.worker)))
    case.settle(0, gave_up)
    check(case, worker=(0, 10))
    other = Case()
    elector = other.pool.electors[0]
    closed = value_of(elector, "exhausted", Outcome.FAILED)
    other.tell(report(elector, other.task, 0, closed, other.attempt(0, elector, Purpose.FAIL)))
    other.settle(0, closed)
    check(other)


def settled(case: Case) -> None:
    value = value_of(case.worker)
    case.tell(report(case.worker, case.task, 0, value, case.attempt(0, case.worker)))
    case.settle(0, value)


def test_a_carried_dispute_is_held_against_the_worker_once_and_the_result_stays(case: Case) -> None:
    settled(case)
    case.dispute(case.other, YES)
    case.dispute(case.pool.electors[2], YES)
    check(case, worker=(10, 60))
    register = case.replica().view.registers[case.task]
    assert register.value == value_of(case.worker)


def test_a_dispute_that_was_turned_down_is_held_against_who_raised_it(case: Case) -> None:
    settled(case)
    case.dispute(case.other, NO)
    check(case, worker=(10, 0), other=(0, 10))


def test_an_open_dispute_is_held_against_nobody(case: Case) -> None:
    settled(case)
    case.dispute(case.other, YES, (0,))
    case.dispute(case.other, NO, (1,))
    check(case, worker=(10, 0))


def test_what_a_forked_author_did_from_there_on_is_taken_back(case: Case) -> None:
    case.attempt(0, case.worker)
    before = case.worker.branch()
    case.tell(release(case.worker, case.task, 0, failed=True))
    case.dispute(case.worker, NO)
    check(case, worker=(0, 20))
    case.tell(before.sign(dispute_result(TaskId(b"x" * 32))))
    check(case)


def test_nothing_follows_from_a_change_that_something_named_as_a_task_before_it_was_taken_back(case: Case) -> None:
    change, elector = case.replica().view.next_change.id, case.pool.electors[0]
    case.tell(*(report(elector, change, 1, value_of(elector, number), []) for number in range(2)))
    before = case.worker.branch()
    case.tell(release(case.worker, change, 0))
    check(case)
    case.tell(before.sign(dispute_result(TaskId(b"x" * 32))))
    check(case)


class Story(Case):
    """Random attempts, reports, votes, disputes and opinions, with forks."""

    def write(self, seed: int) -> None:
        pick, people = random.Random(seed), [*self.pool.people]
        claims, motions = [claim(self.worker, self.task)], list[Operation]()
        self.tell(claims[0])
        values = [value_of(author, number) for author in self.pool.workers for number in range(2)]
        for _ in range(25):
            author, number = pick.choice(people), pick.randrange(2)
            if pick.random() < 0.04:
                author = author.branch()
                people.append(author)
            made: Any
            match pick.randrange(7):
                case 0:
                    made = claim(author, self.task, pick.choice((Purpose.WORK, Purpose.WORK, Purpose.FAIL)))
                    claims.append(made)
                case 1:
                    made = release(author, self.task, number, failed=pick.random() < 0.7)
                case 2:
                    made = report(author, self.task, number, pick.choice(values), [])
                case 3:
                    made = author.sign(dispute_result(self.task))
                    motions.append(made)
                case 4 if motions:
                    made = author.sign(OpinionBody(pick.choice(motions).id, pick.choice((NO, YES))))
                case 5:
                    accept = Ballot(Phase.ACCEPT, self.task, number, values[0].hash)
                    made = author.sign(VoteBody((accept,)))
                case _:
                    expired = 0 if number and pick.random() < 0.5 else None
                    grant = Ballot(Phase.GRANT, self.task, number, pick.choice(claims).id, None, expired)
                    made = author.sign(VoteBody((grant,)))
            self.tell(made)


@pytest.mark.no_cover
@given(st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_the_same_operations_make_the_same_trust_in_any_order(seed: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "TRUST_PENDING_TASKS_MAX", random.Random(seed).choice((1, 1000)))
        story = Story()
        story.write(seed)
        assert len({encode(story.replica(number).view.trust.ledger.state()) for number in range(3)}) == 1
