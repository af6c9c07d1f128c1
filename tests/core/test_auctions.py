"""Auctions: sealed until closed, settled by what was named, the same for everybody."""

from __future__ import annotations

import pytest
from coordination_kit import Table, nonce
from hypothesis import given, settings, strategies as st
from pool_kit import Author, feed

from converge_p2p.core.errors import Conflict, LocalError, NotAuthorised, NotFound
from converge_p2p.core.oplog.coordination import (
    AuctionCloseBody,
    AuctionOpenBody,
    AuctionRule,
    AuctionSettleBody,
    BidCommitBody,
    BidRevealBody,
    bid_commitment,
)
from converge_p2p.core.oplog.cuts import Cut
from converge_p2p.core.oplog.operation import Operation
from converge_p2p.core.replica.coordination import CloseAuction, CommitBid, OpenAuction, RevealBid, SettleAuction
from converge_p2p.core.types import TaskId
from converge_p2p.core.view.auctions import AuctionPhase, AuctionView


class Auction(Table):
    """Ann auctions a task; the others may bid."""

    def __init__(self, *, highest: bool = False, second_price: bool = False) -> None:
        super().__init__()
        self.task_id: TaskId = self.task(self.ann)
        self.opened = self.do(self.ann, OpenAuction(self.task_id, AuctionRule(highest, second_price)))

    @property
    def now(self) -> AuctionView:
        view = self.coordination.auctions.of_task(self.task_id)
        assert view is not None
        return view

    def bid(self, who: Author, amount: int) -> Operation:
        return self.do(who, CommitBid(self.task_id, amount, nonce(amount % 256)))

    def reveal(self, who: Author, amount: int) -> Operation:
        return self.do(who, RevealBid(self.task_id, amount, nonce(amount % 256)))

    def close(self) -> Operation:
        return self.do(self.ann, CloseAuction(self.task_id))

    def settle(self) -> Operation:
        return self.do(self.ann, SettleAuction(self.task_id))

    def run(self, **amounts: int) -> AuctionView:
        for name, amount in amounts.items():
            self.bid(getattr(self, name), amount)
        self.close()
        for name, amount in amounts.items():
            self.reveal(getattr(self, name), amount)
        self.settle()
        return self.now


@pytest.mark.parametrize(
    ("highest", "second_price", "winner", "price"),
    [(False, False, "eve", 3), (False, True, "eve", 5), (True, False, "fay", 9), (True, True, "fay", 5)],
)
def test_the_rule_says_who_wins_and_at_what_price(highest: bool, second_price: bool, winner: str, price: int) -> None:
    auction = Auction(highest=highest, second_price=second_price)
    view = auction.run(dan=5, eve=3, fay=9)
    assert (view.winner, view.price) == (getattr(auction, winner).key, price)
    assert auction.coordination.winner(auction.task_id) == view.winner


def test_a_single_bid_is_its_own_second_price() -> None:
    view = Auction(second_price=True).run(dan=5)
    assert view.price == 5


def test_no_bid_is_no_winner() -> None:
    view = Auction().run()
    assert (view.phase, view.winner, view.price) == (AuctionPhase.SETTLED, None, None)


@given(st.lists(st.integers(0, 3), min_size=4, max_size=4), st.booleans(), st.booleans())
@settings(max_examples=20, deadline=None)
def test_the_outcome_is_that_of_a_plain_count(amounts: list[int], highest: bool, second_price: bool) -> None:
    auction = Auction(highest=highest, second_price=second_price)
    names = ("ben", "dan", "eve", "fay")
    view = auction.run(**dict(zip(names, amounts, strict=True)))
    best = sorted(amounts, reverse=highest)
    assert view.price == best[1 if second_price else 0]
    assert view.winner in {
        getattr(auction, name).key for name, amount in zip(names, amounts, strict=True) if amount == best[0]
    }


def test_a_task_that_is_not_auctioned_has_no_winner() -> None:
    table = Table()
    task = table.task(table.ann)
    assert table.coordination.auctions.of_task(task) is None
    assert table.coordination.winner(task) is None
    with pytest.raises(NotFound, match="not auctioned"):
        table.ask(table.dan, CommitBid(task, 1, nonce(1)))


def test_only_the_submitter_auctions_a_task_and_only_its_first_auction_counts() -> None:
    table = Table()
    task = table.task(table.ann)
    with pytest.raises(NotAuthorised):
        table.ask(table.ben, OpenAuction(task))
    table.sign(table.ben, AuctionOpenBody(task))
    assert table.coordination.auctions.of_task(task) is None
    first = table.do(table.ann, OpenAuction(task))
    table.sign(table.ann, AuctionOpenBody(task, AuctionRule(highest=True)))
    view = table.coordination.auctions.of_task(task)
    assert view is not None
    assert (view.id, view.rule) == (first.id, AuctionRule())
    assert table.ask(table.ann, OpenAuction(task)) is None
    with pytest.raises(Conflict, match="another rule"):
        table.ask(table.ann, OpenAuction(task, AuctionRule(highest=True)))


def test_a_bid_is_sealed_until_the_bidding_is_closed() -> None:
    auction = Auction()
    auction.bid(auction.dan, 5)
    assert auction.now.phase is AuctionPhase.BIDDING
    with pytest.raises(Conflict, match="others can beat"):
        auction.ask(auction.dan, RevealBid(auction.task_id, 5, nonce(5)))
    # somebody who reveals all the same tells its amount, but it is not part of the view before the close
    commit = auction.now.commits[auction.dan.key]
    auction.sign(auction.dan, BidRevealBody(auction.opened.id, commit, 5, nonce(5)))
    assert auction.now.reveals == {}
    auction.close()
    assert auction.now.reveals == {auction.dan.key: 5}


def test_a_bid_that_was_not_named_by_the_close_takes_no_part() -> None:
    auction = Auction()
    auction.bid(auction.dan, 5)
    auction.close()
    with pytest.raises(Conflict, match="closed"):
        auction.ask(auction.eve, CommitBid(auction.task_id, 1, nonce(1)))
    late = BidCommitBody(auction.opened.id, bid_commitment(auction.opened.id, auction.eve.key, 1, nonce(1)))
    commit = auction.sign(auction.eve, late)
    with pytest.raises(Conflict, match="without this bid"):
        auction.ask(auction.eve, RevealBid(auction.task_id, 1, nonce(1)))
    auction.sign(auction.eve, BidRevealBody(auction.opened.id, commit.id, 1, nonce(1)))
    auction.reveal(auction.dan, 5)
    auction.sign(auction.ann, AuctionSettleBody(auction.opened.id, tuple(sorted((auction.dan.key, auction.eve.key)))))
    assert auction.now.winner == auction.dan.key


def test_a_bid_cannot_be_chosen_after_the_others_are_known() -> None:
    auction = Auction()
    auction.bid(auction.dan, 9)
    with pytest.raises(Conflict, match="cannot be changed"):
        auction.ask(auction.dan, CommitBid(auction.task_id, 1, nonce(1)))
    # a second sealed bid of one bidder is none, even if the auctioneer names it
    second = BidCommitBody(auction.opened.id, bid_commitment(auction.opened.id, auction.dan.key, 1, nonce(1)))
    commit = auction.sign(auction.dan, second)
    auction.sign(auction.ann, AuctionCloseBody(auction.opened.id, ((auction.dan.key, commit.id),)))
    auction.sign(auction.dan, BidRevealBody(auction.opened.id, commit.id, 1, nonce(1)))
    assert auction.now.reveals == {}


def test_what_does_not_open_the_sealed_bid_is_ignored() -> None:
    auction = Auction()
    commit = auction.bid(auction.dan, 5)
    auction.bid(auction.eve, 7)
    auction.close()
    with pytest.raises(LocalError, match="do not open"):
        auction.ask(auction.dan, RevealBid(auction.task_id, 4, nonce(5)))
    auction.sign(auction.dan, BidRevealBody(auction.opened.id, commit.id, 4, nonce(5)))
    assert auction.dan.key not in auction.now.reveals
    # the wrong one does not use the right one up
    auction.reveal(auction.dan, 5)
    assert auction.now.reveals[auction.dan.key] == 5


def test_a_copied_commitment_opens_for_nobody_else() -> None:
    auction = Auction()
    original = auction.bid(auction.dan, 5)
    assert isinstance(original.body, BidCommitBody)
    copy = auction.sign(auction.eve, BidCommitBody(auction.opened.id, original.body.commitment))
    auction.close()
    auction.reveal(auction.dan, 5)
    auction.sign(auction.eve, BidRevealBody(auction.opened.id, copy.id, 5, nonce(5)))
    assert auction.now.reveals == {auction.dan.key: 5}
    assert auction.now.unrevealed == (auction.eve.key,)


def test_a_bidder_that_never_opened_its_bid_is_on_record() -> None:
    auction = Auction()
    auction.bid(auction.dan, 5)
    auction.bid(auction.eve, 3)
    auction.close()
    auction.reveal(auction.dan, 5)
    assert auction.coordination.auctions.unrevealed(auction.eve.key) == 0
    auction.settle()
    assert (auction.now.winner, auction.now.unrevealed) == (auction.dan.key, (auction.eve.key,))
    assert auction.coordination.auctions.unrevealed(auction.eve.key) == 1
    assert auction.coordination.auctions.unrevealed(auction.dan.key) == 0


def test_a_bid_that_the_auctioneer_passes_over_shows() -> None:
    auction = Auction()
    for who, amount in ((auction.dan, 5), (auction.eve, 3)):
        auction.bid(who, amount)
    auction.close()
    auction.reveal(auction.dan, 5)
    auction.reveal(auction.eve, 3)
    auction.sign(auction.ann, AuctionSettleBody(auction.opened.id, (auction.dan.key,)))
    assert (auction.now.winner, auction.now.passed_over) == (auction.dan.key, (auction.eve.key,))


def test_only_the_first_close_and_settlement_of_the_submitter_count() -> None:
    auction = Auction()
    auction.bid(auction.dan, 5)
    auction.sign(auction.ben, AuctionCloseBody(auction.opened.id, ()))
    assert auction.now.phase is AuctionPhase.BIDDING
    # before the close a settlement settles nothing, and does not count as the first
    auction.sign(auction.ann, AuctionSettleBody(auction.opened.id, ()))
    auction.close()
    auction.sign(auction.ann, AuctionCloseBody(auction.opened.id, ()))
    assert auction.now.phase is AuctionPhase.REVEALING
    auction.reveal(auction.dan, 5)
    auction.settle()
    auction.sign(auction.ann, AuctionSettleBody(auction.opened.id, ()))
    assert auction.now.winner == auction.dan.key
    assert auction.ask(auction.ann, CloseAuction(auction.task_id)) is None
    assert auction.ask(auction.ann, SettleAuction(auction.task_id)) is None


def test_the_auctioneer_does_not_bid_and_nobody_else_closes_or_settles() -> None:
    auction = Auction()
    with pytest.raises(NotAuthorised, match="auctioneer"):
        auction.bid(auction.ann, 1)
    commitment = bid_commitment(auction.opened.id, auction.ann.key, 1, nonce(1))
    auction.sign(auction.ann, BidCommitBody(auction.opened.id, commitment))
    assert auction.now.commits == {}
    for command in (CloseAuction(auction.task_id), SettleAuction(auction.task_id)):
        with pytest.raises(NotAuthorised, match="submitter"):
            auction.ask(auction.ben, command)
    with pytest.raises(Conflict, match="bidding is open"):
        auction.ask(auction.ann, SettleAuction(auction.task_id))


def test_there_is_no_winner_while_a_bid_that_decides_is_on_its_way() -> None:
    auction = Auction()
    auction.bid(auction.dan, 5)
    auction.bid(auction.eve, 3)
    auction.close()
    auction.reveal(auction.dan, 5)
    body = auction.ask(auction.eve, RevealBid(auction.task_id, 3, nonce(3)))
    assert body is not None
    reveal = auction.eve.sign(body)
    auction.sign(auction.ann, AuctionSettleBody(auction.opened.id, tuple(sorted((auction.dan.key, auction.eve.key)))))
    assert (auction.now.winner, auction.now.missing) == (None, 1)
    feed(auction.replica, [reveal])
    assert (auction.now.winner, auction.now.missing) == (auction.eve.key, 0)


def test_a_bidder_that_forks_keeps_nobody_waiting_and_wins_nothing() -> None:
    auction = Auction()
    auction.bid(auction.dan, 5)
    other = auction.eve.branch()
    auction.bid(auction.eve, 3)
    auction.close()
    auction.reveal(auction.dan, 5)
    auction.reveal(auction.eve, 3)
    auction.settle()
    assert auction.now.winner == auction.eve.key
    auction.sign(other, AuctionOpenBody(auction.task_id))
    assert (auction.now.winner, auction.now.missing) == (auction.dan.key, 0)


def test_a_bidder_that_is_removed_keeps_nobody_waiting_and_wins_nothing() -> None:
    auction = Auction()
    auction.bid(auction.dan, 5)
    auction.bid(auction.eve, 3)
    auction.close()
    auction.reveal(auction.dan, 5)
    auction.reveal(auction.eve, 3)
    auction.settle()
    assert auction.now.winner == auction.eve.key
    length = auction.replica.log.length(auction.eve.key)
    auction.view.cut(Cut(auction.eve.key, length, auction.eve.prev), [], forked=False)
    assert (auction.now.winner, auction.now.missing) == (auction.dan.key, 0)


def test_a_submitter_that_forks_takes_its_close_back() -> None:
    auction = Auction()
    auction.bid(auction.dan, 5)
    other = auction.ann.branch()
    auction.close()
    assert auction.now.phase is AuctionPhase.REVEALING
    auction.sign(other, AuctionCloseBody(auction.opened.id, ()))
    assert auction.now.phase is AuctionPhase.BIDDING


def test_a_bid_after_the_advised_time_is_not_offered_but_counts_if_made() -> None:
    table = Table()
    task = table.task(table.ann)
    opened = table.do(table.ann, OpenAuction(task, expires_ms=1000))
    with pytest.raises(Conflict, match="over"):
        table.ask(table.dan, CommitBid(task, 1, nonce(1)), wall_ms=1000)
    assert table.ask(table.dan, CommitBid(task, 1, nonce(1)), wall_ms=999) is not None
    commitment = bid_commitment(opened.id, table.dan.key, 1, nonce(1))
    table.sign(table.dan, BidCommitBody(opened.id, commitment))
    view = table.coordination.auctions.of_task(task)
    assert view is not None
    assert set(view.commits) == {table.dan.key}


def test_what_cannot_be_a_bid_is_refused_before_it_is_signed() -> None:
    auction = Auction()
    with pytest.raises(LocalError, match="amount"):
        auction.ask(auction.dan, CommitBid(auction.task_id, -1, nonce(1)))
    with pytest.raises(LocalError, match="32 random bytes"):
        auction.ask(auction.dan, CommitBid(auction.task_id, 1, b"guess"))
    with pytest.raises(NotFound, match="no bid"):
        auction.ask(auction.dan, RevealBid(auction.task_id, 1, nonce(1)))
