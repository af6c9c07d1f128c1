"""A process of `bench_discovery.py`: several nodes that publish, and say when they found what was published.

Usage: discovery_worker.py FIRST COUNT [BOOTSTRAP …]. Starts nodes number FIRST to FIRST+COUNT-1. Speaks JSON lines:
says its addresses, does what it is told, and says when each node found it, in the time that all processes share.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
import time
from contextlib import AsyncExitStack
from typing import Any

import trio

from converge_p2p.core.identity import Identity
from converge_p2p.core.model.capability import Capability
from converge_p2p.core.model.query import DiscoveryQuery
from converge_p2p.node import Node


class Watch:
    """When one node first found each capability, by asking its own index after each piece of news."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.found: dict[str, float] = {}

    async def follow(self) -> None:
        """Note what is found."""
        async with self.node.discovery.watch() as news:
            async for descriptor in news:
                for skill in descriptor.capabilities:
                    if skill.name not in self.found and self.node.discovery.find(DiscoveryQuery.of([skill.name])):
                        self.found[skill.name] = time.monotonic()


def say(answer: dict[str, Any]) -> None:
    """Tell the benchmark."""
    print(json.dumps(answer), flush=True)


async def main() -> None:
    """Run until standard input ends."""
    first, count, bootstrap = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
        watches: list[Watch] = []
        for number in range(first, first + count):
            identity = Identity.from_seed(hashlib.sha256(b"bench-discovery-%d" % number).digest())
            known = bootstrap or [watch.node.addresses[0] for watch in watches[:1]]
            node = await stack.enter_async_context(
                Node(identity=identity, listen=["/ip4/127.0.0.1/tcp/0"], bootstrap=known)
            )
            watches.append(Watch(node))
            nursery.start_soon(watches[-1].follow)
        say({"addresses": [watch.node.addresses[0] for watch in watches], "ids": [watch.node.id for watch in watches]})
        async for line in trio.wrap_file(sys.stdin):
            order = json.loads(line)
            if "publish" in order:
                node, name = watches[order["by"] - first].node, order["publish"]
                began = time.monotonic()
                await node.discovery.register([Capability(name, cost=order["cost"])])
                say({"began": began})
            elif "found" in order:
                name = order["found"]
                say({"times": [watch.found.get(name) for watch in watches]})
            elif "ask" in order:
                query = DiscoveryQuery.of([order["ask"]])
                began = time.monotonic()
                answers = [[one.agent_id for one in watch.node.discovery.find(query)] for watch in watches]
                say({"answers": answers, "seconds": (time.monotonic() - began) / len(watches)})
            elif "state" in order:
                say({
                    "peers": [len(watch.node.connected_keys()) for watch in watches],
                    "known": [watch.node.discovery.size for watch in watches],
                    "cpu_s": time.process_time(),
                })  # fmt: skip
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    # the library of the transport reports every peer that goes away as an error
    logging.getLogger("libp2p").setLevel(logging.CRITICAL)
    logging.getLogger("converge_p2p").setLevel(logging.CRITICAL)
    trio.run(main)
