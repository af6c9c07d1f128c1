"""The multiplexer: every rule of yamux that a peer may break, and that two machines always understand each other."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given, settings, strategies as st

from converge_p2p.core import limits
from converge_p2p.core.errors import LimitExceeded, LocalError, RemoteViolation
from converge_p2p.net.fast import frames
from converge_p2p.net.fast.frames import ACK, DATA, FIN, GO_AWAY, PING, RST, SYN, WINDOW_UPDATE, encode_header
from converge_p2p.net.fast.machine import Bounds, Machine

FIRST = frames.WINDOW_FIRST_BYTES


def responder(**bounds: float) -> Machine:
    return Machine(False, Counter(), Bounds(**bounds))


def said(machine: Machine) -> list:
    """What the machine wants to send, as headers and data."""
    data = b"".join(machine.out)
    machine.out.clear()
    return frames.FrameDecoder().feed(data)


def opened(machine: Machine, number: int = 1):
    machine.receive(encode_header(WINDOW_UPDATE, SYN, number, 0), 0.0)
    machine.out.clear()
    return machine.streams[number]


def data(number: int, payload: bytes, flags: int = 0) -> bytes:
    return encode_header(DATA, flags, number, len(payload)) + payload


def violation(machine: Machine, wire: bytes, now: float = 0.0) -> str:
    with pytest.raises(RemoteViolation) as caught:
        machine.receive(wire, now)
    return caught.value.reason


def test_initiator_opens_odd_streams_and_the_other_side_even_ones() -> None:
    assert [Machine(True, Counter()).open().id, Machine(False, Counter()).open().id] == [1, 2]
    machine = Machine(True, Counter())
    assert [machine.open().id for _ in range(3)] == [1, 3, 5]


def test_a_stream_of_the_peer_is_acknowledged_with_the_rest_of_the_window() -> None:
    machine = responder()
    machine.receive(encode_header(WINDOW_UPDATE, SYN, 1, 1000), 0.0)
    assert said(machine) == [(0, WINDOW_UPDATE, ACK, 1, limits.STREAM_WINDOW_BYTES_MAX - FIRST)]
    (stream,) = machine.opened
    assert stream.send_window == FIRST + 1000


def test_data_may_come_with_the_opening_and_with_the_end() -> None:
    machine = responder()
    machine.receive(data(1, b"all at once", SYN | FIN), 0.0)
    stream = machine.streams[1]
    assert (bytes(stream.buffer), stream.receive_closed, stream.send_closed) == (b"all at once", True, False)


def test_either_direction_ends_alone_and_the_stream_with_the_second() -> None:
    machine = responder()
    stream = opened(machine)
    machine.receive(data(1, b"question", FIN), 0.0)
    assert machine.take(stream, 100) == b"question"
    assert said(machine) == []
    assert not stream.gone
    frame = machine.data_frame(stream, b"answer")
    assert frames.FrameDecoder().feed(frame)[1] == b"answer"
    machine.finish(stream, 0.0)
    assert said(machine) == [(0, WINDOW_UPDATE, FIN, 1, 0)]
    assert (stream.gone, stream.reset, machine.streams) == (True, False, {})


def test_a_reset_ends_both_directions_and_forgets_what_was_not_read() -> None:
    machine = responder()
    stream = opened(machine)
    machine.receive(data(1, b"x" * 100) + encode_header(WINDOW_UPDATE, RST, 1, 0), 0.0)
    assert (stream.gone, stream.reset, bytes(stream.buffer), machine.buffered) == (True, True, b"", 0)
    machine.reset(stream)
    assert said(machine) == []


def test_a_window_is_enforced_before_the_data_comes() -> None:
    machine = responder(window_bytes=FIRST)
    opened(machine)
    machine.receive(data(1, bytes(FIRST - 10)), 0.0)
    assert violation(machine, encode_header(DATA, 0, 1, 11)) == "stream_window_overrun"
    assert machine.buffered == FIRST - 10


def test_credit_is_given_once_half_of_the_window_was_read() -> None:
    machine = responder(window_bytes=FIRST)
    stream = opened(machine)
    machine.receive(data(1, bytes(FIRST)), 0.0)
    machine.take(stream, FIRST // 2 - 1)
    assert said(machine) == []
    machine.take(stream, 1)
    assert said(machine) == [(0, WINDOW_UPDATE, 0, 1, FIRST // 2)]
    machine.receive(data(1, bytes(FIRST // 2)), 0.0)
    assert violation(machine, data(1, b"x")) == "stream_window_overrun"


def test_credit_over_what_a_window_can_be_is_a_violation() -> None:
    machine = responder()
    opened(machine)
    assert violation(machine, encode_header(WINDOW_UPDATE, 0, 1, 2**32 - 1)) == "yamux_credit_overflow"


def test_too_much_unread_on_all_streams_together_ends_the_fullest() -> None:
    machine = responder(buffers_bytes_max=1000)
    small, large = opened(machine, 1), opened(machine, 3)
    machine.receive(data(1, bytes(400)) + data(3, bytes(600)), 0.0)
    assert (small.gone, large.gone) == (False, False)
    machine.receive(data(1, b"x"), 0.0)
    assert (small.gone, large.gone, machine.buffered) == (False, True, 401)
    assert said(machine) == [(0, WINDOW_UPDATE, RST, 3, 0)]


def test_streams_over_the_number_and_over_the_rate_are_refused_and_a_flood_of_them_ends_the_connection() -> None:
    machine = responder(inbound_max=2, refusals_burst=3, refusals_per_second=1)
    for number in (1, 3):
        opened(machine, number)
    for number in (5, 7, 9):
        machine.receive(encode_header(WINDOW_UPDATE, SYN, number, 0), 0.0)
        assert said(machine) == [(0, WINDOW_UPDATE, RST, number, 0)]
    assert violation(machine, encode_header(WINDOW_UPDATE, SYN, 11, 0)) == "yamux_stream_flood"
    assert len(machine.streams) == 2

    machine = responder(opens_per_second=2)
    for number in range(1, 9, 2):
        machine.receive(encode_header(WINDOW_UPDATE, SYN, number, 0) + encode_header(DATA, RST, number, 0), 0.0)
    assert len(machine.opened) == 4
    machine.receive(encode_header(WINDOW_UPDATE, SYN, 9, 0), 0.0)
    assert len(machine.opened) == 4
    machine.receive(encode_header(WINDOW_UPDATE, SYN, 11, 0), 1.0)
    assert len(machine.opened) == 5


def test_streams_that_are_reset_as_they_open_are_a_flood_too() -> None:
    machine = responder(refusals_burst=3, refusals_per_second=1)
    wire = b"".join(encode_header(WINDOW_UPDATE, SYN | RST, number, 0) for number in range(1, 9, 2))
    assert violation(machine, wire) == "yamux_stream_flood"


def test_a_stream_cannot_be_opened_twice_or_with_a_number_of_this_side() -> None:
    machine = responder()
    opened(machine)
    assert violation(machine, encode_header(WINDOW_UPDATE, SYN, 1, 0)) == "yamux_stream_twice"
    assert violation(responder(), encode_header(WINDOW_UPDATE, SYN, 2, 0)) == "yamux_wrong_parity"


def test_pings_are_answered_up_to_a_rate() -> None:
    machine = responder(pings_burst=2, pings_per_second=1)
    machine.receive(encode_header(PING, SYN, 0, 7) + encode_header(PING, SYN, 0, 8), 0.0)
    assert said(machine) == [(0, PING, ACK, 0, 7), (0, PING, ACK, 0, 8)]
    assert violation(machine, encode_header(PING, SYN, 0, 9)) == "yamux_ping_flood"
    machine.receive(encode_header(PING, SYN, 0, 9), 1.0)
    machine.receive(encode_header(PING, ACK, 0, 9), 2.0)
    assert violation(machine, encode_header(PING, ACK, 0, 9), 2.0) == "yamux_ping_flood"


def test_the_answer_to_the_own_ping_tells_the_round_trip() -> None:
    machine = responder()
    machine.ping(10.0)
    ((_, _, flags, _, value),) = said(machine)
    assert flags == SYN
    assert machine.ping_age_s(13.0) == 3.0
    machine.ping(13.0)
    assert said(machine) == []
    machine.receive(encode_header(PING, ACK, 0, value + 1), 13.0)
    assert machine.ping_age_s(13.0) == 3.0
    machine.receive(encode_header(PING, ACK, 0, value), 14.0)
    assert (machine.rtt_s, machine.ping_age_s(20.0)) == (4.0, 0.0)


def test_frames_for_streams_that_are_not_there_are_dropped_up_to_a_rate() -> None:
    counters: Counter[str] = Counter()
    machine = Machine(False, counters, Bounds(stray_burst=3, stray_per_second=1))
    machine.receive(data(1, b"after the end") + encode_header(WINDOW_UPDATE, FIN, 2, 0) + data(1, b""), 0.0)
    assert (counters["stream_frames_stray"], machine.buffered, machine.out) == (3, 0, [])
    assert violation(machine, data(1, b"x")) == "yamux_stray_flood"


def test_data_after_the_end_is_dropped() -> None:
    machine = responder()
    stream = opened(machine)
    machine.receive(data(1, b"a", FIN) + data(1, b"b"), 0.0)
    assert bytes(stream.buffer) == b"a"


def test_data_of_a_stream_that_is_reset_in_the_middle_of_a_frame_is_dropped() -> None:
    machine = responder()
    stream = opened(machine)
    machine.receive(encode_header(DATA, FIN, 1, 10) + b"12345", 0.0)
    machine.reset(stream)
    machine.receive(b"67890" + encode_header(WINDOW_UPDATE, SYN, 3, 0), 0.0)
    assert machine.buffered == 0
    assert list(machine.streams) == [3]


def test_a_farewell_closes_the_door_for_new_streams_only() -> None:
    machine = responder()
    stream = opened(machine)
    machine.receive(encode_header(GO_AWAY, 0, 0, frames.NORMAL) + data(1, b"last"), 0.0)
    assert (machine.go_away, bytes(stream.buffer)) == (frames.NORMAL, b"last")
    with pytest.raises(LocalError):
        machine.open()


def test_own_streams_are_bounded_and_so_are_those_without_an_answer() -> None:
    machine = Machine(True, Counter(), Bounds(outbound_max=3, unacknowledged_max=2))
    first = machine.open()
    machine.open()
    with pytest.raises(LimitExceeded, match="does not answer"):
        machine.open()
    machine.receive(encode_header(WINDOW_UPDATE, ACK, first.id, 0), 0.0)
    machine.open()
    with pytest.raises(LimitExceeded, match="at most 3"):
        machine.open()
    machine.reset(first)
    assert machine.unacknowledged == 2


def test_a_stream_that_is_closed_here_and_nowhere_else_lingers_for_a_while() -> None:
    machine = responder(linger_s=10)
    stream, read = opened(machine, 1), opened(machine, 3)
    machine.finish(stream, 0.0)
    machine.finish(read, 0.0)
    read.readers = 1
    machine.out.clear()
    machine.sweep(10.0)
    assert not stream.gone
    machine.receive(data(1, b"x"), 5.0)
    machine.sweep(14.0)
    assert not stream.gone
    machine.sweep(15.1)
    assert (stream.gone, read.gone) == (True, False)
    assert said(machine) == [(0, WINDOW_UPDATE, RST, 1, 0)]


def test_the_end_of_the_connection_leaves_what_came() -> None:
    machine = responder()
    stream = opened(machine)
    machine.receive(data(1, b"came"), 0.0)
    machine.end()
    assert (stream.reset, machine.take(stream, 10), machine.buffered, machine.streams) == (True, b"came", 0, {})


pieces = st.lists(st.integers(0, 10_000), max_size=20)
steps = st.lists(
    st.tuples(st.sampled_from(["open", "write", "read", "finish", "reset", "ping", "carry"]), st.booleans(),
              st.integers(0, 5), st.integers(1, 3 * FIRST)),
    max_size=60,
)  # fmt: skip


class Pair:
    """Two machines with wires between them that hold back what they like."""

    def __init__(self) -> None:
        self.ends = [Machine(True, Counter()), Machine(False, Counter())]
        self.wires = [bytearray(), bytearray()]
        self.sent: dict[tuple[int, int], bytearray] = {}
        self.read: dict[tuple[int, int], bytearray] = {}
        self.now = 0.0
        self.states: list[dict] = [{}, {}]

    def flush(self, side: int) -> None:
        end = self.ends[side]
        self.wires[side] += b"".join(end.out)
        end.out.clear()
        for stream in end.opened:
            self.states[side][stream.id] = stream
        end.opened.clear()
        end.woken.clear()

    def carry(self, side: int, count: int) -> None:
        """Let bytes of this side arrive at the other."""
        part = bytes(self.wires[side][:count])
        del self.wires[side][:count]
        self.now += 0.1
        self.ends[1 - side].receive(part, self.now)
        self.flush(1 - side)

    def take(self, side: int, stream, count: int) -> None:
        self.read.setdefault((side, stream.id), bytearray()).extend(self.ends[side].take(stream, count))
        self.flush(side)


@settings(max_examples=150)
@given(steps, pieces)
def test_two_machines_always_understand_each_other(script: list, cuts: list[int]) -> None:
    """Any order, any cuts: no violation, no byte lost or out of order on a stream that was not reset."""
    pair = Pair()
    noise = itertools.cycle(range(251))
    for action, right, index, size in script:
        side = int(right)
        end, states = pair.ends[side], pair.states[side]
        streams = [states[number] for number in sorted(states)]
        stream = streams[index % len(streams)] if streams else None
        if action == "open":
            opened_now = end.open()
            states[opened_now.id] = opened_now
        elif action == "ping":
            end.ping(pair.now)
        elif action == "carry":
            pair.carry(side, size % 4000)
        elif stream is not None and action == "write" and not stream.send_closed:
            payload = bytes(next(noise) for _ in range(min(size % 3000, stream.send_window)))
            pair.sent.setdefault((side, stream.id), bytearray()).extend(payload)
            end.out.append(end.data_frame(stream, payload))
        elif stream is not None and action == "read":
            pair.take(side, stream, size)
        elif stream is not None and action == "finish":
            end.finish(stream, pair.now)
        elif stream is not None and action == "reset":
            end.reset(stream)
        pair.flush(side)
    for count in [*cuts, 10**9, 10**9, 10**9]:
        for side in (0, 1):
            pair.carry(side, count)
    for side in (0, 1):
        for number, stream in pair.states[side].items():
            pair.take(side, stream, 10**9)
            got = bytes(pair.read[side, number])
            sent = bytes(pair.sent.get((1 - side, number), b""))
            assert sent.startswith(got)
            if not stream.reset:
                assert got == sent
        assert pair.ends[side].buffered == 0
        assert pair.ends[side].unacknowledged == 0


@given(st.binary(max_size=600))
def test_garbage_is_a_violation_or_nothing_and_holds_no_memory(garbage: bytes) -> None:
    machine = responder()
    opened(machine)
    try:
        machine.receive(garbage, 0.0)
    except RemoteViolation:
        pass
    assert machine.buffered <= len(garbage)
    assert len(machine.streams) <= 1 + len(garbage) // frames.HEADER_BYTES
