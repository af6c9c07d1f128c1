"""The book of a pool's workers: which claims are out, which attempts run, and what each notification means for them.

Knows: claims, rounds and places of handlers. Must not know: the port, or how a handler is run.
Source: `docs/protocol.md`, task register: a claim stands until it is withdrawn or the task is settled; the round is
the fencing token, and only grows.

Everything here is a plain call that notes what happened. It starts attempts and wakes the worker pool through the two
callbacks it was given, and never proposes anything itself.
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import trio

from converge_p2p.core import limits
from converge_p2p.core.model.task import TaskState, TaskView
from converge_p2p.core.types import PublicKey, TaskId
from converge_p2p.runtime.attempt import HandlerFunction, WorkContext
from converge_p2p.runtime.candidates import Candidates
from converge_p2p.runtime.safety import ResourceLimits
from converge_p2p.runtime.threads import BoundedThreads

_logger = logging.getLogger(__name__)

Token = tuple[int, int]
_NO_TOKEN: Token = (-1, -1)
_V = TypeVar("_V")


@dataclass(slots=True, eq=False)
class Handler:
    """A handler, its places, and the tasks it could do."""

    function: HandlerFunction
    concurrency: int
    timeout_s: float
    candidates: Candidates
    threads: BoundedThreads
    used: int = 0

    @property
    def free(self) -> int:
        """How many more tasks it can take."""
        # a thread that does not end keeps the place of the attempt it belonged to
        return self.concurrency - self.used - self.threads.abandoned


@dataclass(slots=True, eq=False)
class Slot:
    """One place of a handler that is taken.

    Attributes:
        handler: whose place.
        view: the task as it was last seen.
        token: None while the claim is out, then the (epoch, round) that was won.
        since: when it was taken, on the monotonic clock.
        again: a later token that was won while the attempt of an earlier one is still ending.
        reopened: the task was seen open since `token` was won.
        ended_by: why it is given up: lost, settled, stopping; empty while it is not.
        context: what the handler sees.
        scope: cancels the attempt.
    """

    handler: Handler
    view: TaskView
    since: float
    token: Token | None = None
    again: Token | None = None
    reopened: bool = False
    ended_by: str = ""
    context: WorkContext | None = None
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)


class WorkBook:
    """What is known of the tasks of one pool that its handlers could do.

    Attributes:
        handlers: by objective.
        slots: by task: claims that are out, and attempts.
        standing: claims that were given up as lost. They still stand, so they may be won in a later round.
        reported: tasks with a finished report that is not settled yet.
        give_back: claims to be released, with the reason.
        capabilities: names of what the workers can do.
        resources: what a task may ask for; None is anything.
        in_turn: says whether workers take turns in claiming; asked whenever a task is offered.
        running: attempts may start. Neither before the pool runs nor after.
        stopping: nothing new is taken.
        counters: see `WorkerPool`.
    """

    def __init__(self, worker: PublicKey, *, wake: Callable[[], None], start: Callable[[Slot], None]) -> None:
        """Make an empty book.

        Args:
            worker: whose claims these are.
            wake: called when there may be something to claim or to release.
            start: called with a slot whose claim was won.
        """
        self._worker = worker
        self._wake = wake
        self._start = start
        self._lost: OrderedDict[TaskId, Token] = OrderedDict()
        self.handlers: dict[str, Handler] = {}
        self.slots: dict[TaskId, Slot] = {}
        self.standing: OrderedDict[TaskId, TaskView] = OrderedDict()
        self.reported: OrderedDict[TaskId, None] = OrderedDict()
        self.give_back: dict[TaskId, str] = {}
        self.capabilities: frozenset[str] = frozenset()
        self.resources: ResourceLimits | None = None
        self.in_turn: Callable[[], bool] = lambda: False
        self.running = False
        self.stopping = False
        self.counters: Counter[str] = Counter()

    # ------------------------------------------------------------ notifications

    def task_changed(self, view: TaskView) -> None:
        """Note the present state of a task."""
        handler = self.handlers.get(view.spec.objective)
        if handler is None:
            return
        slot = self.slots.get(view.id)
        if view.state.terminal:
            self._forget(handler, view.id)
            if slot is not None:
                self.counters["settled_elsewhere"] += 1
                self.end(slot, "settled")
        elif view.claimable:
            if slot is None:
                self.offer(handler, view)
            else:
                slot.view, slot.reopened = view, True
        else:
            handler.candidates.remove(view.id)
            if view.assigned_to is not None:
                handler.candidates.turns.saw(view.assigned_to, trio.current_time())
            if slot is not None:
                slot.view, slot.reopened = view, False
                self._check_rival(slot)

    def claim_won(self, task_id: TaskId, token: Token) -> None:
        """Note that a claim was certified in a round."""
        if self._lost.get(task_id, _NO_TOKEN) >= token or not self.running:
            self.counters["stale_wins"] += 1
            return
        self.counters["wins"] += 1
        slot = self.slots.get(task_id)
        if task_id in self.reported:
            # the port repeats the finished report; there is nothing to do again
            self.standing.pop(task_id, None)
            if slot is not None and slot.token is None:
                self.free(slot, offer=False)
            return
        if slot is None:
            slot = self._slot_for_standing(task_id)
        if slot is None:
            return
        if slot.token is None:
            slot.handler.candidates.turns.granted(trio.current_time() - slot.since)
            self.start(slot, token)
        elif slot.token < token and slot.ended_by:
            slot.again = token
        elif slot.token < token:
            # the same worker holds a later round: the attempt goes on, and fences with the greater token from now on
            assert slot.context is not None, "a slot with a token has a context"
            slot.token = slot.context.token = token

    def claim_lost(self, task_id: TaskId, token: Token, reason: str) -> None:
        """Note that the claim of a round is not this worker's, or not any more."""
        if token > self._lost.get(task_id, _NO_TOKEN):
            self.remember(self._lost, task_id, token)
        slot = self.slots.get(task_id)
        if slot is None:
            return
        if slot.again is not None and slot.again <= token:
            slot.again = None
        if slot.token is None:
            self.counters["rivals_won"] += 1
            slot.handler.candidates.put_off(task_id, trio.current_time())
            self.free(slot, standing=True)
        elif slot.token <= token:
            _logger.debug(
                "claim of task %s lost in round %d: %s",
                task_id.hex()[:12],
                token[1],
                reason,
                extra={"task": task_id.hex()},
            )
            self.end(slot, "lost")

    def denied(self, view: TaskView) -> None:
        """Note that what was reported is not taken. The claim stands, and may be won in a later round."""
        if view.id in self.reported:
            del self.reported[view.id]
            self.counters["denied"] += 1
            self.remember(self.standing, view.id, view)

    # ------------------------------------------------------------ places

    def fits(self, view: TaskView) -> bool:
        """Whether these workers declared what the task requires, and may use what it asks for."""
        if not self.capabilities.issuperset(view.spec.required_capabilities):
            return False
        return self.resources is None or self.resources.allows(view.spec.cpu_milli / 1000, view.spec.memory_mb)

    def offer(self, handler: Handler, view: TaskView) -> None:
        """Make an open task a candidate, if it fits."""
        if not self.stopping and self.fits(view):
            handler.candidates.put(view, trio.current_time(), in_turn=self.in_turn())
            if handler.free > 0:
                self._wake()

    def occupy(self, handler: Handler, view: TaskView) -> Slot:
        """Take a place for a task."""
        assert view.id not in self.slots, "one place for each task"
        slot = self.slots[view.id] = Slot(handler, view, trio.current_time())
        handler.used += 1
        return slot

    def start(self, slot: Slot, token: Token) -> None:
        """Turn a claim into an attempt."""
        slot.token, slot.reopened = token, False
        slot.context = WorkContext(slot.view.id, token)
        self.counters["started"] += 1
        self._start(slot)

    def free(self, slot: Slot, *, standing: bool = False, offer: bool = True) -> None:
        """Give a place back.

        Args:
            slot: the place; if it was given back before, nothing happens.
            standing: the claim was not withdrawn and may be won later.
            offer: if the task is open, it may be claimed again.
        """
        task_id = slot.view.id
        if self.slots.get(task_id) is not slot:
            return
        del self.slots[task_id]
        slot.handler.used -= 1
        if standing:
            self.remember(self.standing, task_id, slot.view)
        # the view an attempt began with says "open" for ever: only one that came later counts
        still_open = slot.view.state is TaskState.PENDING and (slot.token is None or slot.reopened)
        if offer and still_open and slot.ended_by != "settled":
            self.offer(slot.handler, slot.view)
        self._wake()

    def end(self, slot: Slot, why: str) -> None:
        """Give a slot up. A claim frees its place at once, an attempt when its handler has ended."""
        if why == "lost" and not slot.ended_by:
            self.counters["lost"] += 1
        slot.ended_by = slot.ended_by or why
        if slot.token is None:
            self.free(slot)
        else:
            slot.scope.cancel()

    def remember(self, table: OrderedDict[TaskId, _V], task_id: TaskId, value: _V) -> None:
        """Put an entry into one of the bounded tables; the oldest goes when there is no room."""
        table[task_id] = value
        if len(table) > limits.WORK_MEMORY_TASKS_MAX:
            table.popitem(last=False)
            self.counters["forgotten"] += 1

    def _check_rival(self, slot: Slot) -> None:
        view = slot.view
        if view.assigned_to == self._worker:
            return
        if slot.token is None:
            self.counters["rivals_won"] += 1
            self.free(slot, standing=True)
        elif slot.token < (view.epoch, view.round):
            self.end(slot, "lost")

    def _slot_for_standing(self, task_id: TaskId) -> Slot | None:
        """Find a place for a claim that was given up as lost and is won after all."""
        view = self.standing.pop(task_id, None)
        if view is None:
            # claimed by the application itself, which then does the work
            self.counters["unasked_wins"] += 1
            return None
        handler = self.handlers[view.spec.objective]
        handler.candidates.remove(task_id)
        if self.stopping or handler.free <= 0:
            self.give_back[task_id] = "no free worker"
            self._wake()
            return None
        return self.occupy(handler, view)

    def _forget(self, handler: Handler, task_id: TaskId) -> None:
        handler.candidates.forget(task_id)
        self.standing.pop(task_id, None)
        self.reported.pop(task_id, None)
        self.give_back.pop(task_id, None)
        self._lost.pop(task_id, None)
