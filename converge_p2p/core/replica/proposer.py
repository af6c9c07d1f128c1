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
from converge_p2p.core.replica.holdings import Holdings
from converge_p2p.core.replica.private import PrivateContents
from converge_p2p.core.types import OperationId, PublicKey, TaskId
from converge_p2p.core.view.changes import EpochRegister
from converge_p2p.core.view.register import NOBODY, Grant, Register, StandingClaim
from converge_p2p.core.view.tasks import TaskRegister
from converge_p2p.core.view.vetoes import VetoRegister


class Proposer:
    """Claims and reports of the local identity in one pool."""

    def __init__(
        self, key: PublicKey, emit: Callable[[Notice], None], contents: PrivateContents, holdings: Holdings
    ) -> None:
        self._key = key
        self._holdings = holdings
        self._contents = contents
        self._emit = emit
        self.finished: dict[TaskId, TaskValue] = {}
        """Work that is done and not settled, in clear. Kept when a claim is lost, for it may be won again."""
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

    def holds(self, register: Register) -> Token | None:
        """The round this identity holds, or None."""
        return register.top if self._held_claim(register) is not None else None

    def _held_claim(self, register: Register) -> StandingClaim | None:
        """The own claim that may propose in the top round."""
        top = register.top
        if top is None or register.settled is not None:
            return None
        if register.certified_id(top) != NOBODY:
            holder = register.holder
            return holder if holder is not None and holder.author == self._key else None
        if not isinstance(register, TaskRegister):
            # only liars open a round for nobody where it is for somebody
            return None
        own = [claim for claim in register.claims.values() if claim.author == self._key and register.stands(claim)]
        wanted = [claim for claim in own if claim.purpose is not Purpose.WORK]
        return min(wanted, key=_by_purpose, default=None) or next(
            (claim for claim in register.workers() if claim.author == self._key), None
        )

    def consider(self, register: Register) -> ReportBody | None:
        """Return the report that is due now, and tell the application what became of its claim."""
        task = register.id
        if register.settled is not None:
            self._settled(register)
            return None
        token, claim = register.top, self._held_claim(register)
        if token is not None and isinstance(register, TaskRegister) and register.denied(token):
            self._denied(register, token)
        if token is None or claim is None:
            # an open round alone takes nothing away: only a certificate for somebody else does
            if task in self._won and register.holder is not None:
                self._lost(task, "somebody else holds the claim now")
            return None
        if token in self._reported.get(task, ()):
            return None
        grants = self._quorum(register, token)
        if not grants:
            return None
        value = self._value(register, token, claim, grants)
        if value is None:
            return None
        return ReportBody(task, token.round, value, tuple(sorted(grants)))

    def _quorum(self, register: Register, token: Token) -> dict[OperationId, Grant]:
        """Just enough promises for the round's claim, each elector's once.

        A lock that nobody can justify would make the proposal void, so promises with one are left out; a true one is
        justified as soon as the endorsements behind it are here. So are those that say they hold of a removed author
        what is not held here: nobody who does not hold it endorses that.
        """
        votes, chosen = register.rounds[token], dict[OperationId, Grant]()
        certified, electors = register.certified_id(token), set[PublicKey]()
        protocol = register.counting(token.epoch).protocol
        for vote in sorted(votes.grants):
            grant = votes.grants[vote]
            if grant.claim != certified or grant.elector in electors or not register.usable(token, grant, protocol):
                continue
            if not self._holdings.covers(register, (grant,)):
                continue
            electors.add(grant.elector)
            chosen[vote] = grant
            if register.confirms(token, electors, votes):
                return chosen
        return {}

    def _value(
        self, register: Register, token: Token, claim: StandingClaim, grants: dict[OperationId, Grant]
    ) -> TaskValue | None:
        lock = register.binding_lock(token, grants.values())
        if lock is not None and register.counting(token.epoch).protocol.lock_rule:
            return register.values.get(lock.value)
        task, contents = register.id, self._contents
        match claim.purpose:
            case Purpose.CANCEL:
                result = encode_value({"reason": contents.reason_of(claim)})
                return contents.seal_value(task, TaskValue(Outcome.CANCELLED, self._key, result))
            case Purpose.FAIL:
                result = encode_value({"error": contents.reason_of(claim)})
                return contents.seal_value(task, TaskValue(Outcome.FAILED, self._key, result))
            case Purpose.EPOCH:
                assert isinstance(register, EpochRegister)
                key_commit = contents.commitment_for(register.number)
                epoch = None if key_commit is None else register.propose(claim, grants, key_commit)
                return None if epoch is None else TaskValue(Outcome.COMPLETED, self._key, epoch.to_bytes())
            case Purpose.PASS | Purpose.DENY:
                return register.proposal(claim) if isinstance(register, VetoRegister) else None
            case Purpose.WORK:
                done = self.finished.get(task)
                if done is None and self._won.get(task) != token:
                    self._won[task] = token
                    self._emit(ClaimWon(task, token.epoch, token.round))
                return None if done is None else contents.seal_value(task, done)

    def _denied(self, register: TaskRegister, token: Token) -> None:
        """The evaluator denied what came of a round: whoever held it does the work anew if it holds another."""
        claim, done = register.certified_claim(token), self.finished.get(register.id)
        if claim is not None and claim.author == self._key:
            if done is not None and register.verdict(done) is False:
                del self.finished[register.id]
            self._lost(register.id, "the evaluator denied the result", denied=True)

    def _lost(self, task: TaskId, reason: str, *, denied: bool = False) -> None:
        token = self._won.pop(task, None)
        if token is not None:
            self._emit(ClaimLost(task, token.epoch, token.round, reason, denied))

    def ended(self, task: TaskId) -> None:
        """A task was settled below a checkpoint: nothing is to be done about it any more."""
        self._lost(task, "the task was settled")
        self.finished.pop(task, None)
        self._reported.pop(task, None)
        self._standing.pop(task, None)

    def _settled(self, register: Register) -> None:
        task, value = register.id, register.value
        done = self.finished.get(task)
        if value is not None and (done is None or not self._is_own(done, value)):
            self._lost(task, f"the task was settled as {value.outcome.state.value}")
        if value is not None:
            self._won.pop(task, None)
            self.finished.pop(task, None)
            self._reported.pop(task, None)
            self._standing.pop(task, None)

    def _is_own(self, done: TaskValue, settled: TaskValue) -> bool:
        """Whether the finished work is what was settled. Sealed once more it has another hash."""
        if self._contents.on:
            return (done.worker, done.outcome) == (settled.worker, settled.outcome)
        return done.hash == settled.hash


def _by_purpose(claim: StandingClaim) -> tuple[int, int]:
    return int(claim.purpose), claim.seq
