"""Rules of the replay window: nothing is taken twice, whatever is forgotten, and memory is bounded."""

from __future__ import annotations

import pytest
from hypothesis import given, settings, strategies as st

from converge_p2p.core.errors import CodecError, LocalError, RemoteViolation
from converge_p2p.core.identity import Identity
from converge_p2p.core.model.message import Message
from converge_p2p.core.model.replay import ReplayWindow, Taken

SENDERS = [Identity.from_seed(bytes([n]) * 32).id for n in range(1, 6)]


def message(number: int, timestamp: int, *, sender: int = 0, ttl: int = 1000) -> Message:
    return Message.create(SENDERS[sender]).stamp(timestamp, ttl_ms=ttl, message_id=number.to_bytes(16, "big"))


def taken(window: ReplayWindow, one: Message, now: int) -> bool:
    try:
        window.check(one, now)
    except RemoteViolation:
        return False
    return True


def refusal(window: ReplayWindow, one: Message, now: int) -> str:
    with pytest.raises(RemoteViolation) as raised:
        window.check(one, now)
    return raised.value.reason


events = st.lists(
    st.one_of(
        st.tuples(
            st.just("new"), st.integers(0, 4), st.integers(-30, 30), st.sampled_from([1, 5, 40, 200]), st.just(0)
        ),
        st.tuples(st.just("again"), st.integers(0, 200), st.just(0), st.just(0), st.just(0)),
        st.tuples(st.just("clock"), st.integers(-20, 60), st.just(0), st.just(0), st.just(0)),
    ),
    max_size=120,
)


@pytest.mark.no_cover
@settings(max_examples=300, deadline=None)
@given(events, st.integers(1, 12), st.integers(1, 6))
def test_no_message_is_ever_taken_twice_and_memory_is_bounded(
    steps: list[tuple[str, int, int, int, int]], entries_max: int, per_sender_max: int
) -> None:
    window = ReplayWindow(entries_max=entries_max, entries_per_sender_max=per_sender_max)
    now, sent, accepted = 100, [], set()
    for number, (kind, a, b, ttl, _) in enumerate(steps):
        if kind == "clock":
            now = max(0, now + a)
            continue
        if kind == "new":
            sent.append(message(number, max(0, now + b), sender=a, ttl=ttl))
        elif not sent:
            continue
        one = sent[-1] if kind == "new" else sent[a % len(sent)]
        if taken(window, one, now):
            assert (one.sender, one.id) not in accepted
            accepted.add((one.sender, one.id))
        assert len(window) <= entries_max
    # and everything once more, at every time that is still to come
    for one in sent:
        for later in (now, now + 50):
            if taken(window, one, later):
                assert (one.sender, one.id) not in accepted
                accepted.add((one.sender, one.id))


@given(st.permutations(range(20)))
def test_within_the_bounds_every_fresh_message_is_taken_in_any_order(order: list[int]) -> None:
    window = ReplayWindow(entries_max=20, entries_per_sender_max=20)
    fresh = [message(number, 100 + number, sender=number % 5) for number in order]
    assert all(taken(window, one, 120) for one in fresh)
    assert not any(taken(window, one, 120) for one in fresh)


def test_reasons_are_named() -> None:
    window = ReplayWindow(floor_ms=50)
    one = message(1, 100, ttl=10)
    window.check(one, 100)
    assert refusal(window, one, 100) == "message_replayed"
    assert refusal(window, one, 110) == "message_expired"
    assert refusal(window, message(2, 50), 100) == "message_stale"


def test_a_clock_set_back_does_not_bring_forgotten_messages_back() -> None:
    window = ReplayWindow(entries_max=1)
    one = message(1, 100, ttl=10)
    window.check(one, 100)
    window.check(message(2, 200), 200)
    assert refusal(window, one, 100) == "message_expired"


def test_one_senders_flood_does_not_touch_the_others() -> None:
    window = ReplayWindow(entries_max=1000, entries_per_sender_max=8)
    window.check(message(0, 1, sender=1), 100)
    for number in range(100):
        window.check(message(number, 100 + number), 100 + number)
    assert refusal(window, message(500, 100), 200) == "message_stale"
    window.check(message(1, 2, sender=1), 200)
    assert refusal(window, message(0, 1, sender=1), 200) == "message_replayed"


def test_a_sender_that_is_no_longer_kept_cannot_be_replayed() -> None:
    window = ReplayWindow(entries_max=8, entries_per_sender_max=4)
    first = message(1, 101, ttl=10_000)
    for one in (first, *(message(number, 100 + number, ttl=5) for number in (2, 3, 4, 5))):
        window.check(one, 105)
    # the others are older, so that making room for them raises no mark by itself
    for number in range(6):
        window.check(message(number, 1 + number, sender=1 + number % 2, ttl=10_000), 300)
    assert refusal(window, first, 300) == "message_stale"


def test_a_flood_from_the_future_does_not_shut_out_messages_of_now() -> None:
    window = ReplayWindow(entries_max=16, entries_per_sender_max=16)
    for number in range(16):
        window.check(message(number, 5000, sender=number % 4, ttl=100_000), 100)
    assert refusal(window, message(99, 5000, ttl=100_000), 100) == "replay_window_full"
    for number in range(200, 220):
        one = message(number, number, sender=4)
        window.check(one, number)
        assert refusal(window, one, number) in ("message_stale", "message_replayed")
    assert len(window) <= 16


def test_after_a_flood_the_window_serves_again() -> None:
    window = ReplayWindow(entries_max=16, entries_per_sender_max=16)
    for number in range(16):
        window.check(message(number, 150, sender=number % 4, ttl=10_000), 100)
    window.check(message(50, 2000, sender=4), 2000)
    assert refusal(window, message(50, 2000, sender=4), 2000) == "message_replayed"
    assert refusal(window, message(0, 150, ttl=10_000), 2000) in ("message_stale", "message_replayed")


def test_bounds_are_at_least_one() -> None:
    with pytest.raises(LocalError):
        ReplayWindow(entries_max=0)


@settings(max_examples=200, deadline=None)
@given(events, st.integers(0, 119), st.integers(0, 119))
def test_a_window_that_was_restored_takes_nothing_that_was_taken_before(
    steps: list[tuple[str, int, int, int, int]], saved_at: int, killed_at: int
) -> None:
    """The state from any time, and the records since: the process may be killed after any message."""
    window = ReplayWindow()
    state, since = window.to_bytes(), []
    now, sent, accepted = 100, [], []
    for number, (kind, a, b, ttl, _) in enumerate(steps):
        if number == saved_at:
            state, since = window.to_bytes(), []
        if number == killed_at:
            window = ReplayWindow.from_bytes(state)
            window.restore(since, now)
            for old in accepted:
                assert not taken(window, old, now)
        if kind == "clock":
            now = max(0, now + a)
            continue
        if kind == "new":
            sent.append(message(number, max(0, now + b), sender=a, ttl=ttl))
        elif not sent:
            continue
        one = sent[-1] if kind == "new" else sent[a % len(sent)]
        if taken(window, one, now):
            assert one not in accepted
            accepted.append(one)
            since.append(Taken.of(one))


def test_what_came_while_nobody_was_there_is_taken_after_a_restart() -> None:
    window = ReplayWindow(floor_ms=50)
    window.check(message(1, 100), 100)
    again = ReplayWindow.from_bytes(window.to_bytes())
    assert not taken(again, message(1, 100), 200)
    assert taken(again, message(2, 99), 200)
    assert not taken(again, message(3, 50), 200), "the mark is kept too"
    assert len(again) == 2


def test_a_message_that_was_withdrawn_can_be_taken_again() -> None:
    window = ReplayWindow()
    window.check(message(1, 100), 100)
    window.withdraw(message(1, 100))
    window.withdraw(message(1, 100))
    assert len(window) == 0
    assert taken(window, message(1, 100), 100)


@given(st.binary(max_size=60))
def test_a_damaged_state_is_refused(data: bytes) -> None:
    with pytest.raises(CodecError):
        ReplayWindow.from_bytes(data)
