"""Agents: how soon an idle one is shown a task, how fast one drains its inbox, and what a thousand idle ones cost.

Knows: real nodes on loopback, in one process, and the clocks of this machine. Must not know: the insides of a runtime.
Each figure says what it counts. `python tests/benchmarks/bench_agents.py [--quick]`.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import trio

from converge_p2p import Agent, Capability, Identity, Message, Node, NodeConfig, PoolPolicy, Task, TaskView
from converge_p2p.core.model.decision import ClaimTask, Decision, ReportTask
from converge_p2p.net import NetworkConfig
from converge_p2p.runtime.events import OutcomeKind

LOOPBACK = ("/ip4/127.0.0.1/tcp/0",)


def node_of(*bootstrap: Node) -> Node:
    """A node on loopback."""
    config = NodeConfig(network=NetworkConfig(listen=(), dht=False))
    addresses = tuple(address for node in bootstrap for address in node.addresses)
    return Node(identity=Identity.generate(), listen=LOOPBACK, bootstrap=addresses, config=config)


class Stopwatch(Agent):
    """Notes when it was shown each task, and when it was granted; claims and reports at once."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: dict[bytes, float] = {}
        self.granted: dict[bytes, float] = {}

    def decide(self, messages: Sequence[Message], tasks: Sequence[TaskView]) -> Iterable[Decision]:
        now, decisions = time.perf_counter(), list[Decision]()
        for task in tasks:
            if task.claimable and task.id not in self.shown:
                self.shown[task.id] = now
                decisions.append(ClaimTask(task.pool_id, task.id))
        for outcome in self.outcomes:
            if outcome.kind is OutcomeKind.GRANTED and isinstance(outcome.decision, ClaimTask):
                self.granted[outcome.decision.task_id] = now
                decisions.append(ReportTask(outcome.decision.pool_id, outcome.decision.task_id, 1))
        return decisions


async def measure_pickup(count: int) -> None:
    """From the call of `submit` on one node to `decide` on another, which has nothing to do until then."""
    async with node_of() as one, node_of(one) as two:
        pool = await one.create_pool("bench", policy=PoolPolicy())
        await two.join_pool(pool.id, timeout_s=30)
        agent = Stopwatch()
        await two.host(agent)
        shown, granted, settled = [], [], []
        for number in range(count + 5):
            await trio.sleep(0.05)
            began = time.perf_counter()
            handle = await pool.submit(Task("count", {"n": number}))
            await handle.result()
            if number >= 5:
                settled.append(time.perf_counter() - began)
                shown.append(agent.shown[handle.id] - began)
                granted.append(agent.granted[handle.id] - began)
        print(f"idle task pickup on loopback, two nodes in one process, {count} tasks one after the other, ms:")
        for name, times in (
            ("submit -> decide on the other node", shown),
            ("submit -> claim granted", granted),
            ("submit -> settled at the submitter", settled),
        ):
            ordered = sorted(1000 * each for each in times)
            p50, p95 = statistics.median(ordered), ordered[int(0.95 * len(ordered))]
            print(f"  {name:<38} p50 {p50:6.1f}   p95 {p95:6.1f}   max {ordered[-1]:6.1f}")


class Counter(Agent):
    """Counts messages."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def decide(self, messages: Sequence[Message], tasks: Sequence[TaskView]) -> Iterable[Decision]:
        self.count += len(messages)
        return ()


async def measure_drain(count: int) -> None:
    """Messages that wait in a full inbox, refilled as fast as it is drained; and with verification before."""
    sender = Identity.generate()
    now_ms = int(time.time() * 1000)
    signed = [Message.create(sender.id, {"n": n}).stamp(now_ms).sign(sender).to_bytes() for n in range(1000)]
    letters = [Message.from_bytes(data) for data in signed]

    async def run(bring: Callable[[int], Message], what: str) -> None:
        async with node_of() as node:
            agent = Counter()
            runtime = await node.host(agent)
            began = time.perf_counter()
            brought = 0
            while agent.count < count:
                while brought < count and len(runtime.inbox) < 512:
                    runtime.deliver(bring(brought))
                    brought += 1
                await trio.lowlevel.checkpoint()
            took = time.perf_counter() - began
            print(f"  {what:<38} {count / took:,.0f} messages/s")

    def verified(number: int) -> Message:
        message = Message.from_bytes(signed[number % 1000])
        message.check(now_ms)
        return message

    print(f"one agent drains its inbox, {count} messages:")
    await run(lambda number: letters[number % 1000], "inbox -> decide")
    await run(verified, "decode, verify signature -> decide")


class Idle(Agent):
    """Does nothing."""

    def decide(self, messages: Sequence[Message], tasks: Sequence[TaskView]) -> Iterable[Decision]:
        return ()


def resident_mib() -> float:
    """What this process has in memory now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def processor_s() -> float:
    """Processor time of this process, system time included."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


async def measure_crowd(agents: int, seconds: float) -> None:
    """Agents that wait, on a node that is linked to another and is in a pool with open tasks."""
    async with node_of() as one, node_of(one) as two:
        pool = await one.create_pool("bench", policy=PoolPolicy())
        await two.join_pool(pool.id, timeout_s=30)
        for number in range(20):
            # nobody here can do them, so they stay open
            await pool.submit(Task("count", {"n": number}, required_capabilities=("nobody",)))
        await trio.sleep(5)
        before, began = processor_s(), time.perf_counter()
        await trio.sleep(seconds)
        bare = (processor_s() - before) / (time.perf_counter() - began)
        memory = resident_mib()
        began = time.perf_counter()
        for number in range(agents):
            await two.host(Idle(capabilities=[Capability(f"skill{number % 10}")]))
        hosted_in = time.perf_counter() - began
        await trio.sleep(5)
        before, began = processor_s(), time.perf_counter()
        await trio.sleep(seconds)
        busy = (processor_s() - before) / (time.perf_counter() - began)
        print(f"{agents} idle agents on one node (two nodes in the process), over {seconds:.0f} s:")
        print(f"  memory of the process            {resident_mib():.0f} MiB, {memory:.0f} before the agents")
        print(f"  processor                        {100 * busy:.2f} % of a core, {100 * bare:.2f} before the agents")
        print(f"  hosting all of them took         {hosted_in:.2f} s")
        began = time.perf_counter()
        woken = two.agents()[0].health.turns
        handle = await pool.submit(Task("count", {"n": 1}, required_capabilities=("skill3",)))
        await trio.sleep(1)
        turns = [view.health.turns for view in two.agents()]
        assert woken
        print(f"  a task that a tenth can do woke  {sum(count > 1 for count in turns)} of them")
        await pool.cancel(handle.id)


async def main(quick: bool) -> None:
    """Measure all."""
    await measure_pickup(20 if quick else 200)
    await measure_drain(5_000 if quick else 50_000)
    await measure_crowd(100 if quick else 1000, 3.0 if quick else 60.0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer of everything, to see that it runs")
    trio.run(main, parser.parse_args().quick)
