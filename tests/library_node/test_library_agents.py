"""Hosted agents: bounded, told of what concerns them, and ended while they can still say goodbye."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import trio
from node_library_kit import who

from converge_p2p.core import limits
from converge_p2p.core.errors import LimitExceeded, LocalError, NotFound
from converge_p2p.core.model.capability import Capability
from converge_p2p.core.model.decision import Decision
from converge_p2p.core.model.message import Message
from converge_p2p.core.model.task import Task, TaskSpec, TaskState, TaskView
from converge_p2p.core.model.topic import Topic
from converge_p2p.core.types import PoolId, PublicKey, TaskId
from converge_p2p.node.agents import Agents, NodePorts
from converge_p2p.node.policy import NodePolicy
from converge_p2p.runtime.agent import Agent
from converge_p2p.store.memory import MemoryStore

ME, OTHER = who(1), who(2)
POOL = PoolId(b"p" * 32)


class FakePool:
    def __init__(self, views: Sequence[TaskView]) -> None:
        self.views = views

    def open_tasks(self) -> Sequence[TaskView]:
        return self.views


class FakeNode:
    def __init__(self) -> None:
        self.identity = ME
        self.public_key = ME.public_key
        self.pools: dict[PoolId, Any] = {}
        self.policy = NodePolicy()


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
    return agents.make_runtime(agent, MemoryStore(), tools=None, safety=None, config=None)


def view(number: int, *, state: TaskState = TaskState.PENDING, to: PublicKey | None = None, **spec: Any) -> TaskView:
    key = bytes([number])
    settings = Task("count", **spec).to_spec(key=key)
    assert isinstance(settings, TaskSpec)
    return TaskView(TaskId(key * 32), POOL, OTHER.public_key, settings, state, assigned_to=to)


async def test_messages_reach_agents_by_topic_and_broadcasts_reach_all(autojump_clock: Any) -> None:
    agents = Agents(FakeNode())  # type: ignore[arg-type]
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
    agents = Agents(FakeNode())  # type: ignore[arg-type]
    hosted = [Listener(), Listener()]
    async with trio.open_nursery() as nursery:
        for agent in hosted:
            await nursery.start(agents.run, host(agents, agent))
        await trio.sleep(1)
        await agents.stop()
        assert [agent.stopped for agent in hosted] == [True, True]
        assert not nursery.child_tasks
    agents.deliver(Message.create(OTHER.id, "late"))
    agents.notify()
    await agents.stop()
    assert hosted[0].got == []


async def test_agents_are_bounded_and_an_agent_that_ended_frees_its_place(
    autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "AGENTS_PER_NODE_MAX", 1)
    agents = Agents(FakeNode())  # type: ignore[arg-type]
    # one that was never run takes no place
    host(agents, Listener())
    async with trio.open_nursery() as nursery:
        await nursery.start(agents.run, host(agents, Listener()))
        with pytest.raises(LimitExceeded):
            host(agents, Listener())
        await agents.stop()
        host(agents, Listener())


def test_an_agent_with_another_identity_is_refused() -> None:
    agents = Agents(FakeNode())  # type: ignore[arg-type]
    host(agents, Listener(identity=ME))
    with pytest.raises(LocalError, match="identity of its own"):
        host(agents, Listener(identity=OTHER))


def test_an_agent_sees_open_tasks_that_fit_and_its_own_the_most_urgent_first() -> None:
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
    ports = NodePorts(node)  # type: ignore[arg-type]
    assert [task.id[0] for task in ports.tasks_for(frozenset(), 10)] == [2, 1, 4]
    assert [task.id[0] for task in ports.tasks_for(frozenset({"gpu"}), 1)] == [2]
    assert len(ports.tasks_for(frozenset({"gpu"}), 10)) == 4


async def test_a_pool_the_node_is_not_in_is_named() -> None:
    ports = NodePorts(FakeNode())  # type: ignore[arg-type]
    with pytest.raises(NotFound, match="not in pool"):
        await ports.submit(POOL, Task("count"))


class FakeDiscovery:
    def __init__(self) -> None:
        self.declared: dict[str, Any] = {}

    def declare(self, by: str, declaration: Any) -> None:
        self.declared[by] = declaration

    def withdraw(self, by: str) -> bool:
        return self.declared.pop(by, None) is not None


async def test_an_agent_that_wants_to_be_found_is_declared_while_it_runs(autojump_clock: Any) -> None:
    node: Any = FakeNode()
    node.discovery = FakeDiscovery()
    secret, public = Topic("secret"), Topic("public")
    node.topics = lambda: {secret: b"k" * 32, public: None}
    agents = Agents(node)
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
