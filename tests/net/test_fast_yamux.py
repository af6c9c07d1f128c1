"""The fast connection on a wire that can get stuck: what waits, what is cut, what a cancelled task leaves."""

from __future__ import annotations

from contextlib import suppress

import pytest
import trio
from fast_rig import PEER, Rig, data
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.stream_muxer.exceptions import (
    MuxedConnUnavailable,
    MuxedStreamClosed,
    MuxedStreamEOF,
    MuxedStreamError,
    MuxedStreamReset,
)

from converge_p2p.core import limits
from converge_p2p.net.fast import frames
from converge_p2p.net.fast.frames import ACK, DATA, FIN, GO_AWAY, PING, RST, SYN, WINDOW_UPDATE, encode_header
from converge_p2p.net.fast.machine import Bounds
from converge_p2p.net.fast.yamux import Patience
from converge_p2p.net.names import peer_name


@pytest.fixture
async def rig(nursery):
    def make(room: int = 1 << 16, bounds: Bounds | None = None, patience: Patience | None = None) -> Rig:
        return Rig(nursery, room, bounds, patience)

    return make


# ------------------------------------------------------------ streams


async def test_stream_in_both_directions_with_either_end(rig):
    peer = rig()
    stream = await peer.open()
    assert await peer.heard() == [(0, WINDOW_UPDATE, ACK, 1, limits.STREAM_WINDOW_BYTES_MAX - 256 * 1024)]
    peer.say(data(1, b"question"), encode_header(WINDOW_UPDATE, FIN, 1, 0))
    assert await stream.read(3) == b"que"
    assert await stream.read() == b"stion"
    with pytest.raises(MuxedStreamEOF):
        await stream.read()
    await stream.write(b"answer")
    await stream.close()
    assert await peer.heard() == [(0, DATA, 0, 1, 6), b"answer", (0, WINDOW_UPDATE, FIN, 1, 0)]
    assert stream.is_closed()
    with pytest.raises(MuxedStreamClosed):
        await stream.write(b"more")
    assert stream.get_remote_address() == ("192.0.2.1", 4001)


async def test_half_closed_stream_can_still_be_read(rig):
    peer = rig()
    async with await peer.connection.open_stream() as stream:
        await stream.write(b"question")
        await stream.close()
        peer.say(data(2, b"answer", ACK | FIN))
        assert await stream.read() == b"answer"
    assert stream.is_closed()


async def test_reset_wakes_the_reader_and_the_writer_on_this_side_too(rig):
    peer = rig()
    stream = await peer.open()
    failed = []

    async def failing(action, *args):
        try:
            while True:
                await action(*args)
        except MuxedStreamReset:
            failed.append(action)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(failing, stream.read)
        nursery.start_soon(failing, stream.write, bytes(300_000))
        nursery.start_soon(peer.last_words)
        await trio.testing.wait_all_tasks_blocked()
        await stream.reset()
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert len(failed) == 2


async def test_reset_of_the_peer_ends_reading_and_writing(rig):
    peer = rig()
    stream = await peer.open()
    peer.say(data(1, b"x"), encode_header(WINDOW_UPDATE, RST, 1, 0))
    await trio.testing.wait_all_tasks_blocked()
    for action in (stream.read, lambda: stream.write(b"x")):
        with pytest.raises(MuxedStreamReset):
            await action()


async def test_reader_that_is_cancelled_loses_nothing(rig, autojump_clock):
    peer = rig()
    stream = await peer.open()
    with trio.move_on_after(1) as scope:
        await stream.read()
    assert scope.cancelled_caught
    peer.say(data(1, b"late"))
    assert await stream.read() == b"late"


async def test_writer_waits_for_the_window_and_goes_on_with_credit(rig):
    peer = rig()
    stream = await peer.open()
    done = trio.Event()

    async def write():
        await stream.write(bytes(256 * 1024 + 10))
        done.set()

    got = 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        while got < 256 * 1024:
            got += sum(len(item) for item in await peer.heard() if isinstance(item, bytes))
        await trio.testing.wait_all_tasks_blocked()
        assert not done.is_set()
        peer.say(encode_header(WINDOW_UPDATE, 0, 1, 100))
        await done.wait()
    assert sum(len(item) for item in await peer.heard() if isinstance(item, bytes)) == 10


async def test_cancelled_writer_sends_whole_frames_and_resets_a_stream_that_is_half_written(rig, autojump_clock):
    peer = rig()
    stream, other = await peer.open(1), await peer.open(3)
    with trio.move_on_after(1) as scope:
        await stream.write(bytes(300_000))
    assert scope.cancelled_caught
    await other.write(b"unharmed")
    peer_decoder, found = frames.FrameDecoder(), []
    while b"unharmed" not in found:
        found += peer_decoder.feed(await peer.peer.receive())
    assert not peer_decoder.in_frame
    assert (0, WINDOW_UPDATE, RST, 1, 0) in found
    with pytest.raises(MuxedStreamReset):
        await stream.write(b"more")


async def test_cancelled_writer_that_had_sent_nothing_leaves_the_stream_alone(rig, autojump_clock):
    peer = rig()
    stream = await peer.open()
    stream._state.send_window = 0
    with trio.move_on_after(1):
        await stream.write(b"late")
    peer.say(encode_header(WINDOW_UPDATE, 0, 1, 100))
    await stream.write(b"in time")
    assert b"in time" in [*await peer.heard(), *await peer.heard()]


# ------------------------------------------------------------ patience


async def test_stream_whose_reader_is_too_slow_is_reset_and_the_connection_lives(rig, autojump_clock):
    peer = rig(room=1 << 20, patience=Patience(stream_stall_s=5))
    stream = await peer.open()
    with pytest.raises(MuxedStreamReset, match="no room"):
        await stream.write(bytes(300_000))
    assert peer.counters["streams_stalled"] == 1
    assert (await peer.open(3)).stream_id == 3


async def test_peer_that_reads_nothing_is_given_up_and_what_waits_for_it_is_bounded(rig, autojump_clock):
    peer = rig(patience=Patience(connection_stall_s=20))
    streams = [await peer.open(number) for number in range(1, 41, 2)]
    failed = []

    async def write(stream):
        try:
            await stream.write(bytes(250_000))
        except MuxedStreamReset:
            failed.append(stream)

    async with trio.open_nursery() as nursery:
        for stream in streams:
            nursery.start_soon(write, stream)
        await trio.testing.wait_all_tasks_blocked()
        waiting = peer.connection.secured_conn.backlog_bytes
        assert limits.WRITE_QUEUE_BYTES_MAX <= waiting <= limits.WRITE_QUEUE_BYTES_MAX + 2 * 65_536
    assert len(failed) == len(streams)
    await peer.connection.event_closed.wait()
    assert (peer.counters["connections_stalled"], peer.closed) == (1, 1)


async def test_peer_that_asks_and_never_reads_the_answers_is_cut_off_before_they_fill_the_memory(rig):
    peer = rig(room=2048, bounds=Bounds(pings_burst=10**9, pings_per_second=10**9))
    pings = encode_header(PING, SYN, 0, 1) * 100

    async def flood():
        for _ in range(2000):
            await peer.peer.write(pings)

    with pytest.raises(ConnectionClosedError):
        await flood()
    assert "does not read its answers" in str(peer.connection.secured_conn.why_closed)


async def test_half_a_frame_and_silence_is_given_up(rig, autojump_clock):
    peer = rig(patience=Patience(keepalive_interval_s=10, keepalive_timeout_s=20))
    stream = await peer.open()
    peer.say(encode_header(DATA, 0, 1, 1000) + b"half")
    assert await stream.read() == b"half"
    with pytest.raises(MuxedStreamReset):
        await stream.read()
    await peer.connection.event_closed.wait()
    assert peer.counters["connections_silent"] == 1
    assert trio.current_time() < 60


async def test_pings_keep_the_connection_and_measure_the_round_trip(rig, autojump_clock):
    peer = rig(patience=Patience(keepalive_interval_s=10, keepalive_timeout_s=20))
    await peer.open()
    await peer.heard()
    for _ in range(6):
        ((_, kind, flags, _, value),) = await peer.heard()
        assert (kind, flags) == (PING, SYN)
        await trio.sleep(2)
        peer.say(encode_header(PING, ACK, 0, value))
    await trio.testing.wait_all_tasks_blocked()
    assert peer.connection.rtt() == pytest.approx(2)
    assert not peer.connection.is_closed


async def test_opening_waits_for_answers_to_earlier_streams_and_then_fails(rig, autojump_clock):
    peer = rig(bounds=Bounds(unacknowledged_max=2), patience=Patience(stream_stall_s=5))
    for _ in range(2):
        await peer.connection.open_stream()
    with pytest.raises(MuxedStreamError, match="does not answer"):
        await peer.connection.open_stream()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.connection.open_stream)
        await trio.testing.wait_all_tasks_blocked()
        peer.say(encode_header(WINDOW_UPDATE, ACK, 2, 0))
    assert len(peer.connection.machine.streams) == 3


# ------------------------------------------------------------ violations and ends


@pytest.mark.parametrize(
    ("wire", "reason"),
    [
        (b"\xff" * 12, "yamux_bad_header"),
        (encode_header(DATA, SYN, 1, limits.STREAM_WINDOW_BYTES_MAX + 1), "yamux_frame_too_long"),
        (encode_header(WINDOW_UPDATE, SYN, 2, 0), "yamux_wrong_parity"),
        (encode_header(PING, SYN, 0, 1) * (limits.PINGS_BURST_MAX + 50), "yamux_ping_flood"),
    ],
)
async def test_violation_is_told_counted_blamed_and_ends_the_connection(rig, wire, reason):
    peer = rig()
    stream = await peer.connection.open_stream()
    peer.say(wire)
    assert (await peer.last_words())[-1] == (0, GO_AWAY, 0, 0, frames.PROTOCOL_ERROR)
    await peer.connection.event_closed.wait()
    assert peer.counters[reason] == 1
    assert peer.blamed == [peer_name(PEER)]
    with pytest.raises(MuxedStreamReset):
        await stream.read()
    with pytest.raises(MuxedStreamError):
        await peer.connection.open_stream()
    with pytest.raises(MuxedConnUnavailable):
        await peer.connection.accept_stream()


async def test_own_fault_is_told_as_such_and_ends_the_connection_only(rig, monkeypatch):
    peer = rig()

    def broken(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(peer.connection.machine, "receive", broken)
    peer.say(b"whatever")
    assert (await peer.last_words())[-1] == (0, GO_AWAY, 0, 0, frames.INTERNAL_ERROR)
    await peer.connection.event_closed.wait()
    assert (peer.counters["connection_errors"], peer.blamed) == (1, [])


async def test_closing_says_farewell_and_tells_libp2p_once(rig):
    peer = rig()
    await peer.open()
    await peer.connection.close()
    await peer.connection.close()
    assert (await peer.last_words())[-1] == (0, GO_AWAY, 0, 0, frames.NORMAL)
    await peer.connection.event_closed.wait()
    assert (peer.closed, peer.connection.is_closed, peer.connection.is_established) == (1, True, False)


async def write_in_vain(stream):
    with pytest.raises(MuxedStreamReset):
        await stream.write(bytes(300_000))


async def test_closing_does_not_wait_long_for_a_peer_that_does_not_read(rig, autojump_clock):
    peer = rig(room=100)
    stream = await peer.open()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(write_in_vain, stream)
        await trio.testing.wait_all_tasks_blocked()
        await peer.connection.close()
    assert trio.current_time() < 2
    assert peer.closed == 1


async def test_what_came_before_a_farewell_can_be_read_and_streams_may_end(rig):
    peer = rig()
    stream = await peer.open()
    peer.say(data(1, b"last"), encode_header(GO_AWAY, 0, 0, frames.NORMAL), data(1, b" words", FIN))
    await trio.testing.wait_all_tasks_blocked()
    assert not peer.connection.is_established
    assert await stream.read() == b"last words"
    await stream.write(b"answer")
    await stream.close()
    assert b"answer" in await peer.last_words()


async def test_streams_that_do_not_end_after_a_farewell_are_ended(rig, autojump_clock):
    peer = rig(patience=Patience(go_away_linger_s=2))
    stream = await peer.open()
    peer.say(encode_header(GO_AWAY, 0, 0, frames.NORMAL))
    with pytest.raises(MuxedStreamReset):
        await stream.read()
    assert trio.current_time() < 3


async def test_farewell_with_a_reproach_ends_the_connection_at_once(rig):
    peer = rig()
    await peer.open()
    peer.say(encode_header(GO_AWAY, 0, 0, frames.PROTOCOL_ERROR))
    await peer.connection.event_closed.wait()
    assert peer.counters["connections_refused_by_peer"] == 1


async def test_cancelling_the_connection_closes_it():
    async with trio.open_nursery() as nursery:
        peer = Rig(nursery, 1 << 16, None, None)
        await peer.open()
        nursery.cancel_scope.cancel()
    assert (peer.connection.is_closed, peer.closed, peer.wire.other.closed) == (True, 1, True)


async def test_a_closing_that_is_cancelled_closes_all_the_same(rig, autojump_clock):
    peer = rig(room=100)
    stream = await peer.open()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(write_in_vain, stream)
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(0.1) as scope:
            await peer.connection.close()
    assert scope.cancelled_caught
    await peer.connection.event_closed.wait()
    assert trio.current_time() < 1
    assert (peer.closed, peer.wire.other.closed) == (1, True)


async def test_fault_of_a_task_of_the_connection_does_not_get_out(rig, monkeypatch):
    peer = rig()

    async def broken(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(peer.connection.secured_conn, "_wait_sendable", broken)
    stream = await peer.open()
    # more than the wire has room for, so that there is something to wait for
    with suppress(MuxedStreamReset):
        await stream.write(bytes(200_000))
    await peer.connection.event_closed.wait()
    assert peer.counters["connection_errors"] == 1
