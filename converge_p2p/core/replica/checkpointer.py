"""When a checkpoint is proposed, attested and put in force, and the folding for it, in steps.

Knows: cuts, the last snapshot, whose turn it is. Must not know: how a snapshot travels (see `forward`), or how it is
stored.
Source: `docs/protocol.md`, checkpoints.

Nothing here decides what a state is: that is a function of the operations inside a cut (`view.summary`). An elector's
attestations are ordered: each of its cuts contains those it attested before. So two certified checkpoints, which share
an honest elector, are one inside the other, and the greater one is in force.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum

from converge_p2p.core import limits
from converge_p2p.core.codec import tagged_hash
from converge_p2p.core.errors import CodecError
from converge_p2p.core.model.task import TaskValue
from converge_p2p.core.oplog.bodies import VoteBody
from converge_p2p.core.oplog.checkpoints import AttestBody, CheckpointBody
from converge_p2p.core.oplog.cuts import Cut
from converge_p2p.core.oplog.log import OperationLog
from converge_p2p.core.oplog.operation import Operation, decode_operation, operation_id
from converge_p2p.core.types import OperationId, PublicKey
from converge_p2p.core.view.attested import Proposed
from converge_p2p.core.view.fold import View
from converge_p2p.core.view.snapshot import Snapshot
from converge_p2p.core.view.summary import Summary

CutMap = Mapping[PublicKey, Cut]

LAG_MS = 2000
"""A cut is what the proposer held so long ago: by now most others hold it too."""

TURN_MS = 5000
"""Electors propose one after the other, if nobody did before them."""

PATIENCE_MS = 60_000
"""How long to wait for the others after attesting a checkpoint, before another is proposed."""

STEP_PAUSE_MS = 2
LOOK_MS = 250
"""Between two steps, and from something new to the next look, other events have their turn."""


class Aim(Enum):
    """What a fold is for."""

    PROPOSE = "propose"
    ATTEST = "attest"
    ADOPT = "adopt"


@dataclass(slots=True)
class Job:
    """A fold under way.

    Attributes:
        aim: what for.
        proposed: whose root is to be compared; None to propose one.
        summary: the state so far.
        goal: how long the chain of each author is inside the cut.
        waiting: authors that are not at their goal.
        moved: whether one of them advanced since they were all looked at.
        votes: votes beside the chains that are inside, and not counted yet.
        get: gives such a vote, if it is held.
        find: looks for such votes when an own fold can get no further.
        before: those of the snapshot it began from.
    """

    aim: Aim
    proposed: Proposed | None
    summary: Summary
    goal: dict[PublicKey, int]
    waiting: list[PublicKey] = field(default_factory=list)
    moved: bool = True
    votes: list[OperationId] = field(default_factory=list)
    get: Callable[[OperationId], bytes | None] = lambda _: None
    find: Callable[[Summary], list[Operation]] | None = None
    before: frozenset[OperationId] = frozenset()
    _turn: list[PublicKey] = field(default_factory=list)

    def step(self, log: OperationLog, count: int) -> bool:
        """Fold at most so many operations; returns whether it is done, or can get no further."""
        while count > 0:
            if not self._turn:
                if not (self.moved and self.waiting):
                    if not self._count_votes(log):
                        return True
                    self.moved = True
                    continue
                self._turn, self.waiting, self.moved = self.waiting[::-1], [], False
            author = self._turn[-1]
            row = self.summary.rows.get(author)
            at, stop = 0 if row is None else row.length, self.goal[author]
            batch = log.read(author, at, min(stop, at + count)) if log.base(author) <= at else []
            done = 0
            for signed in batch:
                operation = decode_operation(signed, log.pool, trusted=True)
                if not self.summary.add(operation, known=log.holds):
                    break
                done += 1
            self.moved |= done > 0
            count -= done + 1
            if at + done >= stop:
                self._turn.pop()
            elif done < len(batch) or not batch:
                self.waiting.append(self._turn.pop())
        return False

    def _count_votes(self, log: OperationLog) -> bool:
        """Count votes beside the chains; returns whether that changed anything."""
        found = []
        for name in tuple(self.votes):
            signed = self.get(name)
            operation = None if signed is None else decode_operation(signed, log.pool, trusted=True)
            if operation is not None and operation.epoch <= self.summary.view.epochs.number:
                self.votes.remove(name)
                found.append(operation)
        if not found and self.find is not None:
            found = self.find(self.summary)
        return sum(self.summary.add_vote(operation) for operation in found) > 0

    @property
    def complete(self) -> bool:
        """Whether every author is at its goal, and every vote is counted."""
        return not self.waiting and not self._turn and not self.votes


class Checkpointer:
    """The checkpoints of one pool, as one replica sees and makes them."""

    def __init__(
        self,
        key: PublicKey,
        log: OperationLog,
        view: View,
        *,
        every: int,
        wake: Callable[[int], None],
        may_vote: Callable[[], bool],
    ) -> None:
        """Begin without a checkpoint.

        Args:
            key: the local identity.
            log: what is held.
            view: its fold.
            every: how many operations above the last checkpoint are worth another; 0: this replica proposes none.
            wake: sees to it that `turn` is called after so many milliseconds.
            may_vote: whether the local identity is an elector that has not promised the next epoch.
        """
        self._key = key
        self._log = log
        self._view = view
        self._every = every
        self._wake = wake
        self._may_vote = may_vote
        self.snapshot: Snapshot | None = None
        self.in_force: Proposed | None = None
        """The proposal of the snapshot; None before the first, and as long as it is not here after a restart."""
        self._cuts: dict[bytes, CutMap] = {log.pool: {}}
        self._job: Job | None = None
        self._made: dict[bytes, tuple[Snapshot, Summary]] = {}
        self._refused: dict[OperationId, None] = {}
        self._said: dict[OperationId, CutMap] = {}
        self._mark: dict[PublicKey, int] | None = None
        self._turn_ms = 0
        self._not_before_ms = 0
        self._look_ms: int | None = None
        self._whole: dict[OperationId, CutMap] = {}

    # ------------------------------------------------------------ what is known

    @property
    def root(self) -> bytes:
        """What the next checkpoint builds on."""
        return self._log.pool if self.snapshot is None else self.snapshot.root

    @property
    def number(self) -> int | None:
        """Number of the checkpoint in force, 0 before the first; None if it is not known."""
        if self.snapshot is None:
            return 0
        return None if self.in_force is None else self.in_force.body.number

    def begin_from(self, snapshot: Snapshot) -> None:
        """A snapshot was read from the store, or came from others."""
        self.snapshot, self.in_force = snapshot, None
        self._cuts = {self._log.pool: {}, snapshot.root: _cuts_of(snapshot)}
        self._job = self._mark = None
        self._made, self._refused, self._said, self._whole = {}, {}, {}, {}

    def cut_of(self, proposed: Proposed) -> CutMap | None:
        """The whole cut of a proposal; None if what it builds on is not known here."""
        whole = self._whole.get(proposed.id)
        base = self._cuts.get(proposed.body.base)
        if whole is None and base is not None:
            whole = self._whole[proposed.id] = {**base, **{cut.author: cut for cut in proposed.body.delta}}
        return whole

    def certificate(self) -> tuple[bytes, tuple[bytes, ...]] | None:
        """The proposal in force and its attestations, signed; None if there is none or they are not all here."""
        if self.in_force is None:
            return None
        checkpoint = self._log.get(self.in_force.id)
        voters = self._view.attested.voters(self.in_force)
        electors = self._view.epochs[self.in_force.epoch].electors
        attests = [self._log.get(vote) for elector, vote in sorted(voters.items()) if elector in electors]
        found = tuple(signed for signed in attests if signed is not None)
        return None if checkpoint is None else (checkpoint, found)

    # ------------------------------------------------------------ time

    def look(self, now_ms: int, delay_ms: int = LOOK_MS) -> None:
        """Something is new: see soon whether anything is to be done."""
        at_ms = now_ms + delay_ms
        if self._look_ms is None or at_ms < self._look_ms:
            self._look_ms = at_ms
            self._wake(delay_ms)

    def grown(self, now_ms: int) -> None:
        """The log grew: a checkpoint may be due, or one that was proposed may be covered now."""
        if self._is_due() or len(self._view.attested) > (self.in_force is not None):
            self.look(now_ms)

    def _is_due(self) -> bool:
        return bool(self._every) and self._log.tail() >= self._every

    def turn(self, now_ms: int) -> Job | None:
        """Do a step. Returns a fold that is done, to be passed to `propose`, `attest` or `adopt` by its aim."""
        self._look_ms = None
        if self._job is None:
            self._job = self._next_job(now_ms)
            if self._job is None:
                return None
        job = self._job
        if not job.step(self._log, limits.CHECKPOINT_STEP_OPERATIONS):
            self.look(now_ms, STEP_PAUSE_MS)
            return None
        self._job = None
        self.look(now_ms)
        return job

    def _next_job(self, now_ms: int) -> Job | None:
        self._find_in_force()
        ahead = [proposed for proposed in self._view.attested.proposals() if self._is_ahead(proposed)]
        certified = [item for item in ahead if self._view.attested.certified(item)]
        # they are one inside the other, so the one that covers most contains the others
        for proposed in sorted(certified, key=self._covers, reverse=True):
            if self._holds(proposed):
                return self._job_for(Aim.ADOPT, proposed)
        if not self._may_vote():
            return None
        for proposed in ahead:
            if proposed not in certified and self._may_attest(proposed) and self._holds(proposed):
                return self._job_for(Aim.ATTEST, proposed)
        return self._own_job(now_ms)

    def wanted(self) -> bytes | None:
        """The root of a certified checkpoint that can only be had from others; None if there is none.

        An author was frozen here below its cut, or the own fold led to another root.
        """
        for proposed in self._view.attested.proposals():
            cut = self.cut_of(proposed)
            if cut is None or proposed.body.root == self.root or not _contains(cut, self._cuts[self.root]):
                continue
            ends = ((self._log.frozen_at(item.author), item.length) for item in cut.values())
            frozen = any(end is not None and end < length for end, length in ends)
            apart = frozen or proposed.id in self._refused
            if apart and self._view.attested.certified(proposed):
                return proposed.body.root
        return None

    def _find_in_force(self) -> None:
        if self.snapshot is None or self.in_force is not None:
            return
        for proposed in self._view.attested.proposals():
            if proposed.body.root == self.root and self._view.attested.certified(proposed):
                self.in_force = proposed

    def _covers(self, proposed: Proposed) -> tuple[int, bytes]:
        cut = self.cut_of(proposed) or {}
        return sum(item.length for item in cut.values()), proposed.id

    def _is_ahead(self, proposed: Proposed) -> bool:
        cut = self.cut_of(proposed)
        if cut is None or proposed.id in self._refused or proposed.body.root == self.root:
            return False
        return _contains(cut, self._cuts[self.root])

    def _holds(self, proposed: Proposed) -> bool:
        cut = self.cut_of(proposed) or {}
        held = all(self._vote(name) is not None for name in proposed.body.votes)
        return held and all(self._reaches(item) for item in cut.values())

    def _reaches(self, cut: Cut) -> bool:
        chain = self._log.chains.get(cut.author)
        return chain is not None and chain.head_at(cut.length) == cut.head

    def _may_attest(self, proposed: Proposed) -> bool:
        mine = self._key in self._view.attested.voters(proposed) or proposed.id in self._said
        if mine or proposed.epoch != self._view.epochs.number:
            return False
        cut = self.cut_of(proposed)
        return cut is not None and all(_contains(cut, earlier) for earlier in self._attested_cuts())

    def _attested_cuts(self) -> Iterator[CutMap]:
        """The cuts of what this identity attested, what is not written yet included."""
        yield from self._said.values()
        for proposed in self._view.attested.proposals():
            cut = self.cut_of(proposed)
            if cut is not None and self._key in self._view.attested.voters(proposed):
                yield cut

    def _job_for(self, aim: Aim, proposed: Proposed | None, goal: dict[PublicKey, int] | None = None) -> Job:
        if proposed is not None:
            made = self._made.get(proposed.body.root)
            cut = self.cut_of(proposed) or {}
            goal = {author: item.length for author, item in cut.items()}
            if made is not None:
                return Job(aim, proposed, made[1], goal)
        goal = goal or {}
        protocol = self._view.epochs.protocol
        summary = (
            Summary(self._log.pool, protocol) if self.snapshot is None else Summary.restore(self.snapshot, protocol)
        )
        summary.value_of = self._epoch_value
        # the founding comes first; after it the order does not matter
        waiting = sorted(goal, key=lambda author: (author != self._view.creator, author))
        job = Job(aim, proposed, summary, goal, waiting, get=self._vote, before=frozenset(summary.votes))
        if proposed is None:
            job.find = self._votes_beside
        else:
            job.votes = [vote for vote in proposed.body.votes if vote not in summary.votes]
        return job

    def _vote(self, name: OperationId) -> bytes | None:
        """A vote that is held, also one that was counted on the next epoch while it waits for its predecessors."""
        found = self._log.get(name)
        if found is not None:
            return found
        early = (change.early.get(name) for change in self._view.changes.values())
        return next((signed for signed in early if signed is not None), None)

    def _epoch_value(self, number: int) -> TaskValue | None:
        epoch = self._view.epochs.find(number)
        return None if epoch is None else epoch.value

    def _votes_beside(self, summary: Summary) -> list[Operation]:
        """Loose votes on the next epoch that a fold lacks: it may have been certified with some of them."""
        number = summary.view.epochs.number + 1
        if not 0 < number <= self._view.epochs.number:
            return []
        subject, found = self._view.changes_at(number).id, list[Operation]()
        beside = [signed for chain in self._log.chains.values() for signed in chain.loose.values()]
        for signed in (*beside, *self._view.changes_at(number).early.values()):
            operation = decode_operation(signed, self._log.pool, trusted=True)
            body = operation.body
            if not isinstance(body, VoteBody) or operation.epoch != number - 1:
                continue
            if any(ballot.task == subject for ballot in body.ballots):
                found.append(operation)
        found.sort(key=lambda operation: operation.id)
        return found[: max(0, limits.CHECKPOINT_VOTES_MAX - len(summary.votes))]

    # ------------------------------------------------------------ proposing

    def _own_job(self, now_ms: int) -> Job | None:
        if not self._is_due() or self.number is None:
            self._mark = None
            return None
        if self._mark is None:
            self._mark = {author: len(chain) for author, chain in self._log.chains.items() if len(chain)}
            electors = sorted(
                self._view.electors, key=lambda elector: tagged_hash("checkpoint-turn", self.root, elector)
            )
            self._turn_ms = now_ms + LAG_MS + TURN_MS * electors.index(self._key)
        turn_ms = max(self._turn_ms, self._not_before_ms)
        if now_ms < turn_ms:
            self.look(now_ms, turn_ms - now_ms)
            return None
        mark, self._mark, self._not_before_ms = self._mark, None, now_ms + PATIENCE_MS
        base = self._cuts[self.root]
        goal = {author: cut.length for author, cut in base.items()}
        grown = [
            (min(length, self._log.length(author)) - goal.get(author, 0), author) for author, length in mark.items()
        ]
        grown = [item for item in grown if item[0] > 0]
        if 2 * sum(count for count, _ in grown) < self._every:
            return None
        grown.sort(key=lambda item: (item[1] != self._view.creator, -item[0], item[1]))
        for count, author in grown[: limits.CHECKPOINT_AUTHORS_MAX]:
            goal[author] = goal.get(author, 0) + count
        return self._job_for(Aim.PROPOSE, None, goal)

    def propose(self, job: Job) -> CheckpointBody | None:
        """What an own fold leads to: the cut is what could be folded of the goal."""
        snapshot, number = self._result(job), self.number
        if snapshot is None or number is None or job.summary.view.epochs.number != self._view.epochs.number:
            return None
        if not self._may_vote():
            return None
        base = self._cuts[self.root]
        delta = [
            Cut(row.author, row.length, row.head)
            for row in snapshot.rows
            if row.author not in base or base[row.author].length < row.length
        ]
        if not delta or not all(_contains(_cuts_of(snapshot), earlier) for earlier in self._attested_cuts()):
            return None
        votes = tuple(sorted(job.summary.votes - job.before))
        return CheckpointBody(number + 1, self.root, tuple(delta), votes, snapshot.root)

    def proposed(self, operation: Operation, body: CheckpointBody) -> AttestBody:
        """An own proposal was signed: vouch for it too."""
        self._said[operation.id] = {**self._cuts[body.base], **{cut.author: cut for cut in body.delta}}
        return AttestBody(operation.id, body.root)

    # ------------------------------------------------------------ attesting

    def attest(self, job: Job, now_ms: int) -> AttestBody | None:
        """Vouch for a proposal, if the fold leads to its root."""
        proposed = job.proposed
        assert proposed is not None
        snapshot = self._result(job) if job.complete else None
        right = snapshot is not None and snapshot.root == proposed.body.root
        if not right or job.summary.view.epochs.number != proposed.epoch:
            self._refused[proposed.id] = None
            return None
        if not (self._may_vote() and self._may_attest(proposed) and self._holds(proposed)):
            return None
        cut = self.cut_of(proposed)
        assert cut is not None
        self._said[proposed.id] = cut
        self._not_before_ms = now_ms + PATIENCE_MS
        return AttestBody(proposed.id, proposed.body.root)

    def _result(self, job: Job) -> Snapshot | None:
        made = None if job.proposed is None else self._made.get(job.proposed.body.root)
        if made is not None:
            return made[0]
        if not job.summary.sound:
            return None
        try:
            snapshot = job.summary.snapshot()
        except CodecError:
            return None
        # one for what is proposed or attested, one for what is certified
        while len(self._made) > 1:
            del self._made[next(iter(self._made))]
        self._made[snapshot.root] = (snapshot, job.summary)
        return snapshot

    # ------------------------------------------------------------ in force

    def adopt(self, job: Job) -> tuple[Snapshot, list[OperationId]] | None:
        """Prune what a certified checkpoint covers.

        Returns:
            The snapshot, and what is no longer part of a chain; None if it cannot be put in force here.
        """
        proposed = job.proposed
        assert proposed is not None
        snapshot = self._result(job) if job.complete else None
        if snapshot is None or snapshot.root != proposed.body.root or not all(map(self._log.reaches, snapshot.rows)):
            self._refused[proposed.id] = None
            return None
        beside = job.summary.votes
        names = ((operation_id(signed), signed) for signed in snapshot.retained)
        retained = {name: signed for name, signed in names if name not in beside}
        gone = self._log.prune(snapshot.rows, retained, job.summary.ends())
        before = (self.root, self._cuts[self.root])
        self.snapshot, self.in_force = snapshot, proposed
        # those that were proposed meanwhile build on the one before
        self._cuts = {self._log.pool: {}, before[0]: before[1], snapshot.root: _cuts_of(snapshot)}
        self._made, self._refused, self._mark, self._not_before_ms = {}, {}, None, 0
        self._whole = {}
        self._said = {name: cut for name, cut in self._said.items() if not _contains(self._cuts[self.root], cut)}
        self._view.attested.forget(self._log.base, proposed.id)
        return snapshot, gone


def _cuts_of(snapshot: Snapshot) -> CutMap:
    return {row.author: Cut(row.author, row.length, row.head) for row in snapshot.rows}


def _contains(cut: CutMap, other: CutMap) -> bool:
    """Whether a cut has at least as much of every author."""
    return all(author in cut and cut[author].length >= item.length for author, item in other.items())
