"""`converge-node` with a node in memory, as a process that a test can signal. Not a test itself.

The variable FAKE_NODE says what goes wrong: `slow-start`, `slow-close`, `stuck-close`, or `crash`.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from node_fakes import FakeNode

import converge_node.run
from converge_node.cli import main
from converge_node.run import NodeArguments


@asynccontextmanager
async def open_fake(arguments: NodeArguments) -> AsyncIterator[FakeNode]:
    fault = os.environ.get("FAKE_NODE", "")
    node = FakeNode(arguments.identity)
    if fault == "slow-start":
        print("opening", flush=True)
        await trio.sleep_forever()
    if fault == "open-pool":
        await offer_pools(node)
    yield node
    if fault == "crash":
        raise RuntimeError("the node broke")
    with trio.CancelScope(shield=fault == "stuck-close"):
        if fault in ("slow-close", "stuck-close"):
            print("closing", flush=True)
            await trio.sleep_forever()
    if fault == "blocked-close":
        print("closing", flush=True)
        hang()
    print("pools", sorted((pool.name, *pool.handlers) for pool in node.pools.values()), flush=True)


def hang() -> None:
    """Hold the event loop, as a defect in a library might."""
    time.sleep(60)


async def offer_pools(node: FakeNode) -> None:
    from node_fakes import FakeAnnouncement

    from converge_p2p.core.codec import tagged_hash
    from converge_p2p.core.types import PoolId

    for objective in ("index", "other"):
        id_ = PoolId(tagged_hash("test", objective.encode()))
        node.announced.append(FakeAnnouncement(id_, objective, "democratic", (objective,), node.id))
        await node.announcement_sender.send(node.announced[-1])


def index(task: object, context: object) -> int:
    """A handler, for `--handler index=run_fake_node:index`."""
    return 1


NOT_A_FUNCTION = 5

if __name__ == "__main__":
    converge_node.run.run.__kwdefaults__["open_node"] = open_fake
    main(sys.argv[1:])
