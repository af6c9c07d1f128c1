"""What the application may ask of an auction, and the operation that answers it.

Knows: who may do what in which phase. Must not know: how an operation is signed, stored or sent.
Source: `docs/protocol.md`, auctions.
"""

from __future__ import annotations

from dataclasses import dataclass

from converge_p2p.core import limits
from converge_p2p.core.codec import tagged_hash
from converge_p2p.core.errors import Conflict, LocalError, NotAuthorised, NotFound
from converge_p2p.core.oplog.bodies import Body
from converge_p2p.core.oplog.coordination import (
    LOWEST_WINS,
    NONCE_BYTES,
    AuctionCloseBody,
    AuctionOpenBody,
    AuctionRule,
    AuctionSettleBody,
    BidCommitBody,
    BidRevealBody,
    bid_commitment,
)
from converge_p2p.core.replica.refusals import check_time, short
from converge_p2p.core.types import PublicKey, TaskId
from converge_p2p.core.view.auctions import AuctionPhase, AuctionView
from converge_p2p.core.view.fold import View


@dataclass(frozen=True, slots=True)
class OpenAuction:
    """Command of a task's submitter: ask for sealed bids.

    Attributes:
        expires_ms: Unix time until which bids are welcome, 0 for no end. Only told; `CloseAuction` ends the bidding.
    """

    task: TaskId
    rule: AuctionRule = LOWEST_WINS
    expires_ms: int = 0


@dataclass(frozen=True, slots=True)
class CommitBid:
    """Command: make a sealed bid. Keep amount and nonce: without them it can never be opened.

    Attributes:
        amount: 0 to `limits.SEQ_MAX`.
        nonce: 32 random bytes, used once.
    """

    task: TaskId
    amount: int
    nonce: bytes


@dataclass(frozen=True, slots=True)
class CloseAuction:
    """Command of the auctioneer: end the bidding with the bids that are here."""

    task: TaskId


@dataclass(frozen=True, slots=True)
class RevealBid:
    """Command: open the own sealed bid, once the bidding is closed."""

    task: TaskId
    amount: int
    nonce: bytes


@dataclass(frozen=True, slots=True)
class SettleAuction:
    """Command of the auctioneer: let the bids decide that were opened."""

    task: TaskId


AuctionCommand = OpenAuction | CommitBid | CloseAuction | RevealBid | SettleAuction


class AuctionCommands:
    """Turns commands of the local identity into operation bodies."""

    def __init__(self, key: PublicKey, view: View) -> None:
        self._key = key
        self._view = view

    def body_for(self, command: AuctionCommand, wall_ms: int) -> Body | None:
        """Return the operation a command asks for, or None if it was done already.

        Raises:
            LocalError: it cannot be done; nothing was changed.
        """
        match command:
            case OpenAuction():
                return self._open_auction(command)
            case CommitBid():
                return self._commit(command, wall_ms)
            case CloseAuction(task):
                return self._close_auction(task)
            case RevealBid():
                return self._reveal(command)
            case SettleAuction(task):
                return self._settle(task)

    def _open_auction(self, command: OpenAuction) -> Body | None:
        register = self._view.registers.get(command.task)
        if register is None or register.submitted is None:
            raise NotFound(f"no task {short(command.task)} in this pool")
        if register.submitted.author != self._key:
            raise NotAuthorised("only the submitter can auction a task")
        if register.settled is not None:
            raise Conflict(f"task {short(command.task)} is settled")
        auction = self._view.coordination.auctions.of_task(command.task)
        if auction is not None:
            if auction.rule != command.rule:
                raise Conflict("the task is auctioned already, by another rule")
            return None
        return AuctionOpenBody(command.task, command.rule, command.expires_ms)

    def _auction(self, task: TaskId) -> AuctionView:
        auction = self._view.coordination.auctions.of_task(task)
        if auction is None:
            raise NotFound(f"task {short(task)} is not auctioned", hint="its submitter opens an auction")
        return auction

    def _own_auction(self, task: TaskId) -> AuctionView:
        auction = self._auction(task)
        if auction.auctioneer != self._key:
            raise NotAuthorised("only the submitter of the task closes and settles its auction")
        return auction

    def _commit(self, command: CommitBid, wall_ms: int) -> Body | None:
        auction = self._auction(command.task)
        if auction.auctioneer == self._key:
            raise NotAuthorised("the auctioneer cannot bid in its own auction")
        _check_amount(command.amount)
        commitment = bid_commitment(auction.id, self._key, command.amount, command.nonce)
        before = self._view.coordination.auctions.commit_of(auction.id, self._key)
        if before is not None:
            if before[1] == commitment:
                return None
            raise Conflict("this agent bid already, and a sealed bid cannot be changed")
        if auction.phase is not AuctionPhase.BIDDING:
            raise Conflict("the bidding is closed")
        check_time("the bidding", auction.expires_ms, wall_ms)
        if len(command.nonce) != NONCE_BYTES:
            raise LocalError("the nonce of a bid is 32 random bytes")
        return BidCommitBody(auction.id, commitment)

    def _close_auction(self, task: TaskId) -> Body | None:
        auction = self._own_auction(task)
        if auction.phase is not AuctionPhase.BIDDING:
            return None
        # more than fit are drawn by lot, so that coming early is no advantage
        chosen = sorted(auction.commits, key=lambda bidder: tagged_hash("bid-rank", auction.id, bidder))
        chosen = sorted(chosen[: limits.BIDS_PER_AUCTION_MAX])
        return AuctionCloseBody(auction.id, tuple((bidder, auction.commits[bidder]) for bidder in chosen))

    def _reveal(self, command: RevealBid) -> Body | None:
        auction = self._auction(command.task)
        commit = self._view.coordination.auctions.commit_of(auction.id, self._key)
        if commit is None:
            raise NotFound("this agent has no bid in the auction")
        if auction.phase is AuctionPhase.BIDDING:
            raise Conflict("the bidding is open: a bid revealed now is one that others can beat")
        _check_amount(command.amount)
        if bid_commitment(auction.id, self._key, command.amount, command.nonce) != commit[1]:
            raise LocalError("amount and nonce do not open the sealed bid", hint="use those of the commit")
        if self._view.coordination.auctions.revealed(auction.id, self._key):
            return None
        if auction.commits.get(self._key) != commit[0]:
            raise Conflict("the auctioneer closed the bidding without this bid")
        return BidRevealBody(auction.id, commit[0], command.amount, command.nonce)

    def _settle(self, task: TaskId) -> Body | None:
        auction = self._own_auction(task)
        if auction.phase is AuctionPhase.BIDDING:
            raise Conflict("the bidding is open", hint="close it first, and let the bidders reveal")
        if auction.phase is AuctionPhase.SETTLED:
            return None
        return AuctionSettleBody(auction.id, tuple(sorted(auction.reveals)))


def _check_amount(amount: int) -> None:
    if type(amount) is not int or not 0 <= amount <= limits.SEQ_MAX:
        raise LocalError(f"the amount of a bid is {amount!r}; expected an integer of 0 to {limits.SEQ_MAX}")
