"""Being reached through relays, and reaching others through them.

Knows: reservations at relays, and how a circuit becomes a connection. Must not know: whether others reach this node
directly (it is told), and when a peer is dialled (see `bootstrap`).
Source: libp2p specifications, relay/circuit-v2.md. The library's own client was read and is not used (decision 0014).

Nobody is trusted with more than carrying bytes: the handshake over a circuit proves who is at its other end, and an
offer of a circuit is only taken from a relay that a reservation was made at.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import trio
from libp2p.abc import INetStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.pb.circuit_pb2 import HopMessage, StopMessage
from multiaddr import Multiaddr

from converge_p2p.core import limits
from converge_p2p.core.errors import NetworkError, RemoteViolation
from converge_p2p.core.types import PeerId
from converge_p2p.net.addresses import (
    CIRCUIT,
    is_circuit,
    is_loopback,
    is_unspecified,
    split_circuit,
    split_peer_address,
)
from converge_p2p.net.hardening import Counters, close_quietly, log, reset_quietly, shielded, write_whole
from converge_p2p.net.names import peer_name, raw_peer_id
from converge_p2p.net.reach import relay_wire
from converge_p2p.net.reach.circuit import circuit_connection, directly_connected, hold_until_closed
from converge_p2p.net.reach.messages import BAD_MESSAGE, read_message
from converge_p2p.net.reach.relay_wire import HOP, STOP, Status

_TIMEOUT_S: Final = 10.0
_REFRESH_S_MIN: Final = 15.0
_REFRESH_S_MAX: Final = 1800.0
_REFUSED_PAUSE_S: Final = 60.0
_UNSUPPORTED_PAUSE_S: Final = 600.0


@dataclass(frozen=True, slots=True)
class _Place:
    """A reservation at a relay.

    Attributes:
        addresses: of this node through the relay.
        renew_at: when to ask again, and `ends_at` when it is over; both by trio's clock.
    """

    addresses: tuple[str, ...]
    renew_at: float
    ends_at: float


class RelayClient:
    """The places of this node at relays, and its circuits."""

    def __init__(
        self,
        host: Any,
        counters: Counters,
        *,
        wanted: Callable[[], bool],
        known_addresses: Callable[[PeerId], tuple[str, ...]],
        reach: Callable[[PeerId, str, float], Awaitable[None]],
        changed: Callable[[], None],
        write_timeout_s: float,
    ) -> None:
        """Register the protocol.

        Args:
            host: the host.
            counters: where reservations, circuits and failures are counted.
            wanted: says whether places at relays are to be had now.
            known_addresses: returns the transport addresses that a peer is known by, best first.
            reach: connects to a peer directly, at an address and within a time.
            changed: is called when `addresses` are others.
            write_timeout_s: a relay that takes nothing for longer is disconnected.
        """
        self._host = host
        self._counters = counters
        self._wanted = wanted
        self._known_addresses = known_addresses
        self._reach = reach
        self._told = changed
        self._write_timeout_s = write_timeout_s
        self._places: dict[ID, _Place] = {}
        self._not_before: dict[ID, float] = {}
        self._circuits = 0
        self._look = trio.Event()
        self._nursery: trio.Nursery | None = None
        host.set_stream_handler(STOP, self._serve)

    @property
    def relays(self) -> tuple[PeerId, ...]:
        """The relays that this node has a place at."""
        return tuple(peer_name(raw) for raw in self._places)

    def addresses(self) -> tuple[str, ...]:
        """Transport addresses of this node through its relays."""
        return tuple(dict.fromkeys(address for place in self._places.values() for address in place.addresses))

    def start(self, nursery: trio.Nursery) -> None:
        """Begin to reserve."""
        self._nursery = nursery
        nursery.start_soon(self._keep_places)

    def look_again(self) -> None:
        """A peer came, or whether relays are wanted changed."""
        self._look.set()
        self._look = trio.Event()

    def connection_down(self, raw: ID) -> None:
        """The last connection to a peer closed; a relay keeps no place for who is gone."""
        self._not_before.pop(raw, None)
        self._lose([raw])
        self.look_again()

    # ------------------------------------------------------------ places at relays

    async def _keep_places(self) -> None:
        while True:
            look = self._look
            if not self._wanted():
                self._give_up_places()
                await look.wait()
                continue
            for raw in self._due():
                await self._reserve(raw)
            with trio.move_on_at(self._next_look()):
                await look.wait()

    def connection_fewer(self, raw: ID) -> None:
        """One of several connections to a peer closed; a relay that saw none for a moment forgot the place."""
        place = self._places.get(raw)
        if place is not None:
            self._places[raw] = replace(place, renew_at=trio.current_time())
            self.look_again()

    def _lose(self, relays: Sequence[ID]) -> None:
        """Places are over that this node did not give up itself."""
        lost = [raw for raw in relays if self._places.pop(raw, None) is not None]
        if lost:
            self._counters["relay_places_lost"] += len(lost)
            self._told()

    def _give_up_places(self) -> None:
        if self._places:
            self._places.clear()
            self._told()

    def _due(self) -> list[ID]:
        """Relays to renew a place at, and peers that may be one, as long as there are too few."""
        now = trio.current_time()
        # a relay that is left only through another relay keeps no place
        self._lose(
            [
                raw
                for raw, place in self._places.items()
                if place.ends_at <= now or not directly_connected(self._host, raw)
            ]
        )
        due = [raw for raw, place in self._places.items() if place.renew_at <= now]
        if len(self._places) < limits.RELAYS_USED_MAX:
            due += [raw for raw in self._candidates() if self._not_before.get(raw, now) <= now]
        return due

    def _candidates(self) -> list[ID]:
        connected = self._host.get_connected_peers()
        return [raw for raw in connected if raw not in self._places and directly_connected(self._host, raw)]

    def _next_look(self) -> float:
        times = [place.renew_at for place in self._places.values()]
        if len(self._places) < limits.RELAYS_USED_MAX:
            times += [self._not_before[raw] for raw in self._candidates() if raw in self._not_before]
        return min(times, default=trio.current_time() + _REFUSED_PAUSE_S)

    async def _reserve(self, raw: ID) -> None:
        """Ask a peer for a place, unless there are enough already."""
        renewed = raw in self._places
        if not renewed and len(self._places) >= limits.RELAYS_USED_MAX:
            return
        pause_s = _REFUSED_PAUSE_S
        try:
            with trio.fail_after(_TIMEOUT_S):
                answer = await self._ask(raw)
        except _NoRelayError:
            pause_s = _UNSUPPORTED_PAUSE_S
        except (NetworkError, RemoteViolation, trio.TooSlowError) as error:
            self._counters["relay_places_refused"] += 1
            log.info("no place at relay %s: %s", raw, error or type(error).__name__)
        else:
            # a peer may have gone while it answered, and was taken off the table then
            if directly_connected(self._host, raw):
                self._take(raw, answer, renewed)
            return
        now = trio.current_time()
        if renewed:
            place = self._places.get(raw)
            if place is not None:
                self._places[raw] = replace(place, renew_at=now + _REFRESH_S_MIN)
        elif directly_connected(self._host, raw):
            self._not_before[raw] = now + pause_s

    async def _ask(self, raw: ID) -> HopMessage:
        stream = await self._open(raw)
        try:
            await self._say(stream, relay_wire.reserve())
            answer = await read_message(stream, HopMessage)
        finally:
            with shielded(1):
                await reset_quietly(stream)
        status = relay_wire.status_of(answer)
        if status is not Status.OK or not answer.HasField("reservation"):
            raise NetworkError(f"the relay answered {status.name if status else 'nothing known'}")
        return answer

    def _take(self, raw: ID, answer: HopMessage, renewed: bool) -> None:
        addresses = self._through(raw, list(answer.reservation.addrs))
        if not addresses:
            self._counters["relay_places_refused"] += 1
            log.info("relay %s cannot be used: no address of it is known that others could dial", raw)
            self._not_before[raw] = trio.current_time() + _REFUSED_PAUSE_S
            return
        # the end is told in the relay's time, and clocks differ: what matters is to ask often enough
        lifetime_s = min(max(answer.reservation.expire - time.time(), 2 * _REFRESH_S_MIN), 2 * _REFRESH_S_MAX)
        now = trio.current_time()
        before = self.addresses()
        self._places[raw] = _Place(addresses, now + lifetime_s / 2, now + lifetime_s)
        self._counters["relay_places_renewed" if renewed else "relay_places_taken"] += 1
        if self.addresses() != before:
            log.info("reached through relay %s", raw)
            self._told()

    def _through(self, raw: ID, claimed: Sequence[bytes]) -> tuple[str, ...]:
        """Addresses of this node through a relay: where the relay was reached, before what it says of itself."""
        relay = peer_name(raw)
        found = [address for address in self._known_addresses(relay) if not is_circuit(address)]
        for encoded in claimed[: limits.ADDRESSES_PER_PEER_MAX]:
            try:
                peer, address = split_peer_address(str(Multiaddr(encoded)))
            except Exception as error:  # noqa: BLE001 - the library raises many kinds, and others have more transports
                log.debug("address of relay %s is of no use: %r", raw, error)
                continue
            if peer == relay and not is_circuit(address) and not is_unspecified(address):
                found.append(address)
        wide = [address for address in found if not is_loopback(address)] or found
        return tuple(f"{address}/p2p/{relay}{CIRCUIT}" for address in dict.fromkeys(wide))[: limits.RELAY_ADDRESSES_MAX]

    # ------------------------------------------------------------ circuits

    async def dial(self, peer: PeerId, address: str, timeout_s: float) -> None:
        """Connect to a peer through a relay.

        Args:
            peer: whom.
            address: a transport address that leads through a relay.
            timeout_s: for reaching the relay, and again for the circuit.

        Raises:
            NetworkError: the relay cannot be reached or refuses, or the peer does not answer or is another.
        """
        relay, transport = split_circuit(address)
        raw_relay, raw_peer = raw_peer_id(relay), raw_peer_id(peer)
        if raw_relay == self._host.get_id():
            raise NetworkError("this node is the relay itself, and the peer is not connected to it")
        if not directly_connected(self._host, raw_relay):
            # bounded, as two peers may each be said to be behind the other
            with trio.move_on_after(timeout_s):
                await self._reach(relay, transport, timeout_s)
            if not directly_connected(self._host, raw_relay):
                raise NetworkError(f"relay {relay} is not reached directly")
        if self._nursery is None or self._circuits >= limits.CIRCUITS_OWN_MAX:
            self._counters["circuits_refused"] += 1
            raise NetworkError(f"at most {limits.CIRCUITS_OWN_MAX} connections through relays at once")
        try:
            with trio.fail_after(timeout_s):
                await self._connect(raw_relay, raw_peer)
        except trio.TooSlowError:
            raise NetworkError(f"no answer through relay {relay} within {timeout_s:g} s") from None
        except _NoRelayError:
            raise NetworkError(f"peer {relay} is no relay") from None
        except RemoteViolation as violation:
            raise NetworkError(f"relay {relay} broke the protocol: {violation}") from violation

    async def _connect(self, relay: ID, peer: ID) -> None:
        stream = await self._open(relay)
        raw: RawConnection | None = None
        try:
            await self._say(stream, relay_wire.connect(peer))
            status = relay_wire.status_of(await read_message(stream, HopMessage))
            if status is not Status.OK:
                said = _WHY.get(status, "nothing known") if status else "nothing known"
                raise NetworkError(f"the relay answered: {said}")
            raw = circuit_connection(stream, relay, initiator=True)
            swarm = self._host.get_network()
            connection = await swarm.upgrade_outbound_raw_conn(swarm.psk(raw), peer)
        except BaseException as error:
            with trio.CancelScope(shield=True):
                await (raw.close() if raw is not None else reset_quietly(stream))
            if isinstance(error, (Exception, BaseExceptionGroup)) and not isinstance(error, NetworkError):
                raise NetworkError(f"the peer did not prove itself through the relay: {_innermost(error)}") from error
            raise
        assert self._nursery is not None, "asked for before"
        self._counters["circuits_dialled"] += 1
        self._nursery.start_soon(self._hold, connection.muxed_conn, raw)

    async def _hold(self, muxed: Any, raw: RawConnection) -> None:
        self._circuits += 1
        try:
            await hold_until_closed(muxed, raw)
        finally:
            self._circuits -= 1

    async def _serve(self, stream: INetStream) -> None:
        """A relay offers a circuit. Runs as long as the connection that comes of it."""
        relay = stream.muxed_conn.peer_id
        try:
            with trio.fail_after(_TIMEOUT_S):
                message = await read_message(stream, StopMessage)
                if message.type != StopMessage.CONNECT or not message.HasField("type"):
                    raise RemoteViolation(BAD_MESSAGE, "no circuit is offered")
                # who it is said to be from proves nothing; the handshake will
                relay_wire.peer_of(message)
                refusal = self._refusal(relay)
                await self._say(stream, relay_wire.stop_status(refusal or Status.OK))
        except (NetworkError, RemoteViolation, trio.TooSlowError) as error:
            self._counters["circuits_refused"] += 1
            log.info("relay %s offered no circuit: %r", relay, error)
            await reset_quietly(stream)
            return
        if refusal is not None:
            self._counters["circuits_refused"] += 1
            # not reset: that would take the answer along
            await close_quietly(stream)
            return
        self._circuits += 1
        self._counters["circuits_accepted"] += 1
        raw = circuit_connection(stream, relay, initiator=False)
        try:
            swarm = self._host.get_network()
            await swarm._do_handle_inbound_connection(raw, raw.get_transport_addresses()[0], None)
        finally:
            self._circuits -= 1

    def _refusal(self, relay: ID) -> Status | None:
        if relay not in self._places:
            return Status.PERMISSION_DENIED
        return Status.RESOURCE_LIMIT_EXCEEDED if self._circuits >= limits.CIRCUITS_OWN_MAX else None

    async def _open(self, relay: ID) -> INetStream:
        try:
            stream: INetStream = await self._host.new_stream(relay, [HOP])
        except Exception as error:
            raise _NoRelayError from error
        return stream

    async def _say(self, stream: INetStream, data: bytes) -> None:
        if not await write_whole(self._host, stream, data, self._write_timeout_s):
            raise NetworkError("the relay did not take the request")


class _NoRelayError(Exception):
    """The peer does not speak the protocol, or is gone."""


_WHY: Final = {
    Status.NO_RESERVATION: "the peer has no place at it now",
    Status.RESOURCE_LIMIT_EXCEEDED: "it carries as many connections as it may",
    Status.CONNECTION_FAILED: "the peer does not take the connection",
    Status.PERMISSION_DENIED: "it does not serve this node",
}


def _innermost(error: BaseException) -> str:
    while isinstance(error.__cause__, BaseException):
        error = error.__cause__
    return str(error) or type(error).__name__
