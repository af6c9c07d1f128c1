"""Timers: each fires once, at its last setting, and stale entries do not pile up."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio

from converge_p2p.node.timers import STALE_MIN, Timers


@pytest.fixture
async def timers(autojump_clock: Any) -> AsyncIterator[Timers]:
    timers = Timers()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(timers.run)
        yield timers
        nursery.cancel_scope.cancel()


async def test_timers_fire_in_order_of_time_at_their_time(autojump_clock: Any, timers: Timers) -> None:
    fired: list[tuple[str, float]] = []
    start = trio.current_time()
    for name, delay in (("late", 5.0), ("soon", 1.0), ("middle", 3.0)):
        timers.set(name, start + delay, lambda name=name: fired.append((name, trio.current_time() - start)))
    await trio.sleep(10)
    assert fired == [("soon", pytest.approx(1.0)), ("middle", pytest.approx(3.0)), ("late", pytest.approx(5.0))]
    assert len(timers) == 0


async def test_setting_a_timer_again_moves_it_in_both_directions(autojump_clock: Any, timers: Timers) -> None:
    fired: list[str] = []
    start = trio.current_time()
    timers.set("later", start + 1, lambda: fired.append("old"))
    timers.set("later", start + 5, lambda: fired.append("later"))
    timers.set("earlier", start + 9, lambda: fired.append("old"))
    timers.set("earlier", start + 2, lambda: fired.append("earlier"))
    await trio.sleep(3)
    assert fired == ["earlier"]
    await trio.sleep(20)
    assert fired == ["earlier", "later"]


async def test_a_cancelled_timer_does_not_fire_and_an_owner_can_cancel_all_of_its_own(
    autojump_clock: Any, timers: Timers
) -> None:
    fired: list[object] = []
    at = trio.current_time() + 1
    for key in ("alone", ("a", 1), ("a", 2), ("b", 1)):
        timers.set(key, at, lambda key=key: fired.append(key))
    timers.cancel("alone")
    timers.cancel("never set")
    timers.cancel_all("a")
    await trio.sleep(5)
    assert fired == [("b", 1)]


async def test_a_timer_that_sets_itself_again_lets_others_have_their_turn(autojump_clock: Any, timers: Timers) -> None:
    rounds = 0

    def again() -> None:
        nonlocal rounds
        rounds += 1
        timers.set("again", trio.current_time(), again)

    timers.set("again", trio.current_time(), again)
    for _ in range(20):
        await trio.lowlevel.checkpoint()
    timers.cancel("again")
    assert 0 < rounds < 10_000


async def test_setting_and_cancelling_far_timers_for_ever_does_not_grow(autojump_clock: Any, timers: Timers) -> None:
    far = trio.current_time() + 86_400
    fired: list[str] = []
    timers.set("kept", trio.current_time() + 1, lambda: fired.append("kept"))
    for number in range(10_000):
        timers.set("moving", far + number, lambda: None)
        timers.set(("task", number), far, lambda: None)
        timers.cancel(("task", number))
    assert timers.entries <= 2 * len(timers) + STALE_MIN
    await trio.sleep(2)
    assert fired == ["kept"]
