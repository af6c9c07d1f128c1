"""What the fold shows: a task to an application, and the decided state of the pool as canonical bytes.

Knows: which parts of the fold are decided. Must not know: how they came about.
Source: `docs/protocol.md`, fold.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from converge_p2p.core.codec import encode
from converge_p2p.core.model.task import TaskState, TaskView
from converge_p2p.core.types import TaskId

if TYPE_CHECKING:
    from converge_p2p.core.view.fold import View


def state_of(view: View) -> bytes:
    """Canonical bytes of the decided state: equal on all replicas that hold the same operations."""
    decided: dict[TaskId, list[object]] = {task: [1, final] for task, final in view.compacted.endings()}
    decided.update((task, register.decided()) for task, register in view.registers.items())
    tasks = [[task, *decided[task]] for task in sorted(decided) if decided[task]]
    frozen = [[author, seq] for author, seq in sorted(view.members.frozen().items())]
    expelled = [[author, length] for author, length in sorted(view.members.expelled().items())]
    epoch = [view.epochs.number, view.epochs.current.hash] if len(view.epochs) else None
    coordination = view.coordination.state()
    return encode(
        [
            view.pool,
            epoch,
            view.members.all(),
            frozen,
            expelled,
            view.successions.state(),
            view.motions.state(),
            tasks,
            coordination,
        ]
    )


def task_view(view: View, task: TaskId, *, expired: bool) -> TaskView | None:
    """A task as an application sees it, or None if no submit of it is known.

    Args:
        expired: what the caller knows from local timers: the holder's time is over.
    """
    register = view.registers.get(task)
    if register is None or register.submitted is None:
        return None
    submitted, top = register.submitted, register.top
    state, holder = register.state, register.holder
    shown = register.settled_token if state.terminal else top
    return TaskView(
        id=task,
        pool_id=view.pool,
        submitter=submitted.author,
        spec=submitted.spec,
        state=state,
        epoch=0 if shown is None else shown.epoch,
        round=-1 if shown is None else shown.round,
        assigned_to=holder.author if state is TaskState.ASSIGNED and holder is not None else None,
        value=register.final,
        awaiting=register.awaiting,
        unjudged=tuple(register.to_judge()),
        reported=tuple(register.reported()),
        attempts=register.attempts(),
        certified=state is not TaskState.PENDING,
        expired=expired,
    )
