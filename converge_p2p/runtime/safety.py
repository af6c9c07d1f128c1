"""Safety: what an agent may do, checked before every decision.

Knows: kinds of decisions and numbers of resources. Must not know: how a decision is carried out.
Source: the concepts page (ResourceLimits, ActionPolicy).

None means no rule. An empty set of allowed kinds allows nothing. A number that cannot be compared (NaN) is refused.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field

from converge_p2p.core.errors import LimitExceeded, LocalError, NotAuthorised
from converge_p2p.core.model.decision import Decision
from converge_p2p.core.model.task import Task, TaskSpec


@dataclass(frozen=True, slots=True)
class ResourceLimits:
    """What one task may ask for.

    Attributes:
        cpu: cores, or None for no limit.
        memory_mb: MiB, or None for no limit.
    """

    cpu: float | None = None
    memory_mb: float | None = None

    def __post_init__(self) -> None:
        for name in ("cpu", "memory_mb"):
            limit = getattr(self, name)
            if limit is not None:
                _check_number(f"limit {name}", limit)

    def check(self, cpu: float, memory_mb: float) -> None:
        """Check a request.

        Raises:
            LocalError: a request that is negative or not a finite number.
            LimitExceeded: it asks for more than is allowed.
        """
        for name, asked, limit in (("cpu", cpu, self.cpu), ("memory_mb", memory_mb, self.memory_mb)):
            _check_number(f"constraint {name}", asked)
            if limit is not None and asked > limit:
                raise LimitExceeded(name, f"the task asks for {name} {asked:g}; at most {limit:g} is allowed")


class ActionPolicy:
    """Which kinds of decisions are carried out. A subclass of an allowed kind is another kind, and not allowed."""

    def __init__(
        self, allowed: Collection[type[Decision]] | None = None, *, denied: Collection[type[Decision]] = ()
    ) -> None:
        """Make a policy.

        Args:
            allowed: the kinds that may run. None: all. Empty: none.
            denied: kinds that may not run, whatever `allowed` says.

        Raises:
            LocalError: something that is not a kind of decision.
        """
        for kind in (*(allowed or ()), *denied):
            if not (isinstance(kind, type) and issubclass(kind, Decision)):
                raise LocalError(f"{kind!r} is not a kind of decision; expected subclasses of Decision")
        self._allowed = None if allowed is None else frozenset(allowed)
        self._denied = frozenset(denied)

    def check(self, decision: Decision) -> None:
        """Check one decision.

        Raises:
            NotAuthorised: its kind may not run.
        """
        kind = type(decision)
        if kind in self._denied or (self._allowed is not None and kind not in self._allowed):
            raise NotAuthorised(f"the action policy does not allow {kind.__name__}")


@dataclass(frozen=True, slots=True)
class SafetyPolicy:
    """Both rules together, as the executor takes them."""

    resources: ResourceLimits = field(default_factory=ResourceLimits)
    actions: ActionPolicy = field(default_factory=ActionPolicy)

    def check_decision(self, decision: Decision) -> None:
        """Check whether a decision of this kind may run. Raises NotAuthorised."""
        self.actions.check(decision)

    def check_submit(self, task: Task) -> None:
        """Check what a task to be submitted asks for. Raises LocalError, LimitExceeded."""
        self.resources.check(task.constraints.get("cpu", 0), task.constraints.get("memory_mb", 0))

    def check_claim(self, spec: TaskSpec) -> None:
        """Check what a task to be claimed asks for. Raises LimitExceeded."""
        self.resources.check(spec.cpu_milli / 1000, spec.memory_mb)


def _check_number(what: str, number: float) -> None:
    good = isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number) and number >= 0
    if not good:
        raise LocalError(f"{what} is {number!r}; expected a finite number of 0 or more")
