"""Safety: what an agent may do, checked before every decision.

Knows: kinds of decisions and numbers of resources. Must not know: how a decision is carried out.
Source: the concepts page (ResourceLimits, ActionPolicy); `docs/policy.md`.

None means no rule. An empty set of allowed kinds allows nothing. A number that cannot be compared (NaN), is negative,
or is beyond what any machine has is refused.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from converge_p2p.core import limits
from converge_p2p.core.errors import LimitExceeded, LocalError, NotAuthorised
from converge_p2p.core.model import decision as decisions
from converge_p2p.core.model.decision import Decision
from converge_p2p.core.model.task import Task, TaskSpec
from converge_p2p.runtime.budget import RequestBudget

KINDS: Mapping[str, type[Decision]] = {
    name: kind
    for name, kind in vars(decisions).items()
    if isinstance(kind, type) and issubclass(kind, Decision) and kind is not Decision
}
"""The library's own kinds of decisions, by name."""

_BOUNDS = {"cpu": limits.TASK_CPU_CORES_MAX, "memory_mb": limits.TASK_MEMORY_MB_MAX}


@dataclass(frozen=True, slots=True)
class ResourceLimits:
    """What one task may ask for, and how much one agent may use the network.

    Attributes:
        cpu: cores, or None for no limit.
        memory_mb: MiB, or None for no limit.
        network_requests: how many requests an agent may make at once, and in each period; None for no limit. Its
            decisions that are signed and sent are, and its calls of tools that say they use the network. What ends work
            it holds (reports, releases) always passes.
        network_period_s: the period, seconds.
    """

    cpu: float | None = None
    memory_mb: float | None = None
    network_requests: int | None = None
    network_period_s: float = 60.0

    def __post_init__(self) -> None:
        for name, bound in _BOUNDS.items():
            limit = getattr(self, name)
            if limit is not None:
                _check_number(f"limit {name}", limit, bound)
        self.budget()

    def budget(self) -> RequestBudget:
        """Return a new, full budget of requests for one agent."""
        return RequestBudget(self.network_requests, self.network_period_s)

    def allows(self, cpu: float, memory_mb: float) -> bool:
        """Whether a request is within the limits."""
        try:
            self.check(cpu, memory_mb)
        except (LocalError, LimitExceeded):
            return False
        return True

    def check(self, cpu: float, memory_mb: float) -> None:
        """Check a request.

        Raises:
            LocalError: a request that is negative or not a finite number.
            LimitExceeded: it asks for more than is allowed.
        """
        for name, asked, limit in (("cpu", cpu, self.cpu), ("memory_mb", memory_mb, self.memory_mb)):
            _check_number(f"constraint {name}", asked, _BOUNDS[name])
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

    @classmethod
    def named(cls, allowed: Collection[str] | None = None, *, denied: Collection[str] = ()) -> ActionPolicy:
        """Make a policy of the names of the library's own kinds, as `SendMessage`.

        Raises:
            LocalError: a name that is none.
        """
        for name in (*(allowed or ()), *denied):
            if name not in KINDS:
                raise LocalError(f"{name!r} is no kind of decision; there are {', '.join(sorted(KINDS))}")
        return cls(None if allowed is None else [KINDS[name] for name in allowed], denied=[KINDS[n] for n in denied])

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


def _check_number(what: str, number: float, bound: float) -> None:
    # asked this way round a NaN is refused as well: every comparison with one is false
    real = isinstance(number, int | float) and not isinstance(number, bool)
    if not real or not 0 <= number <= bound:
        raise LocalError(f"{what} is {number!r:.40}; expected a number from 0 to {bound:g}")
