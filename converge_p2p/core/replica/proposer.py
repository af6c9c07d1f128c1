"""What the local identity does with a claim it holds: work, then report; or repeat what is locked.

Knows: own claims, own reports, finished work. Must not know: timers or votes of others beyond the register.
Source: `docs/protocol.md`, task register (propose). One report for each round, ever: the memory is rebuilt from the
own operations, which are durable before they are sent.
"""

from __future__ import annotations

from collections.abc import Callable

from converge_p2p.core.codec import encode_value
from converge_p2p.core.model.task import Outcome, TaskValue
from converge_p2p.core.oplog.bodies import Body, ClaimBody, Purpose, ReleaseBody, ReportBody, Token
from converge_p2p.core.replica.events import ClaimLost, ClaimWon, Notice
from converge_p2p.core.types import OperationId, PublicKey, TaskId
from converge_p2p.core.view.register import Grant, StandingClaim, TaskRegister, highest_lock


class Proposer:
    """Claims and reports of the local identity in one pool."""

    def __init__(self, key: PublicKey, emit: Callable[[Notice], None]) -> None:
        self._key = key
        self._emit = emit
        self.finished: dict[TaskId, TaskValue] = {}
        """Work that is done and not settled. Kept when a claim is lost, for it may be won again."""
        self._reported: dict[TaskId, set[Token]] = {}
        self._standing: dict[TaskId, dict[Purpose, None]] = {}
        self._won: dict[TaskId, Token] = {}

    def note_own(self, epoch: int, body: Body) -> None:
        """Remember an own operation: when signed, and when read back after a restart."""
        match body:
            case ReportBody(task):
                self._reported.setdefault(task, set()).add(Token(epoch, body.round))
            case ClaimBody(task, purpose):
                self._standing.setdefault(task, {})[purpose] = None
            case ReleaseBody(task):
                self._standing.pop(task, None)

    def stands(self, task: TaskId, purpose: Purpose) -> bool:
        """Whether a claim of this identity stands."""
        return purpose in self._standing.get(task, ())

    def holds(self, register: TaskRegister) -> Token | None:
        """The round this identity holds, or None."""
        holder, top = register.holder, register.top
        return top if holder is not None and holder.author == self._key else None

    def consider(self, register: TaskRegister) -> ReportBody | None:
        """Return the report that is due now, and tell the application what became of its claim."""
        task = register.id
        if register.settled is not None:
            self._settled(register)
            return None
        token, holder = self.holds(register), register.holder
        if token is None or holder is None:
            # an open round alone takes nothing away: only a certificate for somebody else does
            if holder is not None:
                self._lost(task, "somebody else holds the claim now")
            return None
        if token in self._reported.get(task, ()):
            return None
        grants = self._quorum(register, token, holder)
        if not grants:
            return None
        value = self._value(register, token, holder, grants)
        if value is None:
            return None
        return ReportBody(task, token.round, value, tuple(sorted(grants)))

    def _quorum(self, register: TaskRegister, token: Token, holder: StandingClaim) -> dict[OperationId, Grant]:
        """Just enough promises for the claim, each elector's once."""
        votes, chosen = register.rounds[token], dict[OperationId, Grant]()
        electors: set[PublicKey] = set()
        for vote in sorted(votes.grants):
            grant = votes.grants[vote]
            if grant.claim == holder.operation and grant.elector not in electors:
                electors.add(grant.elector)
                chosen[vote] = grant
                if register.counting.enough(register.counting.rules.grant, electors, votes.granted):
                    return chosen
        return {}

    def _value(
        self, register: TaskRegister, token: Token, holder: StandingClaim, grants: dict[OperationId, Grant]
    ) -> TaskValue | None:
        lock = highest_lock(list(grants.values()))
        if lock is not None and register.counting.protocol.lock_rule:
            return register.values.get(lock.value) if register.justified(lock) else None
        match holder.purpose:
            case Purpose.CANCEL:
                return TaskValue(Outcome.CANCELLED, self._key, encode_value({"reason": holder.reason}))
            case Purpose.FAIL:
                return TaskValue(Outcome.FAILED, self._key, encode_value({"error": holder.reason}))
            case Purpose.WORK:
                done = self.finished.get(register.id)
                if done is None and self._won.get(register.id) != token:
                    self._won[register.id] = token
                    self._emit(ClaimWon(register.id, token.epoch, token.round))
                return done

    def _lost(self, task: TaskId, reason: str) -> None:
        token = self._won.pop(task, None)
        if token is not None:
            self._emit(ClaimLost(task, token.epoch, token.round, reason))

    def _settled(self, register: TaskRegister) -> None:
        task, value = register.id, register.value
        done = self.finished.get(task)
        if value is not None and (done is None or done.hash != register.settled):
            self._lost(task, f"the task was settled as {value.outcome.state.value}")
        if value is not None:
            self._won.pop(task, None)
            self.finished.pop(task, None)
            self._reported.pop(task, None)
            self._standing.pop(task, None)
