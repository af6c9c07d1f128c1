"""What an application holds in asyncio: pools, tasks, topics, and the parts of a node.

Knows: which methods there are, and what they give. Must not know: how a call crosses over.
Source: `docs/embedding.md`. A test holds that nothing of the handles for trio is left out.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from converge_p2p.aio.agent import WorkContext
from converge_p2p.aio.blobs import PoolBlobs
from converge_p2p.aio.crossing import in_asyncio, into_asyncio
from converge_p2p.aio.facade import Calls, Facade, bridged, direct, giving, streamed
from converge_p2p.core.governance.invitation_line import InvitationLine
from converge_p2p.core.model.descriptor import AgentDescriptor
from converge_p2p.core.model.network_key import NetworkKey
from converge_p2p.core.model.task import TaskView
from converge_p2p.core.model.topic import Topic
from converge_p2p.core.types import TaskId
from converge_p2p.core.view.coordination import Coordination
from converge_p2p.node import council, discovery, evidence, handles, invitations, keys, task_handles, topics
from converge_p2p.node.evaluations import EvaluationFunction
from converge_p2p.node.policy import OpinionFunction
from converge_p2p.node.pool_reader import PoolReader
from converge_p2p.node.trust_history import TrustHistory
from converge_p2p.runtime import attempt
from converge_p2p.runtime.trust import TrustModel

_Function = TypeVar("_Function", bound=Callable[..., Any])
HandlerFunction: TypeAlias = Callable[[TaskView, WorkContext], Any]
"""Takes the task and its context; plain, or async in asyncio; returns the result of the task."""


class TopicHandle(Facade[topics.TopicHandle]):
    """A topic this node takes part in. See `converge_p2p.TopicHandle`."""

    publish = bridged(topics.TopicHandle.publish)
    messages = streamed(topics.TopicHandle.messages)
    rotate = bridged(topics.TopicHandle.rotate)
    leave = bridged(topics.TopicHandle.leave)

    @property
    def topic(self) -> Topic:
        """The topic."""
        return self.inner.topic

    @property
    def private(self) -> bool:
        """Whether the topic is private."""
        return self.inner.private


class TaskHandle(Facade[task_handles.TaskHandle]):
    """A task of a pool. See `converge_p2p.TaskHandle`."""

    result = bridged(task_handles.TaskHandle.result)
    explain = bridged(task_handles.TaskHandle.explain)
    cancel = bridged(task_handles.TaskHandle.cancel)
    judge = bridged(task_handles.TaskHandle.judge)
    cite = bridged(task_handles.TaskHandle.cite)
    veto = bridged(task_handles.TaskHandle.veto)
    let_pass = bridged(task_handles.TaskHandle.let_pass)

    @property
    def id(self) -> TaskId:
        """The task's id."""
        return self.inner.id

    @property
    def pool(self) -> PoolHandle:
        """The pool."""
        return PoolHandle(self._calls, self.inner.pool)

    @property
    def view(self) -> TaskView:
        """The task as this node sees it now."""
        return self.inner.view


class PoolKeys(Facade[keys.PoolKeys]):
    """The keys of one pool. See `converge_p2p.node.keys.PoolKeys`."""

    lineage = direct(keys.PoolKeys.lineage)
    commit_recovery = bridged(keys.PoolKeys.commit_recovery)
    hand_over = bridged(keys.PoolKeys.hand_over)
    pass_on = bridged(keys.PoolKeys.pass_on)
    take_place = bridged(keys.PoolKeys.take_place)


class PoolEvidence(Facade[evidence.PoolEvidence]):
    """The evidence of one pool. See `converge_p2p.node.evidence.PoolEvidence`."""

    about = direct(evidence.PoolEvidence.about)
    standing = direct(evidence.PoolEvidence.standing)
    cite = bridged(evidence.PoolEvidence.cite)


class Council(Facade[council.Council]):
    """Motions of one pool. See `converge_p2p.node.council.Council`."""

    motions = direct(council.Council.motions)
    motion = direct(council.Council.motion)
    content = direct(council.Council.content)
    move = bridged(council.Council.move)
    second = bridged(council.Council.second)
    add_elector = bridged(council.Council.add_elector)
    remove_elector = bridged(council.Council.remove_elector)
    rotate_elector = bridged(council.Council.rotate_elector)
    dispute = bridged(council.Council.dispute)
    dispute_rivals = bridged(council.Council.dispute_rivals)
    say = bridged(council.Council.say)
    coordinate = bridged(council.Council.coordinate)
    watch_motions = streamed(council.Council.watch_motions)
    watch_epochs = streamed(council.Council.watch_epochs)

    @property
    def epoch(self) -> int:
        """The number of the epoch in force here."""
        return self.inner.epoch

    @property
    def coordination(self) -> Coordination:
        """Auctions, polls, negotiations and delegations of the pool, to read."""
        return self.inner.coordination

    @property
    def evidence(self) -> PoolEvidence:
        """What was cited for and against results."""
        return PoolEvidence(self._calls, self.inner.evidence)


class PoolHandle(Facade[handles.PoolHandle], PoolReader):
    """A pool this node takes part in. See `converge_p2p.PoolHandle`; what is read is read in the same way."""

    submit = giving(TaskHandle, handles.PoolHandle.submit)
    explain = bridged(handles.PoolHandle.explain)
    cancel = bridged(handles.PoolHandle.cancel)
    veto = bridged(handles.PoolHandle.veto)
    let_pass = bridged(handles.PoolHandle.let_pass)
    judge = bridged(handles.PoolHandle.judge)
    claim = bridged(handles.PoolHandle.claim)
    release = bridged(handles.PoolHandle.release)
    report = bridged(handles.PoolHandle.report)
    report_bytes = bridged(handles.PoolHandle.report_bytes)
    settled = bridged(handles.PoolHandle.settled)
    wait_ready = bridged(handles.PoolHandle.wait_ready)
    wait_member = bridged(handles.PoolHandle.wait_member)
    leave = bridged(handles.PoolHandle.leave)
    audit = bridged(handles.PoolHandle.audit)
    culprits = bridged(handles.PoolHandle.culprits)
    watch = streamed(handles.PoolHandle.watch)
    invite = direct(handles.PoolHandle.invite)
    vouch = direct(handles.PoolHandle.vouch)
    judges = direct(handles.PoolHandle.judges)
    works_on = direct(handles.PoolHandle.works_on)
    trust_store = direct(handles.PoolHandle.trust_store)

    def __init__(self, calls: Calls, inner: handles.PoolHandle) -> None:
        """Made by the node."""
        Facade.__init__(self, calls, inner)
        PoolReader.__init__(self, calls.node, inner.driver)

    @property
    def council(self) -> Council:
        """Motions to change the pool, and disputes."""
        return Council(self._calls, self.inner.council)

    @property
    def blobs(self) -> PoolBlobs:
        """Contents too large for a task, of this pool's tasks."""
        return PoolBlobs(self._calls, self.inner.blobs)

    @property
    def keys(self) -> PoolKeys:
        """How this node's key in the pool is handed over or recovered."""
        return PoolKeys(self._calls, self.inner.keys)

    @property
    def counters(self) -> dict[str, int]:
        """Counts of this pool since the start."""
        return self.inner.counters

    @property
    def dropped_changes(self) -> int:
        """Changes that slow readers of `watch` did not get."""
        return self.inner.dropped_changes

    def handler(
        self, objective: str, *, concurrency: int = 1, claim_ttl: float | None = None
    ) -> Callable[[_Function], _Function]:
        """Decorate a function `(task, context) -> result` that does the tasks of an objective.

        See `converge_p2p.PoolHandle.handler`; an async one runs in asyncio, and is cancelled there.
        """

        def decorate(function: _Function) -> _Function:
            self.add_handler(objective, function, concurrency=concurrency, claim_ttl=claim_ttl)
            return function

        return decorate

    def add_handler(
        self, objective: str, function: HandlerFunction, *, concurrency: int = 1, claim_ttl: float | None = None
    ) -> None:
        """Do the tasks of an objective with a function from now on. See `handler`."""
        own = _for_trio(self._calls, function)
        self.inner.add_handler(objective, own, concurrency=concurrency, claim_ttl=claim_ttl)

    def evaluator(self, function: _Function) -> _Function:
        """Decorate a function `(task, result) -> bool` that judges the tasks whose evaluator this node is."""
        self.add_evaluator(function)
        return function

    def add_evaluator(self, function: EvaluationFunction) -> None:
        """Judge with a function from now on. See `converge_p2p.PoolHandle.evaluator`."""
        self.inner.add_evaluator(in_asyncio(function))

    def add_opinions(self, function: OpinionFunction) -> None:
        """Answer every motion with a function from now on. See `converge_p2p.PoolHandle.add_opinions`."""
        self.inner.add_opinions(in_asyncio(function))


def _for_trio(calls: Calls, function: HandlerFunction) -> attempt.HandlerFunction:
    """Let a pool call a handler that is written for asyncio."""
    if inspect.iscoroutinefunction(function):

        async def handle(view: TaskView, context: attempt.WorkContext) -> Any:
            return await into_asyncio(function(view, WorkContext(calls, context)))

        return handle
    return in_asyncio(lambda view, context: function(view, WorkContext(calls, context)))


@dataclass(frozen=True, slots=True)
class Accepted:
    """What came of an invitation. See `converge_p2p.node.invitations.Accepted`."""

    line: InvitationLine
    topics: tuple[TopicHandle, ...]
    pool: PoolHandle | None


def _accepted(calls: Calls, inner: invitations.Accepted) -> Accepted:
    pool = None if inner.pool is None else PoolHandle(calls, inner.pool)
    return Accepted(inner.line, _handles(calls, inner.topics), pool)


def _handles(calls: Calls, inner: tuple[topics.TopicHandle, ...]) -> tuple[TopicHandle, ...]:
    return tuple(TopicHandle(calls, each) for each in inner)


class Invitations(Facade[invitations.Invitations]):
    """Inviting others, and following invitations. See `Node.invitations` of `converge_p2p`."""

    write = bridged(invitations.Invitations.write)
    accept = giving(_accepted, invitations.Invitations.accept)
    take_part = giving(_handles, invitations.Invitations.take_part)

    @property
    def network_key(self) -> NetworkKey | None:
        """Of the private network that this node is in."""
        return self.inner.network_key

    @property
    def accepted_network(self) -> tuple[bytes, int] | None:
        """During a change of the network's key: the other key's network, and how many connections came with it."""
        return self.inner.accepted_network


class DiscoveryService(Facade[discovery.DiscoveryService]):
    """Finding agents, and being found. See `converge_p2p.DiscoveryService`."""

    register = bridged(discovery.DiscoveryService.register)
    unregister = bridged(discovery.DiscoveryService.unregister)
    query = bridged(discovery.DiscoveryService.query)
    lookup = bridged(discovery.DiscoveryService.lookup)
    find = direct(discovery.DiscoveryService.find)
    known = direct(discovery.DiscoveryService.known)
    matching = direct(discovery.DiscoveryService.matching)
    declare = direct(discovery.DiscoveryService.declare)
    withdraw = direct(discovery.DiscoveryService.withdraw)
    watch = streamed(discovery.DiscoveryService.watch)

    @property
    def own(self) -> AgentDescriptor | None:
        """What this node said of itself last, if it said anything since it was started."""
        return self.inner.own

    @property
    def size(self) -> int:
        """How many agents are held, those that left among them."""
        return self.inner.size

    @property
    def trust(self) -> TrustModel:
        """This node's opinion of others."""
        return self.inner.trust

    @property
    def history(self) -> TrustHistory:
        """What moves that opinion."""
        return self.inner.history
