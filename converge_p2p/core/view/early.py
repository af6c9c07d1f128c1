"""What is said of the next epoch by operations that wait for their predecessors: counted at once, and bounded.

Knows: how much of each author was counted so. Must not know: how votes are counted (see `register`).
Source: `docs/protocol.md`, removal. Of an elector that was removed nobody may have the operations before its last ones
any more, so its last votes and reports count without them. A lying elector could sign such operations without end.
"""

from __future__ import annotations

from collections.abc import Iterator

from converge_p2p.core import limits
from converge_p2p.core.oplog.bodies import Ballot, Phase, VoteBody
from converge_p2p.core.oplog.operation import Operation
from converge_p2p.core.types import OperationId, PublicKey, TaskId


def early_ballots(subject: TaskId, operation: Operation) -> list[Ballot]:
    """The ballots that count wherever they stand: all on the subject but promises, whose place matters."""
    body = operation.body
    if not isinstance(body, VoteBody):
        return []
    return [ballot for ballot in body.ballots if ballot.task == subject and ballot.phase is not Phase.GRANT]


def accepts_of(subject: TaskId, operation: Operation) -> Iterator[Ballot]:
    """Those of its ballots that accept a value."""
    return (ballot for ballot in early_ballots(subject, operation) if ballot.phase is Phase.ACCEPT)


class EarlyQuota:
    """How much of each author was counted early, and the last thing of each that was too much.

    That one is needed where a certificate rests on an author that said too much: with what others said it may be
    enough. Whoever holds the certificate sends all of it, and again while it is lacked.
    """

    __slots__ = ("_bytes", "_counted", "_over")

    def __init__(self) -> None:
        self._counted: set[OperationId] = set()
        self._bytes: dict[PublicKey, int] = {}
        self._over: dict[PublicKey, Operation] = {}

    def take(self, operation: Operation) -> bool:
        """Charge an operation to its author, unless that is too much."""
        if operation.id in self._counted:
            return True
        used = self._bytes.get(operation.author, 0) + len(operation.signed)
        if used > limits.EARLY_BYTES_PER_AUTHOR_MAX:
            return False
        self.force(operation)
        return True

    def force(self, operation: Operation) -> None:
        """Charge an operation to its author, whatever it said before."""
        if operation.id not in self._counted:
            self._counted.add(operation.id)
            self._bytes[operation.author] = self._bytes.get(operation.author, 0) + len(operation.signed)
        over = self._over.get(operation.author)
        if over is not None and over.id == operation.id:
            del self._over[operation.author]

    def remember(self, operation: Operation) -> None:
        """This is the last thing of its author that was too much."""
        self._over[operation.author] = operation

    @property
    def over(self) -> tuple[Operation, ...]:
        """The last operation of each author that was too much."""
        return tuple(self._over.values())
