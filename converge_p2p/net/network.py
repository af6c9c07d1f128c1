"""The network of one node: everything of this room behind one object.

Knows: how the parts of this room fit together. Must not know: pools, tasks, messages.
Source: docs/architecture.md, "The way of a message".
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any

import trio
from libp2p.peer.id import ID
from libp2p.tools.anyio_service import background_trio_service

from converge_p2p.core import limits
from converge_p2p.core.errors import ConfigError, LocalError, NetworkError
from converge_p2p.core.identity import SEED_BYTES, fingerprint
from converge_p2p.core.types import PeerId
from converge_p2p.net.acquaintance import Acquaintance
from converge_p2p.net.addresses import (
    AddressBook,
    observed_address,
    parse_listen,
    split_peer_address,
)
from converge_p2p.net.blobs import BlobSource, BlobStream, BlobStreams
from converge_p2p.net.bootstrap import Connector
from converge_p2p.net.conduct import Conduct
from converge_p2p.net.config import NetQueues, NetworkConfig, NetworkHandler, PeerInfo, Transport
from converge_p2p.net.dht import Dht
from converge_p2p.net.direct import DirectRequests
from converge_p2p.net.exchange import PeerExchange
from converge_p2p.net.fast.pubsub import FAST_MESH_PROTOCOLS, FastGossipSub
from converge_p2p.net.gossip import MESH_PROTOCOLS, Gossip, HardenedGossipSub, OnMessage, Validate
from converge_p2p.net.hardening import ConnectionWatcher, disconnect_quietly, log
from converge_p2p.net.host import build_host, check_ports_free, close_host, host_shares, missing_listeners
from converge_p2p.net.names import is_ed25519, peer_name, public_key_of, raw_peer_id
from converge_p2p.net.private_network import check_private_addresses
from converge_p2p.net.reach.circuit import is_relayed
from converge_p2p.net.reach.reachability import Reachability, ReachStatus
from converge_p2p.net.sync import SyncStreams
from converge_p2p.net.topic_access import TopicAccess
from converge_p2p.net.topic_members import TopicMembership

# libp2p calls a peer that is gone an error, and its loggers print on standard error as long as no handler takes the
# records; an application that wants them adds a handler of its own
_UNHEARD = logging.NullHandler()


@asynccontextmanager
async def open_network(config: NetworkConfig, *, seed: bytes, handler: NetworkHandler) -> AsyncIterator[Network]:
    """Run the network of a node for as long as the block runs.

    Leaving the block writes queued frames for up to a second, closes all connections and listeners, and leaks no
    socket, also when the block ends by an exception or by cancellation.

    Args:
        config: the settings.
        seed: 32 bytes, the seed of the node's identity; the transport uses the same key.
        handler: what to do with events; called in the event loop's thread.

    Raises:
        NetworkError: an address cannot be listened on.
        ConfigError: an address or the seed is malformed, or an address cannot be used in a private network.

    Cancellation: may be cancelled at any time; cleaning up takes at most a few seconds.
    """
    logging.getLogger("libp2p").addHandler(_UNHEARD)
    network = Network(config, seed, handler)
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        try:
            await nursery.start(network._serve)
            yield network
        except Exception as error:  # noqa: BLE001 - raised again below, outside of the nursery, which would wrap it
            failure = error
        finally:
            network._stop.set()
    if failure is not None:
        raise failure


class Network:
    """A running network. Made by `open_network`.

    Attributes:
        peer_id: the own transport name.
        counters: drops, refusals and errors since the start, by name.
        acquaintance: what is known of peers, connected or not.
        when_moved: is called when `addresses` have become others. Set by who tells others of them.
    """

    def __init__(self, config: NetworkConfig, seed: bytes, handler: NetworkHandler) -> None:
        """Build all parts; opens nothing. Use `open_network`."""
        if len(seed) != SEED_BYTES:
            raise ConfigError(f"seed has {len(seed)} bytes; expected {SEED_BYTES}")
        self.counters: Counter[str] = Counter()
        self.when_moved: Callable[[], None] = lambda: None
        self._config = config
        check_private_addresses((*config.listen, *config.bootstrap, *config.announce), config.network_key)
        self._listen = [parse_listen(text) for text in config.listen]
        self._stop = trio.Event()
        self._conduct = Conduct()
        self._shares = host_shares(config, self.counters)
        host = self._host = build_host(config, seed, self._listen, self.counters, self.blame, shares=self._shares)
        self.peer_id: PeerId = peer_name(host.get_id())
        self._book = AddressBook()
        self._connector = Connector(host, self._book, config, self.counters, self._is_banned)
        self.acquaintance = Acquaintance(host, self._book, self._connector, self._conduct, config)
        self._sync = SyncStreams(host, handler, config, self.counters, self.blame)
        self._direct = DirectRequests(host, handler, config, self.counters)
        self._blobs = BlobStreams(host, config, self.counters, self.blame)
        self._access = TopicAccess()
        fast = config.transport is Transport.FAST
        self._gossip = Gossip(
            host,
            config.gossip_heartbeat_s,
            self.counters,
            self.blame,
            self._access,
            router=FastGossipSub if fast else HardenedGossipSub,
            protocols=FAST_MESH_PROTOCOLS if fast else MESH_PROTOCOLS,
        )
        self._membership = TopicMembership(host, self._access, config, self.counters, self._gossip.pubsub.announce)
        self._dht = Dht(host, config.validators, self.counters) if config.dht else None
        self._exchange = PeerExchange(
            host, self._book, config, self.counters, self._own_addresses, self._connector.changed
        )
        self._reach = Reachability(
            host,
            config,
            self.counters,
            self._book,
            self._connector,
            blame=self.blame,
            is_banned=self._is_banned,
            moved=self._addresses_changed,
        )
        self._closing: trio.Nursery | None = None
        host.get_network().register_notifee(ConnectionWatcher(self))

    # ------------------------------------------------------------ life

    async def _serve(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Run until `_stop` is set. B4: shielded, or the host would be torn down before its connections are closed."""
        with trio.CancelScope(shield=True):
            check_ports_free(self._listen)
            missing: list[str] = []
            async with trio.open_nursery() as nursery:
                self._closing = nursery
                self._sync.start(nursery)
                async with AsyncExitStack() as stack:
                    await stack.enter_async_context(self._host.run(self._listen))
                    missing = missing_listeners(self._host, self._listen)
                    if not missing:
                        await self._serve_listening(stack, task_status)
                    await close_host(self._host)
                nursery.cancel_scope.cancel()
            self._closing = None
            if missing:
                raise NetworkError(f"cannot listen on {', '.join(missing)}", hint="choose another address or port")

    async def _serve_listening(self, stack: AsyncExitStack, task_status: Any) -> None:
        services = [*self._gossip.services, *(self._dht.services if self._dht else ())]
        for service in services:
            await stack.enter_async_context(background_trio_service(service))
        await self._gossip.pubsub.wait_until_ready()
        async with trio.open_nursery() as dialling:
            self._exchange.start(dialling)
            self._membership.start(dialling)
            self._connector.start(dialling)
            self._reach.start(dialling)
            if self._dht:
                self._dht.start(dialling)
            for raw in self._host.get_connected_peers():
                # whoever was faster than the start of these parts
                self.connection_up(raw)
            task_status.started()
            await self._stop.wait()
            await self._sync.drain()
            dialling.cancel_scope.cancel()

    def connection_up(self, raw: ID) -> None:
        """Called by the watcher: a connection to a peer opened."""
        if self._stop.is_set():
            # too late: it is closed with the host
            return
        if not is_ed25519(raw.to_bytes()) or self._is_banned(peer_name(raw)):
            self.counters["peers_refused"] += 1
            if self._closing is not None:
                self._closing.start_soon(disconnect_quietly, self._host, raw)
            return
        self._sync.connection_up(raw)
        self._exchange.connection_up(raw)
        self._membership.connection_up(raw)
        if self._dht:
            self._dht.connection_up(raw)
        self._connector.changed()
        self._reach.connection_up(raw)

    def connection_down(self, raw: ID) -> None:
        """Called by the watcher: the last connection to a peer closed."""
        self._membership.connection_down(raw)
        self._reach.connection_down(raw)
        self._connector.changed()

    def connection_fewer(self, raw: ID) -> None:
        """Called by the watcher: a connection to a peer closed, and there is another."""
        self._reach.relays.connection_fewer(raw)

    # ------------------------------------------------------------ peers

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where this node can be dialled: full multiaddrs with `/p2p/…`, those usable from elsewhere first."""
        return tuple(f"{address}/p2p/{self.peer_id}" for address in self._own_addresses())

    def _own_addresses(self) -> tuple[str, ...]:
        return self._reach.addresses()

    def _addresses_changed(self) -> None:
        """This node is reached elsewhere now: its peers are told, and tell others."""
        self._exchange.tell_everybody()
        self.when_moved()

    def peers(self) -> tuple[PeerInfo, ...]:
        """Return the connected peers, the oldest connection first."""
        found = []
        for raw in self._host.get_connected_peers():
            connections = self._host.get_network().get_connections(raw)
            if not connections or not is_ed25519(raw.to_bytes()):
                continue
            oldest = min(connections, key=lambda connection: float(connection._created_at))
            peer = peer_name(raw)
            key = public_key_of(peer)
            addresses = self._book.addresses(peer)
            if not addresses and (remote := oldest.muxed_conn.get_remote_address()) is not None:
                seen = observed_address(remote[0], remote[1])
                addresses = (seen,) if seen else ()
            direction = "outbound" if str(oldest.direction).endswith("outbound") else "inbound"
            since = float(oldest._created_at)
            up = self._sync.is_up(raw)
            relayed = all(is_relayed(connection.muxed_conn) for connection in connections)
            found.append(PeerInfo(peer, key, fingerprint(key), addresses, direction, since, up, relayed))
        return tuple(sorted(found, key=lambda info: info.since))

    @property
    def reachability(self) -> ReachStatus:
        """How others reach this node now."""
        return self._reach.status()

    @property
    def accepted_network(self) -> bytes | None:
        """The name of the network whose key is accepted besides the own one."""
        return None if self._config.accepted_key is None else self._config.accepted_key.network

    @property
    def by_accepted_key(self) -> int:
        """Connections of others that came with `NetworkConfig.accepted_key`."""
        return int(self._host.get_network().psk.by_accepted_key)

    @property
    def listens(self) -> bool:
        """Whether it listens where it was to; true as well where nothing was to be listened on."""
        return not missing_listeners(self._host, self._listen)

    def queues(self) -> NetQueues:
        """Return what waits to be written to peers."""
        frames, bytes_most = self._sync.waiting()
        of_host, of_relay = self._shares.most(relays=False), self._shares.most(relays=True)
        return NetQueues(frames, bytes_most, *self._gossip.waiting(), len(self._book), of_host, of_relay)

    def good_addresses(self) -> tuple[str, ...]:
        """Return full multiaddrs of peers that live or lived, to be passed on as `NetworkConfig.known`."""
        return self._book.good(self._connector.connected())

    async def connect(self, address: str, timeout_s: float = 15.0) -> PeerId:
        """Connect to a peer.

        Args:
            address: a full multiaddr, `/ip4/…/tcp/…/p2p/…`.
            timeout_s: how long to wait.

        Raises:
            ConfigError: not such an address, or the own one.
            NetworkError: it cannot be reached, or is banned.
        """
        peer, transport = split_peer_address(address)
        if peer == self.peer_id:
            raise ConfigError("this is the own address", hint="give the address of another node")
        if self._is_banned(peer):
            raise NetworkError(f"peer {peer} is banned", hint="unban it first")
        await self._connector.dial(peer, (transport,), timeout_s)
        return peer

    async def reach(self, peer: PeerId) -> None:
        """Connect to a peer at an address that is known of it. Does nothing if it is connected.

        Raises:
            NetworkError: no address is known, none works, or the peer is banned.
        """
        if self._connector.is_connected(peer):
            return
        if self._is_banned(peer):
            raise NetworkError(f"peer {peer} is banned", hint="unban it first")
        addresses = self._book.addresses(peer)
        if not addresses:
            raise NetworkError(f"peer {peer} is not connected, and no address of it is known", hint="connect to it")
        await self._connector.dial(peer, addresses, self._config.dial_timeout_s)

    async def disconnect(self, peer: PeerId) -> None:
        """Close all connections to a peer. It is not dialled again for half a minute, unless by a bootstrap address."""
        self._book.postpone(peer, trio.current_time() + self._config.retry_max_s)
        await disconnect_quietly(self._host, raw_peer_id(peer))

    async def ban(self, peer: PeerId, seconds: float = math.inf) -> None:
        """Disconnect a peer and refuse it for a time, or until the end of this network.

        Of more than `limits.BANNED_PEERS_MAX` bans the one that ends first makes room, of several the oldest.
        """
        self._conduct.ban(peer, trio.current_time() + seconds)
        await self.disconnect(peer)

    def unban(self, peer: PeerId) -> None:
        """Take a peer back."""
        self._conduct.unban(peer)

    def blame(self, peer: PeerId) -> None:
        """Note that a peer did what no honest node does.

        `limits.VIOLATIONS_MAX` times within `limits.VIOLATION_WINDOW_S`, and it is banned for `limits.BAN_S` (counted
        as `peers_banned`). Not for what a race, another version or a full queue can cause.
        """
        self.counters["violations"] += 1
        if self._closing is None or not self._conduct.violation(peer, trio.current_time()):
            return
        self.counters["peers_banned"] += 1
        log.warning("%s broke the protocol too often and is kept out for %.0f s", peer, limits.BAN_S)
        # noted at once, so that frames which are under way are not taken; disconnecting takes a while
        self._conduct.ban(peer, trio.current_time() + limits.BAN_S)
        self._closing.start_soon(self.disconnect, peer)

    def _is_banned(self, peer: PeerId) -> bool:
        return self._conduct.banned(peer, trio.current_time())

    # ------------------------------------------------------------ replication and requests

    def send(self, peer: PeerId, payload: bytes) -> bool:
        """Queue one frame on the replication stream to a peer. It may be lost.

        Returns:
            False if the peer is not up, or its queue of `limits.OUTBOUND_QUEUE_BYTES_MAX` is full (counted as
            `sync_frames_dropped`).

        Raises:
            LimitExceeded: the payload is over `limits.SYNC_FRAME_BYTES_MAX`.
        """
        return self._sync.send(raw_peer_id(peer), payload)

    async def request(self, peer: PeerId, payload: bytes, timeout_s: float = 10.0) -> bytes:
        """Ask a connected peer's handler and return its answer.

        Raises:
            LimitExceeded: the payload is over `limits.DIRECT_BYTES_MAX`.
            NetworkError: not connected, too slow, busy, or the peer's handler failed.
            RemoteViolation: the answer breaks the protocol.
        """
        return await self._direct.request(raw_peer_id(peer), payload, timeout_s)

    def serve_blobs(self, source: BlobSource) -> None:
        """Give to peers the blobs that a source has, from now on."""
        self._blobs.serve(source)

    def open_blobs(self, peer: PeerId) -> AbstractAsyncContextManager[BlobStream]:
        """Open a stream on which a connected peer is asked for blobs.

        Raises:
            NetworkError: not connected, or it gives no blobs.
        """
        return self._blobs.open(raw_peer_id(peer))

    # ------------------------------------------------------------ gossip

    async def subscribe(
        self,
        topic: str,
        on_message: OnMessage,
        validate: Validate | None = None,
        *,
        member_key: bytes | None = None,
    ) -> None:
        """Take part in a topic.

        Args:
            topic: its name; every connected peer sees it, unless there is a member key.
            on_message: called with the neighbour that handed the message over (not always its author) and the data,
                at least once per message. Own messages do not come back.
            validate: called first; False means that the message is neither delivered nor forwarded. It must be quick.
            member_key: 32 bytes that only members of the topic have. Peers that did not prove that they have them are
                told nothing of the topic, and nothing of it is taken from them. None: anybody may take part.

        Raises:
            LocalError: subscribed already.
            LimitExceeded: too many topics.
        """
        if member_key is not None:
            self._access.guard(topic, member_key)
        try:
            await self._gossip.subscribe(topic, on_message, validate)
        except BaseException:
            self._access.unguard(topic)
            raise
        if member_key is not None:
            self._membership.topics_changed()

    def retire(self, topic: str) -> None:
        """Take no more members into a topic that has a member key. Those who proved theirs go on until the end."""
        self._access.retire(topic)

    async def unsubscribe(self, topic: str) -> None:
        """Leave a topic; does nothing if it is not subscribed."""
        await self._gossip.unsubscribe(topic)
        self._access.unguard(topic)

    def topic_peers(self, topic: str) -> frozenset[PeerId]:
        """The connected peers that take part in a topic, as far as this node may know."""
        return frozenset(map(peer_name, self._gossip.pubsub.peer_topics.get(topic, ())))

    async def publish(self, topic: str, data: bytes) -> None:
        """Gossip data on a topic, subscribed or not. Delivery is not promised, and not reported.

        Raises:
            LimitExceeded: the data is over `limits.GOSSIP_DATA_BYTES_MAX`.
        """
        await self._gossip.publish(topic, data)

    # ------------------------------------------------------------ records

    async def put_record(self, key: str, value: bytes) -> None:
        """Store a record in the hash table, at the nodes nearest to its key and here.

        Args:
            key: `/namespace/name`, at most `limits.DHT_KEY_BYTES_MAX` bytes.
            value: at most `limits.DHT_RECORD_BYTES_MAX` bytes.

        Raises:
            LocalError: no hash table, no such namespace, or the validator refuses the record.
            Conflict: a record of higher rank is known here.
            NetworkError: the table failed.
        """
        await self._table().put(key, value)

    async def get_record(self, key: str) -> bytes | None:
        """Look a record up at other nodes and here; return the valid one of highest rank, or None.

        Raises:
            LocalError: no hash table, or no such namespace.
            NetworkError: the table failed.
        """
        return await self._table().get(key)

    async def claim(self, key: bytes) -> int:
        """Tell the nodes nearest to a key that this node provides what it stands for; counts for three hours there.

        Args:
            key: 32 bytes. A node takes ten claims of one peer in ten seconds.

        Returns:
            How many nodes were told; they do not answer.

        Raises:
            LocalError: no hash table, or a key of another length.
            NetworkError: the table failed.
        """
        return await self._table().claim(key)

    async def claimants(self, key: bytes, limit: int) -> tuple[PeerId, ...]:
        """Ask the nodes nearest to a key who claims to provide it. A claim proves nothing.

        Raises:
            LocalError: no hash table, or a key of another length.
            NetworkError: the table failed.
        """
        return await self._table().claimants(key, limit)

    def _table(self) -> Dht:
        if self._dht is None:
            raise LocalError("this node takes no part in the hash table", hint="set dht = true")
        return self._dht
