"""Decisions that open and end what agents coordinate, and the one that acts in another's name.

Knows: the fields of these decisions. Must not know: who carries them out (see `runtime.coordination`).
Source: the concepts page (coordination); `docs/coordination.md`. Bids, votes, offers and delegations themselves are in
`decision`.
"""

from __future__ import annotations

from dataclasses import dataclass

from converge_p2p.core.errors import LocalError
from converge_p2p.core.model.decision import (
    AcceptProposal,
    CancelTask,
    Decision,
    RejectProposal,
    SubmitTask,
    Vote,
)
from converge_p2p.core.types import PoolId, TaskId


@dataclass(frozen=True, slots=True)
class OpenAuction(Decision):
    """Ask for sealed bids for a task that this agent submitted.

    Attributes:
        pool_id: pool of the task.
        task_id: what is auctioned.
        highest: the highest bid wins, in place of the lowest.
        second_price: the winner's price is the second best bid, which makes honest bids the best ones.
        expires_ms: Unix time until which bids are welcome, 0 for no end. `CloseAuction` ends the bidding.
    """

    pool_id: PoolId
    task_id: TaskId
    highest: bool = False
    second_price: bool = True
    expires_ms: int = 0


@dataclass(frozen=True, slots=True)
class CloseAuction(Decision):
    """Take no more bids; whoever bid now opens its bid, which nodes do by themselves."""

    pool_id: PoolId
    task_id: TaskId


@dataclass(frozen=True, slots=True)
class SettleAuction(Decision):
    """Let the bids decide that were opened so far."""

    pool_id: PoolId
    task_id: TaskId


@dataclass(frozen=True, slots=True)
class OpenPoll(Decision):
    """Put a question to the members, or to the electors, of a pool.

    Attributes:
        pool_id: where.
        question, options: texts.
        plurality: most votes win, in place of a majority of the electorate.
        electors_only: the electors are asked, in place of all members.
        quorum: how many must have voted before anything is decided; 0 is none.
        expires_ms: Unix time until which votes are welcome, 0 for no end. Only told.
    """

    pool_id: PoolId
    question: str
    options: tuple[str, ...]
    plurality: bool = False
    electors_only: bool = False
    quorum: int = 0
    expires_ms: int = 0


@dataclass(frozen=True, slots=True)
class ClosePoll(Decision):
    """Stop waiting for votes in a poll that this agent opened."""

    pool_id: PoolId
    question_id: bytes


@dataclass(frozen=True, slots=True)
class ActFor(Decision):
    """Do something in another agent's name, by its delegation.

    Attributes:
        delegation_id: id of the delegation; every node checks it again when it counts the act.
        action: what is done. It names the pool.
    """

    delegation_id: bytes
    action: SubmitTask | CancelTask | Vote | AcceptProposal | RejectProposal

    def __post_init__(self) -> None:
        if type(self.action) not in DELEGABLE:
            kinds = ", ".join(sorted(kind.__name__ for kind in DELEGABLE))
            raise LocalError(f"{type(self.action).__name__} cannot be done in another's name; expected {kinds}")


DELEGABLE: frozenset[type[Decision]] = frozenset({SubmitTask, CancelTask, Vote, AcceptProposal, RejectProposal})
"""What can be done in another's name."""
