"""Governance terms, drawn: every model, with parameters that the core takes.

Knows: the models and their parameters. Must not know: who of the electors lies in a run, except as a set to get along
without. Source: `docs/governance.md`.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import replace

from converge_p2p.core.errors import CodecError
from converge_p2p.core.governance.formula import Threshold, encode_formula
from converge_p2p.core.governance.models import compile_rules
from converge_p2p.core.model.pool import GovernanceKind, ModelTerms, PoolSpec
from converge_p2p.core.types import PublicKey
from converge_p2p.testing.counting import decides

KINDS = tuple(GovernanceKind)
TRIES = 6


def draw_terms(
    rng: random.Random,
    base: PoolSpec,
    kind: GovernanceKind,
    electors: Sequence[PublicKey],
    faults: int,
    needed: Collection[PublicKey] | None = None,
) -> PoolSpec:
    """Draw terms of a model for these electors; democratic ones where the model does not fit them.

    Args:
        rng: draws the parameters.
        base: what the model does not touch.
        kind: the model.
        electors: who votes. A dictatorial pool may keep only the first of them.
        faults: f; lowered to 0 where the electors are too few for it.
        needed: electors that must be enough without the others, or None.
    """
    for attempt in range(TRIES):
        wanted = faults if attempt < TRIES - 2 else 0
        spec = _drawn(rng, base, kind, electors, wanted, larger=attempt == 0)
        if spec is not None and is_sound(spec) and (needed is None or decides(spec, needed)):
            return spec
    plain = _with(base, GovernanceKind.DEMOCRATIC, electors, faults=faults)
    if is_sound(plain) and (needed is None or decides(plain, needed)):
        return plain
    return _with(base, GovernanceKind.DEMOCRATIC, electors)


def is_sound(spec: PoolSpec) -> bool:
    """Whether the core takes these terms, and not only provisionally."""
    try:
        spec.check()
        return not compile_rules(spec).provisional
    except CodecError:
        return False


def _with(
    base: PoolSpec,
    kind: GovernanceKind,
    electors: Sequence[PublicKey],
    model: ModelTerms | None = None,
    *,
    quorum: int = 0,
    faults: int = 0,
) -> PoolSpec:
    return replace(
        base,
        governance=kind,
        electors=tuple(sorted(electors)),
        quorum=quorum,
        faults=faults,
        model=model or ModelTerms(),
    )


def _drawn(
    rng: random.Random,
    base: PoolSpec,
    kind: GovernanceKind,
    electors: Sequence[PublicKey],
    faults: int,
    *,
    larger: bool,
) -> PoolSpec | None:
    count = len(electors)
    enough = min((count + faults) // 2 + 1, count)
    quorum = rng.randint(enough, count) if larger and rng.random() < 0.2 else 0
    match kind:
        case GovernanceKind.DEMOCRATIC:
            return _with(base, kind, electors, quorum=quorum, faults=faults)
        case GovernanceKind.VETO:
            vetoers = tuple(sorted(rng.sample(list(electors), 1)))
            return _with(base, kind, electors, ModelTerms(vetoers=vetoers, veto_window_ms=200), faults=faults)
        case GovernanceKind.DICTATORIAL if count == 1 or rng.random() < 0.4:
            return _with(base, kind, electors[:1])
        case GovernanceKind.DICTATORIAL:
            leader, successor = rng.sample(list(electors), 2)
            return _with(base, kind, electors, ModelTerms(leader=leader, successor=successor), faults=faults)
        case GovernanceKind.BICAMERAL:
            return _bicameral(rng, base, electors, faults)
        case GovernanceKind.EMPIRICAL:
            weights = tuple(rng.choice((1, 1, 2, 3)) for _ in electors)
            # somebody beside the worker has to be there to cite
            evidence = rng.choice((0, 0, 1)) if count > 1 else 0
            model = ModelTerms(weights=rng.choice(((), weights)), speculative=rng.choice((1, 2, 3)), evidence=evidence)
            return _with(base, kind, electors, model, faults=faults)
        case GovernanceKind.CUSTOM:
            formula = _nested(rng, list(electors), faults)
            if formula is None:
                return None
            return _with(base, kind, electors, ModelTerms(formula=encode_formula(formula)), faults=faults)


def _bicameral(rng: random.Random, base: PoolSpec, electors: Sequence[PublicKey], faults: int) -> PoolSpec | None:
    everybody = list(electors)
    rng.shuffle(everybody)
    breaker: bytes = b""
    if not faults and len(everybody) > 2 and rng.random() < 0.5:
        breaker = everybody.pop()
    if len(everybody) < 2:
        return None
    cut = rng.randint(1, len(everybody) - 1)
    first, second = everybody[:cut], everybody[cut:]
    if rng.random() < 0.3:
        second = [*second, first[0]]
    model = ModelTerms(chambers=(tuple(sorted(first)), tuple(sorted(second))), tie_breaker=breaker)
    return _with(base, GovernanceKind.BICAMERAL, electors, model, faults=faults)


def _nested(rng: random.Random, electors: list[PublicKey], faults: int) -> Threshold | None:
    """A formula of groups: of each a majority, and of the groups a majority or all."""
    rng.shuffle(electors)
    groups = [electors[start : start + 3] for start in range(0, len(electors), 3)]
    parts = [
        (
            rng.choice((1, 1, 2)),
            Threshold.flat(min((len(group) + min(faults, 1)) // 2 + 1, len(group)), group)
            if len(group) > 1
            else group[0],
        )
        for group in groups
    ]
    total = sum(weight for weight, _ in parts)
    try:
        return Threshold(rng.randint(total // 2 + 1, total), tuple(parts))
    except CodecError:
        return None
