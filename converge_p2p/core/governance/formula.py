"""Threshold formulas over electors, and the check that two of them must meet.

Knows: which sets of electors satisfy a formula. Must not know: what they decide.
Source: quorum systems; `docs/protocol.md`, governance.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from converge_p2p.core.types import PublicKey


@dataclass(frozen=True, slots=True)
class Threshold:
    """Satisfied by any `need` of its electors. Adding electors never unsatisfies it.

    Attributes:
        need: how many, 1 to the number of electors.
        electors: who is counted. Members are counted, never only the votes cast.
    """

    need: int
    electors: frozenset[PublicKey]

    def __post_init__(self) -> None:
        assert 1 <= self.need <= len(self.electors)

    def satisfied_by(self, voters: Collection[PublicKey]) -> bool:
        """Whether these voters (no repeats) are enough."""
        if len(voters) < self.need:
            return False
        return sum(1 for voter in voters if voter in self.electors) >= self.need

    def reachable(self, against: Collection[PublicKey]) -> bool:
        """Whether it can still be satisfied without the electors that spoke against."""
        return len(self.electors) - sum(1 for voter in against if voter in self.electors) >= self.need


def least_overlap(first: Threshold, second: Threshold) -> int:
    """Return how many electors every set that satisfies `first` shares with every one that satisfies `second`."""
    outside_second = len(first.electors - second.electors)
    inside = max(0, first.need - outside_second)
    shared_pool = len(first.electors & second.electors)
    second_elsewhere = len(second.electors - first.electors)
    second_inside = max(0, second.need - second_elsewhere)
    return max(0, inside + second_inside - shared_pool)
