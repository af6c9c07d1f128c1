"""Operations that came before what they build on: a bounded waiting room.

Knows: who waits for which sequence number, and for which operations of others. Must not know: chains (see `log`).
Source: `docs/protocol.md`, validation. Anti-entropy brings back whatever was turned out, so room may be taken away.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from converge_p2p.core import limits
from converge_p2p.core.errors import RemoteViolation
from converge_p2p.core.oplog.operation import Operation
from converge_p2p.core.types import OperationId, PublicKey


@dataclass(slots=True)
class _Waiting:
    """What waits of one author: by sequence number, and how many in all."""

    by_seq: dict[int, list[Operation]] = field(default_factory=dict)
    count: int = 0


class Parking:
    """Parked operations of all authors."""

    def __init__(self) -> None:
        self._authors: dict[PublicKey, _Waiting] = {}
        self._bytes: dict[OperationId, int] = {}
        self._total_bytes = 0
        self._awaited: dict[OperationId, dict[OperationId, PublicKey]] = {}
        self._woken: dict[PublicKey, None] = {}

    def __contains__(self, operation: OperationId) -> bool:
        return operation in self._bytes

    def __len__(self) -> int:
        return len(self._bytes)

    def add(self, operation: Operation, lacking: Iterable[OperationId]) -> list[PublicKey]:
        """Park an operation.

        If all room is taken, whatever waits of the author that has waited longest is turned out: a flood can so delay
        others, and never shut them out.

        Args:
            operation: one that is not parked yet.
            lacking: operations it names in deps that are not held.

        Returns:
            Authors of whom nothing waits any more.

        Raises:
            RemoteViolation: parked_full, the author has too many waiting.
        """
        waiting = self._authors.get(operation.author)
        if waiting is not None and waiting.count >= limits.PARKED_PER_AUTHOR_MAX:
            raise RemoteViolation("parked_full", "too many operations of the author wait for a predecessor")
        size = len(operation.signed)
        gone: list[PublicKey] = []
        while self._total_bytes + size > limits.PARKED_BYTES_MAX:
            author = next(iter(self._authors))
            for waits in [item for items in self._authors[author].by_seq.values() for item in items]:
                self.remove(waits)
            if author != operation.author:
                gone.append(author)
        waiting = self._authors.setdefault(operation.author, _Waiting())
        waiting.by_seq.setdefault(operation.seq, []).append(operation)
        waiting.count += 1
        self._bytes[operation.id] = size
        self._total_bytes += size
        for dep in lacking:
            self._awaited.setdefault(dep, {})[operation.id] = operation.author
        return gone

    def remove(self, operation: Operation) -> None:
        """Take an operation out."""
        waiting = self._authors[operation.author]
        same = waiting.by_seq[operation.seq]
        same.remove(operation)
        if not same:
            del waiting.by_seq[operation.seq]
        waiting.count -= 1
        if not waiting.count:
            del self._authors[operation.author]
        self._total_bytes -= self._bytes.pop(operation.id)
        for dep in operation.deps:
            waiters = self._awaited.get(dep)
            if waiters is not None:
                waiters.pop(operation.id, None)
                if not waiters:
                    del self._awaited[dep]

    def at(self, author: PublicKey, seq: int) -> Sequence[Operation]:
        """What waits of an author for one sequence number."""
        waiting = self._authors.get(author)
        return () if waiting is None else waiting.by_seq.get(seq, ())

    def count(self, author: PublicKey) -> int:
        """How much waits of an author."""
        waiting = self._authors.get(author)
        return 0 if waiting is None else waiting.count

    def any(self, author: PublicKey) -> Operation | None:
        """Something that waits of an author, or None."""
        waiting = self._authors.get(author)
        return None if waiting is None else next(iter(waiting.by_seq.values()))[0]

    def arrived(self, operation: OperationId) -> None:
        """An operation is held now: wake the authors whose operations name it."""
        waiters = self._awaited.pop(operation, None)
        if waiters:
            self._woken.update(dict.fromkeys(waiters.values()))

    def wake_all(self) -> None:
        """Something changed that anything here may have waited for."""
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
