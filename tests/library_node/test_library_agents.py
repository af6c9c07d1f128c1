"""Hosted agents: bounded, told of what concerns them, and ended while they can still say goodbye."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import trio
from node_library_kit import who

from converge_p2p.core import limits
from converge_p2p.core.errors import Conflict, LimitExceeded, LocalError, NotFound
from converge_p2p.core.model.capability import Capability
from converge_p2p.core.model.decision import ClaimTask, Decision
from converge_p2p.core.model.message import Message
from converge_p2p.core.model.task import Task, TaskSpec, TaskState, TaskView
from converge_p2p.core.model.topic import Topic
from converge_p2p.core.replica import events as ev
from converge_p2p.core.types import PoolId, PublicKey, TaskId
from converge_p2p.node.agent_ports import NodePorts, Owners
from converge_p2p.node.agents import AgentParts, Agents
from converge_p2p.node.observation import Observation
from converge_p2p.node.policy import NodePolicy
from converge_p2p.node.task_index import TaskIndex
from converge_p2p.runtime.agent import Agent
from converge_p2p.runtime.events import OutcomeKind
from converge_p2p.runtime.executor import StandardExecutor
from converge_p2p.runtime.inbox import Inbox, WhenFull
from converge_p2p.runtime.loop import AgentRuntime, RuntimeConfig
from converge_p2p.store.memory import MemoryStore

ME, OTHER = who(1), who(2)
POOL = PoolId(b"p" * 32)


class FakePool:
    """A pool whose tasks a test sets; it notes what it was asked for."""

    ready = False

    def __init__(self, views: Sequence[TaskView]) -> None:
        self.views = {view.id: view for view in views}
        self.asked: list[tuple[Any, ...]] = []
        self.error: Exception | None = None

    def open_tasks(self) -> Sequence[TaskView]:
        return list(self.views.values())

    def find_task(self, task: TaskId) -> TaskView | None:
        return self.views.get(task)

    def works_on(self, task: TaskId) -> bool:
        return False

    def task(self, task: TaskId) -> TaskView:
        return self.views[task]

    def renewal_interval_s(self, view: TaskView, round_: int) -> float:
        return 10.0

    @property
    def driver(self) -> Any:
        return self

    def propose(self, command: Any) -> None:
        self.asked.append(("propose", command))

    async def carry_out(self, command: Any) -> None:
        task = command.task
        if isinstance(command, ev.Claim):
            self.note("claim", task)
        else:
            self.note("release", task, command.reason)
            self.views[task] = replace(self.views[task], state=TaskState.PENDING, assigned_to=None)

    async def report_bytes(self, task: TaskId, outcome: Any, result: bytes) -> None:
        self.note("report", task)

    def note(self, *what: Any) -> None:
        self.asked.append(what)
        if self.error is not None:
            raise self.error


class FakeDiscovery:
    def __init__(self) -> None:
        self.history: Any = self
        self.declared: dict[str, Any] = {}

    def declare(self, by: str, declaration: Any) -> None:
        self.declared[by] = declaration

    def observe(self, view: TaskView) -> None:
        """What the node learns from tasks is another's matter."""

    def withdraw(self, by: str) -> bool:
        return self.declared.pop(by, None) is not None


class FakeNode:
    def __init__(self) -> None:
        self.identity = ME
        self.public_key = ME.public_key
        self.pools: dict[PoolId, Any] = {}
        self.private: dict[Topic, Any] = {}
        self.discovery: Any = FakeDiscovery()
        self.policy = NodePolicy()
        self.observation = Observation()

    def topics(self) -> dict[Topic, Any]:
        return self.private


class Listener(Agent):
    """Keeps the messages it got."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.got: list[Any] = []
        self.stopped = False

    def decide(self, messages: Sequence[Message], tasks: Sequence[TaskView]) -> list[Decision]:
        self.got.extend(message.payload for message in messages)
        return []

    async def on_stop(self) -> None:
        await trio.sleep(1)
        self.stopped = True


def host(agents: Agents, agent: Agent) -> Any:
    return agents.make_runtime(agent, tools=None, safety=None, config=None)


def view(number: int, *, state: TaskState = TaskState.PENDING, to: PublicKey | None = None, **spec: Any) -> TaskView:
    key = bytes([number])
    settings = Task("count", **spec).to_spec(key=key)
    assert isinstance(settings, TaskSpec)
    return TaskView(TaskId(key * 32), POOL, OTHER.public_key, settings, state, assigned_to=to)


async def test_messages_reach_agents_by_topic_and_broadcasts_reach_all(autojump_clock: Any) -> None:
    agents = Agents(FakeNode(), MemoryStore())  # type: ignore[arg-type]
    translator, counter = Listener(topics=[Topic("translate")]), Listener(topics=[Topic("count")])
    async with trio.open_nursery() as nursery:
        for agent in (translator, counter):
            await nursery.start(agents.run, host(agents, agent))
        agents.deliver(Message.create(OTHER.id, "all"))
        agents.deliver(Message.create(OTHER.id, "t", topics=[Topic("translate"), Topic("else")]))
        agents.deliver(Message.create(OTHER.id, "none", topics=[Topic("else")]))
        await trio.sleep(1)
        await agents.stop()
    assert (translator.got, counter.got) == (["all", "t"], ["all"])


async def test_stopping_waits_for_every_agents_goodbye_and_then_they_are_forgotten(autojump_clock: Any) -> None:
    agents = Agents(FakeNode(), MemoryStore())  # type: ignore[arg-type]
    hosted = [Listener(), Listener()]
    async with trio.open_nursery() as nursery:
        for agent in hosted:
            await nursery.start(agents.run, host(agents, agent))
        await trio.sleep(1)
        await agents.stop()
        assert [agent.stopped for agent in hosted] == [True, True]
        assert not nursery.child_tasks
    agents.deliver(Message.create(OTHER.id, "late"))
    agents.task_changed(POOL, TaskId(b"t" * 32), None)
    await agents.stop()
    assert hosted[0].got == []


async def test_agents_are_bounded_and_an_agent_that_ended_frees_its_place(
    autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "AGENTS_PER_NODE_MAX", 1)
    agents = Agents(FakeNode(), MemoryStore())  # type: ignore[arg-type]
    # one that was never run takes no place
    host(agents, Listener())
    async with trio.open_nursery() as nursery:
        await nursery.start(agents.run, host(agents, Listener()))
        with pytest.raises(LimitExceeded):
            host(agents, Listener())
        await agents.stop()
        host(agents, Listener())


def test_an_agent_with_another_identity_is_refused() -> None:
    agents = Agents(FakeNode(), MemoryStore())  # type: ignore[arg-type]
    host(agents, Listener(identity=ME))
    with pytest.raises(LocalError, match="identity of its own"):
        host(agents, Listener(identity=OTHER))


async def test_an_agent_sees_open_tasks_that_fit_and_its_own_the_most_urgent_first() -> None:
    node = FakeNode()
    node.pools[POOL] = FakePool(
        [
            view(1),
            view(2, priority=5),
            view(3, state=TaskState.ASSIGNED, to=OTHER.public_key),
            view(4, state=TaskState.ASSIGNED, to=ME.public_key),
            view(5, required_capabilities=("gpu",)),
        ]
    )
    index = TaskIndex(ME.public_key, node.pools[POOL].open_tasks)
    index.fill()
    ports = NodePorts(node, index, Owners())  # type: ignore[arg-type]
    ports.owner = AgentRuntime(Listener(), StandardExecutor())
    assert [task.id[0] for task in ports.tasks_for(frozenset(), 10)] == [2, 1, 4]
    assert [task.id[0] for task in ports.tasks_for(frozenset({"gpu"}), 1)] == [2]
    assert len(ports.tasks_for(frozenset({"gpu"}), 10)) == 4


async def test_a_pool_the_node_is_not_in_is_named() -> None:
    ports = NodePorts(FakeNode(), TaskIndex(ME.public_key, list), Owners())  # type: ignore[arg-type]
    with pytest.raises(NotFound, match="not in pool"):
        await ports.submit(POOL, Task("count"))


async def test_an_agent_that_wants_to_be_found_is_declared_while_it_runs(autojump_clock: Any) -> None:
    node: Any = FakeNode()
    secret, public = Topic("secret"), Topic("public")
    node.private = {secret: b"k" * 32, public: None}
    agents = Agents(node, MemoryStore())
    skill = Capability("translate", cost=3)
    async with trio.open_nursery() as nursery:
        for discoverable in (True, False):
            agent = Listener(topics=[secret, public], capabilities=[skill], discoverable=discoverable)
            await nursery.start(agents.run, host(agents, agent))
        (said,) = node.discovery.declared.values()
        assert said.capabilities == (skill,)
        assert said.topics == (public,), "who takes part in a private topic is nobody's business"
        await agents.stop()
    assert node.discovery.declared == {}


class Worker(Agent):
    """Claims what it is shown, and keeps what it is told."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.seen: list[int] = []
        self.told: list[OutcomeKind] = []
        self.claims = True

    def decide(self, messages: Sequence[Message], tasks: Sequence[TaskView]) -> list[Decision]:
        self.seen += [task.id[0] for task in tasks]
        self.told += [outcome.kind for outcome in self.outcomes]
        return [ClaimTask(task.pool_id, task.id) for task in tasks] if self.claims else []


async def test_a_change_of_a_task_wakes_whoever_can_do_it_and_nobody_else(autojump_clock: Any) -> None:
    node, pool = FakeNode(), FakePool([])
    node.pools[POOL] = pool
    agents = Agents(node, MemoryStore())  # type: ignore[arg-type]
    able, other = Worker(capabilities=[Capability("gpu")]), Worker()
    async with trio.open_nursery() as nursery:
        runtimes = [host(agents, agent) for agent in (able, other)]
        for runtime in runtimes:
            await nursery.start(agents.run, runtime)
        await trio.sleep(1)
        pool.views[TaskId(b"\x05" * 32)] = view(5, required_capabilities=("gpu",))
        agents.task_changed(POOL, TaskId(b"\x05" * 32), view(5, required_capabilities=("gpu",)))
        await trio.sleep(1)
        assert (able.seen, other.seen) == ([5], [])
        assert [runtime.health().turns for runtime in runtimes] == [2, 1]
        assert pool.asked == [("claim", TaskId(b"\x05" * 32))]
        agents.task_changed(POOL, TaskId(b"\x05" * 32), view(5, required_capabilities=("gpu",)))
        await trio.sleep(1)
        assert able.seen == [5], "a task it stands for is not shown again before it is answered"
        # the others grant it to somebody else: an agent that was never granted anything hears of it by that
        lost = view(5, state=TaskState.ASSIGNED, to=OTHER.public_key, required_capabilities=("gpu",))
        pool.views[lost.id] = lost
        agents.task_changed(POOL, lost.id, lost)
        await trio.sleep(1)
        assert able.told[-1] is OutcomeKind.LOST
        await agents.stop()


async def test_two_agents_of_a_node_never_stand_for_one_task_and_the_next_takes_over_when_one_ends(
    autojump_clock: Any,
) -> None:
    node, pool = FakeNode(), FakePool([view(1)])
    node.pools[POOL] = pool
    agents = Agents(node, MemoryStore())  # type: ignore[arg-type]
    one, two = Worker(), Worker()
    task = TaskId(b"\x01" * 32)
    async with trio.open_nursery() as nursery:
        runtimes = [host(agents, agent) for agent in (one, two)]
        for runtime in runtimes:
            await nursery.start(agents.run, runtime)
        await trio.sleep(1)
        assert pool.asked == [("claim", task)]
        refused = await (await runtimes[1].act(ClaimTask(POOL, task))).wait()
        assert (refused.kind, "another agent" in refused.reason) == (OutcomeKind.REFUSED, True)
        await agents.stop()
    assert pool.asked[-1] == ("release", task, "the agent stops")


async def test_a_claim_of_the_node_that_nobody_owns_goes_to_one_agent_or_is_handed_back(autojump_clock: Any) -> None:
    held = view(3, state=TaskState.ASSIGNED, to=ME.public_key)
    for resume in (True, False):
        node, pool = FakeNode(), FakePool([held])
        node.pools[POOL] = pool
        agents = Agents(node, MemoryStore())  # type: ignore[arg-type]
        workers = [Worker(), Worker()]
        for worker in workers:
            worker.claims = False
        config = RuntimeConfig(resume_claims=resume)
        async with trio.open_nursery() as nursery:
            for worker in workers:
                runtime = agents.make_runtime(worker, tools=None, safety=None, config=config)
                await nursery.start(agents.run, runtime)
            await trio.sleep(1)
            told = sorted(worker.told == [OutcomeKind.GRANTED] for worker in workers)
            if resume:
                assert told == [False, True]
                assert sorted(bool(worker.seen) for worker in workers) == [False, True]
            else:
                assert told == [False, False]
                assert pool.asked == [("release", held.id, "from before a restart")]
            await agents.stop()


async def test_agents_that_declare_the_same_do_it_once_and_until_the_last_of_them_ends(autojump_clock: Any) -> None:
    node: Any = FakeNode()
    agents = Agents(node, MemoryStore())
    async with trio.open_nursery() as nursery:
        runtimes = [host(agents, Listener(capabilities=[Capability("translate")])) for _ in range(3)]
        for runtime in runtimes:
            await nursery.start(agents.run, runtime)
        assert len(node.discovery.declared) == 1
        await agents.stop()
    assert node.discovery.declared == {}


async def test_an_agent_whose_inbox_blocks_makes_the_senders_of_its_messages_wait(autojump_clock: Any) -> None:
    agents = Agents(FakeNode(), MemoryStore())  # type: ignore[arg-type]
    inbox = Inbox(1, when_full=WhenFull.BLOCK)
    agent = Listener(topics=[Topic("busy")])
    runtime = agents.make_runtime(agent, tools=None, safety=None, config=None, parts=AgentParts(inbox=inbox))
    message = Message.create(OTHER.id, "m", topics=[Topic("busy")])
    async with trio.open_nursery() as nursery:
        await nursery.start(agents.run, runtime)
        await trio.sleep(1)
        assert agents.room(message)
        agents.deliver(message)
        assert not agents.room(message)
        assert agents.room(Message.create(OTHER.id, "m", topics=[Topic("else")]))
        await trio.sleep(1)
        assert agents.room(message)
        await agents.stop()


def test_the_index_offers_by_priority_and_age_and_forgets_what_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "WORK_CANDIDATES_MAX", 4)
    everything = [view(1), view(2, priority=5), view(3), view(4, required_capabilities=("gpu",)), view(5), view(6)]
    index = TaskIndex(ME.public_key, lambda: everything)
    index.fill()
    assert (len(index), index.left_out) == (4, 2)
    assert [entry.task[0] for entry in index.fitting(frozenset({"gpu"}))] == [2, 1, 3, 4]
    assert [entry.task[0] for entry in index.fitting(frozenset())] == [2, 1, 3]
    assert not index.put(view(1, state=TaskState.COMPLETED))
    everything = [view(5), view(6)]
    for number in (2, 3):
        index.drop(POOL, TaskId(bytes([number]) * 32))
    assert [entry.task[0] for entry in index.fitting(frozenset())] == [5, 6], "what had no room is looked for again"
    assert index.put(view(6, priority=9))
    assert [entry.task[0] for entry in index.fitting(frozenset())] == [6, 5]
    index.drop_pool(POOL)
    assert len(index) == 0
    index.put(view(1))
    index.fill()
    assert [entry.task[0] for entry in index.fitting(frozenset())] == [5, 6], "what nobody kept up to date is gone"


async def test_a_durable_inbox_that_would_drop_is_refused_and_counts_of_all_agents_are_shown(
    autojump_clock: Any, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Listener):
        def decide(self, messages: Sequence[Message], tasks: Sequence[TaskView]) -> list[Decision]:
            raise ValueError("always")

    agents = Agents(FakeNode(), MemoryStore())  # type: ignore[arg-type]
    with pytest.raises(LocalError, match="cannot drop"):
        agents.make_runtime(
            Listener(), tools=None, safety=None, config=None, parts=AgentParts(inbox=Inbox(4), durable_inbox=True)
        )
    with caplog.at_level("CRITICAL", logger="converge_p2p.runtime.loop"):
        async with trio.open_nursery() as nursery:
            await nursery.start(agents.run, host(agents, Broken()))
            kept = agents.make_runtime(
                Listener(), tools=None, safety=None, config=None, parts=AgentParts(durable_inbox=True)
            )
            await nursery.start(agents.run, kept)
            await trio.sleep(0.05)
            counts = agents.counts()
            assert (counts["agents"], counts["agents_failing"]) == (2, 1)
            assert counts["agent_failures"] > 0
            await agents.stop()


async def test_what_the_application_claimed_itself_is_taken_over_by_no_agent(autojump_clock: Any) -> None:
    held = view(3, state=TaskState.ASSIGNED, to=ME.public_key)
    node, pool = FakeNode(), FakePool([held, view(4)])
    node.pools[POOL] = pool
    agents = Agents(node, MemoryStore())  # type: ignore[arg-type]
    agents.application_claims(held.id)
    worker = Worker()
    async with trio.open_nursery() as nursery:
        runtime = host(agents, worker)
        await nursery.start(agents.run, runtime)
        await trio.sleep(1)
        assert set(worker.seen) == {4}
        with pytest.raises(Conflict):
            agents.application_claims(TaskId(bytes([4]) * 32))
        agents.application_released(held.id)
        runtime.notify()
        await trio.sleep(1)
        assert 3 in worker.seen
        await agents.stop()
    done = view(3, state=TaskState.COMPLETED)
    agents.application_claims(held.id)
    agents.task_changed(POOL, done.id, done)
    assert agents._owners.get(done.id) is None, "what is settled is remembered by nobody, agents or not"
