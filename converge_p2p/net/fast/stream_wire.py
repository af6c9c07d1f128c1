"""A stream of one connection as the wire of another: what a relay passes on.

Knows: the fast multiplexer's streams. Must not know: relays, or what the bytes are.
Source: `session.Wire`. As on a socket, writing never waits and takes what there is room for: the window of the stream,
and the queue of the connection below it. So nothing is held twice.
"""

from __future__ import annotations

import errno

import trio
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.stream_muxer.exceptions import MuxedStreamEOF, MuxedStreamError

from converge_p2p.net.fast.stream import FastStream


class StreamWire:
    """See `session.Wire`. Reading is for one task at a time."""

    def __init__(self, stream: FastStream) -> None:
        """Use a stream; nothing else may read from it or write to it any more."""
        self._stream = stream
        self._closed = False
        self._receiving: trio.CancelScope | None = None

    def send_now(self, data: bytes | memoryview) -> int:
        """Send what there is room for and return how much that was.

        Raises:
            OSError: the stream is over.
        """
        stream, position = self._stream, 0
        if self._closed or not stream.is_writable:
            raise OSError(errno.EPIPE, "the circuit was closed")
        try:
            while position < len(data) and (size := min(len(data) - position, stream.room())):
                stream.send_piece(memoryview(data)[position : position + size])
                position += size
        except ConnectionClosedError as error:
            raise OSError(errno.EPIPE, f"the connection to the relay is over: {error}") from error
        return position

    async def wait_sendable(self) -> None:
        """Wait until there is room again.

        Raises:
            trio.ClosedResourceError: `cut` was called, or the stream is over.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        while not self._closed and self._stream.is_writable:
            if self._stream.room():
                return
            try:
                await self._stream.wait_room()
            except (ConnectionClosedError, MuxedStreamError):
                break
        raise trio.ClosedResourceError

    async def receive(self, bytes_max: int) -> bytes:
        """Return at least one byte, or none at the end.

        Raises:
            trio.BrokenResourceError: the stream broke.
            trio.ClosedResourceError: `cut` was called.
        """
        if not self._closed:
            with trio.CancelScope() as self._receiving:
                try:
                    return await self._stream.read(bytes_max)
                except MuxedStreamEOF:
                    return b""
                except MuxedStreamError as error:
                    raise trio.BrokenResourceError from error
                finally:
                    self._receiving = None
        raise trio.ClosedResourceError

    def cut(self) -> None:
        """Send no more, and let what was sent arrive. May be called again."""
        if self._closed:
            return
        self._closed = True
        self._stream.finish()
        if self._receiving is not None:
            self._receiving.cancel()
