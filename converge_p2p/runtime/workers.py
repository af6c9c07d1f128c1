"""Handler-style workers of one pool: claim fitting tasks, run their handlers, report.

Knows: the port, the handlers, and the nursery they run in. Must not know: what a notification means (see `workbook`),
how claims are decided (see `ports.TaskWorkPort`), or the network.
Source: `docs/concepts.md`, workers; shutdown order: stop claiming, then hand back what is held.

Notifications only note what happened, and proposals are made from the pool's own tasks. So a port may notify from
inside a call without surprising anybody.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import trio

from converge_p2p.core import limits
from converge_p2p.core.errors import ClaimLost, Conflict, ConvergeError, LimitExceeded, LocalError, NotFound
from converge_p2p.core.model.task import Outcome, TaskState, TaskView
from converge_p2p.core.replica.renewal import THOUSANDTHS
from converge_p2p.core.types import PublicKey, TaskId
from converge_p2p.runtime.attempt import Finished, HandlerFunction, TryAgain, WorkContext, clip, run_attempt
from converge_p2p.runtime.candidates import Candidates
from converge_p2p.runtime.ports import ContentPort, TaskWorkPort
from converge_p2p.runtime.safety import ResourceLimits
from converge_p2p.runtime.threads import BoundedThreads
from converge_p2p.runtime.workbook import Handler, Slot, WorkBook

_logger = logging.getLogger(__name__)

CLAIM_BACKOFF_S = 0.1
CLAIM_BACKOFF_S_MAX = 5.0
CLAIMS_IN_A_ROW = 16
"""After so many claims other tasks of the process get their turn: each costs a signature."""


@dataclass(frozen=True, slots=True)
class Running:
    """A task that is worked on here now, for status displays."""

    task_id: TaskId
    objective: str
    token: tuple[int, int]
    progress: float


class WorkerPool:
    """Keeps the handlers of one pool busy. Everything is called in the trio thread."""

    def __init__(
        self,
        port: TaskWorkPort,
        public_key: PublicKey,
        *,
        capabilities: Iterable[str] = (),
        resources: ResourceLimits | None = None,
        contents: ContentPort | None = None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """Make a pool without handlers; `run` starts it.

        Args:
            port: the tasks.
            public_key: of the worker; decides which tasks it prefers.
            capabilities: names; tasks that require others are left to others.
            resources: tasks that ask for more are left to others.
            contents: where large inputs come from, and large results go; None: there are none.
            wall_clock: Unix time in seconds, for the deadlines of tasks.
        """
        self._port = port
        self._key = public_key
        self._contents = contents
        self._wall_clock = wall_clock
        self._book = WorkBook(public_key, wake=self._wake_up, start=self._start)
        self._book.capabilities = frozenset(capabilities)
        self._book.resources = resources
        self._book.in_turn = port.in_turn
        self._blocked_until = -math.inf
        self._blocks = 0
        self._reload = False
        self._nursery: trio.Nursery | None = None
        self._wake = trio.Event()
        self._ended = trio.Event()

    # ------------------------------------------------------------ what the owner calls

    def add_handler(
        self, objective: str, function: HandlerFunction, *, concurrency: int = 1, timeout_s: float | None = None
    ) -> None:
        """Take tasks of an objective from now on.

        Args:
            objective: exact objective of the tasks.
            function: `(task, context) -> result`, async, or plain and then run in a thread.
            concurrency: how many tasks are claimed or worked on at once, 1 to `limits.HANDLER_CONCURRENCY_MAX`.
            timeout_s: the longest this worker works on a task, seconds; a task's own time limit holds as well.

        Raises:
            Conflict: the objective has a handler.
            LocalError: an argument out of its range.
            LimitExceeded: more than `limits.HANDLERS_PER_POOL_MAX` handlers.
        """
        handlers = self._book.handlers
        if objective in handlers:
            raise Conflict(f"objective {objective!r} has a handler already")
        if not objective:
            raise LocalError("the objective of a handler is empty")
        if len(handlers) >= limits.HANDLERS_PER_POOL_MAX:
            raise LimitExceeded("HANDLERS_PER_POOL_MAX", f"a pool has at most {limits.HANDLERS_PER_POOL_MAX} handlers")
        if not 1 <= concurrency <= limits.HANDLER_CONCURRENCY_MAX:
            raise LocalError(f"concurrency is {concurrency}; expected 1 to {limits.HANDLER_CONCURRENCY_MAX}")
        if timeout_s is not None and not timeout_s > 0:
            raise LocalError(f"timeout_s is {timeout_s}; expected a number of seconds above 0")
        threads = BoundedThreads(concurrency, on_end=self._wake_up)
        limit_s = math.inf if timeout_s is None else timeout_s
        handlers[objective] = Handler(function, concurrency, limit_s, Candidates(self._key), threads)
        self._read_again()

    def set_capabilities(self, capabilities: Iterable[str]) -> None:
        """Declare anew what this worker can do; the pending tasks are looked through again."""
        self._book.capabilities = frozenset(capabilities)
        self._read_again()

    def on_task_changed(self, view: TaskView) -> None:
        """The node says: this is a task's state now."""
        self._book.task_changed(view)

    def on_claim_won(self, task_id: TaskId, epoch: int, round_: int) -> None:
        """The node says: the claim of this worker was certified in this round."""
        self._book.claim_won(task_id, (epoch, round_))

    def on_denied(self, view: TaskView) -> None:
        """What these workers reported was denied by the task's evaluator: it is to be worked out again."""
        self._book.denied(view)

    def on_claim_lost(self, task_id: TaskId, epoch: int, round_: int, reason: str = "") -> None:
        """The node says: the claim of this round is not this worker's, or not any more."""
        self._book.claim_lost(task_id, (epoch, round_), reason)

    @property
    def counters(self) -> Counter[str]:
        """Counts since the start.

        claims, claims_refused, wins, stale_wins, unasked_wins, rivals_won, started, completed, denied (of these, by an
        evaluator), failed (attempts that failed, for good or not), released, lost, late (results that came too late),
        settled_elsewhere, expired (tasks left alone because their deadline had passed), forgotten (entries of bounded
        tables), renewals_refused (renewals of claims that were lost).
        """
        return self._book.counters

    def holds(self, task: TaskId) -> bool:
        """Whether a handler stands for a task, or works on it."""
        return task in self._book.slots

    def running(self) -> tuple[Running, ...]:
        """Return what is worked on now."""
        return tuple(
            Running(task_id, slot.view.objective, slot.token, slot.context.done)
            for task_id, slot in self._book.slots.items()
            if slot.token is not None and slot.context is not None
        )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Claim and work until `stop` was called or the task is cancelled. Can be run once.

        Cancellation: claims and running tasks are handed back at once.
        """
        book = self._book
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                book.running = True
                await self._load(adopt=True)
                task_status.started()
                while not (book.stopping and not book.slots):
                    # renewed before looking, so that what happens while looking is not missed
                    self._wake = trio.Event()
                    await self._dispatch()
                    with trio.move_on_at(self._next_deadline()):
                        await self._wake.wait()
        finally:
            self._nursery = None
            book.running = False
            book.stopping = True
            self._hand_back_all()
            self._ended.set()

    async def stop(self, grace_s: float = 0.0) -> None:
        """Stop claiming, let running handlers finish for `grace_s` seconds, then hand everything back.

        Cancellation: the pool goes on stopping.
        """
        self._book.stopping = True
        self._withdraw()
        self._wake_up()
        if self._nursery is None:
            return
        with trio.move_on_after(grace_s):
            await self._ended.wait()
        for slot in list(self._book.slots.values()):
            self._book.end(slot, "stopping")
        await self._ended.wait()

    # ------------------------------------------------------------ claiming

    def _wake_up(self) -> None:
        self._wake.set()

    def _read_again(self) -> None:
        self._reload = True
        self._wake_up()

    async def _load(self, *, adopt: bool) -> None:
        """Read the pending tasks once; from then on notifications keep them."""
        book = self._book
        self._reload = False
        for handler in book.handlers.values():
            handler.candidates.incomplete = False
        # a list, because the tasks change while others get their turn below
        views = list(self._port.pending(frozenset(book.handlers), book.capabilities))
        if adopt:
            # others may still promise a round to a claim from before a restart, before this worker gets to the task
            for view in views:
                if view.claimable and self._port.stands(view.id):
                    book.remember(book.standing, view.id, view)
        for number, view in enumerate(views):
            if number % 256 == 255:
                await trio.lowlevel.checkpoint()
            offered = book.handlers.get(view.spec.objective)
            if offered is None or view.id in book.slots:
                continue
            if view.claimable:
                book.offer(offered, view)
            elif adopt and view.state is TaskState.ASSIGNED and view.assigned_to == self._key:
                self._adopt(offered, view)

    def _adopt(self, handler: Handler, view: TaskView) -> None:
        """Go on with a claim from before a restart."""
        if handler.free > 0:
            slot = self._book.occupy(handler, view)
            self._book.start(slot, (view.epoch, view.round))
            assert slot.context is not None, "set when it was started"
            # nobody heard of this worker for a while
            slot.context.wake()
        else:
            self._book.give_back[view.id] = "no free worker after the restart"

    async def _dispatch(self) -> None:
        book = self._book
        self._give_back()
        if self._reload and not book.stopping:
            await self._load(adopt=False)
        for handler in list(book.handlers.values()):
            claims = 0
            while not book.stopping and self._claim_next(handler):
                claims += 1
                if claims % CLAIMS_IN_A_ROW == 0:
                    await trio.lowlevel.checkpoint()

    def _claim_next(self, handler: Handler) -> bool:
        """Claim the best task of a handler; say whether to look for another."""
        book, now = self._book, trio.current_time()
        if handler.free <= 0 or now < self._blocked_until:
            return False
        view = handler.candidates.take(now)
        if view is None:
            if handler.candidates.incomplete and not len(handler.candidates):
                self._read_again()
            return False
        if not book.fits(view):
            return True
        if view.spec.deadline_ms and self._wall_clock() * 1000 >= view.spec.deadline_ms:
            book.counters["expired"] += 1
            return True
        stood = book.standing.pop(view.id, None)
        slot = book.occupy(handler, view)
        book.counters["claims"] += 1
        try:
            self._port.claim(view.id)
        except (Conflict, NotFound) as error:
            # this task is not to be had as it stands; a change of it will bring it back
            book.counters["claims_refused"] += 1
            _logger.debug("task %s cannot be claimed: %s", view.id.hex()[:12], error, extra={"task": view.id.hex()})
            book.free(slot, standing=stood is not None, offer=False)
            return True
        except ConvergeError as error:
            book.counters["claims_refused"] += 1
            book.free(slot, standing=stood is not None)
            pause = min(CLAIM_BACKOFF_S_MAX, CLAIM_BACKOFF_S * 2.0 ** min(self._blocks, 16))
            self._blocks += 1
            self._blocked_until = now + pause
            _logger.warning("claiming is refused, next try in %.1f s: %s", pause, error)
            return False
        self._blocks = 0
        return True

    def _next_deadline(self) -> float:
        """Return when there may be something to claim without a notification."""
        book, now = self._book, trio.current_time()
        due = math.inf
        if book.stopping:
            return due
        for handler in book.handlers.values():
            if handler.free <= 0 or not len(handler.candidates):
                continue
            if now < self._blocked_until:
                return self._blocked_until
            ready_at = handler.candidates.next_ready()
            if ready_at is not None:
                due = min(due, ready_at)
        return due

    # ------------------------------------------------------------ working

    def _start(self, slot: Slot) -> None:
        assert self._nursery is not None, "the book starts nothing unless it is running"
        self._nursery.start_soon(self._work, slot)

    async def _work(self, slot: Slot) -> None:
        handler, book = slot.handler, self._book
        assert slot.context is not None, "set before the slot is started"
        task_limit_s = slot.view.spec.timeout_ms / 1000 or math.inf
        end: Finished | TryAgain | None = None
        with slot.scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._renew, slot, slot.context)
                end = await run_attempt(
                    handler.function,
                    slot.view,
                    slot.context,
                    timeout_s=min(task_limit_s, handler.timeout_s),
                    threads=handler.threads,
                    contents=self._contents,
                )
                nursery.cancel_scope.cancel()
        # not reached when the pool itself is cancelled: `run` then hands back what is left
        given_up = slot.ended_by in ("lost", "settled")
        if slot.ended_by == "lost" or (isinstance(end, TryAgain) and not given_up):
            handler.candidates.put_off(slot.view.id, trio.current_time())
        # the place is free before anything is said, so that what is answered finds the book in order
        book.free(slot, standing=slot.ended_by == "lost")
        if not given_up:
            self._conclude(slot, end)
        elif slot.again is not None and slot.view.id not in book.slots and not book.stopping:
            handler.candidates.remove(slot.view.id)
            book.standing.pop(slot.view.id, None)
            book.start(book.occupy(handler, slot.view), slot.again)

    async def _renew(self, slot: Slot, context: WorkContext) -> None:
        """Tell the others that the attempt goes on, and how far it is: in good time, and when there is news."""
        while True:
            assert slot.token is not None, "an attempt has a token"
            due = trio.current_time() + self._port.renewal_interval_s(slot.view, slot.token[1])
            # not more often than this, whatever the handler says
            await trio.sleep(limits.RENEWAL_PAUSE_MS / 1000)
            with trio.move_on_at(due):
                await context.news.wait()
            context.news = trio.Event()
            try:
                self._port.renew(slot.view.id, int(context.done * THOUSANDTHS), context.note)
            except ConvergeError as error:
                # lost a moment ago, and the notification is on its way
                self._book.counters["renewals_refused"] += 1
                _logger.debug(
                    "claim of task %s was not renewed: %s",
                    slot.view.id.hex()[:12],
                    error,
                    extra={"task": slot.view.id.hex()},
                )

    def _conclude(self, slot: Slot, end: Finished | TryAgain | None) -> None:
        task_id = slot.view.id
        match end:
            case Finished(outcome, result):
                self._report(slot, outcome, result)
            case TryAgain(reason):
                self._book.counters["failed"] += 1
                self._release(task_id, True, reason)
            case None:
                self._release(task_id, False, "the worker stops")

    def _report(self, slot: Slot, outcome: Outcome, result: bytes) -> None:
        book, task_id = self._book, slot.view.id
        # remembered first, because the port may notify from inside the call
        book.remember(book.reported, task_id, None)
        try:
            self._port.report(task_id, outcome, result)
        except ConvergeError as error:
            book.reported.pop(task_id, None)
            book.counters["late"] += 1
            # without a pause a result that is never taken would be worked out again and again
            slot.handler.candidates.put_off(task_id, trio.current_time())
            if isinstance(error, ClaimLost):
                book.remember(book.standing, task_id, slot.view)
                return
            _logger.warning(
                "result of task %s was not taken: %s", task_id.hex()[:12], error, extra={"task": task_id.hex()}
            )
            self._release(task_id, True, f"result not taken: {error}")
        else:
            book.counters["completed" if outcome is Outcome.COMPLETED else "failed"] += 1

    # ------------------------------------------------------------ handing back

    def _release(self, task_id: TaskId, failed: bool, reason: str) -> None:
        try:
            self._port.release(task_id, failed, clip(reason))
        except ConvergeError as error:
            # lost or settled in the meantime: then there is nothing left to hand back
            _logger.debug(
                "claim of task %s was not released: %s", task_id.hex()[:12], error, extra={"task": task_id.hex()}
            )
        else:
            self._book.counters["released"] += 1

    def _give_back(self) -> None:
        while self._book.give_back:
            task_id, reason = self._book.give_back.popitem()
            self._release(task_id, False, reason)

    def _withdraw(self) -> None:
        """Take back every claim that was not won, so that none is certified to a worker that left."""
        book = self._book
        for slot in [slot for slot in book.slots.values() if slot.token is None]:
            book.free(slot, standing=True)
        while book.standing:
            task_id, _ = book.standing.popitem()
            self._release(task_id, False, "the worker stops")

    def _hand_back_all(self) -> None:
        self._withdraw()
        self._give_back()
        for slot in list(self._book.slots.values()):
            self._book.free(slot)
            if slot.ended_by not in ("lost", "settled"):
                self._release(slot.view.id, False, "the worker stops")
