"""Real nodes: one trace across them, metrics of what they did, and the reasons why one cannot work."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from node_library_kit import QUICK, linked, real_node, until
from prometheus_client.parser import text_string_to_metric_families

from converge_p2p import Agent, AgentParts, MemoryExporter, Message, Task, Topic, Tracer, decisions
from converge_p2p.core.errors import StoreError
from converge_p2p.core.model.trace import trace_of_task
from converge_p2p.node import NodeConfig, health
from converge_p2p.runtime.tracing import Span, current
from converge_p2p.store.memory import MemoryStore

pytestmark = pytest.mark.network


class Full(MemoryStore):
    """A store whose disk can be filled, for all but what the node must write."""

    full = False

    def put(self, key: str, value: bytes) -> None:
        if self.full and key == health.PROBE_KEY:
            raise StoreError("no room on the disk")
        super().put(key, value)


class Echo(Agent):
    """Answers whatever it hears on its topic, once."""

    def decide(self, messages: Any, tasks: Any) -> list[Any]:
        heard = [message for message in messages if message.payload == "call"]
        assert self.runtime is not None
        return [decisions.SendMessage(Message.create(self.me, "echo", topics=self.topics)) for _ in heard]  # type: ignore[attr-defined]


def traced(memory: MemoryExporter) -> NodeConfig:
    return replace(QUICK, tracer=Tracer(memory))


def samples(text: str) -> dict[str, float]:
    return {
        sample.name + "".join(sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_a_task_and_the_messages_about_it_are_one_trace_across_two_nodes() -> None:
    here, there = MemoryExporter(), MemoryExporter()
    topic = Topic("acme/trace")
    async with real_node(1, config=traced(here)) as one, real_node(2, one, config=traced(there)) as other:
        await linked(one, other)
        echo = Echo(topics=[topic])
        echo.me = one.id  # type: ignore[attr-defined]
        await one.host(echo, parts=AgentParts())
        feed = await other.join(topic)
        pool = await one.create_pool("traced", task_types=["work"])
        joined = await other.join_pool(pool.id, timeout_s=15)

        @joined.handler("work")
        async def work(_task: Any, _context: Any) -> str:
            assert current() is not None
            await other.send(Message.create(other.id, "call", topics=[topic]))
            return "done"

        async with feed.messages() as answers:
            handle = await pool.submit(Task("work", {}))
            with trio.fail_after(20):
                assert (await handle.result()).value == "done"
                async for message in answers:
                    if message.payload == "echo":
                        break
        await until(lambda: any(span.name == "task.report" for span in there.spans), "the worker heard of the end")
        trace = trace_of_task(handle.id)
        ours = [span for span in here.spans if span.context.trace_id == trace.trace_id]
        theirs = [span for span in there.spans if span.context.trace_id == trace.trace_id]
        assert {"task", "task.submit", "task.grant", "task.settle"} <= {span.name for span in ours}
        assert {"task.claim", "task.execute", "task.report"} <= {span.name for span in theirs}
        by_id: dict[bytes, Span] = {span.context.span_id: span for span in (*ours, *theirs)}
        echoed = next(span for span in ours if span.name == "message.send")
        path = [echoed.name]
        while echoed.parent in by_id:
            echoed = by_id[echoed.parent]
            path.append(echoed.name)
        # from the answer back over the agent that gave it and the worker's message to the task
        assert path == ["message.send", "agent.turn", "message.send", "task"]
        read = samples(one.observation.metrics_text())
        assert read["converge_settlements_totalcompleted"] == 1
        assert read["converge_tasks_submitted_total"] == 1
        assert read["converge_peersdirect"] == 1
        assert read["converge_operations_checked_total"] > 0
        assert read["converge_operation_check_seconds_total"] > 0
        assert read["converge_store_commit_seconds_count"] > 0
        assert samples(other.observation.metrics_text())["converge_claims_totalgranted"] == 1


async def test_a_node_says_why_it_cannot_work_and_that_it_can_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "PROBE_PAUSE_S", 0.0)
    store = Full()
    async with real_node(1, store=store) as node:
        assert await node.observation.troubles() == []
        store.full = True
        (trouble,) = await node.observation.troubles()
        assert (trouble.what, trouble.fatal) == ("store", True)
        assert "no room on the disk" in trouble.text
        store.full = False
        monkeypatch.setattr(type(node._network), "listens", False)

        class Sulking(Agent):
            def decide(self, messages: Any, tasks: Any) -> list[Any]:
                raise ValueError("no")

        runtime = await node.host(Sulking())
        await until(lambda: runtime.health().failures, "the agent failed")
        troubles = await node.observation.troubles()
        assert [(each.what, each.fatal) for each in troubles] == [("listen", True), ("agents", False)]


async def test_whoever_watches_a_node_hears_of_tasks_and_peers() -> None:
    async with real_node(1) as one:
        pool = await one.create_pool("watched")
        async with one.observation.watch_events() as events, real_node(2, one) as other:
            await linked(one, other)
            handle = await pool.submit(Task("work", {}))
            kinds = set[str]()
            with trio.fail_after(15):
                async for event in events:
                    kinds.add(event.kind)
                    if event.kind == "task":
                        assert event.about["task"] == handle.id.hex()
                        break
        assert {"peer_up", "task"} <= kinds
