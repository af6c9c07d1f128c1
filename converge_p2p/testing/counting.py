"""Who together decides, counted from a pool's terms by the simulator's own code.

Knows: the text of the governance page. Must not know: the core's formulas, or how it compiles them.
Source: `docs/governance.md`. Where this file and the core agree, they do so by different code.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from converge_p2p.core.codec import decode, tagged_hash
from converge_p2p.core.model.pool import GovernanceKind, PoolSpec
from converge_p2p.core.types import PublicKey, TaskId


def decides(spec: PoolSpec, voters: Collection[bytes]) -> bool:
    """Whether these voters together decide under these terms. Whoever is no elector counts nothing."""
    present = set(voters) & set(spec.electors)
    terms, faults = spec.model, spec.faults
    match spec.governance:
        case GovernanceKind.DICTATORIAL if not terms.successor:
            return bool(present)
        case GovernanceKind.DICTATORIAL:
            recorded = len(present) >= _majority(spec.quorum, len(spec.electors), faults)
            return recorded and bool({terms.leader, terms.successor} & present)
        case GovernanceKind.DEMOCRATIC | GovernanceKind.VETO:
            return len(present) >= _majority(spec.quorum, len(spec.electors), faults)
        case GovernanceKind.BICAMERAL:
            quorums = terms.chamber_quorums or (0, 0)
            agreed = sum(
                len(present & set(chamber)) >= _majority(quorum, len(chamber), faults)
                for chamber, quorum in zip(terms.chambers, quorums, strict=True)
            )
            return agreed + (terms.tie_breaker in present) >= 2
        case GovernanceKind.EMPIRICAL:
            weights = dict(zip(spec.electors, terms.weights or (1,) * len(spec.electors), strict=True))
            heaviest = sum(sorted(weights.values())[len(weights) - faults :])
            total = sum(weights.values())
            need = spec.quorum or min((total + heaviest) // 2 + 1, total)
            return sum(weights[PublicKey(elector)] for elector in present) >= need
        case GovernanceKind.CUSTOM:
            return _met(decode(terms.formula), present)


def _majority(given: int, electors: int, faults: int) -> int:
    return given or min((electors + faults) // 2 + 1, electors)


def _met(formula: list[Any], present: set[bytes]) -> bool:
    need, *parts = formula
    return bool(
        sum(weight for weight, part in parts if (part in present if isinstance(part, bytes) else _met(part, present)))
        >= need
    )


def first_granter(spec: PoolSpec, task: TaskId, submitter: PublicKey | None, epoch: int) -> PublicKey | None:
    """Who alone may grant round 0 of an epoch, or None where a quorum does."""
    if not spec.policy.fast_path or submitter is None:
        return None
    if submitter in spec.electors:
        return submitter
    return min(spec.electors, key=lambda elector: tagged_hash("granter", task, epoch.to_bytes(8, "big"), elector))
