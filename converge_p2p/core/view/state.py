"""The decided state of a pool as canonical bytes, for comparing replicas.

Knows: which parts of a fold are decided. Must not know: how they came about.
Source: `docs/protocol.md`, state.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from converge_p2p.core.codec import encode

if TYPE_CHECKING:
    from converge_p2p.core.view.fold import View


def state_bytes(view: View) -> bytes:
    """Canonical bytes of the decided state: equal on all replicas that hold the same operations."""
    decided = [(task, view.registers[task].decided()) for task in sorted(view.registers)]
    tasks = [[task, *said] for task, said in decided if said]
    frozen = [[author, seq] for author, seq in sorted(view.members.frozen().items())]
    expelled = [[author, length] for author, length in sorted(view.members.expelled().items())]
    epoch = [view.epochs.number, view.epochs.current.hash] if len(view.epochs) else None
    coordination = view.coordination.state()
    return encode([view.pool, epoch, view.members.all(), frozen, expelled, view.motions.state(), tasks, coordination])
