"""Vectors of governance: founding terms of every model, the formula each compiles to, and terms that are refused.

Knows: one pool of each kind. `generate.py` writes what is made here.
"""

from __future__ import annotations

import hashlib
from typing import Any

from converge_p2p.core.codec import encode
from converge_p2p.core.governance.formula import Threshold, encode_formula
from converge_p2p.core.governance.models import compile_rules
from converge_p2p.core.identity import Identity
from converge_p2p.core.model.pool import GovernanceKind, ModelTerms, PoolPolicy, PoolSpec, pool_id
from converge_p2p.core.types import PublicKey

Kind = GovernanceKind
KEYS = tuple(
    sorted(Identity.from_seed(hashlib.sha256(f"elector {number}".encode()).digest()).public_key for number in range(7))
)


def _pool(kind: GovernanceKind, electors: int, **terms: Any) -> PoolSpec:
    return PoolSpec("governed", bytes(range(16)), kind, KEYS[:electors], **terms)


def _accepted() -> dict[str, PoolSpec]:
    a, b, *_ = KEYS
    own = Threshold(3, ((2, a), (1, Threshold.flat(2, KEYS[1:4])), (1, b)))
    chambers = (KEYS[:3], KEYS[3:6])
    return {
        "leader alone": _pool(Kind.DICTATORIAL, 1),
        "leader and successor": _pool(Kind.DICTATORIAL, 5, model=ModelTerms(leader=b, successor=a)),
        "majority": _pool(Kind.DEMOCRATIC, 5),
        "majority, one liar": _pool(Kind.DEMOCRATIC, 4, faults=1),
        "majority, trusted workers": _pool(Kind.DEMOCRATIC, 3, policy=PoolPolicy(trusted_workers=True)),
        "trusted workers and the fast path": _pool(
            Kind.DEMOCRATIC, 3, policy=PoolPolicy(trusted_workers=True, fast_path=True)
        ),
        "two chambers": _pool(Kind.BICAMERAL, 6, model=ModelTerms(chambers=chambers)),
        "two chambers and a tie-breaker, one liar": _pool(
            Kind.BICAMERAL, 7, faults=1, model=ModelTerms(chambers=chambers, tie_breaker=KEYS[6], trusted=(KEYS[6],))
        ),
        "veto": _pool(Kind.VETO, 3, model=ModelTerms(vetoers=(KEYS[6],), veto_window_ms=5000)),
        "weights, one liar": _pool(Kind.EMPIRICAL, 4, faults=1, model=ModelTerms(weights=(5, 3, 3, 3), speculative=2)),
        "evidence is needed": _pool(Kind.EMPIRICAL, 3, model=ModelTerms(speculative=1, evidence=2)),
        "own formula": _pool(Kind.CUSTOM, 4, model=ModelTerms(formula=encode_formula(own))),
        "unsafe, and provisional": _pool(Kind.DEMOCRATIC, 4, quorum=2, model=ModelTerms(provisional=True)),
    }


def _refused() -> dict[str, PoolSpec]:
    apart = Threshold.any_of(Threshold.all_of(*KEYS[:2]), Threshold.all_of(*KEYS[2:4]))
    return {
        "two quorums need not meet": _pool(Kind.DEMOCRATIC, 4, quorum=2),
        "two quorums share a liar only": _pool(Kind.DEMOCRATIC, 5, quorum=3, faults=1),
        "a tie-breaker that may lie": _pool(
            Kind.BICAMERAL, 7, faults=1, model=ModelTerms(chambers=(KEYS[:3], KEYS[3:6]), tie_breaker=KEYS[6])
        ),
        "witnesses that need not meet": _pool(
            Kind.DICTATORIAL, 5, quorum=2, model=ModelTerms(leader=KEYS[0], successor=KEYS[1])
        ),
        "a formula with two sides": _pool(Kind.CUSTOM, 4, model=ModelTerms(formula=encode_formula(apart))),
        "a formula that leaves an elector out": _pool(
            Kind.CUSTOM, 4, model=ModelTerms(formula=encode_formula(Threshold.flat(2, KEYS[:3])))
        ),
        "a term of another model": _pool(Kind.DEMOCRATIC, 3, model=ModelTerms(speculative=1)),
        "a model that is not registered": _pool(Kind.CUSTOM, 3, model=ModelTerms(custom="nobody registered this")),
    }


def governance() -> dict[str, Any]:
    """Founding terms, what they compile to, and those that are refused."""
    creator = PublicKey(KEYS[0])
    accepted = []
    for name, spec in _accepted().items():
        rules = compile_rules(spec)
        accepted.append(
            {
                "name": name,
                "body": encode(spec.to_body()).hex(),
                "creator": creator.hex(),
                "pool": pool_id(creator, spec).hex(),
                "formula": encode_formula(rules.accept).hex(),
                "endorse_phase": rules.endorse is not None,
                "deciders": [key.hex() for key in rules.deciders],
                "provisional": rules.provisional,
            }
        )
    refused = [{"name": name, "body": encode(spec.to_body()).hex()} for name, spec in _refused().items()]
    return {"accepted": accepted, "refused": refused}
