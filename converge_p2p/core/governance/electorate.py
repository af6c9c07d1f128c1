"""Who decides about motions in an epoch.

Knows: whose opinions count, and which sets of them are enough. Must not know: motions (see `view.motions`).
Source: `docs/protocol.md`, motions.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import NamedTuple, Protocol

from converge_p2p.core.governance.custom import CitedEvidence, GovernanceModel
from converge_p2p.core.governance.rules import Ruleset
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
        self,
        subject: bytes,
        options: tuple[bytes, ...],
        ballots: tuple[tuple[PublicKey, int], ...],
        electors: frozenset[PublicKey],
        evidence: tuple[CitedEvidence, ...],
    ) -> int | None:
        """Return the index of the option that is decided, or None.

        Args:
            subject: the task in dispute.
            options: for a rejected result "no" and "yes"; else the rival value hashes, sorted.
            ballots: (elector, index), sorted; an elector that contradicted itself has several.
            electors: the electorate of the epoch in which these ballots were given.
            evidence: what was cited about the task.
        """
        ...


class Electorate(NamedTuple):
    """Who decides about motions in one epoch.

    Attributes:
        electors: whose opinions count.
        change: who together carry a change of the pool: the rule by which epochs are certified.
        dispute: who together carry a dispute: the rule by which results are accepted.
        resolve: what decides a dispute in place of `dispute`, if the pool's model brings an own rule.
        cites: a choice among rival reports counts only if it rests on evidence that is known.
        weights: of the electors.
    """

    electors: frozenset[PublicKey]
    change: Formula
    dispute: Formula
    resolve: DisputeHook | None = None
    cites: bool = False
    weights: Mapping[PublicKey, int] = MappingProxyType({})


def electorate_of(electors: frozenset[PublicKey], rules: Ruleset, epoch: int) -> Electorate:
    """Return who decides about motions in an epoch, by its rules.

    A model of a user that overrides `resolve_dispute` answers disputes itself. Changes of the pool are always counted
    by the formula, so that the intersection check vouches for them.
    """
    own = type(rules.model).resolve_dispute is not GovernanceModel.resolve_dispute
    hook = _hook(rules, epoch) if own else None
    return Electorate(electors, rules.epoch, rules.accept, hook, rules.cites, MappingProxyType(rules.weights))


def _hook(rules: Ruleset, epoch: int) -> DisputeHook:
    def resolve(
        subject: bytes,
        options: tuple[bytes, ...],
        ballots: tuple[tuple[PublicKey, int], ...],
        electors: frozenset[PublicKey],
        evidence: tuple[CitedEvidence, ...],
    ) -> int | None:
        # of an elector that contradicts itself the last option counts: a yes cannot be taken back
        said = {elector: options[choice] for elector, choice in ballots if elector in electors}
        try:
            outcome = rules.resolve_dispute(options, said, epoch=epoch, subject=subject, evidence=evidence)
        except Exception:  # noqa: BLE001 - the edge: a user's model must not end a replica, and has then decided nothing
            return None
        return options.index(outcome) if isinstance(outcome, bytes) and outcome in options else None

    return resolve
