"""Who may become a member.

Knows: the admission policies. Must not know: the membership itself (see `view.members`).
Source: the concepts page; an empty whitelist admits nobody.
"""

from __future__ import annotations

from converge_p2p.core.model.pool import AdmissionKind, PoolSpec
from converge_p2p.core.types import PublicKey


def admits(spec: PoolSpec, author: PublicKey) -> bool:
    """Whether the pool's founding terms let the author in. The same everywhere, at any time."""
    match spec.admission:
        case AdmissionKind.OPEN:
            return True
        case AdmissionKind.WHITELIST:
            return author in spec.whitelist
        case AdmissionKind.TOKEN | AdmissionKind.VOUCHED | AdmissionKind.CUSTOM:
            # these ask for a proof in the join itself, and the key alone is none
            return False
