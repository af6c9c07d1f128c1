"""Which task to claim next: the tasks one handler could do, kept in order as they change.

Knows: order, deferral and bounds. Must not know: how a task is claimed or done. Pure: time comes in as a value.
Source: rendezvous hashing (Thaler and Ravishankar, 1998): workers prefer different tasks without talking.

The order is priority, then how often the task failed here, then the rank that the electors would give a claim of this
worker in a first round, so that a worker prefers the tasks it gets. Each change costs O(log n);
entries that went stale stay in the heap until they come up, or until they outnumber the valid ones.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from dataclasses import dataclass

from converge_p2p.core import limits
from converge_p2p.core.model.task import TaskView
from converge_p2p.core.replica.ranking import claim_rank
from converge_p2p.core.types import PublicKey, TaskId
from converge_p2p.runtime.turns import Turns

DEFER_S = 0.1
DEFER_S_MAX = 10.0

_Order = tuple[int, int, bytes]


@dataclass(slots=True)
class _Candidate:
    view: TaskView
    order: _Order
    ready_at: float
    for_others: bool
    """It waits only because it is the turn of others."""


class Candidates:
    """The open tasks of one handler.

    Attributes:
        turns: whose turn a task is that nobody claimed yet.
        dropped: tasks that did not fit. While there are such, `incomplete` is True and the caller reads the pending
            tasks again when it runs out of candidates.
    """

    def __init__(self, worker: PublicKey, candidates_max: int = limits.WORK_CANDIDATES_MAX) -> None:
        """Make an empty set.

        Args:
            worker: whose preferences these are.
            candidates_max: bound of the set.
        """
        self._worker = worker
        self.turns = Turns(worker)
        self._candidates_max = candidates_max
        self._open: dict[TaskId, _Candidate] = {}
        self._ready: list[tuple[_Order, TaskId]] = []
        self._deferred: list[tuple[float, TaskId]] = []
        self._for_others: list[tuple[_Order, TaskId]] = []
        self._put_off: OrderedDict[TaskId, tuple[int, float]] = OrderedDict()
        self.incomplete = False
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._open)

    def __contains__(self, task_id: TaskId) -> bool:
        return task_id in self._open

    def put(self, view: TaskView, now: float, *, in_turn: bool = False) -> None:
        """Add an open task, or renew its view. One that was put off stays so until its time.

        Args:
            view: the task.
            now: monotonic time in seconds.
            in_turn: leave it for a while to those whose turn it is.
        """
        known = self._open.get(view.id)
        if known is not None:
            # what the order rests on is in the signed task and cannot have changed
            known.view = view
            return
        if len(self._open) >= self._candidates_max:
            self.incomplete = True
            self.dropped += 1
            return
        failures, not_before = self._put_off.get(view.id, (0, 0.0))
        put_off = not_before > now
        if in_turn and view.round < 0:
            not_before = max(not_before, now + self.turns.wait_s(view.id, now))
        order = (-view.spec.priority, failures, claim_rank(view.id, 0, self._worker))
        ready_at = not_before if not_before > now else 0.0
        for_others = bool(ready_at) and not put_off
        self._open[view.id] = _Candidate(view, order, ready_at, for_others)
        if ready_at:
            heapq.heappush(self._deferred, (ready_at, view.id))
        else:
            heapq.heappush(self._ready, (order, view.id))
        if for_others:
            heapq.heappush(self._for_others, (order, view.id))
        if max(len(self._ready) + len(self._deferred), len(self._for_others)) > 2 * len(self._open) + 64:
            self._rebuild()

    def put_off(self, task_id: TaskId, now: float) -> None:
        """Remember that a task did not work out here: it waits, longer after each time, so that others get it."""
        self._open.pop(task_id, None)
        failures = self._put_off.pop(task_id, (0, 0.0))[0] + 1
        self._put_off[task_id] = (failures, now + min(DEFER_S_MAX, DEFER_S * 2.0 ** min(failures - 1, 16)))
        if len(self._put_off) > limits.WORK_MEMORY_TASKS_MAX:
            self._put_off.popitem(last=False)

    def remove(self, task_id: TaskId) -> None:
        """Take a task out that is not open any more."""
        self._open.pop(task_id, None)

    def forget(self, task_id: TaskId) -> None:
        """Take a task out that is settled, and what is remembered of it."""
        self._open.pop(task_id, None)
        self._put_off.pop(task_id, None)

    def take(self, now: float) -> TaskView | None:
        """Take the best task out that is ready, or return None.

        One that is left to others goes before one of lower priority: who claims that may be busy with it for hours.
        """
        self._promote(now)
        best = self._first(self._ready, for_others=False)
        if best is None:
            return None
        left = self._first(self._for_others, for_others=True)
        if left is not None and left.order[0] < best.order[0]:
            best = left
        del self._open[best.view.id]
        return best.view

    def _first(self, heap: list[tuple[_Order, TaskId]], *, for_others: bool) -> _Candidate | None:
        while heap:
            order, task_id = heap[0]
            found = self._open.get(task_id)
            # what is left to others waits, so that it is not ready either
            if found is not None and found.order == order and (found.for_others if for_others else not found.ready_at):
                return found
            heapq.heappop(heap)
        return None

    def next_ready(self) -> float | None:
        """Return when the first deferred task gets ready, or None."""
        while self._deferred:
            ready_at, task_id = self._deferred[0]
            candidate = self._open.get(task_id)
            if candidate is not None and candidate.ready_at == ready_at:
                return ready_at
            heapq.heappop(self._deferred)
        return None

    def _promote(self, now: float) -> None:
        while (ready_at := self.next_ready()) is not None and ready_at <= now:
            _, task_id = heapq.heappop(self._deferred)
            candidate = self._open[task_id]
            candidate.ready_at, candidate.for_others = 0.0, False
            heapq.heappush(self._ready, (candidate.order, task_id))

    def _rebuild(self) -> None:
        # a task that flaps between open and claimed leaves an entry each time
        self._ready = [(one.order, task_id) for task_id, one in self._open.items() if not one.ready_at]
        self._deferred = [(one.ready_at, task_id) for task_id, one in self._open.items() if one.ready_at]
        self._for_others = [(one.order, task_id) for task_id, one in self._open.items() if one.for_others]
        heapq.heapify(self._for_others)
        heapq.heapify(self._ready)
        heapq.heapify(self._deferred)
