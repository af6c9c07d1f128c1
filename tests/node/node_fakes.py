"""A node in memory with the surface that the program uses, for tests of the control interface and the command line."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import trio
from peer_fakes import FakeJoins, FakeLinks

from converge_p2p.core.codec import encode_value
from converge_p2p.core.errors import Conflict, LocalError, NetworkError, NotAuthorised, NotFound, SignatureError
from converge_p2p.core.governance import Democratic, GovernanceModel
from converge_p2p.core.governance.electorate import electorate_of
from converge_p2p.core.governance.invitation_line import InvitationLine, PoolInvitation
from converge_p2p.core.governance.models import compile_rules
from converge_p2p.core.identity import Identity
from converge_p2p.core.model.agent_index import AgentIndex
from converge_p2p.core.model.blob import chunk_count
from converge_p2p.core.model.descriptor import AgentDescriptor
from converge_p2p.core.model.pool import AdmissionKind, PoolPolicy, PoolSpec, pool_id
from converge_p2p.core.model.query import DiscoveryQuery
from converge_p2p.core.model.task import Outcome, Task, TaskState, TaskValue, TaskView, task_id
from converge_p2p.core.oplog.evidence import EvidenceBody
from converge_p2p.core.oplog.motions import OpinionBody, dispute_result, dispute_rivals, move_change
from converge_p2p.core.oplog.operation import sign_operation
from converge_p2p.core.oplog.succession import RotateBody, SucceedBody, is_signed
from converge_p2p.core.types import AgentId, BlobRef, OperationId, PeerId, PoolId, PublicKey, TaskId, ValueHash
from converge_p2p.core.view.audit import Finding
from converge_p2p.core.view.evidence import Evidence
from converge_p2p.core.view.explanation import Explanation, Tentative
from converge_p2p.core.view.motions import Motions, MotionView
from converge_p2p.core.view.receipt import Receipt
from converge_p2p.node import FrozenView
from converge_p2p.node.blobs import Blobs
from converge_p2p.node.evidence import EvidenceView
from converge_p2p.node.exposition import metrics_text
from converge_p2p.node.fanout import Fanout
from converge_p2p.node.keys import Bequest
from converge_p2p.node.observation import NodeEvent
from converge_p2p.node.policy import NodePolicy
from converge_p2p.node.pool_reader import CheckpointView
from converge_p2p.runtime.checkpoints import Checkpoint
from converge_p2p.runtime.metrics import MemoryMetrics
from converge_p2p.runtime.trust import TrustModel


@dataclass(frozen=True)
class FakePeer:
    identity: Identity
    peer_id: str = "12D3KooWFake"
    addresses: tuple[str, ...] = ("/ip4/192.0.2.7/tcp/4001/p2p/12D3KooWFake",)
    direction: str = "outbound"
    relayed: bool = False

    @property
    def agent_id(self) -> AgentId:
        return self.identity.id

    @property
    def public_key(self) -> PublicKey:
        return self.identity.public_key


@dataclass(frozen=True)
class FakeMember:
    agent_id: AgentId
    public_key: PublicKey
    elector: bool
    capabilities: tuple[str, ...] = ()


@dataclass(frozen=True)
class FakeAnnouncement:
    id: PoolId
    name: str
    governance: str
    task_types: tuple[str, ...]
    creator: AgentId


@dataclass(frozen=True)
class FakeReach:
    reachable: str = "unknown"
    confirmed: tuple[str, ...] = ()
    relays: tuple[str, ...] = ()
    wants_relays: bool = False
    relay_reservations: int | None = None
    relay_circuits: int = 0
    link_peers: int | None = None
    link_trouble: str = ""


@dataclass(frozen=True)
class FakeStatus:
    uptime_s: float = 1.5
    reach: FakeReach = FakeReach()
    counters: dict[str, int] = field(default_factory=lambda: {"gossip_rejected": 2})


@dataclass(frozen=True)
class FakeHandle:
    id: TaskId
    pool: FakePool

    @property
    def view(self) -> TaskView:
        return self.pool.task(self.id)


@dataclass(frozen=True)
class FakeEvidence:
    """Evidence in the real fold; nothing is weighed."""

    known: Evidence
    sign: Callable[[Any], Any]
    bodies: dict[OperationId, EvidenceBody] = field(default_factory=dict)

    def about(self, task: TaskId, /) -> list[EvidenceView]:
        return [
            EvidenceView(
                cited.id, cited.author, 1, cited.value, cited.supports, cited.digest, cited.size,
                self.bodies[cited.id].media, self.bodies[cited.id].summary,
            )
            for cited in self.known.about(task)
        ]  # fmt: skip

    async def cite(
        self,
        task: TaskId,
        /,
        *,
        digest: bytes | None = None,
        size: int = 0,
        value: ValueHash | None = None,
        supports: bool = True,
        media: str = "",
        summary: str = "",
    ) -> OperationId | None:
        assert value is not None
        assert digest is not None
        operation = self.sign(EvidenceBody(task, value, supports, digest, size, media, summary))
        self.bodies[operation.id] = operation.body
        self.known.add(operation, operation.body)
        return OperationId(operation.id)


class FakeCouncil:
    """Motions of a pool, in the real fold; `members` answers as the electors."""

    def __init__(self, identity: Identity, spec: PoolSpec, pool: PoolId) -> None:
        self.epoch = 0
        self._identity, self._pool, self._seq = identity, pool, 0
        self._prev: OperationId | None = None
        self._cited = Evidence()
        self._motions = Motions(evidence=self._cited)
        self.evidence = FakeEvidence(self._cited, self._sign)
        rules = compile_rules(spec)
        self._motions.open_epoch(0, electorate_of(frozenset(spec.electors), rules, 0))

    def _sign(self, body: Any) -> Any:
        operation = sign_operation(
            self._identity, self._pool, body, seq=self._seq, prev=self._prev, epoch=0, hlc=self._seq + 1
        )
        self._seq, self._prev = operation.seq + 1, operation.id
        return operation

    def motions(self) -> Sequence[MotionView]:
        return self._motions.views(self.epoch)

    def motion(self, name: OperationId, /) -> MotionView:
        found = self._motions.view(name, self.epoch)
        assert found is not None
        return found

    async def move(
        self, *, expel: Iterable[PublicKey] = (), terms: PoolSpec | None = None, reason: str = ""
    ) -> OperationId:
        operation = self._sign(move_change(tuple(expel), terms, reason))
        self._motions.add_motion(operation)
        return OperationId(operation.id)

    async def dispute(self, task: TaskId, /, reason: str = "") -> OperationId:
        operation = self._sign(dispute_result(task, reason))
        self._motions.add_motion(operation)
        return OperationId(operation.id)

    async def dispute_rivals(self, task: TaskId, /, rivals: Iterable[ValueHash], reason: str = "") -> OperationId:
        operation = self._sign(dispute_rivals(task, tuple(rivals), reason))
        self._motions.add_motion(operation)
        return OperationId(operation.id)

    async def say(self, motion: OperationId, /, choice: int | None = 1) -> None:
        chosen = self._motions.preferred(motion, 0) if choice is None else choice
        assert chosen is not None
        found = self.motion(motion).motion
        cited = () if found.task is None else self._cited.to_cite(found.task, ValueHash(found.options[chosen]), 8)
        self._motions.add_opinion(self._sign(OpinionBody(motion, chosen, cited)))


class FakeBlobs(Blobs):
    """The blobs of a node that nobody else has anything for."""

    async def stream(self, reference: BlobRef, *, providers: Iterable[PublicKey] = ()) -> AsyncGenerator[bytes, None]:
        for index in range(chunk_count(reference.size)):
            piece = await self.chunk(reference.id, index)
            if piece is None:
                raise NetworkError("nobody has it")
            yield piece


class FakePoolBlobs:
    """Results that are whole."""

    async def bring_result(self, view: TaskView, /) -> TaskView:
        return view


class FakeKeys:
    """The key of this node in a pool; hands over once, to whoever signed that it agrees."""

    def __init__(self, pool: PoolId, own: PublicKey) -> None:
        self._pool, self._own = pool, own
        self.heir: PublicKey | None = None
        self.failure: Exception | None = None
        self.waited: list[float | None] = []

    async def pass_on(self, successor: PublicKey, signature: bytes, /, *, timeout_s: float | None = None) -> Bequest:
        self.waited.append(timeout_s)
        if not is_signed(self._pool, self._own, RotateBody(successor, signature)):
            raise SignatureError("the new key did not sign")
        if self.failure is not None:
            raise self.failure
        if self.heir not in (None, successor):
            raise Conflict("another key took this node's place in the pool")
        self.heir = successor
        return Bequest(SucceedBody(self._own, bytes(64)), b"sealed")


class FakePool:
    """A pool where the test settles the tasks."""

    def __init__(self, identity: Identity, spec: PoolSpec, id_: PoolId) -> None:
        self.id = id_
        self.spec = spec
        self.name = spec.name
        self.governance = spec.governance.name.lower()
        self.node: Any = None
        self.done: list[tuple[str, TaskId, Any]] = []
        self.ready = True
        self.has_quorum: bool | None = True
        self.found: list[Finding] = []
        self.shut_out: list[FrozenView] = []
        self.explained: dict[TaskId, Explanation] = {}
        self.receipts: dict[TaskId, Receipt] = {}
        self.council = FakeCouncil(identity, spec, id_)
        self.handlers: dict[str, tuple[Any, int]] = {}
        self.watchers: list[trio.MemorySendChannel[TaskView]] = []
        self.watching = trio.Event()
        self.blobs = FakePoolBlobs()
        self.keys = FakeKeys(id_, identity.public_key)
        self.member = trio.Event()
        self.member.set()
        self._identity = identity
        self._tasks: dict[TaskId, TaskView] = {}

    @property
    def checkpoint(self) -> CheckpointView:
        return CheckpointView(2, "00" * 32, 40, 3)

    @property
    def frontier_digest(self) -> str:
        return hashlib.sha256(b"".join(self._tasks)).hexdigest()

    async def wait_member(self) -> None:
        await self.member.wait()

    async def leave(self) -> None:
        del self.node.pools[self.id]

    async def audit(self) -> list[Finding]:
        return self.found

    async def explain(self, id_: TaskId, /) -> Explanation:
        """What the test prepared, or as much as can be said without a log."""
        if id_ in self.explained:
            return self.explained[id_]
        view = self.task(id_)
        worker = None if view.value is None else view.value.worker
        hashed = None if view.value is None else view.value.hash
        return Explanation(
            self.id, id_, view.state, view.submitter, worker, hashed, view, (), (), (), (), None,
            () if view.state.terminal else (Tentative.PENDING,),
        )  # fmt: skip

    def receipt(self, id_: TaskId, /) -> Receipt:
        self.task(id_)
        if id_ not in self.receipts:
            raise Conflict("the task is not settled here, so there is no receipt yet")
        return self.receipts[id_]

    async def culprits(self) -> int | None:
        return len({finding.elector for finding in self.found})

    def members(self) -> Sequence[FakeMember]:
        return [FakeMember(Identity.from_public_key(key).id, key, True) for key in self.spec.electors]

    def frozen(self) -> list[FrozenView]:
        return self.shut_out

    @property
    def unsure(self) -> str:
        return ""

    def tasks(self) -> list[TaskView]:
        return list(self._tasks.values())

    def task(self, id_: TaskId, /) -> TaskView:
        if id_ not in self._tasks:
            raise NotFound(f"no task {id_.hex()}")
        return self._tasks[id_]

    async def submit(self, task: Task, /) -> FakeHandle:
        spec = task.to_spec(key=f"generated-{len(self._tasks)}".encode())
        id_ = task_id(self.id, self._identity.public_key, spec.key)
        if id_ not in self._tasks:
            self.change(TaskView(id_, self.id, self._identity.public_key, spec, TaskState.PENDING))
        return FakeHandle(id_, self)

    async def cancel(self, id_: TaskId, /, reason: str = "") -> None:
        if reason == "not mine":
            raise NotAuthorised("only the submitter can cancel a task")
        self.settle(id_, Outcome.CANCELLED, reason)

    async def claim(self, id_: TaskId, bid: int = 0) -> None:
        self.done.append(("claim", id_, bid))

    async def release(self, id_: TaskId, *, failed: bool = False, reason: str = "") -> None:
        self.done.append(("release", id_, failed))

    async def report(self, id_: TaskId, value: Any = None, *, failed: str | None = None) -> None:
        self.done.append(("report", id_, value if failed is None else failed))

    async def veto(self, id_: TaskId, /, reason: str = "") -> None:
        self.settle(id_, Outcome.FAILED, {"error": "vetoed", "reason": reason})

    async def let_pass(self, id_: TaskId, /, reason: str = "") -> None:
        awaiting = self._tasks[id_].awaiting
        if awaiting is None:
            raise Conflict("there is no result that could be denied or let pass")
        self.change(replace(self._tasks[id_], state=TaskState.COMPLETED, value=awaiting, awaiting=None))

    def invite(
        self,
        *,
        joiner: str | None = None,
        until_epoch: int | None = None,
        role: str = "worker",
        valid_s: float | None = None,
    ) -> str:
        if self.spec.admission is not AdmissionKind.TOKEN:
            raise LocalError("the pool asks for no invitations")
        return f"invitation {joiner} {until_epoch} {role} {valid_s}"

    def vouch(self, agent: str, /, *, until_epoch: int | None = None) -> str:
        return f"vouch {agent} {until_epoch}"

    async def judge(self, id_: TaskId, approve: bool, reason: str = "", *, value: ValueHash | None = None) -> None:
        unjudged = self._tasks[id_].unjudged
        found = [item for item in unjudged if value in (None, item.hash)]
        if len(found) != 1:
            raise Conflict(f"{len(found)} results of the task wait for a verdict")
        if approve:
            self.change(replace(self._tasks[id_], state=TaskState.COMPLETED, value=found[0], unjudged=()))
        else:
            self.change(replace(self._tasks[id_], state=TaskState.PENDING, unjudged=()))

    def settle(self, id_: TaskId, outcome: Outcome, value: Any) -> None:
        settled = TaskValue(outcome, self._identity.public_key, encode_value(value))
        self.change(
            replace(
                self._tasks[id_], state=outcome.state, value=settled, certified=True, attempts=1, round=0, awaiting=None
            )
        )

    def change(self, view: TaskView) -> None:
        self._tasks[view.id] = view
        for watcher in self.watchers:
            watcher.send_nowait(view)

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[trio.MemoryReceiveChannel[TaskView]]:
        sender, receiver = trio.open_memory_channel[TaskView](100)
        self.watchers.append(sender)
        self.watching.set()
        try:
            yield receiver
        finally:
            self.watchers.remove(sender)

    def handler(self, objective: str, *, concurrency: int = 1, claim_ttl: float | None = None) -> Any:
        def register(function: Any) -> Any:
            self.handlers[objective] = (function, concurrency)
            return function

        return register


class FakeDiscovery:
    """What is known of agents, in the real index; nobody is told."""

    def __init__(self, node: FakeNode) -> None:
        self.trust = TrustModel()
        self.index = AgentIndex()
        self.own: AgentDescriptor | None = None
        self.kept = False
        self.refreshed = 0
        self._node = node

    def know(self, identity: Identity, **said: Any) -> AgentDescriptor:
        descriptor = AgentDescriptor.create(identity, sequence=len(self.index) + 1, now_ms=_now_ms(), **said)
        self.index.put(descriptor, "test", _now_ms())
        return descriptor

    def find(self, query: DiscoveryQuery) -> list[AgentDescriptor]:
        threshold, context = query.trust_threshold, query.trust_context
        return self.index.find(query, _now_ms(), lambda one: self.trust.meets(one.agent_id, threshold, context))

    async def query(self, query: DiscoveryQuery, *, refresh: bool = False) -> list[AgentDescriptor]:
        self.refreshed += refresh
        return self.find(query)

    async def lookup(self, agent: AgentId) -> AgentDescriptor:
        found = self.index.get(agent)
        if found is None:
            raise NotFound("no such agent")
        return found

    def matching(self, prefix: str) -> list[AgentId]:
        return sorted(one.agent_id for one in self.index if one.agent_id.startswith(prefix))

    async def register(
        self, capabilities: Any = (), topics: Any = (), name: str = "", *, keep: bool = False
    ) -> AgentDescriptor:
        self.own = self.know(self._node.identity, capabilities=capabilities, topics=topics, name=name)
        self.kept = keep
        return self.own

    async def unregister(self) -> bool:
        found, self.own = self.own is not None, None
        return found


@dataclass(frozen=True)
class FakeTrouble:
    what: str = "store"
    text: str = "the store cannot be written: disk full"
    hint: str = "make room"
    fatal: bool = True


class FakeObservation:
    """What the test wants the node to say of itself."""

    def __init__(self) -> None:
        self.wrong: list[FakeTrouble] = []
        self.events: Fanout[NodeEvent] = Fanout()

    def metrics_text(self, more: Any = None, /) -> str:
        return metrics_text({"sent": 3, **(more or {})}, [], MemoryMetrics())

    async def troubles(self) -> list[FakeTrouble]:
        return self.wrong

    def watch_events(self) -> Any:
        return self.events.open()


class FakeHosting:
    """Agents that ran here."""

    def __init__(self) -> None:
        self.notes: list[Checkpoint] = []

    def hosted(self) -> list[Any]:
        return []

    def checkpoints(self) -> list[Checkpoint]:
        return self.notes


def _now_ms() -> int:
    return int(time.time() * 1000)


class FakeNode:
    """A node without a network."""

    def __init__(self, identity: Identity | None = None) -> None:
        self.identity = Identity.from_seed(bytes(32)) if identity is None else identity
        self.peer_id = PeerId("12D3KooWMe")
        self.addresses: tuple[str, ...] = ("/ip4/127.0.0.1/tcp/4001/p2p/12D3KooWMe",)
        self.pools: dict[PoolId, FakePool] = {}
        self.announced: list[FakeAnnouncement] = []
        self.fake_peers: list[FakePeer] = []
        self.joined_topics: dict[Any, Any] = {}
        self.listeners: list[Any] = []
        self.times_joined: Counter[Any] = Counter()
        self.said: list[tuple[str, Any]] = []
        self.invitations = FakeInvitations(self)
        self.discovery = FakeDiscovery(self)
        self.observation = FakeObservation()
        self.blobs = FakeBlobs(self.identity, None, 2**20, Counter())
        self.hosting = FakeHosting()
        self.links = FakeLinks(self)
        self.joins = FakeJoins(self)
        self.policy = NodePolicy()
        self.shown: list[tuple[str | None, list[str]]] = []
        self.create_calls: list[dict[str, Any]] = []
        self.taken: list[tuple[PoolId, SucceedBody, bytes, float | None]] = []
        self.announcement_sender, self._announcements = trio.open_memory_channel[FakeAnnouncement](10)

    @property
    def id(self) -> AgentId:
        return self.identity.id

    @property
    def public_key(self) -> PublicKey:
        return self.identity.public_key

    async def take_place(
        self, pool: PoolId, word: SucceedBody, /, *, keys: bytes = b"", timeout_s: float | None = 30.0
    ) -> FakePool:
        """Known at once is what the test put into `pools`; who waits for another pool waits for ever."""
        self.taken.append((pool, word, keys, timeout_s))
        if pool not in self.pools:
            if timeout_s is None:
                await trio.sleep_forever()
            raise NetworkError("no connected peer knows the pool")
        return self.pools[pool]

    def known_pools(self) -> list[FakeAnnouncement]:
        return self.announced

    @asynccontextmanager
    async def watch_pools(self) -> AsyncIterator[trio.MemoryReceiveChannel[FakeAnnouncement]]:
        yield self._announcements

    def peers(self) -> list[FakePeer]:
        return self.fake_peers

    def status(self) -> FakeStatus:
        return FakeStatus()

    async def create_pool(
        self,
        name: str,
        *,
        governance: GovernanceModel | None = None,
        electors: Sequence[str] = (),
        topics: Sequence[Any] = (),
        task_types: Sequence[str] = (),
        admission: AdmissionKind = AdmissionKind.OPEN,
        whitelist: Sequence[str] = (),
        admission_need: int = 0,
        admission_custom: str = "",
        policy: PoolPolicy | None = None,
        private: bool = False,
    ) -> FakePool:
        model = Democratic() if governance is None else governance

        def key_of(text: str) -> PublicKey:
            return PublicKey(bytes.fromhex(text.removeprefix("key:")))

        founding = model.founding(tuple(sorted(map(key_of, electors))), self.public_key, key_of)
        spec = PoolSpec(
            name,
            bytes(16),
            founding.governance,
            founding.electors,
            founding.quorum,
            founding.faults,
            topics=tuple(topic.to_bytes() for topic in topics),
            task_types=tuple(task_types),
            admission=admission,
            whitelist=tuple(sorted(map(key_of, whitelist))),
            admission_need=admission_need,
            admission_custom=admission_custom,
            policy=PoolPolicy() if policy is None else policy,
            model=founding.model,
            private=private,
        )
        spec.check()
        pool = FakePool(self.identity, spec, pool_id(self.public_key, spec))
        pool.node = self
        self.pools[pool.id] = pool
        return pool

    async def home_pool(self) -> FakePool:
        found = [pool for pool in self.pools.values() if pool.name == "home"]
        return found[0] if found else await self.create_pool("home")

    async def submit(self, task: Task, /) -> FakeHandle:
        return await (await self.home_pool()).submit(task)

    async def join_pool(
        self,
        id_: PoolId,
        /,
        *,
        capabilities: Sequence[str] = (),
        invitation: str | None = None,
        vouches: Sequence[str] = (),
        timeout_s: float | None = None,
    ) -> FakePool:
        self.shown.append((invitation, list(vouches)))
        if timeout_s is not None and timeout_s < 1:
            raise NetworkError("no connected peer knows the pool")
        spec = PoolSpec(f"joined-{id_.hex()[:6]}", bytes(16), Democratic.kind, (self.public_key,))
        pool = FakePool(self.identity, spec, id_)
        pool.node = self
        self.pools[id_] = pool
        return pool

    def topics(self) -> dict[Any, Any]:
        return self.joined_topics

    async def join(self, topic: Any, /, *, key: Any = None) -> FakeTopic:
        if self.joined_topics.setdefault(topic, key) != key:
            raise Conflict("this node takes part in it otherwise")
        self.times_joined[topic] += 1
        return FakeTopic(self, topic)


class FakeTopic:
    def __init__(self, node: FakeNode, topic: Any) -> None:
        self.node, self.topic = node, topic

    async def publish(self, payload: Any) -> None:
        self.node.said.append((self.topic.namespace, payload))

    @asynccontextmanager
    async def messages(self) -> AsyncIterator[Any]:
        send, receive = trio.open_memory_channel[Any](10)
        self.node.listeners.append(send)
        async with send, receive:
            yield receive

    async def leave(self) -> None:
        self.node.times_joined[self.topic] -= 1
        if not self.node.times_joined[self.topic]:
            del self.node.joined_topics[self.topic]


class FakeInvitations:
    """Writes real lines, and follows every one."""

    def __init__(self, node: FakeNode) -> None:
        self.network_key: Any = None
        self.accepted_network: Any = None
        self.asked: list[dict[str, Any]] = []
        self._node = node

    async def write(self, *, pool: Any = None, topics: Sequence[Any] = (), **terms: Any) -> str:
        self.asked.append({"pool": None if pool is None else pool.name, **terms})
        keys = self._node.joined_topics
        if set(topics) - set(keys):
            raise NotFound("this node takes no part in one of the topics")
        invited = None if pool is None else PoolInvitation(pool.id, ticket=bytes(32))
        fields = (
            terms["role"],
            self._node.addresses,
            self.network_key,
            tuple((topic, keys[topic]) for topic in topics),
        )
        return InvitationLine(self._node.public_key, 0, *fields, invited).sign(self._node.identity).to_text()

    async def take_part(self, line: InvitationLine) -> list[FakeTopic]:
        return [await self._node.join(topic, key=key) for topic, key in line.topics]

    async def accept(self, text: str, /, *, capabilities: Sequence[str] = (), timeout_s: float | None = None) -> Any:
        line = InvitationLine.from_text(text)
        line.check_for(self.network_key, 0)
        pool = None if line.pool is None else await self._node.join_pool(line.pool.pool, capabilities=capabilities)
        return SimpleNamespace(line=line, topics=await self.take_part(line), pool=pool, pending=False)
