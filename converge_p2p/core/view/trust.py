"""What the log says about authors: from votes, reports and disputes to events with points.

Knows: which events follow from what is known of a task. Must not know: how a score is made of them (see
`governance.trust`), or time.
Source: `docs/protocol.md`, trust.

A register forgets the way to a result once the task is settled, and what it forgot depends on what came first. So what
trust rests on is kept here as sets of its own. The events of a task are computed from these, all anew, whenever one of
them changed; forks take back what they rest on in the same way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from converge_p2p.core import limits
from converge_p2p.core.codec import encode
from converge_p2p.core.governance import trust
from converge_p2p.core.governance.trust import TrustEvent, TrustLedger
from converge_p2p.core.model.task import Outcome
from converge_p2p.core.oplog.bodies import Purpose, ReportBody, Token
from converge_p2p.core.oplog.motions import MotionKind
from converge_p2p.core.oplog.operation import Operation
from converge_p2p.core.types import OperationId, PublicKey, TaskId, ValueHash
from converge_p2p.core.view.motions import Motion, Motions
from converge_p2p.core.view.register import Grant, RoundVotes, StandingClaim
from converge_p2p.core.view.tasks import TaskRegister


@dataclass(slots=True)
class _Evidence:
    """What is known of the attempts at one task, settled or not.

    Attributes:
        granted: round → claim → electors that granted it.
        expired: round → electors that said that its holder ran out of time.
        reported: (round, author) → report operation → value.
    """

    granted: dict[Token, dict[OperationId, set[PublicKey]]] = field(default_factory=dict)
    expired: dict[Token, set[PublicKey]] = field(default_factory=dict)
    reported: dict[tuple[Token, PublicKey], dict[OperationId, ValueHash]] = field(default_factory=dict)


class TrustFold:
    """The trust ledger of a pool, kept up to date with its fold."""

    def __init__(self, registers: Mapping[TaskId, TaskRegister], motions: Motions) -> None:
        """Start with nothing known.

        Args:
            registers: the task registers of the fold.
            motions: its motions.
        """
        self._registers = registers
        self._motions = motions
        self._ledger = TrustLedger()
        self._tasks: dict[TaskId, _Evidence] = {}
        self._touched: dict[TaskId, None] = {}

    # ------------------------------------------------------------ adding

    def add_grant(self, task: TaskId, token: Token, grant: Grant) -> None:
        """Note the promise of an elector of the epoch it names, of a frozen one as well."""
        evidence = self._evidence(task)
        claims = evidence.granted.get(token)
        if claims is None:
            claims = evidence.granted[token] = {}
        voters = claims.get(grant.claim)
        if voters is None:
            voters = claims[grant.claim] = set()
        voters.add(grant.elector)
        if grant.expired is not None:
            evidence.expired.setdefault(Token(token.epoch, grant.expired), set()).add(grant.elector)
        self.touch(task)

    def add_report(self, operation: Operation, report: ReportBody) -> None:
        """Note a report of a member that stands in its chain."""
        key = (Token(operation.epoch, report.round), operation.author)
        evidence = self._evidence(report.task)
        evidence.reported.setdefault(key, {})[operation.id] = report.value.hash
        self.touch(report.task)

    def void_report(self, operation: Operation, report: ReportBody) -> None:
        """Take a report back, because its author forked or was cut off."""
        evidence = self._tasks.get(report.task)
        if evidence is not None:
            evidence.reported.get((Token(operation.epoch, report.round), operation.author), {}).pop(operation.id, None)
        self.touch(report.task)

    def touch(self, *tasks: TaskId) -> None:
        """Say that something about tasks changed: a vote, a submit, a claim, a dispute, or one was taken back."""
        # first what was touched before: the change that is told of now may be only half done
        if len(self._touched) >= limits.TRUST_PENDING_TASKS_MAX:
            self._catch_up()
        for task in tasks:
            self._touched[task] = None

    def _evidence(self, task: TaskId) -> _Evidence:
        evidence = self._tasks.get(task)
        if evidence is None:
            evidence = self._tasks[task] = _Evidence()
        return evidence

    # ------------------------------------------------------------ reading

    @property
    def ledger(self) -> TrustLedger:
        """The ledger, up to date."""
        self._catch_up()
        return self._ledger

    def score(self, author: PublicKey, context: bytes = trust.OVERALL, epoch: int = 0) -> int:
        """Return the trust in an author, 0 to 1000 (see `TrustLedger.score`)."""
        return self.ledger.score(author, context, epoch)

    def _catch_up(self) -> None:
        for task in self._touched:
            register, events = self._registers.get(task), [*self._lost_disputes(task)]
            if register is not None:
                events += self._events(register, self._tasks.get(task) or _Evidence())
            self._ledger.replace(task, events)
        self._touched.clear()

    # ------------------------------------------------------------ what follows from what

    def _events(self, register: TaskRegister, evidence: _Evidence) -> Iterator[TrustEvent]:
        submitted = register.submitted
        contexts = () if submitted is None else trust.contexts_of(submitted.spec)

        def event(what: str, author: PublicKey, token: Token, points: int) -> TrustEvent:
            name = encode([what, register.id, author, *token])
            return TrustEvent(name, author, contexts, token.epoch, points)

        settled = self._settled_in(register)
        held = dict(self._held(register, evidence))
        for token, claim in held.items():
            if claim.purpose is not Purpose.WORK or token in settled:
                continue
            release = register.releases.get((claim.author, token))
            if release is not None:
                if any(release.values()):
                    yield event("failed", claim.author, token, trust.FAILED)
            elif len(evidence.expired.get(token, ())) > register.counting(token.epoch).rules.faults:
                yield event("expired", claim.author, token, trust.EXPIRED)
        for (token, author), values in evidence.reported.items():
            if len(set(values.values())) > 1:
                yield event("twice", author, token, trust.REPORTED_TWICE)
        value = register.value
        if value is not None and settled:
            first = min(settled)
            worked = any(claim.author == value.worker and claim.purpose is Purpose.WORK for claim in held.values())
            if value.outcome is Outcome.COMPLETED:
                yield event("completed", value.worker, first, trust.COMPLETED)
            elif value.outcome is Outcome.FAILED and worked:
                # a submitter or elector that closes an exhausted task did not fail at it
                yield event("gave-up", value.worker, first, trust.FAILED)
            carried = [motion.epoch for motion in self._disputes(register.id) if self._motions.carried(motion.id)]
            if carried and value.outcome is Outcome.COMPLETED:
                name = encode(["rejected", register.id, value.worker])
                yield TrustEvent(name, value.worker, contexts, min(carried), trust.RESULT_REJECTED)

    def _lost_disputes(self, task: TaskId) -> Iterator[TrustEvent]:
        """Whether there is such a task does not matter: who may know a voided claim of it, and who not, must agree."""
        for motion in self._disputes(task):
            if self._motions.rejected(motion.id):
                name = encode(["lost", task, motion.id])
                yield TrustEvent(name, motion.author, (), motion.epoch, trust.DISPUTE_LOST)

    def _disputes(self, task: TaskId) -> list[Motion]:
        return [motion for motion in self._motions.disputes(task) if motion.kind is MotionKind.REJECT_RESULT]

    def _held(self, register: TaskRegister, evidence: _Evidence) -> Iterator[tuple[Token, StandingClaim]]:
        """Rounds whose holder is known. Two certificates in one round need lying electors; the lesser id counts."""
        nothing = RoundVotes()
        for token, claims in evidence.granted.items():
            enough = [claim for claim, voters in claims.items() if register.confirms(token, voters, nothing)]
            holder = register.claims.get(min(enough)) if enough else None
            if holder is not None:
                yield token, holder

    def _settled_in(self, register: TaskRegister) -> set[Token]:
        """The rounds in which enough accepted the settled value: all that are known, whichever was first here."""
        found: set[Token] = set()
        if register.settled is not None:
            for token, votes in register.rounds.items():
                accept = register.counting(token.epoch).rules.accept
                if accept.satisfied_by(votes.accepted.get(register.settled, ())):
                    found.add(token)
        return found
