"""Who decides about motions in an epoch.

Knows: whose opinions count, and which sets of them are enough. Must not know: motions (see `view.motions`).
Source: `docs/protocol.md`, motions.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple, Protocol

from converge_p2p.core.types import PublicKey


class Formula(Protocol):
    """Who together is enough. Monotone: more voters never unsatisfy it."""

    def satisfied_by(self, voters: Collection[PublicKey]) -> bool:
        """Whether these voters are enough."""
        ...

    def reachable(self, against: Collection[PublicKey]) -> bool:
        """Whether it can still be satisfied without these."""
        ...


class DisputeHook(Protocol):
    """Decides a dispute for a pool with a model of its own. Pure, and stable: more ballots never change an answer.

    It is asked again whenever ballots arrive, and never about a change of the pool.
    """

    def __call__(
        self, options: tuple[bytes, ...], ballots: tuple[tuple[PublicKey, int], ...], electors: frozenset[PublicKey]
    ) -> int | None:
        """Return the index of the option that is decided, or None.

        Args:
            options: for a rejected result "no" and "yes"; else the rival value hashes, sorted.
            ballots: (elector, index), sorted; an elector that contradicted itself has several.
            electors: the electorate of the epoch in which these ballots were given.
        """
        ...


class Electorate(NamedTuple):
    """Who decides about motions in one epoch.

    Attributes:
        electors: whose opinions count.
        change: who together carry a change of the pool: the rule by which epochs are certified.
        dispute: who together carry a dispute: the rule by which results are accepted.
        resolve: what decides a dispute in place of `dispute`, if the pool's model brings an own rule.
    """

    electors: frozenset[PublicKey]
    change: Formula
    dispute: Formula
    resolve: DisputeHook | None = None
