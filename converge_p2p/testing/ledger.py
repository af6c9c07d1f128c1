"""Everything that was signed in a run and may have been seen, and what follows from it by plain counting.

Knows: every operation that any node ever made durable, and the pool's terms. Must not know: how a replica derives its
state; where this file and the core count alike, they do so by different code.
Source: `docs/protocol.md`, invariants; the numbers are those of that list.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from converge_p2p.core.errors import CodecError
from converge_p2p.core.model.pool import GovernanceKind, PoolSpec
from converge_p2p.core.model.task import Outcome, TaskValue, task_id
from converge_p2p.core.oplog.bodies import (
    VOTES,
    Ballot,
    ClaimBody,
    Phase,
    ReportBody,
    SubmitBody,
    Token,
    VoteBody,
)
from converge_p2p.core.oplog.cuts import Cut
from converge_p2p.core.oplog.evidence import EvidenceBody
from converge_p2p.core.oplog.motions import YES, OpinionBody
from converge_p2p.core.oplog.operation import Operation
from converge_p2p.core.replica import events as ev
from converge_p2p.core.replica.machine import Replica
from converge_p2p.core.types import OperationId, PoolId, PublicKey, TaskId, ValueHash
from converge_p2p.core.view.epochs import EpochValue, epoch_subject
from converge_p2p.testing.counting import decides, first_granter

NOBODY = bytes(32)


class InvariantViolated(Exception):
    """An invariant does not hold.

    Attributes:
        invariant: its number in the list, 0 for what the machine itself promises (no crash, no refused operation).
    """

    def __init__(self, invariant: int, message: str) -> None:
        super().__init__(f"invariant {invariant}: {message}")
        self.invariant = invariant

    def __reduce__(self) -> tuple[type, tuple[int, str]]:
        """Let it cross a process boundary."""
        return InvariantViolated, (self.invariant, str(self).split(": ", 1)[1])


class Reported(NamedTuple):
    """A report that was signed."""

    author: PublicKey
    value: ValueHash
    worker: PublicKey
    outcome: Outcome


class Promise(NamedTuple):
    """A promise for the next epoch that was signed."""

    elector: PublicKey
    claim: OperationId
    token: Token


@dataclass(slots=True)
class CountedEpoch:
    """An epoch that was certified, by counting.

    Attributes:
        spec: its terms.
        hash: of its value; the pool's id for the first.
        cuts: authors it removes.
    """

    spec: PoolSpec
    hash: bytes
    cuts: tuple[Cut, ...] = ()


@dataclass(slots=True)
class Subject:
    """What was voted and reported about one task, or about one epoch.

    Attributes:
        number: of the epoch it is about, 0 for a task.
        votes: (phase, token) → reference → who voted for it.
        settled: value → the round in which it was first certified.
    """

    number: int
    votes: dict[tuple[Phase, Token], dict[bytes, set[PublicKey]]] = field(default_factory=lambda: defaultdict(dict))
    reports: dict[Token, list[Reported]] = field(default_factory=lambda: defaultdict(list))
    settled: dict[ValueHash, Token] = field(default_factory=dict)
    submitter: PublicKey | None = None


# what honest replicas may refuse where nobody lies, because of a race
RACES = frozenset({
    "no_genesis", "no_epoch", "not_member", "removed", "own_removed", "store_removed", "parked_full", "compacted",
})  # fmt: skip


class Ledger:
    """Everything that was signed, and what it decides."""

    def __init__(self, spec: PoolSpec, pool: PoolId, liars: Collection[PublicKey]) -> None:
        self.pool = pool
        self.liars = frozenset(liars)
        self.forgetful: set[PublicKey] = set()
        """Honest authors that lost operations. What only somebody absent holds, they may sign a second time."""
        self.epochs = [CountedEpoch(spec, pool)]
        self.subjects: dict[tuple[TaskId, int], Subject] = {}
        self.claims: dict[OperationId, tuple[PublicKey, ClaimBody]] = {}
        self.chains: dict[PublicKey, dict[int, set[OperationId]]] = defaultdict(dict)
        self.data: dict[OperationId, tuple[PublicKey, int]] = {}
        """Author and number of every operation that is no vote."""
        self.submits: dict[OperationId, TaskId] = {}
        self.acknowledged: dict[OperationId, int] = {}
        self._ids: set[OperationId] = set()
        self._ballots: dict[tuple[PublicKey, TaskId, int, int, Phase], Ballot] = {}
        self._contents: dict[ValueHash, TaskValue] = {}
        self._promises: dict[OperationId, Promise] = {}
        self._forked: set[PublicKey] = set()
        """Authors of whom an honest replica has the proof: what liars show to some of the nodes is not counted here."""
        self._held: dict[OperationId, Mapping[PublicKey, int]] = {}
        self._vouched: dict[ValueHash, list[Mapping[PublicKey, int]]] = defaultdict(list)
        self._cited: dict[tuple[TaskId, ValueHash], set[PublicKey]] = defaultdict(set)
        """Who cited evidence for a value."""
        self._said: dict[OperationId, dict[int, set[PublicKey]]] = defaultdict(lambda: defaultdict(set))
        self._shown: dict[TaskId, tuple[object, ...]] = {}
        self._winners: dict[tuple[TaskId, Token], int] = {}
        self._epoch_subjects = {epoch_subject(pool, number): number for number in range(1, 64)}

    # ------------------------------------------------------------ what is signed

    def subject(self, name: TaskId, epoch: int) -> Subject:
        """What was said about a subject in an epoch: each epoch votes on the one after it, whatever is named."""
        number = self._epoch_subjects.get(name, 0)
        number = number if number == epoch + 1 else 0
        return self.subjects.setdefault((name, number), Subject(number))

    def signed(self, operation: Operation) -> None:
        """An operation became durable at its author, so that others may see it.

        Raises:
            InvariantViolated: 2, 3, 4, 5, 7 or 8, by what was signed alone.
        """
        if operation.id in self._ids:
            return
        self._ids.add(operation.id)
        author, epoch = operation.author, operation.epoch
        branch = self.chains[author].setdefault(operation.seq, set())
        branch.add(operation.id)
        if len(branch) > 1 and author not in self.liars | self.forgetful:
            raise InvariantViolated(8, f"{short(author)} is honest and forked at seq {operation.seq}")
        if not isinstance(operation.body, VOTES):
            self.data[operation.id] = author, operation.seq
        match operation.body:
            case SubmitBody(spec):
                task = task_id(self.pool, author, spec.key)
                self.submits[operation.id] = task
                self.subject(task, epoch).submitter = author
            case ClaimBody() as body:
                self.claims[operation.id] = author, body
            case ReportBody(name, number, value):
                reported = Reported(author, value.hash, value.worker, value.outcome)
                subject = self.subject(name, epoch)
                subject.reports[Token(epoch, number)].append(reported)
                if subject.number:
                    self._contents[value.hash] = value
                    self._advance()
            case EvidenceBody(task, value, True):
                self._cited[task, value].add(author)
            case OpinionBody(motion, choice) if choice == YES:
                self._said[motion][epoch].add(author)
            case VoteBody(ballots):
                for ballot in ballots:
                    self._cast(operation, ballot)

    def _cast(self, operation: Operation, ballot: Ballot) -> None:
        elector, epoch = operation.author, operation.epoch
        if elector not in self.liars:
            place = (elector, ballot.task, epoch, ballot.round, ballot.phase)
            if self._ballots.setdefault(place, ballot) != ballot and not self._may_repeat(elector, epoch):
                raise InvariantViolated(7, f"{short(elector)} voted twice: {self._ballots[place]} and {ballot}")
        subject, token = self.subject(ballot.task, epoch), Token(epoch, ballot.round)
        if subject.number and ballot.phase is Phase.GRANT:
            self._promises[operation.id] = Promise(elector, OperationId(ballot.ref), token)
        subject.votes[ballot.phase, token].setdefault(ballot.ref, set()).add(elector)
        if ballot.phase is not Phase.ENDORSE and epoch < len(self.epochs):
            self._judge(ballot.task, subject, ballot.phase, token, ballot.ref)

    def _may_repeat(self, elector: PublicKey, epoch: int) -> bool:
        """Whether an elector may vote that forgot how it voted: nothing is decided without it."""
        spec = self.epochs[min(epoch, len(self.epochs) - 1)].spec
        return elector in self.forgetful and not decides(spec, set(spec.electors) - {elector})

    def _judge(self, name: TaskId, subject: Subject, phase: Phase, token: Token, ref: bytes) -> None:
        """Look whether an option is certified by now, and whether another is as well."""
        if phase is Phase.GRANT:
            certified = self.certified(name, subject, token)
            if len(certified) > 1 and not self._granted_by_liar(name, subject, token):
                raise InvariantViolated(2, f"two claims of {short(name)} are certified in round {token}")
            return
        if not decides(self.epochs[token.epoch].spec, subject.votes[phase, token][ref]):
            return
        subject.settled.setdefault(ValueHash(ref), token)
        if len(subject.settled) > 1:
            rounds = sorted(subject.settled.values())
            if subject.number:
                raise InvariantViolated(4, f"epoch {subject.number} is certified twice, in rounds {rounds}")
            raise InvariantViolated(3, f"task {short(name)} is settled twice, in rounds {rounds}")
        if subject.number:
            self._advance()

    def certified(self, name: TaskId, subject: Subject, token: Token) -> list[OperationId]:
        """The claims that a round was granted to, by counting. More than one only where a single granter lies."""
        spec, options = self.epochs[token.epoch].spec, subject.votes.get((Phase.GRANT, token), {})
        granter = None
        if not subject.number and token.round == 0:
            granter = first_granter(spec, name, subject.submitter, token.epoch)
        if granter is not None:
            return [OperationId(claim) for claim, voters in options.items() if granter in voters]
        return [OperationId(claim) for claim, voters in options.items() if decides(spec, voters)]

    def _granted_by_liar(self, name: TaskId, subject: Subject, token: Token) -> bool:
        if subject.number or token.round:
            return False
        return first_granter(self.epochs[token.epoch].spec, name, subject.submitter, token.epoch) in self.liars

    # ------------------------------------------------------------ epochs

    def changes(self, operation: Operation) -> bool:
        """Whether an operation holds votes on the next epoch."""
        return any(self._on_next_epoch(operation))

    def _on_next_epoch(self, operation: Operation) -> Iterator[Ballot]:
        body, following = operation.body, operation.epoch + 1
        for ballot in body.ballots if isinstance(body, VoteBody) else ():
            if self._epoch_subjects.get(ballot.task) == following:
                yield ballot

    def held_at(self, operation: Operation, held: Mapping[PublicKey, int]) -> None:
        """What an honest elector held durably of each author when it promised, endorsed or accepted an epoch."""
        # of its own chain more may be on disk: what was signed in the same turn after it
        held = {**held, operation.author: min(held.get(operation.author, 0), operation.seq + 1)}
        for ballot in self._on_next_epoch(operation):
            if ballot.phase is Phase.GRANT:
                self._held[operation.id] = held
            else:
                self._vouched[ValueHash(ballot.ref)].append(held)

    def _advance(self) -> None:
        """Install every epoch that is certified and whose value is known."""
        while True:
            number = len(self.epochs)
            subject = self.subjects.get((epoch_subject(self.pool, number), number))
            value = None if subject is None else next(iter(subject.settled), None)
            content = None if value is None else self._contents.get(value)
            if subject is None or value is None or content is None:
                return
            try:
                epoch = EpochValue.from_bytes(content.result)
            except CodecError as error:
                raise InvariantViolated(4, f"epoch {number} is certified and makes no sense: {error}") from error
            self._check_epoch(number, value, epoch)
            self.epochs.append(CountedEpoch(epoch.spec, value, epoch.cuts))
            self._recount(number)

    def _check_epoch(self, number: int, value: ValueHash, epoch: EpochValue) -> None:
        """Check what a certified epoch rests on: the one before, a carried motion, and a quorum of promises."""
        before = self.epochs[-1]
        if epoch.number != number or epoch.before != before.hash:
            raise InvariantViolated(4, f"epoch {number} does not follow epoch {number - 1}")
        if not decides(before.spec, self._said[epoch.motion][number - 1]):
            raise InvariantViolated(9, f"epoch {number} was not asked for by a carried motion")
        promises = [self._promises[name] for name in epoch.promises if name in self._promises]
        honest = [name for name in epoch.promises if name in self._held]
        if len(promises) < len(epoch.promises) or not decides(before.spec, {one.elector for one in promises}):
            raise InvariantViolated(9, f"epoch {number} does not rest on a quorum of promises")
        for cut in epoch.cuts:
            held = max((self._held[name].get(cut.author, 0) for name in honest), default=0)
            seen = max((held.get(cut.author, 0) for held in self._vouched[value]), default=0)
            # where the author forked, what an elector holds is no single chain
            forked = cut.author in self._forked or any(len(branch) > 1 for branch in self.chains[cut.author].values())
            if cut.length < held and not forked:
                raise InvariantViolated(
                    5, f"epoch {number} cuts {short(cut.author)} at {cut.length}, an elector that promised held {held}"
                )
            if cut.length > seen and not forked:
                raise InvariantViolated(
                    6, f"epoch {number} cuts {short(cut.author)} at {cut.length}, its honest voters held only {seen}"
                )

    def _recount(self, epoch: int) -> None:
        for (name, _), subject in list(self.subjects.items()):
            for (phase, token), options in list(subject.votes.items()):
                if token.epoch == epoch and phase is not Phase.ENDORSE:
                    for ref in list(options):
                        self._judge(name, subject, phase, token, ref)

    def cuts(self, number: int) -> dict[PublicKey, int]:
        """Where the data of each author ends that was removed by this epoch or one before it."""
        return {cut.author: cut.length for epoch in self.epochs[number::-1] for cut in epoch.cuts}

    # ------------------------------------------------------------ what replicas say

    def told(self, node: int, notice: ev.Notice, replica: Replica, *, honest: bool) -> None:
        """A replica told its application something.

        Raises:
            InvariantViolated: it contradicts what was said before, here or elsewhere.
        """
        if not honest:
            return
        if isinstance(notice, ev.ForkDetected):
            self._forked.add(notice.author)
        match notice:
            case ev.Acknowledged(operation):
                self.acknowledged[operation] = node
            case ev.ClaimWon(task, epoch, number):
                self._won(node, task, Token(epoch, number))
            case ev.TaskChanged(task, state):
                if not state.terminal:
                    return
                past = replica.view.compacted.get(task)
                shown = (state, replica.view.registers[task].settled if past is None else past.value)
                if self._shown.setdefault(task, shown) != shown:
                    raise InvariantViolated(
                        3, f"node {node} shows task {short(task)} as {state.value}, another showed another outcome"
                    )
            case ev.EpochInstalled(number):
                known = self.epochs[number].hash if number < len(self.epochs) else None
                if replica.view.epochs[number].hash != known:
                    raise InvariantViolated(4, f"node {node} is in an epoch {number} that is not the certified one")
            case ev.ForkDetected(author, seq) if author not in self.liars | self.forgetful:
                raise InvariantViolated(8, f"node {node} froze honest {short(author)} from seq {seq}")
            case ev.Rejected(_, "own_chain") if replica.identity.public_key in self.forgetful:
                # what it signs now has a number of something that it forgot: a fork, which is told when it comes again
                return
            case ev.Rejected(_, reason) if not self.liars and reason not in RACES:
                raise InvariantViolated(0, f"node {node} refused an honest operation or message: {reason}")

    def forgets(self, node: int, author: PublicKey) -> None:
        """A node's disk was replaced by an older copy: nobody promises that what it acknowledged is still somewhere."""
        self.forgetful.add(author)
        self.acknowledged = {operation: author for operation, author in self.acknowledged.items() if author != node}

    def _won(self, node: int, task: TaskId, token: Token) -> None:
        first = self._winners.setdefault((task, token), node)
        if first == node or token.epoch >= len(self.epochs):
            return
        several = self.epochs[token.epoch].spec.governance is GovernanceKind.EMPIRICAL
        if not several and not self._granted_by_liar(task, self.subject(task, token.epoch), token):
            raise InvariantViolated(2, f"nodes {first} and {node} both won round {token} of task {short(task)}")

    # ------------------------------------------------------------ at the end

    def check_settlements(self) -> None:
        """Check invariant 9 for every settled value.

        Raises:
            InvariantViolated: the value was not reported by whoever held the round, or is credited to somebody else.
        """
        tasks = set(self.submits.values())
        for (name, _), subject in self.subjects.items():
            for value, token in subject.settled.items():
                if not any(report.value == value for report in self._held_reports(name, subject, token)):
                    raise InvariantViolated(9, f"{short(name)}: no holder of {token} reported the result")
                # where honest electors voted for the value first, it was no lock: its own author must have held it
                first = min(
                    (
                        voted
                        for (phase, voted), options in subject.votes.items()
                        if phase is not Phase.GRANT and options.get(value, set()) - self.liars
                    ),
                    default=token,
                )
                reports = self._held_reports(name, subject, first)
                if not any(report.value == value and report.worker == report.author for report in reports):
                    raise InvariantViolated(9, f"{short(name)}: the result is credited to somebody else")
                own = [report for report in reports if report.value == value]
                worked = {report.worker for report in own if report.outcome is Outcome.COMPLETED}
                # whether a veto is waited for needs none, also where the pool asks for evidence by now
                need = self.epochs[first.epoch].spec.model.evidence if name in tasks else 0
                if worked and need and len(self._cited[name, value] - worked) < need:
                    raise InvariantViolated(9, f"{short(name)}: settled without the evidence that the terms ask for")

    def _held_reports(self, name: TaskId, subject: Subject, token: Token) -> list[Reported]:
        certified = self.certified(name, subject, token)
        reports = subject.reports.get(token, [])
        if NOBODY in certified:
            standing = {author for author, body in self.claims.values() if body.task == name}
            return [report for report in reports if report.author in standing]
        holders = {self.claims[claim][0] for claim in certified if claim in self.claims}
        return [report for report in reports if report.author in holders]


def short(name: bytes) -> str:
    """The beginning of a name, for people."""
    return name.hex()[:8]
