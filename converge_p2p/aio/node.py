"""The node for asyncio applications: a node of trio in the same thread, with its life bound to an `async with` block.

Knows: how a node's life crosses over. Must not know: what its parts do.
Source: `docs/embedding.md`; `docs/decisions/0024-asyncio.md`.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import trio

from converge_p2p.aio.agent import Agent, AgentRuntime
from converge_p2p.aio.blobs import Blobs
from converge_p2p.aio.crossing import Call, TrioRun, unbroken
from converge_p2p.aio.facade import Calls, Facade, bridged, direct, giving, streamed
from converge_p2p.aio.handles import DiscoveryService, Invitations, PoolHandle, TaskHandle, TopicHandle
from converge_p2p.aio.parts import Bids, Hosting, Joins, Links, Observation
from converge_p2p.core.errors import LocalError
from converge_p2p.core.identity import Identity
from converge_p2p.core.types import AgentId, PeerId, PoolId, PublicKey
from converge_p2p.node import main
from converge_p2p.node.config import NodeConfig
from converge_p2p.node.policy import NodePolicy
from converge_p2p.runtime import loop
from converge_p2p.store.api import NodeStore


def _hosted(calls: Calls, runtime: loop.AgentRuntime) -> AgentRuntime:
    hosted = AgentRuntime(calls, runtime)
    if isinstance(runtime.agent, Agent):
        runtime.agent.hosted_by(hosted)
    return hosted


class Node(Facade[main.Node]):
    """One libp2p host with its stores, in asyncio. Use it as `async with Node(...) as node:`; see `converge_p2p.Node`.

    Several may run in one loop. An error of a background part cancels the block, and comes out of it.
    """

    connect = bridged(main.Node.connect)
    join = giving(TopicHandle, main.Node.join)
    send = bridged(main.Node.send)
    deliver = bridged(main.Node.deliver)
    advertise = bridged(main.Node.advertise)
    lookup = bridged(main.Node.lookup)
    create_pool = giving(PoolHandle, main.Node.create_pool)
    home_pool = giving(PoolHandle, main.Node.home_pool)
    submit = giving(TaskHandle, main.Node.submit)
    join_pool = giving(PoolHandle, main.Node.join_pool)
    take_place = giving(PoolHandle, main.Node.take_place)
    leave_pool = bridged(main.Node.leave_pool)
    host = giving(_hosted, main.Node.host)
    known_pools = direct(main.Node.known_pools)
    peers = direct(main.Node.peers)
    connected_keys = direct(main.Node.connected_keys)
    status = direct(main.Node.status)
    topics = direct(main.Node.topics)
    key_of = direct(main.Node.key_of)
    agents = direct(main.Node.agents)
    watch_pools = streamed(main.Node.watch_pools)

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
        """Set a node up. No I/O happens here. Arguments and errors are those of `converge_p2p.Node`."""
        self.inner = main.Node(
            home=home,
            identity=identity,
            listen=listen,
            bootstrap=bootstrap,
            announce=announce,
            store=store,
            restored=restored,
            config=config,
        )
        self._entered = False
        self._block: asyncio.Task[object] | None = None
        self._interrupted = False

    # ------------------------------------------------------------ life

    async def __aenter__(self) -> Node:
        if self._entered:
            raise LocalError("this node was started before", hint="make a new Node; the home may be the same")
        self._entered = True
        self._trio = await TrioRun.enter()
        self._started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._closing = trio.Event()
        self._life = Call(self._trio.nursery, self._run)
        try:
            await self._begun()
        except BaseException:
            await self._trio.leave()
            raise
        self._block = asyncio.current_task()
        self._life.done.add_done_callback(self._ended)
        return self

    async def _begun(self) -> None:
        try:
            await asyncio.wait((self._started, self._life.done), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self._life.cancel()
            await unbroken(self._life.done)
            raise
        if self._life.done.done():
            self._life.done.result()

    async def _run(self) -> None:
        failed: Exception | None = None
        async with trio.open_nursery() as nursery:
            self._calls = Calls(nursery, self.inner)
            try:
                async with self.inner:
                    self._started.set_result(None)
                    await self._closing.wait()
            except Exception as error:  # noqa: BLE001 - raised again below, where the nursery does not wrap it
                failed = error
            # who waited for something of the node was told; calls that go on all the same end here
            nursery.cancel_scope.cancel()
        if failed is not None:
            raise failed

    def _ended(self, _: object) -> None:
        # before the block did: it is told as a task group tells it
        if self._block is not None:
            self._interrupted = True
            self._block.cancel()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        block, self._block = self._block, None
        self._closing.set()
        cancelled: asyncio.CancelledError | None = None
        try:
            await unbroken(self._life.done)
        except asyncio.CancelledError as stopped:
            cancelled = stopped
        await self._trio.leave()
        if self._interrupted and block is not None:
            block.uncancel()
        # as in a task group, an error is told before a cancellation, which may be nothing but the news of it
        self._life.done.result()
        if cancelled is not None:
            raise cancelled

    # ------------------------------------------------------------ what it is

    @property
    def identity(self) -> Identity:
        """Whose node this is. Raises `LocalError` before it was started."""
        return self.inner.identity

    @property
    def id(self) -> AgentId:
        """Agent id."""
        return self.inner.id

    @property
    def public_key(self) -> PublicKey:
        """Public key."""
        return self.inner.public_key

    @property
    def peer_id(self) -> PeerId:
        """Name on the network."""
        return self.inner.peer_id

    @property
    def addresses(self) -> tuple[str, ...]:
        """Multiaddrs that other nodes can use for `bootstrap`."""
        return self.inner.addresses

    @property
    def policy(self) -> NodePolicy:
        """What this node lets happen."""
        return self.inner.policy

    @property
    def pools(self) -> dict[PoolId, PoolHandle]:
        """The pools this node takes part in; a copy."""
        return {name: PoolHandle(self._calls, pool) for name, pool in self.inner.pools.items()}

    @property
    def discovery(self) -> DiscoveryService:
        """Finding agents, and being found."""
        return DiscoveryService(self._calls, self.inner.discovery)

    @property
    def blobs(self) -> Blobs:
        """Contents too large for a task."""
        return Blobs(self._calls, self.inner.blobs)

    @property
    def invitations(self) -> Invitations:
        """Inviting others, and following invitations."""
        return Invitations(self._calls, self.inner.invitations)

    @property
    def joins(self) -> Joins:
        """Asking to be let into pools, and who asks to be let into those of this node."""
        return Joins(self._calls, self.inner.joins)

    @property
    def links(self) -> Links:
        """Its peers, for people who look after it."""
        return Links(self._calls, self.inner.links)

    @property
    def observation(self) -> Observation:
        """Its metrics, traces, events and health."""
        return Observation(self._calls, self.inner.observation)

    @property
    def hosting(self) -> Hosting:
        """The agents of this node."""
        return Hosting(self._calls, self.inner.hosting)

    @property
    def bids(self) -> Bids:
        """This node's sealed bids."""
        return Bids(self._calls, self.inner.bids)

    @property
    def counters(self) -> Counter[str]:
        """Drops, refusals and errors of the node itself; `observation.counters` has those of all its parts."""
        return self.inner.counters
