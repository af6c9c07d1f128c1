"""Governance between the schema and the library: from what a user asked for to a model, and from a pool to words.

Knows: the names of the models and of their terms. Must not know: HTTP, or how a model decides.
Source: docs/governance.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from converge_p2p.client import schema
from converge_p2p.core import governance
from converge_p2p.core.errors import ConvergeError, LocalError
from converge_p2p.core.governance.formula import Threshold
from converge_p2p.core.governance.models import Ruleset, compile_rules
from converge_p2p.core.identity import fingerprint
from converge_p2p.core.model.pool import AdmissionKind, GovernanceKind, PoolSpec
from converge_p2p.core.types import PublicKey

Resolve = Callable[[Sequence[str]], list[str]]
SHORT_DIGITS = 12

_EVERYWHERE = frozenset({"faults", "trusted", "provisional"})
_USED = {
    "democratic": frozenset({"quorum"}),
    "dictatorial": frozenset({"quorum", "leader", "successor"}),
    "bicameral": frozenset({"chambers", "chamber_quorums", "tie_breaker"}),
    "veto": frozenset({"quorum", "vetoers", "veto_window_s", "silence_denies"}),
    "empirical": frozenset({"quorum", "weights", "speculative", "evidence"}),
    "custom": frozenset({"model"}),
}


def governance_model(name: str, terms: schema.GovernanceTerms, resolve: Resolve) -> governance.GovernanceModel:
    """Return the model that a request asks for.

    Args:
        name: of the model.
        terms: what the request says about it.
        resolve: finds the keys of agents, as `key:<64 digits>`.

    Raises:
        LocalError: there is no such model, or it does not use a term that was given.
        NotFound: an agent is not known.
    """
    if name not in _USED:
        raise LocalError(f"unknown governance {name!r}; known are {', '.join(_USED)}")
    given = {field: value for field, value in _given(terms).items() if field not in _EVERYWHERE}
    unused = sorted(set(given) - _USED[name])
    if unused:
        raise LocalError(f"{name} governance does not use {', '.join(unused)}", hint="leave it out, or choose another")
    common: dict[str, Any] = {
        "faults": terms.faults,
        "trusted": tuple(resolve(terms.trusted)),
        "provisional": terms.provisional,
    }
    one = {field: resolve([value])[0] if (value := getattr(terms, field)) else "" for field in _AGENTS}
    match name:
        case "dictatorial":
            return governance.Dictatorial(
                leader=one["leader"], successor=one["successor"], quorum=terms.quorum, **common
            )
        case "bicameral":
            if len(terms.chambers) != 2:
                raise LocalError(f"a bicameral pool has two chambers, not {len(terms.chambers)}")
            first, second = (tuple(resolve(chamber)) for chamber in terms.chambers)
            quorums = terms.chamber_quorums or [0, 0]
            if len(quorums) != 2:
                raise LocalError(f"a bicameral pool has a quorum for each chamber, not {len(quorums)}")
            return governance.Bicameral(
                first=first, second=second, quorums=(quorums[0], quorums[1]), tie_breaker=one["tie_breaker"], **common
            )
        case "veto":
            window: dict[str, Any] = (
                {} if terms.veto_window_s is None else {"window_ms": round(terms.veto_window_s * 1000)}
            )
            vetoers = tuple(resolve(terms.vetoers))
            return governance.Veto(
                vetoers=vetoers, silence_denies=terms.silence_denies, quorum=terms.quorum, **window, **common
            )
        case "empirical":
            weights = {resolve([agent])[0]: weight for agent, weight in terms.weights.items()}
            some: dict[str, Any] = {} if terms.speculative is None else {"speculative": terms.speculative}
            return governance.Empirical(weights=weights, quorum=terms.quorum, evidence=terms.evidence, **some, **common)
        case "custom":
            return governance.Custom(name=terms.model, **common)
        case _:
            return governance.Democratic(quorum=terms.quorum, **common)


def admission_kind(name: str) -> AdmissionKind:
    """Return the admission policy that a request asks for.

    Raises:
        LocalError: there is no such policy.
    """
    known = {kind.name.lower(): kind for kind in AdmissionKind}
    if name not in known:
        raise LocalError(f"unknown admission {name!r}; known are {', '.join(known)}")
    return known[name]


_AGENTS = ("leader", "successor", "tie_breaker")


def _given(terms: schema.GovernanceTerms) -> dict[str, Any]:
    empty = schema.GovernanceTerms()
    return {
        field: getattr(terms, field)
        for field in terms.__struct_fields__
        if getattr(terms, field) != getattr(empty, field)
    }


def decided_by(spec: PoolSpec) -> str:
    """Return in words whose votes decide in a pool."""
    try:
        return rules_text(spec, compile_rules(spec))
    except ConvergeError as error:
        return f"unknown: {error}"


def rules_text(spec: PoolSpec, rules: Ruleset) -> str:
    """Return in words whose votes decide by terms, given what they compile to."""
    words = [formula_text(rules.accept)]
    if rules.deciders:
        words.append("only what leader or successor decided")
    if rules.faults:
        words.append(f"{rules.faults} may lie")
    if rules.trusted:
        words.append(f"{len(rules.trusted)} trusted by name")
    if rules.speculative:
        words.append(f"up to {rules.speculative} workers on a task")
    if rules.evidence:
        words.append(f"results need evidence by {rules.evidence} others")
    if rules.veto is not None:
        wait = "without end" if rules.veto.silence_denies else f"{rules.veto.window_ms / 1000:g} s"
        words.append(f"{len(rules.veto.vetoers)} may deny, waited for {wait}")
    if spec.governance is GovernanceKind.CUSTOM and spec.model.custom:
        words.append(f"model {spec.model.custom}")
    if rules.provisional:
        words.append("PROVISIONAL: two sides could decide differently")
    return "; ".join(words)


def formula_text(formula: Threshold) -> str:
    """Return a formula in words, with the number of electors where all count alike."""
    plain = [weight for weight, part in formula.parts if not isinstance(part, Threshold)]
    if len(plain) == len(formula.parts) and set(plain) == {1} and len(plain) > 1:
        return f"{formula.need} of {len(plain)}"
    names = [(f"{weight}×" if weight > 1 else "") + _part_text(part) for weight, part in formula.parts]
    if len(names) == 1:
        return names[0]
    if formula.need == sum(weight for weight, _ in formula.parts):
        return " and ".join(names)
    return f"{formula.need} of [{', '.join(names)}]"


def _part_text(part: PublicKey | Threshold) -> str:
    if not isinstance(part, Threshold):
        return fingerprint(part)[:SHORT_DIGITS]
    return formula_text(part) if len(part.parts) == 1 else f"({formula_text(part)})"
