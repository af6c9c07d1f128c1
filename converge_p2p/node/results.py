"""How a task ended, as an application reads it.

Knows: settled values. Must not know: pools.
Source: `docs/tutorial.md`, embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from converge_p2p.core.model.task import TaskView
from converge_p2p.core.types import AgentId
from converge_p2p.core.view.receipt import Receipt


@dataclass(frozen=True, slots=True)
class TaskResult:
    """How a task was completed.

    Attributes:
        value: the decoded result.
        by: agent id of the worker it is credited to.
        view: the task as it was settled.
        receipt: proof that verifies offline.
    """

    value: Any
    by: AgentId
    view: TaskView
    receipt: Receipt


def detail_of(view: TaskView) -> str:
    """What a vetoer gave as its reason."""
    result = view.result
    return str(result.get("reason") or "") if isinstance(result, dict) else ""


def reason_of(view: TaskView, name: str) -> str:
    """A text of the result, or all of it if it has no parts."""
    result = view.result
    return str(result.get(name, "")) if isinstance(result, dict) else str(result or "")
