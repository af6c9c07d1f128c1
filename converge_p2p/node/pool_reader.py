"""What an application can read of a pool.

Knows: how a replica's state is shown. Must not know: how anything is proposed or waited for (see `handles`).
Source: `docs/embedding.md`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from converge_p2p.core.errors import Conflict, NotFound
from converge_p2p.core.model.pool import PoolSpec
from converge_p2p.core.model.task import Progress, TaskState, TaskView
from converge_p2p.core.oplog.bodies import Purpose
from converge_p2p.core.replica.renewal import renewal_interval_ms
from converge_p2p.core.types import PoolId, PublicKey, TaskId
from converge_p2p.core.view.receipt import Receipt, receipt_of
from converge_p2p.node.driver import PoolDriver
from converge_p2p.node.roster import FrozenView, MemberView, frozen_views, member_views

if TYPE_CHECKING:
    from converge_p2p.node.main import Node


@dataclass(frozen=True, slots=True)
class CheckpointView:
    """How far a pool's log was compacted.

    Attributes:
        number: of the checkpoint, 0 before the first; None while its proposal is not here after a restart.
        root: hexadecimal hash of the state there, None before the first.
        tasks: how many settled tasks it covers.
        tail: how many operations are held that it does not cover.
    """

    number: int | None
    root: str | None
    tasks: int
    tail: int


class PoolReader:
    """The readable half of a `PoolHandle`.

    Attributes:
        driver: drives the pool's replica.
    """

    def __init__(self, node: Node, driver: PoolDriver) -> None:
        """Read a pool of a node."""
        self._node = node
        self.driver = driver
        self._view = driver.replica.view

    @property
    def id(self) -> PoolId:
        """The pool's id."""
        return self.driver.pool

    @property
    def ready(self) -> bool:
        """Whether the founding terms are known here."""
        return self.driver.replica.ready

    @property
    def spec(self) -> PoolSpec:
        """The terms in force.

        Raises:
            NotFound: not known yet.
        """
        if self._view.spec is None:
            raise NotFound("the pool's founding terms are not known here yet", hint="wait until a member is connected")
        return self._view.spec

    @property
    def name(self) -> str:
        """The pool's name, empty as long as it is not known."""
        return "" if self._view.spec is None else self._view.spec.name

    @property
    def governance(self) -> str:
        """Name of the governance model, empty as long as it is not known."""
        return "" if self._view.spec is None else self._view.spec.governance.name.lower()

    @property
    def provisional(self) -> bool:
        """Whether two sides of a partition could decide differently here, which the founder chose to allow."""
        return self._view.spec is not None and self._view.counting.rules.provisional

    @property
    def creator(self) -> PublicKey | None:
        """Who founded the pool; None as long as it is not known."""
        return self._view.creator

    @property
    def electors(self) -> frozenset[PublicKey]:
        """Who votes now; empty as long as it is not known."""
        return self._view.electors

    def has_member(self, key: PublicKey) -> bool:
        """Whether somebody is an active member, as far as is known here."""
        return self.ready and self._view.members.active(key)

    @property
    def genesis(self) -> bytes:
        """The signed founding operation; empty as long as it is not known."""
        return self._view.genesis

    @property
    def has_quorum(self) -> bool | None:
        """Whether enough electors are connected to decide; None as long as the founding terms are not known."""
        if self._view.spec is None:
            return None
        present = self._node.connected_keys() | {self._node.public_key}
        return self._view.counting.rules.accept.satisfied_by(present)

    @property
    def is_member(self) -> bool:
        """Whether this node is an active member, as far as is known here."""
        return self.ready and self._view.members.active(self._node.public_key)

    @property
    def own_capabilities(self) -> tuple[str, ...]:
        """What this node declared in the pool."""
        return self._view.members.capabilities(self._node.public_key)

    @property
    def own_operations(self) -> int:
        """How many operations of this node are known here."""
        return self.driver.replica.log.length(self._node.public_key)

    @property
    def frontier_digest(self) -> str:
        """Digest of the operations held, hexadecimal: equal on two nodes that hold the same."""
        return self.driver.replica.log.digest().hex()

    @property
    def state_digest(self) -> bytes:
        """Canonical bytes of the decided state."""
        return self._view.state_bytes()

    @property
    def operations(self) -> int:
        """How many operations are held."""
        return len(self.driver.replica.log)

    def members(self) -> list[MemberView]:
        """The members, sorted by key."""
        return member_views(self._view)

    def frozen(self) -> list[FrozenView]:
        """Agents that signed two operations with one number, sorted by key: their data counts no further."""
        return frozen_views(self._view)

    @property
    def unsure(self) -> str:
        """Why this node signs nothing here: its store may be an old copy, and this is lacking. Empty if all is well."""
        return self.driver.replica.unsure

    def tasks(self) -> Iterator[TaskView]:
        """Every task, in the order in which this node first heard of it."""
        for task in list(self._view.registers):
            view = self.find_task(task)
            if view is not None:
                yield view

    @property
    def open_count(self) -> int:
        """How many tasks and vetoes are not settled."""
        return len(self._view.open)

    def open_tasks(self) -> Iterator[TaskView]:
        """Every task that is not settled."""
        for task in list(self._view.open):
            view = self.find_task(task)
            if view is not None:
                yield view

    def renewal_interval_s(self, view: TaskView, round_: int) -> float:
        """How often whoever holds a task in a round has to say that it is at work, in seconds."""
        return renewal_interval_ms(view.spec.claim_ttl_ms or self.spec.policy.claim_ttl_ms, round_) / 1000

    def claim_stands(self, task: TaskId, key: PublicKey) -> bool:
        """Whether a key's claim to work on a task was not withdrawn."""
        register = self._view.registers.get(task)
        return register is not None and any(
            claim.author == key and claim.purpose is Purpose.WORK and register.stands(claim)
            for claim in register.claims.values()
        )

    def find_task(self, task: TaskId) -> TaskView | None:
        """A task, or None if it is not known here."""
        replica = self.driver.replica
        view, said = self._view.task(task, expired=replica.expired(task)), replica.progress(task)
        view = None if view is None else replica.contents.open_view(view)
        if view is None or said is None or view.state is not TaskState.ASSIGNED:
            return view
        return replace(view, progress=Progress(said.fraction, said.note))

    def is_compacted(self, task: TaskId) -> bool:
        """Whether a task was settled before the last checkpoint: its inputs, result and votes are not in the log."""
        return task in self._view.compacted and self.find_task(task) is None

    @property
    def checkpoint(self) -> CheckpointView:
        """The checkpoint that is in force here."""
        log, checkpointer = self.driver.replica.log, self.driver.replica.checkpointer
        root = None if checkpointer.snapshot is None else checkpointer.snapshot.root.hex()
        return CheckpointView(checkpointer.number, root, len(self._view.compacted), log.tail())

    def task(self, task_id: TaskId) -> TaskView:
        """A task.

        Raises:
            NotFound: not known here, or compacted.
        """
        view = self.find_task(task_id)
        if view is None and self.is_compacted(task_id):
            raise _compacted(task_id)
        if view is None:
            raise self._unknown(task_id)
        return view

    def _unknown(self, task: TaskId) -> NotFound:
        return NotFound(f"no task {task.hex()[:12]} in pool {self.name or self.id.hex()[:12]}")

    def receipt(self, task: TaskId) -> Receipt:
        """Proof of a settlement.

        Raises:
            Conflict: the task is not settled here.
            NotFound: it was settled before the last checkpoint, and its votes were pruned.
        """
        if self.is_compacted(task):
            raise _compacted(task)
        receipt = receipt_of(self._view, self.driver.replica.log, task)
        if receipt is None:
            raise Conflict(f"task {task.hex()[:12]} is not settled here, so there is no receipt yet")
        return receipt


def _compacted(task: TaskId) -> NotFound:
    return NotFound(
        f"task {task.hex()[:12]} was settled before the last checkpoint, and its content is no longer in the log",
        hint="whoever submitted it keeps the result, for as long as its settings say",
    )
