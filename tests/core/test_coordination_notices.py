"""Notices of coordination: whoever takes part is told to look again, and of nothing else."""

from __future__ import annotations

from coordination_kit import Table, spec_of
from pool_kit import Author, feed, notices

from converge_p2p.core.oplog.bodies import Body
from converge_p2p.core.oplog.coordination import Scope
from converge_p2p.core.oplog.operation import Operation
from converge_p2p.core.replica import events as ev
from converge_p2p.core.replica.auction_commands import CloseAuction, CommitBid, OpenAuction, RevealBid, SettleAuction
from converge_p2p.core.replica.coordination import (
    ActFor,
    CastVote,
    ClosePoll,
    GiveDelegation,
    OpenPoll,
    RevokeDelegation,
    SubmitFor,
)
from converge_p2p.core.replica.coordination_notices import CoordinationChanged, Matter
from converge_p2p.core.replica.negotiation_commands import AnswerProposal, CounterProposal, OpenNegotiation


class HearingTable(Table):
    """Keeps what the replica tells."""

    def __init__(self) -> None:
        self.heard: list[CoordinationChanged] = []
        super().__init__()

    def sign(self, who: Author, body: Body) -> Operation:
        operation = who.sign(body)
        self.heard += notices(feed(self.replica, [operation]), ev.CoordinationChanged)
        return operation

    def take(self) -> list[CoordinationChanged]:
        heard, self.heard = self.heard, []
        return heard


def test_every_step_of_an_auction_names_the_auction() -> None:
    table = HearingTable()
    task = table.task(table.ann)
    assert table.take() == [], "a task is told of by itself"
    opened = table.do(table.ann, OpenAuction(task))
    table.do(table.dan, CommitBid(task, 7, bytes(32)))
    table.do(table.ann, CloseAuction(task))
    table.do(table.dan, RevealBid(task, 7, bytes(32)))
    table.do(table.ann, SettleAuction(task))
    assert table.take() == [CoordinationChanged(Matter.AUCTION, opened.id)] * 5
    assert table.coordination.auctions.task_of(opened.id) == task


def test_every_step_of_a_poll_names_the_poll_and_so_does_a_vote_for_somebody_else() -> None:
    table = HearingTable()
    given = table.do(table.ann, GiveDelegation(table.dan.key, (Scope.VOTE, Scope.SUBMIT)))
    poll = table.do(table.ben, OpenPoll("Ship?", ("yes", "no")))
    table.do(table.ben, CastVote(poll.id, 0))
    table.do(table.dan, ActFor(given.id, CastVote(poll.id, 0)))
    table.do(table.ben, ClosePoll(poll.id))
    assert (
        table.take()
        == [CoordinationChanged(Matter.DELEGATION, given.id)] + [CoordinationChanged(Matter.POLL, poll.id)] * 4
    )
    table.do(table.dan, ActFor(given.id, SubmitFor(spec_of(b"for-ann"))))
    assert table.take() == [], "what an act does to a task is told as a change of the task"
    table.do(table.ann, RevokeDelegation(given.id))
    assert table.take() == [CoordinationChanged(Matter.DELEGATION, given.id)]


def test_every_offer_and_answer_names_the_negotiation() -> None:
    table = HearingTable()
    offer = table.do(table.ann, OpenNegotiation(b"ten", (table.dan.key,)))
    counter = table.do(table.dan, CounterProposal(offer.id, b"nine"))
    table.do(table.ann, AnswerProposal(counter.id, accepts=True))
    assert table.take() == [CoordinationChanged(Matter.NEGOTIATION, offer.id)] * 3
