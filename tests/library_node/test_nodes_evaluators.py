"""Real nodes: an evaluator on another node judges, whatever its function does, and only what it approved settles."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from node_library_kit import POLICY, linked, real_node

from converge_p2p import Node, Task, TaskFailed, TaskView
from converge_p2p.core.errors import Conflict, NotAuthorised
from converge_p2p.node.handles import PoolHandle

pytestmark = pytest.mark.network


async def joined(one: Node, two: Node) -> tuple[PoolHandle, PoolHandle]:
    await linked(one, two)
    pool = await one.create_pool("judged", policy=POLICY)
    return pool, await two.join_pool(pool.id, timeout_s=15)


async def test_a_denied_result_is_done_again_until_the_evaluator_approves_one() -> None:
    seen: list[Any] = []
    tries = 0

    async def work(_task: TaskView, _context: Any) -> int:
        nonlocal tries
        tries += 1
        return tries

    async with real_node(1) as one, real_node(2, one) as two:
        pool, other = await joined(one, two)

        @other.evaluator
        def judge(task: TaskView, result: Any) -> bool:
            seen.append((task.inputs["least"], result))
            if result == 1:
                raise RuntimeError("the evaluator stumbles")
            return bool(result >= task.inputs["least"])

        with pytest.raises(Conflict):
            other.add_evaluator(judge)
        pool.add_handler("count", work)
        with trio.fail_after(30):
            handle = await pool.submit(
                Task("count", {"least": 3}, evaluator=f"agent:{two.id}", constraints={"max_retries": 5})
            )
            result = await handle.result()
        assert (result.value, seen) == (3, [(3, 1), (3, 2), (3, 3)])


async def test_whoever_has_no_function_judges_by_hand_and_nobody_else_can() -> None:
    async def work(_task: TaskView, _context: Any) -> str:
        return "poor"

    async with real_node(1) as one, real_node(2, one) as two:
        pool, other = await joined(one, two)
        pool.add_handler("count", work)
        async with other.watch() as changes:
            handle = await pool.submit(Task("count", evaluator=f"agent:{two.id}", constraints={"max_retries": 0}))
            with trio.fail_after(30):
                async for view in changes:
                    if view.unjudged:
                        break
                with pytest.raises(NotAuthorised):
                    await handle.judge(True)
                await other.judge(handle.id, False, "too short")
                with pytest.raises(TaskFailed):
                    await handle.result()
