"""Agents whose async methods run in asyncio, and what runs them.

Knows: which methods a runtime calls. Must not know: nodes, or how a call crosses over.
Source: `docs/embedding.md`, agents.
"""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

from converge_p2p.aio.blobs import PoolBlobs
from converge_p2p.aio.crossing import in_asyncio
from converge_p2p.aio.facade import Calls, Facade, bridged, direct, giving
from converge_p2p.core.errors import LocalError
from converge_p2p.core.model.decision import Decision
from converge_p2p.core.types import TaskId
from converge_p2p.node import pool_blobs
from converge_p2p.runtime import agent as core_agent, attempt, loop, outcomes
from converge_p2p.runtime.events import DecisionOutcome
from converge_p2p.runtime.fencing import Fence

_CALLED = ("decide", "on_start", "on_stop", "on_tick", "on_results")


class Ticket(Facade[outcomes.Ticket]):
    """One decision that somebody waits for. See `converge_p2p.runtime.outcomes.Ticket`."""

    wait = bridged(outcomes.Ticket.wait)

    @property
    def decision(self) -> Decision:
        """Which."""
        return self.inner.decision

    @property
    def outcome(self) -> DecisionOutcome | None:
        """What became of it so far; None before it was carried out."""
        return self.inner.outcome

    @property
    def answered(self) -> bool:
        """Whether `wait` returns at once."""
        return self.inner.answered


class AgentRuntime(Facade[loop.AgentRuntime]):
    """What runs an agent. See `converge_p2p.AgentRuntime`."""

    act = giving(Ticket, loop.AgentRuntime.act)
    deliver = direct(loop.AgentRuntime.deliver)
    checkpoint = direct(loop.AgentRuntime.checkpoint)
    health = direct(loop.AgentRuntime.health)
    notify = direct(loop.AgentRuntime.notify)
    progress = direct(loop.AgentRuntime.progress)
    ready = direct(loop.AgentRuntime.ready)
    wake_after = direct(loop.AgentRuntime.wake_after)

    @property
    def agent(self) -> core_agent.Agent:
        """What decides."""
        return self.inner.agent


class Agent(core_agent.Agent):
    """An agent whose async methods run in asyncio, where other agents' run in trio.

    Override `decide` and the hooks as in `converge_p2p.Agent`, plain or async.
    """

    _hosted: AgentRuntime | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name in _CALLED:
            method = cls.__dict__.get(name)
            if inspect.iscoroutinefunction(method):
                setattr(cls, name, in_asyncio(method))

    def hosted_by(self, runtime: AgentRuntime) -> None:
        """Called by the node: what runs it."""
        self._hosted = runtime

    async def act(self, decision: Decision) -> Ticket:
        """Carry a decision out at once, from an async method, and return what tells how it ends.

        Raises:
            LocalError: no `aio.Node` runs it.
            LimitExceeded: too many decisions wait for their answer.
        """
        if self._hosted is None or self.runtime is None:
            raise LocalError("the agent does not run", hint="host it in a converge_p2p.aio.Node")
        return await self._hosted.act(decision)


class WorkContext:
    """What a handler knows about its attempt. See `converge_p2p.WorkContext`."""

    def __init__(self, calls: Calls, inner: attempt.WorkContext) -> None:
        """Made by the pool."""
        self._calls = calls
        self.inner = inner

    @property
    def blobs(self) -> PoolBlobs | None:
        """Contents too large for a task; None outside of a pool."""
        inner = self.inner.blobs
        return PoolBlobs(self._calls, inner) if isinstance(inner, pool_blobs.PoolBlobs) else None

    @property
    def task_id(self) -> TaskId:
        """The task."""
        return self.inner.task_id

    @property
    def token(self) -> tuple[int, int]:
        """(epoch, round), the fencing token."""
        return self.inner.token

    @property
    def fence(self) -> Fence:
        """What a tool with side effects is called with."""
        return self.inner.fence

    @property
    def cancelled(self) -> bool:
        """Whether the attempt was given up. For plain handlers, whose thread cannot be stopped: look and return."""
        return self.inner.cancelled

    def set_progress(self, fraction: float, note: str = "") -> None:
        """Say how much is done, 0 to 1. For plain handlers; may be called from their thread."""
        self.inner.set_progress(fraction, note)

    async def progress(self, fraction: float, note: str = "") -> None:
        """Say how much is done, 0 to 1, and give way to others. Everybody in the pool can see it."""
        self.inner.set_progress(fraction, note)
        await asyncio.sleep(0)
