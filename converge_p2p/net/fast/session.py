"""An encrypted connection after the noise handshake: reads in gulps, writes without waiting as long as there is room.

Knows: trio, the socket, the two ciphers. Must not know: streams.
Source: libp2p noise specification. What is measured to be slow in the library's session, and so is different here: two
reads for every record, a lock for every write, a record for every frame that waits.

A write is never half done. What is to be sent is queued whole, at once, and the kernel takes what it has room for; the
rest goes out from the queue, whatever happens to the task that wrote it. So a writer may be cancelled at any time.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any, Protocol

import trio
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.security.base_session import BaseSession

from converge_p2p.core import limits
from converge_p2p.net.fast.records import PLAINTEXT_BYTES_MAX, RECORD_BYTES_MAX, Opener, Sealer

_READ_BYTES = 65_536
_SEAL_BYTES = 4 * PLAINTEXT_BYTES_MAX
_BACKLOG_BYTES_MAX = limits.WRITE_QUEUE_BYTES_MAX + RECORD_BYTES_MAX + limits.WRITE_QUEUE_CONTROL_BYTES_MAX


class Wire(Protocol):
    """What a session needs of a byte stream."""

    def send_now(self, data: bytes | memoryview) -> int:
        """Send what there is room for and return how much that was.

        Raises:
            OSError: the connection is broken.
        """

    async def wait_sendable(self) -> None:
        """Wait until there is room again.

        Raises:
            trio.ClosedResourceError: `cut` was called.
        """

    async def receive(self, bytes_max: int) -> bytes:
        """Return at least one byte, or none at the end.

        Raises:
            trio.BrokenResourceError: the connection is broken.
            trio.ClosedResourceError: `cut` was called.
        """

    def cut(self) -> None:
        """Close at once. May be called again."""


class SocketWire:
    """A TCP connection."""

    def __init__(self, stream: trio.SocketStream) -> None:
        """Use a stream's socket; nothing else may write to it."""
        self._stream = stream
        self._socket = stream.socket

    def send_now(self, data: bytes | memoryview) -> int:
        """See `Wire`."""
        number = self._socket.fileno()
        if number < 0:
            raise OSError(errno.EBADF, "the socket is closed")
        try:
            return os.write(number, data)
        except BlockingIOError:
            return 0

    async def wait_sendable(self) -> None:
        """See `Wire`."""
        await trio.lowlevel.wait_writable(self._socket)

    async def receive(self, bytes_max: int) -> bytes:
        """See `Wire`."""
        return bytes(await self._stream.receive_some(bytes_max))

    def cut(self) -> None:
        """See `Wire`."""
        self._socket.close()


class FastSession(BaseSession):  # type: ignore[misc]
    """The two directions of one connection. Reading is for one task at a time, writing for any number.

    Attributes:
        why_closed: a reason in words once the session is over, else None.
    """

    def __init__(self, stock: Any, wire: Wire, sealer: Sealer, opener: Opener, raw: Any) -> None:
        """Take over from the library's session after the handshake.

        Args:
            stock: whose identities are taken over.
            wire: the bytes below.
            sealer: the cipher of this side.
            opener: the cipher of the other side.
            raw: the library's connection, asked for addresses.
        """
        super().__init__(
            local_peer=stock.local_peer,
            local_private_key=stock.local_private_key,
            remote_peer=stock.remote_peer,
            remote_permanent_pubkey=stock.remote_permanent_pubkey,
            is_initiator=stock.is_initiator,
        )
        self.why_closed: str | None = None
        self._wire = wire
        self._sealer = sealer
        self._opener = opener
        self._raw = raw
        self._plain = bytearray()
        self._queue: list[bytes] = []
        self._queue_bytes = 0
        self._rest: bytes | memoryview = b""
        self._pumped = False
        self._stuck = trio.Event()
        self._room = trio.Event()

    # ------------------------------------------------------------ reading

    async def receive(self) -> bytes:
        """Return what the next records hold; at least one byte.

        Raises:
            ConnectionClosedError: the connection ended or is broken.
            RemoteViolation: what came was not sealed by the peer.

        Cancellation: at any time; nothing is lost.
        """
        if self._plain:
            data = bytes(self._plain)
            self._plain.clear()
            return data
        while True:
            try:
                data = await self._wire.receive(_READ_BYTES)
            except (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as error:
                self.cut("the connection broke")
                raise ConnectionClosedError(self.why_closed or str(error)) from error
            if not data:
                half = " in the middle of a record" if self._opener.pending_bytes else ""
                self.cut(f"the peer closed the connection{half}")
                raise ConnectionClosedError(self.why_closed or "")
            if plain := self._opener.feed(data):
                return plain

    async def read(self, n: int | None = None) -> bytes:
        """Return exactly `n` bytes, fewer only at the end; or what there is, if `n` is None.

        Raises:
            ConnectionClosedError: there are no bytes at all any more.
            RemoteViolation: what came was not sealed by the peer.
        """
        if n is None:
            return await self.receive()
        while len(self._plain) < n:
            held = bytes(self._plain)
            self._plain.clear()
            try:
                more = await self.receive()
            except ConnectionClosedError:
                if not held:
                    raise
                return held
            except BaseException:
                self._plain[:0] = held
                raise
            self._plain += held + more
        data = bytes(self._plain[:n])
        del self._plain[:n]
        return data

    # ------------------------------------------------------------ writing

    @property
    def backlog_bytes(self) -> int:
        """Bytes that wait for the peer to take them."""
        return self._queue_bytes + len(self._rest)

    @property
    def has_room(self) -> bool:
        """Whether more may be sent without waiting."""
        return self.backlog_bytes < limits.WRITE_QUEUE_BYTES_MAX

    def send(self, data: bytes) -> None:
        """Send whole frames, now or as soon as there is room. Ask for room first, but for short answers.

        Raises:
            ConnectionClosedError: the connection is over; also when answers pile up that the peer does not read.
        """
        if self.why_closed is not None:
            raise ConnectionClosedError(self.why_closed)
        self._queue.append(data)
        self._queue_bytes += len(data)
        if not self._rest:
            self._push()
        elif self.backlog_bytes > _BACKLOG_BYTES_MAX:
            self.cut("the peer does not read its answers")
        if self.why_closed is not None:
            raise ConnectionClosedError(self.why_closed)

    def _push(self) -> None:
        """Give the kernel what it takes."""
        try:
            while self._rest or self._queue:
                data = self._rest or self._seal_some()
                sent = self._wire.send_now(data)
                if sent < len(data):
                    self._rest = memoryview(data)[sent:]
                    self._stuck.set()
                    return
                self._rest = b""
        except OSError as error:
            self.cut(f"the connection broke: {error.strerror or error}")

    def _seal_some(self) -> bytes:
        """Seal frames that wait, as few records as possible, and not too many at once."""
        if len(self._queue) == 1:
            data = self._queue[0]
            self._queue.clear()
            self._queue_bytes = 0
        else:
            count = size = 0
            while count < len(self._queue) and (not count or size + len(self._queue[count]) <= _SEAL_BYTES):
                size += len(self._queue[count])
                count += 1
            data = b"".join(self._queue[:count])
            del self._queue[:count]
            self._queue_bytes -= size
        return self._sealer.seal(data)

    async def wait_room(self) -> None:
        """Wait until more may be sent.

        Raises:
            ConnectionClosedError: the connection is over.

        Cancellation: at any time.
        """
        while self.why_closed is None and not self.has_room:
            await self._room.wait()
        if self.why_closed is not None:
            raise ConnectionClosedError(self.why_closed)

    async def run_pump(self, stall_s: float, stalled: Callable[[], None]) -> None:
        """Send what waits whenever there is room, until the connection is over.

        Args:
            stall_s: a peer that takes not a byte for this long is given up.
            stalled: is called then.

        Cancellation: at any time; what waits stays queued.
        """
        self._pumped = True
        while self.why_closed is None:
            if not self._rest:
                self._stuck = trio.Event()
                await self._stuck.wait()
                continue
            with trio.move_on_after(stall_s) as scope:
                await self._wait_sendable()
            if scope.cancelled_caught:
                stalled()
                self.cut(f"the peer took nothing for {stall_s:g} s")
                return
            self._push()
            if self.has_room:
                self._room.set()
                self._room = trio.Event()

    async def _wait_sendable(self) -> None:
        try:
            await self._wire.wait_sendable()
        except trio.ClosedResourceError:
            self.cut("the connection was closed")

    async def write(self, data: bytes) -> None:
        """Send and wait until the kernel has it: as the library's negotiation expects, which has no pump.

        Raises:
            ConnectionClosedError: the connection is over.

        Cancellation: at any time; the rest goes out with the next write.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        self.send(data)
        await self.flush()

    async def flush(self) -> None:
        """Wait until nothing waits; as long as there is no pump, by sending it.

        Raises:
            ConnectionClosedError: the connection is over.

        Cancellation: at any time.
        """
        while self.backlog_bytes and self.why_closed is None:
            if self._pumped:
                await self._room.wait()
            else:
                await self._wait_sendable()
                self._push()
        if self.why_closed is not None:
            raise ConnectionClosedError(self.why_closed)

    # ------------------------------------------------------------ the end, and whom this is

    def cut(self, why: str) -> None:
        """Close at once, and wake everybody who waits. The first reason stands. May be called again."""
        if self.why_closed is None:
            self.why_closed = why
        self._queue.clear()
        self._queue_bytes = 0
        self._rest = b""
        self._wire.cut()
        self._stuck.set()
        self._room.set()

    async def close(self) -> None:
        """Close at once."""
        self.cut("the connection was closed")
        await trio.lowlevel.checkpoint()

    def get_remote_address(self) -> tuple[str, int] | None:
        """Return the peer's address and port, if known."""
        address: tuple[str, int] | None = self._raw.get_remote_address()
        return address

    def get_transport_addresses(self) -> Any:
        """Return the addresses of the connection below."""
        return self._raw.get_transport_addresses()

    def get_connection_type(self) -> Any:
        """Return the kind of the connection below."""
        return self._raw.get_connection_type()
