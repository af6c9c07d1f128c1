"""The peers of a node, for people who look after it: connecting, keeping out, forgetting.

Knows: the network, and one key of the store. Must not know: pools, or HTTP.
Source: `docs/operations.md`, peers. Who is kept out by people stays out after a restart; who is kept out for breaking
the protocol does not (see `net.conduct`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from converge_p2p.core import limits
from converge_p2p.core.codec import decode, encode
from converge_p2p.core.errors import CodecError, Conflict, LimitExceeded, LocalError, NetworkError, NotFound
from converge_p2p.core.identity import fingerprint
from converge_p2p.core.model.topic import Topic
from converge_p2p.core.model.topic_key import PrivateTopic
from converge_p2p.core.types import AgentId, PeerId, PublicKey
from converge_p2p.net import Network, PeerInfo, public_key_of
from converge_p2p.node.topics import private_name, topic_name
from converge_p2p.store.api import Store

if TYPE_CHECKING:
    from converge_p2p.node.main import Node

BLOCKED_KEY = "peers/blocked"
PREFIX_DIGITS_MIN = 6
PINGS_MAX = 100


@dataclass(frozen=True, slots=True)
class PeerReport:
    """What is known of a peer.

    Attributes:
        peer_id, agent_id: who it is.
        connected: the connection, or None.
        addresses: where it may be reached, best first; without `/p2p/…`.
        trust: what this node thinks of its agent, 0 to 1.
        public_key: its key.
        violations: how often it broke the protocol lately.
        blocked_s: how long it is still kept out; None: it is not, infinity: until it is let in.
        bootstrap: whether it is dialled for ever.
    """

    peer_id: PeerId
    agent_id: AgentId
    public_key: PublicKey
    connected: PeerInfo | None
    addresses: tuple[str, ...]
    trust: float
    violations: int
    blocked_s: float | None
    bootstrap: bool


class Links:
    """The peers of one node."""

    def __init__(self, node: Node, store: Store, network: Callable[[], Network]) -> None:
        """Begin; `restore` reads whom people keep out."""
        self._node = node
        self._store = store
        self._network = network
        self._changing = trio.Lock()
        self._blocked: dict[PeerId, float] = {}
        """Until when, Unix time; infinity is for ever."""

    async def restore(self) -> None:
        """Keep out whom people kept out in the last run. A damaged list counts as none."""
        data = await trio.to_thread.run_sync(self._store.get, BLOCKED_KEY)
        try:
            listed = [] if data is None else decode(data)
            known = {PeerId(peer): float(until or math.inf) for peer, until in listed}
        except (CodecError, TypeError, ValueError):
            known = {}
        now = time.time()
        self._blocked = {peer: until for peer, until in known.items() if until > now}
        for peer, until in self._blocked.items():
            await self._network().ban(peer, until - now)

    # ------------------------------------------------------------ reading

    def find(self, text: str) -> PeerId:
        """Return the peer that a peer id, a multiaddr with `/p2p/…`, or an agent id or its first digits mean.

        Raises:
            NotFound: no peer that is connected or kept out has such an agent id.
            Conflict: several have it.
            LocalError: it is neither.
        """
        name = text.rpartition("/p2p/")[2]
        try:
            public_key_of(PeerId(name))
        except CodecError:
            pass
        else:
            return PeerId(name)
        digits = text.lower()
        if len(digits) < PREFIX_DIGITS_MIN or set(digits) - set("0123456789abcdef"):
            raise LocalError(
                f"{text!r:.80} names no peer",
                hint="write a peer id (12D3Koo…), an address with /p2p/, or six digits or more of an agent id",
            )
        agents = {each.peer_id: each.agent_id for each in self._node.peers()}
        # who is kept out is not connected, and has to be named by whoever lets it in again
        agents |= {peer: fingerprint(public_key_of(peer)) for peer in self.blocked()}
        found = [peer for peer, agent in agents.items() if agent.startswith(digits)]
        if len(found) > 1:
            raise Conflict(f"{text} means several peers", hint="give more digits")
        if not found:
            raise NotFound(
                f"no peer that is connected or kept out has the agent id {text}",
                hint="`converge-node peers scores` lists them; name others by their peer id (12D3Koo…)",
            )
        return found[0]

    def report(self, peer: PeerId) -> PeerReport:
        """Return what is known of a peer, whether or not it is connected."""
        known, key = self._network().acquaintance, public_key_of(peer)
        agent = fingerprint(key)
        connected = {each.peer_id: each for each in self._node.peers()}.get(peer)
        return PeerReport(
            peer,
            agent,
            key,
            connected,
            known.addresses(peer) or (() if connected is None else connected.addresses),
            self._node.discovery.trust.score(agent),
            known.violations(peer),
            known.bans().get(peer),
            any(address.endswith(f"/p2p/{peer}") for address in known.bootstrap),
        )

    def reports(self) -> list[PeerReport]:
        """Return what is known of every connected peer, and of those that are kept out."""
        peers = dict.fromkeys([each.peer_id for each in self._node.peers()])
        return [self.report(peer) for peer in [*peers, *(each for each in self.blocked() if each not in peers)]]

    def blocked(self) -> dict[PeerId, float]:
        """Return who is kept out, by people or for its conduct, and for how many seconds more."""
        return self._network().acquaintance.bans()

    def topic_peers(self, topic: Topic) -> list[PeerId]:
        """Return the connected peers that take part in a topic; of a private one, those that proved that they may.

        Raises:
            NotFound: this node takes no part in it.
        """
        keys = self._node.topics()
        if topic not in keys:
            raise NotFound(f"this node takes no part in topic {topic.namespace}", hint="join it first")
        key = keys[topic]
        name = topic_name(topic) if key is None else private_name(PrivateTopic(topic, key))
        return sorted(self._network().topic_peers(name))

    @property
    def bootstrap(self) -> tuple[str, ...]:
        """The addresses that are dialled for ever."""
        return self._network().acquaintance.bootstrap

    # ------------------------------------------------------------ changing

    def set_bootstrap(self, addresses: Sequence[str]) -> None:
        """Dial these addresses for ever from now on, in place of the present ones.

        Raises:
            ConfigError: one of them is no peer address. Then nothing changed.
        """
        self._network().acquaintance.set_bootstrap(addresses)

    def learn(self, address: str) -> PeerId:
        """Remember an address, to be dialled while there are too few connections. Raises `ConfigError`."""
        return self._network().acquaintance.learn(address)

    async def connect(self, text: str, timeout_s: float = 15.0) -> PeerId:
        """Connect to a peer: at an address with `/p2p/…`, or at those that are known of it.

        Raises:
            NetworkError: it cannot be reached, or is kept out.
            ConfigError, LocalError, NotFound: it is no address, or names no peer.
        """
        if "/p2p/" in text:
            return await self._network().connect(text, timeout_s)
        peer = self.find(text)
        with trio.move_on_after(timeout_s) as scope:
            await self._network().reach(peer)
        if scope.cancelled_caught:
            raise NetworkError(f"peer {peer} did not answer within {timeout_s:g} s")
        return peer

    async def disconnect(self, peer: PeerId) -> None:
        """Close all connections to a peer. It may come back, and a bootstrap peer is dialled again.

        Raises:
            NotFound: it is not connected.
        """
        if peer not in {each.peer_id for each in self._node.peers()}:
            raise NotFound(f"peer {peer} is not connected", hint="`converge-node peers ls` lists peers")
        await self._network().disconnect(peer)

    async def block(self, peer: PeerId, seconds: float | None = None) -> None:
        """Disconnect a peer and keep it out, for a time or until `unblock`, also after a restart.

        Raises:
            LocalError: it is this node.
            LimitExceeded: as many are kept out as may be.
        """
        if peer == self._node.peer_id:
            raise LocalError("a node cannot keep itself out", hint="name another peer")
        length = math.inf if seconds is None else seconds
        # one after the other, or of two lists that are written at once the older one may stay
        async with self._changing:
            now = time.time()
            kept = {each: until for each, until in self._blocked.items() if until > now}
            if len(kept) >= limits.BANNED_PEERS_MAX and peer not in kept:
                raise LimitExceeded(
                    "BANNED_PEERS_MAX", f"{limits.BANNED_PEERS_MAX} peers are kept out", hint="unblock one"
                )
            await self._write(kept | {peer: now + length})
            # a shorter time than before is meant: `ban` alone would keep the longer one. With no wait in between, or
            # the peer would come in meanwhile
            self._network().unban(peer)
            await self._network().ban(peer, length)
        self._node.observation.tell("peer_blocked", peer=str(peer))

    async def unblock(self, peer: PeerId) -> None:
        """Keep a peer out no more, whyever it was.

        Raises:
            NotFound: it is not kept out.
        """
        async with self._changing:
            if peer not in self.blocked():
                raise NotFound(f"peer {peer} is not kept out", hint="`converge-node peers scores` shows who is")
            if peer in self._blocked:
                await self._write({each: until for each, until in self._blocked.items() if each != peer})
            self._network().unban(peer)
        self._node.observation.tell("peer_unblocked", peer=str(peer))

    def forget(self, peer: PeerId) -> None:
        """Know no address of a peer any more; a connection that is open stays, and others may tell of it again.

        Raises:
            NotFound: none was known.
        """
        if not self._network().acquaintance.forget(peer):
            raise NotFound(f"no address of peer {peer} is known")

    async def ping(self, peer: PeerId, count: int = 1) -> list[float]:
        """Return how many seconds a few bytes took to a connected peer and back, `count` times.

        Raises:
            LocalError: it is this node.
            NetworkError: it is not connected, or did not answer.
        """
        if peer == self._node.peer_id:
            raise LocalError(f"peer {peer} is this node itself", hint="`converge-node peers ls` lists its peers")
        return [await self._network().acquaintance.ping(peer) for _ in range(min(count, PINGS_MAX))]

    async def _write(self, blocked: dict[PeerId, float]) -> None:
        listed = [[str(peer), 0 if math.isinf(until) else math.ceil(until)] for peer, until in blocked.items()]
        await trio.to_thread.run_sync(self._store.put, BLOCKED_KEY, encode(listed))
        self._blocked = blocked
