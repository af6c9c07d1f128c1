"""Durable appends and cold sync, beside OrbitDB 3 on the same machine in the same minutes.

Knows: processes, loopback, the public interface of the library, and the orders of `orbitdb/peer.mjs`. Must not know:
what makes either side fast.
Both sides take turns. An append is a small task submitted to a pool of the own node, or an event added to OrbitDB, with
the same values. OrbitDB appends twice: as shipped, which never syncs a write to disk, and with a sync for each write,
which is what this library's figure means. Its appends as shipped make the log that the cold sync then fetches.
Beside the rates stand those for each second of processor time, which other work on the machine disturbs less; of a cold
sync it is the newcomer's.
Without node and npm, or without what they install, it says so and ends well.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import trio
from bench_mesh import Worker

from converge_p2p.core.governance.models import Dictatorial
from converge_p2p.core.model.task import Task
from converge_p2p.node import Node, PoolHandle

sys.path.insert(0, str(Path(__file__).parents[1] / "network"))
from js_peer import install

PEER = Path(__file__).with_name("orbitdb")
ENTRIES, ROUNDS, BUDGET_S = 10_000, 3, 330
WARM_UP, WINDOW, SYNCED = 100, 256, 200
OURS, SHIPPED, SYNCS = "this library", "OrbitDB as shipped", "OrbitDB with a sync for each write"


class Cost(NamedTuple):
    """What something took: seconds, and seconds of processor time."""

    seconds: float
    processor_s: float


class OrbitPeer(Worker):
    """A process of OrbitDB."""

    def __init__(self, home: Path, durability: str) -> None:
        self.process = subprocess.Popen(
            ["node", "peer.mjs", str(home), durability],
            cwd=PEER,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )


def processor_s(pid: int) -> float:
    """Processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def submit(pool: PoolHandle, first: int, count: int, pipelined: bool) -> Cost:
    """Submit tasks until they are on disk, one after another or with a window of open ones."""
    numbers = iter(range(first, first + count))

    async def one_by_one() -> None:
        for number in numbers:
            await pool.submit(Task("nobody does this", {"number": number}))

    began, used = time.perf_counter(), processor_s(os.getpid())
    async with trio.open_nursery() as nursery:
        for _ in range(WINDOW if pipelined else 1):
            nursery.start_soon(one_by_one)
    return Cost(time.perf_counter() - began, processor_s(os.getpid()) - used)


async def append(peer: OrbitPeer, first: int, count: int, pipelined: bool) -> Cost:
    """Add events to OrbitDB, one after another or all at once; it queues them."""
    answer = await peer.ask({"do": "append", "first": first, "count": count, "pipelined": pipelined})
    return Cost(answer["seconds"], answer["processor_s"])


def rate(count: int, cost: Cost) -> tuple[float, float]:
    """How many a second, and a second of processor time."""
    return count / cost.seconds, count / cost.processor_s


Rates = dict[tuple[str, bool], list[tuple[float, float]]]


async def appends(
    pool: PoolHandle, shipped: OrbitPeer, synced: OrbitPeer, entries: int, give_up: float
) -> tuple[Rates, int]:
    """Let all take turns until both logs hold their entries, or half of the time is over; return their length too."""
    rates: Rates = defaultdict(list)
    half_s = (give_up - time.perf_counter()) / 2
    await submit(pool, 0, WARM_UP, False)
    await append(shipped, 0, WARM_UP, False)
    await append(synced, 0, WARM_UP, False)
    bounds = [WARM_UP + (entries - WARM_UP) * turn // (ROUNDS * 2) for turn in range(ROUNDS * 2 + 1)]
    for turn, (first, end) in enumerate(itertools.pairwise(bounds)):
        pipelined, count = bool(turn % 2), end - first
        rates[OURS, pipelined].append(rate(count, await submit(pool, first, count, pipelined)))
        rates[SHIPPED, pipelined].append(rate(count, await append(shipped, first, count, pipelined)))
        rates[SYNCS, pipelined].append(rate(SYNCED, await append(synced, first, SYNCED, pipelined)))
        if pipelined and give_up - time.perf_counter() < half_s:
            return rates, end
    return rates, entries


def say(what: str, rates: dict[str, list[tuple[float, float]]]) -> None:
    """Print the medians of every side, and their ratios to those of this library."""
    ours = [statistics.median(figures) for figures in zip(*rates[OURS], strict=True)]
    for side, runs in rates.items():
        own = [statistics.median(figures) for figures in zip(*runs, strict=True)]
        each = ", ".join(f"{run[0]:.0f}" for run in runs)
        ratios = [mine / theirs for mine, theirs in zip(ours, own, strict=True)]
        beside = "" if side == OURS else f"; this library: {ratios[0]:.1f} and {ratios[1]:.1f} times as many"
        print(f"{what}, {side}: {own[0]:.0f}/s (runs {each}), {own[1]:.0f} a processor second{beside}")


async def our_sync(node: Node, pool: PoolHandle, home: Path) -> Cost:
    """Let a new process of this library fetch the pool; it is connected before the clock starts."""
    newcomer = Worker(node.addresses[0], home)
    try:
        await newcomer.hear()
        began, used = time.perf_counter(), processor_s(newcomer.process.pid)
        await newcomer.ask({"pool": pool.id.hex(), "concurrency": 1, "expect": pool.operations})
        return Cost(time.perf_counter() - began, processor_s(newcomer.process.pid) - used)
    finally:
        newcomer.stop()


async def their_sync(listens: str, address: str, home: Path, entries: int, limit_s: float) -> Cost | None:
    """Let a new process of OrbitDB fetch the log; it is connected before the clock starts. None: not done in time."""
    newcomer = OrbitPeer(home, "shipped")
    try:
        await newcomer.hear()
        await newcomer.ask({"do": "dial", "to": listens})
        answer = await newcomer.ask({"do": "fetch", "address": address, "limit_s": limit_s})
        assert answer["entries"] in (0, entries), answer
        return Cost(answer["seconds"], answer["processor_s"]) if answer["entries"] else None
    finally:
        newcomer.process.kill()
        newcomer.process.wait()


async def syncs(
    node: Node, pool: PoolHandle, shipped: tuple[str, str], folder: Path, entries: int, give_up: float
) -> None:
    """Let newcomers of both sides take turns, as often as the time allows, and print what they need."""
    rates: dict[str, list[tuple[float, float]]] = {OURS: [], SHIPPED: []}
    last_s = 0.0
    for turn in range(ROUNDS):
        left_s = give_up - time.perf_counter()
        if turn and last_s > left_s:
            break
        rates[OURS].append(rate(entries, await our_sync(node, pool, folder / f"our-newcomer-{turn}")))
        cost = await their_sync(*shipped, folder / f"their-newcomer-{turn}", entries, max(left_s, 1))
        if cost is None:
            print(f"cold sync of {entries} entries, {SHIPPED}: not done after {left_s:.0f} s")
            break
        rates[SHIPPED].append(rate(entries, cost))
        last_s = cost.seconds
    say(f"cold sync of {entries} entries", {side: runs for side, runs in rates.items() if runs})


async def compare(folder: Path, entries: int, give_up: float) -> None:
    """Measure both sides, and print one line for each figure."""
    shipped, synced = OrbitPeer(folder / "shipped", "shipped"), OrbitPeer(folder / "synced", "synced")
    try:
        async with Node(home=folder / "ours", listen=["/ip4/127.0.0.1/tcp/0"]) as node:
            listens = (await shipped.hear())["listens"]
            await synced.hear()
            address = (await shipped.ask({"do": "open"}))["address"]
            await synced.ask({"do": "open"})
            pool = await node.create_pool("full", governance=Dictatorial())
            rates, entries = await appends(pool, shipped, synced, entries, give_up)
            for pipelined, how in ((False, "one at a time"), (True, f"up to {WINDOW} at a time")):
                say(f"appends, {how}", {side: rates[side, pipelined] for side in (OURS, SHIPPED, SYNCS)})
            await trio.to_thread.run_sync(synced.stop)
            await syncs(node, pool, (listens, address), folder, entries, give_up)
    finally:
        for peer in (shipped, synced):
            peer.process.kill()
            peer.process.wait()


def main() -> None:
    """Install what is missing and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--entries", type=int, default=ENTRIES, help="length of both logs, if half of the budget is enough"
    )
    parser.add_argument("--budget", type=float, default=BUDGET_S, help="seconds for everything")
    given = parser.parse_args()
    give_up = time.perf_counter() + given.budget
    why_not = install(PEER)
    if why_not:
        print(f"nothing to compare with: {why_not}")
        return
    version = json.loads((PEER / "package.json").read_text())["dependencies"]["@orbitdb/core"]
    print(
        f"OrbitDB {version}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start; both sides take turns"
    )
    with tempfile.TemporaryDirectory() as text:
        trio.run(compare, Path(text), given.entries, give_up)


if __name__ == "__main__":
    # the library of the transport reports every peer that goes away as an error
    logging.getLogger("libp2p").setLevel(logging.CRITICAL)
    main()
