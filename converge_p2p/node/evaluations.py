"""Judges the results of a pool's tasks with a function of the application.

Knows: which results wait for a verdict, and how foreign code is run so that it harms nobody. Must not know: what an
elector makes of a verdict.
Source: `docs/protocol.md`, evaluators.

What waits is kept in memory only: after a restart the replica says again what it has no verdict on.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import trio

from converge_p2p.core import limits
from converge_p2p.core.errors import ConvergeError, LocalError
from converge_p2p.core.model.task import TaskValue, TaskView
from converge_p2p.core.types import TaskId, ValueHash
from converge_p2p.runtime.attempt import clip
from converge_p2p.runtime.threads import BoundedThreads

if TYPE_CHECKING:
    from converge_p2p.node.handles import PoolHandle

_logger = logging.getLogger(__name__)

EvaluationFunction: TypeAlias = Callable[[TaskView, Any], bool | Awaitable[bool]]
"""Whether a result, decoded, is good for a task."""


class Evaluations:
    """Results of one pool that wait for a verdict, and those that are being judged."""

    def __init__(self, pool: PoolHandle, function: EvaluationFunction) -> None:
        """Begin with nothing to judge."""
        self._pool = pool
        self._function = function
        self._threads = BoundedThreads(limits.EVALUATIONS_AT_ONCE_MAX)
        self._known: dict[tuple[TaskId, ValueHash], TaskValue] = {}
        # no more wait than results of open tasks, which are bounded
        self._send, self._receive = trio.open_memory_channel[tuple[TaskId, ValueHash]](float("inf"))

    def look(self, view: TaskView) -> None:
        """Judge what waits for this node's verdict on a task, each result once."""
        if view.sealed or not self._pool.judges(view):
            return
        for value in view.unjudged:
            if (view.id, value.hash) not in self._known:
                self._known[view.id, value.hash] = value
                self._send.send_nowait((view.id, value.hash))

    async def run(self) -> None:
        """Judge, several at once, for as long as the node runs."""
        async with trio.open_nursery() as nursery:
            for _ in range(limits.EVALUATIONS_AT_ONCE_MAX):
                nursery.start_soon(self._work)

    async def _work(self) -> None:
        while True:
            task, name = await self._receive.receive()
            view, value = self._pool.find_task(task), self._known[task, name]
            try:
                if view is not None and not view.state.terminal:
                    await self._judge(view, value)
            finally:
                del self._known[task, name]

    async def _judge(self, view: TaskView, value: TaskValue) -> None:
        approve, reason = await self._ask(view, value)
        try:
            await self._pool.judge(view.id, approve, reason, value=value.hash)
        except LocalError as error:
            # it was settled or cancelled in the meantime, or this node left the pool
            _logger.info("no verdict on task %s: %s", view.id.hex()[:12], error, extra={"task": view.id.hex()})

    async def _ask(self, view: TaskView, value: TaskValue) -> tuple[bool, str]:
        """What the function says, and why. Whatever it raises denies the result."""
        try:
            result = await self._pool.blobs.bring_value(value.result, value.worker)
            view = await self._pool.blobs.bring(view)
        except ConvergeError as error:
            return False, clip(f"the result cannot be read: {error}")
        try:
            said = await self._threads.call(self._function, view, result)
        except Exception as error:
            _logger.warning(
                "the evaluator failed on task %s", view.id.hex()[:12], exc_info=error, extra={"task": view.id.hex()}
            )
            return False, clip(f"the evaluator failed: {type(error).__name__}: {error}")
        return said is True, "" if said is True else "the evaluator denied it"
