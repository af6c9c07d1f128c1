"""Serving as a relay: who may reserve a place, who may reach it, and what a circuit may cost.

Knows: reservations, circuits, and their bounds. Must not know: what a circuit carries; it cannot be read here.
Source: libp2p specifications, relay/circuit-v2.md. The library's own service was read and is not used (decision 0014).

A relay gives bandwidth to strangers. So all of it is bounded by name: reservations, also for each host (a new peer id
costs nothing, an address does), requests, circuits of a peer, their time, their bytes and their speed.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import trio
from libp2p.abc import INetStream
from libp2p.network.stream.exceptions import StreamEOF
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.pb.circuit_pb2 import HopMessage, StopMessage
from multiaddr import Multiaddr

from converge_p2p.core import limits
from converge_p2p.core.errors import NetworkError, RemoteViolation
from converge_p2p.core.types import PeerId
from converge_p2p.net.config import RelayBounds
from converge_p2p.net.framing import TokenBucket
from converge_p2p.net.hardening import Counters, close_quietly, log, reset_quietly, shielded, write_whole
from converge_p2p.net.names import peer_name
from converge_p2p.net.reach import relay_wire
from converge_p2p.net.reach.circuit import directly_connected, host_of_connection, is_relayed
from converge_p2p.net.reach.messages import BAD_MESSAGE, read_message
from converge_p2p.net.reach.relay_wire import HOP, STOP, CircuitLimit, Status

_TIMEOUT_S: Final = 15.0
_WRITE_S: Final = limits.STREAM_STALL_S + 5.0
_READ_BYTES: Final = 32_768


@dataclass(frozen=True, slots=True)
class _Reservation:
    host: str
    expires_at: float


class RelayService:
    """Grants reservations and joins streams to circuits."""

    def __init__(
        self,
        host: Any,
        bounds: RelayBounds,
        counters: Counters,
        own_addresses: Callable[[], tuple[str, ...]],
        blame: Callable[[PeerId], None],
    ) -> None:
        """Register the protocol.

        Args:
            host: the host.
            bounds: what is given away.
            counters: where grants, refusals and circuits are counted.
            own_addresses: returns transport addresses that this node can be dialled at directly.
            blame: called with a peer that broke the protocol.
        """
        self._host = host
        self._bounds = bounds
        self._counters = counters
        self._own_addresses = own_addresses
        self._blame = blame
        self._limit = CircuitLimit(max(1, int(bounds.circuit_s)), bounds.circuit_bytes)
        self._reservations: dict[ID, _Reservation] = {}
        self._circuits: Counter[ID] = Counter()
        self._requests: dict[ID, TokenBucket] = {}
        host.set_stream_handler(HOP, self._serve)

    def __len__(self) -> int:
        """Return how many reservations are held."""
        self._sweep()
        return len(self._reservations)

    @property
    def circuits(self) -> int:
        """How many circuits there are."""
        return self._circuits.total() // 2

    def connection_down(self, raw: ID) -> None:
        """The last connection to a peer closed: its reservation is over."""
        self._reservations.pop(raw, None)
        self._requests.pop(raw, None)

    async def _serve(self, stream: INetStream) -> None:
        raw = stream.muxed_conn.peer_id
        try:
            with trio.move_on_after(_TIMEOUT_S) as scope:
                message = await read_message(stream, HopMessage)
            if scope.cancelled_caught:
                raise NetworkError("no request came in time")
            await self._decide(stream, raw, message)
        except (NetworkError, RemoteViolation) as error:
            self._counters["relay_requests_broken"] += 1
            log.info("relay request of %s: %s", raw, error)
            if isinstance(error, RemoteViolation):
                self._blame(peer_name(raw))
            await reset_quietly(stream)

    async def _decide(self, stream: INetStream, raw: ID, message: HopMessage) -> None:
        if is_relayed(stream.muxed_conn):
            # circuits through circuits would get around every bound for hosts
            await self._refuse(stream, Status.PERMISSION_DENIED)
        elif not self._bucket(raw).try_take(1, trio.current_time()):
            await self._refuse(stream, Status.RESOURCE_LIMIT_EXCEEDED)
        elif message.type == HopMessage.RESERVE and message.HasField("type"):
            await self._reserve(stream, raw)
        elif message.type == HopMessage.CONNECT:
            await self._connect(stream, raw, relay_wire.peer_of(message))
        else:
            raise RemoteViolation(BAD_MESSAGE, "neither a reservation nor a circuit is asked for")

    def _bucket(self, raw: ID) -> TokenBucket:
        bucket = self._requests.get(raw)
        if bucket is None:
            if len(self._requests) > 2 * limits.PEERS_MAX:
                # requests of peers that were gone when they were read
                self._requests = {peer: kept for peer, kept in self._requests.items() if self._is_there(peer)}
            rate, burst = limits.RELAY_REQUESTS_PER_PEER_PER_SECOND_MAX, limits.RELAY_REQUESTS_BURST_MAX
            bucket = self._requests[raw] = TokenBucket(rate, burst=burst)
        return bucket

    def _is_there(self, peer: ID) -> bool:
        return bool(self._host.get_network().get_connections(peer))

    async def _answer(self, stream: INetStream, status: Status) -> None:
        await write_whole(self._host, stream, relay_wire.hop_status(status), _WRITE_S)
        await close_quietly(stream)

    async def _refuse(self, stream: INetStream, status: Status) -> None:
        self._counters["relay_requests_refused"] += 1
        log.debug("a relay request of %s is refused: %s", stream.muxed_conn.peer_id, status.name)
        await self._answer(stream, status)

    # ------------------------------------------------------------ reservations

    async def _reserve(self, stream: INetStream, raw: ID) -> None:
        host = host_of_connection(stream.muxed_conn)
        self._sweep()
        others = [held for peer, held in self._reservations.items() if peer != raw]
        of_host = sum(held.host == host for held in others)
        if len(others) >= self._bounds.reservations or of_host >= self._bounds.reservations_per_host:
            await self._refuse(stream, Status.RESERVATION_REFUSED)
            return
        if not directly_connected(self._host, raw):
            # it went away meanwhile; nothing would take its reservation back
            raise NetworkError("the peer is gone")
        lifetime_s = self._bounds.reservation_s
        self._reservations[raw] = _Reservation(host, trio.current_time() + lifetime_s)
        self._counters["relay_reservations_granted"] += 1
        me = self._host.get_id()
        addresses = [Multiaddr(f"{address}/p2p/{me}") for address in self._own_addresses()]
        answer = relay_wire.reserved(
            int(time.time() + lifetime_s), addresses[: limits.ADDRESSES_PER_PEER_MAX], self._limit
        )
        await write_whole(self._host, stream, answer, _WRITE_S)
        await close_quietly(stream)

    def _sweep(self) -> None:
        now = trio.current_time()
        for peer in [peer for peer, held in self._reservations.items() if held.expires_at <= now]:
            del self._reservations[peer]

    # ------------------------------------------------------------ circuits

    async def _connect(self, stream: INetStream, source: ID, target: ID) -> None:
        self._sweep()
        if target not in self._reservations or not directly_connected(self._host, target):
            await self._refuse(stream, Status.NO_RESERVATION)
            return
        per_peer = self._bounds.circuits_per_peer
        full = self.circuits >= self._bounds.circuits
        if full or self._circuits[source] >= per_peer or self._circuits[target] >= per_peer or source == target:
            await self._refuse(stream, Status.RESOURCE_LIMIT_EXCEEDED)
            return
        for end in (source, target):
            self._circuits[end] += 1
        far: INetStream | None = None
        try:
            far = await self._call(source, target)
            if far is None:
                await self._refuse(stream, Status.CONNECTION_FAILED)
                return
            answer = relay_wire.hop_status(Status.OK, self._limit)
            if await write_whole(self._host, stream, answer, _WRITE_S):
                self._counters["relay_circuits_opened"] += 1
                await self._carry(stream, far)
        finally:
            for end in (source, target):
                self._circuits[end] -= 1
                if not self._circuits[end]:
                    del self._circuits[end]
            with shielded(2):
                await reset_quietly(stream)
                if far is not None:
                    await reset_quietly(far)

    async def _call(self, source: ID, target: ID) -> INetStream | None:
        """Offer the circuit to its target; return the stream to it, or None if it does not want."""
        far: INetStream | None = None
        agreed = False
        try:
            with trio.move_on_after(_TIMEOUT_S):
                far = await self._host.new_stream(target, [STOP])
                if await write_whole(self._host, far, relay_wire.offer(source, self._limit), _WRITE_S):
                    answer = await read_message(far, StopMessage)
                    agreed = relay_wire.status_of(answer) is Status.OK
        except Exception as error:  # noqa: BLE001 - the edge: whatever the target does, the source is told it failed
            log.debug("%s takes no circuit from %s: %r", target, source, error)
        finally:
            if not agreed and far is not None:
                with shielded(1):
                    await reset_quietly(far)
        return far if agreed else None

    async def _carry(self, one: INetStream, other: INetStream) -> None:
        """Pass bytes on until both directions have ended, or the circuit has had what it may have."""
        with trio.move_on_after(self._bounds.circuit_s) as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._pump, one, other, nursery.cancel_scope)
                nursery.start_soon(self._pump, other, one, nursery.cancel_scope)
        if scope.cancelled_caught:
            self._counters["relay_circuits_expired"] += 1

    async def _pump(self, source: INetStream, sink: INetStream, circuit: trio.CancelScope) -> None:
        left = self._bounds.circuit_bytes
        speed = TokenBucket(self._bounds.circuit_bytes_per_second)
        while True:
            try:
                data = await source.read(_READ_BYTES)
            except StreamEOF:
                data = b""
            except Exception as error:  # noqa: BLE001 - the library raises many kinds when a stream breaks
                log.debug("a circuit of %s broke: %r", source.muxed_conn.peer_id, error)
                break
            if not data:
                try:
                    await sink.close_write()
                except Exception as error:  # noqa: BLE001 - as above
                    log.debug("ending a circuit failed: %r", error)
                    break
                return
            left -= len(data)
            if left < 0:
                self._counters["relay_circuits_spent"] += 1
                break
            if not await write_whole(self._host, sink, data, _WRITE_S):
                break
            self._counters["relay_bytes"] += len(data)
            await trio.sleep(speed.take(len(data), trio.current_time()))
        circuit.cancel()
