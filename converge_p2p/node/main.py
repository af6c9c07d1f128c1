"""The node: owns the nursery, the stores and the network, and drives a replica for each pool.

Knows: which parts there are and how they are wired. Must not know: the insides of any of them.
Source: `docs/architecture.md`. The constructor does no I/O; everything runs inside `async with Node(...)`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import trio

from converge_p2p.core.errors import LocalError
from converge_p2p.core.governance.custom import GovernanceModel
from converge_p2p.core.governance.models import Democratic
from converge_p2p.core.identity import Identity, fingerprint
from converge_p2p.core.model.capability import Capability
from converge_p2p.core.model.delivery import DeliveryReceipt
from converge_p2p.core.model.descriptor import AgentDescriptor
from converge_p2p.core.model.message import Message
from converge_p2p.core.model.pool import AdmissionKind, PoolPolicy
from converge_p2p.core.model.task import Task
from converge_p2p.core.model.topic import Topic
from converge_p2p.core.model.topic_key import TopicKey
from converge_p2p.core.oplog.succession import RecoverBody, SucceedBody
from converge_p2p.core.types import AgentId, PeerId, PoolId, PublicKey
from converge_p2p.net import PeerInfo, open_network, peer_id_of, public_key_of
from converge_p2p.node.admitting import admission_proof
from converge_p2p.node.agents import AgentParts, Agents, HostedAgent
from converge_p2p.node.bids import Bids
from converge_p2p.node.blobs import Blobs
from converge_p2p.node.config import NodeConfig, NodeStatus
from converge_p2p.node.declarations import Declaration
from converge_p2p.node.directory import PoolAnnouncement
from converge_p2p.node.discovery import DiscoveryService
from converge_p2p.node.faults import known_error_alone
from converge_p2p.node.founding import find_key, founding_terms
from converge_p2p.node.gauges import NodeParts
from converge_p2p.node.handles import PoolHandle
from converge_p2p.node.home_pool import HomePool, announced_in
from converge_p2p.node.invitations import Invitations
from converge_p2p.node.joins import Joins
from converge_p2p.node.known_peers import KnownPeers
from converge_p2p.node.links import Links
from converge_p2p.node.mail import DEADLINE_S, Mail
from converge_p2p.node.observation import Observation
from converge_p2p.node.opening import blob_folder, network_config, open_files
from converge_p2p.node.pools import Pools
from converge_p2p.node.replay_journal import ReplayJournal
from converge_p2p.node.retention import Keeper
from converge_p2p.node.room import StoreRoom
from converge_p2p.node.switchboard import REDEEM, Switchboard
from converge_p2p.node.task_handles import TaskHandle
from converge_p2p.node.timers import Timers
from converge_p2p.node.topics import HasTopic, TopicHandle
from converge_p2p.node.writer import StoreWriter
from converge_p2p.runtime.agent import Agent
from converge_p2p.runtime.loop import AgentRuntime, RuntimeConfig
from converge_p2p.runtime.safety import SafetyPolicy
from converge_p2p.runtime.tools import ToolRegistry
from converge_p2p.store.api import NodeStore

STOP_S = 20.0
HAND_BACK_S = 8.0
FLUSH_S = 5.0


class Node:
    """One libp2p host with its stores: the library's front door.

    Use it as `async with Node(...) as node:`. An error of a background part (a store that cannot write, say) ends the
    block with that error.

    Attributes:
        discovery: finding agents, and being found.
        invitations, joins: inviting others and following invitations; asking to be let into pools.
        hosting: the agents of this node, and what they are told; see `host`.
        links: its peers, for people who look after it.
        bids, blobs: this node's sealed bids; contents too large for a task.
        policy, observation: what this node lets happen; its metrics, traces, events and health.
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
        restored: bool = False,
        config: NodeConfig | None = None,
    ) -> None:
        """Set a node up. No I/O happens here.

        Args:
            home: folder for key and database, made if it is missing. None keeps both in memory. One node at a time.
            identity: whose node this is; None takes the key file of `home`, or a new identity.
            listen: TCP multiaddrs. Empty: only dial.
            bootstrap: multiaddrs with `/p2p/…` of nodes to begin with. None of them has to be up.
            announce: addresses told to others in place of the interfaces' own.
            store: where to keep operations; None makes one in `home`, or in memory. One that is given stays open.
            restored: the home or store is an old copy that was put back, file of its age included (a store that was put
                back alone is found to be old). Nothing is signed in a pool before its electors were heard.
            config: settings that few need.

        Raises `LocalError` for an identity that cannot sign.
        """
        if identity is not None and not identity.can_sign:
            raise LocalError("a node needs an identity that can sign", hint="load it with its private key")
        self._home = None if home is None else Path(home)
        self._given_identity = identity
        self._given_store = store
        self._restored = restored
        self._config = NodeConfig() if config is None else config
        self.policy = self._config.policy
        self._net_config = network_config(self._config, listen, bootstrap, announce)
        self.observation = Observation(self._config.metrics, self._config.tracer)
        self.counters: Counter[str] = Counter()
        self._identity: Identity | None = None
        self._opened: AbstractAsyncContextManager[None] | None = None
        self._started_at = 0.0

    # ------------------------------------------------------------ life

    async def __aenter__(self) -> Node:
        if self._opened is not None:
            raise LocalError("this node was started before", hint="make a new Node; the home may be the same")
        self._opened = self._open()
        with known_error_alone():
            await self._opened.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._opened is not None
        with known_error_alone():
            # the body's own error is not shown to the nursery, which would wrap it in a group
            await self._opened.__aexit__(None, None, None)

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[None]:
        self._started_at = time.monotonic()
        async with AsyncExitStack() as stack:
            given = self._given_identity, self._given_store
            opened = await open_files(stack, self._home, *given, restored=self._restored)
            self._identity, self._store, self._age = opened
            self._known_peers = KnownPeers(self._store)
            self.hosting = Agents(self, self._store)
            self.bids = Bids(self.identity, self._store)
            self.blobs = Blobs(self.identity, blob_folder(self._home), self._config.blob_bytes_max, self.counters)
            self._home_pool = HomePool(self)
            journal, tracer = ReplayJournal(self._store), self.observation.tracer
            self._mail = Mail(self.identity, self._deliver, journal, self.hosting, tracer)
            timers, self._writer = Timers(), StoreWriter(self._store, self.observation.metrics)
            room = StoreRoom(self._store, self._writer, self._config.store_bytes_max)
            self.discovery = DiscoveryService(
                self.identity, self._store, self.counters, self._mail.registry, policy=self.policy.trust
            )
            self._switchboard = Switchboard(self._mail, self._writer, self.discovery, self.counters)
            self._pools = Pools(
                self, store=self._store, writer=self._writer, timers=timers, switchboard=self._switchboard,
                age=self._age, digest_interval_ms=self._config.digest_interval_ms, room=room,
            )  # fmt: skip
            keeper = Keeper(
                self._store, self._pools, self.blobs, self._config.retention,
                counters=self.counters, clock_jumped=self.observation.clock_jumped,
            )  # fmt: skip
            self.invitations = Invitations(self, self._store, lambda: self._network, self._net_config.network_key)
            self.links = Links(self, self._store, lambda: self._network)
            self.joins = Joins(self, self._store, self._pools, lambda: self._network)
            self._switchboard.tell = self.observation.tell
            self._switchboard.visitors = {REDEEM: self.invitations.redeem, **self.joins.visitors}
            async with trio.open_nursery() as self._nursery:
                self._nursery.start_soon(self._writer.run)
                self._nursery.start_soon(timers.run)
                self._nursery.start_soon(self._age.run)
                self._nursery.start_soon(room.run)
                self._nursery.start_soon(keeper.run)
                await self.bids.restore()
                await self._pools.restore()
                await self.discovery.restore()
                await self.joins.read()
                await self._mail.start(self._nursery, trusted=not self._age.restored)
                config = replace(self._net_config, known=self._net_config.known + await self._known_peers.read())
                async with open_network(config, seed=self.identity.seed, handler=self._switchboard) as self._network:
                    # first: who is kept out may be at the door
                    await self.links.restore()
                    await self.blobs.open(self._network)
                    await self._mail.open(self._network)
                    await self._switchboard.open(self._network, self._nursery)
                    await self.joins.restore()
                    self._nursery.start_soon(self._known_peers.run, self._network)
                    self.observation.started(self.id, self._parts(), self.spawn)
                    yield
                    with trio.move_on_after(STOP_S, shield=True):
                        await self._stop()
                self._nursery.cancel_scope.cancel()

    async def _stop(self) -> None:
        """Stop claiming, hand back claims, write everything down, tell the peers. Each step has its own time."""
        with trio.move_on_after(HAND_BACK_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.hosting.stop)
                nursery.start_soon(self._pools.stop_working)
        with trio.move_on_after(FLUSH_S):
            await self._mail.settled()
            await self._writer.flush()
            await trio.to_thread.run_sync(self._age.grow_now)
            await self.blobs.close()
        await self.discovery.close()
        await self._known_peers.save(self._network)
        self._pools.close()

    def _parts(self) -> NodeParts:
        return NodeParts(
            self.counters, self.hosting, self._mail, self._network, self._writer, self._switchboard, self.discovery,
            self._pools, self._store, self.blobs, self._home, self._started_at,
        )  # fmt: skip

    def spawn(self, run: Callable[..., Awaitable[None]], *args: object) -> None:
        """Run something in the background for as long as the node runs. For the node's own parts."""
        self._nursery.start_soon(run, *args)

    @property
    def identity(self) -> Identity:
        """Whose node this is.

        Raises `LocalError` before the node was started, since its key may be in its home.
        """
        if self._identity is None:
            raise LocalError("the node is not running", hint="use it inside `async with Node(...)`")
        return self._identity

    @property
    def id(self) -> AgentId:
        """Agent id."""
        return self.identity.id

    @property
    def public_key(self) -> PublicKey:
        """Its public key."""
        return self.identity.public_key

    @property
    def peer_id(self) -> PeerId:
        """Name on the network."""
        return peer_id_of(self.identity.public_key)

    @property
    def addresses(self) -> tuple[str, ...]:
        """Multiaddrs that other nodes can use for `bootstrap`."""
        return self._network.addresses

    @property
    def pools(self) -> dict[PoolId, PoolHandle]:
        """The pools this node takes part in; a copy."""
        return self._pools.all()

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
        up_s, counters = time.monotonic() - self._started_at, dict(self.observation.counters())
        sizes = len(self.peers()), len(self._pools.all())
        return NodeStatus(self.id, self.peer_id, self.addresses, up_s, *sizes, counters, self._network.reachability)

    def watch_pools(self) -> AbstractAsyncContextManager[trio.MemoryReceiveChannel[PoolAnnouncement]]:
        """Give a channel of announced pools, the known ones first."""
        return self._switchboard.watch_pools()

    # ------------------------------------------------------------ peers, topics, messages

    async def connect(self, address: str) -> PeerId:
        """Connect to a peer, whose agent can then be written to.

        Raises `NetworkError` if it cannot be reached, or is another than the address says.
        """
        peer = await self._network.connect(address)
        self._mail.registry.register(fingerprint(key := public_key_of(peer)), key)
        return peer

    async def join(self, topic: Topic | str, *, key: TopicKey | bytes | None = None) -> TopicHandle:
        """Take part in a topic; text is a topic's namespace.

        Args:
            topic: the topic.
            key: of a private topic, 32 bytes that its members share: who lacks it reads nothing, publishes nothing, and
                does not learn who takes part. Members have to be connected with each other, or through other members.

        Raises Conflict if this node takes part in it otherwise (in public, or with another key), LimitExceeded or
        LocalError for too many topics, text that is no namespace, or a key of another length.
        """
        return await self._mail.join(
            Topic(topic) if isinstance(topic, str) else topic, TopicKey(key) if isinstance(key, bytes) else key
        )

    def topics(self) -> dict[Topic, TopicKey | None]:
        """The topics this node takes part in, with the key of each private one."""
        return self._mail.topics.all()

    async def send(self, message: Message, *, deadline_s: float = DEADLINE_S) -> Message:
        """Sign and send a message. See `Mail.send`."""
        return await self._mail.send(message, deadline_s=deadline_s)

    async def deliver(self, message: Message, *, deadline_s: float = DEADLINE_S) -> tuple[Message, DeliveryReceipt]:
        """Send a message to one agent until it says that it took it. See `Mail.deliver`."""
        return await self._mail.deliver(message, deadline_s=deadline_s)

    async def advertise(self, capabilities: Sequence[str | Capability]) -> None:
        """Declare what this node can do: in every pool it is a member of, and, soon, to the network (`discovery`)."""
        declaration = Declaration.of(capabilities=capabilities)
        await self._pools.declare([skill.name for skill in declaration.capabilities])
        self.discovery.declare("advertise", declaration)

    async def lookup(self, agent: AgentId) -> AgentDescriptor:
        """Return what an agent advertises. See `DiscoveryService.lookup`."""
        return await self.discovery.lookup(agent)

    # ------------------------------------------------------------ pools

    async def create_pool(
        self,
        name: str,
        *,
        governance: GovernanceModel | None = None,
        electors: Sequence[str] = (),
        topics: Sequence[Topic | HasTopic] = (),
        task_types: Sequence[str] = (),
        admission: AdmissionKind = AdmissionKind.OPEN,
        whitelist: Sequence[str] = (),
        admission_need: int = 0,
        admission_custom: str = "",
        policy: PoolPolicy | None = None,
        private: bool = False,
    ) -> PoolHandle:
        """Found a pool, and wait until its founding is durable.

        Args:
            name: for people.
            governance: who decides; None is `Democratic()`.
            electors: agent ids that are known here, or public keys as `key:<64 digits>`, that vote; empty: those that
                the model names, or this node alone. For a dictatorial pool without a successor at most one, its leader.
            topics, task_types: what it is about, and the objectives it is for; empty: any.
            admission: who may join.
            whitelist: who may join, named as the electors are, for `AdmissionKind.WHITELIST`.
            admission_need: how many electors must vouch for a newcomer, for `AdmissionKind.VOUCHED`.
            admission_custom: name of the registered rule, for `AdmissionKind.CUSTOM`.
            policy: timers and defaults.
            private: contents are sealed with a key that only members are given. That never changes.

        Raises NotFound or LocalError: an agent id whose key is not known here; terms that contradict each other.

        Cancellation: the pool is forgotten here.
        """
        spec = founding_terms(
            name,
            Democratic() if governance is None else governance,
            founder=self.public_key,
            key_of=self.key_of,
            electors=map(self.key_of, electors),
            whitelist=map(self.key_of, whitelist),
            topics=[item if isinstance(item, Topic) else item.topic for item in topics],
            task_types=task_types,
            admission=admission,
            admission_need=admission_need,
            admission_custom=admission_custom,
            policy=policy,
            private=private,
        )
        return await self._pools.create(spec)

    async def home_pool(
        self,
        *,
        admission: AdmissionKind = AdmissionKind.OPEN,
        whitelist: Sequence[str] = (),
        policy: PoolPolicy | None = None,
    ) -> PoolHandle:
        """Return this node's home pool, dictatorial and led by this node alone; the first call founds it.

        The arguments are those of `create_pool`, and matter to the call that founds it.
        """
        return await self._home_pool.get(admission=admission, whitelist=whitelist, policy=policy)

    async def submit(self, task: Task) -> TaskHandle:
        """Submit a task to this node's home pool, and tell the task's topic. Raises as `PoolHandle.submit`."""
        return await self._home_pool.submit(task)

    async def join_pool(
        self,
        pool: PoolId,
        *,
        capabilities: Sequence[str] = (),
        proof: bytes = b"",
        invitation: str | bytes | None = None,
        vouches: Sequence[str | bytes] = (),
        timeout_s: float | None = None,
    ) -> PoolHandle:
        """Take part in a pool and become a member.

        Waits until a member is connected that knows the pool, then until what it holds has come over.

        Args:
            pool: its id, 32 bytes.
            capabilities: what this node can do there, beside what it advertises.
            proof: what the pool's admission asks for, as bytes.
            invitation: or an invitation, as `PoolHandle.invite` returned it.
            vouches: or what electors returned from `PoolHandle.vouch`.
            timeout_s: how long to wait; None waits for ever.

        Raises:
            LocalError: an invitation or vouch that is not genuine, or not for this pool and node.
            NetworkError: no member was found in time; the node goes on trying to reach one in the background.
            NotAuthorised: the pool does not admit this node, which goes on following it; `leave_pool` ends that.
            LimitExceeded: too many pools.

        Cancellation: the node goes on trying to reach the pool in the background.
        """
        shown = admission_proof(pool, self.public_key, proof=proof, invitation=invitation, vouches=vouches)
        return await self._pools.join(pool, capabilities, shown, timeout_s=timeout_s)

    async def take_place(
        self, pool: PoolId, word: SucceedBody | RecoverBody, *, keys: bytes = b"", timeout_s: float | None = 30.0
    ) -> PoolHandle:
        """Take part in a pool in the place of another key, whose membership this node's takes over. Safe to repeat.

        Args:
            word: what `PoolHandle.keys` gave (`pass_on`, `hand_over`), or `succession.recovery` made of a recovery key.
            keys: the content keys that `pass_on` gave with it; of no use if the node follows the pool already.
            pool, timeout_s: see `join_pool`.

        Raises NetworkError if no connected peer knows the pool yet, LocalError if word or key do not fit.
        """
        return await self._pools.take_place(pool, word, keys, timeout_s=timeout_s)

    async def leave_pool(self, pool: PoolId) -> None:
        """Leave a pool, and say so; what this node wrote is kept for a return. Raises `NotFound` outside of it."""
        await self._pools.leave(pool)

    def key_of(self, text: str) -> PublicKey:
        """Return the key of an agent known here, named by id, key, or `key:<hex>`. Raises NotFound, LocalError."""
        known = {self.public_key, *self._pools.keys(), *(peer.public_key for peer in self.peers())}
        return find_key(text, known, self._mail.registry)

    async def host(
        self,
        agent: Agent,
        *,
        tools: ToolRegistry | None = None,
        safety: SafetyPolicy | None = None,
        config: RuntimeConfig | None = None,
        parts: AgentParts | None = None,
        record: bool = False,
    ) -> AgentRuntime:
        """Run an agent in this node, under this node's identity, until it or the node is stopped.

        Args:
            agent: what decides; its topics are joined.
            tools: what it may invoke.
            safety: what it may do; None is what the node's policy says.
            config: times and sizes of its loop.
            parts: what replaces the standard parts of its runtime; `record` adds a replay log.

        Raises LocalError if the agent has an identity of its own, Conflict if one of its name is here, LimitExceeded
        for too many agents or one that does not fit into what this node declares (see `discoverable`).
        """
        runtime = self.hosting.make_runtime(
            agent, tools=tools, safety=safety, config=config, parts=parts, record=record
        )
        await self.hosting.start(runtime, self._nursery)
        return runtime

    def agents(self) -> list[HostedAgent]:
        """The agents this node hosts, with their states."""
        return self.hosting.hosted()

    def _deliver(self, message: Message, /, *, private: bool) -> None:
        # what is heard in private is not told to everybody, as announcements are
        if not private and (announced := announced_in(message)) is not None:
            self._switchboard.hear_on_topic(*announced)
        self.hosting.deliver(message)
