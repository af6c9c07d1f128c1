"""What the register of the next epoch asks of the fold: which changes were carried, and what binds justly.

Knows: the motions of an epoch, and subjects on which somebody may be bound. Must not know: how the epoch is voted on.
Source: `docs/protocol.md`, epochs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from converge_p2p.core.types import OperationId, PublicKey
from converge_p2p.core.view.changes import Change, EpochRegister
from converge_p2p.core.view.epochs import Epoch, epoch_subject
from converge_p2p.core.view.register import Register

if TYPE_CHECKING:
    from converge_p2p.core.view.fold import View


def next_register(view: View, epoch: Epoch) -> EpochRegister:
    """The register of the epoch after one that comes into force."""
    number = epoch.number + 1
    return EpochRegister(
        epoch_subject(view.pool, number),
        number,
        view.epochs,
        lambda: carried(view, epoch),
        lambda promised: locks_justified(view, promised),
    )


def carried(view: View, epoch: Epoch) -> Mapping[OperationId, Change]:
    """The changes that were carried in an epoch and can be made."""
    changes = {}
    for motion in view.motions.carried_changes(epoch.number):
        spec = motion.terms or epoch.spec
        same_pool = spec.fixed == epoch.spec.fixed
        gone = {*motion.expelled, *view.members.expelled()}
        if same_pool and not gone & set(spec.electors):
            changes[motion.id] = Change(motion.expelled, spec)
    return changes


def locks_justified(view: View, promised: Mapping[PublicKey, int]) -> bool:
    """Whether all that these electors accepted in this epoch, before those seqs, was endorsed by a quorum."""
    number = view.epochs.number
    for name in view.open:
        register = view.subject(name)
        if register is not None and not register.inherits_justly(number, promised):
            return False
    # of a subject that is settled here some electors may not know that: there a stray accept would bind them
    return all(
        register.inherits_justly(number, promised)
        for register in map(view.subject, view.strays)
        if register is not None
    )


def note_strays(view: View, register: Register) -> None:
    """Remember a settled subject if another value was accepted as well."""
    if any(value != register.settled for votes in register.rounds.values() for value in votes.accepted):
        view.strays[register.id] = None
