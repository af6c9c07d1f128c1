"""Replication streams: one long-lived stream per peer and direction, with frames on it.

Knows: streams, queues, framing and rates. Must not know: what frames mean (see `core.replica.wire`).
Source: docs/protocol.md, "Replication streams".

Each side opens one stream of its own and writes only there, so there is nothing to negotiate about who opens and no
race to settle. The link is up while both streams work. What a slow peer does not take is dropped and counted:
anti-entropy repairs it, and one slow peer must cost the others nothing.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import Any

import trio
from libp2p.abc import INetStream
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID

from converge_p2p.core import limits
from converge_p2p.core.errors import RemoteViolation
from converge_p2p.core.types import PeerId
from converge_p2p.net.config import NetworkConfig, NetworkHandler
from converge_p2p.net.framing import FrameDecoder, TokenBucket, encode_frame
from converge_p2p.net.hardening import (
    Counters,
    close_quietly,
    disconnect_quietly,
    log,
    reset_quietly,
    shielded,
    write_whole,
)
from converge_p2p.net.intake import WorkBudget
from converge_p2p.net.names import peer_name

PROTOCOL = TProtocol("/converge/sync/1.0.0")

_READ_BYTES = 65_536
_OPEN_TIMEOUT_S = 15.0
_OPEN_ATTEMPTS_MAX = 5
_REOPEN_FIRST_S = 0.2
_REOPEN_MAX_S = 10.0
_DRAIN_TIMEOUT_S = 1.0


class _Link:
    """The two streams of one peer, and the frames that wait for it."""

    def __init__(self, raw: ID) -> None:
        self.raw = raw
        self.peer = peer_name(raw)
        self.queue: deque[bytes] = deque()
        self.queued_bytes = 0
        self.wake = trio.Event()
        self.ended = trio.Event()
        self.outbound: INetStream | None = None
        self.inbound: INetStream | None = None
        self.reading = trio.CancelScope()
        self.is_up = False
        self.up = trio.Event()
        self.keeping = False
        self.work = WorkBudget()

    def put(self, frame: bytes) -> bool:
        """Queue a frame unless the queue is full."""
        if self.queued_bytes + len(frame) > limits.OUTBOUND_QUEUE_BYTES_MAX:
            return False
        self.queue.append(frame)
        self.queued_bytes += len(frame)
        self.wake.set()
        return True

    def take(self) -> bytes:
        """Return queued frames for one write: as many as fit `limits.SYNC_WRITE_BYTES`, at least one."""
        parts = [self.queue.popleft()]
        size = len(parts[0])
        while self.queue and size + len(self.queue[0]) <= limits.SYNC_WRITE_BYTES:
            part = self.queue.popleft()
            parts.append(part)
            size += len(part)
        self.queued_bytes -= size
        return b"".join(parts)

    def clear(self) -> int:
        """Forget the queued frames; return how many there were."""
        count = len(self.queue)
        self.queue.clear()
        self.queued_bytes = 0
        return count


class SyncStreams:
    """The replication streams of one host. All methods are to be called in the event loop's thread."""

    def __init__(
        self,
        host: Any,
        handler: NetworkHandler,
        config: NetworkConfig,
        counters: Counters,
        blame: Callable[[PeerId], None] = lambda _peer: None,
    ) -> None:
        """Register the protocol.

        Args:
            host: the host.
            handler: what to do with frames.
            config: the settings.
            counters: where drops and failures are counted.
            blame: called with a peer that broke the protocol.
        """
        self._host = host
        self._handler = handler
        self._config = config
        self._counters = counters
        self._blame = blame
        self._links: dict[ID, _Link] = {}
        self._nursery: trio.Nursery | None = None
        self._random = random.Random()
        self._draining = False
        host.set_stream_handler(PROTOCOL, self._accept)

    def start(self, nursery: trio.Nursery) -> None:
        """Give the streams a nursery for their tasks."""
        self._nursery = nursery

    def connection_up(self, raw: ID) -> None:
        """A connection to the peer exists: begin to keep a stream to it."""
        link = self._links.get(raw)
        if link is None:
            link = self._links[raw] = _Link(raw)
        if not link.keeping and self._nursery is not None:
            link.keeping = True
            self._nursery.start_soon(self._keep, link)

    def is_up(self, raw: ID) -> bool:
        """Whether frames reach the peer now."""
        link = self._links.get(raw)
        return link is not None and link.is_up

    def send(self, raw: ID, payload: bytes) -> bool:
        """Queue one frame.

        Returns:
            False if there is no link to the peer, or its queue is full (which is counted).

        Raises:
            LimitExceeded: the payload is longer than `limits.SYNC_FRAME_BYTES_MAX`.
        """
        frame = encode_frame(payload, limits.SYNC_FRAME_BYTES_MAX)
        link = self._links.get(raw)
        if link is None or not link.is_up or self._draining:
            return False
        if not link.put(frame):
            self._counters["sync_frames_dropped"] += 1
            return False
        return True

    def waiting(self) -> tuple[int, int]:
        """Return how many frames wait for all peers, and how many bytes wait for the one for whom most wait."""
        links = self._links.values()
        return sum(len(link.queue) for link in links), max((link.queued_bytes for link in links), default=0)

    async def drain(self) -> None:
        """Send what is queued and wait until the peers have read it, for at most a second. Nothing can be sent after.

        That it is written does not suffice: a connection that closes throws away what the other side has not read. So
        the own streams are closed one by one, and a peer answers that by resetting its end.
        """
        self._draining = True
        with trio.move_on_after(_DRAIN_TIMEOUT_S):
            for link in list(self._links.values()):
                link.wake.set()
                while link.outbound is not None:
                    link.ended = trio.Event()
                    await link.ended.wait()

    # ------------------------------------------------------------ the own stream: open, write, open again

    async def _keep(self, link: _Link) -> None:
        """Keep the own stream to a peer open while it is connected."""
        failures = 0
        try:
            while self._may_open(link) and failures < _OPEN_ATTEMPTS_MAX:
                stream = await self._open(link)
                if stream is None:
                    # the connection may not be ready yet, or the peer does not speak this protocol
                    failures += 1
                else:
                    failures = 0
                    link.outbound = stream
                    self._update(link)
                    try:
                        await self._use(link, stream)
                    finally:
                        link.outbound = None
                        link.ended.set()
                        self._update(link)
                        with shielded(1):
                            await reset_quietly(stream)
                    self._counters["sync_streams_lost"] += 1
                pause = min(_REOPEN_MAX_S, _REOPEN_FIRST_S * 2**failures)
                await trio.sleep(pause * (0.5 + self._random.random()))
        finally:
            link.keeping = False
            self._forget_if_idle(link)

    def _may_open(self, link: _Link) -> bool:
        return not self._draining and bool(self._host.get_network().get_connections(link.raw))

    async def _open(self, link: _Link) -> INetStream | None:
        stream: INetStream | None = None
        with trio.move_on_after(_OPEN_TIMEOUT_S):
            try:
                stream = await self._host.new_stream(link.raw, [PROTOCOL])
            except Exception as error:  # noqa: BLE001 - the library raises many kinds when a stream cannot be opened
                log.debug("no replication stream to %s: %r", link.peer, error)
        return stream

    async def _use(self, link: _Link, stream: INetStream) -> None:
        """Write queued frames until the stream breaks."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch, stream, nursery.cancel_scope)
            while True:
                while not link.queue:
                    if self._draining:
                        await close_quietly(stream)
                        await trio.sleep_forever()
                    link.wake = trio.Event()
                    await link.wake.wait()
                if not await write_whole(self._host, stream, link.take(), self._config.write_timeout_s):
                    self._counters["sync_writes_failed"] += 1
                    nursery.cancel_scope.cancel()
                    return

    async def _watch(self, stream: INetStream, scope: trio.CancelScope) -> None:
        """Notice the end of the own stream: the peer never writes on it, so any answer means that it is over."""
        try:
            await stream.read(1)
        except Exception as error:  # noqa: BLE001 - the library raises many kinds when a stream ends
            log.debug("replication stream ended: %r", error)
        scope.cancel()

    # ------------------------------------------------------------ the peer's stream: read

    async def _accept(self, stream: INetStream) -> None:
        raw = stream.muxed_conn.peer_id
        self.connection_up(raw)
        link = self._links[raw]
        if link.inbound is not None:
            # the peer opened a new one because its old one broke; at most one is read. A reader is not woken by the
            # reset of its stream on this side, so it is cancelled
            link.reading.cancel()
            link.inbound = None
            self._update(link)
        link.inbound = stream
        scope = link.reading = trio.CancelScope()
        self._update(link)
        try:
            with scope:
                await self._read(link, stream)
        except RemoteViolation as violation:
            self._counters[f"sync_{violation.reason}"] += 1
            log.warning("%s broke the framing: %s", link.peer, violation)
            self._blame(link.peer)
            if self._nursery is not None:
                self._nursery.start_soon(disconnect_quietly, self._host, raw)
        finally:
            if link.inbound is stream:
                link.inbound = None
                self._update(link)
            with shielded(1):
                await reset_quietly(stream)
            self._forget_if_idle(link)

    async def _read(self, link: _Link, stream: INetStream) -> None:
        decoder = FrameDecoder(limits.SYNC_FRAME_BYTES_MAX)
        byte_rate = TokenBucket(limits.SYNC_BYTES_PER_SECOND_MAX)
        frame_rate = TokenBucket(limits.SYNC_FRAMES_PER_SECOND_MAX)
        while True:
            try:
                data = await stream.read(_READ_BYTES)
            except Exception as error:  # noqa: BLE001 - the library raises many kinds when a stream ends
                log.debug("replication stream from %s ended: %r", link.peer, error)
                return
            if not data:
                return
            frames = decoder.feed(data)
            now = trio.current_time()
            delay = max(byte_rate.take(len(data), now), frame_rate.take(len(frames), now))
            if delay > 0:
                # not reading on is all it takes: the stream's window pushes back on the sender
                self._counters["sync_throttled"] += 1
                await trio.sleep(delay)
            for frame in frames:
                while not link.is_up:
                    await link.up.wait()
                with link.work.spent():
                    self._deliver(link.peer, frame)
                if (debt := link.work.debt_s()) > 0:
                    self._counters["sync_work_throttled"] += 1
                    await trio.sleep(debt)
                # the next frame only after everybody else had a turn
                await trio.lowlevel.checkpoint()

    def _deliver(self, peer: PeerId, frame: bytes) -> None:
        self._counters["sync_frames_received"] += 1
        try:
            self._handler.frame(peer, frame)
        except Exception:  # noqa: BLE001 - the edge: counted and logged below
            self._counters["handler_errors"] += 1
            log.exception("the handler failed on a frame of %s", peer)

    # ------------------------------------------------------------ up and down

    def _update(self, link: _Link) -> None:
        now_up = link.inbound is not None and link.outbound is not None
        if now_up == link.is_up:
            return
        link.is_up = now_up
        try:
            if now_up:
                self._handler.peer_up(link.peer)
                link.up.set()
            else:
                link.up = trio.Event()
                self._counters["sync_frames_dropped"] += link.clear()
                self._handler.peer_down(link.peer)
        except Exception:  # noqa: BLE001 - the edge: counted and logged below
            self._counters["handler_errors"] += 1
            log.exception("the handler failed on the link to %s", link.peer)

    def _forget_if_idle(self, link: _Link) -> None:
        if not link.keeping and link.inbound is None and self._links.get(link.raw) is link:
            del self._links[link.raw]
