"""The node: owns the nursery, the stores and the network, and drives a replica for each pool.

Knows: which parts there are and how they are wired. Must not know: the insides of any of them.
Source: `docs/architecture.md`. The constructor does no I/O; everything runs inside `async with Node(...)`.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import trio
from nacl.utils import random as random_bytes

from converge_p2p.core import limits
from converge_p2p.core.codec import encode
from converge_p2p.core.errors import (
    ConvergeError,
    LimitExceeded,
    LocalError,
    NetworkError,
    NotFound,
)
from converge_p2p.core.governance.models import Democratic, GovernanceModel
from converge_p2p.core.identity import Identity
from converge_p2p.core.model.capability import Capability
from converge_p2p.core.model.message import Message
from converge_p2p.core.model.pool import AdmissionKind, PoolPolicy, pool_id
from converge_p2p.core.model.task import TaskView
from converge_p2p.core.model.topic import Topic
from converge_p2p.core.replica import events as ev
from converge_p2p.core.replica.machine import Replica
from converge_p2p.core.types import AgentId, PeerId, PoolId, PublicKey
from converge_p2p.net import NetworkConfig, PeerInfo, open_network, peer_id_of
from converge_p2p.node.agents import Agents
from converge_p2p.node.config import NodeConfig, NodeStatus
from converge_p2p.node.directory import PoolAnnouncement
from converge_p2p.node.driver import PoolDriver
from converge_p2p.node.founding import find_key, founding_terms
from converge_p2p.node.handles import PoolHandle
from converge_p2p.node.known_peers import KnownPeers
from converge_p2p.node.mail import Mail, TopicHandle
from converge_p2p.node.switchboard import Switchboard
from converge_p2p.node.timers import Timers
from converge_p2p.node.writer import StoreWriter
from converge_p2p.runtime.agent import Agent
from converge_p2p.runtime.loop import AgentRuntime, RuntimeConfig
from converge_p2p.runtime.safety import SafetyPolicy
from converge_p2p.runtime.tools import ToolRegistry
from converge_p2p.runtime.workers import WorkerPool
from converge_p2p.store.api import NodeStore
from converge_p2p.store.keyfile import load_or_create_identity
from converge_p2p.store.memory import MemoryStore
from converge_p2p.store.sqlite import SqliteStore

_logger = logging.getLogger(__name__)

POOL_KEY = "pool/"
CATCH_UP_S = 3.0
STOP_S = 20.0
HAND_BACK_S = 5.0


class Node:
    """One libp2p host with its stores: the library's front door.

    Use it as `async with Node(...) as node:`. An error of a background part (a store that cannot write, say) ends the
    block with that error.
    """

    def __init__(
        self,
        *,
        home: str | Path | None = None,
        identity: Identity | None = None,
        listen: Sequence[str] = ("/ip4/0.0.0.0/tcp/0",),
        bootstrap: Sequence[str] = (),
        announce: Sequence[str] = (),
        store: NodeStore | None = None,
        config: NodeConfig | None = None,
    ) -> None:
        """Set a node up. No I/O happens here.

        Args:
            home: folder for key and database, made if it is missing. None keeps both in memory.
            identity: whose node this is; None takes the key file of `home`, or a new identity.
            listen: TCP multiaddrs. Empty: only dial.
            bootstrap: multiaddrs with `/p2p/…` of nodes to begin with. None of them has to be up.
            announce: addresses told to others in place of the interfaces' own.
            store: where to keep operations; None makes one in `home`, or in memory.
            config: settings that few need.

        Raises:
            LocalError: an identity that cannot sign.
        """
        if identity is not None and not identity.can_sign:
            raise LocalError("a node needs an identity that can sign", hint="load it with its private key")
        self._home = None if home is None else Path(home)
        self._given_identity = identity
        self._given_store = store
        self._config = NodeConfig() if config is None else config
        base = self._config.network or NetworkConfig(listen=())
        self._net_config = replace(
            base,
            listen=tuple(listen) or base.listen,
            bootstrap=tuple(bootstrap) or base.bootstrap,
            announce=tuple(announce) or base.announce,
        )
        self.counters: Counter[str] = Counter()
        self._pools: dict[PoolId, PoolHandle] = {}
        self._capabilities: tuple[str, ...] = ()
        self._opened: AbstractAsyncContextManager[None] | None = None
        self._started_at = 0.0

    # ------------------------------------------------------------ life

    async def __aenter__(self) -> Node:
        if self._opened is not None:
            raise LocalError("this node was started before", hint="make a new Node; the home may be the same")
        self._opened = self._open()
        await self._opened.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._opened is not None
        try:
            # the body's own error is not shown to the nursery, which would wrap it in a group
            await self._opened.__aexit__(None, None, None)
        except BaseExceptionGroup as group:
            known = _only_error(group)
            if known is None:
                raise
            raise known from group

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[None]:
        self._started_at = time.monotonic()
        self._identity = await trio.to_thread.run_sync(self._load_identity)
        self._store = await trio.to_thread.run_sync(self._open_store)
        self._known_peers = KnownPeers(self._store)
        self._agents = Agents(self)
        self._mail = Mail(self._identity, self._agents.deliver)
        self._timers = Timers()
        self._writer = StoreWriter(self._store)
        self._switchboard = Switchboard(self._mail, self._writer, self.counters)
        try:
            async with trio.open_nursery() as self._nursery:
                self._nursery.start_soon(self._writer.run)
                self._nursery.start_soon(self._timers.run)
                await self._restore_pools()
                known = await self._known_peers.read()
                config = replace(self._net_config, known=(*self._net_config.known, *known))
                async with open_network(config, seed=self._identity.seed, handler=self._switchboard) as self._network:
                    await self._mail.open(self._network)
                    await self._switchboard.open(self._network, self._nursery)
                    self._nursery.start_soon(self._known_peers.run, self._network)
                    yield
                    with trio.move_on_after(STOP_S, shield=True):
                        await self._stop()
                self._nursery.cancel_scope.cancel()
        finally:
            self._store.close()

    async def _stop(self) -> None:
        """Hand back what is held, tell the others, and write everything down."""
        async with trio.open_nursery() as nursery:
            for pool in self._pools.values():
                if pool.workers is not None:
                    nursery.start_soon(pool.workers.stop)
        with trio.move_on_after(HAND_BACK_S):
            await self._writer.flush()
        await self._known_peers.save(self._network)
        for pool in self._pools.values():
            self._switchboard.detach(pool.id)

    def _load_identity(self) -> Identity:
        if self._given_identity is not None:
            return self._given_identity
        return Identity.generate() if self._home is None else load_or_create_identity(self._home / "node.key")

    def _open_store(self) -> NodeStore:
        if self._given_store is not None:
            return self._given_store
        return MemoryStore() if self._home is None else SqliteStore(self._home / "node.sqlite")

    async def _restore_pools(self) -> None:
        keys = await trio.to_thread.run_sync(self._store.list, POOL_KEY)
        for key in keys:
            pool = PoolId(bytes.fromhex(key.removeprefix(POOL_KEY)))
            self._attach(pool, await trio.to_thread.run_sync(self._load, pool))

    def _load(self, pool: PoolId) -> tuple[bytes, ...]:
        return tuple(self._store.load(pool))

    def _attach(self, pool: PoolId, operations: tuple[bytes, ...] = ()) -> PoolHandle:
        replica = Replica(
            self._identity,
            pool,
            seed=int.from_bytes(random_bytes(8), "big"),
            digest_interval_ms=self._config.digest_interval_ms,
        )
        driver = PoolDriver(
            replica, writer=self._writer, timers=self._timers, wire=self._switchboard, notify=self._on_notice(pool)
        )
        handle = self._pools[pool] = PoolHandle(self, driver)
        if operations:
            driver.feed(ev.Restored(operations))
        self._switchboard.attach(driver)
        return handle

    def _on_notice(self, pool: PoolId) -> Any:
        def notify(notice: ev.Notice) -> None:
            handle = self._pools.get(pool)
            if handle is not None:
                handle.on_notice(notice)
            if isinstance(notice, ev.PoolReady):
                self._switchboard.announce(pool)
            elif isinstance(notice, ev.ForkDetected):
                _logger.warning("author %s signed two operations with number %d", notice.author.hex(), notice.seq)

        return notify

    # ------------------------------------------------------------ reading

    @property
    def identity(self) -> Identity:
        """Whose node this is."""
        return self._identity

    @property
    def id(self) -> AgentId:
        """Agent id."""
        return self._identity.id

    @property
    def public_key(self) -> PublicKey:
        """Public key."""
        return self._identity.public_key

    @property
    def peer_id(self) -> PeerId:
        """Name on the network."""
        return peer_id_of(self._identity.public_key)

    @property
    def addresses(self) -> tuple[str, ...]:
        """Multiaddrs that other nodes can use for `bootstrap`."""
        return self._network.addresses

    @property
    def pools(self) -> dict[PoolId, PoolHandle]:
        """The pools this node takes part in."""
        return self._pools

    def known_pools(self) -> list[PoolAnnouncement]:
        """The pools this node takes part in or has heard of."""
        return self._switchboard.directory.all()

    def peers(self) -> tuple[PeerInfo, ...]:
        """Connected peers."""
        return self._network.peers()

    def connected_keys(self) -> frozenset[PublicKey]:
        """Public keys of the peers that replicate with this node."""
        return self._switchboard.connected

    def status(self) -> NodeStatus:
        """The node at a glance."""
        counters = Counter(self.counters) + Counter(self._network.counters) + Counter(self._mail.counters)
        for pool in self._pools.values():
            counters.update(pool.counters)
        counters["commits"] = self._writer.commits
        return NodeStatus(
            self.id,
            self.peer_id,
            self.addresses,
            time.monotonic() - self._started_at,
            len(self.peers()),
            len(self._pools),
            dict(counters),
        )

    @asynccontextmanager
    async def watch_pools(self) -> AsyncIterator[trio.MemoryReceiveChannel[PoolAnnouncement]]:
        """Give a channel of announced pools, the known ones first."""
        async with self._switchboard.watch_pools() as channel:
            yield channel

    # ------------------------------------------------------------ peers, topics, messages

    async def connect(self, address: str) -> PeerId:
        """Connect to a peer.

        Raises:
            NetworkError: it cannot be reached, or is another than the address says.
        """
        return await self._network.connect(address)

    async def join(self, topic: Topic | str) -> TopicHandle:
        """Take part in a public topic; text is a topic's namespace.

        Raises:
            LimitExceeded, LocalError: too many topics, or text that is no namespace.
        """
        return await self._mail.join(Topic(topic) if isinstance(topic, str) else topic)

    async def send(self, message: Message) -> Message:
        """Sign and send a message. See `Mail.send`."""
        return await self._mail.send(message)

    async def advertise(self, capabilities: Sequence[str | Capability]) -> None:
        """Declare what this node can do: in every pool it is a member of, and in the network's hash table."""
        skills = [Capability(item) if isinstance(item, str) else item for item in capabilities]
        self._capabilities = tuple(sorted({skill.name for skill in skills}))
        for pool in list(self._pools.values()):
            if pool.ready:
                await self._become_member(pool, self._capabilities)
        self._switchboard.advertise(self._identity, skills)

    # ------------------------------------------------------------ pools

    async def create_pool(
        self,
        name: str,
        *,
        governance: GovernanceModel | None = None,
        electors: Sequence[str] = (),
        topics: Sequence[Topic | TopicHandle] = (),
        task_types: Sequence[str] = (),
        admission: AdmissionKind = AdmissionKind.OPEN,
        whitelist: Sequence[str] = (),
        policy: PoolPolicy | None = None,
    ) -> PoolHandle:
        """Found a pool, and wait until its founding is durable.

        Args:
            name: for people.
            governance: who decides; None is `Democratic()`.
            electors: agent ids or public keys (hexadecimal) that vote; empty: this node alone. For a dictatorial pool
                at most one, its leader.
            topics: what it is about.
            task_types: objectives it is for; empty: any.
            admission: who may join.
            whitelist: agent ids or public keys that may join, for `AdmissionKind.WHITELIST`.
            policy: timers and defaults.

        Raises:
            NotFound: an agent id whose key is not known here.
            LocalError: terms that contradict each other.
        """
        spec = founding_terms(
            name,
            Democratic() if governance is None else governance,
            electors=[self._key_of(text) for text in electors] or [self.public_key],
            whitelist=[self._key_of(text) for text in whitelist],
            topics=[item.topic if isinstance(item, TopicHandle) else item for item in topics],
            task_types=task_types,
            admission=admission,
            policy=policy,
        )
        self._check_room()
        pool = self._attach(pool_id(self.public_key, spec))
        try:
            await pool.driver.carry_out(ev.Found(spec))
        except ConvergeError:
            self._forget(pool.id)
            raise
        await self._remember_pool(pool.id)
        if self._capabilities:
            await self._become_member(pool, self._capabilities)
        return pool

    async def join_pool(
        self, pool: PoolId, *, capabilities: Sequence[str] = (), proof: bytes = b"", timeout_s: float | None = None
    ) -> PoolHandle:
        """Take part in a pool and become a member.

        Waits until a member is connected that knows the pool, then until what it holds has come over.

        Args:
            pool: its id, 32 bytes.
            capabilities: what this node can do there, beside what it advertises.
            proof: what the pool's admission asks for.
            timeout_s: how long to wait; None waits for ever.

        Raises:
            NetworkError: no member was found in time; the node goes on trying to reach one in the background.
            NotAuthorised: the pool does not admit this node.
        """
        handle = self._pools.get(pool)
        if handle is None:
            self._check_room()
            handle = self._attach(pool)
            await self._remember_pool(pool)
        known = self._switchboard.directory.get(pool)
        if known is not None and not handle.ready:
            handle.driver.feed(ev.Received((known.genesis,)))
        with trio.move_on_after(float("inf") if timeout_s is None else timeout_s):
            await handle.wait_ready()
        if not handle.ready:
            raise NetworkError(
                f"no connected peer knows pool {pool.hex()[:12]}",
                hint="check the id and the bootstrap address; this node goes on asking",
            )
        names = tuple(sorted({*capabilities, *self._capabilities}))
        await self._become_member(handle, names, proof)
        return handle

    async def _become_member(self, pool: PoolHandle, names: tuple[str, ...], proof: bytes = b"") -> None:
        # whoever used this key before, on another disk, must be heard of before the first signature
        with trio.move_on_after(CATCH_UP_S):
            await pool.driver.wait_caught_up()
        await pool.driver.carry_out(ev.Join(names, proof))

    async def leave_pool(self, pool: PoolId) -> None:
        """Leave a pool: stop working in it, say so to the others, and take no more part.

        What this node wrote is kept, so that it can come back.

        Raises:
            NotFound: this node is not in the pool.
        """
        handle = self._pools.get(pool)
        if handle is None:
            raise NotFound(f"this node is not in pool {pool.hex()[:12]}")
        if handle.workers is not None:
            await handle.workers.stop()
        if handle.ready:
            await handle.driver.carry_out(ev.Leave())
        self._forget(pool)
        await trio.to_thread.run_sync(self._store.delete, POOL_KEY + pool.hex())

    def _check_room(self) -> None:
        if len(self._pools) >= limits.POOLS_PER_NODE_MAX:
            raise LimitExceeded("POOLS_PER_NODE_MAX", "this node takes part in too many pools")

    def _forget(self, pool: PoolId) -> None:
        self._pools.pop(pool, None)
        self._switchboard.detach(pool)

    async def _remember_pool(self, pool: PoolId) -> None:
        await trio.to_thread.run_sync(self._store.put, POOL_KEY + pool.hex(), encode([1]))

    def _key_of(self, text: str) -> PublicKey:
        """The public key that an agent id or the hexadecimal of a key names."""
        connected = [peer.public_key for peer in self.peers()]
        return find_key(text, [self.public_key, *connected], self._mail.registry)

    # ------------------------------------------------------------ agents and workers

    async def host(
        self,
        agent: Agent,
        *,
        tools: ToolRegistry | None = None,
        safety: SafetyPolicy | None = None,
        config: RuntimeConfig | None = None,
    ) -> AgentRuntime:
        """Run an agent in this node, under this node's identity.

        Args:
            agent: what decides.
            tools: what it may invoke.
            safety: what it may do.
            config: times and sizes of its loop.

        Raises:
            LocalError: the agent has an identity of its own.
            LimitExceeded: too many agents.
        """
        runtime = self._agents.make_runtime(agent, self._store, tools=tools, safety=safety, config=config)
        for topic in agent.topics:
            await self.join(topic)
        await self._nursery.start(runtime.run)
        return runtime

    def start_workers(self, workers: WorkerPool) -> None:
        """Run the workers of a pool in this node's nursery."""
        self._nursery.start_soon(workers.run)

    def on_task_changed(self, _view: TaskView) -> None:
        """A task changed: agents may want to look."""
        self._agents.notify()


def _only_error(group: BaseExceptionGroup[Any]) -> ConvergeError | None:
    """The error inside a group of one, or None."""
    while len(group.exceptions) == 1:
        inner = group.exceptions[0]
        if isinstance(inner, ConvergeError):
            return inner
        if not isinstance(inner, BaseExceptionGroup):
            return None
        group = inner
    return None
