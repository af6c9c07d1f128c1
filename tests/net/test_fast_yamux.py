"""The fast connection on a wire that can get stuck: what waits, what is cut, what a cancelled task leaves."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import pytest
import trio
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import (
    MuxedConnUnavailable,
    MuxedStreamClosed,
    MuxedStreamEOF,
    MuxedStreamError,
    MuxedStreamReset,
)

from converge_p2p.core import limits
from converge_p2p.core.errors import RemoteViolation
from converge_p2p.net.fast import frames
from converge_p2p.net.fast.frames import ACK, DATA, FIN, GO_AWAY, PING, RST, SYN, WINDOW_UPDATE, encode_header
from converge_p2p.net.fast.machine import Bounds
from converge_p2p.net.fast.records import Opener, Sealer
from converge_p2p.net.fast.session import FastSession
from converge_p2p.net.fast.yamux import FastYamux, Patience
from converge_p2p.net.names import peer_name

KEY = bytes(32)
PEER = ID(bytes.fromhex("002408011220") + bytes(32))


class PipeWire:
    """One end of a pipe with room for so many bytes in each direction; without room nothing is taken."""

    def __init__(self, room: int) -> None:
        self.other: PipeWire
        self.room = room
        self.inbox = bytearray()
        self.closed = False
        self._changed = trio.Event()

    def _wake(self) -> None:
        for end in (self, self.other):
            end._changed.set()
            end._changed = trio.Event()

    def send_now(self, data) -> int:
        if self.closed or self.other.closed:
            raise BrokenPipeError(32, "broken pipe")
        size = min(len(data), self.room - len(self.other.inbox))
        self.other.inbox += data[:size]
        self._wake()
        return size

    async def wait_sendable(self) -> None:
        while len(self.other.inbox) >= self.room and not self.other.closed:
            if self.closed:
                raise trio.ClosedResourceError
            await self._changed.wait()
        await trio.lowlevel.checkpoint()

    async def receive(self, bytes_max: int) -> bytes:
        while not self.inbox and not self.other.closed:
            if self.closed:
                raise trio.ClosedResourceError
            await self._changed.wait()
        await trio.lowlevel.checkpoint()
        data = bytes(self.inbox[:bytes_max])
        del self.inbox[:bytes_max]
        self._wake()
        return data

    def cut(self) -> None:
        self.closed = True
        self._wake()


def pipe(room: int = 1 << 16) -> tuple[PipeWire, PipeWire]:
    one, two = PipeWire(room), PipeWire(room)
    one.other, two.other = two, one
    return one, two


def session(wire: PipeWire, initiator: bool = False) -> FastSession:
    stock = SimpleNamespace(
        local_peer=PEER, local_private_key=None, remote_peer=PEER, remote_permanent_pubkey=None, is_initiator=initiator
    )
    raw = SimpleNamespace(get_remote_address=lambda: ("192.0.2.1", 4001))
    return FastSession(stock, wire, Sealer(KEY, 0), Opener(KEY, 0), raw)


class Rig:
    """A connection under test, whose peer is a bare session."""

    def __init__(self, nursery: trio.Nursery, room: int, bounds: Bounds | None, patience: Patience | None) -> None:
        mine, self.wire = pipe(room)
        self.peer = session(self.wire, initiator=True)
        self.counters: Counter[str] = Counter()
        self.blamed: list[str] = []
        self.closed = 0
        self.connection = FastYamux(
            session(mine), PEER, self.counters, self.blamed.append, bounds=bounds, patience=patience
        )
        self.connection.on_close = self._closed
        self._decoder = frames.FrameDecoder()
        nursery.start_soon(self.connection.start)

    async def _closed(self) -> None:
        self.closed += 1

    async def heard(self) -> list:
        """Frames from the connection, at least one."""
        while not (found := self._decoder.feed(await self.peer.receive())):
            pass
        return found

    async def last_words(self) -> list:
        """Everything until the connection is closed."""
        found = []
        try:
            while True:
                found += await self.heard()
        except ConnectionClosedError:
            return found

    def say(self, *parts: bytes) -> None:
        self.peer.send(b"".join(parts))

    async def open(self, number: int = 1):
        """Open a stream to the connection and accept it there."""
        self.say(encode_header(WINDOW_UPDATE, SYN, number, 0))
        return await self.connection.accept_stream()


@pytest.fixture
async def rig(nursery):
    def make(room: int = 1 << 16, bounds: Bounds | None = None, patience: Patience | None = None) -> Rig:
        return Rig(nursery, room, bounds, patience)

    return make


def data(number: int, payload: bytes, flags: int = 0) -> bytes:
    return encode_header(DATA, flags, number, len(payload)) + payload


# ------------------------------------------------------------ the session alone


async def test_reading_an_exact_number_of_bytes_and_what_there_is():
    one, two = map(session, pipe())
    await one.write(b"abc")
    await one.write(b"defgh")
    assert await two.read(4) == b"abcd"
    assert await two.read(None) == b"efgh"
    one.cut("enough")
    with pytest.raises(ConnectionClosedError):
        await two.read(1)


async def test_a_cancelled_reader_loses_nothing(autojump_clock):
    one, two = map(session, pipe())
    await one.write(b"abc")
    with trio.move_on_after(1) as scope:
        await two.read(5)
    assert scope.cancelled_caught
    await one.write(b"de")
    assert await two.read(5) == b"abcde"


async def test_the_end_in_the_middle_gives_what_came():
    one, two = map(session, pipe())
    await one.write(b"abc")
    one.cut("enough")
    assert await two.read(5) == b"abc"
    with pytest.raises(ConnectionClosedError, match="the peer closed"):
        await two.read(5)


async def test_the_end_in_the_middle_of_a_record_is_told():
    one, two = pipe()
    one.send_now(Sealer(KEY, 0).seal(b"abc")[:9])
    one.cut()
    with pytest.raises(ConnectionClosedError, match="middle of a record"):
        await session(two).receive()


async def test_bytes_that_the_peer_did_not_seal_are_a_violation():
    one, two = pipe()
    one.send_now(b"\x00\x20" + bytes(32))
    with pytest.raises(RemoteViolation):
        await session(two).receive()


async def test_a_writer_cancelled_in_the_middle_of_a_record_leaves_no_half_of_it(autojump_clock):
    one, two = pipe(room=100)
    sender, receiver = session(one), session(two)
    with trio.move_on_after(1) as scope:
        await sender.write(b"a" * 1000)
    assert scope.cancelled_caught
    assert len(two.inbox) == 100
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sender.write, b"b" * 10)
        assert await receiver.read(1010) == b"a" * 1000 + b"b" * 10


async def test_frames_that_wait_go_out_together(autojump_clock):
    one, two = pipe(room=10)
    sender, receiver = session(one), session(two)
    for _ in range(100):
        sender.send(b"frame")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sender.flush)
        assert await receiver.read(500) == b"frame" * 100
    # the first one alone, for it did not wait; then all the others in one record
    assert receiver._opener._nonce == 2


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


async def test_closing_does_not_wait_long_for_a_peer_that_does_not_read(rig, autojump_clock):
    peer = rig(room=100)
    stream = await peer.open()
    async with trio.open_nursery() as nursery:

        async def write():
            with pytest.raises(MuxedStreamReset):
                await stream.write(bytes(300_000))

        nursery.start_soon(write)
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
