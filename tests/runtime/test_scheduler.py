"""The scheduler: wakes at once, never loses a notification, never wakes for nothing."""

from __future__ import annotations

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from converge_p2p.runtime.scheduler import Scheduler


async def test_a_notification_before_the_wait_is_kept(autojump_clock: MockClock) -> None:
    scheduler = Scheduler()
    scheduler.notify()
    scheduler.notify()
    assert await scheduler.wait_for_work(10)
    assert trio.current_time() == 0
    assert not await scheduler.wait_for_work(10), "two notifications before one wait are one"
    assert trio.current_time() == 10


async def test_a_waiter_is_woken_without_delay(autojump_clock: MockClock) -> None:
    scheduler = Scheduler()
    async with trio.open_nursery() as nursery:

        async def wait() -> None:
            assert await scheduler.wait_for_work()
            assert trio.current_time() == 3

        nursery.start_soon(wait)
        await trio.sleep(3)
        scheduler.notify()


async def test_a_cancelled_wait_keeps_the_notification() -> None:
    scheduler = Scheduler()
    with trio.CancelScope() as scope:
        scheduler.notify()
        scope.cancel()
        await scheduler.wait_for_work()
    assert scope.cancelled_caught
    assert await scheduler.wait_for_work(0)


async def test_a_notification_while_the_waiter_is_being_woken_is_not_lost() -> None:
    scheduler = Scheduler()
    woken: list[bool] = []
    async with trio.open_nursery() as nursery:

        async def wait() -> None:
            woken.append(await scheduler.wait_for_work())
            scheduler.notify()
            woken.append(await scheduler.wait_for_work(0))

        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        scheduler.notify()
        scheduler.notify()
    assert woken == [True, True]


async def test_a_time_wakes_and_of_several_the_earliest_counts(autojump_clock: MockClock) -> None:
    scheduler = Scheduler()
    scheduler.wake_at(9)
    scheduler.wake_at(5)
    assert await scheduler.wait_for_work(100)
    assert trio.current_time() == 5
    assert not await scheduler.wait_for_work(100), "a time is consumed, and the later one with it"
    assert trio.current_time() == 105


async def test_a_time_that_is_set_while_somebody_waits_counts(autojump_clock: MockClock) -> None:
    scheduler = Scheduler()
    woken: list[tuple[bool, float]] = []

    async def wait() -> None:
        woken.append((await scheduler.wait_for_work(50), trio.current_time()))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.sleep(1)
        scheduler.wake_at(60)
        await trio.sleep(1)
        scheduler.wake_at(3)
    assert woken == [(True, 3)]
    assert trio.current_time() == 3
