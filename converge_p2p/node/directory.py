"""Pools one hears of: announced by peers, checked against their ids, bounded.

Knows: founding operations. Must not know: the pools this node takes part in.
Source: `docs/protocol.md`, announcements. An announcement is the pool's signed founding operation, so that nobody can
announce a pool under another's id; a peer can only announce too many, which is bounded for each.
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
    """The announcements held, at most `limits.ANNOUNCED_POOLS_MAX`."""

    def __init__(self) -> None:
        self._known: dict[PoolId, PoolAnnouncement] = {}
        self._by_peer: Counter[PeerId] = Counter()

    def all(self) -> list[PoolAnnouncement]:
        """Every announcement, in the order in which they were heard."""
        return list(self._known.values())

    def get(self, pool: PoolId) -> PoolAnnouncement | None:
        """An announcement, or None."""
        return self._known.get(pool)

    def add_own(self, pool: PoolId, genesis: bytes) -> PoolAnnouncement:
        """Announce a pool this node takes part in."""
        known = self._known[pool] = read_announcement(pool, genesis)
        return known

    def take(self, peer: PeerId, payload: bytes) -> list[PoolAnnouncement]:
        """Read a peer's announcements, and return the new ones.

        Raises:
            CodecError: malformed, or an announcement that is not genuine; what came before it is kept.
        """
        plain = decode(payload)
        if type(plain) is not list or len(plain) > limits.ANNOUNCED_POOLS_MAX:
            raise CodecError(f"announcements are an array of at most {limits.ANNOUNCED_POOLS_MAX}")
        new: list[PoolAnnouncement] = []
        for item in plain:
            match item:
                case [bytes() as pool, bytes() as genesis] if len(pool) == 32:
                    if PoolId(pool) in self._known or not self._room(peer):
                        continue
                    try:
                        announcement = read_announcement(PoolId(pool), genesis)
                    except ConvergeError as error:
                        raise CodecError(f"not an announcement: {error}") from error
                    self._known[announcement.id] = announcement
                    self._by_peer[peer] += 1
                    new.append(announcement)
                case _:
                    raise CodecError("an announcement is a pool id and a founding operation")
        return new

    def _room(self, peer: PeerId) -> bool:
        full = len(self._known) >= limits.ANNOUNCED_POOLS_MAX
        return not full and self._by_peer[peer] < limits.POOLS_PER_PEER_ANNOUNCED_MAX

    def forget_peer(self, peer: PeerId) -> None:
        """A peer that is gone no longer counts against its quota."""
        self._by_peer.pop(peer, None)


def encode_announcements(announcements: list[PoolAnnouncement]) -> Iterator[bytes]:
    """Yield payloads of a size that fits one frame."""
    part: list[list[bytes]] = []
    size = 0
    for item in announcements:
        if part and size + len(item.genesis) > limits.BATCH_BYTES_MAX:
            yield encode(part)
            part, size = [], 0
        part.append([item.id, item.genesis])
        size += len(item.genesis)
    if part:
        yield encode(part)
