"""Whose turn a task is: exactly one worker's at first, and nobody is waited for who is not there."""

from __future__ import annotations

from hypothesis import given, settings, strategies as st

from converge_p2p.core import limits
from converge_p2p.core.types import PublicKey, TaskId
from converge_p2p.runtime.turns import SEEN_S, TURN_S_MAX, TURN_S_MIN, TURNS_WAITED_MAX, Turns

ME = PublicKey(b"m" * 32)


def worker(number: int) -> PublicKey:
    return PublicKey(number.to_bytes(32, "big"))


def task(number: int) -> TaskId:
    return TaskId(number.to_bytes(32, "little"))


def everybody(count: int, now: float = 0.0) -> list[Turns]:
    turns = [Turns(worker(number)) for number in range(count)]
    for one in turns:
        for number in range(count):
            one.saw(worker(number), now)
    return turns


def test_who_saw_nobody_waits_for_nobody() -> None:
    turns = Turns(ME)
    turns.saw(ME, 0.0)
    assert len(turns) == 0
    assert {turns.wait_s(task(number), 0.0) for number in range(50)} == {0.0}


@given(st.integers(1, 12), st.integers(0, 2**64))
@settings(max_examples=60)
def test_workers_that_know_each_other_come_one_after_the_other(count: int, number: int) -> None:
    waits = sorted(one.wait_s(task(number), 0.0) for one in everybody(count))
    turns = [min(turn, TURNS_WAITED_MAX) * TURN_S_MIN for turn in range(count)]
    assert waits == turns


def test_the_first_turn_falls_to_each_about_equally_often() -> None:
    turns = everybody(4)
    firsts = [sum(one.wait_s(task(number), 0.0) == 0.0 for number in range(400)) for one in turns]
    assert sum(firsts) == 400
    assert all(60 < first < 140 for first in firsts)


def test_who_is_not_seen_any_more_is_not_waited_for() -> None:
    turns = Turns(ME)
    turns.saw(worker(1), 0.0)
    turns.saw(worker(2), 1.0)
    turns.saw(worker(1), 2.0)
    assert max(turns.wait_s(task(number), 2.0) for number in range(50)) == 2 * TURN_S_MIN
    assert max(turns.wait_s(task(number), 1.0 + SEEN_S) for number in range(50)) == TURN_S_MIN
    assert max(turns.wait_s(task(number), 2.0 + SEEN_S) for number in range(50)) == 0.0
    assert len(turns) == 0


def test_a_crowd_is_neither_remembered_nor_waited_for() -> None:
    turns = Turns(ME)
    for number in range(10 * limits.WORKERS_SEEN_MAX):
        turns.saw(worker(number), 0.0)
    assert len(turns) == limits.WORKERS_SEEN_MAX
    assert max(turns.wait_s(task(number), 0.0) for number in range(50)) == TURNS_WAITED_MAX * TURN_S_MIN


@given(st.lists(st.floats(0.0, 100.0), min_size=1, max_size=40))
@settings(max_examples=60)
def test_a_turn_is_as_long_as_claims_take_within_bounds(samples: list[float]) -> None:
    turns = Turns(ME)
    for sample in samples:
        turns.granted(sample)
    assert TURN_S_MIN <= turns.turn_s <= TURN_S_MAX
    for _ in range(200):
        turns.granted(0.1)
    assert 0.1 < turns.turn_s < 0.2


def test_claims_that_waited_for_electors_that_were_away_are_soon_forgotten() -> None:
    turns = Turns(ME)
    for _ in range(10):
        turns.granted(0.04)
    for _ in range(3):
        turns.granted(3600.0)
    assert turns.turn_s <= TURN_S_MAX
    for _ in range(16):
        turns.granted(0.04)
    assert turns.turn_s < 0.12
