"""Whatever order the news comes in: no task is worked on twice at once, no place leaks, and all tasks get settled."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from converge_p2p.core.errors import ClaimLost, Conflict, LimitExceeded
from converge_p2p.core.model.task import Outcome, TaskSpec, TaskState, TaskView
from converge_p2p.core.types import PoolId, PublicKey, TaskId
from converge_p2p.runtime.attempt import WorkContext
from converge_p2p.runtime.workers import WorkerPool

ME, RIVAL = PublicKey(b"m" * 32), PublicKey(b"r" * 32)
CONCURRENCY, TASKS = 4, 60


class Electors:
    """A register that decides at random: grants, rivals, expiries and news in any order, refusals now and then."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.views: dict[TaskId, TaskView] = {}
        self.claims: set[TaskId] = set()
        self.kept: set[TaskId] = set()
        self.worker: WorkerPool | None = None
        for number in range(TASKS):
            spec = TaskSpec(b"%d" % number, "x", b"", priority=self.random.randrange(3))
            task_id = TaskId(number.to_bytes(32, "big"))
            self.views[task_id] = TaskView(task_id, PoolId(b"p" * 32), RIVAL, spec, TaskState.PENDING)

    @property
    def open(self) -> list[TaskView]:
        return [view for view in self.views.values() if not view.state.terminal]

    def pending(self, objectives: frozenset[str], capabilities: frozenset[str]) -> Iterable[TaskView]:
        return self.open

    def in_turn(self) -> bool:
        return True

    def stands(self, task_id: TaskId) -> bool:
        return task_id in self.claims

    def renew(self, task_id: TaskId, fraction: int, note: str) -> None:
        assert task_id in self.claims, "renewed what is not held"

    def renewal_interval_s(self, view: TaskView, round_: int) -> float:
        return 0.1

    def claim(self, task_id: TaskId) -> None:
        dice = self.random.random()
        if dice < 0.1 or task_id in self.claims or self.views[task_id].state is not TaskState.PENDING:
            raise Conflict("not to be had")
        if dice < 0.15:
            raise LimitExceeded("X", "not now")
        self.claims.add(task_id)
        if dice < 0.4:
            self.grant(task_id)

    def release(self, task_id: TaskId, failed: bool, reason: str) -> None:
        if task_id not in self.claims:
            raise Conflict("no such claim")
        self.claims.discard(task_id)
        if self.views[task_id].assigned_to == ME:
            self.change(task_id, TaskState.PENDING, assigned_to=None)

    def report(self, task_id: TaskId, outcome: Outcome, result: bytes) -> None:
        if self.random.random() < 0.1:
            raise ClaimLost("late")
        self.kept.add(task_id)
        if self.views[task_id].assigned_to == ME and self.random.random() < 0.7:
            self.change(task_id, outcome.state)

    # ---- what electors and rivals do

    def change(self, task_id: TaskId, state: TaskState, **fields: Any) -> None:
        assert not self.views[task_id].state.terminal
        self.views[task_id] = replace(self.views[task_id], state=state, **fields)
        assert self.worker is not None
        self.worker.on_task_changed(self.views[task_id])

    def grant(self, task_id: TaskId) -> None:
        view, worker = self.views[task_id], self.worker
        assert worker is not None
        win = (task_id, 0, view.round + 1)
        if self.random.random() < 0.5:
            worker.on_claim_won(*win)
            self.change(task_id, TaskState.ASSIGNED, assigned_to=ME, round=view.round + 1)
        else:
            self.change(task_id, TaskState.ASSIGNED, assigned_to=ME, round=view.round + 1)
            worker.on_claim_won(*win)

    def expire(self, view: TaskView) -> None:
        worker = self.worker
        assert worker is not None
        lost = (view.id, view.epoch, view.round, "expired")
        if self.random.random() < 0.5:
            worker.on_claim_lost(*lost)
            self.change(view.id, TaskState.PENDING, assigned_to=None)
        else:
            self.change(view.id, TaskState.PENDING, assigned_to=None)
            worker.on_claim_lost(*lost)

    def step(self) -> None:
        view = self.random.choice(self.open)
        dice = self.random.random()
        if view.state is TaskState.PENDING:
            if view.id in self.claims and dice < 0.6:
                self.grant(view.id)
            elif dice < 0.75:
                self.change(view.id, TaskState.ASSIGNED, assigned_to=RIVAL, round=view.round + 1)
        elif view.assigned_to == ME:
            if view.id in self.kept and dice < 0.8:
                self.change(view.id, TaskState.COMPLETED)
            elif dice < 0.1:
                self.expire(view)
            elif dice < 0.15:
                self.change(view.id, TaskState.CANCELLED)
        elif dice < 0.5:
            self.change(view.id, TaskState.PENDING, assigned_to=None)
        elif dice < 0.6:
            self.change(view.id, TaskState.COMPLETED)


@pytest.mark.parametrize("seed", range(40))
async def test_all_tasks_get_settled_and_nothing_leaks(
    seed: int, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, logger="converge_p2p.runtime")
    electors = Electors(seed)
    inside: set[TaskId] = set()
    tokens: dict[TaskId, tuple[int, int]] = {}

    async def work(view: TaskView, context: WorkContext) -> int:
        assert view.id not in inside, "worked on twice at once"
        assert context.token > tokens.get(view.id, (-1, -1)), "a fencing token came twice"
        tokens[view.id] = context.token
        inside.add(view.id)
        assert len(inside) <= CONCURRENCY
        try:
            await trio.sleep(electors.random.random())
            if electors.random.random() < 0.2:
                raise ValueError("no luck")
        finally:
            inside.discard(view.id)
            tokens[view.id] = context.token
        return 1

    workers = electors.worker = WorkerPool(electors, ME)
    workers.add_handler("x", work, concurrency=CONCURRENCY)
    with trio.fail_after(3600):
        async with trio.open_nursery() as nursery:
            await nursery.start(workers.run)
            while electors.open:
                electors.step()
                await trio.sleep(electors.random.random() * 0.2)
            await trio.sleep(60)
            handler = workers._book.handlers["x"]
            assert (handler.used, len(handler.candidates), inside) == (0, 0, set())
            assert not workers._book.standing
            assert not workers._book.reported
            await workers.stop()
    assert workers.counters["started"] > 0


@pytest.mark.parametrize("seed", range(10))
async def test_stopping_in_the_middle_leaves_no_claim_behind(
    seed: int, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, logger="converge_p2p.runtime")
    electors = Electors(seed)

    async def work(view: TaskView, context: WorkContext) -> int:
        await trio.sleep(electors.random.random() * 3)
        return 1

    workers = electors.worker = WorkerPool(electors, ME)
    workers.add_handler("x", work, concurrency=CONCURRENCY)
    async with trio.open_nursery() as nursery:
        await nursery.start(workers.run)
        for _ in range(30):
            electors.step()
            await trio.sleep(0.1)
        if seed % 2:
            await workers.stop(grace_s=1)
        nursery.cancel_scope.cancel()
    left = {task_id for task_id in electors.claims if not electors.views[task_id].state.terminal} - electors.kept
    assert not left
