"""What somebody has to stand for if nobody else does, so that no subject stays open for ever.

Knows: the kinds of registers. Must not know: timers, or who is entitled.
Source: `docs/protocol.md`, timers (close).
"""

from __future__ import annotations

from converge_p2p.core.oplog.bodies import ClaimBody, Purpose
from converge_p2p.core.view.changes import EpochRegister
from converge_p2p.core.view.register import Register
from converge_p2p.core.view.vetoes import VetoRegister


def duty_of(register: Register) -> Purpose:
    """What somebody has to stand for if nobody else does."""
    if isinstance(register, VetoRegister):
        return Purpose.DENY if register.denials else Purpose.PASS
    return Purpose.EPOCH if isinstance(register, EpochRegister) else Purpose.FAIL


def claim_of_duty(register: Register) -> ClaimBody:
    """The claim with which somebody stands for it."""
    purpose = duty_of(register)
    if isinstance(register, VetoRegister):
        return ClaimBody(register.id, purpose, 0, "", min(register.denials) if register.denials else b"")
    if isinstance(register, EpochRegister):
        return ClaimBody(register.id, purpose, 0, "", min(register.motions))
    return ClaimBody(register.id, purpose, 0, "every attempt failed or ran out of time")
