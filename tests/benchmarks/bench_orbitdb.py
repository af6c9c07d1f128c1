"""Durable appends and cold sync, beside OrbitDB 3 on the same machine in the same minutes.

Knows: processes, loopback, the public interface of the library, and the orders of `orbitdb/peer.mjs`. Must not know:
what makes either side fast.
Both sides take turns. An append is a small task submitted to a pool of the own node, or an event added to OrbitDB, with
the same values. OrbitDB appends twice: as shipped, which never syncs a write to disk, and with a sync for each write,
which is what this library's figure means. Its appends as shipped make the log that the cold sync then fetches.
Without node and npm, or without what they install, it says so and ends well.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import trio
from bench_mesh import Worker

from converge_p2p.core.governance.models import Dictatorial
from converge_p2p.core.model.task import Task
from converge_p2p.node import Node, PoolHandle

PEER = Path(__file__).with_name("orbitdb")
ENTRIES, ROUNDS, BUDGET_S = 10_000, 3, 330
WARM_UP, WINDOW, SYNCED = 100, 256, 200
OURS, SHIPPED, SYNCS = "this library", "OrbitDB as shipped", "OrbitDB with a sync for each write"

Rates = dict[tuple[str, bool], list[float]]


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


def install() -> str:
    """Install the other side as its lock file says, and return why that cannot be done, or nothing."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        return "node and npm are not installed"
    if (PEER / "node_modules" / ".package-lock.json").exists():
        return ""
    # no scripts: everything that has to be compiled comes compiled
    command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    done = subprocess.run(command, cwd=PEER, capture_output=True, text=True, check=False)
    return f"npm ci failed: {done.stderr.strip()[-300:]}" if done.returncode else ""


async def submit(pool: PoolHandle, first: int, count: int, pipelined: bool) -> float:
    """Submit tasks until they are on disk, and return the seconds it took."""
    room = trio.CapacityLimiter(WINDOW if pipelined else 1)

    async def one(number: int) -> None:
        async with room:
            await pool.submit(Task("nobody does this", {"number": number}))

    began = time.perf_counter()
    if pipelined:
        async with trio.open_nursery() as nursery:
            for number in range(first, first + count):
                nursery.start_soon(one, number)
    else:
        for number in range(first, first + count):
            await one(number)
    return time.perf_counter() - began


async def append(peer: OrbitPeer, first: int, count: int, pipelined: bool) -> float:
    """Add events to OrbitDB, and return the seconds it took."""
    order = {"do": "append", "first": first, "count": count, "pipelined": pipelined}
    seconds: float = (await peer.ask(order))["seconds"]
    return seconds


async def appends(pool: PoolHandle, shipped: OrbitPeer, synced: OrbitPeer, entries: int) -> Rates:
    """Let all take turns until both logs hold their entries."""
    rates: Rates = defaultdict(list)
    await submit(pool, 0, WARM_UP, False)
    await append(shipped, 0, WARM_UP, False)
    await append(synced, 0, WARM_UP, False)
    bounds = [WARM_UP + (entries - WARM_UP) * turn // (ROUNDS * 2) for turn in range(ROUNDS * 2 + 1)]
    for turn, (first, end) in enumerate(itertools.pairwise(bounds)):
        pipelined, count = bool(turn % 2), end - first
        rates[OURS, pipelined].append(count / await submit(pool, first, count, pipelined))
        rates[SHIPPED, pipelined].append(count / await append(shipped, first, count, pipelined))
        rates[SYNCS, pipelined].append(SYNCED / await append(synced, first, SYNCED, pipelined))
    return rates


def say_appends(rates: Rates) -> None:
    """Print medians and ratios of medians."""
    for pipelined in (False, True):
        how = f"up to {WINDOW} at a time" if pipelined else "one at a time"
        ours = statistics.median(rates[OURS, pipelined])
        for side in (OURS, SHIPPED, SYNCS):
            rate = statistics.median(rates[side, pipelined])
            runs = ", ".join(f"{rate:.0f}" for rate in rates[side, pipelined])
            ratio = "" if side is OURS else f"; this library: {ours / rate:.1f} times as many"
            print(f"appends, {how}, {side}: {rate:.0f}/s (runs {runs}){ratio}")


async def our_sync(node: Node, pool: PoolHandle, home: Path) -> float:
    """Let a new process of this library fetch the pool; it is connected before the clock starts."""
    newcomer = Worker(node.addresses[0], home)
    try:
        await newcomer.hear()
        began = time.perf_counter()
        await newcomer.ask({"pool": pool.id.hex(), "concurrency": 1, "expect": pool.operations})
        return time.perf_counter() - began
    finally:
        newcomer.stop()


async def their_sync(listens: str, address: str, home: Path, entries: int, limit_s: float) -> float | None:
    """Let a new process of OrbitDB fetch the log; it is connected before the clock starts. None: not done in time."""
    newcomer = OrbitPeer(home, "shipped")
    try:
        await newcomer.hear()
        await newcomer.ask({"do": "dial", "to": listens})
        answer = await newcomer.ask({"do": "fetch", "address": address, "limit_s": limit_s})
        assert answer["entries"] in (0, entries), answer
        seconds: float = answer["seconds"]
        return seconds if answer["entries"] else None
    finally:
        newcomer.process.kill()
        newcomer.process.wait()


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
            say_appends(await appends(pool, shipped, synced, entries))
            await trio.to_thread.run_sync(synced.stop)
            ours: list[float] = []
            theirs: list[float] = []
            for turn in range(ROUNDS):
                ours.append(await our_sync(node, pool, folder / f"our-newcomer-{turn}"))
                left_s = give_up - time.perf_counter()
                if theirs and theirs[-1] > left_s:
                    break
                home = folder / f"their-newcomer-{turn}"
                seconds = await their_sync(listens, address, home, entries, max(left_s, 1))
                if seconds is None:
                    print(f"cold sync of {entries} entries, OrbitDB as shipped: not done after {left_s:.0f} s")
                    break
                theirs.append(seconds)
            say_sync(ours, theirs, entries)
    finally:
        for peer in (shipped, synced):
            peer.process.kill()
            peer.process.wait()


def say_sync(ours: list[float], theirs: list[float], entries: int) -> None:
    """Print medians and their ratio."""
    for side, runs in ((OURS, ours), (SHIPPED, theirs)):
        if runs:
            took = statistics.median(runs)
            each = ", ".join(f"{seconds:.1f}" for seconds in runs)
            print(f"cold sync of {entries} entries, {side}: {took:.1f} s, {entries / took:.0f}/s (runs {each})")
    if theirs:
        print(f"cold sync: this library is {statistics.median(theirs) / statistics.median(ours):.1f} times as fast")


def main() -> None:
    """Install what is missing and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=ENTRIES, help="length of both logs")
    parser.add_argument("--budget", type=float, default=BUDGET_S, help="seconds after which no turn begins")
    given = parser.parse_args()
    why_not = install()
    if why_not:
        print(f"nothing to compare with: {why_not}")
        return
    version = json.loads((PEER / "package.json").read_text())["dependencies"]["@orbitdb/core"]
    print(
        f"OrbitDB {version}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start; both sides take turns"
    )
    with tempfile.TemporaryDirectory() as text:
        trio.run(compare, Path(text), given.entries, time.perf_counter() + given.budget)


if __name__ == "__main__":
    # the library of the transport reports every peer that goes away as an error
    logging.getLogger("libp2p").setLevel(logging.CRITICAL)
    main()
