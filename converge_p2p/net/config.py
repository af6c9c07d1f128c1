"""What the network room is told, and what it tells: values and protocols only.

Knows: settings, the handler a node passes in, the shape of peer information. Must not know: the transport library.
Source: the interface between the rooms (docs/architecture.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from converge_p2p.core import limits
from converge_p2p.core.model.network_key import NetworkKey
from converge_p2p.core.types import AgentId, PeerId, PublicKey


class Transport(StrEnum):
    """Whose code carries the connections. Both speak the same protocols, with each other, too."""

    FAST = "fast"
    """This project's noise session, multiplexer and gossip reader: several times cheaper."""
    STOCK = "stock"
    """The transport library's, with its faults repaired."""


class RelayUse(StrEnum):
    """When a node reserves places at relays, so that it is reached through them."""

    AUTO = "auto"
    """While other nodes cannot dial it."""
    ON = "on"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class RelayBounds:
    """What a node that serves as a relay gives away. The defaults are those of `core.limits`.

    Attributes:
        reservations: places at once.
        reservations_per_host: of one IPv4 address, or IPv6 network of 64 bits.
        reservation_s: how long a place is kept without being renewed, in seconds.
        circuits: connections passed on at once.
        circuits_per_peer: of them, from or to one peer.
        circuit_s: how long one may last, in seconds.
        circuit_bytes: how much one may carry in each direction.
        circuit_bytes_per_second: and how fast.
    """

    reservations: int = limits.RELAY_RESERVATIONS_MAX
    reservations_per_host: int = limits.RELAY_RESERVATIONS_PER_HOST_MAX
    reservation_s: float = limits.RELAY_RESERVATION_S
    circuits: int = limits.RELAY_CIRCUITS_MAX
    circuits_per_peer: int = limits.RELAY_CIRCUITS_PER_PEER_MAX
    circuit_s: float = limits.RELAY_CIRCUIT_S
    circuit_bytes: int = limits.RELAY_CIRCUIT_BYTES_MAX
    circuit_bytes_per_second: int = limits.RELAY_CIRCUIT_BYTES_PER_SECOND_MAX


@dataclass(frozen=True, slots=True)
class NetQueues:
    """What waits to be written, and how much is remembered.

    Attributes:
        sync_frames: of the replication streams to all peers.
        sync_bytes_most: to the peer for whom most waits.
        gossip_frames: of gossip, to all peers.
        gossip_frames_most: to the peer for whom most wait.
        known_peers: whose addresses are known.
        host_connections_most: that the address has which opened most, this machine aside.
        relay_connections_most: that came through the relay which passed on most.
    """

    sync_frames: int
    sync_bytes_most: int
    gossip_frames: int
    gossip_frames_most: int
    known_peers: int
    host_connections_most: int
    relay_connections_most: int


class NetworkHandler(Protocol):
    """What a node does with the network's events.

    The three synchronous methods run in the event loop between two frames, so they must not block. An exception from
    any method is logged and counted (`handler_errors`), and never ends the network.
    """

    def peer_up(self, peer: PeerId) -> None:
        """The replication stream with this peer works in both directions: `Network.send` reaches it now."""

    def peer_down(self, peer: PeerId) -> None:
        """The replication stream broke; frames still queued for the peer are lost. Another `peer_up` may follow."""

    def frame(self, peer: PeerId, payload: bytes) -> None:
        """One frame came, at most `limits.SYNC_FRAME_BYTES_MAX` bytes. Only between `peer_up` and `peer_down`."""

    async def request(self, peer: PeerId, payload: bytes) -> bytes:
        """Answer a direct request, with at most `limits.DIRECT_BYTES_MAX` bytes.

        Cancellation: cancelled when the caller's time is over or the network closes.
        """


class RecordValidator(Protocol):
    """Decides about the records of one namespace of the distributed hash table."""

    def rank(self, key: str, value: bytes) -> int | None:
        """Return None to refuse a record; otherwise its rank (for instance a sequence number): higher replaces lower.

        Args:
            key: the whole key, `/namespace/name`.
            value: untrusted bytes, at most `limits.DHT_RECORD_BYTES_MAX`.
        """


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """Settings of one node's network. Times are in seconds.

    Attributes:
        listen: TCP multiaddrs such as `/ip4/0.0.0.0/tcp/4001`; port 0 lets the system choose. Empty: only dial.
        bootstrap: addresses with `/p2p/…` that are dialled again for ever, whatever happens to them.
        announce: addresses told to others in place of the own interfaces' (for instance behind a port forwarding).
        known: good addresses of an earlier run (`Network.good_addresses`), tried like addresses heard from peers.
        network_key: of a private network: only hosts with the same key are spoken to. None: a public network. One
            network is one host, so a node that is to be in two networks is two nodes.
        accepted_key: a second key, of whoever dials this node, while the network changes from one key to another. This
            node dials with `network_key` alone.
        peers_max: connections held at most.
        connections_per_host: of them, that one address opens: an IPv4 address, or the 64-bit prefix of an IPv6 host.
        connections_on_this_machine: that the processes of this machine open, together. As many as there are, because
            they share all addresses, and whoever runs there can do worse; but a tunnel or proxy that ends on this
            machine makes strangers look like that.
        peers_wanted: below this number, addresses heard from peers are dialled.
        validators: record validators of the hash table, by namespace without slashes.
        transport: whose code carries the connections.
        dht: whether to take part in the hash table.
        autonat: whether to find out if others can dial this node, and to help them find out.
        mdns: whether to look for nodes on the same link, and to be found there.
        relay_client: when to be reached through relays.
        hole_punch: whether to try for direct connections with peers that are reached through relays.
        relay_service: None, or what to give away as a relay to others.
        dial_timeout_s: for one address.
        retry_first_s: first pause after a failed dial; it doubles up to `retry_max_s`, with jitter.
        retry_max_s: longest pause between dials of one peer.
        exchange_interval_s: how often one random peer is asked for the addresses it knows.
        health_interval_s: how often each connection is pinged, once it is `health_delay_s` old.
        health_delay_s: pause before the first ping.
        health_timeout_s: a ping that takes longer closes the connection as dead. Generous, because a busy machine
            answers late and a dead link is only noticed later.
        write_timeout_s: a write that is stuck for longer closes the connection.
        gossip_heartbeat_s: how often the gossip meshes are maintained.
    """

    listen: tuple[str, ...]
    bootstrap: tuple[str, ...] = ()
    announce: tuple[str, ...] = ()
    known: tuple[str, ...] = ()
    network_key: NetworkKey | None = None
    accepted_key: NetworkKey | None = None
    peers_max: int = limits.PEERS_MAX
    connections_per_host: int = limits.CONNECTIONS_PER_HOST_MAX
    connections_on_this_machine: int = limits.PEERS_MAX
    peers_wanted: int = 8
    validators: Mapping[str, RecordValidator] = field(default_factory=dict)
    transport: Transport = Transport.FAST
    dht: bool = True
    autonat: bool = True
    mdns: bool = False
    relay_client: RelayUse = RelayUse.AUTO
    hole_punch: bool = True
    relay_service: RelayBounds | None = None
    dial_timeout_s: float = 15.0
    retry_first_s: float = 1.0
    retry_max_s: float = 30.0
    exchange_interval_s: float = 30.0
    health_interval_s: float = 15.0
    health_delay_s: float = 10.0
    health_timeout_s: float = 15.0
    write_timeout_s: float = 30.0
    gossip_heartbeat_s: float = 1.0


@dataclass(frozen=True, slots=True)
class PeerInfo:
    """One connected peer.

    Attributes:
        peer_id: transport name.
        public_key: its Ed25519 key, proven by the handshake.
        agent_id: fingerprint of the key.
        addresses: where it can be dialled, as far as known; without `/p2p/…`.
        direction: `outbound` if this node dialled, else `inbound`.
        since: Unix time of the oldest connection, seconds.
        replicating: whether the replication stream works in both directions.
        relayed: whether the only connections to it lead through relays.
    """

    peer_id: PeerId
    public_key: PublicKey
    agent_id: AgentId
    addresses: tuple[str, ...]
    direction: str
    since: float
    replicating: bool
    relayed: bool = False
