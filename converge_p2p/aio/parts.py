"""The parts of a node that people and programs look after it with, for asyncio: who joins, its links, what it measures.

Knows: which methods there are, and what they give. Must not know: how a call crosses over.
Source: `docs/embedding.md`. A test holds that nothing of the parts for trio is left out.
"""

from __future__ import annotations

from collections.abc import Callable

from converge_p2p.aio.facade import Facade, bridged, direct, giving, streamed
from converge_p2p.aio.handles import PoolHandle
from converge_p2p.core.model.join_request import HeldRequest
from converge_p2p.core.types import PublicKey, TaskId
from converge_p2p.node import agents, bids, join_asking, join_requests, joins, links, observation
from converge_p2p.runtime.metrics import Metrics
from converge_p2p.runtime.tracing import Tracer


class JoinRequests(Facade[join_requests.JoinRequests]):
    """Who asks to be let into pools of this node. See `converge_p2p.node.join_requests.JoinRequests`."""

    all = direct(join_requests.JoinRequests.all)

    async def admit(self, pool: PoolHandle, joiner: PublicKey, reason: str = "", *, vote: bool = False) -> HeldRequest:
        """Let a newcomer in, as far as this node can. Arguments and errors are those of the class for trio."""
        return await self._calls.run(self.inner.admit, pool.inner, joiner, reason, vote=vote)

    async def refuse(self, pool: PoolHandle, joiner: PublicKey, reason: str = "") -> HeldRequest:
        """Say no. Arguments and errors are those of the class for trio."""
        return await self._calls.run(self.inner.refuse, pool.inner, joiner, reason)


class JoinAsking(Facade[join_asking.JoinAsking]):
    """The pools that this node asks to be let into. See `converge_p2p.node.join_asking.JoinAsking`."""

    all = direct(join_asking.JoinAsking.all)
    silence = direct(join_asking.JoinAsking.silence)
    hold_back = direct(join_asking.JoinAsking.hold_back)
    follow = giving(PoolHandle, join_asking.JoinAsking.follow)
    ask = bridged(join_asking.JoinAsking.ask)
    withdraw = bridged(join_asking.JoinAsking.withdraw)

    @property
    def when_joined(self) -> Callable[[PoolHandle], None]:
        """Is called with each pool that this node was let into; a plain function, which may be set."""
        inner = self.inner
        return lambda pool: inner.when_joined(pool.inner)

    @when_joined.setter
    def when_joined(self, function: Callable[[PoolHandle], None]) -> None:
        calls = self._calls
        self.inner.when_joined = lambda pool: function(PoolHandle(calls, pool))


class Joins(Facade[joins.Joins]):
    """Join requests. See `converge_p2p.node.joins.Joins`."""

    @property
    def requests(self) -> JoinRequests:
        """Those of others, which wait here."""
        return JoinRequests(self._calls, self.inner.requests)

    @property
    def asking(self) -> JoinAsking:
        """The own ones."""
        return JoinAsking(self._calls, self.inner.asking)


class Links(Facade[links.Links]):
    """The peers of a node, for people who look after it. See `converge_p2p.node.links.Links`."""

    find = direct(links.Links.find)
    report = direct(links.Links.report)
    reports = direct(links.Links.reports)
    blocked = direct(links.Links.blocked)
    topic_peers = direct(links.Links.topic_peers)
    set_bootstrap = direct(links.Links.set_bootstrap)
    learn = direct(links.Links.learn)
    forget = direct(links.Links.forget)
    connect = bridged(links.Links.connect)
    disconnect = bridged(links.Links.disconnect)
    block = bridged(links.Links.block)
    unblock = bridged(links.Links.unblock)
    ping = bridged(links.Links.ping)

    @property
    def bootstrap(self) -> tuple[str, ...]:
        """The addresses that are dialled for ever."""
        return self.inner.bootstrap


class Observation(Facade[observation.Observation]):
    """Metrics, traces, events and health of a node. See `converge_p2p.node.observation.Observation`."""

    counters = direct(observation.Observation.counters)
    metrics_text = direct(observation.Observation.metrics_text)
    clock_jumped = direct(observation.Observation.clock_jumped)
    troubles = bridged(observation.Observation.troubles)
    watch_events = streamed(observation.Observation.watch_events)

    @property
    def metrics(self) -> Metrics:
        """Where things are counted."""
        return self.inner.metrics

    @property
    def tracer(self) -> Tracer:
        """What makes spans."""
        return self.inner.tracer


class Bids(Facade[bids.Bids]):
    """This node's sealed bids. See `converge_p2p.node.bids.Bids`."""

    concerns = direct(bids.Bids.concerns)

    async def submit(self, pool: PoolHandle, task: TaskId, amount: int) -> None:
        """Make a sealed bid for a task. Arguments and errors are those of the class for trio."""
        await self._calls.run(self.inner.submit, pool.inner, task, amount)


class Hosting(Facade[agents.Agents]):
    """The agents of a node. See `Node.host`, and `converge_p2p.node.agents.Agents`."""

    hosted = direct(agents.Agents.hosted)
    counts = direct(agents.Agents.counts)
    replay_entries = direct(agents.Agents.replay_entries)
    checkpoints = direct(agents.Agents.checkpoints)
