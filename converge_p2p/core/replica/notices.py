"""What a replica tells the application: something that is durable now and, where it says so, certified.

Knows: the vocabulary. Must not know: what caused a notice, or who hears it.
Source: `docs/protocol.md`; sans-IO, as `events`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from converge_p2p.core.model.task import TaskState
from converge_p2p.core.replica.coordination_notices import CoordinationChanged
from converge_p2p.core.replica.key_notices import ContentKeyTaken, KeyOverdue, KeyUnopenable, SplitKeyFound
from converge_p2p.core.types import AgentId, OperationId, PeerId, PublicKey, TaskId, ValueHash


@dataclass(frozen=True, slots=True)
class PoolReady:
    """The genesis is known: the pool can be read and commands are taken."""


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """An own operation is durable. Nothing acknowledged is ever lost."""

    operation: OperationId


@dataclass(frozen=True, slots=True)
class TaskChanged:
    """A task's state changed."""

    task: TaskId
    state: TaskState
    epoch: int
    round: int


@dataclass(frozen=True, slots=True)
class TaskProgress:
    """The holder of a task says how far it is. Nobody has to believe it.

    Attributes:
        fraction: in thousandths.
        note: for people; whatever the holder wrote.
    """

    task: TaskId
    epoch: int
    round: int
    fraction: int
    note: str


@dataclass(frozen=True, slots=True)
class ClaimWon:
    """The local identity holds the certified claim of (epoch, round), the fencing token: start working."""

    task: TaskId
    epoch: int
    round: int


@dataclass(frozen=True, slots=True)
class ClaimLost:
    """The local identity no longer holds the claim: stop working.

    Attributes:
        denied: the evaluator denied what was reported, so that it is not reported again.
    """

    task: TaskId
    epoch: int
    round: int
    reason: str
    denied: bool = False


@dataclass(frozen=True, slots=True)
class MembersChanged:
    """Somebody joined or left."""

    agent: AgentId
    joined: bool


@dataclass(frozen=True, slots=True)
class MotionMoved:
    """A motion is known here, and can be voted on."""

    motion: OperationId


@dataclass(frozen=True, slots=True)
class EpochInstalled:
    """The next epoch is certified and in force here.

    Attributes:
        number: of the epoch.
        elector: whether the local identity votes in it.
    """

    number: int
    elector: bool


@dataclass(frozen=True, slots=True)
class Compacted:
    """A certified checkpoint is in force here.

    Attributes:
        number: of the checkpoint.
        tasks: how many settled tasks it covers.
        operations: how many operations are still held.
        forwarded: it came from others, because what it covers was pruned there.
    """

    number: int
    tasks: int
    operations: int
    forwarded: bool = False


@dataclass(frozen=True, slots=True)
class ForkDetected:
    """An author signed two operations with one sequence number, and is frozen from there."""

    author: PublicKey
    seq: int


@dataclass(frozen=True, slots=True)
class OwnChainLearned:
    """A store that was in doubt is no longer: from now on this replica signs again.

    Attributes:
        length: how many operations the own chain has.
        silent_through: up to this epoch the local identity casts no votes, for it may have forgotten some: the shell
            keeps this for the next start. -1: it votes.
    """

    length: int
    silent_through: int


@dataclass(frozen=True, slots=True)
class VerdictWanted:
    """A result was reported that the local identity, as the task's evaluator, has to judge."""

    task: TaskId
    value: ValueHash


@dataclass(frozen=True, slots=True)
class EvaluatorUnknown:
    """A task is judged by a rule that is not registered here, so that this elector endorses no result of it."""

    task: TaskId
    rule: str


NEVER_HONEST: Final = frozenset(
    {
        "bad_chunk",
        "bad_encoding",
        "bad_genesis",
        "bad_offer",
        "bad_renewal",
        "bad_signature",
        "bad_snapshot",
        "bad_sync_message",
        "clear_content",
        "not_member",
        "too_large",
        "wrong_pool",
    }
)
"""Reasons of `Rejected` that no honest peer gives: it checks whatever it passes on by the same rules.

Not among them is what a race, a full quota or another version can cause.
"""


@dataclass(frozen=True, slots=True)
class Rejected:
    """A received operation was refused. `reason` is a stable short name, used as a metric label."""

    peer: PeerId | None
    reason: str

    @property
    def guilty(self) -> bool:
        """Whether whoever sent it is to blame."""
        return self.reason in NEVER_HONEST


Notice = (
    PoolReady
    | Acknowledged
    | TaskChanged
    | TaskProgress
    | ClaimWon
    | ClaimLost
    | MembersChanged
    | MotionMoved
    | CoordinationChanged
    | VerdictWanted
    | EvaluatorUnknown
    | EpochInstalled
    | Compacted
    | ContentKeyTaken
    | SplitKeyFound
    | KeyUnopenable
    | KeyOverdue
    | ForkDetected
    | OwnChainLearned
    | Rejected
)
