"""Motions and opinions: what carries, in which epoch, for ever, and in any order; and what is refused."""

from __future__ import annotations

import random
from collections.abc import Collection
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st
from pool_kit import Author, Pool, feed, now, rejected, signed

from converge_p2p.core import limits
from converge_p2p.core.codec import encode
from converge_p2p.core.errors import CodecError
from converge_p2p.core.governance.electorate import Electorate
from converge_p2p.core.governance.formula import Threshold
from converge_p2p.core.identity import Identity
from converge_p2p.core.model.pool import GovernanceKind, PoolSpec
from converge_p2p.core.oplog.bodies import Kind, LeaveBody, decode_body
from converge_p2p.core.oplog.motions import (
    NO,
    YES,
    Change,
    MotionBody,
    MotionKind,
    OpinionBody,
    dispute_result,
    dispute_rivals,
    move_change,
)
from converge_p2p.core.oplog.operation import Operation
from converge_p2p.core.replica.events import Received
from converge_p2p.core.types import OperationId, PublicKey, TaskId, ValueHash
from converge_p2p.core.view.motions import Motions, Outcome

TASK = TaskId(b"t" * 32)
RIVALS = (ValueHash(b"a" * 32), ValueHash(b"b" * 32), ValueHash(b"c" * 32))
STRANGER = PublicKey(b"s" * 32)
NEVER = 10**6


def electorate(authors: Collection[Author], need: int, **changed: Any) -> Electorate:
    keys = frozenset(author.key for author in authors)
    return Electorate(keys, Threshold.flat(need, keys), Threshold.flat(need, keys))._replace(**changed)


def opinion(author: Author, motion: Operation, choice: int = YES, epoch: int = 0) -> Operation:
    return author.sign(OpinionBody(motion.id, choice), epoch=epoch)


@pytest.fixture
def pool() -> Pool:
    return Pool(electors=3, workers=2)


@pytest.fixture
def motions(pool: Pool) -> Motions:
    made = Motions()
    made.open_epoch(0, electorate(pool.electors, 2))
    return made


def moved(pool: Pool, motions: Motions, body: MotionBody | None = None, **changed: Any) -> Operation:
    operation = pool.workers[0].sign(dispute_result(TASK) if body is None else body, **changed)
    motions.add_motion(operation)
    return operation


# ------------------------------------------------------------ what carries


def test_a_quorum_of_the_electorate_carries_and_nobody_else_counts(pool: Pool, motions: Motions) -> None:
    motion = moved(pool, motions)
    motions.add_opinion(opinion(pool.electors[0], motion))
    assert motions.add_opinion(opinion(pool.workers[0], motion)) is None
    assert motions.add_opinion(opinion(pool.workers[1], motion)) is None
    assert not motions.carried(motion.id)
    assert motions.outcome(motion.id, 0) is Outcome.OPEN
    assert motions.add_opinion(opinion(pool.electors[1], motion)) == motion.id
    assert motions.carried(motion.id)
    assert motions.outcome(motion.id, 0) is Outcome.CARRIED


def test_the_same_elector_twice_is_one_elector(pool: Pool, motions: Motions) -> None:
    motion = moved(pool, motions)
    for _ in range(3):
        motions.add_opinion(opinion(pool.electors[0], motion))
    assert not motions.carried(motion.id)


def test_a_yes_cannot_be_taken_back_and_a_no_can_become_a_yes(pool: Pool, motions: Motions) -> None:
    motion = moved(pool, motions)
    for elector in pool.electors[:2]:
        motions.add_opinion(opinion(elector, motion, NO))
    assert motions.rejected(motion.id)
    assert motions.outcome(motion.id, 0) is Outcome.REJECTED
    for elector in pool.electors[:2]:
        motions.add_opinion(opinion(elector, motion, YES))
    assert motions.carried(motion.id)
    assert not motions.rejected(motion.id)
    motions.add_opinion(opinion(pool.electors[0], motion, NO))
    motions.add_opinion(opinion(pool.electors[2], motion, NO))
    assert motions.carried(motion.id)


def test_a_change_needs_the_rule_for_epochs_and_a_dispute_the_one_for_results(pool: Pool) -> None:
    keys = frozenset(author.key for author in pool.electors)
    motions = Motions()
    motions.open_epoch(0, Electorate(keys, change=Threshold.flat(3, keys), dispute=Threshold.flat(1, keys)))
    change, dispute = moved(pool, motions, move_change((STRANGER,))), moved(pool, motions)
    for motion in (change, dispute):
        motions.add_opinion(opinion(pool.electors[0], motion))
        motions.add_opinion(opinion(pool.electors[1], motion))
    assert not motions.carried(change.id)
    assert motions.carried(dispute.id)
    motions.add_opinion(opinion(pool.electors[2], change))
    assert motions.carried(change.id)


def test_a_change_is_for_the_epoch_it_was_moved_in(pool: Pool, motions: Motions) -> None:
    motions.open_epoch(1, electorate(pool.electors, 2))
    motion = moved(pool, motions, move_change((STRANGER,), reason="silent for a month"))
    assert [item.id for item in motions.open_changes(0)] == [motion.id]
    for elector in pool.electors:
        motions.add_opinion(opinion(elector, motion, epoch=1))
    assert not motions.carried(motion.id)
    assert motions.outcome(motion.id, 1) is Outcome.LAPSED
    assert motions.outcome(motion.id, 0) is Outcome.OPEN
    for elector in pool.electors[:2]:
        motions.add_opinion(opinion(elector, motion, epoch=0))
    (carried,) = motions.carried_changes(0)
    assert (carried.id, carried.expelled, carried.terms) == (motion.id, (STRANGER,), None)
    assert motions.carried_changes(1) == motions.open_changes(0) == []


def test_a_dispute_may_be_decided_later_but_not_by_an_electorate_that_was_before(pool: Pool) -> None:
    old, new = pool.electors[:1], pool.electors[1:]
    motions = Motions()
    for number, who in ((0, old), (1, new), (2, new)):
        motions.open_epoch(number, electorate(who, len(who)))
    motion = moved(pool, motions, epoch=1)
    motions.add_opinion(opinion(old[0], motion, epoch=0))
    assert motions.add_opinion(opinion(old[0], motion, epoch=1)) is None
    assert not motions.carried(motion.id)
    motions.add_opinion(opinion(new[0], motion, epoch=1))
    motions.add_opinion(opinion(new[1], motion, epoch=2))
    # each epoch is counted by itself
    assert not motions.carried(motion.id)
    motions.add_opinion(opinion(new[0], motion, epoch=2))
    assert motions.carried(motion.id)


def test_one_of_rival_values_is_chosen(pool: Pool, motions: Motions) -> None:
    motion = moved(pool, motions, dispute_rivals(TASK, RIVALS[::-1]))
    motions.add_opinion(opinion(pool.electors[0], motion, 2))
    motions.add_opinion(opinion(pool.electors[1], motion, 0))
    assert motions.chosen(motion.id) is None
    motions.add_opinion(opinion(pool.electors[2], motion, 2))
    assert motions.chosen(motion.id) == RIVALS[2]
    assert motions.carried(motion.id)
    view = motions.view(motion.id, 0)
    assert view is not None
    assert (view.decided, view.conflict) == (2, False)
    assert {(epoch, choice) for epoch, _, choice in view.ballots} == {(0, 2), (0, 0)}


def test_rival_values_that_split_the_electors_are_all_turned_down(pool: Pool, motions: Motions) -> None:
    motion = moved(pool, motions, dispute_rivals(TASK, RIVALS))
    for choice, elector in enumerate(pool.electors):
        assert motions.outcome(motion.id, 0) is Outcome.OPEN
        motions.add_opinion(opinion(elector, motion, choice))
    assert motions.outcome(motion.id, 0) is Outcome.REJECTED


def test_two_chosen_values_need_lying_electors_and_show(pool: Pool, motions: Motions) -> None:
    motion = moved(pool, motions, dispute_rivals(TASK, RIVALS))
    for choice in (1, 0):
        for elector in pool.electors[:2]:
            motions.add_opinion(opinion(elector, motion, choice))
    view = motions.view(motion.id, 0)
    assert view is not None
    assert view.conflict
    assert motions.chosen(motion.id) == RIVALS[0]


def test_a_choice_that_is_no_option_counts_for_nothing_and_against_nothing(pool: Pool, motions: Motions) -> None:
    rivals, dispute = moved(pool, motions, dispute_rivals(TASK, RIVALS)), moved(pool, motions)
    for elector in pool.electors:
        motions.add_opinion(opinion(elector, rivals, 3))
        motions.add_opinion(opinion(elector, dispute, 7))
    for motion in (rivals, dispute):
        assert motions.decided(motion.id) is None
        assert motions.outcome(motion.id, 0) is Outcome.OPEN


def test_opinions_count_though_the_motion_or_the_electorate_comes_later(pool: Pool) -> None:
    motions = Motions()
    motion = pool.workers[0].sign(dispute_result(TASK))
    for author in (*pool.electors, *pool.workers):
        motions.add_opinion(opinion(author, motion))
    assert not motions.carried(motion.id)
    motions.add_motion(motion)
    assert not motions.carried(motion.id)
    motions.open_epoch(0, electorate(pool.electors, 3))
    assert motions.carried(motion.id)
    assert motions.opinion(motion.id, 0, pool.electors[0].key) == {YES}
    assert not motions.opinion(motion.id, 0, pool.workers[0].key)


def test_a_model_of_its_own_decides_disputes_and_never_changes(pool: Pool) -> None:
    asked: list[tuple[object, ...]] = []

    def first_of_all(
        subject: bytes,
        options: tuple[bytes, ...],
        ballots: tuple[tuple[PublicKey, int], ...],
        electors: frozenset[PublicKey],
        evidence: object,
    ) -> int | None:
        assert evidence == ()
        asked.append((subject, options, ballots, electors))
        said = dict(ballots)
        return said.get(min(electors))

    motions, keys = Motions(), frozenset(author.key for author in pool.electors)
    motions.open_epoch(0, electorate(pool.electors, 3, resolve=first_of_all))
    rivals, change = moved(pool, motions, dispute_rivals(TASK, RIVALS)), moved(pool, motions, move_change((STRANGER,)))
    decider = min(pool.electors, key=lambda author: author.key)
    other = next(author for author in pool.electors if author is not decider)
    motions.add_opinion(opinion(other, rivals, 1))
    assert motions.chosen(rivals.id) is None
    motions.add_opinion(opinion(decider, rivals, 2))
    assert motions.chosen(rivals.id) == RIVALS[2]
    assert asked[-1] == (TASK, RIVALS, tuple(sorted(((decider.key, 2), (other.key, 1)))), keys)
    motions.add_opinion(opinion(decider, change))
    assert not motions.carried(change.id)


def test_a_model_of_its_own_may_turn_a_dispute_down_and_names_only_options(pool: Pool) -> None:
    answers = iter((NEVER, -1, NO))
    motions = Motions()
    motions.open_epoch(0, electorate(pool.electors, 1, resolve=lambda *_: next(answers)))
    motion = moved(pool, motions)
    motions.add_opinion(opinion(pool.electors[0], motion))
    assert [motions.decided(motion.id) for _ in range(3)] == [None, None, NO]


# ------------------------------------------------------------ bounds, and what is void


def test_terms_that_no_pool_may_have_are_void_and_no_error(pool: Pool, motions: Motions) -> None:
    keys = tuple(sorted(author.key for author in pool.people[:4]))
    unsafe = PoolSpec("pool", b"n" * 16, GovernanceKind.DEMOCRATIC, keys, quorum=2)
    motion = moved(pool, motions, move_change(terms=unsafe))
    for elector in pool.electors:
        motions.add_opinion(opinion(elector, motion))
    assert not motions.carried(motion.id)
    assert motions.outcome(motion.id, 0) is Outcome.REJECTED
    assert motions.carried_changes(0) == []


def test_of_an_author_only_the_first_motions_of_an_epoch_have_an_effect(pool: Pool, motions: Motions) -> None:
    made = [moved(pool, motions) for _ in range(limits.MOTIONS_PER_AUTHOR_MAX + 2)]
    later = moved(pool, motions, epoch=1)
    assert [motions.get(motion.id) is not None for motion in made] == [True] * limits.MOTIONS_PER_AUTHOR_MAX + [
        False
    ] * 2
    assert motions.get(later.id) is not None
    assert len(motions.disputes(TASK)) == limits.MOTIONS_PER_AUTHOR_MAX + 1
    for elector in pool.electors:
        motions.add_opinion(opinion(elector, made[-1]))
    assert not motions.carried(made[-1].id)


def test_a_motion_of_an_author_that_forked_is_void_unless_it_is_carried(pool: Pool, motions: Motions) -> None:
    made = [moved(pool, motions) for _ in range(3)]
    for elector in pool.electors[:2]:
        motions.add_opinion(opinion(elector, made[1]))
    assert motions.void(pool.workers[0].key, made[1].seq, made[1:]) == {made[1].id, made[2].id}
    assert [motions.get(motion.id) is not None for motion in made] == [True, True, False]
    # what was only named before can be carried still: electors said so, whatever became of the author
    for elector in pool.electors[:2]:
        motions.add_opinion(opinion(elector, made[2]))
    assert motions.carried(made[2].id)


def test_only_a_member_moves_anything(pool: Pool) -> None:
    replica = pool.replica()
    worker = pool.workers[0]
    before = worker.sign(dispute_result(TASK))
    leave, after = worker.sign(LeaveBody()), worker.sign(dispute_result(TASK))
    feed(replica, [*pool.base, before, leave, after])
    assert [view.motion.id for view in replica.view.motions.views(0)] == [before.id]


# ------------------------------------------------------------ any order


class Story:
    """Random motions and opinions of a pool, some of forked authors, some with a wrong choice."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.pool = Pool(electors=self.random.choice((1, 3, 4)), workers=2)
        self.people = list(self.pool.people)
        self.motions: list[Operation] = []

    def write(self, count: int) -> list[Operation]:
        return [*self.pool.base, *(self._one() for _ in range(count))]

    def _one(self) -> Operation:
        pick = self.random
        author = pick.choice(self.people)
        if pick.random() < 0.05:
            # two chains of one author: whichever signs next proves the fork
            author = author.branch()
            self.people.append(author)
        if self.motions and pick.random() < 0.7:
            return author.sign(OpinionBody(pick.choice(self.motions).id, pick.choice((0, 1, 1, 1, 2))))
        body = pick.choice((
            move_change((STRANGER,)), move_change(terms=self.pool.spec), dispute_result(TASK),
            dispute_rivals(TASK, RIVALS[: pick.choice((2, 3))]),
        ))  # fmt: skip
        self.motions.append(author.sign(body))
        return self.motions[-1]


@pytest.mark.no_cover
@given(st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_the_same_operations_carry_the_same_motions_in_any_order(seed: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "MOTIONS_PER_AUTHOR_MAX", 2)
        story = Story(seed)
        operations = story.write(30)
        states, order = set(), random.Random(seed)
        for _ in range(3):
            replica = story.pool.replica()
            rest = operations[1:] + order.sample(operations, 8)
            order.shuffle(rest)
            carried: set[OperationId] = set()
            for operation in (operations[0], *rest):
                feed(replica, [operation])
                motions = replica.view.motions
                now_carried = {motion.id for motion in story.motions if motions.carried(motion.id)}
                # nothing that comes can take it back: no fork, no no
                assert carried <= now_carried
                carried = now_carried
            states.add(replica.view.state_bytes())
            views = [(view.motion.id, view.outcome, view.ballots) for view in replica.view.motions.views(0)]
            states.add(encode([[name, outcome.value, list(map(list, ballots))] for name, outcome, ballots in views]))
        assert len(states) == 2


# ------------------------------------------------------------ encoding


hashes = st.binary(min_size=32, max_size=32)
specs = st.builds(
    PoolSpec,
    st.text(min_size=1, max_size=9),
    st.binary(min_size=16, max_size=16),
    st.just(GovernanceKind.DEMOCRATIC),
    st.sets(st.integers(0, 9), min_size=1).map(lambda who: tuple(PublicKey(bytes([n]) * 32) for n in sorted(who))),
)
expulsions = st.sets(st.integers(10, 40), max_size=16).map(lambda who: tuple(PublicKey(bytes([n]) * 32) for n in who))
changes = st.builds(Change, expulsions, st.none() | specs).filter(lambda change: change.expelled or change.terms)


@given(changes, st.text(max_size=20))
def test_a_change_survives_its_payload(change: Change, reason: str) -> None:
    body = move_change(change.expelled, change.terms, reason)
    assert body.change == Change(tuple(sorted(change.expelled)), change.terms)
    assert decode_body(Kind.MOTION, [0, b"", body.payload, reason]) == body


@given(st.sets(hashes, min_size=2, max_size=16), hashes)
def test_rivals_survive_their_payload(rivals: set[bytes], task: bytes) -> None:
    body = dispute_rivals(TaskId(task), tuple(map(ValueHash, rivals)))
    assert body.rivals == tuple(sorted(rivals))
    assert decode_body(Kind.MOTION, [2, task, body.payload, ""]) == body


SPEC = Pool().spec.to_body()
KEY = bytes(32)


@pytest.mark.parametrize(
    "body",
    [
        [3, KEY, b"", ""],
        [-1, KEY, b"", ""],
        [True, KEY, b"", ""],
        [1, KEY, b""],
        [1, KEY, b"", "x" * (limits.TEXT_BYTES_MAX + 1)],
        [1, KEY, b"x", ""],
        [1, b"", b"", ""],
        [1, KEY[1:], b"", ""],
        [0, KEY, encode([[KEY], None]), ""],
        [0, b"", encode([[], None]), ""],
        [0, b"", encode([[KEY, KEY], None]), ""],
        [0, b"", encode([[b"\2" * 32, b"\1" * 32], None]), ""],
        [0, b"", encode([[bytes([n]) * 32 for n in range(17)], None]), ""],
        [0, b"", encode([[1], None]), ""],
        [0, b"", encode([[KEY[1:]], None]), ""],
        [0, b"", encode([None, None]), ""],
        [0, b"", encode([[KEY]]), ""],
        [0, b"", encode([[KEY], SPEC[:-1]]), ""],
        [0, b"", encode([[KEY], 7]), ""],
        [0, b"", encode([[SPEC[3][0]], SPEC]), ""],
        [0, b"", encode([[KEY], None]) + b"\0", ""],
        [0, b"", b"\x82\x9f\xff\xf6", ""],
        [0, b"", b"\xd9\x01\x00\x80", ""],
        [0, b"", b"", ""],
        [0, b"", b"\x81" * 2000, ""],
        [0, b"", bytes(limits.MOTION_PAYLOAD_BYTES_MAX + 1), ""],
        [2, KEY, encode([KEY]), ""],
        [2, KEY, encode([KEY, KEY]), ""],
        [2, KEY, encode([b"\2" * 32, b"\1" * 32]), ""],
        [2, KEY, encode([bytes([n]) * 32 for n in range(17)]), ""],
        [2, KEY, encode([KEY, 1]), ""],
        [2, KEY, encode({}), ""],
        [2, KEY, b"", ""],
    ],
)
def test_a_motion_out_of_bounds_is_a_codec_error(body: list[Any]) -> None:
    with pytest.raises(CodecError):
        decode_body(Kind.MOTION, body)


@pytest.mark.parametrize(
    "body", [[KEY], [KEY, -1], [KEY, 16], [KEY, True], [KEY[1:], 0], [0, KEY], [KEY, 2**64 - 1], [KEY, 0, 0], []]
)
def test_an_opinion_out_of_bounds_is_a_codec_error(body: list[Any]) -> None:
    with pytest.raises(CodecError):
        decode_body(Kind.OPINION, body)


def test_what_cannot_be_moved_is_refused_where_it_is_made() -> None:
    with pytest.raises(CodecError, match="nothing"):
        move_change()
    with pytest.raises(CodecError, match="expels"):
        move_change((Pool().spec.electors[0],), Pool().spec)
    with pytest.raises(CodecError, match="value hashes"):
        dispute_rivals(TASK, RIVALS[:1] * 2)
    with pytest.raises(CodecError, match="task id"):
        dispute_result(TaskId(b"short"))
    assert MotionKind.CHANGE == 0


def test_the_largest_terms_fit_a_motion() -> None:
    people = [Identity.from_seed(bytes([n // 256, n % 256]) * 16).public_key for n in range(256)]
    spec = PoolSpec(
        "n" * 1024, bytes(16), GovernanceKind.DEMOCRATIC, tuple(sorted(people[:31])), whitelist=tuple(sorted(people)),
        topics=(bytes(limits.TEXT_BYTES_MAX),) * 16, task_types=("t" * limits.TEXT_BYTES_MAX,) * 16,
    )  # fmt: skip
    spec.check()
    expelled = tuple(PublicKey(bytes([n]) * 32) for n in range(16))
    worker = Pool().workers[0]
    worker.sign(move_change(expelled, spec, "r" * limits.TEXT_BYTES_MAX))


def test_a_refused_motion_leaves_no_trace(pool: Pool) -> None:
    replica = pool.replica()
    feed(replica, pool.base)
    before = replica.view.state_bytes()
    false = MotionBody(MotionKind.CHANGE, b"", encode([[], None]))
    effects = replica.handle(Received(signed([pool.workers[0].sign(false)])), now())
    assert rejected(effects) == ["bad_encoding"]
    assert replica.view.state_bytes() == before
