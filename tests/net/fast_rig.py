"""What the tests of the fast connection share: a wire that can get stuck, and a bare peer on its other end."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import trio
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.peer.id import ID

from converge_p2p.net.fast import frames
from converge_p2p.net.fast.frames import DATA, SYN, WINDOW_UPDATE, encode_header
from converge_p2p.net.fast.machine import Bounds
from converge_p2p.net.fast.records import Opener, Sealer
from converge_p2p.net.fast.session import FastSession
from converge_p2p.net.fast.yamux import FastYamux, Patience

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


def data(number: int, payload: bytes, flags: int = 0) -> bytes:
    return encode_header(DATA, flags, number, len(payload)) + payload
