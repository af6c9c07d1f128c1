"""Gossip that a peer cannot break: gossipsub 1.1 with the library's faults repaired.

Knows: gossipsub's messages and the library's private hooks. Must not know: what topics and messages mean.
Source: libp2p gossipsub specification 1.1; faults B1, B5 and B6 of `hardening`. Gossip is a hint: what it loses,
anti-entropy over the replication streams repairs.

Stock, each message costs a task, a signed address record and several small reads, and queues hold 32 entries. Here a
burst is read at once, handled in order, and written at once, which makes it several times cheaper on the same wire
format.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import trio
from google.protobuf.message import DecodeError
from libp2p.abc import INetStream
from libp2p.custom_types import TProtocol
from libp2p.io.exceptions import IOException
from libp2p.network.connection.exceptions import RawConnError
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import PUBSUB_SIGNING_PREFIX, Pubsub
from libp2p.pubsub.utils import maybe_consume_signed_record
from nacl.bindings import crypto_sign_open
from nacl.exceptions import CryptoError

from converge_p2p.core import limits
from converge_p2p.core.errors import LimitExceeded, LocalError, RemoteViolation
from converge_p2p.core.types import PeerId
from converge_p2p.net.framing import TokenBucket, VarintFrameDecoder
from converge_p2p.net.gossip_limits import Allowance, VisibleTopics, reduced_control, visible_part
from converge_p2p.net.gossip_queue import BoundedRpcQueue, SeenCache, encode_rpc
from converge_p2p.net.hardening import Counters, log, reset_quietly
from converge_p2p.net.names import embedded_key, peer_name
from converge_p2p.net.topic_access import TopicAccess, is_private

MESH_PROTOCOLS = (TProtocol("/meshsub/1.1.0"), TProtocol("/meshsub/1.0.0"))
"""In the library 1.2 answers every message of any size; `fast.pubsub` speaks it without that."""

OnMessage = Callable[[PeerId, bytes], None]
Validate = Callable[[PeerId, bytes], bool]

_READ_BYTES = 65_536
_SIGNING_PREFIX = PUBSUB_SIGNING_PREFIX.encode()


class HardenedGossipSub(GossipSub):  # type: ignore[misc]
    """The router: who gets a message. Built by `build_gossip`."""

    counters: Counters
    cache_rate: TokenBucket

    async def heartbeat(self) -> None:
        """B1: an exception in the heartbeat ends the host; here it is counted and the heartbeat goes on."""
        while True:
            try:
                await super().heartbeat()
            except Exception:  # noqa: BLE001 - the edge: counted and logged below
                self.counters["gossip_heartbeat_errors"] += 1
                log.exception("the gossip heartbeat failed")
                await trio.sleep(self.heartbeat_interval)

    async def on_peer_subscribed(self, peer_id: ID, topic: str) -> None:
        """B1: runs in a task of its own, whose failure would end the host."""
        try:
            await super().on_peer_subscribed(peer_id, topic)
        except Exception:  # noqa: BLE001 - the edge: counted and logged below
            self.counters["gossip_errors"] += 1
            log.exception("taking %s into the mesh failed", peer_id)

    async def flush_pending_messages(self, peer_id: ID) -> None:
        """Nothing is kept pending per peer: a peer that subscribes is sent the message cache instead."""

    async def publish(self, msg_forwarder: ID, pubsub_msg: Any) -> None:
        """Forward a message: encoded once, without the address record that stock attaches to each."""
        if self.cache_rate.try_take(pubsub_msg.ByteSize(), trio.current_time()):
            # what is not in the cache is not offered again later; the cache holds a few seconds, of any size
            self.mcache.put(pubsub_msg)
        topics = list(pubsub_msg.topicIDs)
        message_id = self.pubsub.get_message_id(pubsub_msg)
        frame: bytes | None = None
        for peer in self._get_peers_to_send(
            topics, msg_forwarder=msg_forwarder, origin=ID(pubsub_msg.from_id), msg_id=message_id
        ):
            queue = self.pubsub.peer_queues.get(peer)
            if queue is None or not all(self.pubsub.access.may_see(peer, topic) for topic in topics):
                continue
            if frame is None:
                frame = encode_rpc(rpc_pb2.RPC(publish=[pubsub_msg]))
            if not queue.push(frame):
                self.counters["gossip_send_dropped"] += 1
        for topic in topics:
            self.time_since_last_publish[topic] = int(time.time())

    def remove_peer(self, peer_id: ID) -> None:
        """Forget a peer, and what the library never forgets: until when it is not to be taken into a mesh."""
        super().remove_peer(peer_id)
        for topic in list(self.back_off):
            self.back_off[topic].pop(peer_id, None)
            if not self.back_off[topic]:
                del self.back_off[topic]

    def _handle_dropped_rpc(self, peer_id: ID, rpc: Any, reason: str) -> None:
        self.counters["gossip_send_dropped"] += 1
        super()._handle_dropped_rpc(peer_id, rpc, reason)


class SafePubsub(Pubsub):  # type: ignore[misc]
    """Reading, checking, delivering and writing of gossip, so that a bad peer costs one stream and no more."""

    def __init__(
        self,
        host: Any,
        router: HardenedGossipSub,
        counters: Counters,
        blame: Callable[[PeerId], None],
        access: TopicAccess,
    ) -> None:
        super().__init__(
            host,
            router,
            strict_signing=True,
            max_inbound_rpc_size=limits.GOSSIP_RPC_BYTES_MAX,
            max_subscriptions_per_rpc=limits.TOPICS_SUBSCRIBED_MAX,
            max_subscriptions_per_peer=limits.TOPICS_SUBSCRIBED_MAX,
        )
        vars(self)["seen_messages"].stop()
        self.seen_messages: Any = SeenCache()
        self.counters = counters
        self.listeners: dict[str, tuple[OnMessage, Validate | None]] = {}
        self.access = access
        self._blame = blame
        self._rates: dict[ID, Allowance] = {}
        self._records: dict[ID, bytes] = {}
        self._heard_on: dict[ID, INetStream] = {}

    # ------------------------------------------------------------ reading

    async def continuously_read_stream(self, stream: INetStream) -> None:
        """B1: garbage on the stream ends the host; here it ends the stream."""
        peer = stream.muxed_conn.peer_id
        decoder = VarintFrameDecoder(limits.GOSSIP_RPC_BYTES_MAX)
        self._heard_on[peer] = stream
        try:
            while self.manager.is_running:
                data = await stream.read(_READ_BYTES)
                if not data:
                    return
                for frame in decoder.feed(data):
                    rpc = rpc_pb2.RPC()
                    rpc.ParseFromString(frame)
                    await self._handle_rpc(peer, rpc)
                    if (debt := self._allowance(peer).work.debt_s()) > 0:
                        self.counters["gossip_work_throttled"] += 1
                        await trio.sleep(debt)
                    # one busy peer must not keep the others waiting
                    await trio.lowlevel.checkpoint()
        except (IOException, RawConnError) as error:
            log.debug("gossip stream of %s ended: %r", peer, error)
        except (RemoteViolation, DecodeError) as error:
            await self._refuse_stream(peer, stream, error)
        except Exception as error:  # noqa: BLE001 - the edge: a control message may upset the library in any way
            await self._refuse_stream(peer, stream, error)
        finally:
            if self._heard_on.get(peer) is stream:
                del self._heard_on[peer]

    async def _refuse_stream(self, peer: ID, stream: INetStream, error: Exception) -> None:
        self.counters["gossip_streams_refused"] += 1
        log.info("bad gossip from %s: %r", peer, error)
        self._blame(peer_name(peer))
        await reset_quietly(stream)
        self._handle_dead_peer(peer)

    async def _handle_rpc(self, peer: ID, rpc: Any) -> None:
        if rpc.senderRecord:
            # stock checks and stores the same record again with every message
            if self._records.get(peer) != rpc.senderRecord:
                if not maybe_consume_signed_record(rpc, self.host, peer):
                    raise RemoteViolation("bad_peer_record", "the signed address record is not the sender's")
                self._records[peer] = bytes(rpc.senderRecord)
            rpc.ClearField("senderRecord")
        for message in rpc.publish:
            await self.push_msg(peer, message)
        if len(rpc.subscriptions) > self.max_subscriptions_per_rpc:
            raise RemoteViolation("too_many_subscriptions", f"{len(rpc.subscriptions)} subscriptions at once")
        for subscription in rpc.subscriptions:
            if len(subscription.topicid.encode()) > limits.GOSSIP_TOPIC_BYTES_MAX:
                raise RemoteViolation("topic_too_long", "a topic's name is too long")
            # private topics: an outsider does not get into the tables that meshes are made from
            if self.access.may_see(peer, subscription.topicid):
                self.handle_subscription(peer, subscription)
        if rpc.HasField("control"):
            control = rpc_pb2.RPC()
            visible = VisibleTopics(self.listeners, functools.partial(self.access.may_see, peer))
            control.control.CopyFrom(reduced_control(rpc.control, visible))
            await self.router.handle_rpc(control, peer)

    def _allowance(self, peer: ID) -> Allowance:
        allowance = self._rates.get(peer)
        if allowance is None:
            allowance = self._rates[peer] = Allowance()
        return allowance

    # ------------------------------------------------------------ checking and delivering

    async def push_msg(self, msg_forwarder: ID, msg: Any) -> None:
        """Check a message, deliver it and forward it. Raises nothing that a peer could provoke."""
        own = msg_forwarder == self.my_id
        if not own:
            reason = self._reason_to_drop(msg_forwarder, msg)
            if reason is not None:
                self.counters[f"gossip_{reason}"] += 1
                if reason in _BLAMED:
                    self._blame(peer_name(msg_forwarder))
                return
        self.seen_messages.add(self.get_message_id(msg))
        if not own:
            self._deliver(peer_name(msg_forwarder), msg)
        await self.router.publish(msg_forwarder, msg)

    def _reason_to_drop(self, forwarder: ID, msg: Any) -> str | None:
        """Return why a message is not wanted, or None. Cheap tests come first."""
        if len(msg.topicIDs) != 1 or len(msg.seqno) != 8 or len(msg.data) > limits.GOSSIP_DATA_BYTES_MAX:
            return "malformed"
        listener = self.listeners.get(msg.topicIDs[0])
        if listener is None:
            return "unsubscribed"
        if not self.access.may_see(forwarder, msg.topicIDs[0]):
            return "outsider"
        allowance, now = self._allowance(forwarder), trio.current_time()
        if not (allowance.messages.try_take(1, now) and allowance.bytes.try_take(len(msg.data), now)):
            return "rate_limited"
        if self.seen_messages.has(self.get_message_id(msg)):
            return "duplicate"
        if msg.from_id == self.my_id.to_bytes():
            return "own_returned"
        with allowance.work.spent():
            return self._reason_by_content(forwarder, msg, listener[1])

    def _reason_by_content(self, forwarder: ID, msg: Any, validate: Validate | None) -> str | None:
        if not _signature_holds(msg):
            return "bad_signature"
        if validate is None:
            return None
        try:
            valid = validate(peer_name(forwarder), bytes(msg.data))
        except Exception:  # noqa: BLE001 - the edge: counted and logged below
            # B1: a raising validator ends the host
            self.counters["handler_errors"] += 1
            log.exception("the validator of topic %s failed", msg.topicIDs[0])
            valid = False
        return None if valid else "invalid"

    def _deliver(self, peer: PeerId, msg: Any) -> None:
        listener = self.listeners.get(msg.topicIDs[0])
        if listener is None:
            return
        self.counters["gossip_delivered"] += 1
        try:
            listener[0](peer, bytes(msg.data))
        except Exception:  # noqa: BLE001 - the edge: counted and logged below
            self.counters["handler_errors"] += 1
            log.exception("the handler of topic %s failed", msg.topicIDs[0])

    # ------------------------------------------------------------ writing

    async def handle_sending_messages(self, peer_id: ID, stream: INetStream, queue: Any) -> None:
        """B5: write whatever is queued at once, from a queue with room for bursts."""
        if self.peer_queues.get(peer_id) is not queue:
            return
        bounded = BoundedRpcQueue(functools.partial(self._visible_to, peer_id))
        while (waiting := queue._queue.pop()) is not None:
            bounded.push(waiting)
        self.peer_queues[peer_id] = bounded
        if self.topic_ids:
            # a topic subscribed while the greeting was being written is in neither the greeting nor an announcement
            bounded.push(self.get_hello_packet())
        self.announce(peer_id, self.access.topics_of(peer_id))
        connection_ended: trio.Event = stream.swarm_conn.event_closed
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write_queued, peer_id, stream, bounded, nursery.cancel_scope)
            await connection_ended.wait()
            nursery.cancel_scope.cancel()
        if connection_ended.is_set() and self.peer_queues.get(peer_id) is bounded:
            # B18: the library looks whether the peer is connected, and it may be again, by another connection: then it
            # goes on with the streams of the old one, and what is gossiped next is lost
            self._handle_dead_peer(peer_id)

    async def _write_queued(
        self, peer_id: ID, stream: INetStream, queue: BoundedRpcQueue, scope: trio.CancelScope
    ) -> None:
        try:
            while (data := await queue.pop()) is not None:
                await stream.write(data)
        except Exception as error:  # noqa: BLE001 - the library raises many kinds when a stream breaks
            log.debug("writing gossip to %s failed: %r", peer_id, error)
            if self.peer_queues.get(peer_id) is queue:
                self._handle_dead_peer(peer_id)
        scope.cancel()

    def get_hello_packet(self) -> Any:
        """Greet with the topics that anybody may know of: the greeting is written past the queue."""
        hello = super().get_hello_packet()
        public = [item for item in hello.subscriptions if not is_private(item.topicid)]
        del hello.subscriptions[:]
        hello.subscriptions.extend(public)
        return hello

    def _visible_to(self, peer_id: ID, rpc: Any) -> Any | None:
        return visible_part(rpc, functools.partial(self.access.may_see, peer_id))

    def announce(self, peer_id: ID, topics: Sequence[str]) -> None:
        """Tell a peer of private topics that it proved to be a member of."""
        queue = self.peer_queues.get(peer_id)
        for topic in topics:
            if queue is not None and topic in self.topic_ids:
                queue.push(rpc_pb2.RPC(subscriptions=[rpc_pb2.RPC.SubOpts(subscribe=True, topicid=topic)]))

    def forget_subscribers(self, topic: str) -> None:
        """Forget who subscribed to a topic; whoever proves that it is a member says so again."""
        for peer in tuple(self.peer_topics.get(topic, ())):
            self._forget_subscription(peer, topic)

    async def write_msg(self, stream: INetStream, rpc_msg: Any) -> bool:
        """Queue what stock writes past the queue, where two writers could mix their bytes."""
        queue = self.peer_queues.get(stream.muxed_conn.peer_id)
        return queue is not None and queue.push(rpc_msg)

    def _handle_dead_peer(self, peer_id: ID) -> None:
        self._rates.pop(peer_id, None)
        self._records.pop(peer_id, None)
        heard_on = self._heard_on.get(peer_id)
        kept: list[str] = []
        if heard_on is not None and not heard_on.muxed_conn.is_closed:
            # B18: said on a connection that lives, and not said again
            kept = [topic for topic, peers in self.peer_topics.items() if peer_id in peers]
            kept = [topic for topic in kept if self.access.may_see(peer_id, topic)]
        try:
            super()._handle_dead_peer(peer_id)
            for topic in kept:
                self.handle_subscription(peer_id, rpc_pb2.RPC.SubOpts(subscribe=True, topicid=topic))
        except Exception:  # noqa: BLE001 - the edge: counted and logged below
            # B1: runs in service tasks, whose failure would end the host
            self.counters["gossip_errors"] += 1
            log.exception("removing %s from gossip failed", peer_id)


_BLAMED = frozenset({"malformed", "bad_signature"})
"""What no neighbour passes on that checks messages itself."""


def _signature_holds(msg: Any) -> bool:
    """B1: stock raises on a malformed key. Here the key is always the one in the author's peer id."""
    key = embedded_key(msg.from_id)
    if key is None or len(msg.signature) != 64:
        return False
    signed = rpc_pb2.Message(data=msg.data, topicIDs=msg.topicIDs, from_id=msg.from_id, seqno=msg.seqno)
    try:
        crypto_sign_open(msg.signature + _SIGNING_PREFIX + signed.SerializeToString(), key)
    except (CryptoError, ValueError, TypeError):
        return False
    return True


class Gossip:
    """Topics of one host: subscribe, publish, unsubscribe."""

    def __init__(
        self,
        host: Any,
        heartbeat_s: float,
        counters: Counters,
        blame: Callable[[PeerId], None] = lambda _peer: None,
        access: TopicAccess | None = None,
        *,
        router: type[HardenedGossipSub] = HardenedGossipSub,
        protocols: Sequence[TProtocol] = MESH_PROTOCOLS,
    ) -> None:
        """Build router and reader.

        Args:
            host: the host.
            heartbeat_s: how often the meshes are maintained.
            counters: where drops and refusals are counted.
            blame: called with a peer that broke the protocol.
            access: who may know of private topics.
            router: who decides whom a message is sent to.
            protocols: the versions that the router speaks, the best one first.
        """
        self.router = router(
            list(protocols),
            degree=6,
            degree_low=4,
            degree_high=12,
            # B5: by default two minutes, and adaptive mode slows it down further
            heartbeat_interval=heartbeat_s,
            adaptive_gossip_enabled=False,
            # B5: by default ten messages a second are let through, the own included; the rate limit here is per peer
            spam_protection_enabled=False,
            eclipse_protection_enabled=False,
            prune_back_off=10,
            unsubscribe_back_off=2,
        )
        self.router.counters = counters
        self.router.cache_rate = TokenBucket(limits.GOSSIP_CACHE_BYTES_PER_SECOND_MAX)
        self.pubsub = SafePubsub(host, self.router, counters, blame, TopicAccess() if access is None else access)

    @property
    def services(self) -> Sequence[Any]:
        """The services to run, in this order."""
        return (self.router, self.pubsub)

    def waiting(self) -> tuple[int, int]:
        """Return how many frames wait for all peers, and how many for the peer for whom most wait."""
        sizes = [len(queue) for queue in self.pubsub.peer_queues.values()]
        return sum(sizes), max(sizes, default=0)

    async def subscribe(self, topic: str, on_message: OnMessage, validate: Validate | None) -> None:
        """See `Network.subscribe`."""
        if topic in self.pubsub.listeners:
            raise LocalError(f"topic {topic!r} is subscribed already", hint="unsubscribe it first")
        if len(topic.encode()) > limits.GOSSIP_TOPIC_BYTES_MAX:
            raise LimitExceeded("GOSSIP_TOPIC_BYTES_MAX", "the topic's name is too long")
        if len(self.pubsub.listeners) >= limits.TOPICS_SUBSCRIBED_MAX:
            raise LimitExceeded("TOPICS_SUBSCRIBED_MAX", f"at most {limits.TOPICS_SUBSCRIBED_MAX} topics at once")
        self.pubsub.listeners[topic] = (on_message, validate)
        if is_private(topic):
            self.pubsub.forget_subscribers(topic)
        await self.pubsub.subscribe(topic)

    async def unsubscribe(self, topic: str) -> None:
        """See `Network.unsubscribe`."""
        if self.pubsub.listeners.pop(topic, None) is not None:
            await self.pubsub.unsubscribe(topic)
            if is_private(topic):
                self.pubsub.forget_subscribers(topic)

    async def publish(self, topic: str, data: bytes) -> None:
        """See `Network.publish`."""
        if len(data) > limits.GOSSIP_DATA_BYTES_MAX:
            raise LimitExceeded(
                "GOSSIP_DATA_BYTES_MAX", f"message of {len(data)} bytes; at most {limits.GOSSIP_DATA_BYTES_MAX} fit"
            )
        await self.pubsub.publish(topic, data)
