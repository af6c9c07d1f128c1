"""Terms with one key in the place of another: how an elector that changes its key keeps its vote.

Knows: every place in the terms that names a key. Must not know: who asks for it.
Source: `docs/protocol.md`, succession.
"""

from __future__ import annotations

from dataclasses import replace

from converge_p2p.core.errors import LocalError
from converge_p2p.core.governance.formula import Part, Threshold, decode_formula, encode_formula
from converge_p2p.core.model.pool import PoolSpec
from converge_p2p.core.types import PublicKey


def named(spec: PoolSpec) -> set[PublicKey]:
    """Return the keys that terms name for more than that they may join."""
    model = spec.model
    formula = decode_formula(model.formula).electors if model.formula else ()
    chambers = (one for chamber in model.chambers for one in chamber)
    single = (key for key in (model.leader, model.successor, model.tie_breaker) if key)
    return {PublicKey(key) for key in (*spec.electors, *model.vetoers, *model.trusted, *chambers, *formula, *single)}


def gives_role(spec: PoolSpec, key: PublicKey) -> bool:
    """Whether terms name a key for more than that it may join."""
    return key in named(spec)


def with_key_replaced(spec: PoolSpec, old: PublicKey, new: PublicKey) -> PoolSpec:
    """Return terms that name `new` wherever these name `old`.

    Raises:
        LocalError: the terms name the new key already, or do not name the old one.
    """
    if new in spec.electors or new in spec.model.vetoers:
        raise LocalError("the new key has a vote already", hint="choose a key that has none")

    def put(key: PublicKey) -> PublicKey:
        return new if key == old else key

    def put_all(keys: tuple[PublicKey, ...]) -> tuple[PublicKey, ...]:
        return tuple(sorted({put(key) for key in keys}))

    def put_formula(part: Part) -> Part:
        if isinstance(part, Threshold):
            return Threshold(part.need, tuple((weight, put_formula(inner)) for weight, inner in part.parts))
        return put(part)

    model, electors = spec.model, put_all(spec.electors)
    weight_of = dict(zip((put(key) for key in spec.electors), model.weights, strict=False))
    formula = put_formula(decode_formula(model.formula)) if model.formula else None
    terms = replace(
        model,
        leader=put(PublicKey(model.leader)),
        successor=put(PublicKey(model.successor)),
        tie_breaker=put(PublicKey(model.tie_breaker)),
        chambers=tuple(put_all(chamber) for chamber in model.chambers),
        vetoers=put_all(model.vetoers),
        trusted=put_all(model.trusted),
        weights=tuple(weight_of[key] for key in electors) if model.weights else (),
        formula=encode_formula(formula) if isinstance(formula, Threshold) else model.formula,
    )
    changed = replace(spec, electors=electors, whitelist=put_all(spec.whitelist), model=terms)
    if changed == spec:
        raise LocalError(f"the terms of the pool do not name {old.hex()[:12]}")
    return changed
