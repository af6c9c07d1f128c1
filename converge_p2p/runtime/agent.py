"""An agent: what decides.

Knows: the methods an application overrides. Must not know: when they are called, or how decisions are carried out.
Source: the concepts page (Agent).
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar

from converge_p2p.core import limits
from converge_p2p.core.errors import LocalError
from converge_p2p.core.identity import Identity
from converge_p2p.core.model.capability import Capability
from converge_p2p.core.model.decision import Decision, InvokeTool
from converge_p2p.core.model.message import Message
from converge_p2p.core.model.task import TaskView
from converge_p2p.core.model.topic import Topic
from converge_p2p.core.types import AgentId
from converge_p2p.runtime.checkpoints import Checkpoint
from converge_p2p.runtime.events import AgentEvent, DecisionOutcome
from converge_p2p.runtime.executor import Result

if TYPE_CHECKING:
    from converge_p2p.runtime.loop import AgentRuntime


class AgentState(Enum):
    """What an agent is doing, as its runtime sees it."""

    IDLE = "idle"
    BUSY = "busy"
    OFFLINE = "offline"


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
        name: what it is called in displays, checkpoints and replay logs; no two agents of a node share one.
        last_checkpoint: from `on_start` on: the newest note of its last run, with what `checkpoint` returned; or None.
        runtime: what runs it, while it runs: `runtime.act` carries a decision out in the middle of an async method,
            `runtime.wake_after` asks for a turn later.
        events: during `decide`: what became of its decisions, and what is coordinated where it takes part.
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
        discoverable: bool = True,
        name: str = "",
    ) -> None:
        """Make an agent. See the attributes of the class.

        Raises:
            LocalError: a name of more than `limits.AGENT_NAME_BYTES_MAX` bytes, or with characters other than letters,
                digits, dot, hyphen and underscore.
        """
        plain = name.replace("-", "").replace("_", "").replace(".", "")
        if len(name) > limits.AGENT_NAME_BYTES_MAX or (name and not (plain.isalnum() and plain.isascii())):
            raise LocalError(
                f"the name of an agent is {name!r}; expected at most {limits.AGENT_NAME_BYTES_MAX} letters, digits, "
                "dots, hyphens and underscores"
            )
        self.identity = identity
        self.capabilities: tuple[Capability, ...] = tuple(capabilities)
        self.topics: tuple[Topic, ...] = tuple(topics)
        self.discoverable = discoverable
        self.name = name
        self.runtime: AgentRuntime | None = None
        self.last_checkpoint: Checkpoint | None = None
        self.events: tuple[AgentEvent, ...] = ()
        self.tool_results: tuple[ToolResult, ...] = ()
        self._runtime_state = AgentState.OFFLINE
        self._own_state = ""

    @property
    def state(self) -> str:
        """What it is doing: idle, busy, offline, or what it says of itself while it runs (set it; empty ends that)."""
        if self._runtime_state is AgentState.OFFLINE:
            return str(self._runtime_state.value)
        return self._own_state or str(self._runtime_state.value)

    @state.setter
    def state(self, said: str) -> None:
        self._own_state = said[: limits.AGENT_NAME_BYTES_MAX]

    def enter(self, state: AgentState) -> None:
        """Called by the runtime: what it is doing now."""
        self._runtime_state = state

    @property
    def outcomes(self) -> tuple[DecisionOutcome, ...]:
        """Those of the `events` that say what became of its decisions."""
        return tuple(event for event in self.events if isinstance(event, DecisionOutcome))

    @property
    def id(self) -> AgentId | None:
        """Its agent id, or None if it acts as the node that hosts it."""
        return None if self.identity is None else self.identity.id

    def decide(
        self, messages: Sequence[Message], tasks: Sequence[TaskView]
    ) -> Iterable[Decision] | Awaitable[Iterable[Decision]]:
        """Return what is to be done now, in order.

        Called when a message came, when a task changed, when others answered a decision, when tools gave results, when
        it is time (`runtime.wake_after`), once at the start, and on a timeout while there are tasks to act on.

        Args:
            messages: what came since the last call; each is handed over once.
            tasks: tasks it can act on now: pending ones, and those assigned to it.

        Returns:
            Decisions; an empty list if there is nothing to do. May be async.
        """
        raise NotImplementedError(f"{type(self).__name__} must override decide(messages, tasks)")

    def checkpoint(self) -> Any:
        """Return a small value to be noted now and then, and found in `last_checkpoint` after a restart.

        Numbers, text, bytes, lists and maps, at most `limits.AGENT_CHECKPOINT_BYTES_MAX` bytes; None for nothing. What
        happened after the last note is not in it: it is for counters and cursors that may be a little old.
        """
        return None

    def on_start(self) -> Awaitable[None] | None:
        """Called before the first turn, and when the agent is started again after it failed too often.

        If it raises, it is tried again later, and no turn is taken before.
        """

    def on_stop(self) -> Awaitable[None] | None:
        """Called after the last turn, if `on_start` succeeded. An async one has a few seconds."""

    def on_tick(self) -> Awaitable[None] | None:
        """Called at the end of each pass of the loop, idle ones included."""

    def on_results(self, results: Sequence[Result]) -> Awaitable[None] | None:
        """Called after a turn with what its decisions gave at once, in their order; later answers are `events`."""
