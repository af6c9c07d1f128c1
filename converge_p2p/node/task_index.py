"""Which open tasks an agent could act on: an index that notices keep, so that nobody has to look through all tasks.

Knows: tasks, what each requires, and their order. Must not know: agents, or who stands for a task.
Source: `docs/concepts.md`, outcomes and waking; design rule "every table is bounded, and what is dropped is counted".

Tasks are grouped by what they require. There are few such groups and many tasks, so that a look-up costs as much as it
returns, and a change one insertion.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from converge_p2p.core import limits
from converge_p2p.core.model.task import TaskState, TaskView
from converge_p2p.core.types import PoolId, PublicKey, TaskId

Needs = frozenset[str]


class Entry(NamedTuple):
    """A task in the order in which it is offered: the most important first, then the one that came first."""

    before: int
    number: int
    pool: PoolId
    task: TaskId


class TaskIndex:
    """The open tasks of all pools that somebody here could act on.

    Attributes:
        left_out: how often a task was not kept for want of room.
    """

    def __init__(self, own: PublicKey, refill: Callable[[], Iterable[TaskView]]) -> None:
        """Make an empty index; `fill` reads what is there.

        Args:
            own: whose assigned tasks are kept, too.
            refill: returns every open task of every pool.
        """
        self._own = own
        self._refill = refill
        self._entries: dict[tuple[PoolId, TaskId], tuple[Needs, Entry]] = {}
        self._groups: dict[Needs, list[Entry]] = {}
        self._number = 0
        self._incomplete = False
        self.left_out = 0

    def __len__(self) -> int:
        """Return how many tasks are kept."""
        return len(self._entries)

    def fill(self) -> None:
        """Read what is open now, in place of what was kept."""
        self._entries.clear()
        self._groups.clear()
        self._incomplete = False
        for view in self._refill():
            self.put(view)

    def put(self, view: TaskView) -> bool:
        """Note how a task looks now; say whether it can be acted on."""
        name, needs = (view.pool_id, view.id), frozenset(view.spec.required_capabilities)
        if not (view.claimable or (view.state is TaskState.ASSIGNED and view.assigned_to == self._own)):
            self.drop(*name)
            return False
        known = self._entries.get(name)
        if known is not None and known[0] == needs and known[1].before == -view.spec.priority:
            return True
        if known is not None:
            self.drop(*name)
        if len(self._entries) >= limits.WORK_CANDIDATES_MAX:
            self._incomplete = True
            self.left_out += 1
            return False
        self._number += 1
        entry = Entry(-view.spec.priority, self._number, view.pool_id, view.id)
        self._entries[name] = (needs, entry)
        insort(self._groups.setdefault(needs, []), entry)
        return True

    def drop(self, pool: PoolId, task: TaskId) -> None:
        """A task is not to be acted on any more."""
        known = self._entries.pop((pool, task), None)
        if known is None:
            return
        needs, entry = known
        group = self._groups[needs]
        del group[bisect_left(group, entry)]
        if not group:
            del self._groups[needs]
        if self._incomplete and len(self._entries) < limits.WORK_CANDIDATES_MAX // 2:
            # what there was no room for is kept nowhere else
            self.fill()

    def drop_pool(self, pool: PoolId) -> None:
        """This node is not in a pool any more."""
        for name in [name for name in self._entries if name[0] == pool]:
            self.drop(*name)

    def fitting(self, capabilities: frozenset[str]) -> Iterator[Entry]:
        """Yield what an agent of these capabilities could act on, in order. Nothing may be changed meanwhile."""
        return heapq.merge(*(group for needs, group in self._groups.items() if needs <= capabilities))
