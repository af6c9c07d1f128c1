"""Fencing tokens of claims that this node holds, and the end of work whose claim is lost.

Knows: a pool's handle. Must not know: tools (see `runtime.tools`), or who decides about claims.
Source: `runtime.fencing`; `docs/tools.md`, effects.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from converge_p2p.core.errors import ClaimLost
from converge_p2p.core.model.task import TaskState, TaskView
from converge_p2p.core.types import PublicKey, TaskId
from converge_p2p.node.handles import PoolHandle
from converge_p2p.runtime.fencing import Fence

CERTIFICATE_WAIT_S = 30.0

_T = TypeVar("_T")


async def run_fenced(pool: PoolHandle, own: PublicKey, task_id: TaskId, work: Callable[[Fence], Awaitable[_T]]) -> _T:
    """Do work for a task while this node holds it. See `FencePort.run_fenced`."""
    async with pool.watch() as changes:
        fence = await _wait_certified(pool, own, task_id, changes)
        lost, done, failure = False, list[_T](), list[Exception]()
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                nonlocal lost
                async for _ in changes:
                    if _held(pool.task(task_id), own) != fence:
                        break
                lost = True
                nursery.cancel_scope.cancel()

            async def do() -> None:
                try:
                    done.append(await work(fence))
                except Exception as error:  # noqa: BLE001 - raised again below, outside of the nursery's group
                    failure.append(error)
                nursery.cancel_scope.cancel()

            nursery.start_soon(watch)
            nursery.start_soon(do)
    if done:
        return done[0]
    if failure:
        raise failure[0]
    assert lost
    raise ClaimLost(f"the claim of task {task_id.hex()[:12]} was lost while the work went on; it was ended")


async def _wait_certified(
    pool: PoolHandle, own: PublicKey, task_id: TaskId, changes: trio.MemoryReceiveChannel[TaskView]
) -> Fence:
    with trio.move_on_after(CERTIFICATE_WAIT_S):
        while True:
            view = pool.task(task_id)
            fence = _held(view, own)
            if fence is not None:
                return fence
            if view.state.terminal:
                raise ClaimLost(f"task {task_id.hex()[:12]} is settled")
            if not pool.claim_stands(task_id, own):
                raise ClaimLost(f"this node does not stand for task {task_id.hex()[:12]}", hint="claim it first")
            if view.state is TaskState.ASSIGNED and view.assigned_to != own and not view.expired:
                raise ClaimLost(f"task {task_id.hex()[:12]} is held by somebody else")
            try:
                await changes.receive()
            except trio.EndOfChannel:
                raise ClaimLost("this node left the pool") from None
    raise ClaimLost(f"the claim of task {task_id.hex()[:12]} was not certified within {CERTIFICATE_WAIT_S:g} s")


def _held(view: TaskView, own: PublicKey) -> Fence | None:
    held = view.state is TaskState.ASSIGNED and view.certified and view.assigned_to == own
    return Fence(view.id, view.epoch, view.round) if held else None
