"""A worker process of `bench_mesh.py`: a node that does `echo` tasks and times its own claims.

Usage: mesh_worker.py BOOTSTRAP HOME. Speaks JSON lines: says its key, is told a pool id, and says its times at the end.
"""

from __future__ import annotations

import json
import logging
import sys
import time

import trio

from converge_p2p.core.replica import events as ev
from converge_p2p.core.types import PoolId, TaskId
from converge_p2p.node import Node, PoolHandle


class ClaimTimes:
    """From the signing of the winning claim to the settlement, as this worker sees both."""

    def __init__(self, pool: PoolHandle) -> None:
        self._claimed: dict[TaskId, float] = {}
        self.times_ms: list[float] = []
        self._pool = pool
        self._propose = pool.driver.propose
        pool.driver.propose = self.propose  # type: ignore[method-assign]

    def propose(self, command: ev.Command) -> tuple[trio.Event, ...]:
        """Note when a claim is made."""
        if isinstance(command, ev.Claim):
            self._claimed[command.task] = time.perf_counter()
        return self._propose(command)

    async def follow(self) -> None:
        """Note when tasks that were done here are settled."""
        own = self._pool._node.public_key
        async with self._pool.watch() as changes:
            async for view in changes:
                claimed = self._claimed.pop(view.id, None) if view.state.terminal else None
                if claimed is not None and view.value is not None and view.value.worker == own:
                    self.times_ms.append((time.perf_counter() - claimed) * 1000)


async def echo(task, _context):
    """Do what takes no time."""
    return task.inputs


async def main() -> None:
    """Run until standard input ends."""
    bootstrap, home = sys.argv[1:3]
    async with (
        Node(home=home, listen=["/ip4/127.0.0.1/tcp/0"], bootstrap=[bootstrap]) as node,
        trio.open_nursery() as nursery,
    ):
        print(json.dumps({"id": node.id}), flush=True)
        times: ClaimTimes | None = None
        async for line in trio.wrap_file(sys.stdin):
            order = json.loads(line)
            if "pool" in order:
                pool = await node.join_pool(PoolId(bytes.fromhex(order["pool"])))
                while pool.operations < order["expect"]:  # noqa: ASYNC110 - a script that measures, not a node
                    await trio.sleep(0.01)
                times = ClaimTimes(pool)
                nursery.start_soon(times.follow)
                pool.add_handler("echo", echo, concurrency=order["concurrency"])
                print(json.dumps({"joined": order["pool"]}), flush=True)
            elif "report" in order:
                assert times is not None
                print(json.dumps({"times_ms": times.times_ms}), flush=True)
                times.times_ms = []
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    # the library of the transport reports every peer that goes away as an error
    logging.getLogger("libp2p").setLevel(logging.CRITICAL)
    trio.run(main)
