"""What the application may ask of a replica, and the operation that answers it.

Knows: who may do what, and what was asked already. Must not know: how an operation is signed, stored or sent.
Source: `docs/protocol.md`, operation kinds. A command that cannot be done raises and has changed nothing.
"""

from __future__ import annotations

from collections.abc import Callable

from converge_p2p.core import limits
from converge_p2p.core.errors import CodecError, Conflict, LimitExceeded, LocalError, NotAuthorised, NotFound
from converge_p2p.core.governance.admission import check_admission
from converge_p2p.core.governance.models import compile_rules
from converge_p2p.core.model.pool import PoolSpec, pool_id
from converge_p2p.core.model.task import TaskSpec, TaskState, TaskValue, task_id
from converge_p2p.core.oplog.bodies import (
    Body,
    ClaimBody,
    Genesis,
    JoinBody,
    LeaveBody,
    Purpose,
    ReleaseBody,
    SubmitBody,
    VetoBody,
)
from converge_p2p.core.oplog.motions import YES, MotionBody, MotionKind, OpinionBody
from converge_p2p.core.oplog.succession import RecoverBody, RotateBody, SucceedBody, SuccessionBody, is_signed
from converge_p2p.core.oplog.verdicts import VerdictBody
from converge_p2p.core.replica import events as ev, evidence_commands
from converge_p2p.core.replica.coordination import CoordinationCommand, CoordinationCommands
from converge_p2p.core.replica.private import PrivateContents
from converge_p2p.core.replica.proposer import Proposer
from converge_p2p.core.types import OperationId, PublicKey, TaskId
from converge_p2p.core.view.fold import View
from converge_p2p.core.view.succession import FOREVER
from converge_p2p.core.view.tasks import TaskRegister


class Commands:
    """Turns commands of the local identity into operation bodies."""

    def __init__(
        self,
        key: PublicKey,
        view: View,
        proposer: Proposer,
        contents: PrivateContents,
        length_of: Callable[[PublicKey], int],
    ) -> None:
        self._key = key
        self._pool = view.pool
        self._view = view
        self._proposer = proposer
        self._length_of = length_of
        self._contents = contents
        self._coordination = CoordinationCommands(key, view, length_of)
        self._submitting: dict[TaskId, TaskSpec] = {}
        self._founding = False
        self._handed_over: RotateBody | None = None

    def submitted(self, body: SubmitBody) -> None:
        """An own submit is durable, and from now on the fold remembers it."""
        self._submitting.pop(task_id(self._pool, self._key, body.spec.key), None)

    def body_for(self, command: ev.Command | CoordinationCommand, wall_ms: int) -> Body | None:
        """Return the operation a command asks for, or None if nothing has to be signed for it.

        Args:
            command: what is asked for.
            wall_ms: Unix time; what is offered only until then is not taken up later.

        Raises:
            LocalError, LimitExceeded: it cannot be done; nothing was changed.
        """
        if isinstance(command, ev.Found):
            return self._found(command)
        if self._view.spec is None:
            raise NotFound("the pool's founding terms are not known here yet", hint="wait until a member is connected")
        if isinstance(command, ev.Join):
            return self._join(JoinBody(tuple(sorted(set(command.capabilities))), command.proof))
        if isinstance(command, ev.Succeed) and isinstance(command.body, SucceedBody | RecoverBody):
            return self._take_place(command.body)
        if isinstance(command, ev.Succeed) and command.body == self._handed_over and not self._succeeded():
            # it is on its way to the disk
            return None
        self._check_not_succeeded()
        if not self._view.members.active(self._key):
            raise NotAuthorised("this node is not an active member of the pool", hint="join the pool first")
        match command:
            case ev.Succeed(body):
                checked = self._checked(body)
                if isinstance(checked, RotateBody):
                    self._handed_over = checked
                return checked
            case ev.Submit():
                return self._submit(command)
            case ev.Claim():
                return self._claim(command)
            case ev.Release():
                return self._release(command)
            case ev.Report():
                self._report(command)
                return None
            case ev.Cancel():
                return self._cancel(command)
            case ev.Leave():
                return LeaveBody()
            case ev.Move(motion):
                return self._move(motion)
            case ev.Veto():
                return self._veto(command)
            case ev.Judge():
                return self._judge(command)
            case ev.Cite():
                return evidence_commands.cite(self._view, self._key, command)
            case ev.Say(motion, choice):
                return self._say(motion, choice)
            case _:
                command = self._contents.command_to_coordinate(command)
                return self._coordination.body_for(command, epoch=self._view.epochs.number, wall_ms=wall_ms)

    def _found(self, command: ev.Found) -> Body:
        if self._view.spec is not None or self._founding:
            raise Conflict("the pool is founded already")
        if pool_id(self._key, command.spec) != self._pool:
            raise LocalError("the pool's id does not commit to these founding terms and this creator")
        try:
            command.spec.check()
            compile_rules(command.spec)
            check_admission(command.spec)
        except CodecError as error:
            raise LocalError(str(error), hint=error.hint) from error
        if command.spec.private and not self._contents.able:
            raise LocalError("this replica was made without entropy, and cannot found a private pool")
        self._founding = True
        return Genesis(command.spec)

    def _join(self, body: JoinBody) -> Body | None:
        assert self._view.spec is not None
        members = self._view.members
        self._check_not_succeeded()
        if not self._view.may_join(self._key, self._view.epochs.number, body.proof):
            raise NotAuthorised("the pool does not admit this agent", hint="ask its creator for admission")
        total = sum(len(name.encode()) for name in body.capabilities)
        if len(body.capabilities) > limits.CAPABILITIES_PER_TASK_MAX or total > limits.TEXT_BYTES_MAX:
            raise LimitExceeded("CAPABILITIES_PER_TASK_MAX", "too many capabilities, or too long")
        if len(body.proof) > limits.ADMISSION_PROOF_BYTES_MAX:
            raise LimitExceeded("ADMISSION_PROOF_BYTES_MAX", "the admission proof is too long")
        if members.has(self._key) and set(body.capabilities) <= set(members.capabilities(self._key)):
            return None
        return body

    def _succeeded(self) -> bool:
        return self._view.successions.folded(self._key).end < FOREVER

    def _check_not_succeeded(self) -> None:
        # what is signed behind a rotate that is not durable yet would be acknowledged, and have no effect
        if self._handed_over is not None or self._succeeded():
            raise NotAuthorised(
                "another key took the place of this node's in the pool", hint="run the node that has the new key"
            )

    def _take_place(self, body: SucceedBody | RecoverBody) -> SuccessionBody:
        if self._length_of(self._key):
            raise Conflict("this key has signed something in the pool before", hint="take a place with a new key")
        return self._checked(body)

    def _checked(self, body: SuccessionBody) -> SuccessionBody:
        if not is_signed(self._pool, self._key, body):
            raise LocalError("the other key did not sign that it agrees, or signed something else")
        return body

    def _submit(self, command: ev.Submit) -> Body | None:
        command.spec.check()
        spec = self._contents.spec_to_submit(command.spec)
        task = task_id(self._pool, self._key, spec.key)
        if task in self._view.compacted:
            # what it asked for is not known any more: submitting with one key twice is submitting once
            return None
        register = self._view.registers.get(task)
        before = self._submitting.get(task)
        if register is not None and register.submitted is not None:
            before = self._contents.open_spec(task, self._key, register.submitted.spec)
            if before is None:
                raise Conflict("a task was submitted with this key, and its content cannot be read here")
        if before is not None:
            if before != spec:
                raise Conflict(
                    "a different task was submitted with this key", hint="use another key, or submit the same task"
                )
            return None
        sealed = self._contents.seal_spec(spec)
        self._submitting[task] = spec
        return SubmitBody(sealed)

    def _move(self, motion: MotionBody) -> MotionBody:
        if motion.motion is not MotionKind.CHANGE:
            if motion.subject not in self._view.compacted:
                self._known(TaskId(motion.subject))
            return motion
        terms = motion.change.terms
        if terms is not None:
            try:
                compile_rules(terms)
            except CodecError as error:
                raise LocalError(str(error)) from error
            if terms.name != self._terms.name or terms.nonce != self._terms.nonce:
                raise LocalError("the name and the nonce of a pool never change", hint="keep those of its terms")
            if terms.private is not self._terms.private:
                raise LocalError("whether a pool is private never changes", hint="found another pool")
        if set(motion.change.expelled) & set((terms or self._terms).electors):
            raise LocalError("an elector can be expelled only by terms that no longer name it as an elector")
        return motion

    @property
    def _terms(self) -> PoolSpec:
        assert self._view.spec is not None
        return self._view.spec

    def _say(self, name: OperationId, choice: int | None) -> OpinionBody | None:
        motion = self._view.motions.get(name)
        if motion is None:
            raise NotFound(f"no motion {name.hex()[:12]} in this pool")
        if self._key not in self._view.electors:
            raise NotAuthorised("only electors have a say in motions")
        if choice is not None and not 0 <= choice < len(motion.options):
            raise LocalError(f"the motion has {len(motion.options)} options, numbered from 0")
        epoch = self._view.epochs.number
        if motion.task is None and motion.epoch != epoch:
            raise Conflict(
                f"the motion was moved in epoch {motion.epoch}, and epoch {epoch} has begun", hint="move it again"
            )
        return evidence_commands.choose(self._view, self._key, name, choice)

    def echo(self, name: OperationId) -> OpinionBody | None:
        """The opinion of a witness, who says yes to a change as soon as a decider does; None if it has none to give."""
        view, motion = self._view, self._view.motions.get(name)
        deciders, epoch = view.counting.rules.deciders, view.epochs.number
        if motion is None or motion.task is not None or motion.epoch != epoch or self._key in deciders:
            return None
        if view.motions.opinion(name, epoch, self._key):
            return None
        said = any(YES in view.motions.opinion(name, epoch, decider) for decider in deciders)
        return OpinionBody(name, YES) if said else None

    def _known(self, task: TaskId) -> TaskRegister:
        if task in self._view.compacted:
            raise Conflict(f"task {task.hex()[:12]} was settled before the last checkpoint")
        register = self._view.registers.get(task)
        if register is None or register.submitted is None:
            raise NotFound(f"no task {task.hex()[:12]} in this pool")
        return register

    def _open_register(self, task: TaskId) -> TaskRegister:
        register = self._known(task)
        if register.settled is not None:
            raise Conflict(f"task {task.hex()[:12]} is settled as {register.state.value}")
        return register

    def _claim(self, command: ev.Claim) -> Body | None:
        register = self._open_register(command.task)
        assert register.submitted is not None
        if self._proposer.stands(command.task, Purpose.WORK):
            return None
        lacking = set(register.submitted.spec.required_capabilities) - set(self._view.members.capabilities(self._key))
        if lacking:
            raise NotAuthorised(
                f"the task requires {', '.join(sorted(lacking))}", hint="join the pool with these capabilities"
            )
        if len(register.claims) >= limits.CLAIMS_PER_TASK_MAX:
            raise LimitExceeded("CLAIMS_PER_TASK_MAX", "too many stand for this task already")
        return ClaimBody(command.task, Purpose.WORK, command.bid)

    def _release(self, command: ev.Release) -> Body:
        register = self._open_register(command.task)
        token = self._proposer.holds(register)
        # a claim that was given back may be granted by electors that had not heard of it: it is given back again
        if token is None and not self._proposer.stands(command.task, Purpose.WORK):
            raise Conflict("this node has no claim on the task")
        self._proposer.finished.pop(command.task, None)
        number = -1 if token is None else token.round
        return ReleaseBody(command.task, number, command.failed and token is not None, _cut(command.reason))

    def _report(self, command: ev.Report) -> None:
        """Keep the finished work; the proposer reports it as soon as the claim is certified."""
        self._open_register(command.task)
        if command.outcome.state is TaskState.CANCELLED:
            raise LocalError("a worker reports that a task is completed or failed; cancel is the submitter's")
        if len(command.result) > limits.RESULT_BYTES_MAX:
            raise LimitExceeded(
                "RESULT_BYTES_MAX",
                f"the result has {len(command.result)} bytes, at most {limits.RESULT_BYTES_MAX} allowed",
                hint="store the content elsewhere and report a reference to it",
            )
        self._contents.check_result(command.result)
        if not self._proposer.stands(command.task, Purpose.WORK):
            raise Conflict("this node has no claim on the task", hint="claim it first")
        self._proposer.finished[command.task] = TaskValue(command.outcome, self._key, command.result)

    def _veto(self, command: ev.Veto) -> Body:
        register = self._known(command.task)
        if register.state.terminal:
            raise Conflict(f"task {command.task.hex()[:12]} is settled as {register.state.value}, for ever")
        veto = self._view.vetoes.registers.get(self._view.vetoes.twin(command.task) or command.task)
        if veto is None or register.awaiting is None or register.settled is None:
            raise Conflict("there is no result that could be denied or let pass", hint="wait until one is settled")
        if self._key not in veto.terms.vetoers:
            raise NotAuthorised("only the vetoers of the pool deny a result or let it pass")
        return VetoBody(command.task, register.settled, command.deny, _cut(command.reason))

    def _judge(self, command: ev.Judge) -> Body | None:
        register = self._open_register(command.task)
        if register.evaluator is None or not register.evaluator.is_agent(self._key):
            raise NotAuthorised("this node is not the evaluator of the task")
        waiting = [value.hash for value in register.to_judge()]
        if command.value is None and len(waiting) != 1:
            raise Conflict(
                f"{len(waiting)} results of the task wait for a verdict"
                if waiting
                else "no result waits for a verdict",
                hint="name the result by its hash" if waiting else "wait until whoever holds the task reports one",
            )
        name = waiting[0] if command.value is None else command.value
        value = register.values.get(name)
        if value is None:
            raise NotFound(f"no result {name.hex()[:12]} of the task was reported here")
        if register.verdict(value) in (True, command.approve):
            # one approval is enough, for ever
            return None
        return VerdictBody(command.task, name, command.approve, _cut(command.reason))

    def _cancel(self, command: ev.Cancel) -> Body | None:
        register = self._open_register(command.task)
        assert register.submitted is not None
        if register.submitted.author != self._key:
            raise NotAuthorised("only the submitter can cancel a task")
        if self._proposer.stands(command.task, Purpose.CANCEL):
            return None
        return ClaimBody(command.task, Purpose.CANCEL, 0, _cut(command.reason))


def _cut(text: str) -> str:
    return text.encode()[: limits.TEXT_BYTES_MAX].decode(errors="ignore")
