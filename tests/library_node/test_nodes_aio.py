"""Real nodes in an asyncio application: what `converge_p2p.aio` promises beyond what the nodes for trio do."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from node_library_kit import LOOPBACK, POLICY, QUICK
from trio._core._thread_cache import THREAD_CACHE

from converge_p2p import AdmissionKind, Message, OutcomeKind, Task, TaskFailed, TaskView, Topic, decisions
from converge_p2p.aio import Agent, Node, PoolHandle, WorkContext
from converge_p2p.core.errors import Conflict, ConvergeError, LocalError, NetworkError, NotFound, StoreError
from converge_p2p.core.model.join_request import JoinState
from converge_p2p.core.types import PoolId, TaskId
from converge_p2p.store.memory import MemoryStore

pytestmark = pytest.mark.network

NOWHERE = PoolId(bytes(32))


def in_time(main: Callable[[], Coroutine[Any, Any, None]], timeout_s: float = 60) -> None:
    """Run a program of asyncio, which must leave no task and no thread that does anything."""

    async def run() -> None:
        async with asyncio.timeout(timeout_s):
            await main()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    before = set(threading.enumerate())
    asyncio.run(run())
    # trio keeps idle threads for some seconds, in case that somebody needs one
    idle = {worker._thread for worker in THREAD_CACHE._idle_workers}
    assert {thread for thread in threading.enumerate() if thread not in before | idle} == set()


def quick(*bootstrap: str, **options: Any) -> Node:
    return Node(listen=LOOPBACK, bootstrap=bootstrap, config=QUICK, **options)


async def founded(node: Node) -> PoolHandle:
    return await node.create_pool("work", policy=POLICY)


class Asker(Agent):
    """Answers each message in the middle of its decision, and keeps what came of that."""

    def __init__(self, me: str) -> None:
        super().__init__(topics=[Topic("acme/questions")])
        self.me = me
        self.said: list[Any] = []
        self.stopped = False

    async def decide(self, messages: Any, tasks: Any) -> list[decisions.Decision]:
        await asyncio.sleep(0)
        for message in messages:
            answer = Message.create(self.me, message.payload * 2, recipient=message.sender)
            ticket = await self.act(decisions.SendMessage(answer))
            self.said.append((await ticket.wait()).kind)
        return []

    async def on_stop(self) -> None:
        await asyncio.sleep(0)
        self.stopped = True


def test_two_nodes_in_one_loop_work_for_each_other_and_are_cancelled_and_told_of_the_end() -> None:
    async def main() -> None:
        begun, gone = asyncio.Event(), asyncio.Event()
        async with quick() as one, quick(*one.addresses) as two:
            topic = await one.join("acme/work")
            pool = await one.create_pool("work", topics=[topic], policy=POLICY)
            remote = await two.join_pool(pool.id, timeout_s=30)
            assert (remote.name, two.pools[pool.id], two.pools) == ("work", remote, {pool.id: remote})

            @remote.handler("double")
            async def double(task: TaskView, context: WorkContext) -> Any:
                await context.progress(0.5, "half")
                await asyncio.sleep(0)
                return {"twice": task.inputs["n"] * 2, "token": list(context.token)}

            @remote.handler("triple")
            def triple(task: TaskView, context: WorkContext) -> Any:
                context.set_progress(0.5)
                return task.inputs["n"] * 3

            @remote.handler("hang")
            async def hang(task: TaskView, context: WorkContext) -> None:
                try:
                    begun.set()
                    await asyncio.sleep(3600)
                finally:
                    gone.set()

            async with pool.watch() as changes:
                handle = await pool.submit(Task("double", {"n": 2}))
                assert (await handle.result()).value == {"twice": 4, "token": [0, 0]}
                async for view in changes:
                    if view.state.terminal:
                        break
            tripled = await pool.submit(Task("triple", {"n": 2}))
            assert ((await tripled.result()).value, tripled.view.state.name) == (6, "COMPLETED")

            hangs = await pool.submit(Task("hang"))
            await begun.wait()
            await hangs.cancel("not needed")
            await gone.wait()

            with pytest.raises(NetworkError):
                await two.join_pool(NOWHERE, timeout_s=0.01)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await two.join_pool(NOWHERE)
            endless = asyncio.create_task((await pool.submit(Task("nobody does this"))).result())
            reading = asyncio.create_task(_read_all(pool))
            await asyncio.sleep(0)
        with pytest.raises(LocalError, match="no longer takes part"):
            await endless
        assert (await reading)[-1].spec.objective == "nobody does this"

    in_time(main)


async def _read_all(pool: PoolHandle) -> list[TaskView]:
    async with pool.watch() as changes:
        await pool.submit(Task("nobody does this", key="read"))
        return [view async for view in changes]


def test_an_agent_decides_and_acts_in_asyncio_and_says_goodbye() -> None:
    async def main() -> None:
        async with quick() as one, quick(*one.addresses) as two:
            agent = Asker(two.id)
            runtime = await two.host(agent)
            topic = await one.join("acme/questions")
            listener = Echo()
            await one.host(listener)
            await one.connect(two.addresses[0])
            await one.send(Message.create(one.id, "x", recipient=two.id))
            await listener.heard.wait()
            remote = await two.join("acme/questions")
            async with remote.messages() as heard:
                reading = asyncio.ensure_future(anext(heard))
                while not reading.done():
                    # best effort: who is not in the mesh yet misses it
                    await topic.publish("to all")
                    await asyncio.wait((reading,), timeout=0.2)
                assert reading.result().payload == "to all"
            assert listener.payloads == ["xx"]
            assert agent.said[0] is OutcomeKind.DONE
            assert runtime.health().failures == 0
            assert [each.kind for each in two.agents()] == ["Asker"]
        assert agent.stopped
        with pytest.raises(LocalError, match="does not run"):
            await agent.act(decisions.SendMessage(Message.create("a" * 64, "late")))

    in_time(main)


class Echo(Agent):
    """Keeps what it hears."""

    def __init__(self) -> None:
        super().__init__()
        self.heard = asyncio.Event()
        self.payloads: list[Any] = []

    def decide(self, messages: Any, tasks: Any) -> list[decisions.Decision]:
        self.payloads += [message.payload for message in messages]
        if self.payloads:
            self.heard.set()
        return []


class Breaks(MemoryStore):
    """Its disk is full once it is told so."""

    full = False

    def append_many(self, batches: Any, *, durable: bool) -> None:
        if self.full:
            raise StoreError("no space left")
        super().append_many(batches, durable=durable)


def test_an_error_of_a_background_part_ends_the_block_and_a_node_that_cannot_start_leaves_nothing() -> None:
    async def main() -> None:
        store = Breaks()
        with pytest.raises(StoreError, match="no space"):
            await _fill(store)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        with pytest.raises(NetworkError):
            async with Node(listen=["/ip4/203.0.113.1/tcp/1"]):
                raise AssertionError("it listens where it cannot")
        with pytest.raises(TaskFailed, match="of the block"):
            async with quick():
                raise TaskFailed("of the block")
        node = quick()
        async with node:
            pass
        with pytest.raises(LocalError, match="started before"):
            async with node:
                pass

    in_time(main)


async def _fill(store: Breaks) -> None:
    async with quick(store=store) as node:
        pool = await founded(node)
        store.full = True
        submitting = asyncio.create_task(_submit(pool))
        try:
            await asyncio.sleep(3600)
        finally:
            with pytest.raises(ConvergeError):
                await submitting


async def _submit(pool: PoolHandle) -> None:
    await (await pool.submit(Task("count"))).result()


def test_a_node_that_is_cancelled_while_it_starts_leaves_nothing() -> None:
    async def start() -> None:
        async with quick() as node:
            await asyncio.sleep(3600)
            assert node.id

    async def main() -> None:
        for turns in (1, 3, 10, 30):
            task = asyncio.create_task(start())
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    in_time(main)


def test_joins_links_and_observation_are_there_as_for_trio() -> None:
    async def main() -> None:
        joined: list[PoolHandle] = []
        async with quick() as one, quick(*one.addresses) as two:
            pool = await one.create_pool("few", admission=AdmissionKind.TOKEN, policy=POLICY)
            await two.links.connect(one.addresses[0])
            two.joins.asking.when_joined = joined.append
            async with one.observation.watch_events() as events:
                asked = await two.joins.asking.ask(pool.id, note="let me in", timeout_s=30)
                assert (asked.state, two.joins.asking.all()) == (JoinState.PENDING, [asked])
                async for event in events:
                    if event.kind == "join_asked":
                        break
            (waiting,) = one.joins.requests.all(pool.id)
            assert (waiting.joiner, waiting.note) == (two.public_key, "let me in")
            async with two.observation.watch_events() as events:
                assert (await one.joins.requests.admit(pool, waiting.joiner)).state is JoinState.ADMITTED
                async for event in events:
                    if event.kind == "join_ended":
                        break
            assert joined == [two.pools[pool.id]]
            assert joined[0].is_member
            with pytest.raises(Conflict, match="let the newcomer in before"):
                await one.joins.requests.refuse(pool, waiting.joiner)
            with pytest.raises(NotFound):
                await two.joins.asking.withdraw(NOWHERE)

            assert [report.peer_id for report in one.links.reports()] == [two.peer_id]
            assert one.links.find(two.id[:12]) == two.peer_id
            assert len(await one.links.ping(two.peer_id, 2)) == 2
            await one.links.block(two.peer_id)
            assert list(one.links.blocked()) == [two.peer_id]
            await one.links.unblock(two.peer_id)
            assert two.links.bootstrap == one.addresses

            assert await one.observation.troubles() == []
            assert "converge_up_seconds" in one.observation.metrics_text()
            assert one.counters["join_requests"] == one.observation.counters()["join_requests"] == 1
            assert (one.hosting.hosted(), one.hosting.checkpoints()) == ([], [])
            assert not one.bids.concerns(pool.id, TaskId(bytes(32)))
            with pytest.raises(ConvergeError):
                await one.bids.submit(pool, TaskId(bytes(32)), 5)

    in_time(main)
