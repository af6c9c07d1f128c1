"""The multiplexer as libp2p sees it: a connection, in the shape of the library's interface.

Knows: trio, libp2p's interfaces and exceptions. Must not know: the rules of yamux (see `machine`).
Source: libp2p's `IMuxedConn`, as the library's own multiplexer fills it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import trio
from libp2p.abc import IMuxedConn
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import MuxedConnUnavailable, MuxedStreamError

from converge_p2p.core import limits
from converge_p2p.core.errors import LimitExceeded, LocalError, RemoteViolation
from converge_p2p.core.types import PeerId
from converge_p2p.net.fast import frames
from converge_p2p.net.fast.machine import Bounds, Machine, StreamState
from converge_p2p.net.fast.session import FastSession
from converge_p2p.net.fast.stream import FastStream
from converge_p2p.net.hardening import log, shielded
from converge_p2p.net.names import peer_name

_TURN_BYTES = 65_536
_CALL_COST_BYTES = 2048
_FAREWELL_S = 1.0
_CLOSE_S = 5.0


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a connection waits for its peer, in seconds. The defaults are those of `core.limits`.

    Attributes:
        connection_stall_s: a peer that takes not a byte for this long is given up.
        stream_stall_s: a stream that may not be written to for this long is reset.
        keepalive_interval_s: how often a ping is sent.
        keepalive_timeout_s: a peer that does not answer one for this long is given up.
        go_away_linger_s: how long open streams may go on after the peer's farewell.
    """

    connection_stall_s: float = limits.CONNECTION_STALL_S
    stream_stall_s: float = limits.STREAM_STALL_S
    keepalive_interval_s: float = limits.KEEPALIVE_INTERVAL_S
    keepalive_timeout_s: float = limits.KEEPALIVE_TIMEOUT_S
    go_away_linger_s: float = limits.GO_AWAY_LINGER_S


class FastYamux(IMuxedConn):  # type: ignore[misc]
    """One connection. `start` is its task; it ends with the connection and raises nothing."""

    def __init__(
        self,
        session: FastSession,
        peer: ID,
        counters: Counter[str],
        blame: Callable[[PeerId], None],
        *,
        bounds: Bounds | None = None,
        patience: Patience | None = None,
    ) -> None:
        """Begin; nothing is sent.

        Args:
            session: the encrypted connection.
            peer: who is on the other side.
            counters: where refusals, drops and violations are counted.
            blame: called with a peer that broke the protocol.
            bounds: what the peer may cost.
            patience: how long it is waited for.
        """
        self.secured_conn = session
        self.peer_id = peer
        self.patience = patience or Patience()
        self.machine = Machine(session.is_initiator, counters, bounds)
        self.event_started = trio.Event()
        self.event_closed = trio.Event()
        self.on_close: Callable[[], Awaitable[Any]] | None = None
        self._counters = counters
        self._blame = blame
        self._closing = False
        self._turn_bytes = 0
        self._scope = trio.CancelScope()
        self._room_to_open = trio.Event()
        self._accepted, self._to_accept = trio.open_memory_channel[FastStream](self.machine.bounds.inbound_max)

    # ------------------------------------------------------------ what libp2p asks

    @property
    def is_initiator(self) -> bool:
        """Whether this side dialled."""
        return bool(self.secured_conn.is_initiator)

    @property
    def is_established(self) -> bool:
        """Whether streams can be opened."""
        return self.event_started.is_set() and not self._closing

    @property
    def is_closed(self) -> bool:
        """Whether the connection is over."""
        return self.event_closed.is_set()

    def rtt(self) -> float:
        """Return the smoothed time between ping and answer, in seconds; 0 as long as it is not known."""
        return self.machine.rtt_s

    def get_remote_address(self) -> tuple[str, int] | None:
        """Return the peer's address and port, if known."""
        return self.secured_conn.get_remote_address()

    def get_transport_addresses(self) -> Any:
        """Return the addresses of the connection below."""
        return self.secured_conn.get_transport_addresses()

    def get_connection_type(self) -> Any:
        """Return the kind of the connection below."""
        return self.secured_conn.get_connection_type()

    async def open_stream(self) -> FastStream:
        """Open a stream; waits while too many were opened that the peer has not answered.

        Raises:
            MuxedStreamError: the connection is closing, too many streams are open, or the peer does not answer.

        Cancellation: at any time; nothing is opened then.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        with trio.move_on_after(self.patience.stream_stall_s):
            while self.machine.unacknowledged >= self.machine.bounds.unacknowledged_max and not self._closing:
                await self._room_to_open.wait()
        if self._closing:
            raise MuxedStreamError("Connection is shutting down")
        try:
            state = self.machine.open()
        except (LocalError, LimitExceeded) as error:
            self.count("outbound_stream_refused")
            raise MuxedStreamError(str(error)) from error
        stream = FastStream(self, state)
        self.send_answers()
        return stream

    async def accept_stream(self) -> FastStream:
        """Wait for a stream of the peer.

        Raises:
            MuxedConnUnavailable: the connection is over.
        """
        try:
            return await self._to_accept.receive()
        except (trio.EndOfChannel, trio.ClosedResourceError):
            raise MuxedConnUnavailable("Connection closed") from None

    async def start(self) -> None:
        """Serve the connection until it is over, whoever ends it.

        Cancellation: closes the connection.
        """
        self.event_started.set()
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._guarded, self._read)
                    nursery.start_soon(self._guarded, self._keep_alive)
                    nursery.start_soon(self._guarded, self._pump)
        finally:
            with shielded(_CLOSE_S):
                await self._over()

    async def close(self) -> None:
        """Say farewell and close. What the peer does not take within a second is lost.

        Cancellation: at any time; the connection is closed all the same, and its task tells libp2p.
        """
        try:
            if not self._closing:
                with trio.move_on_after(_FAREWELL_S):
                    await self._say_farewell(frames.NORMAL)
        finally:
            self._end()
        await self._over()

    # ------------------------------------------------------------ for the streams

    def count(self, name: str) -> None:
        """Count an event under one of this room's names."""
        self._counters[name] += 1

    def send_answers(self) -> None:
        """Send what the machine has to say. That the connection is over is noticed elsewhere."""
        if self.machine.out:
            data = b"".join(self.machine.out)
            self.machine.out.clear()
            try:
                self.secured_conn.send(data)
            except ConnectionClosedError as error:
                log.debug("nothing more can be sent to %s: %s", self.peer_id, error)

    def after_change(self) -> None:
        """Send what the machine has to say, and wake whom it concerns."""
        self.send_answers()
        for state in self.machine.woken:
            if isinstance(state.owner, FastStream):
                state.owner.wake()
        self.machine.woken.clear()
        if self.machine.unacknowledged < self.machine.bounds.unacknowledged_max:
            self._room_to_open.set()
            self._room_to_open = trio.Event()

    async def take_turn(self, size: int) -> None:
        """Let the other tasks run, but not for every little thing: it would cost more than the thing."""
        self._turn_bytes += size + _CALL_COST_BYTES
        if self._turn_bytes < _TURN_BYTES:
            await trio.lowlevel.checkpoint_if_cancelled()
        else:
            self._turn_bytes = 0
            await trio.lowlevel.checkpoint()

    # ------------------------------------------------------------ the tasks

    async def _guarded(self, task: Callable[[], Awaitable[None]]) -> None:
        """Run a task of the connection; when it ends, for whatever reason, so does the connection."""
        try:
            await task()
        except ConnectionClosedError as error:
            log.debug("connection to %s ended: %s", self.peer_id, error)
        except RemoteViolation as violation:
            self._refuse(violation)
        except Exception:  # noqa: BLE001 - the edge: counted and logged below; it must not end the host
            self.count("connection_errors")
            log.exception("the connection to %s failed", self.peer_id)
            self._last_word(frames.INTERNAL_ERROR)
        self._scope.cancel()

    async def _pump(self) -> None:
        await self.secured_conn.run_pump(self.patience.connection_stall_s, self._stalled)

    async def _read(self) -> None:
        machine, session = self.machine, self.secured_conn
        while machine.go_away is None:
            data = await session.receive()
            machine.receive(data, trio.current_time())
            for state in machine.opened:
                self._offer(state)
            machine.opened.clear()
            self.after_change()
        await self._part(machine.go_away)

    async def _part(self, code: int) -> None:
        """The peer said farewell: what is under way may come to its end, for a while."""
        self._closing = True
        self._room_to_open.set()
        if code != frames.NORMAL:
            log.info("%s closed the connection with code %d", self.peer_id, code)
            self.count("connections_refused_by_peer")
            return
        with trio.move_on_after(self.patience.go_away_linger_s):
            while self.machine.streams:
                self.machine.receive(await self.secured_conn.receive(), trio.current_time())
                for state in self.machine.opened:
                    self.machine.reset(state)
                self.machine.opened.clear()
                self.after_change()

    def _offer(self, state: StreamState) -> None:
        if state.gone:
            return
        try:
            self._accepted.send_nowait(FastStream(self, state))
        except trio.WouldBlock:
            self.count("inbound_stream_refused")
            self.machine.reset(state)

    async def _keep_alive(self) -> None:
        while True:
            await trio.sleep(self.patience.keepalive_interval_s)
            now = trio.current_time()
            if self.machine.ping_age_s(now) >= self.patience.keepalive_timeout_s:
                self.count("connections_silent")
                log.info("%s has not answered a ping for %.0f s", self.peer_id, self.patience.keepalive_timeout_s)
                return
            self.machine.ping(now)
            self.machine.sweep(now)
            self.after_change()

    # ------------------------------------------------------------ the end

    def _refuse(self, violation: RemoteViolation) -> None:
        peer = peer_name(self.peer_id)
        violation.peer = peer
        self.count(violation.reason)
        log.warning("%s broke the protocol of the connection and is disconnected: %s", peer, violation)
        self._last_word(frames.PROTOCOL_ERROR)
        self._blame(peer)

    def _stalled(self) -> None:
        self.count("connections_stalled")
        log.info("%s takes nothing any more and is disconnected", self.peer_id)

    def _last_word(self, code: int) -> None:
        """Tell the peer why, if there is room for it just now."""
        self._closing = True
        self._room_to_open.set()
        self.machine.out.append(frames.encode_header(frames.GO_AWAY, 0, 0, code))
        self.send_answers()

    async def _say_farewell(self, code: int) -> None:
        try:
            self._last_word(code)
            await self.secured_conn.flush()
        except ConnectionClosedError as error:
            log.debug("no farewell to %s: %s", self.peer_id, error)

    def _end(self) -> None:
        """Everything ends now. May be called again."""
        self._closing = True
        self._room_to_open.set()
        self.secured_conn.cut("the connection was closed")
        self.machine.end()
        self.machine.opened.clear()
        self.after_change()
        self._accepted.close()
        self._scope.cancel()

    async def _over(self) -> None:
        """End everything. Whoever comes first tells libp2p."""
        self._end()
        if self.event_closed.is_set():
            return
        self.event_closed.set()
        if self.on_close is not None:
            try:
                await self.on_close()
            except Exception as error:  # noqa: BLE001 - libp2p's bookkeeping may fail in any way, and this is the end
                log.debug("closing the connection to %s failed: %r", self.peer_id, error)
