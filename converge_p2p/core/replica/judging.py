"""When the application is told that a result waits for a verdict, and that nobody here can give it.

Knows: what was told already. Must not know: verdicts beyond the register, or what an elector votes.
Source: `docs/protocol.md`, evaluators.
"""

from __future__ import annotations

from collections.abc import Callable

from converge_p2p.core import limits
from converge_p2p.core.governance.evaluators import knows_rule
from converge_p2p.core.model.evaluator import EvaluatorKind
from converge_p2p.core.replica.events import EvaluatorUnknown, Notice, VerdictWanted
from converge_p2p.core.types import PublicKey, TaskId, ValueHash
from converge_p2p.core.view.fold import View
from converge_p2p.core.view.register import Register
from converge_p2p.core.view.tasks import TaskRegister


class Judging:
    """Notices about the evaluators of the tasks of one pool."""

    def __init__(self, key: PublicKey, view: View, emit: Callable[[Notice], None]) -> None:
        """Begin with nothing told.

        Args:
            key: the local identity.
            view: the fold.
            emit: called with each notice.
        """
        self._key = key
        self._view = view
        self._emit = emit
        self._wanted: dict[TaskId, set[ValueHash]] = {}
        self._unknown: set[str] = set()

    def look(self, register: Register) -> None:
        """A subject changed."""
        if not isinstance(register, TaskRegister) or register.evaluator is None:
            return
        if register.settled is not None:
            self._wanted.pop(register.id, None)
            return
        evaluator = register.evaluator
        if evaluator.is_agent(self._key):
            told = self._wanted.setdefault(register.id, set())
            for value in register.to_judge():
                if value.hash not in told:
                    told.add(value.hash)
                    self._emit(VerdictWanted(register.id, value.hash))
            return
        judges = evaluator.kind is EvaluatorKind.RULE and self._key in self._view.electors
        if judges and not knows_rule(evaluator.name) and self._is_news(evaluator.name):
            self._emit(EvaluatorUnknown(register.id, evaluator.name))

    def _is_news(self, rule: str) -> bool:
        if rule in self._unknown or len(self._unknown) >= limits.EVALUATORS_REGISTERED_MAX:
            return False
        self._unknown.add(rule)
        return True
