"""The evidence that was cited in a pool: who says that which content speaks for which result.

Knows: statements, by operation and by result. Must not know: who votes, or what a vote rests on.
Source: `docs/protocol.md`, evidence. A set that only grows: evidence is kept like votes are, whatever becomes of its
author, because a vote that counted once must not stop counting when its evidence's author forks or is removed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from converge_p2p.core.oplog.evidence import EvidenceBody
from converge_p2p.core.oplog.operation import Operation
from converge_p2p.core.types import OperationId, PublicKey, TaskId, ValueHash


class Cited(NamedTuple):
    """One statement: the clear part of an evidence operation.

    Attributes:
        id: of the operation.
        digest: SHA-256 of the content.
    """

    id: OperationId
    author: PublicKey
    task: TaskId
    value: ValueHash
    supports: bool
    digest: bytes
    size: int


class Standing(NamedTuple):
    """How much speaks for a value: more is greater.

    Attributes:
        electors: what the electors weigh who cite evidence for it, less what those weigh who cite some against it.
        others: the number of others who cite evidence for it, less that of those against it.
    """

    electors: int
    others: int


class Evidence:
    """All evidence of a pool."""

    __slots__ = ("_by_task", "_known")

    def __init__(self) -> None:
        """Begin with none."""
        self._known: dict[OperationId, Cited] = {}
        self._by_task: dict[TaskId, dict[OperationId, Cited]] = {}

    def add(self, operation: Operation, body: EvidenceBody) -> None:
        """Take up a statement, from a chain or from beside it."""
        cited = Cited(operation.id, operation.author, body.task, body.value, body.supports, body.digest, body.size)
        self._known[operation.id] = cited
        self._by_task.setdefault(body.task, {})[operation.id] = cited

    def about(self, task: TaskId) -> list[Cited]:
        """What was cited about the results of a task, by id."""
        found = self._by_task.get(task, {})
        return [found[name] for name in sorted(found)]

    def supports(self, names: Iterable[OperationId], task: TaskId, value: ValueHash) -> bool:
        """Whether one of these is evidence that is known and speaks for a value. True stays true."""
        return any(
            (cited := self._known.get(name)) is not None
            and cited.supports
            and (cited.task, cited.value) == (task, value)
            for name in names
        )

    def backers(self, task: TaskId, value: ValueHash) -> set[PublicKey]:
        """Everybody who cites evidence for a value. Only grows."""
        found = self._by_task.get(task, {}).values()
        return {cited.author for cited in found if cited.supports and cited.value == value}

    def standing(self, task: TaskId, value: ValueHash, weights: Mapping[PublicKey, int]) -> Standing:
        """How much speaks for a value; of each author it counts once, whatever it cites.

        Args:
            weights: of the electors.
        """
        said = {
            (cited.author, cited.supports) for cited in self._by_task.get(task, {}).values() if cited.value == value
        }
        electors = sum(weights.get(author, 0) * (1 if supports else -1) for author, supports in said)
        others = sum(1 if supports else -1 for author, supports in said if author not in weights)
        return Standing(electors, others)

    def best(self, task: TaskId, values: Collection[ValueHash], weights: Mapping[PublicKey, int]) -> ValueHash | None:
        """The value that most speaks for, if anything does; of equal ones the least hash."""
        ranked = sorted(values, key=lambda value: (*(-part for part in self.standing(task, value, weights)), value))
        backed = [value for value in ranked if self.backers(task, value)]
        return backed[0] if backed else None

    def to_cite(self, task: TaskId, value: ValueHash, count: int) -> tuple[OperationId, ...]:
        """Evidence for a value that a vote can rest on, sorted: of as many authors as fit, the least of each."""
        chosen: dict[PublicKey, OperationId] = {}
        for cited in self.about(task):
            if cited.supports and cited.value == value:
                chosen.setdefault(cited.author, cited.id)
        return tuple(sorted(sorted(chosen.values())[:count]))
