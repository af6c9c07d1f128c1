"""Tasks per second, claim to settlement, first settled task, memory and cold sync, on five real processes.

Knows: processes, loopback, the public interface of the library. Must not know: what makes it fast.
One process submits, four work; all five are electors of the democratic pool, the submitter leads the dictatorial one.
"""

from __future__ import annotations

import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import trio

from converge_p2p.core.governance import Democratic, Dictatorial, GovernanceModel
from converge_p2p.core.model.task import Task
from converge_p2p.node import Node, PoolHandle

WORKERS, LOW, COLD = 4, 100, 10_000
SUSTAINED = ((64, 1_000), (256, 2_000))
"""How many tasks are open at a time, and how many in all."""
CONCURRENCY = 64
"""How many of them one worker may have."""


class Worker:
    """A worker process."""

    def __init__(self, bootstrap: str, home: Path) -> None:
        script = Path(__file__).with_name("mesh_worker.py")
        command = [sys.executable, str(script), bootstrap, str(home)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    async def hear(self) -> dict[str, Any]:
        """Return the next thing it says."""
        assert self.process.stdout is not None
        answer: dict[str, Any] = json.loads(await trio.to_thread.run_sync(self.process.stdout.readline))
        return answer

    async def ask(self, order: dict[str, Any]) -> dict[str, Any]:
        """Tell it something and return its answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return await self.hear()

    def stop(self) -> None:
        """Let it end."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=30)


def memory_mb(pid: int) -> float:
    """Resident memory of a process, MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def processor_s(pid: int) -> float:
    """Processor time of a process so far, seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def percentiles(times_ms: list[float]) -> str:
    """Median and 99th percentile."""
    ordered = sorted(times_ms)
    highest = ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)]
    return f"p50 {statistics.median(ordered):.0f} ms, p99 {highest:.0f} ms"


async def collect(workers: list[Worker]) -> list[float]:
    """Claim-to-settlement times of all workers since the last call."""
    return [time_ms for worker in workers for time_ms in (await worker.ask({"report": True}))["times_ms"]]


async def low_load(pool: PoolHandle, workers: list[Worker], name: str) -> None:
    """One task at a time."""
    whole = []
    for number in range(LOW):
        began = time.perf_counter()
        handle = await pool.submit(Task("echo", {"number": number}))
        await handle.result()
        whole.append((time.perf_counter() - began) * 1000)
    times_ms = await collect(workers)
    print(
        f"{name}, one task at a time: claim to settled {percentiles(times_ms)}; submit to result {percentiles(whole)}"
    )


async def sustained(pool: PoolHandle, workers: list[Worker], name: str, window: int, tasks: int) -> None:
    """A window of open tasks."""
    room = trio.Semaphore(window)
    pids = [os.getpid(), *(worker.process.pid for worker in workers)]
    began, cpu_s, operations = time.perf_counter(), sum(map(processor_s, pids)), pool.operations

    async def one(number: int) -> None:
        handle = await pool.submit(Task("echo", {"number": number}))
        await handle.result()
        room.release()

    async with trio.open_nursery() as nursery:
        for number in range(tasks):
            await room.acquire()
            nursery.start_soon(one, number)
    rate = tasks / (time.perf_counter() - began)
    each_ms = (sum(map(processor_s, pids)) - cpu_s) * 1000 / tasks
    times_ms = await collect(workers)
    print(
        f"{name}, {window} open tasks: {rate:.1f} tasks/s, claim to settled {percentiles(times_ms)}; "
        f"{each_ms:.1f} ms of processor time a task in all processes, "
        f"{(pool.operations - operations) / tasks:.1f} operations a task"
    )


async def measure(model: GovernanceModel, folder: Path) -> None:
    """All figures for one governance model."""
    name = model.kind.name.lower()
    began = time.perf_counter()
    async with Node(home=folder / "office", listen=["/ip4/127.0.0.1/tcp/0"]) as node:
        workers = [Worker(node.addresses[0], folder / f"worker{number}") for number in range(WORKERS)]
        try:
            ids = [(await worker.hear())["id"] for worker in workers]
            while len(node.connected_keys()) < WORKERS:  # noqa: ASYNC110 - a script that measures, not a node
                await trio.sleep(0.02)
            electors = [node.id, *ids] if isinstance(model, Democratic) else [node.id]
            pool = await node.create_pool(name, governance=model, electors=electors)
            for worker in workers:
                await worker.ask({"pool": pool.id.hex(), "concurrency": CONCURRENCY, "expect": 1})
            handle = await pool.submit(Task("echo", {"first": True}))
            await handle.result()
            print(
                f"{name}: first task settled {time.perf_counter() - began:.1f} s after the start of the first process"
            )
            await collect(workers)
            await low_load(pool, workers, name)
            for window, tasks in SUSTAINED:
                await sustained(pool, workers, name, window, tasks)
            sizes = [memory_mb(worker.process.pid) for worker in workers]
            print(f"{name}: {statistics.median(sizes):.0f} MiB per node after {pool.operations} operations")
        finally:
            for worker in workers:
                worker.stop()


async def cold_sync(folder: Path) -> None:
    """A newcomer fetches ten thousand operations."""
    async with Node(home=folder / "full", listen=["/ip4/127.0.0.1/tcp/0"]) as node:
        pool = await node.create_pool("full", governance=Dictatorial())
        limiter = trio.CapacityLimiter(256)

        async def submit(number: int) -> None:
            async with limiter:
                await pool.submit(Task("nobody does this", {"number": number}))

        async with trio.open_nursery() as nursery:
            for number in range(COLD):
                nursery.start_soon(submit, number)
        worker = Worker(node.addresses[0], folder / "newcomer")
        try:
            await worker.hear()
            before = memory_mb(worker.process.pid)
            began = time.perf_counter()
            await worker.ask({"pool": pool.id.hex(), "concurrency": 1, "expect": COLD + 1})
            seconds = time.perf_counter() - began
            print(
                f"cold sync of {COLD} operations: {seconds:.1f} s, {COLD / seconds:.0f} operations/s, "
                f"{memory_mb(worker.process.pid) - before:.0f} MiB more"
            )
        finally:
            worker.stop()


async def main() -> None:
    """Print one line for each figure."""
    print(f"{os.cpu_count()} cores, {WORKERS + 1} processes, loopback, SQLite with full durability")
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        for model in (Democratic(), Dictatorial()):
            await measure(model, folder / model.kind.name)
        await cold_sync(folder / "cold")


if __name__ == "__main__":
    # the library of the transport reports every peer that goes away as an error
    logging.getLogger("libp2p").setLevel(logging.CRITICAL)
    trio.run(main)
