"""What the log says about authors: from votes, reports and disputes to events with points.

Knows: which events follow from what is known of a task. Must not know: how a score is made of them (see
`governance.trust`), or time.
Source: `docs/protocol.md`, trust.

A register forgets the way to a result once the task is settled, and what it forgot depends on what came first. So what
trust rests on is kept here as sets of its own. The events of a task are computed from these, all anew, whenever one of
them changed; forks take back what they rest on in the same way. Of tasks below a checkpoint the points are added up,
and what they rest on is in a table; if something late comes for one of them, it is taken out of the sums and computed
anew.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from converge_p2p.core import limits
from converge_p2p.core.codec import encode
from converge_p2p.core.governance import trust
from converge_p2p.core.governance.trust import TrustEvent, TrustLedger, TrustSums
from converge_p2p.core.model.task import Outcome
from converge_p2p.core.oplog.bodies import Purpose, ReportBody, Token
from converge_p2p.core.oplog.motions import MotionKind
from converge_p2p.core.oplog.operation import Operation
from converge_p2p.core.types import PublicKey, TaskId
from converge_p2p.core.view.epochs import Epochs
from converge_p2p.core.view.motions import Motion, Motions
from converge_p2p.core.view.past import Evidence, Past, PastTask, past_of
from converge_p2p.core.view.register import Grant, RoundVotes, StandingClaim
from converge_p2p.core.view.settled import SettledTable
from converge_p2p.core.view.tasks import TaskRegister


class TrustFold:
    """The trust ledger of a pool, kept up to date with its fold."""

    def __init__(self, registers: Mapping[TaskId, TaskRegister], motions: Motions, epochs: Epochs) -> None:
        """Start with nothing known.

        Args:
            registers: the task registers of the fold.
            motions: its motions.
            epochs: its epochs.
        """
        self._registers = registers
        self._motions = motions
        self._epochs = epochs
        self._ledger = TrustLedger()
        self._tasks: dict[TaskId, Evidence] = {}
        self._touched: dict[TaskId, None] = {}
        self.table = SettledTable()
        """What is kept of tasks that were settled below a checkpoint. Some of them may be registered again."""
        self._summed = TrustSums()
        """What the table contributes to the ledger."""

    # ------------------------------------------------------------ adding

    def add_grant(self, task: TaskId, token: Token, grant: Grant) -> None:
        """Note the promise of an elector of the epoch it names, of a frozen one as well, about what is no change.

        Something may name a change as if it were a task, and be taken back, or not be read at all because its author
        forked. Whether there is a register for it then depends on the order, so that nothing may follow from it.
        """
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
        """Note a report of a member that stands in its chain, about what is no change."""
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

    def _evidence(self, task: TaskId) -> Evidence:
        evidence = self._tasks.get(task)
        if evidence is None:
            evidence = self._tasks[task] = Evidence()
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
                events += self._work(register, self._tasks.get(task, Evidence()))
                if register.credited is not None and self._settled_in(register):
                    events += self._rejection(task, *register.credited, register.contexts)
            else:
                past = self.table.get(task)
                if past is not None:
                    events += self._rejection(task, past.outcome, past.worker, past.contexts)
            self._ledger.replace(task, events)
        self._touched.clear()

    # ------------------------------------------------------------ checkpoints

    def past(self, register: TaskRegister) -> Past | None:
        """What is to be kept of a task when what it came from is let go, or None if it has to stay whole for now."""
        first = min(self._settled_in(register), default=None)
        return None if first is None else past_of(register, self._tasks.get(register.id, Evidence()), first)

    def extended(self, pasts: Mapping[TaskId, Past]) -> SettledTable:
        """The table with these tasks, which are all registered here, as it is known now."""
        sums = TrustSums()
        sums.add(self.table.sums)
        for task in pasts:
            self._count_past(sums, task, -1)
            register = self._registers[task]
            for event in self._work(register, self._tasks.get(task, Evidence())):
                sums.count(event)
        return self.table.extended(pasts, sums)

    def begin_from(self, table: SettledTable, gone: Collection[TaskId]) -> None:
        """Let what is kept in a table stand for its tasks. Those that are registered here count as they are here.

        Args:
            table: the table.
            gone: tasks of it that were registered here and no longer are.
        """
        self.table, before, self._summed = table, self._summed, TrustSums()
        self._summed.add(table.sums)
        for task in self._registers:
            self._count_past(self._summed, task, -1)
        self._ledger.sums.add(before, -1)
        self._ledger.sums.add(self._summed)
        for task in gone:
            self._tasks.pop(task, None)
            self.touch(task)

    def recall(self, register: PastTask) -> None:
        """Something came for a task of the table, and it is about to be registered here."""
        sums = TrustSums()
        self._count_past(sums, register.id, 1)
        self._summed.add(sums, -1)
        self._ledger.sums.add(sums, -1)
        self._tasks[register.id] = register.evidence()
        self.touch(register.id)

    def _count_past(self, sums: TrustSums, task: TaskId, times: int) -> None:
        past = self.table.get(task)
        if past is not None:
            register = PastTask(task, self._epochs, past)
            for event in self._work(register, register.evidence()):
                sums.count(event, times)

    # ------------------------------------------------------------ what follows from what

    def _work(self, register: TaskRegister, evidence: Evidence) -> Iterator[TrustEvent]:
        contexts = register.contexts

        def event(what: str, author: PublicKey, token: Token, points: int) -> TrustEvent:
            name = encode([what, register.id, author, *token])
            return TrustEvent(name, author, contexts, token.epoch, points)

        first = min(self._settled_in(register), default=None)
        held = dict(self._held(register, evidence))
        for token, claim in held.items():
            # nobody fails at what is done: from the first round on that settled the task there is nothing to hold
            if claim.purpose is not Purpose.WORK or (first is not None and token >= first):
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
        if register.credited is not None and first is not None:
            outcome, worker = register.credited
            if outcome is Outcome.COMPLETED:
                yield event("completed", worker, first, trust.COMPLETED)
            elif outcome is Outcome.FAILED and any(
                claim.author == worker and claim.purpose is Purpose.WORK and token <= first
                for token, claim in held.items()
            ):
                # a submitter or elector that closes an exhausted task did not fail at it
                yield event("gave-up", worker, first, trust.FAILED)

    def _rejection(
        self, task: TaskId, outcome: Outcome, worker: PublicKey, contexts: tuple[bytes, ...]
    ) -> Iterator[TrustEvent]:
        carried = [motion.epoch for motion in self._disputes(task) if self._motions.carried(motion.id)]
        if carried and outcome is Outcome.COMPLETED:
            name = encode(["rejected", task, worker])
            yield TrustEvent(name, worker, contexts, min(carried), trust.RESULT_REJECTED)

    def _lost_disputes(self, task: TaskId) -> Iterator[TrustEvent]:
        """Whether there is such a task does not matter: who may know a voided claim of it, and who not, must agree."""
        for motion in self._disputes(task):
            if self._motions.rejected(motion.id):
                name = encode(["lost", task, motion.id])
                yield TrustEvent(name, motion.author, (), motion.epoch, trust.DISPUTE_LOST)

    def _disputes(self, task: TaskId) -> list[Motion]:
        return [motion for motion in self._motions.disputes(task) if motion.kind is MotionKind.REJECT_RESULT]

    def _held(self, register: TaskRegister, evidence: Evidence) -> Iterator[tuple[Token, StandingClaim]]:
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
