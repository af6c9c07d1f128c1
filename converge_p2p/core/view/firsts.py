"""What each author said first about a subject.

Knows: that the author's own chain decides between two things it said. Must not know: what was said.
Source: `docs/protocol.md`, coordination. Between operations of one author the chain is an order that everybody sees
alike; between authors there is none. "Whoever said it first" is therefore asked of one author at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, NamedTuple, TypeVar

from converge_p2p.core.oplog.operation import Operation
from converge_p2p.core.types import OperationId, PublicKey

S = TypeVar("S", bound=bytes)
T = TypeVar("T")


class Said(NamedTuple, Generic[T]):
    """Something an author said, and with which operation."""

    operation: OperationId
    seq: int
    content: T


class FirstOfAuthor(Generic[S, T]):
    """For each subject and author the first thing said.

    Operations come in the order of their author's chain, so whatever comes later is not kept. When an author is frozen
    its operations go from some point on, and with the first all later ones: nothing that was not kept is ever missed.
    """

    def __init__(self) -> None:
        self._said: dict[S, dict[PublicKey, Said[T]]] = {}

    def add(self, subject: S, operation: Operation, content: T) -> bool:
        """Note what an author said; returns whether it is the first."""
        by_author = self._said.setdefault(subject, {})
        if operation.author in by_author:
            return False
        by_author[operation.author] = Said(operation.id, operation.seq, content)
        return True

    def void(self, subject: S, operation: Operation) -> bool:
        """Take an operation back; returns whether it was the first."""
        by_author = self._said.get(subject, {})
        said = by_author.get(operation.author)
        if said is None or said.operation != operation.id:
            return False
        del by_author[operation.author]
        return True

    def by_author(self, subject: S) -> Mapping[PublicKey, Said[T]]:
        """What was said about a subject."""
        return self._said.get(subject, {})

    def of(self, subject: S, author: PublicKey) -> Said[T] | None:
        """What an author said about a subject, or None."""
        return self._said.get(subject, {}).get(author)
