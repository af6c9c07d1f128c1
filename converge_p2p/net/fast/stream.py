"""One stream of the multiplexer as libp2p sees it, in the shape of the library's interface.

Knows: trio, libp2p's interface and exceptions. Must not know: the rules of yamux (see `machine`).
Source: libp2p's `IMuxedStream`, as the library's own multiplexer fills it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
from libp2p.abc import IMuxedStream
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.stream_muxer.exceptions import MuxedStreamClosed, MuxedStreamEOF, MuxedStreamReset

from converge_p2p.net.fast import frames
from converge_p2p.net.fast.machine import StreamState
from converge_p2p.net.fast.records import PLAINTEXT_BYTES_MAX

if TYPE_CHECKING:
    from converge_p2p.net.fast.yamux import FastYamux

_PAYLOAD_BYTES_MAX = PLAINTEXT_BYTES_MAX - frames.HEADER_BYTES
"""One data frame fills one record."""


class FastStream(IMuxedStream):  # type: ignore[misc]
    """One stream of a connection. May be read by one task while another one writes."""

    def __init__(self, connection: FastYamux, state: StreamState) -> None:
        self.muxed_conn = connection
        self.stream_id = state.id
        self.is_initiator = state.own
        self._state = state
        self._machine = connection.machine
        self._session = connection.secured_conn
        self._readable: trio.Event | None = None
        self._writable: trio.Event | None = None
        state.owner = self

    def wake(self) -> None:
        """Something about the stream changed."""
        if self._readable is not None:
            self._readable.set()
            self._readable = None
        if self._writable is not None:
            self._writable.set()
            self._writable = None

    async def read(self, n: int | None = -1) -> bytes:
        """Return what there is, at most `n` bytes, as soon as there is something; all there is if `n` is -1 or None.

        Raises:
            MuxedStreamEOF: the peer has ended its direction, and everything was read.
            MuxedStreamReset: the stream or its connection broke.

        Cancellation: at any time; nothing is lost.
        """
        state = self._state
        if n == 0:
            await trio.lowlevel.checkpoint()
            return b""
        if state.buffer:
            await self.muxed_conn.take_turn(len(state.buffer))
        while not state.buffer:
            if state.reset:
                raise MuxedStreamReset("Stream was reset")
            if state.receive_closed:
                raise MuxedStreamEOF("Stream is closed for receiving")
            if self._readable is None:
                self._readable = trio.Event()
            state.readers += 1
            try:
                await self._readable.wait()
            finally:
                state.readers -= 1
        data = self._machine.take(state, len(state.buffer) if n is None or n < 0 else n)
        self.muxed_conn.send_answers()
        return data

    async def write(self, data: bytes) -> None:
        """Send all bytes, as fast as the peer takes them.

        Raises:
            MuxedStreamReset: the stream or its connection broke, or the peer left no room for too long.
            MuxedStreamClosed: this side has closed the stream.

        Cancellation: at any time. If a part was sent the stream is reset, as nobody could go on where this stopped.
        """
        self._check_writable()
        state, end, position = self._state, len(data), 0
        try:
            while position < end:
                if not state.send_window:
                    await self._wait_credit()
                if not self._session.has_room:
                    await self._session.wait_room()
                    continue
                size = min(end - position, state.send_window, _PAYLOAD_BYTES_MAX)
                piece = data if size == end else memoryview(data)[position : position + size]
                self._check_writable()
                self.send_piece(piece)
                position += size
                await self.muxed_conn.take_turn(size)
        except ConnectionClosedError as error:
            raise MuxedStreamReset(str(error)) from error
        except trio.Cancelled:
            if 0 < position < end:
                self._abandon()
            raise

    async def _wait_credit(self) -> None:
        with trio.move_on_after(self.muxed_conn.patience.stream_stall_s) as scope:
            while not self._state.send_window:
                self._check_writable()
                await self._wait_change()
        if scope.cancelled_caught:
            self.muxed_conn.count("streams_stalled")
            self._abandon()
            raise MuxedStreamReset("the peer left no room on the stream for too long")

    async def _wait_change(self) -> None:
        if self._writable is None:
            self._writable = trio.Event()
        await self._writable.wait()

    # what a connection that runs over this stream needs: writing without waiting, see `stream_wire`

    @property
    def is_writable(self) -> bool:
        """Whether this side may still send."""
        return not (self._state.reset or self._state.send_closed)

    def room(self) -> int:
        """Bytes that `send_piece` takes now; 0 if the peer or the connection takes none."""
        return min(self._state.send_window, _PAYLOAD_BYTES_MAX) if self._session.has_room else 0

    def send_piece(self, piece: bytes | memoryview) -> None:
        """Send at most `room` bytes.

        Raises:
            ConnectionClosedError: the connection is over.
        """
        self._session.send(self._machine.data_frame(self._state, piece))

    async def wait_room(self) -> None:
        """Wait until there may be room, or the stream is over.

        Raises:
            ConnectionClosedError: the connection is over.

        Cancellation: at any time.
        """
        if self._session.has_room:
            await self._wait_change()
        else:
            await self._session.wait_room()

    def finish(self) -> None:
        """End the own direction, now."""
        self._machine.finish(self._state, trio.current_time())
        self.muxed_conn.after_change()

    def _check_writable(self) -> None:
        if self._state.reset:
            raise MuxedStreamReset("Stream was reset")
        if self._state.send_closed:
            raise MuxedStreamClosed("Stream is closed for sending")

    async def close(self) -> None:
        """End the own direction; the other one may still be read."""
        self.finish()
        await trio.lowlevel.checkpoint()

    async def reset(self) -> None:
        """End both directions at once."""
        self._abandon()
        await trio.lowlevel.checkpoint()

    def _abandon(self) -> None:
        self._machine.reset(self._state)
        self.muxed_conn.after_change()

    def is_closed(self) -> bool:
        """Whether both directions are over."""
        return self._state.gone

    def set_deadline(self, ttl: int) -> None:
        """Not supported, as by the library's own multiplexer: use trio's timeouts."""
        raise NotImplementedError("use trio.fail_after")

    def get_remote_address(self) -> tuple[str, int] | None:
        """Return the peer's address and port, if known."""
        return self.muxed_conn.get_remote_address()

    async def __aenter__(self) -> FastStream:
        await trio.lowlevel.checkpoint()
        return self
