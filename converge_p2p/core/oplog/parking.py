"""Operations that came before what they build on: a bounded waiting room.

Knows: who waits for which sequence number, and for which operations of others. Must not know: chains (see `log`).
Source: `docs/protocol.md`, validation. Anti-entropy brings back whatever was turned out, so room may be taken away.

There are two halves. What was *asked for* (a piece of a chain, from one of several peers, whose predecessors are still
on their way from another) has a half of its own, so that a flood of what nobody asked for never turns it out. Within
a half, whoever waits longest makes room. Of one author, what stands nearest to its chain stays.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from converge_p2p.core import limits
from converge_p2p.core.errors import RemoteViolation
from converge_p2p.core.oplog.operation import Operation
from converge_p2p.core.types import OperationId, PublicKey


@dataclass(slots=True)
class _Waiting:
    """What waits of one author: by sequence number, how many, and how many bytes they take."""

    by_seq: dict[int, dict[OperationId, Operation]] = field(default_factory=dict)
    count: int = 0
    bytes: int = 0


@dataclass(slots=True)
class _Half:
    """One half of the room: its authors, in the order in which they began to wait, with what each takes."""

    authors: dict[PublicKey, dict[OperationId, Operation]] = field(default_factory=dict)
    bytes: int = 0


def _cost(operation: Operation) -> int:
    """What parking an operation takes: its bytes are the lesser part of a small one that names others."""
    overhead = limits.PARKED_OVERHEAD_BYTES + limits.PARKED_OVERHEAD_BYTES_PER_DEP * len(operation.deps)
    return len(operation.signed) + overhead


class Parking:
    """Parked operations of all authors."""

    def __init__(self) -> None:
        self._authors: dict[PublicKey, _Waiting] = {}
        self._half_of: dict[OperationId, _Half] = {}
        self._asked, self._unasked = _Half(), _Half()
        self._expected: dict[PublicKey, list[tuple[int, int]]] = {}
        self._awaited: dict[OperationId, dict[OperationId, PublicKey]] = {}
        self._woken: dict[PublicKey, None] = {}

    def __contains__(self, operation: OperationId) -> bool:
        return operation in self._half_of

    def __len__(self) -> int:
        return len(self._half_of)

    @property
    def bytes(self) -> int:
        """What all that waits takes, at most `limits.PARKED_BYTES_MAX`."""
        return self._asked.bytes + self._unasked.bytes

    # ------------------------------------------------------------ what is asked for

    def expect(self, author: PublicKey, start: int, stop: int) -> None:
        """Operations `start` to `stop` of an author were asked for: what comes of them is in the protected half."""
        self._expected.setdefault(author, []).append((start, stop))

    def expect_no_more(self, author: PublicKey, start: int, stop: int) -> None:
        """They are no longer under way. What has come stays where it is."""
        ranges = self._expected[author]
        ranges.remove((start, stop))
        if not ranges:
            del self._expected[author]

    def _is_expected(self, operation: Operation) -> bool:
        ranges = self._expected.get(operation.author, ())
        return any(start <= operation.seq < stop for start, stop in ranges)

    # ------------------------------------------------------------ coming and going

    def add(self, operation: Operation, lacking: Iterable[OperationId]) -> None:
        """Park an operation.

        If a half is full, whatever waits there of the author that has waited longest is turned out: a flood can so
        delay others, and never shut them out.

        Args:
            operation: one that is not parked yet.
            lacking: operations it names in deps that are not held.

        Raises:
            RemoteViolation: parked_full, the author has too many waiting, and all nearer to its chain.
        """
        cost = _cost(operation)
        self._make_room_of_author(operation, cost)
        half = self._asked if self._is_expected(operation) else self._unasked
        while half.bytes + cost > limits.PARKED_BYTES_MAX // 2:
            for waits in list(half.authors[next(iter(half.authors))].values()):
                self.remove(waits)
        waiting = self._authors.setdefault(operation.author, _Waiting())
        waiting.by_seq.setdefault(operation.seq, {})[operation.id] = operation
        waiting.count += 1
        waiting.bytes += cost
        self._half_of[operation.id] = half
        half.authors.setdefault(operation.author, {})[operation.id] = operation
        half.bytes += cost
        for dep in lacking:
            self._awaited.setdefault(dep, {})[operation.id] = operation.author

    def _make_room_of_author(self, operation: Operation, cost: int) -> None:
        """Turn out what stands farther from the chain, or refuse: anybody can replay what was signed far ahead."""
        while (waiting := self._authors.get(operation.author)) is not None and (
            waiting.count >= limits.PARKED_PER_AUTHOR_MAX or waiting.bytes + cost > limits.PARKED_BYTES_PER_AUTHOR_MAX
        ):
            farthest = max(waiting.by_seq)
            if farthest <= operation.seq:
                raise RemoteViolation("parked_full", "too many operations of the author wait for a predecessor")
            self.remove(next(iter(waiting.by_seq[farthest].values())))

    def remove(self, operation: Operation) -> None:
        """Take an operation out."""
        author, cost = operation.author, _cost(operation)
        waiting, half = self._authors[author], self._half_of.pop(operation.id)
        same, mine = waiting.by_seq[operation.seq], half.authors[author]
        del same[operation.id], mine[operation.id]
        half.bytes -= cost
        waiting.bytes -= cost
        waiting.count -= 1
        if not same:
            del waiting.by_seq[operation.seq]
        if not mine:
            del half.authors[author]
        if not waiting.count:
            del self._authors[author]
        for dep in operation.deps:
            waiters = self._awaited.get(dep)
            if waiters is not None:
                waiters.pop(operation.id, None)
                if not waiters:
                    del self._awaited[dep]

    def turn_out(self, operation: Operation) -> None:
        """Take an operation out, if it is parked and was not asked for."""
        if self._half_of.get(operation.id) is self._unasked:
            self.remove(operation)

    # ------------------------------------------------------------ reading

    def at(self, author: PublicKey, seq: int) -> Sequence[Operation]:
        """What waits of an author for one sequence number."""
        waiting = self._authors.get(author)
        same = None if waiting is None else waiting.by_seq.get(seq)
        return () if same is None else tuple(same.values())

    def waits(self, author: PublicKey, seq: int) -> bool:
        """Whether anything of an author waits for one sequence number."""
        waiting = self._authors.get(author)
        return waiting is not None and seq in waiting.by_seq

    def count(self, author: PublicKey) -> int:
        """How much waits of an author."""
        waiting = self._authors.get(author)
        return 0 if waiting is None else waiting.count

    def bytes_of(self, author: PublicKey) -> int:
        """What the waiting operations of an author take."""
        waiting = self._authors.get(author)
        return 0 if waiting is None else waiting.bytes

    def first(self, author: PublicKey, epoch: int, below: int = limits.SEQ_MAX) -> Operation | None:
        """Something that waits of an author, at a number below this and with no epoch after this one, or None."""
        waiting = self._authors.get(author)
        if waiting is None:
            return None
        found = (operation for seq, same in waiting.by_seq.items() if seq < below for operation in same.values())
        return next((operation for operation in found if operation.epoch <= epoch), None)

    def naming(self, epochs: Collection[int]) -> list[Operation]:
        """All that waits and names one of these epochs."""
        return [
            operation
            for waiting in self._authors.values()
            for same in waiting.by_seq.values()
            for operation in same.values()
            if operation.epoch in epochs
        ]

    # ------------------------------------------------------------ waking

    def arrived(self, operation: OperationId) -> None:
        """An operation is held now: wake the authors whose operations name it."""
        waiters = self._awaited.pop(operation, None)
        if waiters:
            self._woken.update(dict.fromkeys(waiters.values()))

    def wake_all(self) -> None:
        """Wake everybody who waits: something changed that any of them may have waited for, such as an epoch."""
        self._woken.update(dict.fromkeys(self._authors))

    @property
    def woken(self) -> bool:
        """Whether anybody was woken."""
        return bool(self._woken)

    def take_woken(self) -> PublicKey:
        """Return an author that was woken. Only if one was."""
        author = next(iter(self._woken))
        del self._woken[author]
        return author
