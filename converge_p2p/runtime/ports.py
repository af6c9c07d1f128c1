"""What the runtime needs from a node, as Protocols.

Knows: the shape of the ways out of the runtime. Must not know: who stands behind them (a node, a test, another
process).
Source: ports and adapters; `docs/concepts.md`, executor.

A port refuses with a `ConvergeError` and has then changed nothing. It never answers a failure with a value.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from converge_p2p.core.model.decision import CreatePool, Decision
from converge_p2p.core.model.message import Message
from converge_p2p.core.model.task import Outcome, Task, TaskView
from converge_p2p.core.replica.coordination import CoordinationCommand
from converge_p2p.core.types import BlobRef, OperationId, PoolId, PublicKey, TaskId


class MessagePort(Protocol):
    """Sends messages."""

    async def send(self, message: Message) -> None:
        """Send one message: to its recipient, to its topics, or to everybody."""


class TaskPort(Protocol):
    """Proposes changes of tasks, and shows them."""

    async def submit(self, pool_id: PoolId, task: Task) -> TaskId:
        """Submit a task and return its id. The same key submits the same task."""

    async def claim(self, pool_id: PoolId, task_id: TaskId, bid: int) -> None:
        """Stand as a worker. Returning says that the claim was made, not that it won."""

    async def report(self, pool_id: PoolId, task_id: TaskId, outcome: Outcome, result: bytes) -> None:
        """Report how a claimed task ended; `result` is an encoded user value, also one too large for an operation."""

    async def release(self, pool_id: PoolId, task_id: TaskId, failed: bool, reason: str) -> None:
        """Give a claim back."""

    async def cancel(self, pool_id: PoolId, task_id: TaskId, reason: str) -> None:
        """Cancel an own task."""

    def task(self, pool_id: PoolId, task_id: TaskId) -> TaskView:
        """Return one task.

        Raises:
            NotFound: the pool or the task is not known here.
        """

    def tasks_for(self, capabilities: frozenset[str], limit: int) -> Sequence[TaskView]:
        """Return what an agent of these capabilities can act on now, most important first, at most `limit`.

        That is: pending tasks of the joined pools, and tasks that are assigned to this agent.
        """


class ClaimPort(Protocol):
    """What keeps the claims of an agent alive, and gives them back."""

    def renew(self, pool_id: PoolId, task_id: TaskId) -> None:
        """Tell everybody that a task that is held is being worked on. It may be lost.

        Raises:
            ConvergeError: it is not held, or not any more.
        """

    def renewal_interval_s(self, pool_id: PoolId, task_id: TaskId, round_: int) -> float:
        """Return how often whoever holds a task in a round has to say so, in seconds."""

    async def release(self, pool_id: PoolId, task_id: TaskId, failed: bool, reason: str) -> None:
        """Give a claim back."""


class CoordinationPort(Protocol):
    """Auctions, polls, negotiations and delegations of the joined pools. Ids are those of operations."""

    async def bid(self, pool_id: PoolId, task_id: TaskId, amount: int) -> None:
        """Make a sealed bid, and open it once the bidding is closed."""

    async def coordinate(self, pool_id: PoolId, command: CoordinationCommand) -> OperationId | None:
        """Sign a command of coordination; return its operation, or None if it was done before."""

    def key_of(self, agent: str) -> PublicKey:
        """Return the public key of an agent that is known here.

        Raises:
            NotFound: not known.
        """

    def epoch(self, pool_id: PoolId) -> int:
        """Return the number of the epoch that holds in a pool here."""

    def question(self, pool_id: PoolId, question_id: bytes) -> tuple[str, ...]:
        """Return the options of a poll, readable.

        Raises:
            NotFound: no such poll is known here.
        """

    def session_of(self, pool_id: PoolId, proposal_id: bytes) -> OperationId:
        """Return the negotiation that a proposal belongs to.

        Raises:
            NotFound: no such proposal is known here.
        """


class PoolPort(Protocol):
    """Founds, joins and leaves pools."""

    async def create(self, spec: CreatePool) -> PoolId:
        """Found a pool and return its id."""

    async def join(self, pool_id: PoolId, capabilities: tuple[str, ...], proof: bytes) -> None:
        """Become a member."""

    async def leave(self, pool_id: PoolId) -> None:
        """Leave a pool."""


class TaskWorkPort(Protocol):
    """The tasks of one pool, as handler-style workers use them.

    The methods do not block: a proposal is handed over and its outcome comes back as a notification
    (`WorkerPool.on_…`), which may happen before the method returns. A claim stands until it is released or the task
    is settled, so it may be won in a later round. A finished report is kept behind the port, and repeated if the
    claim is lost before the settlement and won again.
    """

    def claim(self, task_id: TaskId) -> None:
        """Stand as a worker for a task.

        Raises:
            Conflict, NotFound: this task cannot be claimed now.
            ConvergeError: nothing can be claimed now.
        """

    def release(self, task_id: TaskId, failed: bool, reason: str) -> None:
        """Give a claim back, won or not; `failed` counts against the task's retries."""

    def report(self, task_id: TaskId, outcome: Outcome, result: bytes) -> None:
        """Report how a claimed task ended; `result` is an encoded user value (for FAILED: the reason, a text)."""

    def renew(self, task_id: TaskId, fraction: int, note: str) -> None:
        """Tell everybody that the task is being worked on. It may be lost.

        Args:
            task_id: a task that is held.
            fraction: how much is done, in thousandths.
            note: for people, at most `limits.RENEWAL_NOTE_BYTES_MAX` bytes of UTF-8.

        Raises:
            ConvergeError: the task is not held, or not any more.
        """

    def renewal_interval_s(self, view: TaskView, round_: int) -> float:
        """Return how often whoever holds a task in a round has to say so, in seconds."""

    def in_turn(self) -> bool:
        """Whether workers take turns in claiming: rival claims have no use, for the first one is as good as any."""

    def pending(self, objectives: frozenset[str], capabilities: frozenset[str]) -> Iterable[TaskView]:
        """Return the pending tasks that fit, and those already assigned to this identity (after a restart)."""

    def stands(self, task_id: TaskId) -> bool:
        """Whether a claim of this identity for the work stands (from before a restart)."""


class ContentPort(Protocol):
    """Contents that are too large for a task's operations, for the handlers of one pool (see `node.pool_blobs`)."""

    async def bring(self, view: TaskView) -> TaskView:
        """Return a task with the contents of its inputs in place of references to them.

        Raises:
            ConvergeError: a content cannot be had now.
        """

    async def keep_result(self, result: bytes) -> bytes:
        """Return an encoded result as it can be reported.

        Raises:
            LimitExceeded: it is too large.
            StoreError: what it refers to cannot be kept.
        """

    async def put(self, content: bytes | str | Path) -> BlobRef:
        """Keep a content, or that of a file, and return a reference to it, which may stand in a result."""

    async def get(self, reference: BlobRef) -> bytes:
        """Return a content.

        Raises:
            NetworkError: it cannot be had now.
        """

    async def fetch(self, reference: BlobRef, to: str | Path) -> None:
        """Write a content to a file. Raises as `get`."""


class TurnRecorder(Protocol):
    """Keeps what an agent saw and decided (see `replay_log`)."""

    def record(self, seen: Sequence[Sequence[Any]], decided: Sequence[Decision], results: Sequence[Any]) -> None:
        """Note one call of `decide`. Does not block.

        Args:
            seen: messages, tasks, events and tool results.
            decided: its decisions.
            results: what became of them at once.
        """

    async def run(self) -> None:
        """Write down what is noted, until cancelled."""


class Mailbox(Protocol):
    """Keeps messages until the agent has seen them (see `durable_inbox`)."""

    async def done(self, messages: Sequence[Message]) -> None:
        """The agent has seen them."""


class ReplayStore(Protocol):
    """Keys and values that last. Called from a worker thread."""

    def put(self, key: str, value: bytes) -> None:
        """Write one value."""

    def get(self, key: str) -> bytes | None:
        """Return a value, or None if there is none."""

    def delete(self, key: str) -> bool:
        """Remove a value; say whether there was one."""

    def list(self, prefix: str = "") -> list[str]:
        """Return the keys that begin with `prefix`, sorted."""


class CheckpointStore(Protocol):
    """Where a runtime leaves its checkpoints. Called from a worker thread."""

    def put(self, key: str, value: bytes) -> None:
        """Write one value: the whole of it, or nothing."""

    def get(self, key: str) -> bytes | None:
        """Return a value, or None if there is none."""
