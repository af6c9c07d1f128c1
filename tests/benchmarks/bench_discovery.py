"""How fast a descriptor published at one of 50 nodes is found at all others, also when a fifth of them was killed.

Knows: processes, loopback, the public interface of the library. Must not know: what makes it fast.
50 nodes stand in ten processes. Every node publishes in turn; a node has found it when a query by capability, asked of
its own index, returns it. Then two processes, ten nodes and the bootstrap nodes among them, are killed without a word,
and all that are left publish again. Before that, the index alone: a lookup against a scan over 10,000 descriptors.

Usage: bench_discovery.py [NODES] [PROCESSES]
"""

from __future__ import annotations

import json
import math
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import trio

from converge_p2p.core.identity import Identity
from converge_p2p.core.model.agent_index import AgentIndex
from converge_p2p.core.model.capability import Capability
from converge_p2p.core.model.descriptor import AgentDescriptor
from converge_p2p.core.model.query import CapabilityNeed, DiscoveryQuery
from converge_p2p.core.model.topic import Topic

KILLED = 0.2
LATE_S = 30.0
PAUSE_S = 3.0
"""Between two publications: the hash table's share of one costs all nodes seconds, and here they share two cores."""
DESCRIPTORS = 10_000


class Worker:
    """A process with several nodes."""

    def __init__(self, first: int, count: int, bootstrap: list[str]) -> None:
        script = Path(__file__).with_name("discovery_worker.py")
        command = [sys.executable, str(script), str(first), str(count), *bootstrap]
        self.numbers = range(first, first + count)
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._asking = trio.Lock()

    async def hear(self) -> dict[str, Any]:
        """Return the next thing it says."""
        assert self.process.stdout is not None
        line = await trio.to_thread.run_sync(self.process.stdout.readline)
        answer: dict[str, Any] = json.loads(line)
        return answer

    async def ask(self, **order: Any) -> dict[str, Any]:
        """Tell it something and return its answer."""
        assert self.process.stdin is not None
        async with self._asking:
            self.process.stdin.write(json.dumps(order) + "\n")
            self.process.stdin.flush()
            return await self.hear()

    def stop(self) -> None:
        """Let it end."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(timeout=30)


def percentile(ordered: list[float], share: float) -> float:
    """Of sorted numbers, the least that so many are not above."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


async def publish_all(workers: list[Worker], label: str) -> dict[str, str]:
    """Let every node publish in turn, and print how long the others took to find it. Returns capability → publisher."""
    delays: list[float] = []
    missing = 0
    published: dict[str, str] = {}
    for worker in workers:
        for number in worker.numbers:
            name = f"{label}-{number}"
            began = (await worker.ask(publish=name, by=number, cost=number))["began"]
            deadline = trio.current_time() + LATE_S
            while True:
                times = [time for each in workers for time in (await each.ask(found=name))["times"]]
                if None not in times or trio.current_time() > deadline:
                    break
                await trio.sleep(0.25)
            delays += [time - began for time in times if time is not None]
            missing += times.count(None)
            published[name] = str(number)
            await trio.sleep(PAUSE_S)
            last = max((time for time in times if time is not None), default=began)
            late = sum(time is None or time - began > 2 for time in times)
            print(f"{name}: {late} after 2 s, last {1000 * (last - began):.0f} ms", file=sys.stderr, flush=True)
    delays.sort()
    print(
        f"{label}: {len(published)} published, {len(delays)} found by others and themselves, {missing} not within "
        f"{LATE_S:.0f} s: success {len(delays) / (len(delays) + missing):.3f}; "
        f"p50 {1000 * statistics.median(delays):.0f} ms, p95 {1000 * percentile(delays, 0.95):.0f} ms, "
        f"max {1000 * delays[-1]:.0f} ms; load {os.getloadavg()[0]:.1f}",
        flush=True,
    )
    return published


async def measure(nodes: int, processes: int) -> None:
    """All figures of the network."""
    share = nodes // processes
    began = time.perf_counter()
    workers = [Worker(0, share, [])]
    try:
        first = (await workers[0].hear())["addresses"]
        # every process knows three of the first one, so that the first node is not the only way in
        for number in range(1, processes):
            workers.append(Worker(number * share, share, first[:3]))
            await workers[-1].hear()
        while True:
            states = [await worker.ask(state=True) for worker in workers]
            peers = [count for state in states for count in state["peers"]]
            if min(peers) >= 4:
                break
            await trio.sleep(0.5)
        print(
            f"{nodes} nodes in {processes} processes on {os.cpu_count()} cores, linked with {min(peers)} to "
            f"{max(peers)} others (median {statistics.median(peers):.0f}) after {time.perf_counter() - began:.0f} s; "
            f"load {os.getloadavg()[0]:.1f}",
            flush=True,
        )
        await publish_all(workers, "all")
        lost = workers[: max(1, round(KILLED * processes))]
        for worker in lost:
            worker.process.kill()
        left = workers[len(lost) :]
        print(f"killed {len(lost) * share} of {nodes} nodes, the bootstrap nodes among them", flush=True)
        published = await publish_all(left, "after")
        wrong = asked = 0
        seconds = []
        for name in published:
            for worker in left:
                answer = await worker.ask(ask=name)
                seconds.append(answer["seconds"])
                asked += len(answer["answers"])
                wrong += sum(len(found) != 1 for found in answer["answers"])
        print(
            f"every survivor asked for every other: {asked - wrong} of {asked} right, "
            f"{1e6 * statistics.median(seconds):.0f} µs for a query"
        )
        cpu = [(await worker.ask(state=True))["cpu_s"] for worker in left]
        print(f"CPU of the surviving processes: {sum(cpu):.0f} s in {time.perf_counter() - began:.0f} s")
    finally:
        for worker in workers:
            worker.stop()


def measure_index() -> None:
    """The index alone: a lookup against a scan, and what holding a descriptor costs."""
    now = int(time.time() * 1000)
    chance = random.Random(1)
    wire = []
    for number in range(DESCRIPTORS):
        identity = Identity.from_seed(number.to_bytes(32, "big"))
        skills = [
            Capability(f"skill-{chance.randrange(500)}", (1, chance.randrange(5)), cost=chance.randrange(100))
            for _ in range(3)
        ]
        skills.append(Capability("common", cost=chance.randrange(1000)))
        topics = [Topic(f"topic-{chance.randrange(100)}")]
        wire.append(
            AgentDescriptor.create(identity, sequence=1, now_ms=now, capabilities=skills, topics=topics).to_bytes()
        )
    began = time.perf_counter()
    held = [AgentDescriptor.from_bytes(data) for data in wire]
    for descriptor in held:
        descriptor.check(now)
    checked = time.perf_counter()
    index = AgentIndex()
    for descriptor in held:
        index.put(descriptor, "bench", now)
    put = time.perf_counter()
    print(
        f"{DESCRIPTORS} descriptors: {1e6 * (checked - began) / DESCRIPTORS:.0f} µs to read and verify one, "
        f"{1e6 * (put - checked) / DESCRIPTORS:.0f} µs to put it into the index"
    )
    for label, query in (
        ("one capability", DiscoveryQuery.of(["skill-7"])),
        ("capability, version and cost", DiscoveryQuery((CapabilityNeed("skill-7", (1, 3), None, 50),))),
        ("capability and topic", DiscoveryQuery.of(["skill-7"], ["topic-3"])),
        ("what everybody can do, the cheapest 20", DiscoveryQuery.of(["common"], limit=20)),
        ("what nobody can do", DiscoveryQuery.of(["nothing"])),
    ):
        began = time.perf_counter()
        for _ in range(100):
            found = index.find(query, now)
        lookup = (time.perf_counter() - began) / 100
        began = time.perf_counter()
        for _ in range(3):
            scanned = sorted((one for one in held if query.matches(one)), key=query.order)[: query.limit]
        scan = (time.perf_counter() - began) / 3
        assert found == scanned
        print(
            f"{label}: {len(found)} found, lookup {1e6 * lookup:.0f} µs, scan {1e3 * scan:.1f} ms, "
            f"{scan / lookup:.0f} times as long"
        )
    began = time.perf_counter()
    index.digests()
    print(f"a hash for each of 256 buckets, from nothing: {1e3 * (time.perf_counter() - began):.1f} ms")


async def main() -> None:
    """Print one line for each figure."""
    sizes = [int(word) for word in sys.argv[1:3]]
    nodes, processes = (*sizes, 50, 10)[:2] if len(sizes) != 1 else (sizes[0], 10)
    measure_index()
    await measure(nodes, processes)


if __name__ == "__main__":
    trio.run(main)
