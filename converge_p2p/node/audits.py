"""The audit of a pool, made in a thread: reading a whole log may take seconds, and the node goes on meanwhile.

Knows: how to give a thread what is held, as values. Must not know: what is wrong with it (see `core.view.audit`).
Source: `docs/protocol.md`, audit.
"""

from __future__ import annotations

import copy

import trio

from converge_p2p.core import limits
from converge_p2p.core.replica.machine import Replica
from converge_p2p.core.view.audit import Decided, Finding, audit_chains, held_chains


class PoolAudit:
    """Audits the log of one pool; what was found is kept until the log changes."""

    def __init__(self, replica: Replica) -> None:
        """Nothing is read yet."""
        self._replica = replica
        self._made: tuple[bytes, list[Finding]] | None = None
        self._turn = trio.Lock()

    async def findings(self) -> list[Finding]:
        """Return who broke a rule, by what is held now. One audit is made at a time.

        Cancellation: the audit is given up; its thread ends by itself.
        """
        async with self._turn:
            digest = self._replica.log.digest()
            if self._made is None or self._made[0] != digest:
                view = self._replica.view
                # epochs are installed while the thread reads; it goes by those there are now
                epochs = copy.copy(view.epochs)
                epochs.frozen = set(view.epochs.frozen)
                chains = held_chains(self._replica.log)
                decided = Decided(view.compacted, view.vetoes.closed)
                found = await trio.to_thread.run_sync(
                    audit_chains, chains, view.pool, epochs, decided, abandon_on_cancel=True
                )
                self._made = (digest, found)
            return list(self._made[1])

    async def count(self) -> int | None:
        """Return how many electors are named; None if the log is too large to be read for that."""
        if len(self._replica.log) > limits.AUDIT_COUNTED_OPERATIONS_MAX:
            return None
        return len({finding.elector for finding in await self.findings()})
