"""Peers and join requests in memory, as the control interface sees them: nobody is connected, and nobody is asked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from converge_p2p.core.errors import NetworkError, NotFound
from converge_p2p.core.identity import fingerprint
from converge_p2p.core.model.join_request import Application, HeldRequest, JoinState
from converge_p2p.core.types import PeerId, PoolId, PublicKey
from converge_p2p.net import peer_id_of, public_key_of
from converge_p2p.net.addresses import split_peer_address
from converge_p2p.node.links import Links


class FakeLinks(Links):
    """Names are understood as by a real node; the rest is kept in tables."""

    def __init__(self, node: Any) -> None:
        self._node = node
        self.kept: tuple[str, ...] = ()
        self.out: dict[PeerId, float] = {}
        self.book: dict[PeerId, str] = {}
        self.calls: list[tuple[str, Any]] = []

    @property
    def bootstrap(self) -> tuple[str, ...]:
        return self.kept

    def set_bootstrap(self, addresses: Sequence[str]) -> None:
        for address in addresses:
            split_peer_address(address)
        self.kept = tuple(addresses)

    def report(self, peer: PeerId) -> Any:
        key = public_key_of(peer)
        known = {each.peer_id: each for each in self._node.peers()}.get(peer)
        link = None if known is None else SimpleNamespace(direction="inbound", relayed=False, replicating=True, since=0)
        return SimpleNamespace(
            peer_id=peer,
            agent_id=fingerprint(key),
            public_key=key,
            connected=link,
            addresses=(self.book[peer],) if peer in self.book else (),
            trust=0.5,
            violations=0,
            blocked_s=self.out.get(peer),
            bootstrap=False,
        )

    def reports(self) -> list[Any]:
        return [self.report(each.peer_id) for each in self._node.peers() if str(each.peer_id) != "12D3KooWFake"]

    def blocked(self) -> dict[PeerId, float]:
        return self.out

    def learn(self, address: str) -> PeerId:
        peer, self.book[peer] = split_peer_address(address)
        return peer

    def topic_peers(self, topic: Any) -> list[PeerId]:
        if topic not in self._node.topics():
            raise NotFound("this node takes no part in the topic")
        return [each.peer_id for each in self._node.peers() if str(each.peer_id) != "12D3KooWFake"]

    async def connect(self, text: str, timeout_s: float = 15.0) -> PeerId:
        peer = self.find(text)
        self.calls.append(("connect", peer))
        return peer

    async def disconnect(self, peer: PeerId) -> None:
        self.calls.append(("disconnect", peer))

    async def block(self, peer: PeerId, seconds: float | None = None) -> None:
        self.out[peer] = math.inf if seconds is None else seconds

    async def unblock(self, peer: PeerId) -> None:
        if self.out.pop(peer, None) is None:
            raise NotFound("it is not kept out")

    def forget(self, peer: PeerId) -> None:
        if self.book.pop(peer, None) is None:
            raise NotFound("no address of it is known")

    async def ping(self, peer: PeerId, count: int = 1) -> list[float]:
        return [0.001] * count


class FakeRequests:
    def __init__(self) -> None:
        self.held: dict[tuple[PoolId, PublicKey], HeldRequest] = {}

    def hold(self, pool: PoolId, joiner: PublicKey) -> None:
        self.held[pool, joiner] = HeldRequest(pool, joiner, "let me in", 1000, 2000)

    def all(self, pool: PoolId | None = None) -> list[HeldRequest]:
        return [each for each in self.held.values() if pool in (None, each.pool)]

    async def admit(self, pool: Any, joiner: PublicKey, reason: str = "", *, vote: bool = False) -> HeldRequest:
        if vote:
            return self._decide(pool, joiner, motion=b"m" * 32)
        return self._decide(pool, joiner, state=JoinState.ADMITTED)

    async def refuse(self, pool: Any, joiner: PublicKey, reason: str = "") -> HeldRequest:
        return self._decide(pool, joiner, state=JoinState.REFUSED, reason=reason)

    def _decide(self, pool: Any, joiner: PublicKey, **what: Any) -> HeldRequest:
        found = self.held[pool.id, joiner] = replace(self.held[pool.id, joiner], **what)
        return found


class FakeAsking:
    def __init__(self) -> None:
        self.asked: dict[PoolId, Application] = {}
        self.when_joined: Any = lambda _pool: None
        self.held_back: frozenset[PoolId] = frozenset()

    def all(self) -> list[Application]:
        return list(self.asked.values())

    def silence(self, pool: PoolId) -> str:
        return ""

    def hold_back(self, pools: Iterable[PoolId]) -> None:
        self.held_back = frozenset(pools)

    async def ask(
        self, pool: PoolId, *, note: str = "", capabilities: Sequence[str] = (), timeout_s: float | None = None
    ) -> Application:
        if timeout_s is not None and timeout_s < 1:
            raise NetworkError("no connected peer knows the pool")
        return self.asked.setdefault(pool, Application(pool, note, tuple(capabilities), 1000, 2000))

    async def withdraw(self, pool: PoolId) -> None:
        if self.asked.pop(pool, None) is None:
            raise NotFound("this node does not ask to join that pool")


class FakeJoins:
    def __init__(self, _node: Any) -> None:
        self.requests = FakeRequests()
        self.asking = FakeAsking()


def peer_of(identity: Any) -> PeerId:
    """The peer id of an identity."""
    return peer_id_of(identity.public_key)
