"""Whether a join has an effect, by the terms of the epoch that it names.

Knows: epochs and members. Must not know: chains, or anything that arrives later.
Source: `docs/protocol.md`, admission.
"""

from __future__ import annotations

from converge_p2p.core.governance.admission import AdmissionContext, admits
from converge_p2p.core.types import PoolId, PublicKey
from converge_p2p.core.view.epochs import Epochs
from converge_p2p.core.view.members import Members


def may_join(
    pool: PoolId,
    creator: PublicKey | None,
    epochs: Epochs,
    members: Members,
    *,
    author: PublicKey,
    number: int,
    proof: bytes,
) -> bool:
    """Whether a join that names an epoch has an effect.

    Args:
        pool: which.
        creator: who founded it.
        epochs: those in force so far.
        members: who is one.
        author: who joins. Who is a member at that point of its chain needs no proof.
        number: the epoch that is named.
        proof: what the join carries.
    """
    epoch = epochs.find(number)
    if epoch is None:
        return False
    if author in epoch.electors or members.has_at(author, number):
        return True
    # a creator that was removed invites nobody any more
    removed = any(cut.author == creator for k in range(number + 1) for cut in epochs[k].cuts)
    inviting = None if removed else creator
    return admits(epoch.spec, author, AdmissionContext(pool, number, epoch.electors, inviting, author, proof))
