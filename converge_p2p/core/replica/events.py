"""What goes into a replica and what comes out of it: plain values.

Knows: the vocabulary between the pure machine and its shell. Must not know: how a shell carries it out.
Source: sans-IO, after websockets and h11; clock, randomness and timers cross the boundary as values.

A shell obeys the effects in order, with one rule that matters: an own operation is sent only by the `Publish` that the
machine returns after its `Persisted`. A shell that sends earlier can equivocate after a crash.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from converge_p2p.core.model.pool import PoolSpec
from converge_p2p.core.model.task import Outcome, TaskSpec
from converge_p2p.core.oplog.motions import MotionBody
from converge_p2p.core.oplog.succession import SuccessionBody
from converge_p2p.core.replica.coordination_notices import CoordinationChanged as CoordinationChanged, Matter as Matter
from converge_p2p.core.replica.key_notices import (
    ContentKeyTaken as ContentKeyTaken,
    KeyOverdue as KeyOverdue,
    KeyUnopenable as KeyUnopenable,
    SplitKeyFound as SplitKeyFound,
)
from converge_p2p.core.replica.notices import (
    NEVER_HONEST as NEVER_HONEST,
    Acknowledged as Acknowledged,
    ClaimLost as ClaimLost,
    ClaimWon as ClaimWon,
    Compacted as Compacted,
    EpochInstalled as EpochInstalled,
    EvaluatorUnknown as EvaluatorUnknown,
    ForkDetected as ForkDetected,
    MembersChanged as MembersChanged,
    MotionMoved as MotionMoved,
    Notice as Notice,
    OwnChainLearned as OwnChainLearned,
    PoolReady as PoolReady,
    Rejected as Rejected,
    TaskChanged as TaskChanged,
    TaskProgress as TaskProgress,
    VerdictWanted as VerdictWanted,
)
from converge_p2p.core.types import OperationId, PeerId, PublicKey, TaskId, ValueHash


@dataclass(frozen=True, slots=True)
class Now:
    """A reading of the clocks, taken by the shell.

    Attributes:
        mono_ms: local monotonic clock, milliseconds. Timers run on it.
        wall_ms: Unix time, milliseconds. Only shown, never decides.
    """

    mono_ms: int
    wall_ms: int


# ---------------------------------------------------------------- events


@dataclass(frozen=True, slots=True)
class Restored:
    """What was read back from the own store at start. Comes first, once.

    Attributes:
        operations: in the order they were stored.
        unsure: the store may be an old copy. Nothing is signed before the end of the own chain was learned from others.
        secrets: what the last `Keep` said, if there was one.
        silent_through: what the last `OwnChainLearned` said, if there was one.
        snapshot: what the operations build on, if the store was compacted.
    """

    operations: tuple[bytes, ...]
    unsure: bool = False
    secrets: bytes = field(default=b"", repr=False)
    silent_through: int = -1
    snapshot: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class TrustStore:
    """Command of the operator: the store is the newest there is, whatever it looks like. Writes nothing.

    If it is not, the next signature may be a fork.
    """


@dataclass(frozen=True, slots=True)
class Received:
    """Signed operations that came by gossip or a replication stream."""

    operations: tuple[bytes, ...]
    peer: PeerId | None = None


@dataclass(frozen=True, slots=True)
class SyncReceived:
    """A sync message (see `wire`) from a peer."""

    peer: PeerId
    payload: bytes


@dataclass(frozen=True, slots=True)
class RenewalReceived:
    """A renewal (see `renewal`) came.

    Attributes:
        gossiped: it came by gossip; `PassOn` says that it may be passed on.
    """

    payload: bytes
    peer: PeerId | None = None
    gossiped: bool = False


@dataclass(frozen=True, slots=True)
class PeerUp:
    """A peer can be sent sync messages from now on.

    Attributes:
        key: the identity that the connection proves; None if it proves none.
    """

    peer: PeerId
    key: PublicKey | None = None


@dataclass(frozen=True, slots=True)
class PeerDown:
    """A peer can no longer be reached."""

    peer: PeerId


class TimerKind(Enum):
    """What a timer is for."""

    HOLD_OFF = "hold_off"
    GRANT = "grant"
    CLAIM = "claim"
    DIGEST = "digest"
    CLOSE = "close"
    VOTE = "vote"
    WINDOW = "window"
    SYNC = "sync"
    OFFER = "offer"
    TIP = "tip"
    CHECKPOINT = "checkpoint"
    FORWARD = "forward"
    ASK = "ask"


CHECKPOINT_TIMERS = (TimerKind.CHECKPOINT, TimerKind.FORWARD, TimerKind.ASK)


@dataclass(frozen=True, slots=True)
class TimerKey:
    """Names a timer. Setting it again moves it."""

    kind: TimerKind
    task: TaskId | None = None


@dataclass(frozen=True, slots=True)
class TimerFired:
    """A timer that `SetTimer` asked for is due. A late or repeated firing is harmless."""

    key: TimerKey


@dataclass(frozen=True, slots=True)
class Persisted:
    """The batches of `Persist(token, …)` are on disk: all that one commit wrote, in the order they were handed out."""

    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """Command: found the pool. Comes first in a new pool, from its creator, and must match the pool's id."""

    spec: PoolSpec


@dataclass(frozen=True, slots=True)
class Submit:
    """Command: submit a task."""

    spec: TaskSpec


@dataclass(frozen=True, slots=True)
class Claim:
    """Command: stand as a worker for a task."""

    task: TaskId
    bid: int = 0


@dataclass(frozen=True, slots=True)
class Release:
    """Command: give a claim back.

    Attributes:
        failed: the attempt failed and may be retried; it counts against `max_retries`.
        reason: for people, at most `limits.TEXT_BYTES_MAX` bytes of UTF-8.
    """

    task: TaskId
    failed: bool = False
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """Command: report finished work. Kept and reported again if the claim was lost and is won again."""

    task: TaskId
    outcome: Outcome
    result: bytes


@dataclass(frozen=True, slots=True)
class Cancel:
    """Command of the submitter: cancel a task."""

    task: TaskId
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Join:
    """Command: become a member of the pool (self-signed, with an admission proof)."""

    capabilities: tuple[str, ...] = ()
    proof: bytes = b""


@dataclass(frozen=True, slots=True)
class Leave:
    """Command: leave the pool."""


@dataclass(frozen=True, slots=True)
class Move:
    """Command: put a motion to the electors. One that is an elector itself says yes to its own change at once."""

    motion: MotionBody


@dataclass(frozen=True, slots=True)
class Say:
    """Command of an elector: its opinion on a motion. A yes cannot be taken back.

    Attributes:
        choice: `NO`, `YES`, or the index of an option; among rival reports None is what most evidence speaks for.
    """

    motion: OperationId
    choice: int | None


@dataclass(frozen=True, slots=True)
class Renew:
    """Tell everybody that the local identity, which holds the task, is at work. Writes nothing.

    Attributes:
        fraction: how much is done, in thousandths.
        note: for people, at most `limits.RENEWAL_NOTE_BYTES_MAX` bytes of UTF-8.
    """

    task: TaskId
    fraction: int = 0
    note: str = ""


@dataclass(frozen=True, slots=True)
class Veto:
    """Command of a vetoer: deny the result that a task was settled on, or let it pass.

    Attributes:
        deny: False ends the waiting for this vetoer.
        reason: for people.
    """

    task: TaskId
    deny: bool = True
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Judge:
    """Command of a task's evaluator: its verdict on a reported result.

    Attributes:
        value: hash of the result; None is the one that waits for a verdict, if it is the only one.
        reason: for people.
    """

    task: TaskId
    approve: bool
    reason: str = ""
    value: ValueHash | None = None


@dataclass(frozen=True, slots=True)
class Cite:
    """Command: say that a content speaks for a result of a task, or against it.

    Attributes:
        digest: SHA-256 of the content.
        size: of the content, in bytes.
        media: what kind of content it is, 1 to `limits.NAME_BYTES_MAX` bytes, such as `text/csv`.
        summary: for people.
        value: hash of the result; None is the only one that is known.
        supports: False says that it speaks against the result.
    """

    task: TaskId
    digest: bytes
    size: int
    media: str
    summary: str = ""
    value: ValueHash | None = None
    supports: bool = True


@dataclass(frozen=True, slots=True)
class Succeed:
    """Command: hand over to a key, commit to a recovery key, or, first of all, take the place of another key."""

    body: SuccessionBody


Command = Succeed | Found | Submit | Claim | Release | Report | Cancel | Join | Leave | Move | Say | Veto | Judge | Cite
Event = (
    Restored
    | TrustStore
    | Received
    | SyncReceived
    | RenewalReceived
    | PeerUp
    | PeerDown
    | TimerFired
    | Persisted
    | Command
    | Renew
)


# ---------------------------------------------------------------- effects


@dataclass(frozen=True, slots=True)
class Persist:
    """Write operations to the log store; then answer with `Persisted((token,))`, or of several at once.

    Attributes:
        durable: True for own operations: they must survive power loss before `Persisted` is said.
    """

    token: int
    operations: tuple[bytes, ...]
    durable: bool


@dataclass(frozen=True, slots=True)
class Keep:
    """Store the secrets of a private pool in place of the last ones, durably.

    They must be on disk before any `Persisted` is said of a batch that was handed over later: who is sealed something,
    or seals something, with a key that is then lost, reads it never again.

    Attributes:
        secrets: as good as everything that was ever sealed; never shown.
    """

    secrets: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Compact:
    """Put a snapshot into the store and take operations out, both or neither; after every `Persist` before it.

    Attributes:
        snapshot: replaces the snapshot that is there.
        drop: operations that the snapshot covers.
        kept: tasks that the local identity submitted, and how they ended (see `view.ended`); a snapshot has no results.
    """

    snapshot: bytes
    drop: tuple[OperationId, ...]
    kept: tuple[tuple[TaskId, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class Publish:
    """Send operations to everybody in the pool."""

    operations: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Send:
    """Send one sync message to one peer. It may be lost."""

    peer: PeerId
    payload: bytes


@dataclass(frozen=True, slots=True)
class Broadcast:
    """Send a renewal to everybody in the pool. It may be lost, and is not kept."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class PassOn:
    """The renewal that just came by gossip is genuine and new: pass it on."""


@dataclass(frozen=True, slots=True)
class SetTimer:
    """Fire `TimerFired(key)` when the monotonic clock reaches `at_ms`. Replaces an earlier setting."""

    key: TimerKey
    at_ms: int


@dataclass(frozen=True, slots=True)
class CancelTimer:
    """Forget a timer."""

    key: TimerKey


@dataclass(frozen=True, slots=True)
class Emit:
    """Tell the application something that is now durable and, where it says so, certified."""

    notice: Notice


Effect = Persist | Keep | Compact | Publish | Broadcast | PassOn | Send | SetTimer | CancelTimer | Emit
