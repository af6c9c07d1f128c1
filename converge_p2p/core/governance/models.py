"""The governance models an application chooses from, and what each puts into a pool's founding terms.

Knows: the parameters of each model, and their defaults. Must not know: the formulas (see `compile`), tasks or votes.
Source: `docs/governance.md`. Agents are named by agent id or `key:<64 digits>`, as everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from converge_p2p.core.errors import LocalError
from converge_p2p.core.governance.compile import check_rules as check_rules, compile_rules as compile_rules
from converge_p2p.core.governance.custom import Founding, GovernanceModel, KeyOf, named_founding
from converge_p2p.core.governance.formula import Threshold, encode_formula, smallest_quorum as smallest_quorum
from converge_p2p.core.governance.rules import (
    ALL_RULES as ALL_RULES,
    ProtocolRules as ProtocolRules,
    Ruleset as Ruleset,
    VetoTerms as VetoTerms,
)
from converge_p2p.core.model.pool import NONCE_BYTES, GovernanceKind, ModelTerms, PoolPolicy, PoolSpec
from converge_p2p.core.types import PublicKey

VETO_WINDOW_MS = 5_000
SPECULATIVE = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class _Common(GovernanceModel):
    """What every model may say.

    Attributes:
        faults: f, how many electors may lie.
        trusted: electors that are assumed honest by name.
        provisional: take terms that fail the intersection check; decisions are then marked as provisional.
    """

    faults: int = 0
    trusted: tuple[str, ...] = ()
    provisional: bool = False

    def _trusted(self, key_of: KeyOf) -> tuple[PublicKey, ...]:
        return _keys(self.trusted, key_of)


@dataclass(frozen=True, slots=True)
class Democratic(_Common):
    """Every elector has one vote; a quorum decides.

    Attributes:
        quorum: electors that decide together; 0 takes the smallest safe number, ⌊(n+f)/2⌋+1.
    """

    quorum: int = 0

    kind = GovernanceKind.DEMOCRATIC

    def founding(self, electors: tuple[PublicKey, ...], founder: PublicKey, key_of: KeyOf) -> Founding:
        """See the base class."""
        terms = ModelTerms(trusted=self._trusted(key_of), provisional=self.provisional)
        return Founding(self.kind, electors or (founder,), self.quorum, self.faults, terms)


@dataclass(frozen=True, slots=True)
class Dictatorial(_Common):
    """One leader decides. With a successor, either of the two decides, and a quorum of all electors records it.

    Attributes:
        leader: who decides; empty is the one elector that is named, or the founder.
        successor: who decides as well; empty is nobody, and the pool ends with its leader.
        quorum: electors that must record a decision; 0 takes the smallest safe number. Only with a successor.
    """

    leader: str = ""
    successor: str = ""
    quorum: int = 0

    kind = GovernanceKind.DICTATORIAL

    def founding(self, electors: tuple[PublicKey, ...], founder: PublicKey, key_of: KeyOf) -> Founding:
        """See the base class."""
        leader = key_of(self.leader) if self.leader else electors[0] if len(electors) == 1 else founder
        if not self.successor:
            if set(electors) - {leader}:
                raise LocalError(
                    "a dictatorial pool without a successor has one elector, its leader",
                    hint="name at most one elector, or a successor",
                )
            terms = ModelTerms(trusted=self._trusted(key_of), provisional=self.provisional)
            return Founding(self.kind, (leader,), self.quorum, self.faults, terms)
        successor = key_of(self.successor)
        terms = ModelTerms(
            leader=leader, successor=successor, trusted=self._trusted(key_of), provisional=self.provisional
        )
        everybody = tuple(sorted({*electors, leader, successor}))
        return Founding(self.kind, everybody, self.quorum, self.faults, terms)


@dataclass(frozen=True, slots=True)
class Bicameral(_Common):
    """Two chambers; a quorum of each decides, or one chamber's and the tie-breaker.

    Attributes:
        first, second: who is in the chambers. An agent may be in both.
        quorums: of the first and the second chamber; 0 takes the smallest safe number.
        tie_breaker: decides together with one chamber; empty is nobody. With f ≥ 1 it has to be trusted.
    """

    first: tuple[str, ...] = ()
    second: tuple[str, ...] = ()
    quorums: tuple[int, int] = (0, 0)
    tie_breaker: str = ""

    kind = GovernanceKind.BICAMERAL

    def founding(self, electors: tuple[PublicKey, ...], founder: PublicKey, key_of: KeyOf) -> Founding:
        """See the base class."""
        del founder
        chambers = (_keys(self.first, key_of), _keys(self.second, key_of))
        if () in chambers:
            raise LocalError("a bicameral pool needs two chambers with at least one member each")
        tie_breaker = key_of(self.tie_breaker) if self.tie_breaker else b""
        everybody = {*chambers[0], *chambers[1]} | ({PublicKey(tie_breaker)} if tie_breaker else set())
        if not everybody.issuperset(electors):
            raise LocalError("an elector is in neither chamber", hint="name electors by their chambers only")
        terms = ModelTerms(
            chambers=chambers,
            chamber_quorums=self.quorums,
            tie_breaker=tie_breaker,
            trusted=self._trusted(key_of),
            provisional=self.provisional,
        )
        return Founding(self.kind, tuple(sorted(everybody)), 0, self.faults, terms)


@dataclass(frozen=True, slots=True)
class Veto(_Common):
    """Democratic, but nothing is settled before the vetoers passed it or their time is over.

    Attributes:
        vetoers: who may deny a settlement. They need not be electors.
        window_ms: how long electors wait for them, on their own clocks.
        silence_denies: wait for every vetoer, without end.
        quorum: electors that decide together; 0 takes the smallest safe number.
    """

    vetoers: tuple[str, ...] = ()
    window_ms: int = VETO_WINDOW_MS
    silence_denies: bool = False
    quorum: int = 0

    kind = GovernanceKind.VETO

    def founding(self, electors: tuple[PublicKey, ...], founder: PublicKey, key_of: KeyOf) -> Founding:
        """See the base class."""
        vetoers = _keys(self.vetoers, key_of)
        if not vetoers:
            raise LocalError("a veto pool needs at least one vetoer")
        terms = ModelTerms(
            vetoers=vetoers,
            veto_window_ms=self.window_ms,
            silence_denies=self.silence_denies,
            trusted=self._trusted(key_of),
            provisional=self.provisional,
        )
        return Founding(self.kind, electors or (founder,), self.quorum, self.faults, terms)


@dataclass(frozen=True, slots=True)
class Empirical(_Common):
    """Nobody is *the* claimant: several workers work at a time, and electors decide by weight.

    Attributes:
        weights: of electors, integers from 1; who is not named weighs 1.
        speculative: how many workers may work on one task at a time.
        quorum: weight that decides; 0 takes the smallest that is safe, above (W+F)/2.
        evidence: how many others than the worker must cite evidence for a result before electors endorse it.
    """

    weights: Mapping[str, int] = field(default_factory=dict)
    speculative: int = SPECULATIVE
    quorum: int = 0
    evidence: int = 0

    kind = GovernanceKind.EMPIRICAL

    def founding(self, electors: tuple[PublicKey, ...], founder: PublicKey, key_of: KeyOf) -> Founding:
        """See the base class."""
        weights = {key_of(name): weight for name, weight in self.weights.items()}
        everybody = tuple(sorted({*electors, *weights})) or (founder,)
        terms = ModelTerms(
            weights=tuple(weights.get(elector, 1) for elector in everybody),
            speculative=self.speculative,
            evidence=self.evidence,
            trusted=self._trusted(key_of),
            provisional=self.provisional,
        )
        return Founding(self.kind, everybody, self.quorum, self.faults, terms)

    def __hash__(self) -> int:
        return hash((tuple(sorted(self.weights.items())), self.speculative, self.quorum, self.faults))


@dataclass(frozen=True, slots=True)
class Custom(_Common):
    """An own formula, or an own model that is registered under a name on every node.

    Attributes:
        who: the formula; None takes that of the registered model, for the electors of the pool.
        name: the registered model; empty is none, and disputes are resolved by the formula.
    """

    who: Threshold | None = None
    name: str = ""

    kind = GovernanceKind.CUSTOM

    def founding(self, electors: tuple[PublicKey, ...], founder: PublicKey, key_of: KeyOf) -> Founding:
        """See the base class."""
        terms = ModelTerms(custom=self.name, trusted=self._trusted(key_of), provisional=self.provisional)
        if self.who is None:
            if not self.name:
                raise LocalError("a custom pool needs a formula, or the name of a registered model")
            return named_founding(self.name, electors or (founder,), self.faults, terms)
        if not self.who.electors.issuperset(electors):
            raise LocalError("an elector is not counted by the formula", hint="name electors in the formula only")
        terms = ModelTerms(
            formula=encode_formula(self.who), custom=self.name, trusted=terms.trusted, provisional=self.provisional
        )
        return Founding(self.kind, tuple(sorted(self.who.electors)), 0, self.faults, terms)


@dataclass(frozen=True, slots=True)
class Stated(GovernanceModel):
    """Terms as they stand, for who has them already.

    Attributes:
        governance: which model.
        quorum, faults, model: see `PoolSpec`.
    """

    governance: GovernanceKind
    quorum: int = 0
    faults: int = 0
    model: ModelTerms = field(default_factory=ModelTerms)

    def founding(self, electors: tuple[PublicKey, ...], founder: PublicKey, key_of: KeyOf) -> Founding:
        """See the base class."""
        del key_of
        return Founding(self.governance, electors or (founder,), self.quorum, self.faults, self.model)


def rules_for(
    model: GovernanceModel,
    *,
    names: Mapping[str, PublicKey],
    electors: Sequence[str] = (),
    policy: PoolPolicy | None = None,
) -> Ruleset:
    """Return what a pool of this model would be ruled by, without founding it: to try a model out.

    Args:
        model: who decides.
        names: the agents, by the names that the model and `electors` use. The first founds the pool.
        electors: who votes, beside those that the model names.
        policy: timers and defaults.

    Raises:
        LocalError: the model does not fit the electors, or an agent is not among the names.
        CodecError: the terms contradict each other or are not safe; the message says why.
    """

    def key_of(name: str) -> PublicKey:
        if name not in names:
            raise LocalError(f"{name!r} is not among the names")
        return names[name]

    named = tuple(sorted({key_of(name) for name in electors}))
    founding = model.founding(named, next(iter(names.values())), key_of)
    spec = PoolSpec(
        name="plan",
        nonce=bytes(NONCE_BYTES),
        governance=founding.governance,
        electors=founding.electors,
        quorum=founding.quorum,
        faults=founding.faults,
        policy=policy or PoolPolicy(),
        model=founding.model,
    )
    spec.check()
    return compile_rules(spec)


def _keys(names: tuple[str, ...], key_of: KeyOf) -> tuple[PublicKey, ...]:
    return tuple(sorted({key_of(name) for name in names}))
