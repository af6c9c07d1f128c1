"""What a node measures of the tasks of one pool: how many, how they end, and how long everything takes.

Knows: commands and notices. Must not know: what is done with the numbers (see `runtime.metrics`).
Source: `docs/observability.md`. What was there before the start is not counted again; its age counts from the start.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from converge_p2p.core import limits
from converge_p2p.core.model.task import TaskState
from converge_p2p.core.oplog.motions import MotionKind
from converge_p2p.core.replica import events as ev
from converge_p2p.core.replica.machine import Replica
from converge_p2p.core.types import TaskId
from converge_p2p.node.task_spans import TaskSpans
from converge_p2p.runtime.metrics import Metrics

_DISPUTES = {MotionKind.CHANGE: "change", MotionKind.REJECT_RESULT: "dispute", MotionKind.RIVAL_REPORTS: "rivals"}


class TaskWatcher:
    """Watches one pool. The driver tells it of each command that was taken and of each notice, in order."""

    def __init__(self, replica: Replica, metrics: Metrics, spans: TaskSpans | None, clock: Callable[[], float]) -> None:
        """Begin with the tasks that are open.

        Args:
            replica: of the pool; only read.
            metrics: where it is counted.
            spans: told of all of it, too; None if nothing is traced.
            clock: seconds, never backwards.
        """
        self._replica = replica
        self._metrics = metrics
        self._spans = spans
        self._clock = clock
        self._open: OrderedDict[TaskId, float] = OrderedDict()
        self._held: OrderedDict[TaskId, float] = OrderedDict()
        self._asked: OrderedDict[TaskId, float] = OrderedDict()
        now = clock()
        for task in replica.view.open:
            if task in replica.view.registers and len(self._open) < limits.TASKS_TIMED_MAX:
                self._open[task] = now

    def oldest_s(self) -> tuple[float, float]:
        """Return how long ago the oldest task that is not settled was heard of, and the oldest one held was granted.

        Seconds; 0 if there is none.
        """
        now = self._clock()
        return tuple(now - next(iter(table.values()), now) for table in (self._open, self._held))  # type: ignore[return-value]

    def command(self, command: object) -> None:
        """This node signed something."""
        match command:
            case ev.Claim(task):
                self._metrics.add("claims", label="asked")
                _note(self._asked, task, self._clock())
            case ev.Veto(deny=True):
                self._metrics.add("vetoes")
            case ev.Submit():
                self._metrics.add("tasks_submitted")
            case ev.Report():
                self._metrics.add("results_reported")
        if self._spans is not None:
            self._spans.proposed(command)

    def notice(self, notice: ev.Notice) -> None:
        """Something is certain now."""
        match notice:
            case ev.TaskChanged(task, state):
                self._changed(task, state)
            case ev.ClaimWon(task):
                self._metrics.add("claims", label="granted")
                self._took("claim_grant", self._asked.pop(task, None))
            case ev.ClaimLost(task):
                self._metrics.add("claims", label="lost")
                self._asked.pop(task, None)
            case ev.MotionMoved(name):
                motion = self._replica.view.motions.get(name)
                self._metrics.add("motions", label="void" if motion is None else _DISPUTES[motion.kind])
            case ev.ForkDetected():
                self._metrics.add("forks")
            case ev.EpochInstalled():
                self._metrics.add("epochs")
            case ev.Compacted():
                self._metrics.add("checkpoints")
        if self._spans is not None:
            self._spans.heard(notice)

    def _changed(self, task: TaskId, state: TaskState) -> None:
        if state.terminal:
            self._metrics.add("settlements", label=state.value)
            self._took("task_settle", self._open.pop(task, None))
            self._took("claim_settle", self._held.pop(task, None))
            self._asked.pop(task, None)
            return
        if task not in self._open:
            self._metrics.add("tasks_heard")
            _note(self._open, task, self._clock())
        if state is TaskState.ASSIGNED:
            self._metrics.add("grants")
            _note(self._held, task, self._clock())
        else:
            self._held.pop(task, None)

    def _took(self, name: str, began: float | None) -> None:
        if began is not None:
            self._metrics.observe(name, self._clock() - began)


def _note(table: OrderedDict[TaskId, float], task: TaskId, now: float) -> None:
    table[task] = now
    table.move_to_end(task)
    if len(table) > limits.TASKS_TIMED_MAX:
        table.popitem(last=False)
