"""Finding agents, and being found.

Knows: what is declared here, what is known of others, and the hash table for what is not. Must not know: pools, tasks.
Source: the concepts page (discovery service: register, unregister, query with a trust threshold); `docs/protocol.md`,
discovery. A question is answered from what this node holds; the hash table is asked if that is nothing, or on request.
"""

from __future__ import annotations

import functools
import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager

import trio

from converge_p2p.core import limits
from converge_p2p.core.errors import Conflict, ConvergeError, LocalError, NotFound, StoreError
from converge_p2p.core.identity import Identity, fingerprint
from converge_p2p.core.model.agent_index import AgentIndex
from converge_p2p.core.model.capability import Capability
from converge_p2p.core.model.descriptor import AgentDescriptor
from converge_p2p.core.model.query import DiscoveryQuery
from converge_p2p.core.model.registry import IdentityRegistry
from converge_p2p.core.model.topic import Topic
from converge_p2p.core.types import AgentId, PeerId, PublicKey
from converge_p2p.net import Network, public_key_of
from converge_p2p.net.framing import TokenBucket
from converge_p2p.node.agent_news import AgentNews
from converge_p2p.node.agent_shelf import AgentShelf
from converge_p2p.node.declarations import KEPT, Declaration, Declarations
from converge_p2p.node.policy import TrustPolicy
from converge_p2p.node.records import capability_claim, claims_of, record_key, topic_claim
from converge_p2p.node.trust_history import TrustHistory
from converge_p2p.store.api import Store

_logger = logging.getLogger(__name__)

RENEW_S = 3600.0
"""The descriptor is signed anew at most this long after the last time; at random a quarter earlier."""
RETRY_S = 60.0
"""When the hash table is tried again."""
TABLE_DELAY_S = 30.0
"""The hash table is told at most this much later than everybody is by gossip, at random: a record costs tens of streams
at other nodes, so that several changes share one, and many nodes that start together do not all put at once."""
CLAIM_PAUSE_S = 1.2
"""Between two claims: a node takes ten of one peer in ten seconds."""
ASK_S = 10.0
"""How long the hash table is asked."""
FAREWELL_S = 2.0
"""How long the hash table has to take a tombstone."""
TRUSTED = 0.6
"""Who is trusted at least so much makes no room for strangers."""
_TABLE = "table"
_REGISTERED = "registered"
_RECORDS_AT_ONCE = 6


class DiscoveryService:
    """What one node knows of agents, and tells of itself.

    Attributes:
        trust: this node's opinion of others; queries with a threshold rest on it.
        history: moves that opinion after what became of tasks.
    """

    def __init__(
        self,
        identity: Identity,
        store: Store,
        counters: Counter[str],
        registry: IdentityRegistry,
        *,
        policy: TrustPolicy | None = None,
        now_ms: Callable[[], int] = lambda: int(time.time() * 1000),
    ) -> None:
        """Make it; `restore` and `open` bring it to life.

        Args:
            identity: whose node this is.
            store: keeps the own number, what was published for good, and what is known of others.
            counters: where drops and refusals are counted.
            registry: is told the keys of agents that were found.
            policy: how trust begins and moves, and the least of it in agents that are found.
            now_ms: Unix time, milliseconds.
        """
        chosen = TrustPolicy() if policy is None else policy
        self.trust = chosen.model()
        self.history = TrustHistory(self.trust, store, identity.public_key, chosen.learn)
        self._least_trust = chosen.discovery_threshold
        self._identity = identity
        self._counters = counters
        self._registry = registry
        self._now_ms = now_ms
        self._index = AgentIndex(self._protected)
        self._news = AgentNews(identity.id, self._index, counters, now_ms=now_ms, heard_own=self._heard_own)
        self._declarations = Declarations(identity, store, now_ms)
        self._shelf = AgentShelf(store, self._index)
        self._network: Network | None = None
        self._connected: dict[PeerId, AgentId] = {}
        self._company = trio.Event()
        self._changed = trio.Event()
        self._spoken = trio.Event()
        """Replaced, and the old one set, whenever the node spoke of itself."""
        self._spoken_version = 0
        self._own: AgentDescriptor | None = None
        self._for_table = trio.Event()
        self._pace = TokenBucket(1000 / limits.DESCRIPTOR_UPDATE_MS, burst=limits.DESCRIPTOR_UPDATES_BURST_MAX - 2)
        self._contests = TokenBucket(1 / 60, burst=4)
        self._scope = trio.CancelScope()

    # ------------------------------------------------------------ life

    async def restore(self) -> None:
        """Take up what the store remembers.

        Raises:
            StoreError: it cannot be read.
        """
        await trio.to_thread.run_sync(self._declarations.restore_now)
        await self.history.restore()
        count = await self._shelf.restore(self._now_ms())
        own = self._index.get(self._identity.id)
        if own is not None:
            self._declarations.heard(own.sequence)
        _logger.debug("%d agents are known from before", count)

    async def open(self, network: Network, nursery: trio.Nursery, send: Callable[[PeerId, bytes], None]) -> None:
        """Take part, until `close`. See `AgentNews.open`."""
        self._network = network
        network.when_moved = self.moved
        await self._news.open(network, nursery, send)
        if self._declarations.any:
            self._changed.set()
        nursery.start_soon(self._run)

    async def close(self) -> None:
        """Say that this agent is gone, if it was said to be here, and keep what is known of others."""
        self._scope.cancel()
        await self.history.save()
        if self._network is not None and self._own is not None and not self._own.left:
            try:
                farewell = await self._declarations.farewell()
            except StoreError as error:
                _logger.warning("nobody is told that this agent is gone: %s", error)
                return
            self._own = farewell
            await self._news.announce(farewell, to_peers=True)
            try:
                with trio.move_on_after(FAREWELL_S):
                    await self._put_record(farewell)
            except ConvergeError as error:
                _logger.debug("the hash table was not told that this agent is gone: %s", error)
        self._news.close()
        await self._shelf.save()

    async def _run(self) -> None:
        with self._scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._run_speaking)
                nursery.start_soon(self._run_table)
                nursery.start_soon(self._shelf.run)
                nursery.start_soon(self.history.run)

    # ------------------------------------------------------------ what the network brings

    def moved(self) -> None:
        """The addresses of this node have become others: say so, if anything is said at all."""
        self._changed.set()

    def peer_up(self, peer: PeerId) -> None:
        """A peer is linked."""
        self._connected[peer] = fingerprint(public_key_of(peer))
        self._company.set()
        self._news.peer_up(peer)

    def peer_down(self, peer: PeerId) -> None:
        """A peer is gone."""
        if self._connected.pop(peer, None) is not None and not self._connected:
            self._company = trio.Event()
        self._news.peer_down(peer)

    def frame(self, peer: PeerId, payload: bytes) -> None:
        """A message about agents came over a replication stream."""
        self._news.frame(peer, payload)

    def _protected(self, agent: AgentId) -> bool:
        return agent == self._identity.id or agent in self._connected.values() or self.trust.meets(agent, TRUSTED)

    def _heard_own(self, descriptor: AgentDescriptor) -> None:
        """The own key spoke elsewhere: before a loss of the store, or in a second node that has a copy of it."""
        if not self._declarations.heard(descriptor.sequence):
            return
        self._counters["descriptor_contested"] += 1
        if self._declarations.any and self._contests.try_take(1, trio.current_time()):
            self._changed.set()

    # ------------------------------------------------------------ speaking of oneself

    @property
    def own(self) -> AgentDescriptor | None:
        """What this node said of itself last, if it said anything since it was started."""
        return self._own

    def declare(self, by: str, declaration: Declaration) -> None:
        """Declare something for a part of this node, in place of what that part declared before. It is told soon.

        Raises:
            LocalError, LimitExceeded: it makes no descriptor, or one that is too large.
        """
        self._declarations.declare(by, declaration)
        self._changed.set()

    def withdraw(self, by: str) -> bool:
        """Take back what a part of this node declared; say whether there was something. It is told soon."""
        found = self._declarations.withdraw(by)
        if found:
            self._changed.set()
        return found

    async def register(
        self,
        capabilities: Iterable[Capability | str] = (),
        topics: Iterable[Topic | str] = (),
        name: str = "",
        *,
        keep: bool = False,
    ) -> AgentDescriptor:
        """Let this agent be found, until `unregister` or the end of the node. Replaces an earlier call's declaration.

        Args:
            capabilities: what it can do; text is a name.
            topics: what it is about; text is a namespace.
            name: for people.
            keep: register again after a restart.

        Returns:
            The descriptor, once this node's neighbours were told. What `declare` says stands there, too.

        Raises:
            LocalError, LimitExceeded: it makes no descriptor, or one that is too large.
            StoreError: the store cannot be written.
        """
        declaration = Declaration.of(name, topics, capabilities)
        self.declare(KEPT if keep else _REGISTERED, declaration)
        if keep:
            await trio.to_thread.run_sync(self._declarations.keep_now, declaration)
        await self._has_spoken()
        assert self._own is not None
        return self._own

    async def _has_spoken(self) -> None:
        """Wait until what is declared now was told."""
        version = self._declarations.version
        while self._spoken_version < version:
            await self._spoken.wait()

    async def unregister(self) -> bool:
        """Take back what was registered, for good; say whether there was something.

        What other parts of the node declare stays. If nothing does, a tombstone tells everybody, before this returns.
        """
        await trio.to_thread.run_sync(self._declarations.keep_now, None)
        found = [self.withdraw(by) for by in (KEPT, _REGISTERED)]
        if any(found):
            await self._has_spoken()
        return any(found)

    async def _run_speaking(self) -> None:
        assert self._network is not None
        while True:
            with trio.move_on_after(RENEW_S * random.uniform(0.75, 1.0)):  # spread, so that not all renew at once
                await self._changed.wait()
            wait_s = self._pace.take(1, trio.current_time())
            # what changes meanwhile goes along
            await trio.sleep(wait_s)
            self._changed = trio.Event()
            version = self._declarations.version
            if self._declarations.any or (self._own is not None and not self._own.left):
                descriptor = await self._declarations.next(self._network.addresses)
                # what was declared while the number was written stands in it
                version = self._declarations.version
                self._own = descriptor
                await self._news.announce(descriptor)
                self._for_table.set()
            self._spoken_version = version
            spoken, self._spoken = self._spoken, trio.Event()
            spoken.set()

    async def _run_table(self) -> None:
        """Keep the hash table up to date: slower than gossip, and for those that gossip never reached."""
        looked = False
        while True:
            await self._for_table.wait()
            # without a peer the record would stay here, and nobody else would see it for an hour
            await self._company.wait()
            await trio.sleep(TABLE_DELAY_S * random.random())
            self._for_table = trio.Event()
            descriptor = self._own
            assert descriptor is not None
            try:
                if not looked:
                    await self._look_for_own()
                    looked = True
                await self._put_record(descriptor)
                for key in claims_of(descriptor):
                    if self._for_table.is_set():
                        break
                    assert self._network is not None
                    await self._network.claim(key)
                    await trio.sleep(CLAIM_PAUSE_S)
            except LocalError as error:
                _logger.info("this node is found by gossip alone: %s", error)
                return
            except ConvergeError as error:
                self._counters["advertise_failed"] += 1
                _logger.info("the descriptor was not put into the hash table: %s", error)
                await trio.sleep(RETRY_S)
                self._for_table.set()

    async def _put_record(self, descriptor: AgentDescriptor) -> None:
        assert self._network is not None
        try:
            await self._network.put_record(record_key(descriptor.agent_id), descriptor.to_bytes())
        except Conflict:
            await self._look_for_own()

    async def _look_for_own(self) -> None:
        """Learn from the hash table what this key said last, in case that the store forgot it."""
        assert self._network is not None
        value = await self._network.get_record(record_key(self._identity.id))
        if value is not None:
            self._heard_own(AgentDescriptor.from_bytes(value))

    # ------------------------------------------------------------ finding others

    def find(self, query: DiscoveryQuery) -> list[AgentDescriptor]:
        """Answer a question from what is known here, at once. See `query`."""

        least = query.trust_threshold or self._least_trust

        def accept(descriptor: AgentDescriptor) -> bool:
            return self.trust.meets(descriptor.agent_id, least, query.trust_context)

        return self._index.find(query, self._now_ms(), accept if least > 0 else lambda _one: True)

    async def query(
        self, query: DiscoveryQuery, *, refresh: bool = False, timeout_s: float = ASK_S
    ) -> list[AgentDescriptor]:
        """Find agents. Their keys are known to this node afterwards, so that messages can be sent to them.

        Args:
            query: the question.
            refresh: ask the hash table even if somebody is known here. It is asked anyway if nobody is.
            timeout_s: how long it is asked.

        Returns:
            Genuine and timely descriptors, sorted by the cost of the first capability that is asked for. That an
            agent says it can do something proves nothing.
        """
        found = self.find(query)
        if refresh or not found:
            with trio.move_on_after(timeout_s):
                await self._ask_table(query)
            found = self.find(query)
        for descriptor in found:
            self._registry.register(descriptor.agent_id, descriptor.public_key)
        return found

    async def lookup(self, agent: AgentId, *, timeout_s: float = ASK_S) -> AgentDescriptor:
        """Return the newest descriptor of an agent that the hash table or anybody here knows of.

        Raises:
            NotFound: nothing that is genuine and timely, or the agent left.
            LocalError, NetworkError: nothing is known here, and the hash table cannot be asked.
        """
        held = self._index.get(agent)
        try:
            with trio.move_on_after(timeout_s):
                held = await self._ask_record(agent) or held
        except ConvergeError:
            if held is None:
                raise
        newest = self._index.get(agent) or held
        if newest is None or newest.left or newest.expires_ms <= self._now_ms():
            raise NotFound(f"agent {agent[:12]} advertises nothing that can be found from here")
        self._registry.register(newest.agent_id, newest.public_key)
        return newest

    def known(self, agent: AgentId) -> AgentDescriptor | None:
        """Return what is known here of an agent, or None; who left is not known."""
        held = self._index.get(agent)
        return None if held is None or held.left or held.expires_ms <= self._now_ms() else held

    def matching(self, prefix: str) -> list[AgentId]:
        """Return the ids of known agents that begin with some digits, sorted."""
        return sorted(each.agent_id for each in self._index if not each.left and each.agent_id.startswith(prefix))

    @property
    def size(self) -> int:
        """How many agents are held, at most `limits.DESCRIPTORS_HELD_MAX`, those that left among them."""
        return len(self._index)

    def watch(self) -> AbstractAsyncContextManager[trio.MemoryReceiveChannel[AgentDescriptor]]:
        """Give a channel of descriptors as they become known, tombstones among them. A slow reader misses some."""
        return self._news.watch()

    async def _ask_record(self, agent: AgentId) -> AgentDescriptor | None:
        if self._network is None:
            raise LocalError("the node is not running", hint="use it inside `async with Node(...)`")
        value = await self._network.get_record(record_key(agent))
        if value is None:
            return None
        # checked by `DescriptorRecords` before it was handed out
        descriptor = AgentDescriptor.from_bytes(value)
        self._news.put(descriptor, _TABLE)
        return descriptor

    async def _ask_table(self, query: DiscoveryQuery) -> None:
        keys = [capability_claim(need.name) for need in query.capabilities[:1]]
        keys = keys or [topic_claim(topic.namespace) for topic in query.topics[:1]]
        if not keys or self._network is None:
            return
        limiter = trio.CapacityLimiter(_RECORDS_AT_ONCE)

        async def ask(key: PublicKey) -> None:
            async with limiter:
                try:
                    await self._ask_record(fingerprint(key))
                except ConvergeError as error:
                    _logger.debug("a claimant was not found: %s", error)

        try:
            claimants = await self._network.claimants(keys[0], limits.TABLE_CLAIMS_ASKED_MAX)
        except ConvergeError as error:
            _logger.debug("the hash table cannot be asked for agents: %s", error)
            return
        async with trio.open_nursery() as nursery:
            for peer in claimants:
                nursery.start_soon(functools.partial(ask, public_key_of(peer)))
