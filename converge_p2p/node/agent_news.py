"""News of agents: taken from gossip and from peers, checked, kept, and compared until nobody lacks any.

Knows: the index, peers and what each may cost. Must not know: what this node says of itself, or who asks for what.
Source: `docs/protocol.md`, discovery. Gossip is quick and may lose something; so neighbours compare what they hold when
they meet, and one at random now and then.

Cheap tests come first: the peer's share, then whether it is news at all, then how often its agent spoke lately, and
only then the signature. A wrong signature is the peer's fault, since nobody passes on what it did not verify.
"""

from __future__ import annotations

import logging
import random
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

import trio

from converge_p2p.core import limits
from converge_p2p.core.errors import CodecError, ConvergeError, LimitExceeded, RemoteViolation
from converge_p2p.core.model import agent_exchange as exchange
from converge_p2p.core.model.agent_index import AgentIndex, Taken
from converge_p2p.core.model.descriptor import AgentDescriptor
from converge_p2p.core.types import AgentId, PeerId
from converge_p2p.net import Network, public_key_of
from converge_p2p.net.framing import TokenBucket
from converge_p2p.node.fanout import Fanout

_logger = logging.getLogger(__name__)

TOPIC = "converge/agents/1"
ROUND_S = 10.0
"""How often a peer is asked to compare, on average, while gossip misses nothing."""
ROUND_QUICK_S = 1.0
"""How soon after a comparison brought what gossip had not; then the pause doubles again. A node that no neighbour has
room for in its gossip mesh hears little by gossip, and learns it so."""
NEXT_ROUND_S = 2.0
"""After a round that did not bring everything, the next one begins this much later."""
GONE = "gone"
"""Stands for all peers that are gone, among the sources of the index."""


class _Share:
    """What one peer may bring and ask. It outlives the connection, so that connecting again renews nothing."""

    def __init__(self) -> None:
        self.descriptors = TokenBucket(
            limits.DESCRIPTORS_PER_PEER_PER_SECOND_MAX, burst=limits.DESCRIPTORS_PER_PEER_BURST_MAX
        )
        self.rounds = TokenBucket(limits.AGENT_ROUNDS_PER_PEER_PER_SECOND_MAX, burst=limits.AGENT_ROUNDS_BURST_MAX)
        self.asked = False
        """Digests were sent, and holdings are awaited."""
        self.may_want = 0
        """How many descriptors it may ask for, of those that were listed to it."""
        self.again = False
        """Another round begins soon."""


class AgentNews:
    """Keeps an index up to date."""

    def __init__(
        self,
        own: AgentId,
        index: AgentIndex,
        counters: Counter[str],
        *,
        now_ms: Callable[[], int],
        heard_own: Callable[[AgentDescriptor], None],
    ) -> None:
        """Make it; `open` connects it to a network.

        Args:
            own: this node's agent id.
            index: what is known.
            counters: where drops and refusals are counted.
            now_ms: Unix time, milliseconds.
            heard_own: called with a genuine descriptor of this node that came from outside.
        """
        self._own = own
        self._index = index
        self._counters = counters
        self._now_ms = now_ms
        self._heard_own = heard_own
        self._random = random.Random()
        self._network: Network | None = None
        self._nursery: trio.Nursery | None = None
        self._send: Callable[[PeerId, bytes], None] = lambda _peer, _payload: None
        self._up: dict[PeerId, None] = {}
        self._shares: OrderedDict[PeerId, _Share] = OrderedDict()
        self._news: Fanout[AgentDescriptor] = Fanout()
        self._missed = False
        """Whether a comparison brought what gossip had not, lately."""

    async def open(self, network: Network, nursery: trio.Nursery, send: Callable[[PeerId, bytes], None]) -> None:
        """Begin to listen, to compare, and to forget what expired.

        Args:
            network: carries announcements.
            nursery: runs the tasks.
            send: puts a message about agents on the replication stream to a peer.
        """
        self._network, self._nursery, self._send = network, nursery, send
        await network.subscribe(TOPIC, lambda _peer, _data: None, self._validate)
        nursery.start_soon(self._run_rounds)
        for peer in list(self._up):
            self._begin_round(peer)

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[trio.MemoryReceiveChannel[AgentDescriptor]]:
        """Give a channel of descriptors as they become known, tombstones among them. A slow reader misses some."""
        async with self._news.open() as channel:
            yield channel

    def close(self) -> None:
        """Let nobody wait for news."""
        self._news.close()

    # ------------------------------------------------------------ taking

    def take(self, data: bytes, peer: PeerId) -> AgentDescriptor | None:
        """Take what a peer brought; return it if it is news.

        Args:
            data: a descriptor's envelope.
            peer: who brought it, not always its author.
        """
        if not self._share(peer).descriptors.try_take(1, trio.current_time()):
            self._counters["agents_rate_limited"] += 1
            return None
        now_ms = self._now_ms()
        try:
            descriptor = AgentDescriptor.from_bytes(data)
            agent, rank = descriptor.agent_id, descriptor.rank
            if self._index.compare(agent, rank) >= 0:
                return None
            if agent == self._own and descriptor.verify():
                # whatever the time: what this key said must be known, also by a node whose clock was set back
                self._heard_own(descriptor)
            descriptor.check_times(now_ms)
            if not self._index.may_update(agent, now_ms):
                self._counters["agents_too_often"] += 1
                return None
            descriptor.check(now_ms)
        except CodecError as error:
            self._refuse(peer, "agents_malformed", error)
            return None
        except RemoteViolation as error:
            if error.reason == "descriptor_signature":
                self._refuse(peer, "agents_bad_signature", error)
            else:
                # a clock may be wrong, here or there
                self._counters["agents_untimely"] += 1
            return None
        return descriptor if self.put(descriptor, peer).is_news else None

    def put(self, descriptor: AgentDescriptor, source: str) -> Taken:
        """Keep a descriptor that was checked, and tell who watches."""
        taken = self._index.put(descriptor, source, self._now_ms())
        if taken is Taken.NO_ROOM:
            self._counters["agents_no_room"] += 1
        if taken.is_news:
            self._counters["agents_heard"] += 1
            self._news.send(descriptor)
        return taken

    def _validate(self, peer: PeerId, data: bytes) -> bool:
        """Whether an announcement is passed on: only what is news here, so that each goes round once."""
        return self.take(data, peer) is not None

    def _refuse(self, peer: PeerId, counter: str, error: ConvergeError) -> None:
        self._counters[counter] += 1
        _logger.debug("descriptor from %s: %s", peer, error)
        if self._network is not None:
            self._network.blame(peer)

    # ------------------------------------------------------------ telling

    async def announce(self, descriptor: AgentDescriptor, *, to_peers: bool = False) -> None:
        """Tell everybody of this node's own descriptor.

        Args:
            descriptor: signed.
            to_peers: over the replication streams as well, which are emptied before the network closes.
        """
        self.put(descriptor, self._own)
        data = descriptor.to_bytes()
        if to_peers:
            for peer in list(self._up):
                self._tell(peer, exchange.Descriptors((data,)))
        await self._gossip(data)

    async def _gossip(self, data: bytes) -> None:
        if self._network is None:
            return
        try:
            await self._network.publish(TOPIC, data)
        except ConvergeError as error:
            # what gossip does not carry comes with the next comparison
            self._counters["gossip_failed"] += 1
            _logger.debug("an announcement was not gossiped: %s", error)

    def _tell(self, peer: PeerId, message: exchange.AgentMessage) -> None:
        self._send(peer, exchange.encode_agent_message(message))

    # ------------------------------------------------------------ comparing

    def peer_up(self, peer: PeerId) -> None:
        """A peer is linked. The one of the two with the greater name begins to compare."""
        self._up[peer] = None
        if self._network is not None:
            self._begin_round(peer)

    def peer_down(self, peer: PeerId) -> None:
        """A peer is gone; what it brought stays as long as nobody needs the room."""
        self._up.pop(peer, None)
        self._index.source_gone(peer, GONE)

    def frame(self, peer: PeerId, payload: bytes) -> None:
        """A message about agents came."""
        try:
            message = exchange.decode_agent_message(payload)
        except (CodecError, LimitExceeded) as error:
            self._refuse(peer, "agents_malformed", error)
            return
        share = self._share(peer)
        match message:
            case exchange.Digests():
                self._answer_digests(peer, share, message)
            case exchange.Holdings():
                self._answer_holdings(peer, share, message)
            case exchange.Wants():
                allowed, share.may_want = share.may_want, 0
                wanted = exchange.Wants(message.agents[:allowed])
                self._tell_all(peer, exchange.wanted_from(self._index, wanted, self._now_ms()))
            case exchange.Descriptors():
                self._take_all(peer, message)

    def _answer_digests(self, peer: PeerId, share: _Share, message: exchange.Digests) -> None:
        if not share.rounds.try_take(1, trio.current_time()):
            self._counters["agent_rounds_refused"] += 1
            return
        start = self._random.randrange(limits.AGENT_BUCKETS)
        holdings = exchange.holdings_against(self._index, message, start)
        if holdings is not None:
            share.may_want = limits.DESCRIPTORS_PER_ROUND_MAX
            self._tell(peer, holdings)

    def _answer_holdings(self, peer: PeerId, share: _Share, message: exchange.Holdings) -> None:
        if not share.asked:
            self._counters["agent_rounds_refused"] += 1
            return
        share.asked = False
        self._counters["agent_rounds"] += 1
        send, wants = exchange.compare(self._index, message, self._now_ms())
        self._tell_all(peer, send)
        if wants.agents:
            self._tell(peer, wants)
        if len(message.buckets) >= limits.AGENT_BUCKETS_PER_ANSWER_MAX and (send or wants.agents):
            self._begin_soon(peer, share)

    def _take_all(self, peer: PeerId, message: exchange.Descriptors) -> None:
        for data in message.envelopes:
            descriptor = self.take(data, peer)
            if descriptor is None or self._nursery is None:
                continue
            if descriptor.public_key == public_key_of(peer):
                # it has just met the network, or leaves it: nobody else may have heard of it
                self._nursery.start_soon(self._gossip, data)
            else:
                self._missed = True

    def _tell_all(self, peer: PeerId, descriptors: Iterable[AgentDescriptor]) -> None:
        for message in exchange.in_frames(descriptors):
            self._tell(peer, message)

    def _begin_round(self, peer: PeerId, *, either: bool = False) -> None:
        assert self._network is not None
        if peer in self._up and (either or self._network.peer_id > peer):
            self._share(peer).asked = True
            self._tell(peer, exchange.digests_of(self._index))

    def _begin_soon(self, peer: PeerId, share: _Share) -> None:
        async def begin() -> None:
            await trio.sleep(NEXT_ROUND_S)
            share.again = False
            self._begin_round(peer, either=True)

        if not share.again and self._nursery is not None:
            share.again = True
            self._nursery.start_soon(begin)

    async def _run_rounds(self) -> None:
        pause = ROUND_QUICK_S
        while True:
            await trio.sleep(pause * (0.5 + self._random.random()))
            pause = ROUND_QUICK_S if self._missed else min(ROUND_S, 2 * pause)
            self._missed = False
            self._index.expire(self._now_ms())
            if self._up:
                self._begin_round(self._random.choice(list(self._up)), either=True)

    def _share(self, peer: PeerId) -> _Share:
        share = self._shares.get(peer)
        if share is None:
            share = self._shares[peer] = _Share()
            if len(self._shares) > limits.KNOWN_PEERS_MAX:
                self._shares.popitem(last=False)
        self._shares.move_to_end(peer)
        return share
