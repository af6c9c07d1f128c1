"""Keys that take each other's place in a pool: hand over, commit to a recovery key, take a place.

Knows: the commands for it. Must not know: key files.
Source: `docs/protocol.md`, succession.
"""

from __future__ import annotations

from converge_p2p.core.identity import Identity
from converge_p2p.core.oplog.succession import RecoverBody, RecoveryBody, SucceedBody, commitment_of, rotation
from converge_p2p.core.replica import events as ev
from converge_p2p.core.types import PublicKey
from converge_p2p.node.driver import PoolDriver


class PoolKeys:
    """The keys of one pool, and what becomes of this node's."""

    def __init__(self, driver: PoolDriver) -> None:
        """Made by the pool's handle."""
        self._driver = driver

    def lineage(self) -> dict[PublicKey, PublicKey]:
        """Every key that was succeeded, with the key that took its place."""
        return self._driver.replica.view.successions.lineage()

    async def commit_recovery(self, key: PublicKey) -> None:
        """Commit to a recovery key, whose holder can replace this node's key. Once, for ever; keep it elsewhere."""
        await self._driver.carry_out(ev.Succeed(RecoveryBody(commitment_of(key))))

    async def hand_over(self, successor: Identity) -> SucceedBody:
        """Hand this node's place over to a new key. Nothing but votes that this node signs afterwards counts.

        Returns:
            What the new key's node begins with: see `take_place`.
        """
        rotate, succeed = rotation(self._driver.pool, self._driver.replica.identity, successor)
        await self._driver.carry_out(ev.Succeed(rotate))
        return succeed

    async def take_place(self, word: SucceedBody | RecoverBody) -> None:
        """Take the place of another key, as the first thing this node's key signs here.

        Args:
            word: what `hand_over` gave, or what `core.oplog.succession.recovery` makes of the recovery key.
        """
        await self._driver.carry_out(ev.Succeed(word))
