"""Which piece of whose chain to ask for next, and which pieces are under way.

Knows: chains, parked operations, pieces under way. Must not know: peers, messages, time (see `session`).
Source: `docs/protocol.md`, sync.

A long chain comes in pieces from several peers at once. A piece whose predecessors are still under way is *ahead*: its
operations are parked when they come, so pieces stand within what may be parked of an author, few are ahead at a time,
and an answer is no larger than the room. Whatever is parked, the piece at the end of the chain is appended as it comes.
"""

from __future__ import annotations

from dataclasses import dataclass

from converge_p2p.core import limits
from converge_p2p.core.oplog.log import Missing, OperationLog
from converge_p2p.core.types import PublicKey

ANSWER_BYTES_MAX = limits.ANSWER_BATCHES_MAX * limits.BATCH_BYTES_MAX
"""What the answer to one request has at most, if the peer is honest."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Something that was asked for.

    Attributes:
        author: whose operations.
        start, stop: their sequence numbers, `stop` exclusive; both 0 for loose operations.
        alone: nothing else of the author is asked for meanwhile: loose operations, or a search for where branches part.
        ahead: predecessors were missing when it was asked for.
        held: how much of it was here when it was asked for.
    """

    author: PublicKey
    start: int
    stop: int
    alone: bool
    ahead: bool
    held: int

    @property
    def missing(self) -> Missing:
        """The range, for a request."""
        return Missing(self.author, self.start, self.stop)


class Fetch:
    """The pieces under way, of all peers."""

    def __init__(self, log: OperationLog) -> None:
        self._log = log
        self._under_way: dict[PublicKey, list[Piece]] = {}
        self._ahead = 0

    def __len__(self) -> int:
        """How many authors something is under way of."""
        return len(self._under_way)

    def begin(self, piece: Piece) -> None:
        """A piece is asked for now."""
        self._under_way.setdefault(piece.author, []).append(piece)
        self._ahead += piece.ahead
        self._log.parking.expect(piece.author, piece.start, piece.stop)

    def end(self, piece: Piece) -> None:
        """A piece is no longer under way, whether or not it came."""
        pieces = self._under_way[piece.author]
        pieces.remove(piece)
        if not pieces:
            del self._under_way[piece.author]
        self._ahead -= piece.ahead
        self._log.parking.expect_no_more(piece.author, piece.start, piece.stop)

    def progress(self, piece: Piece) -> int:
        """How much of a piece came since it was asked for."""
        if piece.alone or self._log.frozen_at(piece.author) is not None:
            return self._log.held(piece.author) - piece.held
        return self._log.held_in(piece.author, piece.start, piece.stop) - piece.held

    def next_piece(self, author: PublicKey, goal: int, size: int, *, looked_at: bool = False) -> Piece | None:
        """The next part of an author's chain up to `goal` that is neither here nor under way.

        Args:
            author: not frozen here.
            goal: how long the chain is at the peer that is to be asked.
            size: how many operations to ask for at most, if they follow what is here.
            looked_at: whether the peer was found to have just what waits here at the end of the chain.

        Returns:
            None if nothing can be asked for now.
        """
        have, under_way = self._log.length(author), self._under_way.get(author, ())
        start = self._log.needed_from(author)
        if start < have:
            return self.search(author, start, min(goal, have + limits.OPERATIONS_PER_PIECE_MIN))
        if any(piece.alone for piece in under_way):
            return None
        if have < goal and not looked_at and self._log.parking.waits(author, have):
            # what waits there lacks an epoch, or others that it names. It may be a fork that never gets them, and must
            # not stand in the way of what the peer has: so each peer is asked whether it has another
            return self.search(author, have, have + 1)
        at, end = have, min(goal, have + limits.PARKED_PER_AUTHOR_MAX)
        while at < end:
            covering = next((piece for piece in under_way if piece.start <= at < piece.stop), None)
            if covering is not None:
                at = covering.stop
            elif self._log.parking.waits(author, at):
                at += 1
            else:
                break
        if at >= end:
            return None
        ahead = at > have
        if ahead:
            if not self._room_ahead(author):
                return None
            size = min(size, limits.PARKED_PER_AUTHOR_MAX // 2)
        stop = min([goal, at + size, *(piece.start for piece in under_way if piece.start > at)])
        if ahead:
            stop = min(stop, end)
        # up to the next one that waits already, beyond which nothing can wait
        for seq in range(at + 1, min(stop, end)):
            if self._log.parking.waits(author, seq):
                stop = seq
                break
        return Piece(author, at, stop, alone=False, ahead=ahead, held=0)

    def search(self, author: PublicKey, start: int, stop: int) -> Piece | None:
        """A piece that overlaps what is here, to find where the peer's branch parts; None if one is under way."""
        return None if author in self._under_way or start >= stop else self._alone(author, start, stop)

    def loose(self, author: PublicKey) -> Piece | None:
        """The loose operations of an author, or None while something of it is under way."""
        return None if author in self._under_way else self._alone(author, 0, 0)

    def _alone(self, author: PublicKey, start: int, stop: int) -> Piece:
        return Piece(author, start, stop, alone=True, ahead=False, held=self._log.held(author))

    def _room_ahead(self, author: PublicKey) -> bool:
        """Whether another answer can be parked, those under way included."""
        ahead = sum(piece.ahead for piece in self._under_way.get(author, ()))
        room = limits.PARKED_BYTES_PER_AUTHOR_MAX - self._log.parking.bytes_of(author)
        return self._ahead < limits.PIECES_AHEAD_MAX and (ahead + 1) * ANSWER_BYTES_MAX <= room
