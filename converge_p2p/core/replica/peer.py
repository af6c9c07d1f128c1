"""What is known of one peer: what it said it has, what was asked of it, and how it kept its word.

Knows: the words of one peer, and their bounds. Must not know: other peers, or what to do next (see `session`).
Source: `docs/protocol.md`, sync.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

from converge_p2p.core import limits
from converge_p2p.core.oplog.frontier import FrontierEntry
from converge_p2p.core.replica.fetch import Piece
from converge_p2p.core.types import PublicKey

_LONG_AGO_MS = -(10**9)


@dataclass(slots=True)
class PeerState:
    """What is going on with one peer.

    Attributes:
        targets: how long each author's chain is over there, as far as it said so and we lack some of it.
        hints: the same, guessed from an operation it passed on: it is not to blame if it has no more.
        apart: authors whose chain is as long over there and ends differently.
        looked_at: authors of whom it had just what waits at the end of the chain here, how long that is, and until
            when this is believed: the answer that said so may have been a late one, to a request given up before.
        loose: frozen authors whose loose operations differ over there.
        more: it left out entries that are missing here.
        asked: the pieces of the request under way.
        came: how much of them came.
        came_ms: when the last of it came, or when it was asked for.
        asked_until_ms: when the request is given up.
        avoided_until_ms: until when it is not asked.
        held_back: whether something would have been asked since.
        barren: requests in a row that brought nothing.
        proven: whether it ever brought something.
        reconciled_ms: when a comparison with it last began or went on.
    """

    targets: dict[PublicKey, int] = field(default_factory=dict)
    hints: dict[PublicKey, int] = field(default_factory=dict)
    apart: dict[PublicKey, None] = field(default_factory=dict)
    looked_at: dict[PublicKey, tuple[int, int]] = field(default_factory=dict)
    loose: dict[PublicKey, None] = field(default_factory=dict)
    more: bool = False
    asked: tuple[Piece, ...] = ()
    came: int = 0
    came_ms: int = _LONG_AGO_MS
    asked_until_ms: int = _LONG_AGO_MS
    avoided_until_ms: int = _LONG_AGO_MS
    held_back: bool = False
    barren: int = 0
    proven: bool = False
    reconciled_ms: int = _LONG_AGO_MS

    def wants_anything(self) -> bool:
        """Whether the peer has something we lack, as far as we know."""
        return bool(self.targets or self.hints or self.apart or self.loose)

    def goal(self, author: PublicKey) -> int:
        """How long the author's chain is over there."""
        return max(self.targets.get(author, 0), self.hints.get(author, 0))

    def look(self, author: PublicKey, length: int, until_ms: int) -> None:
        """Remember that the peer has just what waits here at the end of a chain; in a full table, for the oldest."""
        self.looked_at.pop(author, None)
        if len(self.looked_at) >= limits.SYNC_AUTHORS_PER_PEER_MAX:
            del self.looked_at[next(iter(self.looked_at))]
        self.looked_at[author] = length, until_ms

    def has_just(self, author: PublicKey, length: int, now_ms: int) -> bool:
        """Whether the peer was found to have nothing but what waits here at the end of a chain of this length."""
        known_length, until_ms = self.looked_at.get(author, (-1, 0))
        return known_length == length and now_ms < until_ms

    def note(self, theirs: FrontierEntry, mine: FrontierEntry | None) -> None:
        """Note an entry of the peer that differs from the own one."""
        author, length = theirs.author, 0 if mine is None else mine.length
        if len(self.targets) + len(self.apart) + len(self.loose) + 2 > limits.SYNC_AUTHORS_PER_PEER_MAX:
            self.more = True
            return
        if theirs.loose is not None and (mine is None or mine.loose != theirs.loose):
            self.loose[author] = None
        if theirs.length > length:
            self.targets[author] = theirs.length
        elif mine is not None and theirs.length == length and theirs.head != mine.head:
            self.apart[author] = None

    def forget(self, author: PublicKey) -> None:
        """Forget what the peer has of an author."""
        self.targets.pop(author, None)
        self.hints.pop(author, None)
        self.apart.pop(author, None)
        self.loose.pop(author, None)

    def put_last(self, author: PublicKey) -> None:
        """Look at an author after all others the next time."""
        _put_last(self.targets, author)
        _put_last(self.hints, author)
        _put_last(self.apart, author)
        _put_last(self.loose, author)


_T = TypeVar("_T")


def _put_last(table: dict[PublicKey, _T], author: PublicKey) -> None:
    if author in table:
        table[author] = table.pop(author)
