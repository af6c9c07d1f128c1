"""Which auction, poll, negotiation or delegation an operation changed: a notice for whoever takes part in it.

Knows: the bodies of coordination. Must not know: whether an operation counts (see `view.coordination`).
Source: `docs/protocol.md`, coordination. A notice says "look again", and no more.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from converge_p2p.core.oplog.bodies import ActBody, Body
from converge_p2p.core.oplog.coordination import (
    AnswerBody,
    AuctionCloseBody,
    AuctionOpenBody,
    AuctionSettleBody,
    BidCommitBody,
    BidRevealBody,
    DelegateBody,
    PollCloseBody,
    PollOpenBody,
    PollVoteBody,
    ProposeBody,
    RevokeBody,
)
from converge_p2p.core.oplog.operation import Operation
from converge_p2p.core.types import OperationId


class Matter(Enum):
    """What members coordinate."""

    AUCTION = "auction"
    POLL = "poll"
    NEGOTIATION = "negotiation"
    DELEGATION = "delegation"


@dataclass(frozen=True, slots=True)
class CoordinationChanged:
    """An auction, poll, negotiation or delegation may look different now.

    Attributes:
        matter: what it is.
        id: the operation that opened it.
    """

    matter: Matter
    id: OperationId


def changed_by(operation: Operation) -> CoordinationChanged | None:
    """Return what an operation changed, or None if it is not about coordination."""
    return _changed(operation.id, operation.body)


def _changed(operation: OperationId, body: Body) -> CoordinationChanged | None:
    match body:
        case AuctionOpenBody():
            return CoordinationChanged(Matter.AUCTION, operation)
        case AuctionCloseBody() | AuctionSettleBody() | BidCommitBody() | BidRevealBody():
            return CoordinationChanged(Matter.AUCTION, body.auction)
        case PollOpenBody():
            return CoordinationChanged(Matter.POLL, operation)
        case PollVoteBody() | PollCloseBody():
            return CoordinationChanged(Matter.POLL, body.poll)
        case ProposeBody():
            return CoordinationChanged(Matter.NEGOTIATION, body.session or operation)
        case AnswerBody():
            return CoordinationChanged(Matter.NEGOTIATION, body.session)
        case DelegateBody():
            return CoordinationChanged(Matter.DELEGATION, operation)
        case RevokeBody():
            return CoordinationChanged(Matter.DELEGATION, body.delegation)
        case ActBody():
            # an act about a task changes the task, which is told of by itself
            return _changed(operation, body.inner) if isinstance(body.inner, PollVoteBody | AnswerBody) else None
        case _:
            return None
