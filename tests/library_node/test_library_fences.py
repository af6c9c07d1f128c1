"""A fence is given when the claim is certified, and what runs under it ends when the claim is lost."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import trio
from node_library_kit import LOOPBACK, who
from trio.testing import wait_all_tasks_blocked

from converge_p2p.core.errors import ClaimLost
from converge_p2p.core.model.decision import ClaimTask, Decision, InvokeTool, ReportTask
from converge_p2p.core.model.task import Task, TaskSpec, TaskState, TaskView
from converge_p2p.core.types import PoolId, PublicKey, TaskId
from converge_p2p.node import Node
from converge_p2p.node.fences import CERTIFICATE_WAIT_S, run_fenced
from converge_p2p.runtime.agent import Agent
from converge_p2p.runtime.fencing import Fence
from converge_p2p.runtime.tools import FunctionTool, ToolRegistry

ME, OTHER = who(1).public_key, who(2).public_key
TASK = TaskId(b"t" * 32)
OPEN = TaskView(TASK, PoolId(b"p" * 32), OTHER, TaskSpec(b"k", "x", b""), TaskState.PENDING)
MINE = replace(OPEN, state=TaskState.ASSIGNED, assigned_to=ME, certified=True, epoch=1, round=3)


class FakePool:
    def __init__(self, view: TaskView, *, stands: bool = True) -> None:
        self.view = view
        self.stands = stands
        self._send, self._receive = trio.open_memory_channel[TaskView](10)

    def task(self, task: TaskId) -> TaskView:
        return self.view

    def claim_stands(self, task: TaskId, key: PublicKey) -> bool:
        return self.stands

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[Any]:
        yield self._receive

    def change(self, view: TaskView) -> None:
        self.view = view
        self._send.send_nowait(view)


async def fenced(pool: FakePool, work: Any) -> Any:
    return await run_fenced(pool, ME, TASK, work)  # type: ignore[arg-type]


async def token(fence: Fence) -> tuple[int, int]:
    await trio.lowlevel.checkpoint()
    return fence.token


async def test_the_work_begins_when_the_claim_is_certified_and_not_before() -> None:
    pool, got = FakePool(OPEN), []

    async def run() -> None:
        got.append(await fenced(pool, token))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await wait_all_tasks_blocked()
        pool.change(replace(MINE, certified=False))
        await wait_all_tasks_blocked()
        assert got == []
        pool.change(MINE)
    assert got == [(1, 3)]


@pytest.mark.parametrize(
    ("view", "stands", "what"),
    [
        (OPEN, False, "does not stand"),
        (replace(OPEN, state=TaskState.COMPLETED, certified=True), True, "is settled"),
        (replace(MINE, assigned_to=OTHER), True, "held by somebody else"),
    ],
)
async def test_without_a_claim_that_can_be_won_nothing_runs(view: TaskView, stands: bool, what: str) -> None:
    with pytest.raises(ClaimLost, match=what):
        await fenced(FakePool(view, stands=stands), token)


async def test_a_claim_that_is_never_certified_is_waited_for_only_so_long(autojump_clock: Any) -> None:
    with pytest.raises(ClaimLost, match="not certified"):
        await fenced(FakePool(OPEN), token)
    assert trio.current_time() == CERTIFICATE_WAIT_S


@pytest.mark.parametrize(
    "after", [OPEN, replace(MINE, round=4), replace(MINE, assigned_to=OTHER), replace(MINE, state=TaskState.CANCELLED)]
)
async def test_the_work_ends_when_the_claim_is_lost_or_has_a_later_token(after: TaskView) -> None:
    pool, cancelled = FakePool(MINE), trio.Event()

    async def work(fence: Fence) -> None:
        try:
            pool.change(after)
            await trio.sleep_forever()
        finally:
            cancelled.set()

    with pytest.raises(ClaimLost, match="while the work went on"):
        await fenced(pool, work)
    assert cancelled.is_set()


async def test_what_the_work_raises_comes_out_as_it_is() -> None:
    async def fail(fence: Fence) -> None:
        raise ValueError("as it is")

    with pytest.raises(ValueError, match="as it is"):
        await fenced(FakePool(MINE), fail)


class Spender(Agent):
    """Claims, runs a tool with effects, and reports what it gave: all decided in one turn."""

    def __init__(self, me: PublicKey) -> None:
        super().__init__()
        self.me = me
        self.results: list[Any] = []

    def decide(self, messages: Any, tasks: Any) -> list[Decision]:
        decisions: list[Decision] = []
        for task in tasks:
            if task.claimable:
                decisions += [
                    ClaimTask(task.pool_id, task.id),
                    InvokeTool("pay", {"n": 5}, call_id="pay", pool_id=task.pool_id, task_id=task.id),
                    ReportTask(task.pool_id, task.id, result_of="pay"),
                ]
        return decisions

    def on_results(self, results: Any) -> None:
        self.results += results


@pytest.mark.network
async def test_an_agent_on_a_node_pays_once_under_the_fence_of_the_claim_it_won() -> None:
    paid: list[Any] = []

    def pay(params: Any, fence: Fence) -> dict[str, Any]:
        paid.append((fence.task_id, fence.token, params["n"]))
        return {"paid": params["n"]}

    tools = ToolRegistry(allowlist=["pay"])
    tools.register(FunctionTool(pay, side_effects=True))
    with trio.fail_after(60):
        async with Node(identity=who(1), listen=LOOPBACK) as node:
            pool = await node.create_pool("demo")
            await node.host(Spender(node.public_key), tools=tools)
            handle = await pool.submit(Task("pay"))
            result = await handle.result()
    assert result.value == {"paid": 5}
    assert len(paid) == 1
    assert (paid[0][0], paid[0][2]) == (handle.id, 5)
