"""The fold of a pool: operations in, members and task registers out.

Knows: which operations have an effect. Must not know: where operations come from, or time.
Source: `docs/protocol.md`, fold. Every effect is judged by the author's own chain and the epoch the operation names,
never by "the state right now", so that acceptance does not depend on the order of delivery.
"""

from __future__ import annotations

from collections.abc import Iterator

from converge_p2p.core.codec import encode
from converge_p2p.core.governance.admission import admits
from converge_p2p.core.governance.models import ALL_RULES, ProtocolRules, compile_rules
from converge_p2p.core.model.pool import PoolSpec, pool_id
from converge_p2p.core.model.task import TaskState, TaskView, task_id
from converge_p2p.core.oplog.bodies import (
    Ballot,
    ClaimBody,
    Genesis,
    JoinBody,
    LeaveBody,
    Phase,
    ReleaseBody,
    ReportBody,
    SubmitBody,
    Token,
    VoteBody,
)
from converge_p2p.core.oplog.key_bodies import ContentKeyBody, PrekeyBody
from converge_p2p.core.oplog.operation import Operation
from converge_p2p.core.types import OperationId, PoolId, PublicKey, TaskId, ValueHash
from converge_p2p.core.view.keys import KeyFold
from converge_p2p.core.view.members import Members
from converge_p2p.core.view.register import Counting, Grant, StandingClaim, Submitted, TaskRegister


class View:
    """The state of a pool, as the operations applied so far make it."""

    def __init__(self, pool: PoolId, protocol: ProtocolRules = ALL_RULES) -> None:
        self.pool = pool
        self.spec: PoolSpec | None = None
        self.creator: PublicKey | None = None
        self.genesis = b""
        """The signed founding operation, kept apart so that a creator that forks cannot take it away."""
        self.members = Members()
        self.keys = KeyFold()
        self.registers: dict[TaskId, TaskRegister] = {}
        self.open: dict[TaskId, None] = {}
        """Tasks that are not settled, in the order in which they were first heard of."""
        self._protocol = protocol
        self._counting: Counting | None = None
        self._electors: frozenset[PublicKey] = frozenset()

    # ------------------------------------------------------------ applying

    @property
    def counting(self) -> Counting:
        """How votes are counted. Only after the genesis."""
        assert self._counting is not None
        return self._counting

    @property
    def electors(self) -> frozenset[PublicKey]:
        """Who votes."""
        return self._electors

    def is_genesis(self, operation: Operation) -> bool:
        """Whether the operation founds this pool: the pool's id commits to it."""
        body = operation.body
        return isinstance(body, Genesis) and operation.seq == 0 and pool_id(operation.author, body.spec) == self.pool

    def apply(self, operation: Operation) -> TaskId | tuple[TaskId, ...] | None:
        """Apply an operation that became part of its author's chain; called in chain order.

        Returns:
            The tasks it concerns.
        """
        body, author = operation.body, operation.author
        if isinstance(body, VoteBody):
            return self._apply_votes(operation, body)
        if isinstance(body, Genesis):
            self._apply_genesis(operation, body)
            return None
        if isinstance(body, JoinBody):
            if self.spec is not None and (author in self._electors or admits(self.spec, author)):
                self.members.change(author, operation.seq, True, body.capabilities)
            return None
        if not self.members.has(author):
            return None
        if isinstance(body, LeaveBody):
            self.members.change(author, operation.seq, False, ())
            return None
        if isinstance(body, ContentKeyBody | PrekeyBody):
            self.keys.apply(operation, self._electors)
            return None
        return self._apply_data(operation)

    def _apply_genesis(self, operation: Operation, body: Genesis) -> None:
        if self.spec is not None or not self.is_genesis(operation):
            return
        rules = compile_rules(body.spec)
        self.spec, self.creator, self.genesis = body.spec, operation.author, operation.signed
        self._counting = Counting(rules, self._protocol)
        self._electors = frozenset(body.spec.electors)
        self.members.found(self._electors | {operation.author})

    def _apply_data(self, operation: Operation) -> TaskId:
        body, author = operation.body, operation.author
        match body:
            case SubmitBody(spec):
                register = self._register(task_id(self.pool, author, spec.key))
                if register.submitted is None:
                    # the author's chain decides between two submits with one key: the first stands
                    register.submitted = Submitted(operation.id, author, spec)
                return register.id
            case ClaimBody(task, purpose, bid, reason):
                self._register(task).claims[operation.id] = StandingClaim(
                    operation.id, author, operation.seq, purpose, bid, reason
                )
                return task
            case ReleaseBody(task, number, failed, _):
                register = self._register(task)
                register.withdrawn.setdefault(author, set()).add(operation.seq)
                token = Token(operation.epoch, number)
                register.releases.setdefault((author, token), {})[operation.id] = failed
                return task
            case ReportBody(task):
                self._register(task).add_report(Token(operation.epoch, body.round), operation.id, author, body)
                return task
        raise AssertionError(f"not a data operation: {body!r}")

    def _apply_votes(self, operation: Operation, body: VoteBody) -> tuple[TaskId, ...]:
        if operation.author not in self._electors:
            return ()
        for ballot in body.ballots:
            self._apply_ballot(operation, ballot)
        return tuple({ballot.task: None for ballot in body.ballots})

    def _apply_ballot(self, operation: Operation, ballot: Ballot) -> None:
        register = self._register(ballot.task)
        token, elector = Token(operation.epoch, ballot.round), operation.author
        match ballot.phase:
            case Phase.GRANT:
                # the reference is a claim operation; a grant of an unknown claim counts once the claim is known
                register.add_grant(
                    token, operation.id, Grant(elector, OperationId(ballot.ref), ballot.lock, ballot.expired)
                )
            case Phase.ENDORSE:
                register.add_endorsement(token, elector, ValueHash(ballot.ref))
            case Phase.ACCEPT:
                register.add_accept(token, elector, ValueHash(ballot.ref), operation.id)
                if register.settled is not None:
                    self.open.pop(register.id, None)

    def apply_loose(self, operation: Operation) -> tuple[TaskId, ...]:
        """Apply an operation of a frozen author: votes count under the electorate they name, data does not.

        The content of a reported value is remembered all the same: a certificate may rest on it.
        """
        body = operation.body
        if isinstance(body, VoteBody):
            return self._apply_votes(operation, body)
        if isinstance(body, ReportBody):
            self._register(body.task).add_value(body.value)
            return (body.task,)
        return ()

    def void(self, author: PublicKey, seq: int, voided: list[Operation]) -> set[TaskId]:
        """Take back the data operations of an author that forked at `seq`. Votes stay.

        Args:
            voided: its operations from `seq` on that were applied.
        """
        touched: set[TaskId] = set()
        for operation in voided:
            body = operation.body
            match body:
                case SubmitBody(spec):
                    task = task_id(self.pool, author, spec.key)
                    register = self.registers.get(task)
                    if register is not None and register.submitted is not None:
                        if register.submitted.operation == operation.id:
                            register.submitted = None
                        touched.add(task)
                case ClaimBody(task):
                    self._register(task).claims.pop(operation.id, None)
                    touched.add(task)
                case ReleaseBody(task):
                    self._void_release(self._register(task), author, operation)
                    touched.add(task)
                case ReportBody(task):
                    token = Token(operation.epoch, body.round)
                    self._register(task).round(token).reports.pop(operation.id, None)
                    touched.add(task)
        self.members.freeze(author, seq)
        self.keys.void(author, seq)
        return touched

    def _void_release(self, register: TaskRegister, author: PublicKey, operation: Operation) -> None:
        for key in [key for key in register.releases if key[0] == author]:
            register.releases[key].pop(operation.id, None)
            if not register.releases[key]:
                del register.releases[key]
        register.withdrawn.get(author, set()).discard(operation.seq)

    def _register(self, task: TaskId) -> TaskRegister:
        register = self.registers.get(task)
        if register is None:
            register = self.registers[task] = TaskRegister(task, self.counting)
            self.open[task] = None
        return register

    # ------------------------------------------------------------ reading

    def task(self, task: TaskId, *, expired: bool = False) -> TaskView | None:
        """A task as an application sees it, or None if no submit of it is known.

        Args:
            expired: what the caller knows from local timers: the holder's time is over.
        """
        register = self.registers.get(task)
        if register is None or register.submitted is None:
            return None
        submitted, top = register.submitted, register.top
        state, holder = register.state, register.holder
        shown = register.settled_token if state.terminal else top
        return TaskView(
            id=task,
            pool_id=self.pool,
            submitter=submitted.author,
            spec=submitted.spec,
            state=state,
            epoch=0 if shown is None else shown.epoch,
            round=-1 if shown is None else shown.round,
            assigned_to=holder.author if state is TaskState.ASSIGNED and holder is not None else None,
            value=register.value,
            attempts=register.attempts(),
            certified=state is not TaskState.PENDING,
            expired=expired,
        )

    def tasks(self) -> Iterator[TaskView]:
        """Every task whose submit is known, in the order in which they were first heard of."""
        for task in self.registers:
            view = self.task(task)
            if view is not None:
                yield view

    def state_bytes(self) -> bytes:
        """Canonical bytes of the decided state: equal on all replicas that hold the same operations."""
        tasks = []
        for task in sorted(self.registers):
            register = self.registers[task]
            if register.settled is not None:
                tasks.append([task, 1, register.settled])
            elif register.submitted is not None:
                top = register.top
                claim = None if top is None else register.certified_id(top)
                released = register.holder is None
                round_now = None if top is None else list(top)
                tasks.append([task, 0, register.submitted.operation, round_now, claim, released, register.failures()])
        frozen = [[author, seq] for author, seq in sorted(self.members.frozen().items())]
        return encode([self.pool, self.members.all(), frozen, tasks])
