"""From founding terms to a ruleset, and the refusal of terms that could decide twice.

Knows: the formula of each governance model, and which formulas must meet. Must not know: tasks or votes.
Source: `docs/governance.md`; Paxos (Lamport 1998) for the intersections that every model must keep.
"""

from __future__ import annotations

import functools
from dataclasses import fields, replace

from converge_p2p.core import limits
from converge_p2p.core.errors import CodecError
from converge_p2p.core.governance.check import TooIrregular, least_honest_overlap, must_share_honest
from converge_p2p.core.governance.custom import GovernanceModel, registered_model
from converge_p2p.core.governance.formula import Threshold, decode_formula, smallest_quorum
from converge_p2p.core.governance.rules import Ruleset, VetoTerms
from converge_p2p.core.model.pool import GovernanceKind, ModelTerms, PoolSpec
from converge_p2p.core.types import PublicKey

_EVERYWHERE = frozenset({"trusted", "provisional"})
_USED = {
    GovernanceKind.DICTATORIAL: frozenset({"leader", "successor"}),
    GovernanceKind.DEMOCRATIC: frozenset[str](),
    GovernanceKind.BICAMERAL: frozenset({"chambers", "chamber_quorums", "tie_breaker"}),
    GovernanceKind.VETO: frozenset({"vetoers", "veto_window_ms", "silence_denies"}),
    GovernanceKind.EMPIRICAL: frozenset({"weights", "speculative", "evidence"}),
    GovernanceKind.CUSTOM: frozenset({"formula", "custom"}),
}


def compile_rules(spec: PoolSpec, *, disputes: bool = True) -> Ruleset:
    """Compile a pool's governance and check that it can be safe.

    Args:
        spec: the founding terms.
        disputes: whether disputes will be resolved. Without, a model of a user need not be registered here if its
            formula stands in the terms.

    Raises:
        UnknownModel: the terms name a model that is not registered here.
        CodecError: the model's parameters contradict each other, or two deciding sets need not meet.
    """
    if spec.model.custom and (disputes or not spec.model.formula):
        # not kept: another model may be registered under this name later
        return _compile(spec, registered_model(spec.model.custom))
    return _compile_known(spec)


@functools.lru_cache(maxsize=limits.COMPILED_POOLS_MAX)
def _compile_known(spec: PoolSpec) -> Ruleset:
    return _compile(spec, GovernanceModel())


def _compile(spec: PoolSpec, model: GovernanceModel) -> Ruleset:
    _check_used(spec)
    terms = spec.model
    formula = _formula(spec, model)
    if formula.electors != frozenset(spec.electors):
        raise CodecError("the governance formula must count every elector of the pool, and nobody else")
    deciders = tuple(PublicKey(key) for key in (terms.leader, terms.successor) if key) if terms.successor else ()
    veto = None
    if spec.governance is GovernanceKind.VETO:
        veto = VetoTerms(frozenset(terms.vetoers), terms.veto_window_ms, terms.silence_denies)
    rules = Ruleset(
        grant=formula,
        endorse=None if _decides_directly(spec) else formula,
        accept=formula,
        epoch=formula,
        faults=spec.faults,
        trusted=frozenset(terms.trusted),
        deciders=deciders,
        speculative=terms.speculative,
        cites=spec.governance is GovernanceKind.EMPIRICAL,
        evidence=terms.evidence,
        veto=veto,
        model=model,
    )
    try:
        check_rules(rules)
    except CodecError:
        if not terms.provisional:
            raise
        rules = replace(rules, provisional=True)
    return rules


def _decides_directly(spec: PoolSpec) -> bool:
    """Whether accepts need no endorsements before them.

    An honest worker cannot be told from a lying one, so only a pool that says so leaves the endorsing out; not where an
    elector may lie as well, where round 0 is promised by one granter, or where several workers report in one round.
    """
    if len(spec.electors) == 1:
        return True
    several = spec.governance is GovernanceKind.EMPIRICAL
    return spec.policy.trusted_workers and spec.faults == 0 and not spec.policy.fast_path and not several


def _check_used(spec: PoolSpec) -> None:
    used = _USED[spec.governance] | _EVERYWHERE
    name = spec.governance.name.lower()
    for item in fields(ModelTerms):
        if item.name not in used and getattr(spec.model, item.name) != item.default:
            raise CodecError(f"{name} governance does not use {item.name!r}; leave it out")
    if spec.quorum and spec.governance in (GovernanceKind.BICAMERAL, GovernanceKind.CUSTOM):
        raise CodecError(f"{name} governance has no single quorum; leave 'quorum' at 0")


def _formula(spec: PoolSpec, model: GovernanceModel) -> Threshold:
    match spec.governance:
        case GovernanceKind.DICTATORIAL:
            return _dictatorial(spec)
        case GovernanceKind.DEMOCRATIC:
            return _democratic(spec)
        case GovernanceKind.VETO:
            if not spec.model.vetoers:
                raise CodecError("veto governance names at least one vetoer")
            return _democratic(spec)
        case GovernanceKind.BICAMERAL:
            return _bicameral(spec)
        case GovernanceKind.EMPIRICAL:
            return _empirical(spec)
        case GovernanceKind.CUSTOM:
            if spec.model.formula:
                return decode_formula(spec.model.formula)
            if not spec.model.custom:
                raise CodecError("custom governance has a formula, the name of a registered model, or both")
            return model.formula(spec.electors, spec.faults)


def _quorum(given: int, electors: int, faults: int) -> int:
    """Return the given number, or the smallest that is safe; if even all electors are not, the check will say so."""
    return given or min(smallest_quorum(electors, faults), electors)


def _democratic(spec: PoolSpec) -> Threshold:
    return Threshold.flat(_quorum(spec.quorum, len(spec.electors), spec.faults), spec.electors)


def _dictatorial(spec: PoolSpec) -> Threshold:
    leader, successor = spec.model.leader, spec.model.successor
    if not successor:
        if len(spec.electors) != 1 or spec.quorum not in (0, 1):
            raise CodecError("a dictatorial pool without a successor has exactly one elector, its leader")
        return Threshold.flat(1, spec.electors)
    if not leader or leader == successor:
        raise CodecError("a dictatorial pool with a successor names its leader, and another agent as successor")
    # the leader's and the successor's own votes count as records, too: all electors are witnesses
    witnesses = _democratic(spec)
    return Threshold.all_of(witnesses, Threshold.flat(1, (PublicKey(leader), PublicKey(successor))))


def _bicameral(spec: PoolSpec) -> Threshold:
    terms = spec.model
    if len(terms.chambers) != 2:
        raise CodecError("a bicameral pool has two chambers")
    sizes = terms.chamber_quorums or (0, 0)
    chambers = [
        Threshold.flat(_quorum(size, len(chamber), spec.faults), chamber)
        for chamber, size in zip(terms.chambers, sizes, strict=True)
    ]
    if not terms.tie_breaker:
        return Threshold.all_of(*chambers)
    # two of the three: both chambers, or one of them with the tie-breaker
    return Threshold(2, ((1, chambers[0]), (1, chambers[1]), (1, PublicKey(terms.tie_breaker))))


def _empirical(spec: PoolSpec) -> Threshold:
    if not spec.model.speculative:
        raise CodecError(
            "an empirical pool says how many workers may work on one task at a time ('speculative', at least 1)"
        )
    weights = spec.model.weights or (1,) * len(spec.electors)
    heaviest = sum(sorted(weights, reverse=True)[: spec.faults])
    need = spec.quorum or min((sum(weights) + heaviest) // 2 + 1, sum(weights))
    return Threshold(need, tuple(zip(weights, spec.electors, strict=True)))


def check_rules(rules: Ruleset) -> None:
    """Check that whoever promises meets whoever accepts, in an elector that is assumed honest.

    Raises:
        CodecError: two sets that decide need not share more than f electors, or a trusted one.
    """
    accept, epoch = ("accept", rules.accept), ("epoch", rules.epoch)
    grant = ("grant", rules.grant)
    # two grants of a round must meet as well, or two workers hold it
    pairs = [(grant, accept), (grant, grant), (accept, accept), (epoch, accept), (epoch, epoch)]
    if rules.endorse is not None:
        endorse = ("endorse", rules.endorse)
        pairs += [(endorse, endorse), (epoch, endorse)]
    sound: set[tuple[Threshold, Threshold]] = set()
    for (name, first), (other, second) in pairs:
        if (first, second) in sound:
            continue
        try:
            if must_share_honest(first, second, faults=rules.faults, trusted=rules.trusted):
                sound.add((first, second))
                continue
        except TooIrregular as error:
            raise TooIrregular(f"unchecked governance: a {name} quorum and {_an(other)} quorum: {error}") from error
        overlap = least_honest_overlap(first, second, trusted=rules.trusted, enough=rules.faults + 1)
        raise CodecError(
            f"unsafe governance: {_an(name)} quorum and {_an(other)} quorum share only {overlap} electors"
            f"{' and no trusted one' if rules.trusted else ''}, more than {rules.faults} are needed; raise the quorum"
            f"{', or lower the number of electors that may lie' if rules.faults else ''}",
            hint="or set 'provisional', and have decisions marked as such",
        )


def _an(phase: str) -> str:
    return f"an {phase}" if phase[0] in "aeiou" else f"a {phase}"
