"""From a relay to a direct connection: both sides dial at the same moment, so that both routers let them through.

Knows: the protocol, when to dial, and from which port. Must not know: relays.
Source: libp2p specifications, relay/DCUtR.md; RFC 9293 (simultaneous open). The library's own service was read and is
not used (decision 0014); its way of opening a socket is.

A router lets in what answers something that went out. Both sides send from the port that they listen on, so that the
router at the other end has seen the address that the packet comes from. That works with routers that keep port numbers,
as most do; where one does not, the relay stays in use.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final

import trio
from libp2p.abc import INetStream
from libp2p.custom_types import TProtocol
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.pb.dcutr_pb2 import HolePunch
from libp2p.transport.tcp.tcp import _open_tcp_stream_from
from multiaddr import Multiaddr

from converge_p2p.core import limits
from converge_p2p.core.errors import NetworkError, RemoteViolation
from converge_p2p.core.types import PeerId
from converge_p2p.net.addresses import host_of, is_circuit, is_loopback, observed_address, split_peer_address, tcp_port
from converge_p2p.net.framing import TokenBucket
from converge_p2p.net.hardening import Counters, close_quietly, log, reset_quietly, shielded, write_whole
from converge_p2p.net.names import peer_name
from converge_p2p.net.reach.circuit import directly_connected, is_relayed
from converge_p2p.net.reach.messages import BAD_MESSAGE, encode_message, read_message

PROTOCOL: Final = TProtocol("/libp2p/dcutr")

_TIMEOUT_S: Final = 10.0
_DIAL_S: Final = 4.0
_SETTLE_S: Final = 1.0
_ATTEMPTS: Final = 3
_SEEN_AT_MAX: Final = 8


class HolePuncher:
    """Turns connections through relays into direct ones, where routers let it."""

    def __init__(
        self,
        host: Any,
        counters: Counters,
        *,
        own_addresses: Callable[[], tuple[str, ...]],
        known_addresses: Callable[[PeerId], tuple[str, ...]],
        blame: Callable[[PeerId], None],
        write_timeout_s: float,
    ) -> None:
        """Register the protocol.

        Args:
            host: the host.
            counters: where attempts are counted.
            own_addresses: returns the transport addresses of the own interfaces.
            known_addresses: returns the transport addresses that a peer is known by.
            blame: called with a peer that broke the protocol.
            write_timeout_s: a peer that takes nothing for longer is disconnected.
        """
        self._host = host
        self._counters = counters
        self._own_addresses = own_addresses
        self._known_addresses = known_addresses
        self._blame = blame
        self._write_timeout_s = write_timeout_s
        self._seen_at: OrderedDict[ID, str] = OrderedDict()
        self._busy: set[ID] = set()
        self._came: dict[ID, trio.Event] = {}
        self._rate = TokenBucket(limits.PUNCHES_PER_SECOND_MAX, burst=limits.PUNCHES_BURST_MAX)
        self._nursery: trio.Nursery | None = None
        self._listen_to_identify()
        host.set_stream_handler(PROTOCOL, self._serve)

    def start(self, nursery: trio.Nursery) -> None:
        """Begin."""
        self._nursery = nursery

    def connection_up(self, raw: ID) -> None:
        """A connection opened: who was dialled through a relay begins, by the specification."""
        if raw in self._came and directly_connected(self._host, raw):
            self._came[raw].set()
        connections = self._host.get_network().get_connections(raw)
        inbound = [c for c in connections if is_relayed(c.muxed_conn) and not c.muxed_conn.is_initiator]
        if self._nursery is not None and inbound and not directly_connected(self._host, raw) and raw not in self._busy:
            if len(self._busy) >= limits.PUNCHES_AT_ONCE_MAX:
                self._counters["punches_refused"] += 1
                return
            self._busy.add(raw)
            self._nursery.start_soon(self._begin, raw)

    def _listen_to_identify(self) -> None:
        """Note at which host peers see this node: the library hears it, and tells nobody."""
        manager = self._host._observed_addr_manager
        record = manager.record_observation

        def record_and_note(connection: Any, seen: Multiaddr, local: list[Multiaddr]) -> None:
            record(connection, seen, local)
            text = str(seen).split("/")
            if not is_relayed(connection.muxed_conn) and len(text) > 2 and observed_address(text[2], 0):
                self._seen_at[connection.muxed_conn.peer_id] = text[2]
                self._seen_at.move_to_end(connection.muxed_conn.peer_id)
                if len(self._seen_at) > _SEEN_AT_MAX:
                    self._seen_at.popitem(last=False)

        manager.record_observation = record_and_note

    def _to_tell(self) -> list[bytes]:
        """Where the other side is to dial: the own ports, at the hosts that peers see this node at."""
        own = [address for address in self._own_addresses() if not is_circuit(address) and not is_loopback(address)]
        found: dict[str, None] = {}
        for address in own:
            for host in dict.fromkeys(self._seen_at.values()):
                if (":" in host) == address.startswith("/ip6/"):
                    found[observed_address(host, tcp_port(address)) or ""] = None
        found.pop("", None)
        return [Multiaddr(address).to_bytes() for address in [*found, *own][: limits.PUNCH_ADDRESSES_MAX]]

    # ------------------------------------------------------------ the two sides

    async def _begin(self, raw: ID) -> None:
        try:
            # it may be that this side can simply dial the other; by now it has told its addresses
            await trio.sleep(_SETTLE_S)
            plain = [address for address in self._known_addresses(peer_name(raw)) if not is_circuit(address)]
            if await self._dial(raw, plain[: limits.PUNCH_ADDRESSES_MAX], begins=True, from_port=False):
                await self._leave_relay(raw)
                return
            for _ in range(_ATTEMPTS):
                if directly_connected(self._host, raw) or not self._host.get_network().get_connections(raw):
                    return
                self._counters["punches_tried"] += 1
                if await self._attempt(raw):
                    self._counters["punches_succeeded"] += 1
                    log.info("connected to %s directly, past the relay", raw)
                    await self._leave_relay(raw)
                    return
        finally:
            self._busy.discard(raw)
            self._came.pop(raw, None)

    async def _attempt(self, raw: ID) -> bool:
        stream: INetStream | None = None
        try:
            with trio.fail_after(_TIMEOUT_S):
                stream = await self._host.new_stream(raw, [PROTOCOL])
                sent_at = trio.current_time()
                await self._say(stream, HolePunch.CONNECT)
                addresses = _addresses_of(await _hear(stream, HolePunch.CONNECT), peer_name(raw))
                round_trip_s = trio.current_time() - sent_at
                await self._say(stream, HolePunch.SYNC)
                # the other side dials when it hears this, half a round trip from now
                await trio.sleep(min(round_trip_s / 2, 2.0))
        except Exception as error:  # noqa: BLE001 - the edge: any peer, any failure; the relay stays in use
            log.debug("no direct connection to %s: %r", raw, error)
            return False
        finally:
            if stream is not None:
                with shielded(1):
                    await close_quietly(stream)
        return await self._dial(raw, addresses, begins=False)

    async def _serve(self, stream: INetStream) -> None:
        raw = stream.muxed_conn.peer_id
        try:
            if not is_relayed(stream.muxed_conn) or raw in self._busy:
                raise NetworkError("not over a relay, or under way already")
            full = len(self._busy) >= limits.PUNCHES_AT_ONCE_MAX
            if full or not self._rate.try_take(1, trio.current_time()):
                raise NetworkError("too many at once")
        except NetworkError as error:
            self._counters["punches_refused"] += 1
            log.debug("no direct connection to %s: %s", raw, error)
            await reset_quietly(stream)
            return
        self._busy.add(raw)
        try:
            with trio.fail_after(_TIMEOUT_S):
                addresses = _addresses_of(await _hear(stream, HolePunch.CONNECT), peer_name(raw))
                await self._say(stream, HolePunch.CONNECT)
                await _hear(stream, HolePunch.SYNC)
            if await self._dial(raw, addresses, begins=True):
                self._counters["punches_succeeded"] += 1
        except (NetworkError, RemoteViolation, trio.TooSlowError) as error:
            log.debug("no direct connection to %s: %r", raw, error)
            if isinstance(error, RemoteViolation):
                self._counters["punches_broken"] += 1
                self._blame(peer_name(raw))
        finally:
            self._busy.discard(raw)
            self._came.pop(raw, None)
            with shielded(1):
                await close_quietly(stream)

    async def _say(self, stream: INetStream, kind: Any) -> None:
        message = HolePunch(type=kind)
        if kind == HolePunch.CONNECT:
            message.ObsAddrs.extend(self._to_tell())
        if not await write_whole(self._host, stream, encode_message(message), self._write_timeout_s):
            raise NetworkError("the peer did not take the message")

    # ------------------------------------------------------------ dialling

    async def _dial(self, raw: ID, addresses: list[str], *, begins: bool, from_port: bool = True) -> bool:
        """Dial all addresses at once until there is a direct connection.

        Args:
            begins: whether this side begins the handshake. When both dial, TCP makes one connection of it, on which
                nobody was dialled; so the specification says who begins.
            from_port: dial from the port that is listened on.
        """
        if not addresses:
            return False
        self._came[raw] = trio.Event()
        with trio.move_on_after(_DIAL_S):
            async with trio.open_nursery() as nursery:
                for address in addresses:
                    nursery.start_soon(self._dial_address, raw, address, begins, from_port)
                while not directly_connected(self._host, raw):
                    # it may come from either side
                    await self._came[raw].wait()
                nursery.cancel_scope.cancel()
        return directly_connected(self._host, raw)

    async def _dial_address(self, raw: ID, address: str, begins: bool, from_port: bool) -> None:
        source = self._source(address) if from_port else None
        if self._nursery is None or (from_port and source is None):
            return
        host, port = host_of(address), tcp_port(address)
        try:
            if source is None:
                socket = await trio.open_tcp_stream(host, port)
            else:
                socket = await _open_tcp_stream_from(host, port, source)
        except Exception as error:  # noqa: BLE001 - the library raises many kinds
            log.debug("dialling %s at the same moment: %r", address, error)
            return
        connection = RawConnection(TrioTCPStream(socket), begins)
        # from here on it goes on by itself, whoever else is faster
        self._nursery.start_soon(self._upgrade, connection, raw, begins)

    async def _upgrade(self, connection: RawConnection, raw: ID, begins: bool) -> None:
        swarm = self._host.get_network()
        if not begins:
            # as any inbound connection: the same gate, places and limits, and the handshake says who it is
            await swarm._do_handle_inbound_connection(connection, Multiaddr("/ip4/0.0.0.0/tcp/0"), None)
            return
        try:
            with trio.fail_after(_TIMEOUT_S):
                await swarm.upgrade_outbound_raw_conn(swarm.psk(connection), raw)
        except Exception as error:  # noqa: BLE001 - whoever answered there, it is not the peer
            log.debug("handshake with %s past the relay: %r", raw, error)
            with shielded(1):
                await connection.close()

    def _source(self, address: str) -> tuple[str, int] | None:
        """Return the own end to dial from: what is listened on, in the family of an address."""
        version = address.split("/")[1]
        for bound in map(str, self._host.get_transport_addrs()):
            if bound.startswith(f"/{version}/") and not is_loopback(bound):
                return host_of(bound), tcp_port(bound)
        return None

    async def _leave_relay(self, raw: ID) -> None:
        """Close what runs through the relay, once the direct connection has settled."""
        await trio.sleep(_SETTLE_S)
        if not directly_connected(self._host, raw):
            return
        for connection in self._host.get_network().get_connections(raw):
            if is_relayed(connection.muxed_conn):
                try:
                    await connection.close()
                except Exception as error:  # noqa: BLE001 - closing a broken connection may fail in any way
                    log.debug("closing the connection through the relay: %r", error)


async def _hear(stream: INetStream, kind: Any) -> HolePunch:
    message = await read_message(stream, HolePunch)
    if message.type != kind:
        raise RemoteViolation(BAD_MESSAGE, "the steps of the protocol are out of order")
    return message


def _addresses_of(message: HolePunch, peer: PeerId) -> list[str]:
    """Return the direct addresses that a message names; no more than `limits.PUNCH_ADDRESSES_MAX`."""
    found: dict[str, None] = {}
    for encoded in list(message.ObsAddrs)[: limits.PUNCH_ADDRESSES_MAX]:
        try:
            text = str(Multiaddr(encoded)).removesuffix(f"/p2p/{peer}")
            _, address = split_peer_address(f"{text}/p2p/{peer}")
        except Exception as error:  # noqa: BLE001 - the library raises many kinds, and others have more transports
            log.debug("an address to dial past the relay is of no use: %r", error)
            continue
        if not is_circuit(address) and not is_loopback(address) and observed_address(host_of(address), 1):
            found[address] = None
    return list(found)
