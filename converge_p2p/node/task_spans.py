"""The spans of tasks, from what one node proposes and hears: submit, claim, grant, execute, report, settle.

Knows: commands and notices of one pool, and which span each begins or ends. Must not know: who records them.
Source: `docs/observability.md`, traces. A task's trace follows from its id (`core.model.trace`), so that the spans
of all nodes fit together although nothing about them is sent.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from converge_p2p.core import limits
from converge_p2p.core.model.task import TaskSpec, TaskState, TaskView, task_id
from converge_p2p.core.model.trace import asked_in, context_of
from converge_p2p.core.replica import events as ev
from converge_p2p.core.replica.machine import Replica
from converge_p2p.core.types import TaskId
from converge_p2p.runtime.tracing import OpenSpan, Tracer

WHOLE: Final = "task"
SUBMIT: Final = "task.submit"
CLAIM: Final = "task.claim"
GRANT: Final = "task.grant"
EXECUTE: Final = "task.execute"
REPORT: Final = "task.report"
SETTLE: Final = "task.settle"


class TaskSpans:
    """The spans of one pool's tasks, in one node."""

    def __init__(self, tracer: Tracer, replica: Replica) -> None:
        """Begin with none.

        Args:
            tracer: makes them.
            replica: of the pool; only read.
        """
        self._tracer = tracer
        self._replica = replica
        self._open: OrderedDict[tuple[TaskId, str], OpenSpan] = OrderedDict()

    def __len__(self) -> int:
        """Return how many spans have begun and not ended."""
        return len(self._open)

    def proposed(self, command: object) -> None:
        """This node submits a task, claims it, reports it, or gives it back."""
        match command:
            case ev.Submit(spec):
                self._submitted(self._unsent(spec))
            case ev.Claim(task):
                if (task, CLAIM) not in self._open and (task, EXECUTE) not in self._open:
                    self._begin(task, CLAIM)
            case ev.Report(task):
                parent = self._end(task, EXECUTE)
                self._begin(task, REPORT, parent)
            case ev.Release(task, _, reason):
                for kind in (CLAIM, EXECUTE, REPORT):
                    self._end(task, kind, f"given back: {reason}"[: limits.TEXT_BYTES_MAX])

    def heard(self, notice: ev.Notice) -> None:
        """Something about a task is certain now."""
        if isinstance(notice, ev.TaskChanged):
            # what this node submitted is on disk, and is told to others
            self._end(notice.task, SUBMIT)
        match notice:
            case ev.ClaimWon(task, epoch, number):
                parent = self._end(task, CLAIM, epoch=epoch, round=number)
                if (task, EXECUTE) not in self._open:
                    self._begin(task, EXECUTE, parent, epoch=epoch, round=number)
            case ev.ClaimLost(task, _, _, reason):
                for kind in (CLAIM, EXECUTE, REPORT):
                    self._end(task, kind, f"lost: {reason}"[: limits.TEXT_BYTES_MAX])
            case ev.TaskChanged(task, TaskState.PENDING) if self._replica.is_elector:
                self._end(task, SETTLE, "the round failed")
                if (task, GRANT) not in self._open:
                    self._begin(task, GRANT)
            case ev.TaskChanged(task, TaskState.ASSIGNED, epoch, number) if self._replica.is_elector:
                self._end(task, GRANT, epoch=epoch, round=number)
                if (task, SETTLE) not in self._open:
                    self._begin(task, SETTLE)
            case ev.TaskChanged(task, state) if state.terminal:
                for kind in (SUBMIT, CLAIM, GRANT, EXECUTE, REPORT, SETTLE, WHOLE):
                    self._end(task, kind, state=state.value)

    def _submitted(self, view: TaskView) -> None:
        if (view.id, WHOLE) in self._open or self._find(view.id) is not None:
            # it was submitted before
            return
        said, whole = self._said(view.id), context_of(view)
        span = self._tracer.begin(
            WHOLE, asked_in(view), context=whole, attributes={**said, "objective": view.objective}
        )
        self._keep(view.id, WHOLE, span)
        self._keep(view.id, SUBMIT, self._tracer.begin(SUBMIT, whole, attributes=said))

    def _unsent(self, spec: TaskSpec) -> TaskView:
        """Return a task as it is before anybody heard of it."""
        pool, author = self._replica.pool, self._replica.identity.public_key
        return TaskView(
            task_id(pool, author, self._replica.contents.task_key(spec.key)), pool, author, spec, TaskState.PENDING
        )

    def _find(self, task: TaskId) -> TaskView | None:
        view = self._replica.view.task(task, expired=False)
        return None if view is None else self._replica.contents.open_view(view)

    def _begin(self, task: TaskId, kind: str, parent: OpenSpan | None = None, **more: int) -> None:
        view = self._find(task)
        if parent is None and view is None:
            return
        above = parent.context if parent is not None else context_of(view) if view is not None else None
        self._keep(task, kind, self._tracer.begin(kind, above, attributes={**self._said(task), **more}))

    def _keep(self, task: TaskId, kind: str, span: OpenSpan | None) -> None:
        if span is None:
            return
        self._open[task, kind] = span
        if len(self._open) > limits.TRACE_SPANS_OPEN_MAX:
            self._open.popitem(last=False)[1].end("too many spans were open")

    def _end(self, task: TaskId, kind: str, error: str = "", **more: int | str) -> OpenSpan | None:
        span = self._open.pop((task, kind), None)
        if span is not None:
            span.end(error, **more)
        return span

    def _said(self, task: TaskId) -> dict[str, str]:
        return {"pool": self._replica.pool.hex(), "task": task.hex(), "node": self._tracer.node}
