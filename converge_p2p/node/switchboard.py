"""Between the network and the replicas: which frame belongs to which pool, and what goes to whom.

Knows: connected peers, pools, announcements. Must not know: operations beyond their author.
Source: `docs/protocol.md`, frames between nodes. Operations go to connected members over their replication streams, so
that each arrives once; gossip carries them only while somebody is heard of who is not connected.
"""

from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence, Set as AbstractSet
from contextlib import asynccontextmanager

import trio

from converge_p2p.core import limits
from converge_p2p.core.codec import encode
from converge_p2p.core.errors import CodecError, ConvergeError
from converge_p2p.core.identity import fingerprint
from converge_p2p.core.oplog.operation import author_of
from converge_p2p.core.replica import events as ev
from converge_p2p.core.replica.wire import Operations, batches, encode_message
from converge_p2p.core.types import PeerId, PoolId, PublicKey
from converge_p2p.net import Network, public_key_of
from converge_p2p.net.framing import TokenBucket
from converge_p2p.node.directory import Directory, PoolAnnouncement, encode_announcements
from converge_p2p.node.discovery import DiscoveryService
from converge_p2p.node.driver import PoolDriver
from converge_p2p.node.fanout import Fanout
from converge_p2p.node.mail import Mail
from converge_p2p.node.writer import StoreWriter

_logger = logging.getLogger(__name__)

_POOL, _ANNOUNCE, _NOT_HERE, _PULSE, _RENEWAL, _AGENTS = 0, 1, 2, 3, 4, 5
_ID_BYTES = 32
REDEEM, ASK, DECIDED = b"\x01", b"\x02", b"\x03"
"""Begin direct requests about joining pools: for an invitation, to be let in, and that somebody decided. No envelope of
a message begins with one of them."""
FAR_S = 60.0
"""How long after hearing of a member that is not connected own operations are gossiped too."""
PULSE_S = 5.0
"""How often a peer hears from this node even if there is nothing to say."""
SILENT_S = 20.0
"""After this a peer that said nothing is taken for gone: a cable that was pulled tells nobody."""
_ON_TOPICS = PeerId("topics")
"""Stands for everybody who announces pools on topics, in the directory."""


def gossip_topic(pool: PoolId) -> str:
    """The gossip topic of a pool."""
    return f"converge/pool/1/{pool.hex()}"


class Switchboard:
    """Handles what the network brings (`net.NetworkHandler`), and sends what replicas want sent (`driver.Wire`)."""

    def __init__(self, mail: Mail, writer: StoreWriter, discovery: DiscoveryService, counters: Counter[str]) -> None:
        self.directory = Directory()
        self.visitors: dict[bytes, Callable[[PeerId, bytes], Awaitable[bytes]]] = {}
        self.tell: Callable[..., None] = lambda *_what, **_about: None
        self._discovery = discovery
        self._mail = mail
        self._writer = writer
        self._counters = counters
        self._drivers: dict[PoolId, PoolDriver] = {}
        self._peers: dict[PeerId, PublicKey] = {}
        self._connected: frozenset[PublicKey] = frozenset()
        self._heard_at: dict[PeerId, float] = {}
        self._renewal_rates: dict[PeerId, TokenBucket] = {}
        self._far: dict[PoolId, dict[PublicKey, float]] = {}
        """By pool: authors that were not connected when they were last heard of, and when that was."""
        self._network: Network | None = None
        self._nursery: trio.Nursery | None = None
        self._subscribed: set[PoolId] = set()
        self._tuning = trio.Lock()
        self._gossip_send, self._gossip_receive = trio.open_memory_channel[tuple[PoolId, bytes]](limits.EVENT_QUEUE_MAX)
        self._announced: Fanout[PoolAnnouncement] = Fanout()
        self._closed = False

    async def open(self, network: Network, nursery: trio.Nursery) -> None:
        """Connect to a running network; frames may have come already."""
        self._network, self._nursery = network, nursery
        nursery.start_soon(self._run_gossip)
        nursery.start_soon(self._run_pulse)
        for pool in self._drivers:
            nursery.start_soon(self._tune, pool)
        for peer in network.peers():
            if peer.replicating and peer.peer_id not in self._peers:
                self.peer_up(peer.peer_id)
        await self._discovery.open(network, nursery, self._send_agents)

    @property
    def connected(self) -> frozenset[PublicKey]:
        """Keys of the peers that replicate with this node."""
        return self._connected

    @property
    def gossip_waiting(self) -> int:
        """How many payloads wait to be gossiped, at most `limits.EVENT_QUEUE_MAX`."""
        return self._gossip_send.statistics().current_buffer_used

    # ------------------------------------------------------------ pools

    def attach(self, driver: PoolDriver) -> None:
        """Let a pool take part."""
        self._drivers[driver.pool] = driver
        if self._nursery is not None:
            self._nursery.start_soon(self._tune, driver.pool)
        for peer, key in self._peers.items():
            driver.feed(ev.PeerUp(peer, key))
        if driver.replica.ready:
            self.announce(driver.pool)

    def detach(self, pool: PoolId) -> None:
        """A pool takes no more part."""
        driver = self._drivers.pop(pool, None)
        if driver is None:
            return
        driver.close()
        self._far.pop(pool, None)
        self.directory.forget(pool)
        for peer in self._peers:
            self._send(peer, bytes([_NOT_HERE]) + pool)
        if self._nursery is not None and self._network is not None:
            self._nursery.start_soon(self._tune, pool)

    def announce(self, pool: PoolId) -> None:
        """Tell all peers of a pool whose founding terms are known."""
        driver = self._drivers.get(pool)
        if driver is not None and driver.replica.view.genesis:
            self._heard(self.directory.add_own(pool, driver.replica.view.genesis), None)

    def _heard(self, announcement: PoolAnnouncement, source: PeerId | None) -> None:
        before = self._announced.dropped
        self._announced.send(announcement)
        self._counters["announcements_dropped"] += self._announced.dropped - before
        for payload in encode_announcements([announcement]):
            for peer in self._peers:
                if peer != source:
                    self._send(peer, bytes([_ANNOUNCE]) + payload)

    @asynccontextmanager
    async def watch_pools(self) -> AsyncIterator[trio.MemoryReceiveChannel[PoolAnnouncement]]:
        """Give a channel of announcements, the known ones first."""
        async with self._announced.open(self.directory.all()) as channel:
            yield channel

    def close(self) -> None:
        """Tell the peers that no pool is here any more, and let nobody wait for announcements."""
        self._closed = True
        for pool in list(self._drivers):
            self.detach(pool)
        self._announced.close()

    # ------------------------------------------------------------ what the network brings

    def peer_up(self, peer: PeerId) -> None:
        """See `net.NetworkHandler`."""
        key = self._peers[peer] = public_key_of(peer)
        self._renewal_rates[peer] = TokenBucket(limits.RENEWALS_PER_PEER_PER_SECOND_MAX)
        self._heard_at[peer] = trio.current_time()
        self._connected = frozenset(self._peers.values())
        self.directory.peer_up(peer)
        self._mail.registry.register(fingerprint(key), key)
        for payload in encode_announcements(self.directory.all()):
            self._send(peer, bytes([_ANNOUNCE]) + payload)
        for driver in self._drivers.values():
            driver.feed(ev.PeerUp(peer, key))
        self._discovery.peer_up(peer)
        self.tell("peer_up", peer=str(peer), agent=str(fingerprint(key)))

    def peer_down(self, peer: PeerId) -> None:
        """See `net.NetworkHandler`."""
        if self._peers.pop(peer, None) is None:
            return
        self._heard_at.pop(peer, None)
        self._renewal_rates.pop(peer, None)
        self._connected = frozenset(self._peers.values())
        self.directory.peer_down(peer)
        self._discovery.peer_down(peer)
        for driver in self._drivers.values():
            driver.feed(ev.PeerDown(peer))
        self.tell("peer_down", peer=str(peer))

    def frame(self, peer: PeerId, payload: bytes) -> None:
        """See `net.NetworkHandler`."""
        if peer in self._peers:
            self._heard_at[peer] = trio.current_time()
        kind = payload[0] if payload else -1
        if kind == _PULSE:
            return
        if kind == _ANNOUNCE:
            self._take_announcements(peer, payload[1:])
            return
        if kind == _AGENTS:
            self._discovery.frame(peer, payload[1:])
            return
        pool = PoolId(payload[1 : 1 + _ID_BYTES])
        if kind not in (_POOL, _NOT_HERE, _RENEWAL) or len(pool) != _ID_BYTES:
            self._counters["frames_malformed"] += 1
            return
        driver = self._drivers.get(pool)
        if kind == _NOT_HERE:
            if driver is not None:
                driver.feed(ev.PeerDown(peer))
        elif driver is None:
            self._send(peer, bytes([_NOT_HERE]) + pool)
        elif kind == _RENEWAL:
            if self._may_renew(peer):
                driver.take_renewal(payload[1 + _ID_BYTES :], peer)
        elif self._writer.full:
            # what is dropped here is asked for again when the frontiers are compared
            self._counters["frames_dropped_writer_full"] += 1
        else:
            if not driver.replica.has_peer(peer):
                driver.feed(ev.PeerUp(peer, self._peers.get(peer)))
            driver.feed(ev.SyncReceived(peer, payload[1 + _ID_BYTES :]))
            self._note_far(driver)

    def _may_renew(self, peer: PeerId) -> bool:
        """Whether a renewal from this peer is looked at: they are worth little, so that a flood may cost little."""
        rate = self._renewal_rates.get(peer)
        if rate is not None and rate.try_take(1, trio.current_time()):
            return True
        self._counters["renewals_dropped"] += 1
        return False

    async def request(self, peer: PeerId, payload: bytes) -> bytes:
        """See `net.NetworkHandler`: a direct message, or somebody who wants into a pool."""
        if (visited := self.visitors.get(payload[:1])) is not None:
            return await visited(peer, payload[1:])
        return await self._mail.on_request(payload)

    async def _run_pulse(self) -> None:
        """Let peers hear from this node, and give up those that are not heard of."""
        assert self._network is not None
        async with trio.open_nursery() as closing:
            while True:
                await trio.sleep(PULSE_S)
                silent_since = trio.current_time() - SILENT_S
                for peer in list(self._peers):
                    if self._heard_at[peer] > silent_since:
                        self._send(peer, bytes([_PULSE]))
                        continue
                    self._counters["peers_silent"] += 1
                    _logger.info(
                        "peer %s has been silent for %d s; disconnecting", peer, SILENT_S, extra={"peer": str(peer)}
                    )
                    self.peer_down(peer)
                    closing.start_soon(self._network.disconnect, peer)

    def _take_announcements(self, peer: PeerId, payload: bytes) -> None:
        try:
            new = self.directory.take(peer, payload)
        except CodecError:
            self._counters["announcements_refused"] += 1
            self.blame(peer)
            return
        for announcement in new:
            self._heard(announcement, peer)

    def hear_on_topic(self, pool: PoolId, genesis: bytes) -> None:
        """A signed message on a topic announces a pool. Whoever wrote it may be anybody, so all share one quota.

        It makes room before what connected peers announced.
        """
        self.directory.peer_down(_ON_TOPICS)
        try:
            new = self.directory.take(_ON_TOPICS, encode([[pool, genesis]]))
        except CodecError:
            self._counters["announcements_refused"] += 1
            return
        self.directory.peer_down(_ON_TOPICS)
        for announcement in new:
            self._heard(announcement, None)

    # ------------------------------------------------------------ what replicas want sent

    def _send(self, peer: PeerId, frame: bytes) -> None:
        if self._network is not None and not self._network.send(peer, frame):
            self._counters["frames_not_sent"] += 1

    def _send_agents(self, peer: PeerId, payload: bytes) -> None:
        self._send(peer, bytes([_AGENTS]) + payload)

    def send_pool(self, peer: PeerId, pool: PoolId, payload: bytes) -> None:
        """See `driver.Wire`."""
        self._send(peer, bytes([_POOL]) + pool + payload)

    def publish_pool(self, pool: PoolId, operations: tuple[bytes, ...], peers: Sequence[PeerId]) -> None:
        """See `driver.Wire`."""
        for part in batches(operations, limits.BATCH_BYTES_MAX):
            frame = bytes([_POOL]) + pool + encode_message(Operations(part))
            for peer in peers:
                self._send(peer, frame)
        if self._somebody_is_far(pool):
            for part in batches(operations, limits.GOSSIP_BATCH_BYTES_MAX):
                self._gossip(pool, encode_message(Operations(part)))

    def broadcast_pool(
        self, pool: PoolId, renewal: bytes, peers: Sequence[PeerId], electors: AbstractSet[PublicKey]
    ) -> None:
        """See `driver.Wire`."""
        for peer in peers:
            self._send(peer, bytes([_RENEWAL]) + pool + renewal)
        # an elector that signed nothing for a while is not heard of, and its patience counts all the same
        unlinked = electors - self._connected - {self._mail.identity.public_key}
        if unlinked or self._somebody_is_far(pool):
            self._gossip(pool, bytes([_RENEWAL]) + renewal)

    def _gossip(self, pool: PoolId, data: bytes) -> None:
        try:
            self._gossip_send.send_nowait((pool, data))
        except trio.WouldBlock:
            self._counters["gossip_dropped"] += 1

    def blame(self, peer: PeerId) -> None:
        """See `driver.Wire`."""
        if self._network is not None:
            self._network.blame(peer)

    def _note_far(self, driver: PoolDriver) -> None:
        """Remember authors of new operations who are alive and not connected: gossip has to reach them."""
        for signed in driver.take_fresh():
            author = author_of(signed)
            if author not in self._connected and author != self._mail.identity.public_key:
                far = self._far.setdefault(driver.pool, {})
                if author in far or len(far) < limits.FAR_AUTHORS_MAX:
                    far[author] = trio.current_time()

    def _somebody_is_far(self, pool: PoolId) -> bool:
        """Whether a member was heard of lately, and still is not connected."""
        far = self._far.get(pool, {})
        since = trio.current_time() - FAR_S
        for author, heard in list(far.items()):
            if heard < since or author in self._connected:
                del far[author]
        return bool(far)

    async def _tune(self, pool: PoolId) -> None:
        """Subscribe to a pool's gossip if it is here, and unsubscribe if it is not."""
        assert self._network is not None
        # one after the other: a pool may be left and joined again while the first of these is under way
        async with self._tuning:
            wanted = pool in self._drivers
            if self._closed or wanted == (pool in self._subscribed):
                # a network that is going away is not told; it may be half gone already
                return
            if not wanted:
                self._subscribed.discard(pool)
                await self._network.unsubscribe(gossip_topic(pool))
                return
            try:
                await self._network.subscribe(
                    gossip_topic(pool), lambda _peer, _data: None, functools.partial(self._take_gossip, pool)
                )
            except ConvergeError as error:
                self._counters["subscriptions_refused"] += 1
                _logger.warning("pool %s goes without gossip: %s", pool.hex()[:12], error, extra={"pool": pool.hex()})
            else:
                self._subscribed.add(pool)

    def _take_gossip(self, pool: PoolId, peer: PeerId, data: bytes) -> bool:
        # the replica itself is the validator: it verifies each operation once, and keeps what is good
        driver = self._drivers.get(pool)
        if driver is None:
            return False
        if data[:1] == bytes([_RENEWAL]):
            return self._may_renew(peer) and driver.take_renewal(data[1:], peer, gossiped=True)
        good = driver.take_gossip(data, peer)
        self._note_far(driver)
        return good

    async def _run_gossip(self) -> None:
        assert self._network is not None
        async for pool, payload in self._gossip_receive:
            try:
                await self._network.publish(gossip_topic(pool), payload)
            except ConvergeError as error:
                # gossip is a hint; what it does not carry comes with the next comparison
                self._counters["gossip_failed"] += 1
                _logger.debug("gossip of pool %s failed: %s", pool.hex()[:12], error, extra={"pool": pool.hex()})
