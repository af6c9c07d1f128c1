"""Sealed-bid auctions for tasks: commit, close, reveal, settle, and who wins at what price.

Knows: the steps of an auction and how its outcome follows from them. Must not know: what becomes of the winner
(electors grant claims; an auction only says whose claim comes first).
Source: `docs/protocol.md`, auctions; Vickrey (1961) for the second price. A bid is sealed by a hash, so nobody, the
auctioneer included, knows an amount before the bidding is closed. Phases end by operations, never by time.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import NamedTuple

from converge_p2p.core.codec import tagged_hash
from converge_p2p.core.oplog.coordination import (
    AuctionBody,
    AuctionCloseBody,
    AuctionOpenBody,
    AuctionRule,
    AuctionSettleBody,
    BidBody,
    BidCommitBody,
    BidRevealBody,
    bid_commitment,
)
from converge_p2p.core.oplog.operation import Operation
from converge_p2p.core.types import OperationId, PublicKey, TaskId
from converge_p2p.core.view.firsts import FirstOfAuthor
from converge_p2p.core.view.members import Members


class AuctionPhase(Enum):
    """How far an auction is."""

    BIDDING = "bidding"
    REVEALING = "revealing"
    SETTLED = "settled"


class RankedBid(NamedTuple):
    """A bid that takes part in the outcome."""

    bidder: PublicKey
    amount: int


class AuctionView(NamedTuple):
    """An auction as a replica sees it.

    Attributes:
        id: the open operation.
        commits: bidder → its sealed bid; once the bidding is closed only the bids that were named.
        reveals: bidder → amount, of named bids that were opened.
        unrevealed: bidders that were named and have not opened their bid. Once settled, that is on their record.
        passed_over: bidders that opened their bid and whom the auctioneer did not name when it settled.
        ranking: best first, as far as it is settled. Frozen and removed bidders are left out.
        winner, price: None until settled, and while `missing` is not 0.
        missing: bids the settlement rests on that are not here yet.
    """

    id: OperationId
    task: TaskId
    auctioneer: PublicKey
    rule: AuctionRule
    expires_ms: int
    phase: AuctionPhase
    commits: dict[PublicKey, OperationId]
    reveals: dict[PublicKey, int]
    unrevealed: tuple[PublicKey, ...]
    passed_over: tuple[PublicKey, ...]
    ranking: tuple[RankedBid, ...]
    winner: PublicKey | None
    price: int | None
    missing: int


class _Revealed(NamedTuple):
    commit: OperationId
    amount: int


class Auctions:
    """All auctions of a pool."""

    def __init__(self, members: Members, submitter_of: Callable[[TaskId], PublicKey | None]) -> None:
        """Make an empty set.

        Args:
            members: who is frozen.
            submitter_of: who asked for a task, or None.
        """
        self._members = members
        self._submitter_of = submitter_of
        self._tasks: dict[OperationId, TaskId] = {}
        self._opened: FirstOfAuthor[TaskId, AuctionOpenBody] = FirstOfAuthor()
        self._closed: FirstOfAuthor[OperationId, dict[PublicKey, OperationId]] = FirstOfAuthor()
        self._settled: FirstOfAuthor[OperationId, tuple[PublicKey, ...]] = FirstOfAuthor()
        self._commits: FirstOfAuthor[OperationId, bytes] = FirstOfAuthor()
        self._reveals: FirstOfAuthor[OperationId, _Revealed] = FirstOfAuthor()
        self._shown: dict[OperationId, AuctionView] = {}

    # ------------------------------------------------------------ adding

    def apply(self, operation: Operation, body: AuctionBody | BidBody) -> TaskId | None:
        """Note an operation; returns the task whose auction changed, if that is known."""
        match body:
            case AuctionOpenBody(task):
                if self._opened.add(task, operation, body):
                    self._tasks[operation.id] = task
                return task
            case AuctionCloseBody(auction, bids):
                self._closed.add(auction, operation, dict(bids))
            case AuctionSettleBody(auction, bidders):
                # in the auctioneer's own chain; a settlement before the close settles nothing
                if self._closed.of(auction, operation.author) is not None:
                    self._settled.add(auction, operation, bidders)
            case BidCommitBody(auction, commitment):
                self._commits.add(auction, operation, commitment)
            case BidRevealBody(auction):
                self._reveal(operation, body)
        self._shown.pop(auction, None)
        return self._tasks.get(auction)

    def _reveal(self, operation: Operation, body: BidRevealBody) -> None:
        # the commit stands earlier in the same chain, so whether a reveal opens it is known here and for ever
        bidder, commit = operation.author, self._commits.of(body.auction, operation.author)
        if commit is None or commit.operation != body.commit:
            return
        if bid_commitment(body.auction, bidder, body.amount, body.nonce) == commit.content:
            self._reveals.add(body.auction, operation, _Revealed(body.commit, body.amount))

    def void(self, operation: Operation, body: AuctionBody | BidBody) -> TaskId | None:
        """Take an operation back whose author forked; returns the task it was about, if that is known."""
        self._shown.clear()
        match body:
            case AuctionOpenBody(task):
                if self._opened.void(task, operation):
                    del self._tasks[operation.id]
                return task
            case AuctionCloseBody(auction):
                self._closed.void(auction, operation)
            case AuctionSettleBody(auction):
                self._settled.void(auction, operation)
            case BidCommitBody(auction):
                self._commits.void(auction, operation)
            case BidRevealBody(auction):
                self._reveals.void(auction, operation)
        return self._tasks.get(auction)

    def forget_shown(self) -> None:
        """Somebody was frozen or removed, which can change any outcome."""
        self._shown.clear()

    # ------------------------------------------------------------ reading

    def of_task(self, task: TaskId) -> AuctionView | None:
        """The auction of a task, or None: only the submitter can open one, and only its first counts."""
        submitter = self._submitter_of(task)
        opened = None if submitter is None else self._opened.of(task, submitter)
        if submitter is None or opened is None:
            return None
        shown = self._shown.get(opened.operation)
        if shown is None:
            shown = self._shown[opened.operation] = self._look(opened.operation, task, submitter, opened.content)
        return shown

    def task_of(self, auction: OperationId) -> TaskId | None:
        """The task that an auction is about, or None if its opening is not known."""
        return self._tasks.get(auction)

    def views(self) -> list[AuctionView]:
        """Every auction, by task."""
        views = (self.of_task(task) for task in sorted(set(self._tasks.values())))
        return [view for view in views if view is not None]

    def unrevealed(self, bidder: PublicKey) -> int:
        """In how many settled auctions a bidder took part and never opened its bid."""
        return sum(view.phase is AuctionPhase.SETTLED and bidder in view.unrevealed for view in self.views())

    def commit_of(self, auction: OperationId, bidder: PublicKey) -> tuple[OperationId, bytes] | None:
        """A bidder's sealed bid, whether or not it was named: (commit operation, commitment)."""
        commit = self._commits.of(auction, bidder)
        return None if commit is None else (commit.operation, commit.content)

    def revealed(self, auction: OperationId, bidder: PublicKey) -> bool:
        """Whether a bidder opened its bid."""
        return self._reveals.of(auction, bidder) is not None

    def _look(self, auction: OperationId, task: TaskId, auctioneer: PublicKey, opened: AuctionOpenBody) -> AuctionView:
        closed, settled = self._closed.of(auction, auctioneer), self._settled.of(auction, auctioneer)
        phase = AuctionPhase.SETTLED if settled else AuctionPhase.REVEALING if closed else AuctionPhase.BIDDING
        known = {bidder: said.operation for bidder, said in self._commits.by_author(auction).items()}
        commits = {bidder: known[bidder] for bidder in sorted(known) if bidder != auctioneer}
        named = {} if closed is None else closed.content
        if closed is not None:
            commits = {bidder: commit for bidder, commit in commits.items() if named.get(bidder) == commit}
        revealed = self._reveals.by_author(auction)
        reveals = {bidder: revealed[bidder].content.amount for bidder in commits if bidder in revealed}
        decides = () if settled is None else settled.content
        gone = self._members.frozen().keys() | self._members.expelled().keys()
        missing = sum(
            named.get(bidder) == known.get(bidder, named.get(bidder)) and bidder not in revealed
            for bidder in decides
            if bidder in named and bidder != auctioneer and bidder not in gone
        )
        ranking = _rank(auction, opened.rule, [
            RankedBid(bidder, reveals[bidder]) for bidder in decides if bidder in reveals and bidder not in gone
        ])  # fmt: skip
        won = bool(ranking) and not missing
        return AuctionView(
            auction,
            task,
            auctioneer,
            opened.rule,
            opened.expires_ms,
            phase,
            commits,
            reveals if closed is not None else {},
            tuple(bidder for bidder in commits if bidder not in reveals) if closed is not None else (),
            tuple(bidder for bidder in reveals if bidder not in decides) if settled is not None else (),
            ranking,
            ranking[0].bidder if won else None,
            ranking[min(len(ranking) - 1, opened.rule.second_price)].amount if won else None,
            missing,
        )


def _rank(auction: OperationId, rule: AuctionRule, bids: list[RankedBid]) -> tuple[RankedBid, ...]:
    """Best bid first; ties by a hash that no bidder chooses."""
    sign = -1 if rule.highest else 1
    return tuple(sorted(bids, key=lambda bid: (sign * bid.amount, tagged_hash("bid-rank", auction, bid.bidder))))
