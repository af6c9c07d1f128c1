"""The decided state of a pool as bytes, to compare replicas by.

Knows: what is decided. Must not know: how.
Source: `docs/protocol.md`, fold.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from converge_p2p.core.codec import encode

if TYPE_CHECKING:
    from converge_p2p.core.view.fold import View
    from converge_p2p.core.view.tasks import TaskRegister


def state_bytes(view: View) -> bytes:
    """Return canonical bytes of the decided state: equal on all replicas that hold the same operations."""
    tasks = []
    for task in sorted(view.registers):
        register = view.registers[task]
        if register.settled is not None:
            tasks.append([task, *_ended(register)])
        elif register.submitted is not None:
            top = register.top
            claim = None if top is None else register.certified_id(top)
            released = register.holder is None
            round_now = None if top is None else list(top)
            tasks.append([task, 0, register.submitted.operation, round_now, claim, released, register.failures()])
    frozen = [[author, seq] for author, seq in sorted(view.members.frozen().items())]
    expelled = [[author, length] for author, length in sorted(view.members.expelled().items())]
    epoch = [view.epochs.number, view.epochs.current.hash] if len(view.epochs) else None
    coordination = view.coordination.state()
    return encode([view.pool, epoch, view.members.all(), frozen, expelled, view.motions.state(), tasks, coordination])


def _ended(register: TaskRegister) -> list[object]:
    """How a settled task stands in the state: with its end, or with what waits for its vetoers."""
    if register.veto is None:
        return [1, register.settled]
    final = register.final
    return [2, register.settled, register.veto.settled] if final is None else [1, final.hash]
