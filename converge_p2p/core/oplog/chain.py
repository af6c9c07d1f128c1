"""The chain of one author: what is held of it, where it was pruned, and what stands beside it.

Knows: positions and ids. Must not know: other authors (see `log`), or what an operation means.
Source: `docs/protocol.md`, validation, equivocation and checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from converge_p2p.core import limits
from converge_p2p.core.codec import tagged_hash
from converge_p2p.core.oplog.bodies import VOTES
from converge_p2p.core.oplog.frontier import FrontierSum
from converge_p2p.core.oplog.operation import Operation
from converge_p2p.core.types import OperationId, PublicKey


class Row(NamedTuple):
    """How much of an author a checkpoint covers.

    Attributes:
        author: whose chain.
        length: how many of its operations, at least one.
        head: id of the last of them.
        hlc: clock of the last of them.
        epoch: the epoch it names.
    """

    author: PublicKey
    length: int
    head: OperationId
    hlc: int
    epoch: int


@dataclass(slots=True)
class Chain:
    """The operations of one author, by sequence number.

    Attributes:
        ids, signed: the common prefix, from `base` on.
        hlc, epoch: clock of the last of them, and the epoch it names.
        frozen_at: sequence number from which the author is frozen, or None: because it forked, or was removed.
        forked: two operations with one number, or a clock that ran backwards, are held.
        cut: sequence number from which the data of a removed author is not kept, or None; only its reports are, because
            what was certified may rest on their content.
        votes_beyond: the numbers of the votes that are held from the cut on.
        loose: what stands at or above `frozen_at`, on any branch.
        votes, data: sums over the ids of the loose votes, and of the other loose operations.
        data_count: how many loose operations are not votes.
        base: how many operations at the beginning were pruned.
        base_head: id of the last of those.
        end: its clock and the epoch it names.
    """

    ids: list[OperationId] = field(default_factory=list)
    signed: list[bytes] = field(default_factory=list)
    hlc: int = 0
    epoch: int = 0
    frozen_at: int | None = None
    forked: bool = False
    cut: int | None = None
    votes_beyond: set[int] = field(default_factory=set)
    loose: dict[OperationId, bytes] = field(default_factory=dict)
    votes: FrontierSum = field(default_factory=FrontierSum)
    data: FrontierSum = field(default_factory=FrontierSum)
    data_count: int = 0
    base: int = 0
    base_head: OperationId | None = None
    end: tuple[int, int] = (0, 0)

    @classmethod
    def above(cls, row: Row) -> Chain:
        """The chain of an author of which nothing but a row is known."""
        end = (row.hlc, row.epoch)
        return cls(hlc=row.hlc, epoch=row.epoch, base=row.length, base_head=row.head, end=end)

    def __len__(self) -> int:
        return self.base + len(self.ids)

    @property
    def head(self) -> OperationId | None:
        """Id of the last operation of the common prefix."""
        return self.ids[-1] if self.ids else self.base_head

    def head_at(self, length: int) -> OperationId | None:
        """Id of the last of the first `length` operations; None if the chain is shorter, or that was pruned."""
        if length == self.base:
            return self.base_head
        return self.ids[length - self.base - 1] if self.base < length <= len(self) else None

    def reaches(self, length: int, head: OperationId | None) -> bool:
        """Whether the chain is at least that long, and the operation that ends it there is the one that is named.

        Of an author that forked below it nothing has an effect from there on, and not everything is kept; so whatever
        is said of it beyond the fork is as good as true. So is what is said below a checkpoint, which a quorum held.
        """
        if head is None or length < self.base:
            return True
        if length <= len(self):
            return self.head_at(length) == head
        return self.forked and self.frozen_at is not None and self.frozen_at < length

    def prune(self, row: Row) -> list[OperationId]:
        """Let go of the first operations, and return their ids. Only if the chain reaches the row."""
        count = row.length - self.base
        gone = self.ids[:count]
        del self.ids[:count], self.signed[:count]
        self.base, self.base_head, self.end = row.length, row.head, (row.hlc, row.epoch)
        return gone

    @property
    def overflowing(self) -> bool:
        """Whether no more loose operations are taken, votes excepted."""
        return self.data_count >= limits.FORK_LOOSE_PER_AUTHOR_MAX

    @property
    def loose_hash(self) -> bytes | None:
        """32 bytes for the loose set of a frozen author. Full sets count as equal: nobody can complete them."""
        if self.frozen_at is None:
            return None
        return tagged_hash("loose", self.votes.digest(), b"" if self.overflowing else self.data.digest())

    def add_loose(self, operation: Operation) -> None:
        """Keep an operation beside the chain."""
        self.loose[operation.id] = operation.signed
        if isinstance(operation.body, VOTES):
            self.votes.replace(None, operation.id)
        else:
            self.data.replace(None, operation.id)
            self.data_count += 1
