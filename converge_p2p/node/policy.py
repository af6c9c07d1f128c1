"""What a node lets happen: one value for everything that an operator decides.

Knows: the policies and their defaults. Must not know: where they are enforced.
Source: the concepts page, governance and safety; `docs/policy.md`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from converge_p2p.core.errors import LocalError
from converge_p2p.core.view.motions import MotionView
from converge_p2p.runtime.safety import SafetyPolicy
from converge_p2p.runtime.trust import TrustModel

OpinionFunction: TypeAlias = Callable[[MotionView], bool | int | Awaitable[bool | int | None] | None]
"""What this node says to a motion as an elector: yes or no, of rivals the index of one; None says nothing."""


@dataclass(frozen=True, slots=True)
class TrustPolicy:
    """How a node's own trust begins, moves and is used.

    Attributes:
        default, rate, half_life_s: see `TrustModel`.
        learn: whose finished tasks move it: `own`, those that this node submitted; `all`, every one in its pools, which
            anybody can make for himself; `off`, none.
        discovery_threshold: the least trust in agents that a query finds which names no threshold of its own.
        join_threshold: below this, the node neither vouches for an agent nor invites it by name.
    """

    default: float = 0.5
    rate: float = 0.1
    half_life_s: float | None = None
    learn: Literal["own", "all", "off"] = "own"
    discovery_threshold: float = 0.0
    join_threshold: float = 0.0

    def __post_init__(self) -> None:
        for name in ("discovery_threshold", "join_threshold"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise LocalError(f"{name} is {value!r:.40}; expected a number from 0 to 1")
        if self.learn not in ("own", "all", "off"):
            raise LocalError(f"learn is {self.learn!r:.40}; expected own, all or off")
        self.model()

    def model(self) -> TrustModel:
        """Return a new model. Raises `LocalError` if a number is out of its range."""
        return TrustModel(default=self.default, rate=self.rate, half_life_s=self.half_life_s)


@dataclass(frozen=True, slots=True)
class NodePolicy:
    """Everything together.

    Attributes:
        safety: what agents without a policy of their own may do, and what tasks may ask of handlers here.
        trust: this node's own opinion of others.
        opinion: answers every motion in pools whose elector this node is; None leaves that to people and programs.
    """

    safety: SafetyPolicy = field(default_factory=SafetyPolicy)
    trust: TrustPolicy = field(default_factory=TrustPolicy)
    opinion: OpinionFunction | None = None
