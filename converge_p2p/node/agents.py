"""The agents a node hosts: put together, told of what concerns them, and ended while they can still say goodbye.

Knows: a node, its pools and who may be concerned. Must not know: decisions (see `runtime.executor`), or turns.
Source: `runtime.ports`; `docs/concepts.md`, outcomes and waking.
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from converge_p2p.core import limits
from converge_p2p.core.errors import Conflict, ConvergeError, LimitExceeded, LocalError
from converge_p2p.core.model.message import Message
from converge_p2p.core.model.task import TaskView
from converge_p2p.core.model.topic import Topic
from converge_p2p.core.replica import events as ev
from converge_p2p.core.types import OperationId, PoolId, TaskId
from converge_p2p.core.view.auctions import AuctionView
from converge_p2p.node.agent_contents import AgentContents
from converge_p2p.node.agent_parts import AgentParts as AgentParts, ExecutorParts as ExecutorParts, inbox_of
from converge_p2p.node.agent_ports import NodePorts, Owners
from converge_p2p.node.declarations import Declaration
from converge_p2p.node.matters import concerns, event_of, open_matters, phase_of
from converge_p2p.node.task_index import TaskIndex
from converge_p2p.runtime.agent import Agent
from converge_p2p.runtime.checkpoints import Checkpoint, prune_checkpoints, read_checkpoints
from converge_p2p.runtime.durable_inbox import DurableInbox
from converge_p2p.runtime.events import CoordinationEvent
from converge_p2p.runtime.hooks import HookedMessages
from converge_p2p.runtime.loop import AgentRuntime, RuntimeConfig
from converge_p2p.runtime.replay_log import LogEntry, ReplayLog, read_entries
from converge_p2p.runtime.safety import SafetyPolicy
from converge_p2p.runtime.settings import Health
from converge_p2p.runtime.tools import ToolRegistry
from converge_p2p.store.api import Store

if TYPE_CHECKING:
    from converge_p2p.node.handles import PoolHandle
    from converge_p2p.node.main import Node

_logger = logging.getLogger(__name__)

REPLAY_KEY = "replay/"
INBOX_KEY = "inbox/"


@dataclass(frozen=True, slots=True)
class HostedAgent:
    """An agent of this node, for displays.

    Attributes:
        state: idle, busy or offline, or what the agent says of itself.
        capabilities: names; `topics`: canonical texts.
    """

    name: str
    kind: str
    state: str
    capabilities: tuple[str, ...]
    topics: tuple[str, ...]
    discoverable: bool
    health: Health


class Agents:
    """The agents of one node."""

    def __init__(self, node: Node, store: Store) -> None:
        """Host none yet."""
        self._node = node
        self._store = store
        self._runtimes: dict[AgentRuntime, trio.CancelScope] = {}
        self._names: dict[str, AgentRuntime] = {}
        self._named: Counter[str] = Counter()
        self._all_ended = trio.Event()
        self._all_ended.set()
        self._declared: dict[Declaration, list[str]] = {}
        """What agents declare: under which name they do so together, and one name for each of them."""
        self._declarers = 0
        self._index = TaskIndex(node.public_key, self._open_tasks)
        self._owners = Owners()
        self._contents = AgentContents(node)
        self._application = object()
        self._changed: OrderedDict[tuple[PoolId, ev.CoordinationChanged], PoolHandle] = OrderedDict()
        self._telling = False
        self._told: OrderedDict[tuple[PoolId, OperationId], object] = OrderedDict()

    # ------------------------------------------------------------ coming and going

    def make_runtime(
        self,
        agent: Agent,
        *,
        tools: ToolRegistry | None,
        safety: SafetyPolicy | None,
        config: RuntimeConfig | None,
        parts: AgentParts | None = None,
        record: bool = False,
    ) -> AgentRuntime:
        """Put a runtime together for an agent; `run` runs it.

        Raises:
            LocalError: the agent has an identity of its own, or parts that do not go together.
            Conflict: an agent of its name is here already.
            LimitExceeded: too many agents.
        """
        if agent.identity is not None and agent.identity != self._node.identity:
            raise LocalError(
                "the agent has an identity of its own, and a node signs with one key",
                hint="run it in a node with that identity, or give it none",
            )
        if len(self._runtimes) >= limits.AGENTS_PER_NODE_MAX:
            raise LimitExceeded("AGENTS_PER_NODE_MAX", "this node hosts too many agents")
        safety = self._node.policy.safety if safety is None else safety
        self._name(agent)
        parts, store = AgentParts() if parts is None else parts, self._store
        ports = NodePorts(self._node, self._index, self._owners, self._contents)
        hook = parts.hooks.before_send
        offered = ExecutorParts(
            ports if hook is None else HookedMessages(ports, hook), ports, ports, ports, ports, tools, safety,
            parts.custom_handlers,
        )  # fmt: skip
        executor = offered.standard() if parts.executor_factory is None else parts.executor_factory(offered)
        runtime = ports.owner = AgentRuntime(
            agent,
            executor,
            tasks=ports,
            inbox=inbox_of(parts),
            scheduler=parts.scheduler,
            claims=ports,
            after_receive=parts.hooks.after_receive,
            matters=self._matter,
            mailbox=self._mailbox(agent, store) if parts.durable_inbox else None,
            recorder=ReplayLog(store, self._kept_under(REPLAY_KEY, agent.name)) if record or parts.replay_log else None,
            checkpoint_store=store,
            config=config,
            tracer=self._node.observation.tracer,
        )
        return runtime

    def _kept_under(self, what: str, name: str) -> str:
        # one store may serve several keys, one after the other
        return f"{what}{self._node.identity.id}/{name}/"

    def _mailbox(self, agent: Agent, store: Store) -> DurableInbox:
        return DurableInbox(store, self._kept_under(INBOX_KEY, agent.name), self._node.identity)

    async def start(self, runtime: AgentRuntime, nursery: trio.Nursery) -> None:
        """Take part in an agent's topics, and run it in the background. Raises as `run`, and as `Node.join`."""
        for topic in self._public_topics(runtime.agent):
            await self._node.join(topic)
        await nursery.start(self.run, runtime)

    def _public_topics(self, agent: Agent) -> list[Topic]:
        """An agent's topics without those that are private here: these are joined with a key, and nobody is told."""
        joined = self._node.topics()
        return [topic for topic in agent.topics if joined.get(topic) is None]

    def _name(self, agent: Agent) -> None:
        if agent.name in self._names:
            raise Conflict(f"an agent named {agent.name} is here already", hint="give each its own name")
        while not agent.name:
            kind = type(agent).__name__.strip("_")[: limits.AGENT_NAME_BYTES_MAX - 8] or "Agent"
            self._named[kind] += 1
            name = kind if self._named[kind] == 1 else f"{kind}-{self._named[kind]}"
            agent.name = "" if name in self._names else name

    async def run(
        self, runtime: AgentRuntime, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Run an agent until `stop` was called or the task is cancelled.

        Raises:
            Conflict: an agent of its name is here already.
            LimitExceeded: it wants to be found, and does not fit into the node's descriptor.
        """
        name = runtime.agent.name
        if self._names.setdefault(name, runtime) is not runtime:
            raise Conflict(f"an agent named {name} is here already", hint="give each its own name")
        try:
            if isinstance(runtime.mailbox, DurableInbox):
                for message in await runtime.mailbox.load():
                    if not runtime.deliver(message):
                        _logger.warning("the inbox of agent %s is too small for what it had kept", name)
            declared = self._declare(runtime.agent)
        except BaseException:
            del self._names[name]
            raise
        if not self._runtimes:
            # who hosts no agent pays for no index; from here on notices keep it
            self._index.fill()
        scope = trio.CancelScope()
        self._runtimes[runtime] = scope
        self._all_ended = trio.Event() if self._all_ended.is_set() else self._all_ended
        own = self._node.public_key
        for pool in self._node.pools.values():
            for event in open_matters(pool, own):
                runtime.matter_changed(event, own=own, concerns=True)
        try:
            with scope:
                await runtime.run(task_status=task_status)
        finally:
            self._withdraw(declared)
            del self._runtimes[runtime]
            del self._names[name]
            self._owners.free_all(runtime)
            if not self._runtimes:
                self._all_ended.set()

    def _declare(self, agent: Agent) -> Declaration | None:
        """Let an agent be found if it wants to be; return what was declared for it."""
        topics = self._public_topics(agent)
        if not agent.discoverable or not (topics or agent.capabilities):
            return None
        said = Declaration.of("", topics, agent.capabilities)
        if said not in self._declared:
            self._declarers += 1
            self._node.discovery.declare(name := f"agents {self._declarers}", said)
            self._declared[said] = [name]
        self._declared[said].append(agent.name)
        return said

    def _withdraw(self, said: Declaration | None) -> None:
        if said is None:
            return
        declarer, *agents = self._declared[said]
        if len(agents) > 1:
            self._declared[said].pop()
        else:
            del self._declared[said]
            self._node.discovery.withdraw(declarer)

    async def stop(self) -> None:
        """Let every agent end, while messages can still be sent and claims given back: `on_stop` may do both."""
        for scope in self._runtimes.values():
            scope.cancel()
        await self._all_ended.wait()

    def __len__(self) -> int:
        """Return how many run."""
        return len(self._runtimes)

    def inbox_most(self) -> int:
        """Return how many messages wait in the fullest inbox."""
        return max((len(runtime.inbox) for runtime in self._runtimes), default=0)

    def hosted(self) -> list[HostedAgent]:
        """Return how each agent is doing, by name."""
        return [_shown(runtime) for _, runtime in sorted(self._names.items()) if runtime in self._runtimes]

    def counts(self) -> Counter[str]:
        """Return counts of all agents together: how many there are, how many fail, and what happened to them."""
        counts = Counter(agents=len(self._runtimes), tasks_left_out=self._index.left_out)
        for runtime in self._runtimes:
            health = runtime.health()
            counts["agents_failing"] += not health.ok
            counts["agent_turns"] += health.turns
            counts["agent_failures"] += health.failures
            counts["agent_restarts"] += health.restarts
            counts["inbox_dropped"] += health.dropped
            counts["inbox_blocked"] += health.blocked
            counts["events_dropped"] += health.events_dropped
        return counts

    # ------------------------------------------------------------ what happens

    def room(self, message: Message) -> bool:
        """Whether every agent that a message concerns has room for it."""
        for runtime in self._concerned(message):
            full = isinstance(runtime.mailbox, DurableInbox) and runtime.mailbox.full
            if full or not runtime.inbox.room(message.sender):
                return False
        return True

    async def keep(self, messages: Sequence[Message]) -> None:
        """Write messages down for the agents with a durable inbox.

        Raises:
            StoreError: they cannot be written.
        """
        for runtime in tuple(self._runtimes):
            if isinstance(runtime.mailbox, DurableInbox):
                await runtime.mailbox.keep([each for each in messages if _concerns(runtime, each)])

    def deliver(self, message: Message) -> None:
        """Hand a verified message to every agent it concerns."""
        for runtime in list(self._concerned(message)):
            runtime.deliver(message)

    def _concerned(self, message: Message) -> Iterator[AgentRuntime]:
        return (runtime for runtime in self._runtimes if _concerns(runtime, message))

    def replay_entries(self, name: str, after: int, count: int) -> list[LogEntry]:
        """Read entries of an agent's replay log, whether or not the agent runs. Blocks. See `read_entries`."""
        return read_entries(self._store, self._kept_under(REPLAY_KEY, name), after, count)

    def checkpoints(self) -> list[Checkpoint]:
        """Read the newest note of each agent that ever ran here, by name. Blocks. See `runtime.checkpoints`."""
        prune_checkpoints(self._store)
        return read_checkpoints(self._store)

    def task_changed(self, pool: PoolId, task: TaskId, view: TaskView | None) -> None:
        """A task looks different: whoever follows it is told, and whoever could act on it is woken."""
        if view is not None:
            # the node learns from what becomes of tasks, whether or not it hosts agents
            self._node.discovery.history.observe(view)
        if view is None or view.state.terminal or view.assigned_to != self._node.public_key:
            self._contents.forget(pool, task)
        if view is None or view.state.terminal:
            self._owners.free(task, self._application)
        if not self._runtimes:
            return
        actionable = view is not None and self._index.put(view)
        if view is None:
            self._index.drop(pool, task)
        owner = self._owners.get(task)
        if view is None or view.state.terminal:
            for runtime in tuple(self._runtimes):
                # who submitted it waits as well, and may be any of them
                runtime.task_changed(pool, task, view)
            self._owners.free(task)
            return
        if view.assigned_to not in (None, self._node.public_key) and isinstance(owner, AgentRuntime):
            # a claim that never was granted is not told as lost: the certificate of a rival says so
            token, rival = (view.epoch, view.round), "another worker holds the claim"
            owner.claim_lost(pool, task, token, rival, view=view, denied=False)
        if actionable:
            for runtime in tuple(self._runtimes):
                if (owner is None or runtime is owner) and runtime.fits(view):
                    runtime.notify()

    def _matter(self, pool_id: PoolId, name: bytes) -> CoordinationEvent | None:
        """How a poll or negotiation looks now; None if there is none of this id."""
        pool = self._node.pools.get(pool_id)
        if pool is None:
            return None
        changes = (ev.CoordinationChanged(kind, OperationId(name)) for kind in (ev.Matter.POLL, ev.Matter.NEGOTIATION))
        return next((event for event in (event_of(pool, change) for change in changes) if event is not None), None)

    def application_claims(self, task: TaskId) -> None:
        """The application stands for a task itself: no agent takes it over.

        Raises:
            Conflict: an agent stands for it.
        """
        self._owners.take(task, self._application)

    def application_released(self, task: TaskId) -> None:
        """The application does not stand for a task any more."""
        self._owners.free(task, self._application)

    def pool_left(self, pool: PoolId) -> None:
        """This node is not in a pool any more."""
        self._index.drop_pool(pool)
        self._contents.forget_pool(pool)

    def claim_decided(self, pool: PoolHandle, notice: ev.ClaimWon | ev.ClaimLost) -> None:
        """A claim of this node was granted, or lost."""
        owner = self._owners.get(notice.task)
        if not isinstance(owner, AgentRuntime):
            if isinstance(notice, ev.ClaimWon) and not pool.works_on(notice.task):
                self._give_back_late(pool, notice.task)
            return
        token, view = (notice.epoch, notice.round), pool.find_task(notice.task)
        match notice:
            case ev.ClaimWon():
                owner.claim_won(pool.id, notice.task, token, view)
            case ev.ClaimLost():
                owner.claim_lost(pool.id, notice.task, token, notice.reason, view=view, denied=notice.denied)

    def _give_back_late(self, pool: PoolHandle, task: TaskId) -> None:
        """A claim that was given back is granted: the electors had not heard of that yet, so it is said again."""

        async def release() -> None:
            try:
                await pool.release(task, reason="given back before it was granted")
            except ConvergeError as error:
                _logger.debug("task %s was not handed back: %s", task.hex()[:12], error, extra={"task": task.hex()})

        if not pool.claim_stands(task, self._node.public_key):
            self._node.spawn(release)

    def matter_changed(self, pool: PoolHandle, changed: ev.CoordinationChanged) -> None:
        """An auction, poll, negotiation or delegation changed; whoever is concerned is told soon.

        To look at one costs as much as was said in it, and a burst may bring a thousand steps of one at once: so it is
        looked at after the burst.
        """
        if not self._runtimes and changed.matter is not ev.Matter.AUCTION:
            return
        self._changed[pool.id, changed] = pool
        if len(self._changed) > limits.OUTCOMES_FOLLOWED_MAX:
            self._tell_of_matter(*self._changed.popitem(last=False))
        elif not self._telling:
            self._telling = True
            self._node.spawn(self._tell_of_matters)

    async def _tell_of_matters(self) -> None:
        try:
            await trio.lowlevel.checkpoint()
            while self._changed:
                self._tell_of_matter(*self._changed.popitem(last=False))
                await trio.lowlevel.checkpoint()
        finally:
            self._telling = False

    def _tell_of_matter(self, name: tuple[PoolId, ev.CoordinationChanged], pool: PoolHandle) -> None:
        event = event_of(pool, name[1])
        if event is None:
            return
        if isinstance(event.view, AuctionView) and self._node.bids.concerns(pool.id, event.view.task):
            self._node.spawn(self._node.bids.look, pool, event.view)
        own, known = self._node.public_key, (pool.id, event.id)
        phase = phase_of(event, own)
        news = known not in self._told or self._told[known] != phase
        self._told[known] = phase
        self._told.move_to_end(known)
        if len(self._told) > limits.OUTCOMES_FOLLOWED_MAX:
            self._told.popitem(last=False)
        concerned = news and concerns(event, own)
        for runtime in tuple(self._runtimes):
            runtime.matter_changed(event, own=own, concerns=concerned)

    def _open_tasks(self) -> Iterator[TaskView]:
        for pool in self._node.pools.values():
            yield from pool.open_tasks()


def _concerns(runtime: AgentRuntime, message: Message) -> bool:
    topics = runtime.agent.topics
    return not message.topics or any(own.matches(topic) for own in topics for topic in message.topics)


def _shown(runtime: AgentRuntime) -> HostedAgent:
    agent = runtime.agent
    return HostedAgent(
        agent.name,
        type(agent).__name__,
        agent.state,
        tuple(skill.name for skill in agent.capabilities),
        tuple(topic.namespace for topic in agent.topics),
        agent.discoverable,
        runtime.health(),
    )
