"""Real nodes: work that takes longer than its time to live keeps its claim, and the claim of a dead node is lost."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import trio
from node_library_kit import POLICY, linked, real_node, until

from converge_p2p import Node, Task, TaskView, governance
from converge_p2p.core.model.task import TaskState
from converge_p2p.node.handles import PoolHandle

pytestmark = pytest.mark.network

TTL_S = 2.0
PATIENT = replace(POLICY, claim_ttl_ms=int(TTL_S * 1000), grant_timer_ms=3000)
"""With a grant timer so long that a slow machine opens no round by it."""


async def found(one: Node, *others: Node) -> list[PoolHandle]:
    """A pool of electors with short claims, on all of its nodes."""
    nodes = (one, *others)
    for number, node in enumerate(nodes):
        for other in nodes[:number]:
            await linked(other, node)
    pool = await one.create_pool(
        "patient",
        governance=governance.Democratic(),
        electors=[str(node.id) for node in (one, *others)],
        policy=PATIENT,
    )
    return [pool, *[await node.join_pool(pool.id, timeout_s=15) for node in others]]


async def test_work_of_four_times_its_time_keeps_its_claim_and_settles_in_round_0() -> None:
    attempts: list[tuple[int, int]] = []
    begun = trio.Event()

    async def work(task: TaskView, context: Any) -> str:
        attempts.append(context.token)
        begun.set()
        for step in range(4):
            await context.progress(step / 4, f"step {step}")
            await trio.sleep(TTL_S)
        return "done"

    async with real_node(1) as one, real_node(2, one) as two, real_node(3, one) as three:
        pools = await found(one, two, three)
        pools[1].add_handler("slow", work)
        async with pools[0].watch() as changes:
            handle = await pools[0].submit(Task("slow"))
            seen = []
            with trio.fail_after(30):
                await begun.wait()
                # rivals, who take over as soon as they may. From the beginning they would split the votes of round 0
                for pool in (pools[0], pools[2]):
                    pool.add_handler("slow", work)
                async for view in changes:
                    if view.progress is not None and view.progress not in seen:
                        seen.append(view.progress)
                    if view.state.terminal:
                        break
        view = await pools[0].settled(handle.id)
        assert (view.state, view.round, view.attempts, view.result) == (TaskState.COMPLETED, 0, 1, "done")
        assert attempts == [(0, 0)], "nobody else began"
        # what was said last before the end may be missing, and nothing is made up
        shown = [(progress.fraction, progress.note) for progress in seen]
        assert shown[:3] == [(0, "step 0"), (250, "step 1"), (500, "step 2")]
        assert view.progress is None, "a settled task has a result in its place"
        assert all(node.status().counters.get("violations", 0) == 0 for node in (one, two, three))


async def test_the_claim_of_a_killed_node_is_lost_after_its_time() -> None:
    script = """
import sys, trio
from converge_p2p import Node
async def main(address, pool_id):
    async with Node(listen=["/ip4/127.0.0.1/tcp/0"], bootstrap=[address]) as node:
        pool = await node.join_pool(bytes.fromhex(pool_id), timeout_s=30)
        async def work(task, context):
            await context.progress(0.5, "alive")
            await trio.sleep_forever()
        pool.add_handler("slow", work)
        await trio.sleep_forever()
trio.run(main, *sys.argv[1:])
"""

    async def work(task: TaskView, context: Any) -> list[int]:
        return list(context.token)

    async with real_node(1) as one, real_node(2, one) as two, trio.open_nursery() as nursery:
        pool, other = await found(one, two)
        arguments = [sys.executable, "-c", script, one.addresses[0], pool.id.hex()]
        process = await nursery.start(partial(trio.run_process, arguments, check=False))
        handle = await pool.submit(Task("slow"))

        def shows(pool: PoolHandle) -> bool:
            view = pool.find_task(handle.id)
            return view is not None and view.progress is not None and view.progress.note == "alive"

        await until(lambda: shows(pool) and shows(other), "both electors hear of it", 30)
        other.add_handler("slow", work)
        held = pool.task(handle.id).round
        # a rival waits from now on, and does not get it as long as the worker lives
        await trio.sleep(2 * TTL_S)
        assert (pool.task(handle.id).round, pool.task(handle.id).expired) == (held, False)
        process.kill()
        killed = trio.current_time()
        with trio.fail_after(15):
            view = await pool.settled(handle.id)
        # it spoke every third of its time, so that two thirds at least were left
        assert trio.current_time() - killed > TTL_S / 2
        assert view.state is TaskState.COMPLETED
        # an elector that does not know the rival yet may give the dead one another round
        assert view.result >= [0, held + 1]
