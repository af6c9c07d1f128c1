"""Pools one hears of: announced by peers, checked against their ids, bounded.

Knows: founding operations, and who told of them. Must not know: the pools this node takes part in.
Source: `docs/protocol.md`, frames between nodes. An announcement is the pool's signed founding operation, so nobody can
announce a pool under another's id; a peer can only announce too many. So places are shared out: each peer has a quota,
which a reconnection does not renew, and when all places are taken the peer with the most makes room.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from converge_p2p.core import limits
from converge_p2p.core.codec import decode, encode
from converge_p2p.core.errors import CodecError, ConvergeError
from converge_p2p.core.identity import fingerprint
from converge_p2p.core.model.pool import pool_id
from converge_p2p.core.oplog.bodies import Genesis
from converge_p2p.core.oplog.operation import decode_operation
from converge_p2p.core.types import AgentId, PeerId, PoolId

_QUOTA = limits.POOLS_PER_PEER_ANNOUNCED_MAX


@dataclass(frozen=True, slots=True)
class PoolAnnouncement:
    """A pool that was heard of.

    Attributes:
        id: its id.
        name: its name.
        governance: name of its model.
        task_types: objectives it is for.
        creator: agent id of its creator.
        genesis: the signed founding operation.
    """

    id: PoolId
    name: str
    governance: str
    task_types: tuple[str, ...]
    creator: AgentId
    genesis: bytes


def read_announcement(pool: PoolId, genesis: bytes) -> PoolAnnouncement:
    """Check and read a founding operation.

    Raises:
        RemoteViolation, CodecError: it does not found this pool.
    """
    operation = decode_operation(genesis, pool)
    body = operation.body
    if not isinstance(body, Genesis) or operation.seq != 0 or pool_id(operation.author, body.spec) != pool:
        raise CodecError("the operation does not found the announced pool")
    spec = body.spec
    return PoolAnnouncement(
        pool, spec.name, spec.governance.name.lower(), spec.task_types, fingerprint(operation.author), genesis
    )


class Directory:
    """The pools of this node, and at most `limits.ANNOUNCED_POOLS_MAX` that others announced."""

    def __init__(self) -> None:
        """Make it empty."""
        self._known: dict[PoolId, PoolAnnouncement] = {}
        self._heard_from: dict[PoolId, PeerId] = {}
        self._by_peer: Counter[PeerId] = Counter()
        self._gone: set[PeerId] = set()

    def all(self) -> list[PoolAnnouncement]:
        """Every announcement, in the order in which they were heard."""
        return list(self._known.values())

    def get(self, pool: PoolId) -> PoolAnnouncement | None:
        """An announcement, or None."""
        return self._known.get(pool)

    def add_own(self, pool: PoolId, genesis: bytes) -> PoolAnnouncement:
        """Announce a pool this node takes part in. It takes nobody's place, and nobody can take its."""
        announcement = read_announcement(pool, genesis)
        self._drop(pool)
        self._known[pool] = announcement
        return announcement

    def forget(self, pool: PoolId) -> None:
        """Forget a pool."""
        self._drop(pool)

    def take(self, peer: PeerId, payload: bytes) -> list[PoolAnnouncement]:
        """Read a peer's announcements, and return the new ones.

        Raises:
            CodecError: malformed, or an announcement that is not genuine; nothing of the payload is kept.
        """
        plain = decode(payload)
        if type(plain) is not list or len(plain) > limits.ANNOUNCED_POOLS_MAX:
            raise CodecError(f"announcements are an array of at most {limits.ANNOUNCED_POOLS_MAX}")
        new: list[PoolAnnouncement] = []
        for item in plain:
            match item:
                case [bytes() as pool, bytes() as genesis] if len(pool) == 32:
                    # the bound comes before the signature, so that too many cost nothing
                    if PoolId(pool) in self._known or self._by_peer[peer] + len(new) >= _QUOTA:
                        continue
                    try:
                        new.append(read_announcement(PoolId(pool), genesis))
                    except ConvergeError as error:
                        raise CodecError(f"not an announcement: {error}") from error
                case _:
                    raise CodecError("an announcement is a pool id and a founding operation")
        return [announcement for announcement in new if self._keep(peer, announcement)]

    def peer_up(self, peer: PeerId) -> None:
        """A peer is here (again): what it announced counts as announced by somebody who stands for it."""
        self._gone.discard(peer)

    def peer_down(self, peer: PeerId) -> None:
        """A peer is gone: what it announced stays as long as nobody needs the place."""
        if self._by_peer[peer]:
            self._gone.add(peer)

    def _keep(self, peer: PeerId, announcement: PoolAnnouncement) -> bool:
        if announcement.id in self._known:
            return False
        if len(self._heard_from) >= limits.ANNOUNCED_POOLS_MAX and not self._make_room(peer):
            return False
        self._known[announcement.id] = announcement
        self._heard_from[announcement.id] = peer
        self._by_peer[peer] += 1
        return True

    def _make_room(self, peer: PeerId) -> bool:
        """Forget the oldest announcement of a peer that is gone, or of the one with the most.

        Not if that leaves the one who asks with more than the other: then the two would take turns for ever.
        """
        source = max(self._by_peer, key=lambda source: (source in self._gone, self._by_peer[source]))
        if source not in self._gone and self._by_peer[source] <= self._by_peer[peer] + 1:
            return False
        self._drop(next(pool for pool, heard_from in self._heard_from.items() if heard_from == source))
        return True

    def _drop(self, pool: PoolId) -> None:
        self._known.pop(pool, None)
        source = self._heard_from.pop(pool, None)
        if source is None:
            return
        self._by_peer[source] -= 1
        if not self._by_peer[source]:
            del self._by_peer[source]
            self._gone.discard(source)


def encode_announcements(announcements: list[PoolAnnouncement]) -> Iterator[bytes]:
    """Yield payloads that a peer takes: of a size that fits one frame, and of a number that `Directory.take` allows."""
    part: list[list[bytes]] = []
    size = 0
    for item in announcements:
        full = len(part) >= limits.ANNOUNCED_POOLS_MAX or size + len(item.genesis) > limits.BATCH_BYTES_MAX
        if part and full:
            yield encode(part)
            part, size = [], 0
        part.append([item.id, item.genesis])
        size += len(item.genesis)
    if part:
        yield encode(part)
