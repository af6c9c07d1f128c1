"""The tasks of one pool, as its workers see them.

Knows: which commands of the replica a worker's wishes are. Must not know: handlers.
Source: `runtime.ports.TaskWorkPort`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from converge_p2p.core.model.task import Outcome, TaskState, TaskView
from converge_p2p.core.replica import events as ev
from converge_p2p.core.replica.renewal import renewal_interval_ms
from converge_p2p.core.types import PublicKey, TaskId

if TYPE_CHECKING:
    from converge_p2p.node.handles import PoolHandle


class WorkPort:
    """A `runtime.ports.TaskWorkPort` of one pool."""

    def __init__(self, pool: PoolHandle, own: PublicKey) -> None:
        """Make the port of a pool in the name of a key."""
        self._pool = pool
        self._own = own

    def claim(self, task_id: TaskId) -> None:
        self._pool.driver.propose(ev.Claim(task_id))

    def release(self, task_id: TaskId, failed: bool, reason: str) -> None:
        self._pool.driver.propose(ev.Release(task_id, failed, reason))

    def report(self, task_id: TaskId, outcome: Outcome, result: bytes) -> None:
        self._pool.driver.propose(ev.Report(task_id, outcome, result))

    def renew(self, task_id: TaskId, fraction: int, note: str) -> None:
        self._pool.driver.propose(ev.Renew(task_id, fraction, note))

    def renewal_interval_s(self, view: TaskView, round_: int) -> float:
        return renewal_interval_ms(view.spec.claim_ttl_ms or self._pool.spec.policy.claim_ttl_ms, round_) / 1000

    def pending(self, objectives: frozenset[str], capabilities: frozenset[str]) -> Iterator[TaskView]:
        for view in self._pool.open_tasks():
            fits = view.objective in objectives and capabilities.issuperset(view.spec.required_capabilities)
            if fits and (view.claimable or (view.state is TaskState.ASSIGNED and view.assigned_to == self._own)):
                yield view
