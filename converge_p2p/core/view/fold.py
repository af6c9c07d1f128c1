"""The fold of a pool: operations in, members, epochs and registers out.

Knows: which operations have an effect. Must not know: where operations come from, or time.
Source: `docs/protocol.md`, fold. Every effect is judged by the author's own chain and the epoch the operation names,
never by "the state right now", so that acceptance does not depend on the order of delivery.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from converge_p2p.core.errors import CodecError
from converge_p2p.core.governance.admission import check_admission
from converge_p2p.core.governance.electorate import electorate_of
from converge_p2p.core.governance.models import ALL_RULES, ProtocolRules, compile_rules
from converge_p2p.core.model.pool import PoolSpec, pool_id
from converge_p2p.core.model.task import TaskView, task_id
from converge_p2p.core.oplog.bodies import (
    VOTES,
    Ballot,
    ClaimBody,
    Genesis,
    JoinBody,
    LeaveBody,
    Phase,
    Purpose,
    ReleaseBody,
    ReportBody,
    SubmitBody,
    Token,
    VetoBody,
    VoteBody,
)
from converge_p2p.core.oplog.checkpoints import AttestBody, CheckpointBody
from converge_p2p.core.oplog.cuts import Cut
from converge_p2p.core.oplog.evidence import EvidenceBody
from converge_p2p.core.oplog.key_bodies import ContentKeyBody, PrekeyBody
from converge_p2p.core.oplog.motions import MotionBody, OpinionBody
from converge_p2p.core.oplog.operation import Operation
from converge_p2p.core.oplog.succession import RecoverBody, RecoveryBody, SucceedBody, SuccessionBody
from converge_p2p.core.oplog.verdicts import VerdictBody
from converge_p2p.core.types import OperationId, PoolId, PublicKey, TaskId, ValueHash
from converge_p2p.core.view.admitting import may_join
from converge_p2p.core.view.attested import Attested
from converge_p2p.core.view.changes import EpochRegister
from converge_p2p.core.view.compacting import recall
from converge_p2p.core.view.coordination import Coordinated, Coordination
from converge_p2p.core.view.early import early_ballots
from converge_p2p.core.view.epochs import Counting, Epoch, Epochs, epoch_subject
from converge_p2p.core.view.evidence import Evidence
from converge_p2p.core.view.installing import next_register, note_strays
from converge_p2p.core.view.keys import KeyFold
from converge_p2p.core.view.members import Members
from converge_p2p.core.view.motions import Motions
from converge_p2p.core.view.register import Grant, Register, StandingClaim, Vote
from converge_p2p.core.view.settled import SettledTable
from converge_p2p.core.view.state import state_of, task_view
from converge_p2p.core.view.succession import Successions
from converge_p2p.core.view.tasks import Submitted, TaskRegister
from converge_p2p.core.view.trust import TrustFold
from converge_p2p.core.view.vetoes import Vetoes


class View:
    """The state of a pool, as the operations applied so far make it."""

    def __init__(self, pool: PoolId, protocol: ProtocolRules = ALL_RULES) -> None:
        self.pool = pool
        self.creator: PublicKey | None = None
        self.genesis = b""  # the signed founding operation, apart, so that a creator that forks cannot take it away
        self.successions = Successions(pool)
        self.members = Members(self.successions)
        self.keys = KeyFold()
        self.evidence = Evidence()
        self.motions = Motions(evidence=self.evidence)
        self.epochs = Epochs(pool, protocol)
        self.attested = Attested(self.epochs)
        self.registers: dict[TaskId, TaskRegister] = {}
        self.changes: dict[TaskId, EpochRegister] = {}
        """The registers of the epochs, by what votes on them name; the last is that of the next epoch."""
        self._next_change: EpochRegister | None = None
        self.open: dict[TaskId, None] = {}
        """Tasks and vetoes that are not settled, in the order in which they were first heard of."""
        self.vetoes = Vetoes(self.epochs, self.registers, self.open)
        self.strays: dict[TaskId, None] = {}
        """Settled subjects of which another value was accepted as well."""
        self.trust = TrustFold(self.registers, self.motions, self.epochs)
        self.coordination = Coordination(pool, self.members, self.registers, self._register, self.trust)

    @property
    def compacted(self) -> SettledTable:
        """Tasks that were settled below a checkpoint: of them only the end is known."""
        return self.trust.table

    @property
    def spec(self) -> PoolSpec | None:
        """The terms that hold now; None until the founding is known."""
        return self.epochs.current.spec if len(self.epochs) else None

    @property
    def electors(self) -> frozenset[PublicKey]:
        """Who votes now."""
        return self.epochs.current.electors if len(self.epochs) else frozenset()

    @property
    def counting(self) -> Counting:
        """How votes on tasks are counted now. Only after the founding."""
        return self.epochs.current.counting

    def subject(self, name: TaskId) -> Register | None:
        """The register that votes on a subject are counted in, or None if nothing of it is known."""
        # anybody can claim what is named like an epoch as if it were a task: that must not hide the epoch
        return self.changes.get(name) or self.vetoes.registers.get(name) or self.registers.get(name)

    @property
    def next_change(self) -> EpochRegister:
        """The register of the next epoch. Only after the founding."""
        assert self._next_change is not None
        return self._next_change

    def changes_at(self, number: int) -> EpochRegister:
        """The register that made an epoch, from 1, or makes the next."""
        return self.changes[epoch_subject(self.pool, number)]

    def try_install(self) -> Epoch | None:
        """Install the next epoch, if it is certified and everything it is made of is here. One at a time.

        The caller then takes back what the authors it cuts off did (see `cut`).
        """
        found = self.next_change.installable() if len(self.epochs) else None
        if found is None:
            return None
        value, promised = found
        try:
            rules = compile_rules(value.spec)
            check_admission(value.spec)
        except CodecError:
            # more than f electors lied, for no honest one endorses terms that cannot be safe; or a rule that the terms
            # name is not registered here, and nothing of that epoch can be judged
            return None
        return self._open(
            self.epochs.add(value.spec, rules, value=self.next_change.value, promised=promised, made_of=value)
        )

    def _open(self, epoch: Epoch) -> Epoch:
        following = self._next_change = next_register(self, epoch)
        self.changes[following.id] = following
        rules = epoch.counting.rules
        electorate = electorate_of(epoch.electors, rules, epoch.number)
        self.trust.touch(*self.motions.open_epoch(epoch.number, electorate))
        founders = {*epoch.electors, *(rules.veto.vetoers if rules.veto is not None else ())}
        if self.creator is not None and not epoch.number:
            founders.add(self.creator)
        self.members.found(founders, epoch.number)
        return epoch

    def cut(self, cut: Cut, voided: list[Operation], *, forked: bool = False) -> set[TaskId]:
        """Take back the data operations of a removed author beyond its cut. Votes stay.

        Args:
            cut: whose, and where.
            voided: its operations from there on that were applied.
            forked: whether a fork of it is still held: see `OperationLog.forked`.
        """
        touched = self._take_back(cut.author, cut.length, voided)
        self.motions.forget_beyond(cut.author, cut.length)
        self.members.expel(cut.author, cut.length)
        if not forked:
            self.members.thaw(cut.author)
            self.epochs.frozen.discard(cut.author)
        self.coordination.expel(cut.author, self.epochs.number)
        return touched

    def is_genesis(self, operation: Operation) -> bool:
        """Whether the operation founds this pool: the pool's id commits to it."""
        body = operation.body
        return isinstance(body, Genesis) and operation.seq == 0 and pool_id(operation.author, body.spec) == self.pool

    def apply(self, operation: Operation, *, judged: bool = False) -> tuple[TaskId, ...]:
        """Apply an operation that became part of its author's chain; called in chain order.

        Args:
            operation: what to apply.
            judged: a checkpoint retained it, which says that its author was a member there; this is not asked again,
                except where it can have changed since.

        Returns:
            The subjects it concerns.
        """
        body, author = operation.body, operation.author
        member = judged and operation.seq < self.successions.revocable_from(author)
        match body:
            case VoteBody():
                return self._apply_votes(operation, body, judged=judged)
            case OpinionBody():
                return self._apply_opinion(operation)
            case VetoBody() | EvidenceBody():
                return self._hear(operation, body)
            case Genesis():
                self._apply_genesis(operation, body)
                return ()
            case SucceedBody() | RecoverBody():
                if not operation.seq:
                    self.successions.enter(author)
                    self.successions.note(operation, body)
                return ()
            case RecoveryBody():
                self.successions.saw(author, body, operation.seq)
            case JoinBody():
                if member or self.may_join(author, operation.epoch, body.proof):
                    self.members.change(author, operation.seq, True, body.capabilities)
                return ()
            case CheckpointBody() | AttestBody():
                self.attested.add(operation)
                return ()
        # whether a commitment has an effect is asked as of what stands behind it
        member = member and not isinstance(body, RecoveryBody)
        if not (member or self.members.has_at(author, operation.epoch)):
            # whoever may have been a heir before, or becomes one: what was carried may rest on what it said
            return self.apply_loose(operation) if self.successions.may_inherit(author) else ()
        match body:
            case LeaveBody():
                self.members.change(author, operation.seq, False, ())
                return ()
            case _ if self.successions.ended(operation):
                return self.apply_loose(operation)
            case MotionBody():
                self.motions.add_motion(operation)
                self.trust.touch(TaskId(body.subject))
                return (self.next_change.id,)
            case ContentKeyBody() | PrekeyBody():
                self.keys.apply(operation, self.epochs)
                return ()
        if isinstance(body, SuccessionBody):
            self.successions.note(operation, body)
            return ()
        if isinstance(body, Coordinated):
            touched = self.coordination.apply(operation, body)
            self.trust.touch(*touched)
            return touched
        task = self._apply_data(operation)
        self.trust.touch(task)
        return (task,)

    def may_join(self, author: PublicKey, number: int, proof: bytes) -> bool:
        """Whether a join that names an epoch has an effect."""
        return may_join(self.pool, self.creator, self.epochs, self.members, author=author, number=number, proof=proof)

    def _apply_genesis(self, operation: Operation, body: Genesis) -> None:
        if len(self.epochs) or not self.is_genesis(operation):
            return
        rules = compile_rules(body.spec)
        self.creator, self.genesis = operation.author, operation.signed
        self._open(self.epochs.add(body.spec, rules))

    def _apply_data(self, operation: Operation) -> TaskId:
        body, author = operation.body, operation.author
        match body:
            case SubmitBody(spec):
                register = self._register(task_id(self.pool, author, spec.key))
                if register.submitted is None or register.submitted.delegate is not None:
                    # the author's chain decides between two submits with one key: the first stands
                    register.set_submitted(Submitted(operation.id, author, spec))
                    self.coordination.refresh(register.id)
                return register.id
            case ClaimBody(task, purpose, bid, reason, ref):
                self._claimed(task, purpose, operation.epoch).claims[operation.id] = StandingClaim(
                    operation.id, author, operation.seq, purpose, bid, reason, ref
                )
                return task
            case ReleaseBody(task, number, failed, _):
                named = self._named(task)
                named.withdrawn.setdefault(author, set()).add(operation.seq)
                token = Token(operation.epoch, number)
                named.releases.setdefault((author, token), {})[operation.id] = failed
                return task
            case ReportBody(task):
                token = Token(operation.epoch, body.round)
                about = self._voted_on(task, operation.epoch)
                about.add_report(token, operation.id, author, body)
                if not isinstance(about, EpochRegister):
                    self.trust.add_report(operation, body)
                self.vetoes.follow(about)
                return task
            case VerdictBody(task):
                judged = self._named(task)
                if isinstance(judged, TaskRegister):
                    judged.verdicts.add(operation, body)
                return task
        raise AssertionError(f"not a data operation: {body!r}")

    def _apply_opinion(self, operation: Operation) -> tuple[TaskId, ...]:
        motion = self.motions.add_opinion(operation)
        if motion is None:
            return ()
        known = self.motions.get(motion)
        if known is not None and known.task is not None:
            self.trust.touch(known.task)
        return (self.next_change.id,)

    def _hear(self, operation: Operation, body: VetoBody | EvidenceBody) -> tuple[TaskId, ...]:
        if isinstance(body, VetoBody):
            return self.vetoes.hear(operation, body)
        self.evidence.add(operation, body)
        self.trust.touch(body.task)
        # motions about the task may be decided by it, and whoever follows those needs it as long
        return (body.task, self.next_change.id)

    def _apply_votes(self, operation: Operation, body: VoteBody, *, judged: bool = False) -> tuple[TaskId, ...]:
        epoch = self.epochs.find(operation.epoch)
        if epoch is None or operation.author not in epoch.electors:
            return ()
        # what a vote that was retained says of tasks that were not is in the table
        self._count(operation, (one for one in body.ballots if not (judged and one.task in self.compacted)))
        return tuple({ballot.task: None for ballot in body.ballots})

    def _count(self, operation: Operation, ballots: Iterable[Ballot]) -> None:
        epoch, elector = operation.epoch, operation.author
        # the ballots of one operation nearly always are of one round, and they all stand in one place
        token, vote = Token(epoch, 0), Vote(operation.seq, operation.id)
        for phase, task, number, ref, lock, expired, held in ballots:
            if number != token.round:
                token = Token(epoch, number)
            register = self._voted_on(task, epoch)
            match phase:
                case Phase.GRANT:
                    # the reference is a claim operation; a grant of an unknown claim counts once the claim is known
                    grant = Grant(elector, OperationId(ref), lock, expired, vote.seq, held)
                    register.add_grant(token, vote.operation, grant)
                    if not isinstance(register, EpochRegister):
                        self.trust.add_grant(task, token, grant)
                case Phase.ENDORSE:
                    register.add_endorsement(token, elector, ValueHash(ref))
                case Phase.ACCEPT:
                    register.add_accept(token, elector, ValueHash(ref), vote)
                    self.trust.touch(task)
                    if register.settled is not None and not isinstance(register, EpochRegister):
                        self.vetoes.follow(register)
                        note_strays(self, register)

    def apply_early(self, operation: Operation, *, trusted: bool) -> tuple[Operation, ...] | None:
        """Count what an operation that waits for its predecessors says of the next epoch.

        Votes count wherever they stand. Of an elector that was removed nobody may have the operations before its last
        ones any more, and its votes may be what certified its removal, or its report what that was certified with.
        Promises are never among them: the cut is not below them, and where they stand matters.

        Returns:
            What was counted: the operation, with others that did not count before; nothing, if its author said too
            much; None if it says nothing of an epoch.
        """
        epoch = self.epochs.find(operation.epoch)
        if epoch is None or operation.author not in epoch.electors:
            return None
        change = self.changes_at(operation.epoch + 1)
        counted = change.admit_early(operation, trusted=trusted)
        for each in counted or ():
            self._count(each, early_ballots(change.id, each))
            change.keep_early(each)
        return counted

    def apply_loose(self, operation: Operation) -> tuple[TaskId, ...]:
        """Apply an operation of a frozen author: votes count under the electorate they name, data does not.

        The content of a reported value, or of a motion, is remembered all the same: a certificate may rest on it.
        """
        match operation.body:
            case VoteBody() as body:
                return self._apply_votes(operation, body)
            case OpinionBody():
                return self._apply_opinion(operation)
            case ReportBody(task) as body:
                register = self._voted_on(task, operation.epoch)
                register.add_value(body.value)
                self.trust.touch(task)
                self.vetoes.follow(register)
                return (task,)
            case VetoBody() | EvidenceBody() as body:
                return self._hear(operation, body)
            case RecoveryBody() as body:
                self.successions.saw(operation.author, body, operation.seq)
            case MotionBody() as motion:
                self.motions.add_void_motion(operation)
                self.trust.touch(TaskId(motion.subject))
                return (self.next_change.id,)
            case CheckpointBody() | AttestBody():
                # what was proposed is only content: attestations make it count
                self.attested.add(operation)
        return ()

    def void(self, author: PublicKey, seq: int, voided: list[Operation]) -> set[TaskId]:
        """Take back what an author that forked at `seq` wrote from there on and was applied (`voided`). Votes stay."""
        touched = self._take_back(author, seq, voided)
        self.members.freeze(author, seq)
        self.epochs.frozen.add(author)
        touched.update(self.coordination.freeze(author))
        self.trust.touch(*touched)
        return touched

    def refold(self, author: PublicKey, operations: list[Operation], base: int = 0) -> set[TaskId]:
        """Fold the chain of an author anew, because it took another's place, lost it, or its own was taken.

        Args:
            author: whose.
            operations: the whole chain, or what checkpoints retained of it and what stands above them.
            base: where that begins. Who was a member below is judged, except where that depends on other chains.
        """
        touched = self._take_back(author, 0, operations, again=True)
        self.members.forget(author)
        for operation in operations:
            if not isinstance(operation.body, (*VOTES, Genesis)):
                touched.update(self.apply(operation, judged=operation.seq < base))
        return touched

    def _take_back(self, author: PublicKey, seq: int, voided: list[Operation], *, again: bool = False) -> set[TaskId]:
        # content is remembered as by whoever hears of the fork first; if the chain is folded anew, that decides again
        touched: set[TaskId] = set()
        disputed: list[TaskId] = []
        for operation in voided:
            body = operation.body
            match body:
                case SubmitBody(spec):
                    task = task_id(self.pool, author, spec.key)
                    register = self.registers.get(task)
                    if register is not None and register.submitted is not None:
                        if register.submitted.operation == operation.id:
                            register.set_submitted(None)
                            self.coordination.refresh(task)
                        touched.add(task)
                case ClaimBody(task, purpose):
                    self._claimed(task, purpose, operation.epoch).claims.pop(operation.id, None)
                    touched.add(task)
                case ReleaseBody(task):
                    self._named(task).void_release(author, operation)
                    touched.add(task)
                case ReportBody(task):
                    token = Token(operation.epoch, body.round)
                    register_of = self._voted_on(task, operation.epoch)
                    if not again:
                        register_of.add_value(body.value)
                    register_of.round(token).reports.pop(operation.id, None)
                    self.trust.void_report(operation, body)
                    touched.add(task)
                case VerdictBody(task):
                    judged = self._named(task)
                    if isinstance(judged, TaskRegister):
                        judged.verdicts.void(operation, body)
                    touched.add(task)
                case MotionBody():
                    disputed.append(TaskId(body.subject))
                case _ if isinstance(body, SuccessionBody):
                    self.successions.void(operation, body)
                case _ if isinstance(body, Coordinated):
                    touched.update(self.coordination.void(operation, body))
        self.motions.void(author, seq, () if again else voided)
        self.keys.void(author, seq)
        self.trust.touch(*touched, *disputed)
        return touched

    def _voted_on(self, name: TaskId, epoch: int) -> Register:
        """The register of a subject, by the epoch that is named: each epoch votes on the one after it."""
        change = self.changes.get(name)
        if change is not None and change.number == epoch + 1:
            return change
        return self._named(name)

    def _claimed(self, name: TaskId, purpose: Purpose, epoch: int) -> Register:
        return self._voted_on(name, epoch) if purpose is Purpose.EPOCH else self._named(name)

    def _named(self, name: TaskId) -> Register:
        """The register of a veto, or of a task: what is not known to be a veto yet is taken for a task."""
        if name in self.vetoes.closed:
            return TaskRegister(name, self.epochs)
        return self.vetoes.registers.get(name) or self.registers.get(name) or self._register(name)

    def _register(self, task: TaskId) -> TaskRegister:
        register = self.registers.get(task)
        if register is None:
            register = recall(self, task)
        if register is None:
            register = self.registers[task] = TaskRegister(task, self.epochs, self.evidence)
            self.open[task] = None
        return register

    def task(self, task: TaskId, *, expired: bool = False) -> TaskView | None:
        """A task as an application sees it, or None if no submit of it is known; `expired` by local timers."""
        return task_view(self, task, expired=expired)

    def tasks(self) -> Iterator[TaskView]:
        """Every task whose submit is known, in the order in which they were first heard of."""
        for task in self.registers:
            view = self.task(task)
            if view is not None:
                yield view

    def state_bytes(self) -> bytes:
        """Canonical bytes of the decided state: equal on all replicas that hold the same operations."""
        return state_of(self)
