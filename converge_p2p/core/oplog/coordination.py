"""What an operation says to coordinate: auctions, polls, negotiations, and who may act for whom.

Knows: the fields of each body, and what a sealed bid commits to. Must not know: their bytes (see `coordination_codec`),
what has an effect (the fold in `view` decides), or the clock: `expires_ms` is read by the local node alone.
Source: `docs/protocol.md`, coordination; Vickrey, Counterspeculation, Auctions, and Competitive Sealed Tenders (1961).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from converge_p2p.core.codec import tagged_hash
from converge_p2p.core.types import OperationId, PublicKey, TaskId

NONCE_BYTES = 32
"""Length of the secret that keeps a sealed bid from being guessed: amounts are few."""


# ---------------------------------------------------------------- auctions


class AuctionRule(NamedTuple):
    """Who wins, and what it pays or is paid.

    Attributes:
        highest: the highest amount wins; else the lowest, as for work that costs.
        second_price: the price is the amount of the next best bid; else the winner's own.
    """

    highest: bool = False
    second_price: bool = False


LOWEST_WINS = AuctionRule()
"""The least cost wins, and is the price."""


@dataclass(frozen=True, slots=True)
class AuctionOpenBody:
    """The submitter of a task asks for sealed bids. The id of this operation is the auction's, and fixes its rule."""

    task: TaskId
    rule: AuctionRule = LOWEST_WINS
    expires_ms: int = 0


@dataclass(frozen=True, slots=True)
class AuctionCloseBody:
    """The auctioneer ends the bidding, and names the bids that take part: (bidder, commit operation), by bidder.

    It names both, so that everybody can tell a bid that is still on its way from one whose bidder forked.
    """

    auction: OperationId
    bids: tuple[tuple[PublicKey, OperationId], ...]


@dataclass(frozen=True, slots=True)
class AuctionSettleBody:
    """The auctioneer ends the revealing, and names the bidders whose reveals decide."""

    auction: OperationId
    bidders: tuple[PublicKey, ...]


@dataclass(frozen=True, slots=True)
class BidCommitBody:
    """A sealed bid: only a hash, see `bid_commitment`."""

    auction: OperationId
    commitment: bytes


@dataclass(frozen=True, slots=True)
class BidRevealBody:
    """A bidder opens its sealed bid."""

    auction: OperationId
    commit: OperationId
    amount: int
    nonce: bytes


def bid_commitment(auction: OperationId, bidder: PublicKey, amount: int, nonce: bytes) -> bytes:
    """Return what a sealed bid publishes.

    The auction's id stands for task, auctioneer and rule; the bidder's key keeps a copied commitment from opening.
    """
    return tagged_hash("bid", auction, bidder, amount.to_bytes(8, "big"), nonce)


# ---------------------------------------------------------------- polls


class PollRule(IntEnum):
    """What an option needs."""

    PLURALITY = 0
    MAJORITY = 1


@dataclass(frozen=True, slots=True)
class PollOpenBody:
    """A question. The electorate is fixed here, so that everybody counts the same people.

    Attributes:
        options: at least two, different.
        quorum: members of the electorate that must have voted before anything is decided; 0 is none.
        electorate: sorted keys.
    """

    question: str
    options: tuple[str, ...]
    rule: PollRule
    quorum: int
    electorate: tuple[PublicKey, ...]
    expires_ms: int = 0


@dataclass(frozen=True, slots=True)
class PollVoteBody:
    """A vote for one option, by its index."""

    poll: OperationId
    choice: int


@dataclass(frozen=True, slots=True)
class PollCloseBody:
    """The opener stops waiting and names the votes that it goes by, sorted."""

    poll: OperationId
    votes: tuple[OperationId, ...]


# ---------------------------------------------------------------- negotiation


@dataclass(frozen=True, slots=True)
class ProposeBody:
    """An offer. With no session it opens one, whose id is that of this operation.

    Attributes:
        session: the session, or None.
        prev: the proposal this one answers; None exactly in an opening.
        terms: opaque bytes.
        parties: opening only: who has to agree beside the author, sorted.
        until_epoch: opening only: operations of later epochs have no part in the session.
        expires_ms: opening only: when the local node stops answering.
    """

    session: OperationId | None
    prev: OperationId | None
    terms: bytes
    parties: tuple[PublicKey, ...] = ()
    until_epoch: int = 0
    expires_ms: int = 0


@dataclass(frozen=True, slots=True)
class AnswerBody:
    """The author accepts or rejects a proposal.

    Attributes:
        prev: the `prev` of that proposal: a party takes one side on each, and which one must not depend on whether the
            proposal has arrived.
    """

    session: OperationId
    prev: OperationId | None
    proposal: OperationId
    accepts: bool
    reason: str = ""


# ---------------------------------------------------------------- delegation


class Scope(IntEnum):
    """What a delegate may do. To delegate further is not among it."""

    SUBMIT = 0
    CANCEL = 1
    VOTE = 2
    ANSWER = 3


@dataclass(frozen=True, slots=True)
class DelegateBody:
    """The author lets somebody act in its name.

    Attributes:
        scopes: sorted, at least one.
        subject: only acts about this task, poll or session; None is any.
        topic: only tasks with this topic (canonical bytes); empty is any.
        until_epoch: acts that name a later epoch have no effect.
        expires_ms: when the delegate's own node stops using it.
    """

    delegate: PublicKey
    scopes: tuple[Scope, ...]
    subject: bytes | None = None
    topic: bytes = b""
    until_epoch: int = 0
    expires_ms: int = 0


@dataclass(frozen=True, slots=True)
class RevokeBody:
    """The author takes a delegation back.

    Attributes:
        delegate_length: length of the delegate's chain as the author saw it: acts at or above it are void. A cut in
            that chain is the same cut for everybody; "from now on" would not be.
    """

    delegation: OperationId
    delegate_length: int


AuctionBody = AuctionOpenBody | AuctionCloseBody | AuctionSettleBody
BidBody = BidCommitBody | BidRevealBody
CoordinationBody = (
    AuctionOpenBody
    | AuctionCloseBody
    | AuctionSettleBody
    | BidCommitBody
    | BidRevealBody
    | PollOpenBody
    | PollVoteBody
    | PollCloseBody
    | ProposeBody
    | AnswerBody
    | DelegateBody
    | RevokeBody
)
