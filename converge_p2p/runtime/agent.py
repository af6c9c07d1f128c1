"""An agent: what decides.

Knows: the methods an application overrides. Must not know: when they are called, or how decisions are carried out.
Source: the concepts page (Agent).
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from converge_p2p.core.identity import Identity
from converge_p2p.core.model.capability import Capability
from converge_p2p.core.model.decision import Decision, InvokeTool
from converge_p2p.core.model.message import Message
from converge_p2p.core.model.task import TaskView
from converge_p2p.core.model.topic import Topic
from converge_p2p.core.types import AgentId
from converge_p2p.runtime.executor import Result


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a tool gave back.

    Attributes:
        call: the decision that asked for it.
        value: its result, if it succeeded.
        error: why it did not run or did not finish, or None.
    """

    call: InvokeTool
    value: Any = None
    error: Exception | None = None


class Agent:
    """Base of all agents. Override `decide`; the hooks are optional, and each may be plain or async.

    Attributes:
        identity: whose decisions these are. None: those of the node that hosts the agent.
        capabilities: what it declares it can do; tasks that require more are not shown to it.
        topics: what it listens to.
        discoverable: whether the network is told of its capabilities and public topics while it runs.
        tool_results: during `decide`: what the tools it called in the turn before gave, in the order of the calls.
        decide_in_thread: set it to True in a class whose plain `decide` blocks or computes for long; then it runs in
            a worker thread, and the node stays responsive.
    """

    decide_in_thread: ClassVar[bool] = False

    def __init__(
        self,
        identity: Identity | None = None,
        *,
        capabilities: Iterable[Capability] = (),
        topics: Iterable[Topic] = (),
        discoverable: bool = False,
    ) -> None:
        """Make an agent. See the attributes of the class."""
        self.identity = identity
        self.capabilities: tuple[Capability, ...] = tuple(capabilities)
        self.topics: tuple[Topic, ...] = tuple(topics)
        self.discoverable = discoverable
        self.tool_results: tuple[ToolResult, ...] = ()

    @property
    def id(self) -> AgentId | None:
        """Its agent id, or None if it acts as the node that hosts it."""
        return None if self.identity is None else self.identity.id

    def decide(
        self, messages: Sequence[Message], tasks: Sequence[TaskView]
    ) -> Iterable[Decision] | Awaitable[Iterable[Decision]]:
        """Return what is to be done now, in order.

        Called when a message came, when a task changed, when tools gave results, once at the start, and on a timeout
        while there are tasks to act on.

        Args:
            messages: what came since the last call; each is handed over once.
            tasks: tasks it can act on now: pending ones, and those assigned to it.

        Returns:
            Decisions; an empty list if there is nothing to do. May be async.
        """
        raise NotImplementedError(f"{type(self).__name__} must override decide(messages, tasks)")

    def on_start(self) -> Awaitable[None] | None:
        """Called before the first turn. If it raises, it is tried again later, and no turn is taken before."""

    def on_stop(self) -> Awaitable[None] | None:
        """Called after the last turn, if `on_start` succeeded. An async one has a few seconds."""

    def on_tick(self) -> Awaitable[None] | None:
        """Called at the end of each pass of the loop, idle ones included."""

    def on_results(self, results: Sequence[Result]) -> Awaitable[None] | None:
        """Called with what became of the decisions of a turn, in their order."""
