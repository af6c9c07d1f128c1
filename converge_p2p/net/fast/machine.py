"""The multiplexer as a state machine: received bytes and intentions in, bytes to send and woken streams out.

Knows: streams, windows, the rules of yamux, what one peer may cost. Must not know: sockets, tasks, clocks: the time is
an argument. Source: yamux specification (hashicorp), as libp2p uses it; docs/threat-model.md for the bounds.

A peer that breaks a rule which no honest implementation breaks raises `RemoteViolation`; what can happen by a race
(data for a stream that was just reset, data after the end) is dropped and counted.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from converge_p2p.core import limits
from converge_p2p.core.errors import LimitExceeded, LocalError, RemoteViolation
from converge_p2p.net.fast import frames
from converge_p2p.net.framing import TokenBucket

_SEND_WINDOW_MAX = 2**32 - 1


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one connection may cost. The defaults are those of `core.limits`; tests choose smaller ones.

    Attributes:
        window_bytes: what a peer may send on a stream ahead of its reader; at least yamux's first window.
        buffers_bytes_max: what may wait to be read, all streams together.
        inbound_max: streams of the peer at once.
        outbound_max: own streams at once.
        unacknowledged_max: own streams at once that the peer has not answered.
        opens_per_second: new streams of the peer; twice as many at once. The rest is refused.
        refusals_per_second: refused streams that are put up with.
        refusals_burst: refused streams that are put up with at once.
        pings_per_second: pings that are put up with.
        pings_burst: pings that are put up with at once.
        stray_per_second: frames for streams that are not there, put up with.
        stray_burst: the same, at once.
        linger_s: how long a stream that is closed on this side waits for its end on the other.
    """

    window_bytes: int = limits.STREAM_WINDOW_BYTES_MAX
    buffers_bytes_max: int = limits.STREAM_BUFFERS_BYTES_MAX
    inbound_max: int = limits.STREAMS_INBOUND_MAX
    outbound_max: int = limits.STREAMS_OUTBOUND_MAX
    unacknowledged_max: int = limits.STREAMS_UNACKNOWLEDGED_MAX
    opens_per_second: float = limits.STREAM_OPENS_PER_SECOND_MAX
    refusals_per_second: float = limits.STREAM_REFUSALS_PER_SECOND_MAX
    refusals_burst: float = limits.STREAM_REFUSALS_BURST_MAX
    pings_per_second: float = limits.PINGS_PER_SECOND_MAX
    pings_burst: float = limits.PINGS_BURST_MAX
    stray_per_second: float = limits.STRAY_FRAMES_PER_SECOND_MAX
    stray_burst: float = limits.STRAY_FRAMES_BURST_MAX
    linger_s: float = limits.STREAM_LINGER_S


class StreamState:
    """One stream. Only the machine changes it.

    Attributes:
        id: its number.
        own: whether this side opened it.
        buffer: bytes that came and were not taken.
        send_window: bytes that may be sent now.
        receive_window: bytes that the peer may send now.
        acknowledged: whether the peer has answered, for an own stream.
        send_closed: nothing more can be sent.
        receive_closed: nothing more will come.
        reset: ended by either side at once.
        gone: no longer in the machine's table.
        readers: tasks that wait for bytes; kept by the shell, and while there are some the stream does not linger out.
        owner: what the shell hangs on it.
    """

    __slots__ = (
        "acknowledged", "buffer", "credit", "gone", "id", "own", "owner", "readers", "receive_closed", "receive_window",
        "reset", "send_closed", "send_window", "touched_at",
    )  # fmt: skip

    def __init__(self, number: int, own: bool, receive_window: int) -> None:
        self.id = number
        self.own = own
        self.buffer = bytearray()
        self.send_window = frames.WINDOW_FIRST_BYTES
        self.receive_window = receive_window
        self.credit = 0
        self.acknowledged = not own
        self.send_closed = False
        self.receive_closed = False
        self.reset = False
        self.gone = False
        self.readers = 0
        self.touched_at = 0.0
        self.owner: object = None


class Machine:
    """The streams of one connection.

    Attributes:
        streams: those that are not over, by number.
        out: frames to send, in order; the shell takes and clears it after every call.
        opened: new streams of the peer, to be accepted; taken and cleared by the shell.
        woken: streams that may be read, or written, or have ended; taken and cleared by the shell.
        buffered: bytes that wait to be read, all streams together.
        go_away: the code of the peer's farewell, or None.
        rtt_s: smoothed time between ping and answer, 0 while there was none.
    """

    def __init__(self, initiator: bool, counters: Counter[str], bounds: Bounds | None = None) -> None:
        """Begin without streams.

        Args:
            initiator: whether this side dialled; it numbers its streams 1, 3, 5, …
            counters: where refusals and drops are counted.
            bounds: what the peer may cost.
        """
        self.bounds = bounds or Bounds()
        self.streams: dict[int, StreamState] = {}
        self.out: list[bytes] = []
        self.opened: list[StreamState] = []
        self.woken: list[StreamState] = []
        self.buffered = 0
        self.go_away: int | None = None
        self.rtt_s = 0.0
        self.unacknowledged = 0
        self._counters = counters
        self._decoder = frames.FrameDecoder()
        self._next = 1 if initiator else 2
        self._inbound = 0
        self._target: StreamState | None = None
        self._ends = False
        self._ping_value = 0
        self._pinged_at: float | None = None
        extra = self.bounds.window_bytes - frames.WINDOW_FIRST_BYTES
        assert extra >= 0, "yamux gives every stream a first window of 256 KiB"
        self._extra = extra
        bounds = self.bounds
        self._opens = TokenBucket(bounds.opens_per_second, burst=2 * bounds.opens_per_second)
        self._refusals = TokenBucket(bounds.refusals_per_second, burst=bounds.refusals_burst)
        self._pings = TokenBucket(bounds.pings_per_second, burst=bounds.pings_burst)
        self._strays = TokenBucket(bounds.stray_per_second, burst=bounds.stray_burst)

    # ------------------------------------------------------------ what comes

    def receive(self, data: bytes, now: float) -> None:
        """Take received bytes.

        Args:
            data: any piece of what the peer sent.
            now: any monotonic clock, seconds.

        Raises:
            RemoteViolation: the peer broke the protocol, or floods. The connection cannot be used any more.
        """
        for item in self._decoder.feed(data):
            if isinstance(item, bytes):
                self._body(item)
                continue
            _, kind, flags, number, length = item
            if kind == frames.PING:
                self._ping(flags, length, now)
            elif kind == frames.GO_AWAY:
                self.go_away = length
            else:
                self._stream_frame(kind, flags, number, length, now)

    def _stream_frame(self, kind: int, flags: int, number: int, length: int, now: float) -> None:
        stream = self.streams.get(number)
        if flags & frames.SYN:
            stream = self._opened_by_peer(stream, number, flags, now)
        elif stream is None:
            # a race with our reset, or with the other end of the stream; a flood of them is none
            self._counters["stream_frames_stray"] += 1
            if not self._strays.try_take(1, now):
                raise RemoteViolation("yamux_stray_flood", f"too many frames for streams such as {number}")
        if kind == frames.DATA:
            self._target = stream
            self._ends = False
        if stream is None:
            return
        stream.touched_at = now
        if flags & frames.ACK and not stream.acknowledged:
            self._acknowledge(stream)
            self.woken.append(stream)
        if flags & frames.RST:
            self._abort(stream)
            return
        if kind == frames.DATA:
            self._expect(stream, length)
        elif length:
            self._credited(stream, length)
        if flags & frames.FIN:
            if kind == frames.DATA and length:
                self._ends = True
            else:
                self._ended_by_peer(stream)

    def _opened_by_peer(self, known: StreamState | None, number: int, flags: int, now: float) -> StreamState | None:
        """Return the new stream, or None if it is refused."""
        if number % 2 == self._next % 2:
            raise RemoteViolation("yamux_wrong_parity", f"stream {number} is for this side to open")
        if known is not None:
            raise RemoteViolation("yamux_stream_twice", f"stream {number} was opened while it was open")
        stillborn = bool(flags & frames.RST)
        if stillborn or self._inbound >= self.bounds.inbound_max or not self._opens.try_take(1, now):
            self._counters["inbound_stream_refused"] += 1
            if not self._refusals.try_take(1, now):
                raise RemoteViolation("yamux_stream_flood", "streams are opened although they are refused")
            if not stillborn:
                self._send(frames.WINDOW_UPDATE, frames.RST, number, 0)
            return None
        stream = self.streams[number] = StreamState(number, False, self.bounds.window_bytes)
        self._inbound += 1
        self.opened.append(stream)
        self._send(frames.WINDOW_UPDATE, frames.ACK, number, self._extra)
        return stream

    def _expect(self, stream: StreamState, length: int) -> None:
        """Account for the data of a frame before it comes: so no byte beyond the window is ever held."""
        if stream.receive_closed:
            # the library's writer may overtake its own end of the stream
            self._counters["stream_frames_stray"] += 1
            self._target = None
            return
        if length > stream.receive_window:
            raise RemoteViolation(
                "stream_window_overrun",
                f"{length} bytes for stream {stream.id}, whose window has {stream.receive_window} left",
            )
        stream.receive_window -= length

    def _body(self, piece: bytes) -> None:
        stream = self._target
        if stream is not None and not stream.gone:
            stream.buffer += piece
            self.buffered += len(piece)
            self.woken.append(stream)
            if self._ends and not self._decoder.body_left:
                self._ended_by_peer(stream)
            if self.buffered > self.bounds.buffers_bytes_max:
                self._relieve()

    def _relieve(self) -> None:
        """Too much waits to be read: end the stream where the most does. Its reader is the slowest."""
        fullest = max(self.streams.values(), key=lambda stream: len(stream.buffer))
        self._counters["streams_overfull"] += 1
        self.reset(fullest)

    def _credited(self, stream: StreamState, length: int) -> None:
        stream.send_window += length
        if stream.send_window > _SEND_WINDOW_MAX:
            raise RemoteViolation("yamux_credit_overflow", f"the window of stream {stream.id} is over 2**32 - 1")
        self.woken.append(stream)

    def _ended_by_peer(self, stream: StreamState) -> None:
        stream.receive_closed = True
        self.woken.append(stream)
        if stream.send_closed:
            self._drop(stream, reset=False)

    def _ping(self, flags: int, value: int, now: float) -> None:
        if not self._pings.try_take(1, now):
            raise RemoteViolation("yamux_ping_flood", f"over {self.bounds.pings_per_second:g} pings a second")
        if flags & frames.SYN:
            self._send(frames.PING, frames.ACK, 0, value)
        elif self._pinged_at is not None and value == self._ping_value:
            sample = now - self._pinged_at
            self._pinged_at = None
            self.rtt_s = sample if not self.rtt_s else (self.rtt_s + sample) / 2

    # ------------------------------------------------------------ what is wanted

    def open(self) -> StreamState:
        """Open a stream.

        Raises:
            LocalError: the peer has said farewell.
            LimitExceeded: too many streams, or too many that the peer has not answered.
        """
        if self.go_away is not None:
            raise LocalError("the peer takes no more streams on this connection", hint="connect anew")
        if len(self.streams) - self._inbound >= self.bounds.outbound_max:
            raise LimitExceeded("STREAMS_OUTBOUND_MAX", f"at most {self.bounds.outbound_max} streams at once")
        if self.unacknowledged >= self.bounds.unacknowledged_max:
            raise LimitExceeded("STREAMS_UNACKNOWLEDGED_MAX", "the peer does not answer to new streams")
        number = self._next
        self._next += 2
        stream = self.streams[number] = StreamState(number, True, self.bounds.window_bytes)
        self.unacknowledged += 1
        self._send(frames.WINDOW_UPDATE, frames.SYN, number, self._extra)
        return stream

    def data_frame(self, stream: StreamState, payload: bytes | memoryview) -> bytes:
        """Return a data frame and take its length off the window, which must have room for it."""
        assert len(payload) <= stream.send_window, "the caller asks for room first"
        assert not stream.send_closed, "the caller asks whether it may"
        stream.send_window -= len(payload)
        return frames.encode_data(stream.id, payload)

    def take(self, stream: StreamState, count: int) -> bytes:
        """Return at most `count` of the bytes that came; allow the peer more once half of a window was taken."""
        buffer = stream.buffer
        if count >= len(buffer):
            data = bytes(buffer)
            buffer.clear()
        else:
            data = bytes(buffer[:count])
            del buffer[:count]
        if stream.gone:
            return data
        self.buffered -= len(data)
        stream.credit += len(data)
        if stream.credit >= self.bounds.window_bytes // 2 and not stream.receive_closed:
            stream.receive_window += stream.credit
            self._send(frames.WINDOW_UPDATE, 0, stream.id, stream.credit)
            stream.credit = 0
        return data

    def finish(self, stream: StreamState, now: float) -> None:
        """Send no more on a stream. What comes can still be read."""
        if stream.send_closed:
            return
        stream.send_closed = True
        stream.touched_at = now
        self._send(frames.WINDOW_UPDATE, frames.FIN, stream.id, 0)
        self.woken.append(stream)
        if stream.receive_closed:
            self._drop(stream, reset=False)

    def reset(self, stream: StreamState) -> None:
        """End a stream at once in both directions."""
        if not stream.gone:
            self._send(frames.WINDOW_UPDATE, frames.RST, stream.id, 0)
            self._abort(stream)

    def ping(self, now: float) -> None:
        """Ask for a sign of life, unless the answer to the last ping is still waited for."""
        if self._pinged_at is None:
            self._ping_value = (self._ping_value + 1) % 2**32
            self._pinged_at = now
            self._send(frames.PING, frames.SYN, 0, self._ping_value)

    def ping_age_s(self, now: float) -> float:
        """How long the last ping waits for its answer; 0 if it does not."""
        return 0.0 if self._pinged_at is None else now - self._pinged_at

    def sweep(self, now: float) -> None:
        """End streams that are closed on this side, are not read, and whose peer does not close them."""
        for stream in list(self.streams.values()):
            idle_s = now - stream.touched_at
            if stream.send_closed and not stream.readers and idle_s > self.bounds.linger_s:
                self._counters["streams_lingered_out"] += 1
                self.reset(stream)

    def end(self) -> None:
        """The connection is over: so are all streams. What came can still be taken."""
        for stream in list(self.streams.values()):
            self._drop(stream, reset=True)

    # ------------------------------------------------------------ both

    def _send(self, kind: int, flags: int, number: int, length: int) -> None:
        self.out.append(frames.encode_header(kind, flags, number, length))

    def _acknowledge(self, stream: StreamState) -> None:
        stream.acknowledged = True
        self.unacknowledged -= 1

    def _abort(self, stream: StreamState) -> None:
        """What waits to be read goes with the stream, as a reset means; or a peer could have it held uncounted."""
        self._drop(stream, reset=True)
        stream.buffer.clear()

    def _drop(self, stream: StreamState, *, reset: bool) -> None:
        """Take a stream out of the table. What its reader has not taken is no longer counted, as nothing is added."""
        if stream.gone:
            return
        stream.gone = True
        stream.send_closed = stream.receive_closed = True
        stream.reset = reset
        del self.streams[stream.id]
        self.buffered -= len(stream.buffer)
        if not stream.own:
            self._inbound -= 1
        elif not stream.acknowledged:
            self._acknowledge(stream)
        self.woken.append(stream)
