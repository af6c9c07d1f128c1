"""Two processes on one connection: this library's network with either transport, the library below it, and js-libp2p.

    python tests/benchmarks/bench_net.py [--turns N] [--only KIND]…

Knows: processes, loopback, the orders of `net_worker.py`. Must not know: what makes either side fast.
The kinds take turns, A B C D A B C D, and medians over the turns are told, because what else the machine does changes
from minute to minute. Messages are signed and verified. "Batched" is what an application does that has many small
things to say: sixteen of them in one signed message. At most so many messages are ahead of the acknowledgements as fit
the sender's queue, which for py-libp2p is 32.
Without node and npm, or without what they install, js-libp2p is left out, and that is said.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import trio
from bench_mesh import Worker

sys.path.insert(0, str(Path(__file__).parents[1] / "network"))
from js_peer import FOLDER, install

KINDS = {"fast": "this library, fast", "stock": "this library, stock", "libp2p": "py-libp2p 0.8.1", "js": "js-libp2p 3"}
WINDOWS = {"libp2p": 32}
ITEMS, ITEM_BYTES = 16, 256
SLOW = 0.25
"""py-libp2p is given so much less to do, or it takes minutes."""


class Side(Worker):
    """One of the two processes."""

    def __init__(self, kind: str) -> None:
        script = Path(__file__).with_name("net_worker.py")
        command = ["node", "peer.mjs"] if kind == "js" else [sys.executable, str(script), kind]
        self.process = subprocess.Popen(
            command, cwd=FOLDER if kind == "js" else None, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    async def do(self, what: str, **arguments: Any) -> dict[str, Any]:
        """Give an order and return the answer."""
        answer = await self.ask({"do": what, **arguments})
        if "error" in answer:
            raise RuntimeError(f"{what}: {answer['error']}")
        return answer


Row = dict[str, float]


async def gossip(one: Side, other: Side, count: int, size: int, window: int) -> tuple[float, float, float]:
    """Messages a second, and milliseconds of processor time for each on either side. What was lost does not count."""
    before = await other.do("report")
    sent = await one.do("publish", count=count, size=size, window=window, pause_ms=0)
    after = await other.do("report")
    if not after["count"]:
        return 0.0, 0.0, 0.0
    each = 1000 / after["count"]
    return (
        after["count"] / sent["seconds"],
        sent["processor_s"] * each,
        (after["processor_s"] - before["processor_s"]) * each,
    )


async def turn(kind: str) -> Row:
    """Measure one pair of processes."""
    one, other = Side(kind), Side(kind)
    share = SLOW if kind in ("libp2p", "stock") else 1
    row: Row = {}
    try:
        await one.hear()
        address = (await other.hear())["address"]
        times = []
        for _ in range(8):
            times.append((await one.do("connect", address=address))["ms"])
            await one.do("disconnect")
        row["connect ms"] = statistics.median(times)
        await one.do("connect", address=address)
        await other.do("listen")
        await one.do("listen")
        await one.do("ready", topic="bench-data")
        await other.do("ready", topic="bench-acks")
        window = WINDOWS.get(kind, 256)
        # below what a neighbour may send in a burst, or the limit is measured
        count = int(2400 * share)
        await gossip(one, other, 320, ITEM_BYTES, window)
        row["messages/s"], row["sender ms"], row["receiver ms"] = await gossip(one, other, count, ITEM_BYTES, window)
        await trio.sleep(1)
        batched = await gossip(one, other, count // 2, ITEMS * ITEM_BYTES, window)
        row["batched/s"] = batched[0] * ITEMS
        await other.do("report")
        await one.do("publish", count=100, size=ITEM_BYTES, window=window, pause_ms=50)
        row["p50 ms at 20/s"] = (await other.do("report"))["p50_ms"]
        await one.do("requests", count=100, size=256)
        row["request ms"] = (await one.do("requests", count=int(4000 * share), size=256))["p50_ms"]
        size = int(share * share * 512 * 1024 * 1024)
        await one.do("bulk", size=8 * 1024 * 1024, piece=65_536)
        row["MB/s"] = (await one.do("bulk", size=size, piece=65_536))["mb_per_s"]
    finally:
        one.stop()
        other.stop()
    return row


async def main() -> None:
    """Take turns and print medians."""
    parser = argparse.ArgumentParser(description="Measure one connection between two processes.")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--only", action="append", choices=sorted(KINDS), help="only this kind; may be repeated")
    options = parser.parse_args()
    kinds = [kind for kind in KINDS if not options.only or kind in options.only]
    if "js" in kinds and (why := install()):
        print(f"js-libp2p is left out: {why}")
        kinds.remove("js")
    rows: dict[str, list[Row]] = defaultdict(list)
    for number in range(options.turns):
        for kind in kinds:
            rows[kind].append(await turn(kind))
            print(f"turn {number + 1}, {KINDS[kind]}: ", end="")
            print(", ".join(f"{name} {value:.2f}" for name, value in rows[kind][-1].items()), flush=True)
    load = os.getloadavg()
    print(f"\nmedians of {options.turns} turns; load {load[0]:.1f} {load[1]:.1f} on {os.cpu_count()} cores")
    names = list(rows[kinds[0]][0])
    print(f"{'':<22}" + "".join(f"{name:>16}" for name in names))
    for kind in kinds:
        medians = [statistics.median(row[name] for row in rows[kind]) for name in names]
        print(f"{KINDS[kind]:<22}" + "".join(f"{value:>16.2f}" for value in medians))


if __name__ == "__main__":
    trio.run(main)
