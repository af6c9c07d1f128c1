"""Handler-style workers: claim, run, report; what is lost is stopped, and nothing is held that nobody works on."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from converge_p2p.core import limits
from converge_p2p.core.codec import decode_value
from converge_p2p.core.errors import ClaimLost, Conflict, LimitExceeded, LocalError, NotAuthorised
from converge_p2p.core.model.task import Outcome, TaskSpec, TaskState, TaskView
from converge_p2p.core.replica.ranking import claim_rank
from converge_p2p.core.types import PoolId, PublicKey, TaskId
from converge_p2p.runtime.attempt import PermanentFailure, WorkContext
from converge_p2p.runtime.turns import TURN_S_MIN
from converge_p2p.runtime.workers import WorkerPool

ME, RIVAL = PublicKey(b"m" * 32), PublicKey(b"r" * 32)
POOL = PoolId(b"p" * 32)


def task(number: int, objective: str = "x", **spec: Any) -> TaskView:
    fields = TaskSpec(b"%d" % number, objective, b"", **spec)
    return TaskView(TaskId(number.to_bytes(32, "big")), POOL, RIVAL, fields, TaskState.PENDING)


class Register:
    """The tasks of a pool behind the port. `grant=True` lets every claim win at once, from inside the call."""

    def __init__(self, *tasks: TaskView, grant: bool = True) -> None:
        self.tasks = {view.id: view for view in tasks}
        self.grant = grant
        self.claims: list[int] = []
        self.claimed: set[TaskId] = set()
        self.releases: list[tuple[int, bool, str]] = []
        self.reports: dict[int, tuple[Outcome, Any]] = {}
        self.refuse: list[Exception] = []
        self.pending_reads = 0
        self.renewals: list[tuple[float, int, int, str]] = []
        self.refuse_renewals = False
        self.turns = False
        self.workers: WorkerPool

    def claim(self, task_id: TaskId) -> None:
        self.claims.append(number_of(task_id))
        if self.refuse:
            raise self.refuse.pop(0)
        self.claimed.add(task_id)
        if self.grant:
            self.win(task_id)

    def release(self, task_id: TaskId, failed: bool, reason: str) -> None:
        self.releases.append((number_of(task_id), failed, reason))
        self.claimed.discard(task_id)
        self.change(task_id, TaskState.PENDING)

    def report(self, task_id: TaskId, outcome: Outcome, result: bytes) -> None:
        if self.refuse:
            raise self.refuse.pop(0)
        assert number_of(task_id) not in self.reports, "reported twice"
        self.reports[number_of(task_id)] = (outcome, decode_value(result))
        self.settle(task_id, outcome.state)

    def renew(self, task_id: TaskId, fraction: int, note: str) -> None:
        self.renewals.append((trio.current_time(), number_of(task_id), fraction, note))
        if self.refuse_renewals:
            raise ClaimLost("not held")

    def renewal_interval_s(self, view: TaskView, round_: int) -> float:
        return 10.0 * 2**round_

    def pending(self, objectives: frozenset[str], capabilities: frozenset[str]) -> Iterable[TaskView]:
        self.pending_reads += 1
        return [view for view in self.tasks.values() if not view.state.terminal and view.spec.objective in objectives]

    def stands(self, task_id: TaskId) -> bool:
        return task_id in self.claimed

    def in_turn(self) -> bool:
        return self.turns

    # what happens elsewhere

    def submit(self, view: TaskView) -> None:
        self.tasks[view.id] = view
        self.workers.on_task_changed(view)

    def change(self, task_id: TaskId, state: TaskState, **fields: Any) -> None:
        self.tasks[task_id] = replace(self.tasks[task_id], state=state, **fields)
        self.workers.on_task_changed(self.tasks[task_id])

    def win(self, task_id: TaskId, round_: int | None = None) -> None:
        round_ = self.tasks[task_id].round + 1 if round_ is None else round_
        self.change(task_id, TaskState.ASSIGNED, assigned_to=ME, round=round_)
        self.workers.on_claim_won(task_id, 0, round_)

    def rival_wins(self, task_id: TaskId) -> None:
        self.change(task_id, TaskState.ASSIGNED, assigned_to=RIVAL, round=self.tasks[task_id].round + 1)

    def settle(self, task_id: TaskId, state: TaskState = TaskState.COMPLETED) -> None:
        self.change(task_id, state)


def number_of(task_id: TaskId) -> int:
    return int.from_bytes(task_id, "big")


@asynccontextmanager
async def working(
    register: Register, *, capabilities: Iterable[str] = (), **handlers: Any
) -> AsyncIterator[WorkerPool]:
    options = {name: handlers.pop(name) for name in ("concurrency", "timeout_s") if name in handlers}
    workers = register.workers = WorkerPool(register, ME, capabilities=capabilities, wall_clock=lambda: 1000.0)
    for objective, function in handlers.items():
        workers.add_handler(objective, function, **options)
    async with trio.open_nursery() as nursery:
        await nursery.start(workers.run)
        await wait_all_tasks_blocked()
        yield workers
        nursery.cancel_scope.cancel()
    assert not workers.running()


class Gate:
    """A handler that works until it is let go; notes who came in and who was cancelled."""

    def __init__(self) -> None:
        self.inside: dict[int, WorkContext] = {}
        self.tokens: list[tuple[int, tuple[int, int]]] = []
        self.cancelled: list[int] = []
        self.opened: dict[int, trio.Event] = {}

    async def __call__(self, view: TaskView, context: WorkContext) -> Any:
        raise AssertionError("use `handle`")

    async def handle(self, view: TaskView, context: WorkContext) -> Any:
        number = number_of(view.id)
        self.inside[number] = context
        self.tokens.append((number, context.token))
        self.opened[number] = trio.Event()
        try:
            await self.opened[number].wait()
        except trio.Cancelled:
            self.cancelled.append(number)
            raise
        finally:
            del self.inside[number]
        return number

    async def open(self, *numbers: int) -> None:
        for number in numbers:
            self.opened[number].set()
        await wait_all_tasks_blocked()


async def test_every_task_is_claimed_worked_and_reported_once(autojump_clock: MockClock) -> None:
    async def square(view: TaskView, context: WorkContext) -> Any:
        await context.progress(0.5)
        assert context.token == (0, 0)
        return {"square": number_of(view.id) ** 2}

    register = Register(*(task(number) for number in range(100)))
    async with working(register, x=square, concurrency=3) as workers:
        for number in range(100, 200):
            register.submit(task(number))
        await wait_all_tasks_blocked()
        assert register.reports == {n: (Outcome.COMPLETED, {"square": n * n}) for n in range(200)}
        assert sorted(register.claims) == list(range(200))
        assert register.pending_reads == 1, "afterwards the notifications keep the candidates"
        assert workers.counters["completed"] == 200
        assert workers.counters["settled_elsewhere"] == 0
    assert register.releases == []


async def test_no_more_than_concurrency_tasks_are_claimed_or_running(autojump_clock: MockClock) -> None:
    gate = Gate()
    register = Register(*(task(number) for number in range(10)), grant=False)
    async with working(register, x=gate.handle, concurrency=3):
        assert len(register.claims) == 3
        first = TaskId(register.claims[0].to_bytes(32, "big"))
        register.win(first)
        await wait_all_tasks_blocked()
        assert len(register.claims) == 3
        await gate.open(number_of(first))
        assert len(register.claims) == 4


async def test_tasks_with_other_objectives_or_requirements_are_left_alone(autojump_clock: MockClock) -> None:
    gate = Gate()
    late = task(5, deadline_ms=999_999)
    in_time = task(6, deadline_ms=1_000_001)
    register = Register(
        task(1, "other"),
        task(2, required_capabilities=("gpu",)),
        task(3, required_capabilities=("ocr",)),
        late,
        in_time,
    )
    async with working(register, x=gate.handle, concurrency=10, capabilities=["ocr"]) as workers:
        assert sorted(register.claims) == [3, 6]
        assert workers.counters["expired"] == 1
        workers.set_capabilities(["ocr", "gpu"])
        await wait_all_tasks_blocked()
        assert sorted(register.claims) == [2, 3, 6]


async def test_a_task_a_rival_won_frees_the_place_at_once(autojump_clock: MockClock) -> None:
    gate = Gate()
    register = Register(task(1, priority=9), task(2), grant=False)
    async with working(register, x=gate.handle) as workers:
        assert register.claims == [1]
        register.rival_wins(task(1).id)
        await wait_all_tasks_blocked()
        assert register.claims == [1, 2]
        assert workers.counters["rivals_won"] == 1
        assert gate.inside == {}


async def test_a_lost_claim_cancels_the_handler_and_its_result_is_not_reported(autojump_clock: MockClock) -> None:
    gate = Gate()
    register = Register(task(1), grant=False)
    async with working(register, x=gate.handle) as workers:
        register.win(task(1).id)
        await wait_all_tasks_blocked()
        assert list(gate.inside) == [1]
        assert [(one.task_id, one.token) for one in workers.running()] == [(task(1).id, (0, 0))]
        register.change(task(1).id, TaskState.PENDING)
        workers.on_claim_lost(task(1).id, 0, 0, "expired")
        await wait_all_tasks_blocked()
        assert gate.cancelled == [1]
        assert workers.running() == ()
        assert (register.reports, register.releases) == ({}, [])
        await trio.sleep(1)
        assert register.claims == [1, 1], "it is open again, so it is claimed again, after a pause"
        register.win(task(1).id)
        await wait_all_tasks_blocked()
        await gate.open(1)
        assert gate.tokens == [(1, (0, 0)), (1, (0, 1))]
        assert register.reports == {1: (Outcome.COMPLETED, 1)}


async def test_a_rival_in_a_later_round_or_a_settlement_cancels_the_handler(autojump_clock: MockClock) -> None:
    gate = Gate()
    register = Register(task(1), task(2))
    async with working(register, x=gate.handle, concurrency=2) as workers:
        assert sorted(gate.inside) == [1, 2]
        register.rival_wins(task(1).id)
        register.settle(task(2).id, TaskState.CANCELLED)
        await wait_all_tasks_blocked()
        assert sorted(gate.cancelled) == [1, 2]
        assert (workers.counters["lost"], workers.counters["settled_elsewhere"]) == (1, 1)
        await trio.sleep(100)
        assert sorted(register.claims) == [1, 2]
        assert (register.reports, register.releases) == ({}, [])


async def test_stale_notifications_are_not_obeyed(autojump_clock: MockClock) -> None:
    gate = Gate()
    register = Register(task(1), grant=False)
    async with working(register, x=gate.handle) as workers:
        workers.on_claim_lost(task(1).id, 0, 3, "a rival was better")
        workers.on_claim_won(task(1).id, 0, 3)
        await wait_all_tasks_blocked()
        assert gate.inside == {}, "a win that is already lost is not started"
        assert workers.counters["stale_wins"] == 1
        workers.on_claim_won(task(1).id, 0, 4)
        await wait_all_tasks_blocked()
        assert gate.tokens == [(1, (0, 4))]
        workers.on_claim_lost(task(1).id, 0, 2, "late news")
        workers.on_claim_won(task(1).id, 0, 4)
        await wait_all_tasks_blocked()
        assert list(gate.inside) == [1], "an older round does not stop it, and it is not started twice"
        workers.on_claim_won(task(1).id, 1, 0)
        assert gate.inside[1].token == (1, 0), "a later token of the same worker is the fencing token from now on"
        await gate.open(1)
        assert len(gate.tokens) == 1


async def test_a_claim_won_after_all_is_worked_on_or_given_back(autojump_clock: MockClock) -> None:
    gate = Gate()
    register = Register(task(1, priority=9), task(2, priority=8), task(3, priority=7), grant=False)
    async with working(register, x=gate.handle) as workers:
        for number in (1, 2, 3):
            assert register.claims[-1] == number
            register.rival_wins(task(number).id)
            await wait_all_tasks_blocked()
        register.win(task(2).id)
        await wait_all_tasks_blocked()
        assert list(gate.inside) == [2], "its claim still stood and its rival gave up"
        register.win(task(1).id)
        await wait_all_tasks_blocked()
        assert register.releases == [(1, False, "no free worker")]
        workers.on_claim_won(task(7).id, 0, 0)
        await wait_all_tasks_blocked()
        assert workers.counters["unasked_wins"] == 1, "the application's own claims are not touched"
        assert list(gate.inside) == [2]


async def test_a_claim_that_was_lost_while_working_still_stands_and_is_withdrawn_at_the_end(
    autojump_clock: MockClock,
) -> None:
    gate = Gate()
    register = Register(task(1), task(2))
    async with working(register, x=gate.handle, concurrency=2):
        for number in (1, 2):
            register.rival_wins(task(number).id)
        await wait_all_tasks_blocked()
        assert sorted(gate.cancelled) == [1, 2]
        register.win(task(1).id)
        await wait_all_tasks_blocked()
        assert gate.tokens[2:] == [(1, (0, 2))], "the rival gave up, and the old claim was certified again"
        assert sorted(register.claims) == [1, 2]
    assert sorted(number for number, _, _ in register.releases) == [1, 2]


async def test_a_failed_attempt_is_given_back_as_failed_and_tried_again_later(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    times: list[float] = []

    async def flaky(view: TaskView, context: WorkContext) -> str:
        times.append(trio.current_time())
        if len(times) < 4:
            async with trio.open_nursery():
                raise ValueError("no luck " + "é" * 2000)
        return "done"

    register = Register(task(1))
    with caplog.at_level(logging.CRITICAL, logger="converge_p2p.runtime.attempt"):
        async with working(register, x=flaky):
            await trio.sleep(10)
    assert register.reports == {1: (Outcome.COMPLETED, "done")}
    assert [failed for _, failed, _ in register.releases] == [True] * 3
    assert "ExceptionGroup" in register.releases[0][2]
    assert all(len(reason.encode()) <= limits.TEXT_BYTES_MAX for _, _, reason in register.releases)
    assert [later - earlier for earlier, later in itertools.pairwise(times)] == pytest.approx([0.1, 0.2, 0.4])


@pytest.mark.parametrize("in_group", [False, True])
async def test_a_permanent_failure_is_reported_and_not_tried_again(in_group: bool, autojump_clock: MockClock) -> None:
    async def hopeless(view: TaskView, context: WorkContext) -> None:
        if in_group:
            async with trio.open_nursery():
                raise PermanentFailure("no such page")
        raise PermanentFailure("no such page")

    register = Register(task(1))
    async with working(register, x=hopeless):
        await trio.sleep(100)
    assert register.reports == {1: (Outcome.FAILED, "no such page")}
    assert register.claims == [1]


@pytest.mark.parametrize(
    ("value", "reason"),
    [(object(), "object cannot be encoded"), ("x" * 50_000, "50003 bytes"), (float("nan"), "finite")],
)
async def test_a_result_that_cannot_be_reported_fails_the_task_with_the_reason(
    value: Any, reason: str, autojump_clock: MockClock
) -> None:
    async def give(view: TaskView, context: WorkContext) -> Any:
        return value

    register = Register(task(1))
    async with working(register, x=give):
        await wait_all_tasks_blocked()
    outcome, text = register.reports[1]
    assert outcome is Outcome.FAILED
    assert reason in text


@pytest.mark.parametrize(("task_ms", "own_s", "stopped_at"), [(2000, None, 2), (0, 3, 3), (5000, 3, 3), (2000, 3, 2)])
async def test_the_shorter_time_limit_stops_the_handler(
    task_ms: int, own_s: float | None, stopped_at: float, autojump_clock: MockClock
) -> None:
    gate = Gate()
    register = Register(task(1, timeout_ms=task_ms))
    async with working(register, x=gate.handle, timeout_s=own_s):
        await trio.sleep(stopped_at - 0.01)
        assert list(gate.inside) == [1]
        await trio.sleep(0.02)
        assert gate.cancelled == [1]
    assert register.releases[0] == (1, True, f"stopped after {stopped_at} s")


async def test_refused_claims_are_dropped_or_retried_by_their_reason(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()
    register = Register(task(1, priority=1), task(2))
    register.refuse = [Conflict("not to be had"), NotAuthorised("not a member yet"), NotAuthorised("not a member yet")]
    with caplog.at_level(logging.CRITICAL, logger="converge_p2p.runtime.workers"):
        async with working(register, x=gate.handle, concurrency=2) as workers:
            assert register.claims == [1, 2], "a conflict concerns one task, other refusals concern all"
            await trio.sleep(0.15)
            assert register.claims == [1, 2, 2]
            await trio.sleep(0.3)
            assert register.claims == [1, 2, 2, 2]
            assert list(gate.inside) == [2]
            register.change(task(1).id, TaskState.PENDING)
            await wait_all_tasks_blocked()
            assert sorted(gate.inside) == [1, 2], "a change brings the task back"
            assert workers.counters["claims_refused"] == 3


async def test_a_result_that_the_evaluator_denied_is_worked_out_anew_in_the_next_round(
    autojump_clock: MockClock,
) -> None:
    register, done = Register(task(1)), list[tuple[int, int]]()

    async def work(view: TaskView, context: WorkContext) -> int:
        done.append(context.token)
        return len(done)

    register.settle = lambda *args: None  # type: ignore[method-assign]  # reports wait for the evaluator
    async with working(register, x=work) as workers:
        one = task(1).id
        assert register.reports.pop(1)[1] == 1
        register.grant = False
        workers.on_denied(register.tasks[one])
        workers.on_claim_lost(one, 0, 0, "the evaluator denied the result")
        register.change(one, TaskState.PENDING)
        await wait_all_tasks_blocked()
        register.win(one, 1)
        await wait_all_tasks_blocked()
        assert done == [(0, 0), (0, 1)]
        assert register.reports[1][1] == 2
        assert workers.counters["denied"] == 1


async def test_a_finished_task_that_comes_back_is_not_done_again(autojump_clock: MockClock) -> None:
    runs: list[int] = []

    async def once(view: TaskView, context: WorkContext) -> str:
        runs.append(number_of(view.id))
        return "done"

    register = Register(task(1), task(2), grant=False)
    register.settle = lambda *args: None  # type: ignore[method-assign]  # reports wait for the electors
    async with working(register, x=once) as workers:
        one = TaskId(register.claims[0].to_bytes(32, "big"))
        register.win(one)
        await wait_all_tasks_blocked()
        assert len(register.claims) == 2, "a place is free as soon as the result is handed over"
        workers.on_claim_lost(one, 0, 0, "expired before the settlement")
        register.change(one, TaskState.PENDING)
        register.win(TaskId(register.claims[1].to_bytes(32, "big")))
        await wait_all_tasks_blocked()
        assert register.claims[2:] == [number_of(one)], "claimed again, so that the finished work can count"
        register.win(one)
        await wait_all_tasks_blocked()
        assert len(runs) == 2
        assert workers.running() == ()
        assert len(register.claims) == 3


async def test_a_result_that_is_not_taken_is_given_back_and_one_that_is_late_is_not(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def give(view: TaskView, context: WorkContext) -> int:
        register.refuse = [ClaimLost("late")] if number_of(view.id) == 1 else [LimitExceeded("X", "too much")]
        return 1

    register = Register(task(1))
    with caplog.at_level(logging.CRITICAL, logger="converge_p2p.runtime.workers"):
        async with working(register, x=give) as workers:
            assert register.releases == []
            register.submit(task(2))
            await wait_all_tasks_blocked()
            assert register.releases == [(2, True, "result not taken: too much")]
            assert workers.counters["late"] == 2


async def test_after_a_restart_held_claims_go_on_as_far_as_there_is_room(autojump_clock: MockClock) -> None:
    gate = Gate()
    held = [replace(task(n), state=TaskState.ASSIGNED, assigned_to=ME, epoch=2, round=5) for n in (1, 2)]
    elsewhere = replace(task(3), state=TaskState.ASSIGNED, assigned_to=RIVAL)
    register = Register(*held, elsewhere)
    async with working(register, x=gate.handle):
        assert gate.tokens == [(1, (2, 5))]
        assert register.releases[0][:2] == (2, False)
        assert register.claims == []


async def test_a_claim_from_before_a_restart_that_is_won_late_is_worked_on_or_handed_back(
    autojump_clock: MockClock,
) -> None:
    # a round may be promised to it before this worker gets to the task again: nobody else would do the work then
    gate = Gate()
    register = Register(task(1, priority=2), task(2, priority=1), grant=False)
    register.claimed = {task(1).id, task(2).id}
    async with working(register, x=gate.handle) as workers:
        assert register.claims == [1]
        register.win(task(2).id)
        await wait_all_tasks_blocked()
        assert register.releases == [(2, False, "no free worker")]
        register.win(task(1).id)
        await wait_all_tasks_blocked()
        assert [number for number, _ in gate.tokens] == [1]
        assert workers.counters["unasked_wins"] == 0


async def test_stop_hands_everything_back_and_claims_nothing_more(autojump_clock: MockClock) -> None:
    gate = Gate()
    register = Register(task(1, priority=3), task(2, priority=2), task(3, priority=1), grant=False)
    async with working(register, x=gate.handle, concurrency=2) as workers:
        assert register.claims == [1, 2]
        register.win(task(1).id)
        await wait_all_tasks_blocked()
        await workers.stop()
        assert sorted(register.releases) == [(1, False, "the worker stops"), (2, False, "the worker stops")]
        assert gate.cancelled == [1]
        register.submit(task(4))
        await wait_all_tasks_blocked()
        assert register.claims == [1, 2]
    assert len(register.releases) == 2
    assert trio.current_time() == 0


async def test_stop_lets_handlers_finish_in_the_grace_time(autojump_clock: MockClock) -> None:
    async def work(view: TaskView, context: WorkContext) -> str:
        await trio.sleep(2 if number_of(view.id) == 1 else 20)
        return "done"

    register = Register(task(1), task(2))
    async with working(register, x=work, concurrency=2) as workers:
        await workers.stop(grace_s=5)
        assert trio.current_time() == 5
    assert register.reports == {1: (Outcome.COMPLETED, "done")}
    assert register.releases == [(2, False, "the worker stops")]


async def test_cancelling_the_pool_hands_everything_back(autojump_clock: MockClock) -> None:
    gate = Gate()
    register = Register(task(1), task(2), grant=False)
    async with working(register, x=gate.handle, concurrency=2):
        register.win(task(1).id)
        await wait_all_tasks_blocked()
    assert gate.cancelled == [1]
    assert sorted(number for number, failed, _ in register.releases if not failed) == [1, 2]


async def test_plain_handlers_run_in_threads_and_one_that_does_not_end_keeps_its_place() -> None:
    let_go, entered = threading.Event(), threading.Event()
    seen: list[bool] = []

    def block(view: TaskView, context: WorkContext) -> str:
        entered.set()
        let_go.wait(30)
        seen.append(context.cancelled)
        return f"done {number_of(view.id)}"

    register = Register(task(1, priority=1), grant=True)
    try:
        async with working(register, x=block) as workers:
            with trio.fail_after(10):
                assert await trio.to_thread.run_sync(entered.wait, 10)
                register.rival_wins(task(1).id)
                register.submit(task(2))
                await wait_all_tasks_blocked()
                assert workers.running() == ()
                assert register.claims == [1], "the thread still holds the only place"
                let_go.set()
                while 2 not in register.reports:
                    await wait_all_tasks_blocked(0.01)
    finally:
        let_go.set()
    assert register.reports == {2: (Outcome.COMPLETED, "done 2")}
    assert seen == [True, False], "a handler that looks can see that nobody waits any more"


async def test_when_candidates_overflowed_the_rest_is_read_again(autojump_clock: MockClock) -> None:
    async def work(view: TaskView, context: WorkContext) -> None:
        await trio.lowlevel.checkpoint()

    register = Register(*(task(number) for number in range(20)))
    workers = register.workers = WorkerPool(register, ME)
    workers.add_handler("x", work)
    workers._book.handlers["x"].candidates._candidates_max = 6
    async with trio.open_nursery() as nursery:
        await nursery.start(workers.run)
        await wait_all_tasks_blocked()
        assert sorted(register.reports) == list(range(20))
        assert register.pending_reads <= 5
        nursery.cancel_scope.cancel()


async def test_progress_is_shown_and_brought_into_its_range(autojump_clock: MockClock) -> None:
    gate = Gate()
    register = Register(task(1))
    async with working(register, x=gate.handle) as workers:
        for given, shown in ((0.25, 0.25), (7, 1.0), (-1, 0.0), (float("nan"), 0.0)):
            await gate.inside[1].progress(given)
            assert workers.running()[0].progress == shown


def test_handlers_that_make_no_sense_are_refused() -> None:
    workers = WorkerPool(Register(), ME)
    workers.add_handler("x", print)
    with pytest.raises(Conflict):
        workers.add_handler("x", print)
    for concurrency in (0, limits.HANDLER_CONCURRENCY_MAX + 1):
        with pytest.raises(LocalError):
            workers.add_handler("y", print, concurrency=concurrency)
    for timeout_s in (0, -1, float("nan")):
        with pytest.raises(LocalError):
            workers.add_handler("y", print, timeout_s=timeout_s)
    with pytest.raises(LocalError):
        workers.add_handler("", print)


def falls_to(worker: PublicKey, other: PublicKey, start: int = 0) -> TaskView:
    views = (task(number) for number in itertools.count(start))
    return next(view for view in views if claim_rank(view.id, 0, worker) < claim_rank(view.id, 0, other))


async def meet_the_rival(register: Register) -> None:
    register.submit(task(10_000))
    register.rival_wins(task(10_000).id)
    register.settle(task(10_000).id)
    await wait_all_tasks_blocked()
    register.claims.clear()


@pytest.mark.parametrize("turns", [True, False])
async def test_a_task_that_falls_to_another_worker_is_left_to_it_for_a_turn(
    autojump_clock: MockClock, turns: bool
) -> None:
    register, gate = Register(grant=False), Gate()
    register.turns = turns
    async with working(register, x=gate.handle, concurrency=9):
        await meet_the_rival(register)
        mine, another = falls_to(ME, RIVAL), falls_to(RIVAL, ME, 1000)
        register.submit(mine)
        register.submit(another)
        await wait_all_tasks_blocked()
        assert set(register.claims) == {number_of(mine.id)} | ({number_of(another.id)} if not turns else set())
        await trio.sleep(TURN_S_MIN * 1.01)
        await wait_all_tasks_blocked()
        assert set(register.claims) == {number_of(mine.id), number_of(another.id)}, "whose turn it was did not come"
        assert len(register.claims) == 2


async def test_a_task_that_was_claimed_in_turn_is_claimed_by_nobody_else(autojump_clock: MockClock) -> None:
    register, gate = Register(grant=False), Gate()
    register.turns = True
    async with working(register, x=gate.handle, concurrency=9):
        await meet_the_rival(register)
        register.submit(another := falls_to(RIVAL, ME))
        await wait_all_tasks_blocked()
        register.rival_wins(another.id)
        await trio.sleep(60)
        assert register.claims == []
        # a round was granted and came to nothing: from now on nobody waits for anybody
        register.change(another.id, TaskState.PENDING)
        await wait_all_tasks_blocked()
        assert register.claims == [number_of(another.id)]
