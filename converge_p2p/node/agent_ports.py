"""What one hosted agent's executor is given: ways to send, to work in pools, to found and join them, to coordinate.

Knows: a node and its handles. Must not know: decisions (see `runtime.executor`).
Source: `runtime.ports`.

Several agents of a node share its key, and so, for the others, its claims. Which of them a claim belongs to is kept
here, in `Owners`: no two of them work on one task.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

from converge_p2p.core.errors import Conflict, NotFound
from converge_p2p.core.governance.models import Stated
from converge_p2p.core.model.decision import CreatePool
from converge_p2p.core.model.message import Message
from converge_p2p.core.model.task import Outcome, Task, TaskState, TaskView
from converge_p2p.core.oplog.coordination import PollOpenBody
from converge_p2p.core.replica import events as ev
from converge_p2p.core.replica.coordination import CoordinationCommand
from converge_p2p.core.types import OperationId, PoolId, PublicKey, TaskId
from converge_p2p.node.agent_contents import AgentContents
from converge_p2p.node.fences import run_fenced
from converge_p2p.node.handles import PoolHandle
from converge_p2p.node.task_index import TaskIndex
from converge_p2p.runtime.fencing import Fence

if TYPE_CHECKING:
    from converge_p2p.node.main import Node

_T = TypeVar("_T")


class Owner(Protocol):
    """Whoever holds a claim of this node: an agent's runtime."""

    def wants(self, view: TaskView) -> bool:
        """Whether the agent is to be shown a task that it could act on."""

    def adopt(self, view: TaskView) -> bool:
        """Whether the agent goes on with a claim that nobody owns."""

    def notify(self) -> None:
        """There may be something to decide."""


class Owners:
    """Which agent of this node stands for which task; or its application, which is another owner."""

    def __init__(self) -> None:
        self._of: dict[TaskId, object] = {}

    def get(self, task: TaskId) -> object | None:
        """Return who stands for a task, if somebody does."""
        return self._of.get(task)

    def take(self, task: TaskId, owner: object) -> bool:
        """Let an agent stand for a task; say whether it did not before.

        Raises:
            Conflict: another agent of this node does.
        """
        now = self._of.setdefault(task, owner)
        if now is not owner:
            raise Conflict("another agent of this node, or its application, stands for the task already")
        return True

    def free(self, task: TaskId, owner: object | None = None) -> None:
        """Nobody stands for a task any more, or this one does not."""
        if owner is None or self._of.get(task) is owner:
            self._of.pop(task, None)

    def free_all(self, owner: object) -> None:
        """An agent has ended."""
        for task in [task for task, each in self._of.items() if each is owner]:
            del self._of[task]


class NodePorts:
    """All ports of one agent."""

    def __init__(self, node: Node, index: TaskIndex, owners: Owners, contents: AgentContents | None = None) -> None:
        """Speak for a node. `owner` has to be set before anything is claimed.

        Args:
            node: the node.
            index: the open tasks.
            owners: who stands for which of them.
            contents: of large inputs; None shows references.
        """
        self._contents = contents
        self._node = node
        self._index = index
        self._owners = owners
        self.owner: Owner | None = None

    def _pool(self, pool_id: PoolId) -> PoolHandle:
        pool = self._node.pools.get(pool_id)
        if pool is None:
            raise NotFound(f"this node is not in pool {pool_id.hex()[:12]}", hint="join it first")
        return pool

    # messages

    async def send(self, message: Message) -> None:
        """See `MessagePort`."""
        await self._node.send(message)

    # tasks

    async def submit(self, pool_id: PoolId, task: Task) -> TaskId:
        """See `TaskPort`."""
        return (await self._pool(pool_id).submit(task)).id

    async def claim(self, pool_id: PoolId, task_id: TaskId, bid: int) -> None:
        """See `TaskPort`."""
        pool, owner = self._pool(pool_id), self._owner()
        if pool.works_on(task_id):
            raise Conflict("a handler of this node stands for the task already")
        known = self._owners.get(task_id) is owner
        self._owners.take(task_id, owner)
        try:
            await pool.driver.carry_out(ev.Claim(task_id, bid))
        except BaseException:
            if not known:
                self._owners.free(task_id, owner)
            raise

    async def report(self, pool_id: PoolId, task_id: TaskId, outcome: Outcome, result: bytes) -> None:
        """See `TaskPort`."""
        self._owners.take(task_id, self._owner())
        await self._pool(pool_id).report_bytes(task_id, outcome, result)

    async def release(self, pool_id: PoolId, task_id: TaskId, failed: bool, reason: str) -> None:
        """See `TaskPort` and `ClaimPort`."""
        self._owners.take(task_id, self._owner())
        try:
            await self._pool(pool_id).driver.carry_out(ev.Release(task_id, failed, reason))
        finally:
            self._owners.free(task_id, self._owner())

    async def cancel(self, pool_id: PoolId, task_id: TaskId, reason: str) -> None:
        """See `TaskPort`."""
        await self._pool(pool_id).cancel(task_id, reason)

    def task(self, pool_id: PoolId, task_id: TaskId) -> TaskView:
        """See `TaskPort`."""
        return self._pool(pool_id).task(task_id)

    def tasks_for(self, capabilities: frozenset[str], limit: int) -> Sequence[TaskView]:
        """See `TaskPort`. A claim of this node that nobody owns goes to the first agent that is shown it."""
        own, found = self._owner(), list[TaskView]()
        adoptable = list[TaskView]()
        for entry in self._index.fitting(capabilities):
            if len(found) >= limit:
                break
            holder = self._owners.get(entry.task)
            if holder is not None and holder is not own:
                continue
            pool = self._node.pools.get(entry.pool)
            view = None if pool is None else pool.find_task(entry.task)
            if pool is None or view is None or pool.works_on(entry.task):
                continue
            if view.state is TaskState.ASSIGNED and not view.claimable and holder is None:
                # from before a restart, or of an agent that ended
                adoptable.append(view)
            elif (view.claimable or view.assigned_to == self._node.public_key) and own.wants(view):
                self._show(pool, view, found)
        for view in adoptable:
            self._owners.take(view.id, own)
            if own.adopt(view) and len(found) < limit:
                self._show(self._pool(view.pool_id), view, found)
        return found

    def _show(self, pool: PoolHandle, view: TaskView, found: list[TaskView]) -> None:
        """Add a task to those an agent is shown; one that it won, once its contents are here."""
        held = view.state is TaskState.ASSIGNED and not view.claimable
        if held and self._contents is not None:
            shown = self._contents.shown(pool, view, self._owner().notify)
            if shown is None:
                return
            view = shown
        found.append(view)

    def renew(self, pool_id: PoolId, task_id: TaskId) -> None:
        """See `ClaimPort`."""
        self._pool(pool_id).driver.propose(ev.Renew(task_id, 0, ""))

    def renewal_interval_s(self, pool_id: PoolId, task_id: TaskId, round_: int) -> float:
        """See `ClaimPort`."""
        pool = self._pool(pool_id)
        return pool.renewal_interval_s(pool.task(task_id), round_)

    async def run_fenced(self, pool_id: PoolId, task_id: TaskId, work: Callable[[Fence], Awaitable[_T]]) -> _T:
        """See `FencePort`."""
        return await run_fenced(self._pool(pool_id), self._node.public_key, task_id, work)

    def _owner(self) -> Owner:
        assert self.owner is not None, "set when the runtime is made"
        return self.owner

    # coordination

    async def bid(self, pool_id: PoolId, task_id: TaskId, amount: int) -> None:
        """See `CoordinationPort`."""
        await self._node.bids.submit(self._pool(pool_id), task_id, amount)

    async def coordinate(self, pool_id: PoolId, command: CoordinationCommand) -> OperationId | None:
        """See `CoordinationPort`."""
        return await self._pool(pool_id).council.coordinate(command)

    def key_of(self, agent: str) -> PublicKey:
        """See `CoordinationPort`."""
        return self._node.key_of(agent)

    def epoch(self, pool_id: PoolId) -> int:
        """See `CoordinationPort`."""
        return self._pool(pool_id).driver.replica.epoch

    def question(self, pool_id: PoolId, question_id: bytes) -> tuple[str, ...]:
        """See `CoordinationPort`."""
        body = self._pool(pool_id).council.content(OperationId(question_id))
        if not isinstance(body, PollOpenBody):
            raise NotFound(f"no poll {question_id.hex()[:12]} is known here")
        return body.options

    def session_of(self, pool_id: PoolId, proposal_id: bytes) -> OperationId:
        """See `CoordinationPort`."""
        found = self._pool(pool_id).council.coordination.negotiations.session_of(OperationId(proposal_id))
        if found is None:
            raise NotFound(f"no proposal {proposal_id.hex()[:12]} is known here")
        return found

    # pools

    async def create(self, spec: CreatePool) -> PoolId:
        """See `PoolPort`."""
        pool = await self._node.create_pool(
            spec.name,
            governance=Stated(spec.governance, spec.quorum, spec.faults, spec.model),
            electors=spec.electors,
            topics=spec.topics,
            task_types=spec.task_types,
            admission=spec.admission,
            policy=spec.policy,
        )
        return pool.id

    async def join(self, pool_id: PoolId, capabilities: tuple[str, ...], proof: bytes) -> None:
        """See `PoolPort`."""
        await self._node.join_pool(pool_id, capabilities=capabilities, proof=proof)

    async def leave(self, pool_id: PoolId) -> None:
        """See `PoolPort`."""
        await self._node.leave_pool(pool_id)
