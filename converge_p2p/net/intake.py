"""How much a peer can make the library hold: bytes nobody asked for, names without an end, handshakes that never end.

Knows: private names of libp2p 0.8.1, which is therefore pinned. Must not know: what travels over the connections.
Source: yamux specification (flow control), multistream-select; measurements on libp2p 0.8.1. Each repair has a test in
`tests/net/test_net_intake.py` that shows the fault.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import libp2p.protocol_muxer.multiselect_communicator
import libp2p.stream_muxer.yamux.yamux as yamux
import trio
from libp2p.exceptions import ParseError
from libp2p.io.exceptions import MessageTooLarge
from libp2p.utils.varint import read_varint_prefixed_bytes_limited

from converge_p2p.core import limits
from converge_p2p.net.framing import TokenBucket
from converge_p2p.net.hardening import Counters, log, shielded
from converge_p2p.net.host_shares import THIS_MACHINE, Source


def bound_negotiation() -> None:
    """B12: a protocol name may be 2**63 bytes long, before the handshake too, and the library collects it.

    The reader of names is replaced by one that knows what a name can be.
    """
    libp2p.protocol_muxer.multiselect_communicator.read_delim = _read_name


async def _read_name(reader: Any) -> bytes:
    try:
        name: bytes = await read_varint_prefixed_bytes_limited(reader, limits.PROTOCOL_NAME_BYTES_MAX)
    except MessageTooLarge as error:
        raise ParseError(str(error)) from error
    if name[-1:] != b"\n":
        raise ParseError("a protocol name ends with a line feed")
    return name[:-1]


def enforce_windows(host: Any, counters: Counters) -> None:
    """B13: the library tells the sender how much it may send on a stream, and takes whatever it sends all the same.

    A peer that ignores the window of one stream that is not read could so fill the memory. Here it loses its connection
    once more waits than it was ever allowed to send. And what it is allowed grows to 16 MiB for each stream by itself,
    within a few reads, on every link with a short round trip; here to `limits.STREAM_WINDOW_BYTES_MAX`.
    """
    yamux.MAX_WINDOW_SIZE = limits.STREAM_WINDOW_BYTES_MAX
    muxers = host.get_network().upgrader.muxer_multistream
    make_connection = muxers.new_conn

    async def new_connection(secured: Any, peer: Any) -> Any:
        connection = await make_connection(secured, peer)
        connection.stream_buffers = _WindowedBuffers(connection, counters)
        return connection

    muxers.new_conn = new_connection


class _WindowedBuffers(dict[int, bytearray]):
    """What waits to be read from the streams of one connection."""

    def __init__(self, connection: Any, counters: Counters) -> None:
        super().__init__()
        self._connection = connection
        self._counters = counters

    def __setitem__(self, stream: int, buffer: bytearray) -> None:
        super().__setitem__(stream, _WindowedBuffer(self, stream, buffer))

    def room(self, stream: int) -> int:
        """How much may wait on a stream: its window, and one small window of leniency."""
        known = self._connection.streams.get(stream)
        window: int = yamux.DEFAULT_WINDOW_SIZE if known is None else known.target_recv_window
        leniency: int = yamux.DEFAULT_WINDOW_SIZE
        return window + leniency

    def overrun(self, stream: int) -> None:
        """Close the connection, from a task of its own: its reader holds the locks now."""
        if self._connection.event_shutting_down.is_set():
            return
        self._counters["stream_window_overrun"] += 1
        log.warning("%s sent more on stream %d than it was allowed to", self._connection.peer_id, stream)
        self._connection.event_shutting_down.set()
        self._connection._nursery.start_soon(self._cut)

    async def _cut(self) -> None:
        with shielded(2):
            await self._connection._cleanup_on_error()


class _WindowedBuffer(bytearray):
    """What waits to be read from one stream. Bytes beyond the window are not kept."""

    def __init__(self, buffers: _WindowedBuffers, stream: int, content: bytearray) -> None:
        super().__init__(content)
        self._buffers = buffers
        self._stream = stream

    def extend(self, data: Any) -> None:
        """Take bytes as far as there is room."""
        if len(self) + len(data) > self._buffers.room(self._stream):
            self._buffers.overrun(self._stream)
        else:
            super().extend(data)


class Handshakes:
    """B14: connections whose handshake is under way. The library lets them take every place, for ten seconds each.

    Here they have places of their own, and when these are taken the one that has been at it the longest is given up: an
    honest handshake takes milliseconds, so that it comes through as long as the flood is slower than that. And one
    address has a part of the places, so that its flood gives up its own.
    """

    def __init__(self, counters: Counters) -> None:
        """Begin with none."""
        self._counters = counters
        self._running: dict[trio.CancelScope, Source] = {}

    def __len__(self) -> int:
        """Return how many are under way."""
        return len(self._running)

    @contextmanager
    def one(self, source: Source) -> Iterator[trio.CancelScope]:
        """Run one handshake with a source inside this block; it may be cancelled to make room."""
        of_source = [scope for scope, other in self._running.items() if other == source]
        if source != THIS_MACHINE and len(of_source) >= limits.HANDSHAKES_PER_HOST_MAX:
            self._give_up(of_source[0])
        elif len(self._running) >= limits.HANDSHAKES_MAX:
            self._give_up(next(iter(self._running)))
        with trio.CancelScope() as scope:
            self._running[scope] = source
            try:
                yield scope
            finally:
                self._running.pop(scope, None)

    def _give_up(self, scope: trio.CancelScope) -> None:
        del self._running[scope]
        scope.cancel()
        self._counters["handshakes_given_up"] += 1


class WorkBudget:
    """The processor time that what one peer sends may cost: a share of one core, and some seconds at once.

    The time is counted, not guessed, because what a frame costs depends on what is in it. A peer that is over its
    budget is not refused: it is read later.
    """

    def __init__(self) -> None:
        """Begin with the whole allowance."""
        self._bucket = TokenBucket(limits.PEER_WORK_SHARE_MAX, burst=limits.PEER_WORK_BURST_S)

    @contextmanager
    def spent(self) -> Iterator[None]:
        """Count the time of the block, which must not wait for anything."""
        start = time.thread_time()
        try:
            yield
        finally:
            self._bucket.take(time.thread_time() - start, trio.current_time())

    def debt_s(self) -> float:
        """Seconds until the budget is balanced again; 0 while there is some left."""
        return self._bucket.take(0.0, trio.current_time())
