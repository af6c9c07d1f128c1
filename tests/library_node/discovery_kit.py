"""Several discovery services on one simulated network: links, lossy gossip, a hash table, and a clock for each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import trio
from node_library_kit import FakeNetwork, who

from converge_p2p.core.errors import Conflict
from converge_p2p.core.identity import Identity
from converge_p2p.core.model.registry import IdentityRegistry
from converge_p2p.core.types import PeerId
from converge_p2p.node.agent_news import TOPIC
from converge_p2p.node.discovery import DiscoveryService
from converge_p2p.node.records import DescriptorRecords
from converge_p2p.store.memory import MemoryStore

NOW = 1_700_000_000_000


class Mesh:
    """The network. Gossip floods along links, and frames arrive at once."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        self.members: dict[PeerId, Member] = {}
        self.records: dict[str, bytes] = {}
        self.claims: dict[bytes, dict[PeerId, None]] = {}
        self.deaf = False
        """Whether gossip loses everything."""
        self.now_ms: Callable[[], int] = lambda: NOW + int(trio.current_time() * 1000)

    async def join(self, number: int, *links: Member, **more: Any) -> Member:
        """A member with links to others."""
        member = Member(self, who(number), **more)
        await member.service.restore()
        self.members[member.peer] = member
        await member.service.open(member.network, self.nursery, member.send)  # type: ignore[arg-type]
        for other in links:
            member.link(other)
        return member


class Member:
    """One node's discovery."""

    def __init__(self, mesh: Mesh, identity: Identity, store: MemoryStore | None = None, lag_ms: int = 0) -> None:
        self.mesh = mesh
        self.identity = identity
        self.store = store or MemoryStore()
        self.counters: Counter[str] = Counter()
        self.registry = IdentityRegistry()
        self.network = MeshNetwork(self)
        self.peer = self.network.peer_id
        self.linked: dict[PeerId, None] = {}
        self.sent = 0
        self.service = DiscoveryService(
            identity, self.store, self.counters, self.registry, now_ms=lambda: mesh.now_ms() - lag_ms
        )

    def link(self, other: Member) -> None:
        for one, two in ((self, other), (other, self)):
            one.linked[two.peer] = None
        self.service.peer_up(other.peer)
        other.service.peer_up(self.peer)

    def leave(self) -> None:
        """The links break, without a word."""
        self.mesh.members.pop(self.peer, None)
        for peer in list(self.linked):
            other = self.mesh.members.get(peer)
            if other is not None:
                other.linked.pop(self.peer)
                other.service.peer_down(self.peer)
        self.linked.clear()
        self.service._scope.cancel()

    def send(self, peer: PeerId, payload: bytes) -> None:
        self.sent += 1
        other = self.mesh.members.get(peer)
        if other is not None and peer in self.linked:
            other.service.frame(self.peer, payload)

    def hear(self, neighbour: PeerId, data: bytes) -> None:
        """Gossip arrives, and what is valid goes on."""
        _, validate = self.network.topics[TOPIC]
        if validate(neighbour, data):
            self.spread(data, neighbour)

    def spread(self, data: bytes, source: PeerId | None = None) -> None:
        if not self.mesh.deaf:
            for peer in list(self.linked):
                if peer != source and peer in self.mesh.members:
                    self.mesh.members[peer].hear(self.peer, data)


class MeshNetwork(FakeNetwork):
    """A member's view of it."""

    def __init__(self, member: Member) -> None:
        super().__init__(member.identity)
        self.member = member
        self.table = True

    async def publish(self, topic: str, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        assert topic == TOPIC
        self.published.append((topic, data))
        self.member.spread(data)

    async def put_record(self, key: str, value: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self.puts += 1
        if self.put_failure is not None:
            raise self.put_failure
        rank = DescriptorRecords().rank
        held = self.member.mesh.records.get(key)
        mine = rank(key, value)
        if held is not None and mine is not None and (rank(key, held) or 0) > mine:
            raise Conflict("a newer one is known")
        self.member.mesh.records[key] = value

    async def get_record(self, key: str) -> bytes | None:
        await trio.lowlevel.checkpoint()
        return self.member.mesh.records.get(key)

    async def claim(self, key: bytes) -> int:
        await trio.lowlevel.checkpoint()
        self.member.mesh.claims.setdefault(key, {})[self.peer_id] = None
        return 1

    async def claimants(self, key: bytes, limit: int) -> tuple[PeerId, ...]:
        await trio.lowlevel.checkpoint()
        return tuple(self.member.mesh.claims.get(key, {}))[:limit]
