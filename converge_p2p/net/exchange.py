"""Peers tell each other where other peers are, so that nobody depends on one bootstrap peer.

Knows: the exchange protocol and its encoding. Must not know: who is dialled (see `bootstrap`).
Source: docs/protocol.md, "Peer exchange". Request: canonical CBOR array of the caller's own transport addresses.
Answer: array of pairs (32-byte public key, array of transport addresses). Nothing is signed: the handshake of a later
dial proves who is there.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import trio
from libp2p.abc import INetStream
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID

from converge_p2p.core import limits
from converge_p2p.core.codec import decode, encode
from converge_p2p.core.errors import CodecError, ConfigError, ConvergeError, NetworkError, RemoteViolation
from converge_p2p.core.identity import PUBLIC_KEY_BYTES
from converge_p2p.core.types import PeerId, PublicKey
from converge_p2p.net.addresses import (
    AddressBook,
    is_circuit,
    is_loopback,
    observed_address,
    split_peer_address,
    tcp_port,
)
from converge_p2p.net.config import NetworkConfig
from converge_p2p.net.direct import read_frame
from converge_p2p.net.framing import encode_frame
from converge_p2p.net.hardening import Counters, close_quietly, log, reset_quietly, shielded, write_whole
from converge_p2p.net.names import peer_id_of, peer_name, public_key_of

PROTOCOL = TProtocol("/converge/peers/1.0.0")

_TIMEOUT_S = 15.0


def encode_peers(peers: list[tuple[PeerId, tuple[str, ...]]]) -> bytes:
    """Encode an answer."""
    return encode([[public_key_of(peer), list(addresses)] for peer, addresses in peers])


def decode_addresses(value: Any, peer: PeerId) -> tuple[str, ...]:
    """Check a decoded array of transport addresses of a peer; addresses of unknown kinds are left out.

    Raises:
        RemoteViolation: not an array of texts, or too many or too long.
    """
    if not isinstance(value, list) or len(value) > limits.ADDRESSES_PER_PEER_MAX:
        raise RemoteViolation("bad_peer_exchange", "expected a short array of addresses")
    found = []
    for text in value:
        if not isinstance(text, str) or len(text) > limits.ADDRESS_BYTES_MAX:
            raise RemoteViolation("bad_peer_exchange", "expected addresses as text")
        try:
            found.append(split_peer_address(f"{text}/p2p/{peer}")[1])
        except ConfigError:
            # a later version may speak other transports
            continue
    return tuple(found)


def decode_peers(data: bytes) -> list[tuple[PeerId, tuple[str, ...]]]:
    """Decode an answer.

    Raises:
        RemoteViolation: it is not what `encode_peers` makes.
    """
    try:
        value = decode(data)
    except CodecError as error:
        raise RemoteViolation("bad_peer_exchange", str(error)) from error
    if not isinstance(value, list) or len(value) > limits.EXCHANGED_PEERS_MAX:
        raise RemoteViolation("bad_peer_exchange", "expected a short array of peers")
    peers = []
    for item in value:
        if not isinstance(item, list) or len(item) != 2 or not isinstance(item[0], bytes):
            raise RemoteViolation("bad_peer_exchange", "expected pairs of key and addresses")
        if len(item[0]) != PUBLIC_KEY_BYTES:
            raise RemoteViolation("bad_peer_exchange", "expected a public key of 32 bytes")
        peer = peer_id_of(PublicKey(item[0]))
        peers.append((peer, decode_addresses(item[1], peer)))
    return peers


class PeerExchange:
    """Asks peers for addresses, and answers them."""

    def __init__(
        self,
        host: Any,
        book: AddressBook,
        config: NetworkConfig,
        counters: Counters,
        own_addresses: Callable[[], tuple[str, ...]],
        learned: Callable[[], None],
    ) -> None:
        """Register the protocol.

        Args:
            host: the host.
            book: where addresses are kept.
            config: the settings.
            counters: where failures are counted.
            own_addresses: returns the own transport addresses.
            learned: is called when the book has something new.
        """
        self._host = host
        self._book = book
        self._config = config
        self._counters = counters
        self._own_addresses = own_addresses
        self._learned = learned
        self._me = peer_name(host.get_id())
        self._random = random.Random()
        self._nursery: trio.Nursery | None = None
        self._asking: set[ID] = set()
        host.set_stream_handler(PROTOCOL, self._serve)

    def start(self, nursery: trio.Nursery) -> None:
        """Begin to ask."""
        self._nursery = nursery
        nursery.start_soon(self._ask_now_and_then)

    def connection_up(self, raw: ID) -> None:
        """A connection to a peer exists: ask it, and tell it the own addresses."""
        if self._nursery is not None and raw not in self._asking:
            self._asking.add(raw)
            self._nursery.start_soon(self._ask, raw)

    def tell_everybody(self) -> None:
        """The own addresses changed: ask all peers, which tells them, too."""
        for raw in self._host.get_connected_peers():
            self.connection_up(raw)

    async def _ask_now_and_then(self) -> None:
        while True:
            await trio.sleep(self._config.exchange_interval_s * (0.5 + self._random.random()))
            connected = self._host.get_connected_peers()
            if connected:
                self.connection_up(self._random.choice(connected))

    async def _ask(self, raw: ID) -> None:
        stream: INetStream | None = None
        try:
            with trio.fail_after(_TIMEOUT_S):
                stream = await self._host.new_stream(raw, [PROTOCOL])
                own = list(self._own_addresses()[: limits.ADDRESSES_PER_PEER_MAX])
                frame = encode_frame(encode(own), limits.EXCHANGE_BYTES_MAX)
                if not await write_whole(self._host, stream, frame, self._config.write_timeout_s):
                    raise NetworkError("the peer did not take the request")
                for peer, addresses in decode_peers(await read_frame(stream, limits.EXCHANGE_BYTES_MAX)):
                    self._learn(peer, addresses)
        except Exception as error:  # noqa: BLE001 - the edge: any peer, any failure, and the next peer may do better
            self._counters["peer_exchange_failed"] += 1
            log.debug("no peers from %s: %r", raw, error)
        finally:
            self._asking.discard(raw)
            if stream is not None:
                with shielded(1):
                    await reset_quietly(stream)

    async def _serve(self, stream: INetStream) -> None:
        raw = stream.muxed_conn.peer_id
        try:
            with trio.fail_after(_TIMEOUT_S):
                data = await read_frame(stream, limits.EXCHANGE_BYTES_MAX)
            peer = peer_name(raw)
            self._learn(peer, self._with_observed(stream, decode_addresses(decode(data), peer)))
            answer = encode_frame(encode_peers(self._to_tell(raw)), limits.EXCHANGE_BYTES_MAX)
            await write_whole(self._host, stream, answer, self._config.write_timeout_s)
            await close_quietly(stream)
        except (ConvergeError, trio.TooSlowError) as error:
            self._counters["peer_exchange_refused"] += 1
            log.debug("peer exchange with %s: %r", raw, error)
            await reset_quietly(stream)

    def _learn(self, peer: PeerId, addresses: tuple[str, ...]) -> None:
        if peer != self._me and self._book.learn(peer, addresses):
            self._learned()

    def _with_observed(self, stream: INetStream, claimed: tuple[str, ...]) -> tuple[str, ...]:
        """Add the address that the peer is seen at, on its claimed ports: it may not know its own."""
        remote = stream.muxed_conn.get_remote_address()
        if remote is None:
            return claimed
        own = (address for address in claimed if not is_circuit(address))
        observed = (observed_address(remote[0], tcp_port(address)) for address in own)
        both = dict.fromkeys([*(address for address in observed if address is not None), *claimed])
        return tuple(both)[: limits.ADDRESSES_PER_PEER_MAX]

    def _to_tell(self, asker: ID) -> list[tuple[PeerId, tuple[str, ...]]]:
        """Connected peers, in random order, without addresses that mean nothing to the asker."""
        remote = self._remote_of(asker)
        asker_is_local = remote is not None and is_loopback(remote)
        connected = [raw for raw in self._host.get_connected_peers() if raw != asker]
        self._random.shuffle(connected)
        peers = []
        for raw in connected[: limits.EXCHANGED_PEERS_MAX]:
            peer = peer_name(raw)
            addresses = self._book.addresses(peer)
            if not asker_is_local:
                addresses = tuple(address for address in addresses if not is_loopback(address))
            if addresses:
                peers.append((peer, addresses))
        return peers

    def _remote_of(self, raw: ID) -> str | None:
        for connection in self._host.get_network().get_connections(raw):
            remote = connection.muxed_conn.get_remote_address()
            if remote is not None:
                return observed_address(remote[0], remote[1])
        return None
