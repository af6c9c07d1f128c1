"""The parts of a hosted agent's runtime that an application replaces.

Knows: which parts there are, and which go together. Must not know: a node, or how they are wired.
Source: the concepts page (customisation); `docs/customization.md`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from converge_p2p.core.errors import LocalError
from converge_p2p.core.model.decision import Decision
from converge_p2p.runtime.executor import CustomHandler, Executor, StandardExecutor
from converge_p2p.runtime.fencing import FencePort
from converge_p2p.runtime.hooks import Hooks
from converge_p2p.runtime.inbox import Inbox, InboxLike, WhenFull
from converge_p2p.runtime.ports import CoordinationPort, MessagePort, PoolPort, TaskPort
from converge_p2p.runtime.safety import SafetyPolicy
from converge_p2p.runtime.scheduler import SchedulerLike
from converge_p2p.runtime.tools import ToolRegistry


@dataclass(frozen=True, slots=True)
class ExecutorParts:
    """What an executor can be made of; an `executor_factory` gets this.

    Attributes:
        messages: sends, behind the hook `before_send` if there is one.
        tasks, pools, coordination, fences: of the node, for this agent.
        tools, safety, custom_handlers: as `Node.host` was given them.
    """

    messages: MessagePort
    tasks: TaskPort
    pools: PoolPort
    coordination: CoordinationPort
    fences: FencePort
    tools: ToolRegistry | None
    safety: SafetyPolicy | None
    custom_handlers: Mapping[type[Decision], CustomHandler] = field(default_factory=dict)

    def standard(self) -> StandardExecutor:
        """Return the executor that a node makes by itself."""
        return StandardExecutor(
            messages=self.messages,
            tasks=self.tasks,
            pools=self.pools,
            coordination=self.coordination,
            fences=self.fences,
            tools=self.tools,
            safety=self.safety,
            custom_handlers=self.custom_handlers,
        )


@dataclass(frozen=True, slots=True)
class AgentParts:
    """Parts of an agent's runtime that an application replaces; what is left out is the standard one.

    Attributes:
        inbox: holds messages.
        scheduler: wakes the loop.
        executor_factory: makes the executor.
        custom_handlers: by exact kind of decision; they go before the built-in way.
        hooks: around messages.
        replay_log: what the agent sees and decides is recorded, see `runtime.replay_log`.
        durable_inbox: messages to one agent or its topics are on disk before their sender is told that they were
            taken, until the agent saw them; it sees each at least once. The inbox has to be one that blocks.
    """

    inbox: InboxLike | None = None
    scheduler: SchedulerLike | None = None
    executor_factory: Callable[[ExecutorParts], Executor] | None = None
    custom_handlers: Mapping[type[Decision], CustomHandler] = field(default_factory=dict)
    hooks: Hooks = field(default_factory=Hooks)
    replay_log: bool = False
    durable_inbox: bool = False


def inbox_of(parts: AgentParts) -> InboxLike | None:
    """Return the inbox of these parts; None is the standard one.

    Raises:
        LocalError: it would drop what is to be durable.
    """
    if not parts.durable_inbox:
        return parts.inbox
    if isinstance(parts.inbox, Inbox) and parts.inbox.when_full is WhenFull.DROP:
        raise LocalError(
            "a durable inbox cannot drop what its senders were told was taken",
            hint="make it with when_full=WhenFull.BLOCK",
        )
    return Inbox(when_full=WhenFull.BLOCK) if parts.inbox is None else parts.inbox
