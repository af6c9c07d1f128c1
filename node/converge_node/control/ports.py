"""What the control interface and the run command need of a node.

Knows: shapes. Must not know: the class that fills them (`converge_p2p.node.Node`, whose import loads libp2p).
Source: docs/control.md.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

import trio

from converge_p2p.core.governance import GovernanceModel
from converge_p2p.core.governance.invitation_line import InvitationLine
from converge_p2p.core.model.capability import Capability
from converge_p2p.core.model.descriptor import AgentDescriptor
from converge_p2p.core.model.network_key import NetworkKey
from converge_p2p.core.model.pool import AdmissionKind, PoolPolicy, PoolSpec
from converge_p2p.core.model.query import DiscoveryQuery
from converge_p2p.core.model.task import Task, TaskView
from converge_p2p.core.model.topic import Topic
from converge_p2p.core.model.topic_key import TopicKey
from converge_p2p.core.types import AgentId, OperationId, PeerId, PoolId, PublicKey, TaskId, ValueHash
from converge_p2p.core.view.audit import Finding
from converge_p2p.core.view.motions import MotionView
from converge_p2p.runtime.trust import TrustModel


class PeerLike(Protocol):
    """A connected peer."""

    @property
    def peer_id(self) -> PeerId: ...
    @property
    def agent_id(self) -> AgentId: ...
    @property
    def public_key(self) -> PublicKey: ...
    @property
    def addresses(self) -> Sequence[str]: ...
    @property
    def direction(self) -> str: ...


class MemberLike(Protocol):
    """A member of a pool."""

    @property
    def agent_id(self) -> AgentId: ...
    @property
    def public_key(self) -> PublicKey: ...
    @property
    def elector(self) -> bool: ...
    @property
    def capabilities(self) -> Sequence[str]: ...


class AnnouncementLike(Protocol):
    """A pool that was heard of."""

    @property
    def id(self) -> PoolId: ...
    @property
    def name(self) -> str: ...
    @property
    def governance(self) -> str: ...
    @property
    def task_types(self) -> Sequence[str]: ...
    @property
    def creator(self) -> Any: ...


class StatusLike(Protocol):
    """The node at a glance."""

    @property
    def uptime_s(self) -> float: ...
    @property
    def counters(self) -> Mapping[str, int]: ...


class SubmittedLike(Protocol):
    """A task that was submitted."""

    @property
    def id(self) -> TaskId: ...
    @property
    def view(self) -> TaskView: ...


class FrozenLike(Protocol):
    """An agent that forked."""

    @property
    def agent_id(self) -> AgentId: ...
    @property
    def public_key(self) -> PublicKey: ...
    @property
    def seq(self) -> int: ...


class CitedLike(Protocol):
    """That somebody says which content speaks for a result, or against it."""

    @property
    def id(self) -> OperationId: ...
    @property
    def author(self) -> PublicKey: ...
    @property
    def weight(self) -> int: ...
    @property
    def value(self) -> ValueHash: ...
    @property
    def supports(self) -> bool: ...
    @property
    def digest(self) -> bytes: ...
    @property
    def size(self) -> int: ...
    @property
    def media(self) -> str: ...
    @property
    def summary(self) -> str: ...


class EvidenceLike(Protocol):
    """What was cited for and against results."""

    def about(self, task: TaskId, /) -> Sequence[CitedLike]: ...
    async def cite(
        self,
        task: TaskId,
        /,
        *,
        digest: bytes | None = None,
        size: int = 0,
        value: ValueHash | None = None,
        supports: bool = True,
        media: str = ...,
        summary: str = "",
    ) -> OperationId | None: ...


class CouncilLike(Protocol):
    """What is put to a pool's electors."""

    @property
    def evidence(self) -> EvidenceLike: ...

    @property
    def epoch(self) -> int: ...
    def motions(self) -> Sequence[MotionView]: ...
    def motion(self, name: OperationId, /) -> MotionView: ...
    async def move(
        self, *, expel: Iterable[PublicKey] = (), terms: PoolSpec | None = None, reason: str = ""
    ) -> OperationId: ...
    async def dispute(self, task: TaskId, /, reason: str = "") -> OperationId: ...
    async def dispute_rivals(self, task: TaskId, /, rivals: Iterable[ValueHash], reason: str = "") -> OperationId: ...
    async def say(self, motion: OperationId, /, choice: int | None = ...) -> None: ...


class CheckpointLike(Protocol):
    """How far a pool's log was compacted."""

    @property
    def number(self) -> int | None: ...
    @property
    def tasks(self) -> int: ...
    @property
    def tail(self) -> int: ...


class PoolLike(Protocol):
    """A pool that the node takes part in."""

    @property
    def id(self) -> PoolId: ...
    @property
    def name(self) -> str: ...
    @property
    def governance(self) -> str: ...
    @property
    def ready(self) -> bool: ...
    @property
    def spec(self) -> PoolSpec: ...
    @property
    def has_quorum(self) -> bool | None: ...
    @property
    def frontier_digest(self) -> str: ...
    @property
    def checkpoint(self) -> CheckpointLike: ...
    async def audit(self) -> Sequence[Finding]: ...
    async def culprits(self) -> int | None: ...
    @property
    def council(self) -> CouncilLike: ...
    def members(self) -> Sequence[MemberLike]: ...
    def frozen(self) -> Sequence[FrozenLike]: ...
    @property
    def unsure(self) -> str: ...
    def tasks(self) -> Iterable[TaskView]: ...
    def task(self, task_id: TaskId, /) -> TaskView: ...
    async def submit(self, task: Task, /) -> SubmittedLike: ...
    def invite(
        self,
        *,
        joiner: str | None = None,
        until_epoch: int | None = None,
        role: str = ...,
        valid_s: float | None = None,
    ) -> str: ...
    def vouch(self, agent: str, /, *, until_epoch: int | None = None) -> str: ...
    async def cancel(self, task_id: TaskId, /, reason: str = "") -> None: ...
    async def veto(self, task_id: TaskId, /, reason: str = "") -> None: ...
    async def let_pass(self, task_id: TaskId, /, reason: str = "") -> None: ...
    async def judge(
        self, task_id: TaskId, approve: bool, reason: str = "", *, value: ValueHash | None = None
    ) -> None: ...
    def watch(self) -> AbstractAsyncContextManager[trio.MemoryReceiveChannel[TaskView]]: ...
    def handler(
        self, objective: str, *, concurrency: int = 1, claim_ttl: float | None = None
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]: ...


class InvitationsLike(Protocol):
    """The invitations of a node."""

    network_key: NetworkKey | None

    def write(
        self,
        *,
        pool: Any = None,
        topics: Sequence[Topic] = (),
        joiner: str | None = None,
        uses: int | None = 1,
        role: str = ...,
        epochs: int = 0,
        valid_s: float | None = None,
    ) -> Awaitable[str]: ...
    def take_part(self, line: InvitationLine, /) -> Awaitable[Sequence[Any]]: ...
    def accept(
        self, text: str, /, *, capabilities: Sequence[str] = (), timeout_s: float | None = None
    ) -> Awaitable[Any]: ...


class DiscoveryLike(Protocol):
    """Finding agents, and being found."""

    trust: TrustModel

    @property
    def own(self) -> AgentDescriptor | None: ...
    def find(self, query: DiscoveryQuery) -> list[AgentDescriptor]: ...
    async def query(self, query: DiscoveryQuery, *, refresh: bool = False) -> list[AgentDescriptor]: ...
    async def lookup(self, agent: AgentId) -> AgentDescriptor: ...
    def matching(self, prefix: str) -> list[AgentId]: ...
    async def register(
        self,
        capabilities: Iterable[Capability | str] = (),
        topics: Iterable[Topic | str] = (),
        name: str = "",
        *,
        keep: bool = False,
    ) -> AgentDescriptor: ...
    async def unregister(self) -> bool: ...


class NodeLike(Protocol):
    """A running node."""

    @property
    def id(self) -> AgentId: ...
    @property
    def public_key(self) -> PublicKey: ...
    @property
    def peer_id(self) -> PeerId: ...
    @property
    def addresses(self) -> Sequence[str]: ...
    @property
    def pools(self) -> Mapping[PoolId, PoolLike]: ...
    def known_pools(self) -> Sequence[AnnouncementLike]: ...
    def watch_pools(self) -> AbstractAsyncContextManager[trio.MemoryReceiveChannel[Any]]: ...
    def peers(self) -> Sequence[PeerLike]: ...
    @property
    def discovery(self) -> DiscoveryLike: ...
    def status(self) -> StatusLike: ...
    def create_pool(
        self,
        name: str,
        *,
        governance: GovernanceModel = ...,
        electors: Sequence[str] = (),
        topics: Sequence[Topic] = (),
        task_types: Sequence[str] = (),
        admission: AdmissionKind = ...,
        whitelist: Sequence[str] = (),
        admission_need: int = 0,
        admission_custom: str = "",
        policy: PoolPolicy = ...,
        private: bool = False,
    ) -> Awaitable[PoolLike]: ...
    def join_pool(
        self,
        pool: PoolId,
        /,
        *,
        capabilities: Sequence[str] = (),
        invitation: str | None = None,
        vouches: Sequence[str] = (),
        timeout_s: float | None = None,
    ) -> Awaitable[PoolLike]: ...
    def home_pool(self) -> Awaitable[PoolLike]: ...
    def submit(self, task: Task, /) -> Awaitable[SubmittedLike]: ...
    @property
    def invitations(self) -> InvitationsLike: ...
    def topics(self) -> Mapping[Topic, TopicKey | None]: ...
    def join(self, topic: Topic, /, *, key: TopicKey | None = None) -> Awaitable[Any]: ...
