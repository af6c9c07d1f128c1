"""The own chain: every operation that this identity signs in a pool, one after the other.

Knows: the end of the chain, operations that are not durable yet included. Must not know: what is worth signing.
Source: `docs/protocol.md`, operations. Two operations with one number would be a fork, so there is one pen.
"""

from __future__ import annotations

from converge_p2p.core.identity import Identity
from converge_p2p.core.oplog.bodies import Body
from converge_p2p.core.oplog.operation import Operation, merge_hlc, next_hlc, sign_operation
from converge_p2p.core.types import OperationId, PoolId


class Pen:
    """Signs the operations of one identity in one pool."""

    def __init__(self, identity: Identity, pool: PoolId, first: Body | None = None) -> None:
        """Begin an empty chain; `note` continues one that was read back.

        Args:
            identity: who signs.
            pool: in which pool.
            first: what the chain is to begin with, if it has not begun.
        """
        self._identity = identity
        self._pool = pool
        self._first = first
        self._seq = 0
        self._head: OperationId | None = None
        self._hlc = 0

    @property
    def length(self) -> int:
        """How many operations were signed, those that are not durable yet included."""
        return self._seq

    def take_first(self, *, ready: bool) -> Body | None:
        """Return what the chain is to begin with, once; None if it has begun, or the pool is not known yet."""
        if not ready or self._first is None:
            return None
        first, self._first = self._first, None
        return None if self._seq else first

    def sign(self, body: Body, epoch: int, wall_ms: int) -> Operation:
        """Sign the next operation.

        Raises:
            LimitExceeded: it would be too large; nothing was changed.
        """
        hlc = next_hlc(wall_ms, self._hlc)
        operation = sign_operation(
            self._identity, self._pool, body, seq=self._seq, prev=self._head, epoch=epoch, hlc=hlc
        )
        self._seq, self._head, self._hlc = operation.seq + 1, operation.id, hlc
        return operation

    def note(self, operation: Operation) -> bool:
        """An own operation that did not come from here: read back, or learned from others after a loss.

        Returns:
            Whether it was new.
        """
        if operation.seq < self._seq:
            return False
        self._seq, self._head = operation.seq + 1, operation.id
        self._hlc = max(self._hlc, operation.hlc)
        return True

    def resume(self, length: int, head: OperationId, hlc: int) -> None:
        """Go on after the first `length` operations, which a checkpoint covers."""
        if length > self._seq:
            self._seq, self._head = length, head
        self._hlc = max(self._hlc, hlc)

    def saw(self, hlc: int, wall_ms: int) -> None:
        """An operation of somebody was seen: the own clock is not behind it."""
        self._hlc = merge_hlc(wall_ms, self._hlc, hlc)
