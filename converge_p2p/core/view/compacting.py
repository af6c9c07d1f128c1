"""A fold lets go of tasks that were settled below a checkpoint, and takes one up again if something late comes for it.

Knows: which tables of a view a task stands in. Must not know: cuts, snapshots, or when a checkpoint is in force.
Source: `docs/protocol.md`, checkpoints.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from converge_p2p.core.types import TaskId
from converge_p2p.core.view.past import Past, PastTask
from converge_p2p.core.view.settled import SettledTable
from converge_p2p.core.view.vetoes import veto_subject

if TYPE_CHECKING:
    from converge_p2p.core.view.fold import View


def settled_for_good(view: View) -> dict[TaskId, Past]:
    """Tasks of which only how they ended will matter, and what is to be kept of them."""
    found = {}
    for task, register in view.registers.items():
        past = view.trust.past(register) if register.settled is not None else None
        if past is not None and past != view.compacted.get(task):
            found[task] = past
    return found


def table_of(view: View) -> SettledTable:
    """The table of all tasks that were settled for good."""
    return view.trust.extended(settled_for_good(view))


def compact(view: View, table: SettledTable) -> list[TaskId]:
    """Keep nothing but a table of the tasks in it.

    A task of which more is known here than inside the cut stays registered: what came later is in no table yet.

    Returns:
        The tasks that were registered here and no longer are.
    """
    gone = [
        task for task, register in view.registers.items()
        if task in table and view.trust.past(register) == table.get(task)
    ]  # fmt: skip
    begin_from(view, table, gone)
    return gone


def begin_from(view: View, table: SettledTable, gone: list[TaskId]) -> None:
    """Let a table stand for its tasks, except for those that stay registered. Only if its epochs are known."""
    stand_in(view, table, gone)
    for task in table.strayed():
        # a vote for another value binds electors that do not know the end, so it has to be looked at
        if task not in view.registers and recall(view, task) is not None:
            view.strays[task] = None


def stand_in(view: View, table: SettledTable, gone: list[TaskId]) -> None:
    """Let a table stand for its tasks, and forget what is registered of some of them."""
    for task in gone:
        del view.registers[task]
        view.open.pop(task, None)
    view.trust.begin_from(table, gone)
    whole = {register.task.id for register in view.vetoes.registers.values() if register.task.id in view.registers}
    view.vetoes.close(frozenset(veto_subject(task, value) for task, value in table.asked() if task not in whole))


def recall(view: View, task: TaskId) -> PastTask | None:
    """Take up a task of the table again, for something about it came; None if it is in no table."""
    past = view.compacted.get(task)
    if past is None:
        return None
    register = PastTask(task, view.epochs, past)
    view.trust.recall(register)
    view.registers[task] = register
    return register


def become(view: View, other: View) -> None:
    """Let a view be the same fold as another of its pool from now on. Nobody else may go on using that one."""
    assert other.pool == view.pool
    # registers made there ask it for what was carried: so not the parts are taken over, but all there is
    view.__dict__ = other.__dict__
