"""Polls: members are counted, never only the votes cast, and a decided poll stays decided."""

from __future__ import annotations

from itertools import product

import pytest
from coordination_kit import Table
from hypothesis import given, strategies as st
from pool_kit import Author

from converge_p2p.core.errors import Conflict, LocalError, NotAuthorised, NotFound
from converge_p2p.core.oplog.bodies import LeaveBody
from converge_p2p.core.oplog.coordination import PollCloseBody, PollOpenBody, PollRule, PollVoteBody
from converge_p2p.core.oplog.operation import Operation
from converge_p2p.core.replica.coordination import CastVote, ClosePoll, Electorate, OpenPoll
from converge_p2p.core.types import OperationId, PublicKey
from converge_p2p.core.view.polls import Choice, Poll, PollPhase, PollView, decide


class Question(Table):
    """Ann asks all six members, or the three electors."""

    def __init__(self, rule: PollRule = PollRule.MAJORITY, options: str = "ab", **terms: object) -> None:
        super().__init__()
        self.opened = self.do(self.ann, OpenPoll("which?", tuple(options), rule, **terms))  # type: ignore[arg-type]

    @property
    def now(self) -> PollView:
        view = self.coordination.polls.view(self.opened.id)
        assert view is not None
        return view

    def vote(self, who: Author, choice: int) -> Operation:
        return self.do(who, CastVote(self.opened.id, choice))

    def votes(self, **choices: int) -> PollView:
        for name, choice in choices.items():
            self.vote(getattr(self, name), choice)
        return self.now


def test_a_majority_is_of_the_members_and_not_of_the_votes_cast() -> None:
    question = Question()
    assert question.votes(ann=0, ben=0, cid=0).phase is PollPhase.OPEN
    view = question.votes(dan=0)
    assert (view.phase, view.winner, view.final, view.counts) == (PollPhase.DECIDED, 0, True, (4, 0))


def test_a_poll_that_no_option_can_win_any_more_says_so() -> None:
    question = Question()
    view = question.votes(ann=0, ben=0, cid=0, dan=1, eve=1)
    assert view.phase is PollPhase.OPEN
    view = question.votes(fay=1)
    assert (view.phase, view.winner, view.final) == (PollPhase.UNDECIDABLE, None, True)


def test_a_plurality_is_final_when_nobody_can_overtake() -> None:
    question = Question(PollRule.PLURALITY, "abc")
    assert question.votes(ann=0, ben=0, cid=1).phase is PollPhase.OPEN
    view = question.votes(dan=0, eve=0)
    assert (view.phase, view.winner) == (PollPhase.DECIDED, 0)


def test_a_tied_plurality_of_all_goes_by_a_hash_and_a_tied_majority_never() -> None:
    winners = set()
    for number in range(12):
        question = Question(PollRule.PLURALITY, expires_ms=number)
        view = question.votes(ann=0, ben=0, cid=0, dan=1, eve=1, fay=1)
        assert view.phase is PollPhase.DECIDED
        winners.add(view.winner)
    assert winners == {0, 1}


def test_nothing_is_decided_below_the_quorum() -> None:
    question = Question(PollRule.MAJORITY, quorum=5)
    assert question.votes(ann=0, ben=0, cid=0, dan=0).phase is PollPhase.OPEN
    assert question.votes(eve=1).winner == 0


def test_the_first_vote_of_a_member_counts() -> None:
    question = Question()
    question.vote(question.ann, 0)
    assert question.ask(question.ann, CastVote(question.opened.id, 0)) is None
    with pytest.raises(Conflict, match="first one counts"):
        question.ask(question.ann, CastVote(question.opened.id, 1))
    question.sign(question.ann, PollVoteBody(question.opened.id, 1))
    assert question.now.counts == (1, 0)


def test_the_electorate_is_fixed_when_the_question_is_put() -> None:
    question = Question(electorate=Electorate.ELECTORS)
    assert question.now.electorate == tuple(sorted(one.key for one in question.pool.electors))
    with pytest.raises(NotAuthorised, match="electorate"):
        question.ask(question.dan, CastVote(question.opened.id, 0))
    question.sign(question.dan, PollVoteBody(question.opened.id, 0))
    assert question.now.counts == (0, 0)
    # somebody who left is still counted among those whose majority it takes
    question = Question()
    question.sign(question.fay, LeaveBody())
    assert question.votes(ann=0, ben=0, cid=0).phase is PollPhase.OPEN


def test_a_vote_for_an_option_that_is_not_there_counts_nowhere() -> None:
    question = Question()
    with pytest.raises(LocalError, match="option 2"):
        question.ask(question.ann, CastVote(question.opened.id, 2))
    question.sign(question.ann, PollVoteBody(question.opened.id, 2))
    assert question.now.votes == {}


def test_the_opener_may_stop_waiting_and_that_is_told() -> None:
    question = Question(PollRule.PLURALITY, "abc")
    question.votes(ann=2, ben=2, cid=1)
    with pytest.raises(NotAuthorised, match="opener"):
        question.ask(question.ben, ClosePoll(question.opened.id))
    question.do(question.ann, ClosePoll(question.opened.id))
    view = question.now
    assert (view.phase, view.winner, view.final) == (PollPhase.CLOSED_BY_OPENER, 2, False)
    assert question.ask(question.ann, ClosePoll(question.opened.id)) is None
    with pytest.raises(Conflict, match="closed"):
        question.ask(question.dan, CastVote(question.opened.id, 0))


def test_an_opener_cannot_overrule_the_members_by_what_it_names() -> None:
    question = Question()
    named = question.vote(question.ann, 1)
    question.votes(ben=0, cid=0, dan=0, eve=0)
    question.sign(question.ann, PollCloseBody(question.opened.id, (named.id,)))
    assert (question.now.phase, question.now.winner) == (PollPhase.DECIDED, 0)


def test_a_close_by_the_opener_makes_no_majority_of_votes_cast() -> None:
    question = Question()
    question.votes(ann=0, ben=0)
    question.do(question.ann, ClosePoll(question.opened.id))
    assert (question.now.phase, question.now.winner) == (PollPhase.CLOSED_BY_OPENER, None)


def test_a_close_names_votes_and_others_do_not_count_for_it() -> None:
    question = Question(PollRule.PLURALITY, "abc")
    named = question.vote(question.ann, 2)
    question.sign(question.ann, PollCloseBody(question.opened.id, tuple(sorted((named.id, OperationId(bytes(32)))))))
    question.sign(question.ben, PollVoteBody(question.opened.id, 1))
    question.sign(question.cid, PollVoteBody(question.opened.id, 1))
    assert (question.now.winner, question.now.missing) == (2, 1)


def test_only_the_first_close_counts_and_only_the_openers() -> None:
    question = Question(PollRule.PLURALITY)
    one, two = question.vote(question.ann, 0), question.vote(question.ben, 1)
    question.sign(question.ben, PollCloseBody(question.opened.id, (two.id,)))
    assert question.now.phase is PollPhase.OPEN
    question.sign(question.ann, PollCloseBody(question.opened.id, (one.id,)))
    question.sign(question.ann, PollCloseBody(question.opened.id, (two.id,)))
    assert question.now.winner == 0


def test_a_voter_that_forks_loses_the_vote_and_the_majority_stays_that_of_all() -> None:
    question = Question()
    other = question.dan.branch()
    assert question.votes(ann=0, ben=0, cid=0, dan=0).winner == 0
    question.sign(other, PollVoteBody(question.opened.id, 1))
    assert (question.now.phase, question.now.counts) == (PollPhase.OPEN, (3, 0))


def test_a_poll_after_its_advised_time_is_not_offered() -> None:
    question = Question(expires_ms=1000)
    with pytest.raises(Conflict, match="over"):
        question.ask(question.ann, CastVote(question.opened.id, 0), wall_ms=1000)
    assert question.ask(question.ann, CastVote(question.opened.id, 0), wall_ms=999) is not None


def test_what_cannot_be_a_poll_is_refused_before_it_is_signed() -> None:
    table = Table()
    for command in (OpenPoll("?", ("a",)), OpenPoll("?", ("a", "a")), OpenPoll("?", ("a", "b"), quorum=7)):
        with pytest.raises(LocalError):
            table.ask(table.ann, command)
    with pytest.raises(NotFound):
        table.ask(table.ann, CastVote(OperationId(bytes(32)), 0))


PEOPLE = [PublicKey(bytes([number]) * 32) for number in range(1, 6)]


@given(
    st.sampled_from(PollRule),
    st.integers(0, 5),
    st.lists(st.integers(0, 2), min_size=5, max_size=5),
    st.integers(0, 5),
    st.binary(min_size=32, max_size=32),
)
def test_a_winner_is_declared_exactly_when_no_further_votes_could_change_it(
    rule: PollRule, quorum: int, choices: list[int], voted: int, poll: bytes
) -> None:
    put = Poll(OperationId(poll), PEOPLE[0], PollOpenBody("?", ("a", "b", "c"), rule, quorum, tuple(PEOPLE)))

    def votes(cast: list[int]) -> dict[PublicKey, Choice]:
        return {who: Choice(OperationId(who), choice, False) for who, choice in zip(PEOPLE, cast, strict=False)}

    winner, possible = decide(put, votes(choices[:voted]))
    ends = {decide(put, votes([*choices[:voted], *rest]))[0] for rest in product(range(3), repeat=5 - voted)}
    if winner is not None:
        assert ends == {winner}
    elif voted and voted >= quorum and ends != {None}:
        assert len(ends) > 1
    assert possible == (ends != {None})
