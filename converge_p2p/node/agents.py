"""What a hosted agent's executor is given: ways to send, to work in pools, to found and join them.

Knows: a node and its handles. Must not know: decisions (see `runtime.executor`).
Source: `runtime.ports`.
"""

from __future__ import annotations

import heapq
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import trio

from converge_p2p.core import limits
from converge_p2p.core.errors import LimitExceeded, LocalError, NotFound
from converge_p2p.core.governance.models import Stated
from converge_p2p.core.model.decision import CreatePool
from converge_p2p.core.model.message import Message
from converge_p2p.core.model.task import Outcome, Task, TaskState, TaskView
from converge_p2p.core.types import PoolId, TaskId
from converge_p2p.node.declarations import Declaration
from converge_p2p.node.fences import run_fenced
from converge_p2p.node.handles import PoolHandle
from converge_p2p.runtime.agent import Agent
from converge_p2p.runtime.executor import StandardExecutor
from converge_p2p.runtime.fencing import Fence
from converge_p2p.runtime.loop import AgentRuntime, RuntimeConfig
from converge_p2p.runtime.safety import SafetyPolicy
from converge_p2p.runtime.tools import ToolRegistry
from converge_p2p.store.api import Store

if TYPE_CHECKING:
    from converge_p2p.node.main import Node

_T = TypeVar("_T")


class Agents:
    """The agents a node hosts."""

    def __init__(self, node: Node) -> None:
        """Host none yet."""
        self._node = node
        self._runtimes: dict[AgentRuntime, trio.CancelScope] = {}
        self._all_ended = trio.Event()
        self._all_ended.set()
        self._declared = 0

    def make_runtime(
        self,
        agent: Agent,
        store: Store,
        *,
        tools: ToolRegistry | None,
        safety: SafetyPolicy | None,
        config: RuntimeConfig | None,
    ) -> AgentRuntime:
        """Put a runtime together for an agent; `run` runs it.

        Raises:
            LocalError: the agent has an identity of its own.
            LimitExceeded: too many agents.
        """
        if agent.identity is not None and agent.identity != self._node.identity:
            raise LocalError(
                "the agent has an identity of its own, and a node signs with one key",
                hint="run it in a node with that identity, or give it none",
            )
        if len(self._runtimes) >= limits.AGENTS_PER_NODE_MAX:
            raise LimitExceeded("AGENTS_PER_NODE_MAX", "this node hosts too many agents")
        ports = NodePorts(self._node)
        safety = self._node.policy.safety if safety is None else safety
        executor = StandardExecutor(messages=ports, tasks=ports, pools=ports, tools=tools, fences=ports, safety=safety)
        return AgentRuntime(agent, executor, tasks=ports, checkpoint_store=store, config=config)

    async def run(
        self, runtime: AgentRuntime, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Run an agent until `stop` was called or the task is cancelled.

        Raises:
            LimitExceeded: it wants to be found, and does not fit into the node's descriptor.
        """
        declared = self._declare(runtime.agent)
        scope = trio.CancelScope()
        self._runtimes[runtime] = scope
        self._all_ended = trio.Event() if self._all_ended.is_set() else self._all_ended
        try:
            with scope:
                await runtime.run(task_status=task_status)
        finally:
            if declared:
                self._node.discovery.withdraw(declared)
            del self._runtimes[runtime]
            if not self._runtimes:
                self._all_ended.set()

    def _declare(self, agent: Agent) -> str:
        """Let an agent be found if it wants to be; return under which name it declares."""
        if not agent.discoverable:
            return ""
        self._declared += 1
        name = f"agent {self._declared}"
        private = {topic for topic, key in self._node.topics().items() if key is not None}
        topics = [topic for topic in agent.topics if topic not in private]
        self._node.discovery.declare(name, Declaration.of("", topics, agent.capabilities))
        return name

    async def stop(self) -> None:
        """Let every agent end, while messages can still be sent and claims given back: `on_stop` may do both."""
        for scope in self._runtimes.values():
            scope.cancel()
        await self._all_ended.wait()

    def notify(self) -> None:
        """A task changed: agents may want to look."""
        for runtime in tuple(self._runtimes):
            runtime.notify()

    def deliver(self, message: Message) -> None:
        """Hand a verified message to every agent it concerns."""
        for runtime in tuple(self._runtimes):
            topics = runtime.agent.topics
            if not message.topics or any(own.matches(topic) for own in topics for topic in message.topics):
                runtime.deliver(message)


class NodePorts:
    """Message, task and pool port of one node."""

    def __init__(self, node: Node) -> None:
        """Speak for a node."""
        self._node = node

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
        await self._pool(pool_id).claim(task_id, bid)

    async def report(self, pool_id: PoolId, task_id: TaskId, outcome: Outcome, result: bytes) -> None:
        """See `TaskPort`."""
        await self._pool(pool_id).report_bytes(task_id, outcome, result)

    async def release(self, pool_id: PoolId, task_id: TaskId, failed: bool, reason: str) -> None:
        """See `TaskPort`."""
        await self._pool(pool_id).release(task_id, failed=failed, reason=reason)

    async def cancel(self, pool_id: PoolId, task_id: TaskId, reason: str) -> None:
        """See `TaskPort`."""
        await self._pool(pool_id).cancel(task_id, reason)

    def task(self, pool_id: PoolId, task_id: TaskId) -> TaskView:
        """See `TaskPort`."""
        return self._pool(pool_id).task(task_id)

    def tasks_for(self, capabilities: frozenset[str], limit: int) -> Sequence[TaskView]:
        """See `TaskPort`."""
        own = self._node.public_key
        fitting = (
            view
            for pool in self._node.pools.values()
            for view in pool.open_tasks()
            if capabilities.issuperset(view.spec.required_capabilities)
            and (view.claimable or (view.state is TaskState.ASSIGNED and view.assigned_to == own))
        )
        return heapq.nsmallest(limit, fitting, key=lambda view: -view.spec.priority)

    async def run_fenced(self, pool_id: PoolId, task_id: TaskId, work: Callable[[Fence], Awaitable[_T]]) -> _T:
        """See `FencePort`."""
        return await run_fenced(self._pool(pool_id), self._node.public_key, task_id, work)

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
