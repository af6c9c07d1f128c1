"""A clock that is set, back or forth: it is noticed and said, and nothing that was acknowledged is lost or refused."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytest
import trio
from node_library_kit import POLICY, real_node, until, who

from converge_p2p import Task
from converge_p2p.core.governance import Democratic
from converge_p2p.core.oplog.operation import decode_operation
from converge_p2p.core.replica import events as ev
from converge_p2p.node import driver
from converge_p2p.node.clock_watch import BEHIND_S, CLOCK_KEY, JUMP_S, SHOWN_S, ClockWatch, steady_s
from converge_p2p.store.home import DATABASE_FILE
from converge_p2p.store.memory import MemoryStore
from converge_p2p.store.sqlite import SqliteStore

DAY_S = 86_400.0


class Clocks:
    """A wall clock that can be set, and one that cannot."""

    def __init__(self, store: MemoryStore) -> None:
        self.wall_s = 1_800_000_000.0
        self.steady_s = 5.0
        self.counters = Counter[str]()
        self.watch = self.opened(store)

    def opened(self, store: MemoryStore) -> ClockWatch:
        watch = ClockWatch(store, self.counters, wall=lambda: self.wall_s, steady=lambda: self.steady_s)
        watch.open_now()
        return watch

    def wait(self, seconds: float) -> None:
        self.wall_s += seconds
        self.steady_s += seconds


@pytest.mark.parametrize(
    ("by_s", "said"),
    [(-DAY_S, "set back by 86400 s"), (DAY_S, "set forward by 86400 s"), (-JUMP_S, "set back by 30 s")],
)
def test_a_jump_is_said_counted_once_and_forgotten_after_an_hour(by_s: float, said: str) -> None:
    clocks = Clocks(MemoryStore())
    clocks.wait(60)
    assert clocks.watch.look() is None
    clocks.wall_s += by_s
    for _ in range(3):
        clocks.wait(60)
        jump = clocks.watch.look()
        assert jump is not None
        assert said in jump.text
    assert clocks.counters["clock_jumps"] == 1
    clocks.wait(SHOWN_S)
    assert clocks.watch.look() is None


def test_a_long_run_a_sleep_and_small_corrections_are_no_jumps() -> None:
    clocks = Clocks(MemoryStore())
    # both clocks go on while a machine sleeps
    for passed in (60, 10 * DAY_S, 60):
        clocks.wait(passed)
        clocks.wall_s += JUMP_S / 2
        assert clocks.watch.look() is None
    assert clocks.counters["clock_jumps"] == 0


def test_a_start_behind_what_the_clock_showed_is_said_and_one_that_is_not_is_not() -> None:
    store = MemoryStore()
    clocks = Clocks(store)
    clocks.watch.keep_now()
    clocks.wall_s -= BEHIND_S
    assert clocks.opened(store).look() is None
    clocks.wall_s -= 10
    jump = clocks.opened(store).look()
    assert jump is not None
    assert jump.text == "the clock is 310 s behind what it showed when the node last ran"
    clocks.wall_s += DAY_S
    assert clocks.opened(store).look() is None
    store.put(CLOCK_KEY, b"rubbish")
    assert clocks.opened(store).look() is None


def test_the_steady_clock_of_this_machine_does_not_go_back() -> None:
    assert steady_s() <= steady_s()
    assert ClockWatch(MemoryStore(), Counter(), wall=time.time).look() is None


async def test_a_node_says_that_its_clock_was_set(monkeypatch: pytest.MonkeyPatch) -> None:
    async with real_node(1) as node:
        assert await node.observation.troubles() == []
        now = time.time
        monkeypatch.setattr(node.observation._health._clock, "_wall", lambda: now() - DAY_S)
        (trouble,) = await node.observation.troubles()
        assert (trouble.what, trouble.fatal) == ("clock", False)
        assert "set back by 86400 s" in trouble.text
        assert "NTP" in trouble.hint
        assert node.observation.counters()["clock_jumps"] == 1


async def test_nothing_acknowledged_is_lost_or_refused_whatever_the_clock_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, skew_s = tmp_path / "home", 0.0

    def skewed() -> ev.Now:
        return ev.Now(int(trio.current_time() * 1000), int((time.time() + skew_s) * 1000))

    async with real_node(1) as one:
        electors = [f"key:{who(number).public_key.hex()}" for number in (1, 2)]
        pool = await one.create_pool("demo", governance=Democratic(), electors=electors, policy=POLICY)
        monkeypatch.setattr(driver, "_now", skewed)
        acknowledged = []
        for skews in ((0.0, 365 * DAY_S, -365 * DAY_S), (-30 * 365 * DAY_S, 0.0)):
            # with a restart in between
            async with real_node(2, one, home=home) as two:
                other = await two.join_pool(pool.id, timeout_s=15)
                for skew_s in skews:
                    task = await other.submit(Task("count", key=f"at {skew_s}"))
                    acknowledged.append(task.id)
                    await until(lambda task=task: pool.find_task(task.id), "the task on the other node")
                assert all(other.find_task(task) for task in acknowledged)
        assert pool.frozen() == []
        assert one.observation.counters()["rejected"] == 0
    store = SqliteStore(home / DATABASE_FILE)
    operations = [decode_operation(data, pool.id) for data in store.load(pool.id)]
    own = sorted((each.seq, each.hlc) for each in operations if each.author == who(2).public_key)
    assert [seq for seq, _ in own] == list(range(len(own)))
    assert [hlc for _, hlc in own] == sorted({hlc for _, hlc in own}), "its own logical clock never goes back"
    store.close()
