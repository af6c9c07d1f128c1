"""The tasks of a pool, as its workers see them.

Knows: a pool's handle. Must not know: how workers choose.
Source: `runtime.ports`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from converge_p2p.core.model.pool import AssignmentRule
from converge_p2p.core.model.task import Outcome, TaskState, TaskView
from converge_p2p.core.replica import events as ev
from converge_p2p.core.types import PublicKey, TaskId

if TYPE_CHECKING:
    from converge_p2p.node.handles import PoolHandle


class WorkPort:
    """The tasks of one pool, as its workers see them (`runtime.ports.TaskWorkPort`)."""

    def __init__(self, pool: PoolHandle, key: PublicKey) -> None:
        self._pool = pool
        self._key = key

    def claim(self, task_id: TaskId) -> None:
        """Stand for a task."""
        self._pool.driver.propose(ev.Claim(task_id))

    def release(self, task_id: TaskId, failed: bool, reason: str) -> None:
        """Give a claim back."""
        self._pool.driver.propose(ev.Release(task_id, failed, reason))

    def report(self, task_id: TaskId, outcome: Outcome, result: bytes) -> None:
        """Report finished work."""
        self._pool.driver.propose(ev.Report(task_id, outcome, result))

    def renew(self, task_id: TaskId, fraction: int, note: str) -> None:
        """Say that the work goes on."""
        self._pool.driver.propose(ev.Renew(task_id, fraction, note))

    def renewal_interval_s(self, view: TaskView, round_: int) -> float:
        """How often to say so, in seconds."""
        return self._pool.renewal_interval_s(view, round_)

    def in_turn(self) -> bool:
        """Whether the pool takes the first claim for as good as any, and one worker for each task."""
        spec = self._pool.driver.replica.view.spec
        return spec is not None and spec.policy.assignment is AssignmentRule.FIRST and not spec.model.speculative

    def pending(self, objectives: frozenset[str], capabilities: frozenset[str]) -> Iterator[TaskView]:
        """The open tasks that could be worked on."""
        own = self._key
        for view in self._pool.open_tasks():
            fits = view.objective in objectives and capabilities.issuperset(view.spec.required_capabilities)
            if fits and (view.claimable or (view.state is TaskState.ASSIGNED and view.assigned_to == own)):
                yield view

    def stands(self, task_id: TaskId) -> bool:
        """Whether a claim of this node to work on the task stands, of this run or an earlier one."""
        return self._pool.claim_stands(task_id, self._key)
