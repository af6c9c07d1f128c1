"""What every command to coordinate is checked for.

Knows: ends by epoch and by local time. Must not know: any command.
Source: `docs/protocol.md`, coordination.
"""

from __future__ import annotations

from converge_p2p.core.errors import Conflict


def check_epoch(what: str, until_epoch: int, epoch: int) -> None:
    """Check that something has not ended by the pool's epoch.

    Raises:
        Conflict: it has.
    """
    if epoch > until_epoch:
        raise Conflict(f"{what} ends with epoch {until_epoch}, and it is {epoch} now")


def check_time(what: str, expires_ms: int, wall_ms: int) -> None:
    """Check that something has not ended by the local clock; 0 is no end, and no clock.

    Raises:
        Conflict: it has.
    """
    if expires_ms and wall_ms >= expires_ms:
        raise Conflict(f"the time of {what.removeprefix('the ')} is over")


def short(name: bytes) -> str:
    """Return the beginning of an id, as messages show it."""
    return name.hex()[:12]
