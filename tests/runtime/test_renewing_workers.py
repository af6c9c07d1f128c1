"""While a handler works, the others hear of it: in good time, when there is news, and never too often."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import trio
from test_workers import ME, Gate, Register, task, working
from trio.testing import MockClock, wait_all_tasks_blocked

from converge_p2p.core import limits
from converge_p2p.core.model.task import Outcome, TaskState, TaskView
from converge_p2p.runtime.attempt import WorkContext

PAUSE_S = limits.RENEWAL_PAUSE_MS / 1000
INTERVAL_S = 10.0


def times(register: Register) -> list[float]:
    return [round(at, 3) for at, *_ in register.renewals]


async def test_a_claim_is_renewed_as_long_as_its_handler_works_and_not_after(autojump_clock: MockClock) -> None:
    async def work(view: TaskView, context: WorkContext) -> None:
        await trio.sleep(3.5 * INTERVAL_S)

    register, began = Register(task(1)), trio.current_time()
    async with working(register, x=work):
        await trio.sleep(100)
    assert times(register) == [round(began + number * INTERVAL_S, 3) for number in (1, 2, 3)]
    assert {renewal[1:] for renewal in register.renewals} == {(1, 0, "")}
    assert register.reports[1][0] is Outcome.COMPLETED


async def test_a_later_round_is_renewed_at_its_own_pace(autojump_clock: MockClock) -> None:
    gate, began = Gate(), trio.current_time()
    register = Register(replace(task(1), state=TaskState.ASSIGNED, assigned_to=ME, round=2))
    async with working(register, x=gate.handle):
        await trio.sleep(9 * INTERVAL_S)
    # a worker that comes back speaks up at once, for nobody heard of it for a while
    assert times(register) == [round(began + after, 3) for after in (PAUSE_S, 4 * INTERVAL_S + PAUSE_S)] + [
        round(began + 8 * INTERVAL_S + PAUSE_S, 3)
    ]


async def test_news_is_passed_on_soon_and_only_the_latest(autojump_clock: MockClock) -> None:
    async def work(view: TaskView, context: WorkContext) -> None:
        for number in range(1000):
            await context.progress(number / 1000, f"step {number}")
            await trio.sleep(PAUSE_S / 10)

    register = Register(task(1))
    async with working(register, x=work):
        await trio.sleep(200)
    assert 90 <= len(register.renewals) <= 100
    pauses = [after - before for before, after in zip(times(register), times(register)[1:], strict=False)]
    assert min(pauses) >= PAUSE_S - 0.001
    assert all(note == f"step {fraction}" for _, _, fraction, note in register.renewals)
    assert register.renewals[-1][2] >= 980


async def test_a_short_task_is_not_renewed_at_all(autojump_clock: MockClock) -> None:
    async def work(view: TaskView, context: WorkContext) -> None:
        await context.progress(0.5)

    register = Register(*(task(number) for number in range(20)))
    async with working(register, x=work):
        await trio.sleep(100)
    assert len(register.reports) == 20
    assert register.renewals == []


async def test_what_a_thread_says_is_passed_on_too() -> None:
    told, let_go = threading.Event(), threading.Event()

    def work(view: TaskView, context: WorkContext) -> None:
        context.set_progress(0.25, "from a thread")
        told.set()
        let_go.wait(30)

    register = Register(task(1))
    try:
        async with working(register, x=work):
            with trio.fail_after(10):
                assert await trio.to_thread.run_sync(told.wait, 10)
                while not register.renewals:
                    await wait_all_tasks_blocked(0.01)
                let_go.set()
                while 1 not in register.reports:
                    await wait_all_tasks_blocked(0.01)
    finally:
        let_go.set()
    assert [renewal[1:] for renewal in register.renewals] == [(1, 250, "from a thread")]


async def test_a_refused_renewal_is_counted_and_the_handler_goes_on(autojump_clock: MockClock) -> None:
    async def work(view: TaskView, context: WorkContext) -> str:
        await trio.sleep(2.5 * INTERVAL_S)
        return "done"

    register = Register(task(1))
    register.refuse_renewals = True
    async with working(register, x=work) as workers:
        await trio.sleep(100)
    assert workers.counters["renewals_refused"] == 2
    assert register.reports[1] == (Outcome.COMPLETED, "done")


async def test_a_long_note_is_cut_to_whole_characters(autojump_clock: MockClock) -> None:
    async def work(view: TaskView, context: WorkContext) -> Any:
        await context.progress(1.0, "ä" * 1000)
        await trio.sleep(1)

    register = Register(task(1))
    async with working(register, x=work):
        await trio.sleep(100)
    ((_, _, fraction, note),) = register.renewals
    assert fraction == 1000
    assert len(note.encode()) <= limits.RENEWAL_NOTE_BYTES_MAX
    assert note.startswith("ä" * 100)
