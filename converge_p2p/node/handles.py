"""What an application holds: a pool, a task, a result.

Knows: how to read a replica and what to propose to it. Must not know: effects, stores, the network.
Source: `docs/embedding.md`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import trio
from nacl.utils import random as random_bytes

from converge_p2p.core import limits
from converge_p2p.core.codec import encode_value
from converge_p2p.core.errors import Conflict, LimitExceeded, LocalError
from converge_p2p.core.governance.proofs import WORKER
from converge_p2p.core.model.evaluator import parse_evaluator
from converge_p2p.core.model.task import Outcome, Task, TaskView, task_id
from converge_p2p.core.replica import events as ev
from converge_p2p.core.types import PublicKey, TaskId, ValueHash
from converge_p2p.core.view.audit import Finding
from converge_p2p.core.view.ended import Ended
from converge_p2p.core.view.explanation import Explanation
from converge_p2p.node.admitting import check_trusted, invite, vouch
from converge_p2p.node.audits import PoolAudit
from converge_p2p.node.council import Council
from converge_p2p.node.driver import PoolDriver
from converge_p2p.node.evaluations import EvaluationFunction, Evaluations
from converge_p2p.node.explaining import Explanations
from converge_p2p.node.fanout import Fanout
from converge_p2p.node.keys import PoolKeys
from converge_p2p.node.opinions import Opinions
from converge_p2p.node.policy import OpinionFunction
from converge_p2p.node.pool_blobs import PoolBlobs
from converge_p2p.node.pool_reader import PoolReader
from converge_p2p.node.task_handles import TaskHandle
from converge_p2p.node.work_port import WorkPort
from converge_p2p.runtime.attempt import HandlerFunction
from converge_p2p.runtime.workers import WorkerPool

if TYPE_CHECKING:
    from converge_p2p.node.main import Node

_Function = TypeVar("_Function", bound=Callable[..., Any])
Recall = Callable[[TaskId], Awaitable[bytes | None]]


class PoolHandle(PoolReader):
    """A pool this node takes part in.

    Attributes:
        driver: drives the pool's replica.
        workers: does tasks with handlers, once there is one.
        evaluations: judges results with a function, once there is one.
        opinions: answers motions with a function, once there is one.
        council: motions to change the pool, and disputes.
        keys: how this node's key in the pool is handed over or recovered.
        blobs: contents too large for an operation.
    """

    def __init__(self, node: Node, driver: PoolDriver, recall: Recall | None = None) -> None:
        """Made by the node; `recall` reads what is kept of an own task that ended before the last checkpoint."""
        super().__init__(node, driver)
        self._recall = recall
        self._became_ready = trio.Event()
        self._membership = trio.Event()
        self._waiters: dict[TaskId, trio.Event] = {}
        self._changes: Fanout[TaskView] = Fanout()
        self._closed = False
        self._audit = PoolAudit(driver.replica)
        self._explanations = Explanations(driver.replica)
        self.workers: WorkerPool | None = None
        self.evaluations: Evaluations | None = None
        self.opinions: Opinions | None = None
        self.council = Council(driver, lambda: self.spec)
        self.keys = PoolKeys(driver, self.council, self._stop_working)
        self.blobs = PoolBlobs(node, self)

    async def _stop_working(self) -> None:
        if self.workers is not None:
            await self.workers.stop()

    # ------------------------------------------------------------ reading

    @property
    def dropped_changes(self) -> int:
        """Changes that slow readers of `watch` did not get."""
        return self._changes.dropped

    @property
    def counters(self) -> dict[str, int]:
        """Counts of this pool since the start."""
        counts = dict(self.driver.counters)
        counts["changes_dropped"] = self._changes.dropped
        counts["conflicting_settlements"] = sum(register.conflict for register in self._view.registers.values())
        if self.workers is not None:
            counts |= {f"work_{name}": count for name, count in self.workers.counters.items()}
        return counts

    def trust_store(self) -> None:
        """Sign again although the store may be an old copy. If others hold more of this node's operations, it forks."""
        self.driver.feed(ev.TrustStore())

    async def audit(self) -> list[Finding]:
        """Read the whole log for electors that broke a rule, and return what proves it. See `core.view.audit`.

        Votes without support count only when this node holds all that others hold; contradictions always do.
        """
        return await self._audit.findings()

    async def explain(self, task_id: TaskId) -> Explanation:
        """Return what became of a task and why: everything that was signed about it, and what the votes add up to.

        It is what this node knows now, and says what of it is tentative; `receipt` is the proof for others. Of a task
        that was settled before the last checkpoint only the end is left.

        Raises:
            NotFound: nothing is known of the task here.
        """
        found = await self._explanations.of(task_id)
        if found is None:
            raise self._unknown(task_id)
        return found

    async def culprits(self) -> int | None:
        """How many electors an audit names; None if the log is too large for a mere count: see `audit`."""
        return await self._audit.count()

    # ------------------------------------------------------------ proposing

    async def submit(self, task: Task) -> TaskHandle:
        """Submit a task and wait until it is durable here. With the same key, the same task: safe to repeat.

        Inputs that are too large for an operation become blobs, and workers are given what was meant.

        Raises:
            Conflict: another task was submitted with this key.
            LocalError, LimitExceeded, CodecError: the task cannot be submitted; nothing was changed.
            StoreFull: the store holds as much as it may.
            StoreError: the inputs became blobs, and the disk fails.
        """
        key = random_bytes(16)
        # looked at before large inputs are moved into blobs: what is refused leaves nothing behind
        named = replace(task, inputs={}).to_spec(key=key).key
        own = task_id(self.id, self._node.public_key, self.driver.replica.contents.task_key(named))
        known = own in self._view.registers or own in self._view.compacted
        if not known:
            if len(self._view.open) >= limits.PENDING_TASKS_PER_AUTHOR_MAX:
                raise LimitExceeded("PENDING_TASKS_PER_AUTHOR_MAX", "too many tasks of this pool are open")
            if self.driver.room is not None:
                await self.driver.room.check("the task was not submitted")
        await self.driver.carry_out(ev.Submit(await self.blobs.spec_of(task, key)))
        return TaskHandle(self, own)

    async def cancel(self, task_id: TaskId, reason: str = "") -> None:
        """Ask for the cancellation of an own task.

        Raises:
            NotAuthorised, NotFound, Conflict: see `core.replica.commands`.
        """
        await self.driver.carry_out(ev.Cancel(task_id, reason))

    async def veto(self, task_id: TaskId, reason: str = "") -> None:
        """Deny the result that a task was settled on. It counts if enough electors hear it in time.

        Raises:
            NotAuthorised: this node is no vetoer.
            Conflict: there is no result that waits for its vetoers.
        """
        await self.driver.carry_out(ev.Veto(task_id, True, reason))

    async def let_pass(self, task_id: TaskId, reason: str = "") -> None:
        """Let the result pass that a task was settled on. Raises as `veto`."""
        await self.driver.carry_out(ev.Veto(task_id, False, reason))

    async def judge(self, task_id: TaskId, approve: bool, reason: str = "", *, value: ValueHash | None = None) -> None:
        """Approve or deny a reported result, as the task's evaluator. An approval is never taken back.

        Args:
            task_id: the task.
            approve: electors may accept the result; otherwise the attempt failed.
            reason: for people.
            value: hash of the result (see `TaskView.unjudged`); None is the only one that waits for a verdict.

        Raises:
            NotAuthorised: this node is not the evaluator.
            NotFound, Conflict: there is no such result, or the task is settled.
        """
        await self.driver.carry_out(ev.Judge(task_id, approve, reason, value))

    def invite(
        self,
        *,
        joiner: str | None = None,
        until_epoch: int | None = None,
        role: str = WORKER,
        valid_s: float | None = None,
    ) -> str:
        """Return an invitation as text, for `Node.join_pool`. Without `joiner` it lets in whoever holds it.

        Args:
            joiner: the only agent that may use it, named as in `Node.create_pool`.
            until_epoch: the last epoch in which it lets anybody in; None is the present one.
            role: what the newcomer is meant to be, for people and applications.
            valid_s: seconds after which honest nodes do not use it any more; None is without end.

        Raises:
            LocalError: the pool asks for no invitations.
            NotAuthorised: this node is neither an elector nor the creator, or trusts the agent too little.
        """
        key = None if joiner is None else self._trusted_key(joiner)
        own = self._node.identity
        return invite(own, self._view, joiner=key, until_epoch=until_epoch, role=role, valid_s=valid_s)

    def vouch(self, agent: str, *, until_epoch: int | None = None) -> str:
        """Answer for an agent, as an elector: return a vouch as text, which the agent shows in `Node.join_pool`.

        Raises:
            LocalError: the pool asks for no vouches.
            NotAuthorised: this node is no elector, or trusts the agent too little.
        """
        return vouch(self._node.identity, self._view, self._trusted_key(agent), until_epoch=until_epoch)

    def _trusted_key(self, agent: str) -> PublicKey:
        key = self._node.key_of(agent)
        check_trusted(self._node.discovery.trust, key, self._node.policy.trust.join_threshold)
        return key

    async def claim(self, task_id: TaskId, bid: int = 0) -> None:
        """Stand as a worker for a task. Whether the claim is won shows in the task.

        Raises:
            Conflict: an agent of this node stands for it, or the task is settled.
        """
        self._node.hosting.application_claims(task_id)
        try:
            await self.driver.carry_out(ev.Claim(task_id, bid))
        except LocalError:
            self._node.hosting.application_released(task_id)
            raise

    async def release(self, task_id: TaskId, *, failed: bool = False, reason: str = "") -> None:
        """Give a claim back."""
        await self.driver.carry_out(ev.Release(task_id, failed, reason))
        self._node.hosting.application_released(task_id)

    async def report(self, task_id: TaskId, value: Any = None, *, failed: str | None = None) -> None:
        """Report the result of a claimed task, or that it cannot be done (`failed`, the reason).

        Raises:
            CodecError, LimitExceeded, StoreError: the value cannot be a result, or the blob it becomes cannot be kept.
            Conflict: there is no claim of this node, or the task is settled.
        """
        if failed is None:
            await self.report_bytes(task_id, Outcome.COMPLETED, encode_value(value))
        else:
            await self.report_bytes(task_id, Outcome.FAILED, encode_value({"error": failed}))

    async def report_bytes(self, task_id: TaskId, outcome: Outcome, result: bytes) -> None:
        """Report an encoded result. What is too large for an operation becomes a blob."""
        await self.driver.carry_out(ev.Report(task_id, outcome, await self.blobs.keep_result(result)))

    async def leave(self) -> None:
        """Leave the pool, and forget it here."""
        await self._node.leave_pool(self.id)

    # ------------------------------------------------------------ working

    def handler(
        self, objective: str, *, concurrency: int = 1, claim_ttl: float | None = None
    ) -> Callable[[_Function], _Function]:
        """Decorate a function `(task, context) -> result` that does the tasks of an objective.

        It runs while this node holds the claim and is cancelled when the claim is lost. An error fails the attempt,
        never the node.

        Args:
            objective: which tasks.
            concurrency: how many at once.
            claim_ttl: seconds after which an attempt is stopped, if the task names no shorter time.
        """

        def decorate(function: _Function) -> _Function:
            self.add_handler(objective, function, concurrency=concurrency, claim_ttl=claim_ttl)
            return function

        return decorate

    def add_handler(
        self,
        objective: str,
        function: HandlerFunction,
        *,
        concurrency: int = 1,
        claim_ttl: float | None = None,
    ) -> None:
        """Do the tasks of an objective with a function from now on. See `handler`."""
        self._check_open()
        if self.workers is None:
            self.workers = WorkerPool(
                WorkPort(self, self._node.public_key),
                self._node.public_key,
                capabilities=self.own_capabilities,
                resources=self._node.policy.safety.resources,
                contents=self.blobs,
            )
            self._node.spawn(self.workers.run)
        self.workers.add_handler(objective, function, concurrency=concurrency, timeout_s=claim_ttl)

    def evaluator(self, function: _Function) -> _Function:
        """Decorate a function `(task, result) -> bool` that judges the tasks whose evaluator this node is.

        True approves; anything else denies, and an error denies with the error as the reason. It never harms the node.
        A coroutine function runs in the node, a plain one in a thread.

        Raises:
            Conflict: there is one already.
        """
        self.add_evaluator(function)
        return function

    def judges(self, view: TaskView) -> bool:
        """Whether this node is the evaluator of a task."""
        evaluator = parse_evaluator(view.spec.evaluator)
        return evaluator is not None and evaluator.is_agent(self._node.public_key)

    def add_evaluator(self, function: EvaluationFunction) -> None:
        """Judge with a function from now on. See `evaluator`."""
        self._check_open()
        if self.evaluations is not None:
            raise Conflict("another function judges the results of this pool already")
        self.evaluations = Evaluations(self, function)
        for view in self.open_tasks():
            self.evaluations.look(view)
        self._node.spawn(self.evaluations.run)

    def works_on(self, task: TaskId) -> bool:
        """Whether a handler of this node stands for a task, or works on it."""
        return self.workers is not None and self.workers.holds(task)

    def add_opinions(self, function: OpinionFunction) -> None:
        """Answer every motion with a function from now on, where this node is an elector. See `policy.NodePolicy`.

        Raises:
            Conflict: another function answers already.
        """
        self._check_open()
        if self.opinions is not None:
            raise Conflict("another function answers the motions of this pool already")
        self.opinions = Opinions(self, self._node.public_key, function)
        self._node.spawn(self.opinions.run)

    def refresh_capabilities(self) -> None:
        """Called by the node: what it declared in the pool may have changed."""
        if self.workers is not None:
            self.workers.set_capabilities(self.own_capabilities)

    # ------------------------------------------------------------ waiting and watching

    async def settled(self, task: TaskId) -> TaskView:
        """Wait until a task is settled, and return it.

        Raises:
            NotFound: not known here, or settled before the last checkpoint, and this node did not submit it.
            LocalError: this node left the pool or stopped in the meantime.
        """
        view = await self._look_up(task)
        while not view.state.terminal:
            self._check_open()
            changed = self._waiters.setdefault(task, trio.Event())
            try:
                await changed.wait()
            finally:
                # the last one who gives up takes the event along: tasks that never end must not pile up here
                if not changed.is_set() and not changed.statistics().tasks_waiting:
                    self._waiters.pop(task, None)
            view = await self._look_up(task)
        return view

    async def _look_up(self, task: TaskId) -> TaskView:
        """A task, also an own one that ended before the last checkpoint."""
        if self._recall is not None and self.is_compacted(task):
            kept = await self._recall(task)
            if kept is not None:
                return self.driver.replica.contents.open_view(Ended.from_bytes(kept).view(self.id, task))
        return self.task(task)

    async def wait_ready(self) -> None:
        """Wait until the founding terms are known.

        Raises:
            LocalError: this node left the pool or stopped in the meantime.
        """
        if not self.ready:
            self._check_open()
            await self._became_ready.wait()
            self._check_open()

    async def wait_member(self) -> None:
        """Wait until this node is a member, and was found once to hold all that a peer holds.

        Raises:
            LocalError: this node left the pool or stopped in the meantime.
        """
        while not self.is_member:
            self._check_open()
            await self._membership.wait()
        await self.driver.wait_caught_up()
        self._check_open()

    def watch(self) -> AbstractAsyncContextManager[trio.MemoryReceiveChannel[TaskView]]:
        """Give a channel of changed tasks, and of their progress. It ends when this node leaves the pool or stops.

        Who reads too slowly misses some (counted in `dropped_changes`).
        """
        return self._changes.open()

    def close(self) -> None:
        """Called by the node: it takes no more part. Whoever waits is told."""
        self._closed = True
        self._became_ready.set()
        self._membership.set()
        waiters, self._waiters = self._waiters, {}
        for waiter in waiters.values():
            waiter.set()
        self._changes.close()
        self.council.close()

    def _check_open(self) -> None:
        if self._closed:
            raise LocalError(f"this node no longer takes part in pool {self.name or self.id.hex()[:12]}")

    def on_notice(self, notice: ev.Notice) -> None:
        """The replica says something."""
        if isinstance(notice, ev.MembersChanged | ev.EpochInstalled | ev.Compacted):
            self._membership.set()
            self._membership = trio.Event()
        match notice:
            case ev.TaskChanged(task):
                self._task_changed(task)
            case ev.TaskProgress(task):
                view = self.find_task(task)
                if view is not None:
                    self._changes.send(view)
            case ev.VerdictWanted(task):
                self._verdict_wanted(task)
            case ev.ClaimWon(task, epoch, number):
                self._node.hosting.claim_decided(self, notice)
                if self.workers is not None:
                    self.workers.on_claim_won(task, epoch, number)
            case ev.ClaimLost(task, epoch, number, reason, denied):
                self._node.hosting.claim_decided(self, notice)
                if self.workers is not None:
                    if denied:
                        self.workers.on_denied(self.task(task))
                    self.workers.on_claim_lost(task, epoch, number, reason)
            case ev.PoolReady():
                self._became_ready.set()
            case ev.ContentKeyTaken():
                for task in list(self._view.open):
                    self._task_changed(task)
            case ev.MotionMoved() | ev.EpochInstalled():
                self.council.on_notice(notice)
            case ev.CoordinationChanged():
                self._node.hosting.matter_changed(self, notice)
            case ev.MembersChanged(agent):
                if agent == self._node.id:
                    self.refresh_capabilities()

    def _verdict_wanted(self, task: TaskId) -> None:
        view = self.find_task(task)
        if view is not None:
            if self.evaluations is not None:
                self.evaluations.look(view)
            self._changes.send(view)

    def _task_changed(self, task: TaskId) -> None:
        view = self.find_task(task)
        if view is None:
            # settled below a checkpoint that came from others: whoever waits is told what is known
            waiter = self._waiters.pop(task, None) if task in self._view.compacted else None
            if waiter is not None:
                waiter.set()
            self._node.hosting.task_changed(self.id, task, None)
            return
        if self.workers is not None:
            self.workers.on_task_changed(view)
        if view.state.terminal:
            waiter = self._waiters.pop(task, None)
            if waiter is not None:
                waiter.set()
        self._changes.send(view)
        self._node.hosting.task_changed(self.id, task, view)
