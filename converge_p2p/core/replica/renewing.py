"""Renewals of one replica: what the local worker says, and what others say.

Knows: who holds which round. Must not know: timers (see `watch`), or how a statement travels.
Source: `docs/protocol.md`, renewals. Whatever is wrong with a statement, the worst it does is to be verified once.
"""

from __future__ import annotations

from collections.abc import Callable

from converge_p2p.core import limits
from converge_p2p.core.errors import Conflict, LimitExceeded, LocalError, RemoteViolation
from converge_p2p.core.identity import Identity
from converge_p2p.core.oplog.bodies import Purpose, Token
from converge_p2p.core.replica import events as ev
from converge_p2p.core.replica.renewal import THOUSANDTHS, Renewal, check_signature, decode_renewal, sign_renewal
from converge_p2p.core.replica.watch import TaskWatch
from converge_p2p.core.types import PoolId, PublicKey, TaskId
from converge_p2p.core.view.fold import View


class Renewals:
    """Makes and takes renewals."""

    def __init__(
        self, identity: Identity, pool: PoolId, view: View, watch: TaskWatch, put: Callable[[ev.Effect], None]
    ) -> None:
        """Make it.

        Args:
            identity: who signs here.
            pool: id of the pool.
            view: the fold.
            watch: is told of what was verified.
            put: called with each effect.
        """
        self._identity = identity
        self._pool = pool
        self._view = view
        self._watch = watch
        self._put = put

    def say(self, command: ev.Renew, wall_ms: int) -> None:
        """Tell everybody that the local identity is at work.

        Raises:
            LocalError: it does not hold the task, or a value out of its range. Nothing was said.
            LimitExceeded: the note is too long.
        """
        key = self._identity.public_key
        token = self._held_by(command.task, key)
        if token is None:
            raise Conflict(f"this node does not hold task {command.task.hex()[:12]}")
        if not 0 <= command.fraction <= THOUSANDTHS:
            raise LocalError(f"the fraction is {command.fraction}; expected thousandths, 0 to {THOUSANDTHS}")
        if len(command.note.encode()) > limits.RENEWAL_NOTE_BYTES_MAX:
            raise LimitExceeded(
                "RENEWAL_NOTE_BYTES_MAX", f"a note has at most {limits.RENEWAL_NOTE_BYTES_MAX} bytes of UTF-8"
            )
        last = self._watch.said(command.task)
        # after a restart the time goes on where the count before it ended; a late clock costs patience, no more
        counter = max(wall_ms, 0 if last is None or last.token != token else last.counter + 1)
        renewal = Renewal(command.task, key, token, command.fraction, command.note, counter)
        signed = sign_renewal(self._identity, self._pool, renewal)
        self._watch.renewed(self._view.registers[command.task], renewal, signed)
        self._put(ev.Broadcast(signed))

    def hear(self, event: ev.RenewalReceived) -> None:
        """Take what somebody said. What is wrong with it is told by `Rejected`."""
        try:
            task = self._take(event.payload)
        except RemoteViolation as violation:
            self._put(ev.Emit(ev.Rejected(event.peer, violation.reason)))
            return
        if event.gossiped and self._watch.pass_on(task):
            self._put(ev.PassOn())

    def _take(self, signed: bytes) -> TaskId:
        """Take a statement of a holder that is news, or was a moment ago, and return the task.

        Raises:
            RemoteViolation: refused.
        """
        renewal = decode_renewal(signed, self._pool)
        # what costs little comes first, so that only what would count is verified
        if self._held_by(renewal.task, renewal.author) != renewal.token:
            raise RemoteViolation("renewal_unused", "its author does not hold this round, as far as is known here")
        if not self._watch.heard(renewal.task, signed):
            if not self._watch.takes(renewal):
                raise RemoteViolation("renewal_unused", "nothing new, or too soon after the last one")
            check_signature(signed, renewal)
            self._watch.renewed(self._view.registers[renewal.task], renewal, signed)
        return renewal.task

    def _held_by(self, task: TaskId, author: PublicKey) -> Token | None:
        """The round of a task that an author holds to work on it, if it does."""
        register = self._view.registers.get(task)
        if register is None or register.submitted is None or register.settled is not None:
            return None
        holder = register.holder
        held = holder is not None and holder.author == author and holder.purpose is Purpose.WORK
        return register.top if held else None
