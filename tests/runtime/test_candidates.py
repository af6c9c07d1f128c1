"""The order of candidates: priority, then tasks that did not fail here, then a preference of each worker's own."""

from __future__ import annotations

from hypothesis import given, settings, strategies as st

from converge_p2p.core.model.task import TaskSpec, TaskState, TaskView
from converge_p2p.core.replica.ranking import claim_rank
from converge_p2p.core.types import PoolId, PublicKey, TaskId
from converge_p2p.runtime.candidates import DEFER_S, DEFER_S_MAX, Candidates

ME, OTHER = PublicKey(b"m" * 32), PublicKey(b"o" * 32)


def view(number: int, priority: int = 0) -> TaskView:
    spec = TaskSpec(b"%d" % number, "x", b"", priority=priority)
    return TaskView(TaskId(number.to_bytes(32, "big")), PoolId(b"p" * 32), ME, spec, TaskState.PENDING)


def drain(candidates: Candidates, now: float = 0.0) -> list[TaskView]:
    taken = []
    while (one := candidates.take(now)) is not None:
        taken.append(one)
    return taken


def test_higher_priority_comes_first() -> None:
    candidates = Candidates(ME)
    for number, priority in enumerate((0, 5, -3, 5, 1)):
        candidates.put(view(number, priority), 0.0)
    assert [one.spec.priority for one in drain(candidates)] == [5, 5, 1, 0, -3]


def test_workers_prefer_different_tasks_of_the_same_priority() -> None:
    orders = []
    for worker in (ME, OTHER):
        candidates = Candidates(worker)
        for number in range(200):
            candidates.put(view(number), 0.0)
        orders.append([one.id for one in drain(candidates)])
    assert orders[0] != orders[1]
    assert set(orders[0]) == set(orders[1])
    # of two independent orders, the first twenty share about two
    assert len(set(orders[0][:20]) & set(orders[1][:20])) < 8


def test_a_task_that_was_put_off_waits_longer_each_time_and_then_stands_behind_others() -> None:
    candidates, now = Candidates(ME), 100.0
    for attempt in range(12):
        candidates.put_off(view(1).id, now)
        candidates.put(view(1), now)
        wait = min(DEFER_S_MAX, DEFER_S * 2**attempt)
        assert candidates.next_ready() == now + wait
        assert candidates.take(now + wait * 0.99) is None
        candidates.put(view(1), now)
        assert candidates.take(now + wait * 0.99) is None, "seeing it again does not shorten the wait"
        assert candidates.take(now + wait) == view(1)
        now += wait
    candidates.put(view(1), now)
    candidates.put(view(2), now)
    assert drain(candidates, now) == [view(2), view(1)]


def test_a_settled_task_is_forgotten_and_a_taken_one_is_not_offered_twice() -> None:
    candidates = Candidates(ME)
    candidates.put_off(view(1).id, 0.0)
    candidates.forget(view(1).id)
    candidates.put(view(1), 0.0)
    candidates.put(view(1), 0.0)
    assert drain(candidates) == [view(1)]
    assert candidates.next_ready() is None


def test_what_does_not_fit_is_counted_and_the_set_says_that_it_is_incomplete() -> None:
    candidates = Candidates(ME, candidates_max=3)
    for number in range(5):
        candidates.put(view(number), 0.0)
    assert (len(candidates), candidates.dropped, candidates.incomplete) == (3, 2, True)


def test_stale_entries_do_not_pile_up() -> None:
    candidates = Candidates(ME)
    for _ in range(10_000):
        candidates.put(view(1), 0.0)
        candidates.remove(view(1).id)
    assert len(candidates._ready) < 200


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("prots"), st.integers(0, 5), st.integers(0, 3)), max_size=60))
def test_it_holds_what_a_plain_set_would_hold(steps: list[tuple[str, int, int]]) -> None:
    candidates, model, not_before, now = Candidates(ME), set[int](), dict[int, float](), 1.0
    for step, number, wait in steps:
        now += wait
        if step == "p":
            candidates.put(view(number), now)
            model.add(number)
        elif step == "r":
            candidates.remove(view(number).id)
            model.discard(number)
        elif step == "o":
            candidates.put_off(view(number).id, now)
            model.discard(number)
            not_before[number] = candidates._put_off[view(number).id][1]
        elif step == "s":
            candidates.forget(view(number).id)
            model.discard(number)
            not_before.pop(number, None)
        else:
            ready = {one for one in model if not_before.get(one, 0.0) <= now}
            taken = candidates.take(now)
            if taken is None:
                assert not ready
            else:
                number = int.from_bytes(taken.id, "big")
                assert number in ready
                model.discard(number)
    assert len(candidates) == len(model)


def test_a_task_that_is_left_to_others_goes_before_one_of_lower_priority() -> None:
    """Whoever takes the other one may be busy with it for hours, and so may be everybody whose turn it is."""
    theirs, ours = [], []
    for number in range(20):
        first = claim_rank(view(number).id, 0, OTHER) < claim_rank(view(number).id, 0, ME)
        (theirs if first else ours).append(number)
    urgent, as_urgent, mine = *theirs[:2], ours[0]
    for priority in (0, 1):
        candidates = Candidates(ME)
        candidates.turns.saw(OTHER, 0.0)
        candidates.put(view(mine), 0.0, in_turn=True)
        candidates.put(view(urgent, priority), 0.0, in_turn=True)
        candidates.put(view(as_urgent, priority), 0.0, in_turn=True)
        candidates.remove(view(as_urgent).id)
        taken = [one.id for one in drain(candidates)]
        assert taken == ([view(urgent).id, view(mine).id] if priority else [view(mine).id])
    candidates.remove(view(mine).id)
    candidates.put(view(urgent, 1), 0.0, in_turn=True)
    assert candidates.take(0.0) is None, "alone it waits for its turn"
    # one that failed here is not claimed before its time, whatever its priority
    candidates = Candidates(ME)
    candidates.turns.saw(OTHER, 0.0)
    candidates.put_off(view(urgent).id, 0.0)
    candidates.put(view(urgent, 1), 0.0, in_turn=True)
    candidates.put(view(mine), 0.0, in_turn=True)
    assert [one.id for one in drain(candidates)] == [view(mine).id]
