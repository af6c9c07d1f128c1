"""Tasks at the control interface.

Knows: requests and answers, and pools through `control.ports`. Must not know: HTTP.
Source: docs/control.md.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import trio

from converge_node.control import evidence, motions, views
from converge_node.control.ports import PoolLike
from converge_node.control.state import Asked, Endpoint
from converge_node.control.stream import Open
from converge_p2p.client import schema
from converge_p2p.core.model.task import TaskView
from converge_p2p.core.types import TaskId


async def tasks(asked: Asked) -> schema.TaskList:
    """Return tasks of a pool."""
    query = asked.query
    found = [
        view
        for view in asked.pool().tasks()
        if query.state in (None, view.state.value) and query.objective in (None, view.objective)
    ]
    shown = [views.task_item(view) for view in found[query.offset : query.offset + query.limit]]
    return schema.TaskList(tasks=shown, total=len(found))


async def submit(asked: Asked) -> schema.TaskDetail:
    """Submit a task. Raises as `PoolHandle.submit`."""
    return views.task_detail((await asked.pool().submit(views.task_of(asked.body))).view)


async def submit_home(asked: Asked) -> schema.TaskDetail:
    """Submit a task to the home pool. Raises as `Node.submit`."""
    node = asked.node
    wanted, before = views.task_of(asked.body), set(node.pools)
    home = await node.home_pool()
    if home.id not in before:
        asked.state.pool_joined(home)
    return views.task_detail((await node.submit(wanted)).view)


async def task(asked: Asked) -> schema.TaskDetail:
    """Return a task with its inputs and result."""
    return views.task_detail(views.find_task(asked.pool(), asked.places["task"]))


async def cancel(asked: Asked) -> schema.TaskDetail:
    """Cancel a task. Raises as `PoolHandle.cancel`."""
    pool, task_id = asked.pool_and_task()
    await pool.cancel(task_id, reason=asked.body.reason)
    return views.task_detail(pool.task(task_id))


async def veto(asked: Asked) -> schema.TaskDetail:
    """Deny a result. Raises as `PoolHandle.veto`."""
    pool, task_id = asked.pool_and_task()
    await pool.veto(task_id, reason=asked.body.reason)
    return views.task_detail(pool.task(task_id))


async def let_pass(asked: Asked) -> schema.TaskDetail:
    """Let a result pass. Raises as `PoolHandle.let_pass`."""
    pool, task_id = asked.pool_and_task()
    await pool.let_pass(task_id, reason=asked.body.reason)
    return views.task_detail(pool.task(task_id))


async def judge(asked: Asked) -> schema.TaskDetail:
    """Approve or deny a result. Raises as `PoolHandle.judge`."""
    (pool, task_id), body = asked.pool_and_task(), asked.body
    await pool.judge(task_id, body.approve, body.reason, value=views.value_hash(body.value))
    return views.task_detail(pool.task(task_id))


async def dispute(asked: Asked) -> schema.MotionItem:
    """Put a result to the electors. Raises as `motions.dispute`."""
    pool, task_id = asked.pool_and_task()
    return motions.motion_item(pool, await motions.dispute(pool, task_id, asked.body))


async def list_evidence(asked: Asked) -> list[schema.EvidenceItem]:
    """Return what was cited for and against results."""
    return evidence.evidence_items(*asked.pool_and_task())


async def cite(asked: Asked) -> list[schema.EvidenceItem]:
    """Cite evidence. Raises as `evidence.cite`."""
    return await evidence.cite(*asked.pool_and_task(), asked.body)


async def watch_pool(asked: Asked) -> Open:
    """Return what opens the changes of a pool's tasks."""
    return _source(asked.pool(), None)


async def watch_task(asked: Asked) -> Open:
    """Return what opens the changes of a task."""
    return _source(*asked.pool_and_task())


def _source(pool: PoolLike, task_id: TaskId | None) -> Open:
    @asynccontextmanager
    async def source() -> AsyncIterator[AsyncGenerator[object, None]]:
        async with pool.watch() as changes:
            yield _changes(pool, changes, task_id)

    return source


async def _changes(
    pool: PoolLike, changes: trio.MemoryReceiveChannel[TaskView], task_id: TaskId | None
) -> AsyncGenerator[object, None]:
    """Yield every change; of one task: its present state first, and nothing after it is settled.

    The channel is open before the present state is read, so that no change falls between the two.
    """
    if task_id is None:
        async for view in changes:
            yield views.task_item(view)
        return
    view = pool.task(task_id)
    yield views.task_detail(view)
    if view.state.terminal:
        return
    async for view in changes:
        if view.id == task_id:
            yield views.task_detail(view)
            if view.state.terminal:
                return


ENDPOINTS: Final[dict[str, Endpoint]] = {
    "tasks": tasks,
    "submit": submit,
    "submit_home": submit_home,
    "task": task,
    "watch_pool": watch_pool,
    "watch_task": watch_task,
    "cancel": cancel,
    "veto": veto,
    "let_pass": let_pass,
    "judge": judge,
    "dispute": dispute,
    "evidence": list_evidence,
    "cite": cite,
}
