"""Negotiations: everybody takes one side in each place of the chain, and an agreement is what all sides are on."""

from __future__ import annotations

import pytest
from coordination_kit import Table
from pool_kit import Author

from converge_p2p.core.errors import Conflict, LimitExceeded, LocalError, NotAuthorised, NotFound
from converge_p2p.core.oplog.coordination import AnswerBody, ProposeBody
from converge_p2p.core.oplog.operation import Operation
from converge_p2p.core.replica.coordination import AnswerProposal, CounterProposal, OpenNegotiation
from converge_p2p.core.types import OperationId
from converge_p2p.core.view.negotiation import SessionView


class Talks(Table):
    """Ann makes an offer to dan, and to eve if three talk."""

    def __init__(self, *, three: bool = False, until_epoch: int = 0, expires_ms: int = 0) -> None:
        super().__init__()
        parties = (self.dan.key, self.eve.key) if three else (self.dan.key,)
        self.opened = self.do(self.ann, OpenNegotiation(b"ten", parties, until_epoch, expires_ms))

    @property
    def now(self) -> SessionView:
        view = self.coordination.negotiations.view(self.opened.id)
        assert view is not None
        return view

    def answer(self, who: Author, proposal: Operation, *, accepts: bool = True) -> Operation:
        return self.do(who, AnswerProposal(proposal.id, accepts))

    def counter(self, who: Author, terms: bytes, prev: Operation | None = None) -> Operation:
        return self.do(who, CounterProposal(self.opened.id, terms, None if prev is None else prev.id))


def test_an_offer_that_all_others_accepted_is_an_agreement() -> None:
    talks = Talks(three=True)
    talks.answer(talks.dan, talks.opened)
    assert talks.now.agreement is None
    talks.answer(talks.eve, talks.opened)
    assert (talks.now.agreement, talks.now.final) == (talks.opened.id, True)


def test_offers_answer_each_other_and_the_last_that_all_accept_stands() -> None:
    talks = Talks()
    nine = talks.counter(talks.dan, b"nine")
    assert talks.now.head == nine.id
    eight = talks.counter(talks.ann, b"eight")
    assert [one.depth for one in talks.now.proposals] == [0, 1, 2]
    talks.answer(talks.dan, eight)
    assert talks.now.agreement == eight.id


def test_nobody_accepts_its_own_offer() -> None:
    talks = Talks()
    with pytest.raises(NotAuthorised, match="own proposal"):
        talks.ask(talks.ann, AnswerProposal(talks.opened.id, accepts=True))
    talks.sign(talks.ann, AnswerBody(talks.opened.id, None, talks.opened.id, accepts=True))
    assert talks.now.proposals[0].accepted_by == ()
    assert talks.now.agreement is None


def test_an_agreement_is_not_undone_by_a_later_offer() -> None:
    talks = Talks()
    talks.answer(talks.dan, talks.opened)
    later = talks.counter(talks.ann, b"less after all")
    assert (talks.now.agreement, talks.now.head) == (talks.opened.id, later.id)
    # but all together may replace it
    talks.answer(talks.dan, later)
    assert talks.now.agreement == later.id


def test_of_two_offers_in_one_place_a_party_is_for_the_first_it_chose() -> None:
    talks = Talks(three=True)
    nine, six = talks.counter(talks.dan, b"nine", talks.opened), talks.counter(talks.eve, b"six", talks.opened)
    talks.answer(talks.ann, nine)
    with pytest.raises(Conflict, match="stands behind"):
        talks.ask(talks.ann, AnswerProposal(six.id, accepts=True))
    talks.sign(talks.ann, AnswerBody(talks.opened.id, talks.opened.id, six.id, accepts=True))
    talks.sign(talks.dan, AnswerBody(talks.opened.id, talks.opened.id, six.id, accepts=True))
    talks.sign(talks.eve, AnswerBody(talks.opened.id, talks.opened.id, nine.id, accepts=True))
    # eve is for her own six, ann and dan are for nine: neither is agreed, and nobody can be counted on both
    assert talks.now.agreement is None
    assert talks.now.head == min(nine.id, six.id)
    # from the head it goes on
    head = nine if talks.now.head == nine.id else six
    again = talks.counter(talks.ann, b"nine", head)
    talks.answer(talks.dan, again)
    talks.answer(talks.eve, again)
    assert talks.now.agreement == again.id


def test_a_second_offer_of_one_party_in_the_same_place_does_not_count() -> None:
    talks = Talks()
    first = talks.counter(talks.dan, b"nine", talks.opened)
    with pytest.raises(Conflict, match="stands behind"):
        talks.ask(talks.dan, CounterProposal(talks.opened.id, b"six", talks.opened.id))
    second = talks.sign(talks.dan, ProposeBody(talks.opened.id, talks.opened.id, b"six"))
    assert talks.now.proposal(second.id) is None
    with pytest.raises(Conflict, match="another one"):
        talks.ask(talks.ann, AnswerProposal(second.id, accepts=True))
    talks.sign(talks.ann, AnswerBody(talks.opened.id, talks.opened.id, second.id, accepts=True))
    assert talks.now.agreement is None
    assert talks.now.proposal(first.id) is not None


def test_the_first_answer_counts() -> None:
    talks = Talks()
    talks.answer(talks.dan, talks.opened, accepts=False)
    assert talks.now.proposals[0].rejected_by == (talks.dan.key,)
    with pytest.raises(Conflict, match="first answer"):
        talks.ask(talks.dan, AnswerProposal(talks.opened.id, accepts=True))
    talks.sign(talks.dan, AnswerBody(talks.opened.id, None, talks.opened.id, accepts=True))
    assert talks.now.agreement is None
    assert talks.ask(talks.dan, AnswerProposal(talks.opened.id, accepts=False)) is None


def test_strangers_have_no_say() -> None:
    talks = Talks()
    for command in (CounterProposal(talks.opened.id, b"mine"), AnswerProposal(talks.opened.id, accepts=True)):
        with pytest.raises(NotAuthorised, match="party"):
            talks.ask(talks.fay, command)
    talks.sign(talks.fay, AnswerBody(talks.opened.id, None, talks.opened.id, accepts=True))
    talks.sign(talks.fay, ProposeBody(talks.opened.id, talks.opened.id, b"mine"))
    assert len(talks.now.proposals) == 1
    assert talks.now.proposals[0].accepted_by == ()


def test_an_offer_that_answers_nothing_of_the_session_does_not_count() -> None:
    talks = Talks()
    other = talks.do(talks.ann, OpenNegotiation(b"else", (talks.dan.key,)))
    for prev in (other.id, OperationId(bytes(32))):
        talks.sign(talks.dan, ProposeBody(talks.opened.id, prev, b"astray"))
    assert len(talks.now.proposals) == 1
    with pytest.raises(NotFound, match="no proposal"):
        talks.ask(talks.dan, CounterProposal(talks.opened.id, b"astray", other.id))


def test_an_answer_that_names_another_place_than_the_offers_counts_for_nothing() -> None:
    talks = Talks()
    nine = talks.counter(talks.dan, b"nine")
    talks.sign(talks.ann, AnswerBody(talks.opened.id, nine.id, nine.id, accepts=True))
    assert talks.now.agreement is None


def test_a_session_takes_nothing_of_a_later_epoch() -> None:
    talks = Talks(until_epoch=1)
    with pytest.raises(Conflict, match="epoch 1"):
        talks.ask(talks.dan, AnswerProposal(talks.opened.id, accepts=True), epoch=2)
    answer = AnswerBody(talks.opened.id, None, talks.opened.id, accepts=True)
    late = talks.dan.sign(answer, epoch=2)
    # the log takes an operation once its epoch is known; here the fold is asked directly
    talks.view.apply(late)
    assert talks.now.agreement is None
    talks.view.apply(talks.dan.sign(answer, epoch=1))
    assert talks.now.agreement == talks.opened.id


def test_after_the_advised_time_an_answer_is_not_offered() -> None:
    talks = Talks(expires_ms=1000)
    with pytest.raises(Conflict, match="over"):
        talks.ask(talks.dan, AnswerProposal(talks.opened.id, accepts=True), wall_ms=1000)


def test_a_party_that_forks_takes_its_side_back() -> None:
    talks = Talks()
    other = talks.dan.branch()
    talks.answer(talks.dan, talks.opened)
    assert talks.now.agreement == talks.opened.id
    talks.sign(other, AnswerBody(talks.opened.id, None, talks.opened.id, accepts=False))
    assert talks.now.agreement is None
    assert talks.now.proposals[0].rejected_by == ()


def test_what_cannot_be_a_negotiation_is_refused_before_it_is_signed() -> None:
    table = Table()
    with pytest.raises(LocalError, match="somebody else"):
        table.ask(table.ann, OpenNegotiation(b"", (table.ann.key,)))
    with pytest.raises(LimitExceeded):
        table.ask(table.ann, OpenNegotiation(bytes(41_000), (table.dan.key,)))
    with pytest.raises(NotFound, match="no negotiation"):
        table.ask(table.ann, CounterProposal(OperationId(bytes(32)), b""))
    with pytest.raises(NotFound, match="no proposal"):
        table.ask(table.ann, AnswerProposal(OperationId(bytes(32)), accepts=True))
