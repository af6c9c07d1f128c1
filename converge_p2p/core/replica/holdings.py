"""Whether the local log holds what electors say they hold of the authors that the next epoch removes.

Knows: the log, and which promises were looked at in vain. Must not know: how votes are counted.
Source: `docs/protocol.md`, epochs. A removed author is cut at the longest chain that a promise names. One lie there
would leave it as much of its voice as the liar likes, so nobody takes a promise's word for what is not held here.
"""

from __future__ import annotations

from collections.abc import Collection

from converge_p2p.core import limits
from converge_p2p.core.oplog.bodies import Token
from converge_p2p.core.oplog.cuts import Cut
from converge_p2p.core.oplog.log import OperationLog
from converge_p2p.core.types import OperationId
from converge_p2p.core.view.changes import EpochRegister
from converge_p2p.core.view.register import Grant, Register

LACKING_MAX = limits.ELECTORS_MAX * limits.MOTION_EXPELLED_MAX
"""What is waited for: so much is said in one round at most."""


class Holdings:
    """What promises say about other authors, compared with the local log."""

    def __init__(self, log: OperationLog) -> None:
        """Compare with this log."""
        self._log = log
        self._lacking: dict[Cut, None] = {}
        self._change: EpochRegister | None = None
        """The register whose promises these are."""

    def covers(self, register: Register, promises: Collection[Grant]) -> bool:
        """Whether all that these promises say is held of others is held here. Not yet is not never."""
        if not isinstance(register, EpochRegister) or not register.counting(register.now).protocol.check_cuts:
            return True
        if register is not self._change:
            self._change, self._lacking = register, {}
        lacking = [cut for grant in promises for cut in grant.held if not self._log.vouches(cut)]
        self._lacking.update(dict.fromkeys(lacking))
        while len(self._lacking) > LACKING_MAX:
            del self._lacking[next(iter(self._lacking))]
        return not lacking

    def supports(self, register: Register, token: Token, promises: Collection[OperationId]) -> bool:
        """Whether a proposal may be endorsed as far as cuts go.

        A value that a lock binds was endorsed by a quorum, of whom the honest ones held all that it cuts at.

        Args:
            register: what is proposed to.
            token: the round.
            promises: those that the proposal names.
        """
        if not isinstance(register, EpochRegister):
            return True
        named = [register.promises[vote] for vote in promises if vote in register.promises]
        return register.binding_lock(token, named) is not None or self.covers(register, named)

    def arrived(self) -> bool:
        """Whether something that was lacking is held by now: then the next epoch is to be looked at again."""
        if not self._lacking or self._change is None:
            return False
        over = self._change.settled is not None
        if over or any(self._log.vouches(cut) for cut in self._lacking):
            self._lacking.clear()
            return not over
        return False
