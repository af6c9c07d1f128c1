"""Bursts of gossip through twenty processes: what arrives, how soon, what it costs, and how many copies are sent.

    python tests/benchmarks/bench_burst.py [--nodes N] [--bursts N] [--messages N]

Knows: processes, loopback, the orders of its own workers. Must not know: how gossip works.
Each node dials four others at random; one after the other publishes a burst as fast as it is let. Messages are signed
and verified. A message that no neighbour forwarded in time is asked for by its id, and that counts as delivered.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import trio
from bench_mesh import Worker
from net_worker import LOCAL, Quiet

from converge_p2p.net import NetworkConfig, open_network

TOPIC, SIZE, DIALS, PATIENCE_S = "burst", 256, 4, 60.0


class Member(Worker):
    """One of the processes."""

    def __init__(self) -> None:
        command = [sys.executable, str(Path(__file__)), "--worker"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


async def work() -> None:
    """Be one of the processes."""
    seen: set[bytes] = set()
    last = time.monotonic()

    def take(_peer: str, data: bytes) -> None:
        nonlocal last
        seen.add(data[:12])
        last = time.monotonic()

    config = NetworkConfig(listen=(LOCAL,), dht=False, peers_wanted=0)
    async with open_network(config, seed=os.urandom(32), handler=Quiet()) as network:
        await network.subscribe(TOPIC, take)
        print(json.dumps({"address": network.addresses[0]}), flush=True)
        async for line in trio.wrap_file(sys.stdin):
            order = json.loads(line)
            answer: dict[str, Any] = {}
            if order["do"] == "connect":
                await network.connect(order["address"])
            elif order["do"] == "publish":
                answer["began"] = time.monotonic()
                for number in range(order["count"]):
                    name = order["burst"].to_bytes(4, "big") + number.to_bytes(8, "big")
                    await network.publish(TOPIC, name + bytes(SIZE - len(name)))
            else:
                burst = order["burst"].to_bytes(4, "big")
                copies = network.counters["gossip_delivered"] + network.counters["gossip_duplicate"]
                answer |= {"count": sum(name[:4] == burst for name in seen), "last": last, "copies": copies}
                meshed = len(network._gossip.router.mesh.get(TOPIC, ()))
                answer |= {"processor_s": time.process_time(), "meshed": meshed}
            print(json.dumps(answer), flush=True)


async def burst(members: list[Member], number: int, count: int) -> dict[str, float]:
    """One member publishes; return what became of it."""
    others = [member for index, member in enumerate(members) if index != number % len(members)]
    before = [await member.ask({"do": "report", "burst": number}) for member in members]
    sent = await members[number % len(members)].ask({"do": "publish", "burst": number, "count": count})
    want, until = count * len(others), trio.current_time() + PATIENCE_S
    while True:
        after = [await member.ask({"do": "report", "burst": number}) for member in others]
        got = sum(report["count"] for report in after)
        if got == want or trio.current_time() > until:
            break
        await trio.sleep(0.2)
    everybody = [await member.ask({"do": "report", "burst": number}) for member in members]
    spent = sum(now["processor_s"] - then["processor_s"] for now, then in zip(everybody, before, strict=True))
    copies = sum(now["copies"] - then["copies"] for now, then in zip(everybody, before, strict=True))
    return {
        "ratio": got / want,
        "seconds": max(report["last"] for report in after) - sent["began"],
        "processor ms a delivery": 1000 * spent / got,
        "copies a delivery": copies / got,
    }


def _told(row: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in row.items())


async def main() -> None:
    """Print one line for each burst, and medians."""
    parser = argparse.ArgumentParser(description="Send bursts of gossip through many processes.")
    parser.add_argument("--nodes", type=int, default=20)
    parser.add_argument("--bursts", type=int, default=5)
    parser.add_argument("--messages", type=int, default=1000)
    options = parser.parse_args()
    rng = random.Random(1)
    members = [Member() for _ in range(options.nodes)]
    try:
        addresses = [(await member.hear())["address"] for member in members]
        for index, member in enumerate(members[1:], 1):
            for other in rng.sample(range(index), min(DIALS, index)):
                await member.ask({"do": "connect", "address": addresses[other]})
        while any([not (await member.ask({"do": "report", "burst": 0}))["meshed"] for member in members]):  # noqa: ASYNC110
            await trio.sleep(0.5)
        rows = []
        for number in range(options.bursts):
            rows.append(await burst(members, number, options.messages))
            print(f"burst {number + 1}: {_told(rows[-1])}", flush=True)
        medians = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
        load = os.getloadavg()[0]
        print(f"medians, load {load:.1f}: {_told(medians)}")
        print(f"least ratio {min(row['ratio'] for row in rows):.6f}")
    finally:
        for member in members:
            member.stop()


if __name__ == "__main__":
    # the library of the transport reports every peer that goes away as an error
    logging.getLogger("libp2p").setLevel(logging.CRITICAL)
    trio.run(work if "--worker" in sys.argv else main)
