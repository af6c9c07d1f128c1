"""What was said about the results of one task.

Knows: verdicts, whoever gave them. Must not know: rounds, votes, or who is entitled (the task says so, and may be heard
of later).
Source: `docs/protocol.md`, evaluators. A set that grows, and from which only forks and cuts take something back.
"""

from __future__ import annotations

from converge_p2p.core.model.evaluator import Evaluator
from converge_p2p.core.oplog.operation import Operation
from converge_p2p.core.oplog.verdicts import VerdictBody
from converge_p2p.core.types import OperationId, PublicKey, ValueHash


class Verdicts:
    """The verdicts on one task."""

    __slots__ = ("_said",)

    def __init__(self) -> None:
        """Begin with none."""
        self._said: dict[ValueHash, dict[OperationId, tuple[PublicKey, bool]]] = {}

    def add(self, operation: Operation, body: VerdictBody) -> None:
        """Note a verdict."""
        self._said.setdefault(body.value, {})[operation.id] = (operation.author, body.approve)

    def void(self, operation: Operation, body: VerdictBody) -> None:
        """Take a verdict back: its author forked, or was cut off before it."""
        self._said.get(body.value, {}).pop(operation.id, None)

    def on(self, value: ValueHash, evaluator: Evaluator) -> bool | None:
        """Return what the agent that judges said about a value; None if it said nothing. One approval is enough."""
        said = [approve for author, approve in self._said.get(value, {}).values() if evaluator.is_agent(author)]
        return any(said) if said else None
