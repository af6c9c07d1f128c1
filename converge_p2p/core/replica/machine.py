"""The replica of one pool: events in, effects out, no clock, randomness or I/O inside.

Knows: the order in which things must happen (sign, persist, then send). Must not know: trio, sockets, files.
Source: sans-IO; `docs/protocol.md`. Production, tests and the simulator run this same code.

An own operation joins the log and the fold only when it is durable (`Persisted`). What must be remembered earlier, so
that two operations of one turn do not contradict each other, is noted when it is signed (`Elector`, `Proposer`, tip).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import assert_never

from converge_p2p.core import limits
from converge_p2p.core.codec import tagged_hash
from converge_p2p.core.errors import (
    CodecError,
    Conflict,
    LimitExceeded,
    LocalError,
    NotAuthorised,
    NotFound,
    RemoteViolation,
)
from converge_p2p.core.governance.admission import admits
from converge_p2p.core.governance.models import ALL_RULES, ProtocolRules, compile_rules
from converge_p2p.core.identity import Identity
from converge_p2p.core.model.pool import pool_id
from converge_p2p.core.model.task import TaskState, TaskValue, task_id
from converge_p2p.core.oplog.bodies import (
    Ballot,
    Body,
    ClaimBody,
    Genesis,
    JoinBody,
    LeaveBody,
    Purpose,
    ReleaseBody,
    SubmitBody,
    Token,
    VoteBody,
)
from converge_p2p.core.oplog.log import Inserted, OperationLog
from converge_p2p.core.oplog.operation import (
    Operation,
    decode_operation,
    merge_hlc,
    next_hlc,
    operation_id,
    sign_operation,
)
from converge_p2p.core.replica import events as ev
from converge_p2p.core.replica.elector import Elector, Patience, Wait
from converge_p2p.core.replica.events import Effect, Emit, Event, Notice, Now, SetTimer, TimerKey, TimerKind
from converge_p2p.core.replica.proposer import Proposer
from converge_p2p.core.replica.session import Sessions
from converge_p2p.core.replica.wire import (
    Digest,
    FrontierPage,
    GenesisWanted,
    Operations,
    SyncMessage,
    Want,
    decode_message,
    encode_message,
)
from converge_p2p.core.types import OperationId, PeerId, PoolId, PublicKey, TaskId
from converge_p2p.core.view.fold import View
from converge_p2p.core.view.register import TaskRegister

DIGEST_PEERS_MAX = 8
DIGEST_SOON_MS = 700
GENESIS_RETRY_MS = 1000
EPOCH = 0


@dataclass(slots=True)
class _Local:
    """What is known here and now about an open task, beside the fold.

    Attributes:
        expired: the round whose holder's time is over on the local clock.
        shown: what the application was told last.
    """

    patience: Patience = field(default_factory=Patience)
    expired: Token | None = None
    close_timer: bool = False
    shown: tuple[TaskState, Token | None, bool] | None = None


@dataclass(slots=True)
class _Tip:
    """The end of the own chain, operations that are not durable yet included."""

    seq: int = 0
    head: OperationId | None = None
    hlc: int = 0


class Replica:
    """One pool on one node. Everything happens in `handle`."""

    def __init__(
        self,
        identity: Identity,
        pool: PoolId,
        *,
        protocol: ProtocolRules = ALL_RULES,
        seed: int = 0,
        digest_interval_ms: int = limits.DIGEST_INTERVAL_MS,
    ) -> None:
        """Make a replica that knows nothing but the pool's id.

        Args:
            identity: who signs here; must hold its private key.
            pool: id of the pool.
            protocol: only the simulator changes it.
            seed: spreads the timers of different nodes.
            digest_interval_ms: how often the frontier's digest is sent when nothing happens.
        """
        self.identity = identity
        self.pool = pool
        self.log = OperationLog(pool)
        self.view = View(pool, protocol)
        self._elector: Elector | None = None
        self._proposer = Proposer(identity.public_key, self._emit)
        self._sessions = Sessions(self.log, self._send)
        self._digest_interval_ms = digest_interval_ms
        self._seed = seed
        self._draws = 0
        self._tip = _Tip()
        self._submitting: dict[TaskId, SubmitBody] = {}
        self._in_flight: dict[int, list[Operation]] = {}
        self._votes_in_flight = 0
        self._next_token = 0
        self._local: dict[TaskId, _Local] = {}
        self._dirty: dict[TaskId, None] = {}
        self._undecided: dict[TaskId, None] = {}
        self._closed: set[TaskId] = set()
        self._digest_at: int | None = None
        # collected during one turn
        self._now = Now(0, 0)
        self._effects: list[Effect] = []
        self._fresh: list[bytes] = []
        self._own: list[Operation] = []

    # ------------------------------------------------------------ reading

    @property
    def ready(self) -> bool:
        """Whether the founding terms are known."""
        return self.view.spec is not None

    @property
    def is_elector(self) -> bool:
        """Whether the local identity votes."""
        return self._elector is not None

    @property
    def peers(self) -> list[PeerId]:
        """Peers this replica synchronises with."""
        return list(self._sessions.peers)

    # ------------------------------------------------------------ the one entrance

    def handle(self, event: Event, now: Now) -> list[Effect]:
        """Take one event and return what the shell has to do, in order.

        Raises:
            LocalError: a command that cannot be done. Nothing was changed.
            LimitExceeded: a command with too large content. Nothing was changed.
        """
        self._now = now
        assert not self._effects
        try:
            self._dispatch(event)
            self._finish_turn()
            return self._effects
        finally:
            self._effects, self._fresh, self._own = [], [], []

    def _dispatch(self, event: Event) -> None:
        match event:
            case ev.Received(operations, peer):
                self._receive(operations, peer)
            case ev.SyncReceived(peer, payload):
                self._sync(peer, payload)
            case ev.Persisted(token):
                self._persisted(token)
            case ev.TimerFired(key):
                self._timer(key)
            case ev.PeerUp(peer):
                self._sessions.peer_up(peer)
                if not self.ready:
                    self._send(peer, GenesisWanted())
            case ev.PeerDown(peer):
                self._sessions.peer_down(peer)
            case ev.Restored(operations):
                self._restore(operations)
            case _:
                self._command(event)

    def _finish_turn(self) -> None:
        """Let proposer and elector act on what changed, then hand out what is to be stored."""
        dirty, self._dirty = self._dirty, {}
        for task in dirty:
            register = self.view.registers.get(task)
            if register is not None and task not in self._closed:
                self._propose(register)
                self._watch_claim(register)
                self._watch_failure(register)
                self._show(register)
                if self._elector is not None:
                    self._undecided[task] = None
        if self._elector is not None and not self._votes_in_flight:
            self._vote(self._elector)
        if self._fresh:
            self._persist(self._fresh, durable=False)
        if self._own:
            token = self._persist([operation.signed for operation in self._own], durable=True)
            self._in_flight[token] = list(self._own)
        if self._digest_at is None:
            self._set_digest_timer(self._digest_interval_ms if self.ready else GENESIS_RETRY_MS)

    def _persist(self, operations: list[bytes], *, durable: bool) -> int:
        token = self._next_token
        self._next_token += 1
        self._effects.append(ev.Persist(token, tuple(operations), durable))
        return token

    def _emit(self, notice: Notice) -> None:
        self._effects.append(Emit(notice))

    def _send(self, peer: PeerId, message: SyncMessage) -> None:
        self._effects.append(ev.Send(peer, encode_message(message)))

    def _jitter(self, bound_ms: int) -> int:
        self._draws += 1
        digest = tagged_hash("jitter", self._seed.to_bytes(16, "big"), self._draws.to_bytes(8, "big"))
        return int.from_bytes(digest[:8], "big") % max(1, bound_ms)

    # ------------------------------------------------------------ receiving

    def _receive(self, operations: tuple[bytes, ...], peer: PeerId | None) -> None:
        for signed in operations:
            if self.log.knows(operation_id(signed)):
                continue
            try:
                operation = decode_operation(signed, self.pool)
                self._check_author(operation)
                self._insert(operation, peer)
            except RemoteViolation as violation:
                self._emit(ev.Rejected(peer, violation.reason))
        if self.log.has_parked():
            self._absorb(self.log.unpark(), peer)

    def _check_author(self, operation: Operation) -> None:
        """Refuse what can never have an effect, by the founding terms alone, so that all nodes refuse the same."""
        spec = self.view.spec
        if isinstance(operation.body, Genesis):
            if not self.view.is_genesis(operation):
                raise RemoteViolation("bad_genesis", "the operation does not found this pool")
            try:
                compile_rules(operation.body.spec)
            except CodecError as error:
                raise RemoteViolation("bad_genesis", str(error)) from error
            return
        if spec is None:
            raise RemoteViolation("no_genesis", "the pool's founding terms are not known here yet")
        if operation.seq == 0 and operation.author not in self.view.electors:
            body = operation.body
            if not isinstance(body, JoinBody) or not admits(spec, operation.author):
                raise RemoteViolation("not_member", "the author's first operation is not a join that is admitted")

    def _insert(self, operation: Operation, peer: PeerId | None) -> None:
        mine = operation.author == self.identity.public_key
        if mine and self._in_flight:
            raise RemoteViolation("own_chain", "an operation in our name while our own are being written")
        inserted = self.log.insert(operation)
        self._absorb(inserted, peer)
        self._tip.hlc = merge_hlc(self._now.wall_ms, self._tip.hlc, operation.hlc)

    def _absorb(self, inserted: Inserted, peer: PeerId | None) -> None:
        for operation in inserted.accepted:
            self._apply(operation)
        if inserted.forked is not None:
            seq = self.log.frozen_at(inserted.forked)
            assert seq is not None
            self._touch(*self.view.void(inserted.forked, seq, inserted.voided))
            self._emit(ev.ForkDetected(inserted.forked, seq))
        for operation in inserted.loose:
            self._touch(*self.view.apply_loose(operation))
        self._fresh.extend(operation.signed for operation in inserted.kept)
        if inserted.missing is not None:
            self._sessions.on_gap(peer, inserted.missing, self._now.mono_ms)
        if inserted.accepted or inserted.loose:
            self._digest_soon()

    def _apply(self, operation: Operation) -> None:
        """Fold an operation that became part of a chain."""
        body, author = operation.body, operation.author
        if author == self.identity.public_key:
            self._note_own(operation)
        was_member = self.view.members.has(author) if isinstance(body, JoinBody | LeaveBody) else False
        touched = self.view.apply(operation)
        if isinstance(body, Genesis) and self.ready:
            self._begin()
        elif isinstance(body, JoinBody | LeaveBody):
            is_member = self.view.members.has(author)
            if is_member != was_member:
                self._emit(ev.MembersChanged(Identity.from_public_key(author).id, is_member))
        elif isinstance(touched, tuple):
            self._touch(*touched)
        elif touched is not None:
            self._touch(touched)

    def _touch(self, *tasks: TaskId) -> None:
        for task in tasks:
            self._dirty[task] = None

    def _begin(self) -> None:
        if self.identity.public_key in self.view.electors:
            self._elector = Elector(self.identity.public_key, self.view)
        self._emit(ev.PoolReady())

    def _note_own(self, operation: Operation) -> None:
        """An own operation that did not come through `_sign`: read back, or learned from others after a loss."""
        if operation.seq < self._tip.seq:
            return
        self._tip.seq, self._tip.head = operation.seq + 1, operation.id
        self._tip.hlc = max(self._tip.hlc, operation.hlc)
        self._remember(operation.epoch, operation.body)

    def _remember(self, epoch: int, body: Body) -> None:
        if isinstance(body, VoteBody):
            if self._elector is not None:
                self._elector.note_own(epoch, body.ballots)
        else:
            self._proposer.note_own(epoch, body)

    def _restore(self, operations: tuple[bytes, ...]) -> None:
        assert not len(self.log), "Restored comes first"
        for signed in operations:
            try:
                operation = decode_operation(signed, self.pool, trusted=True)
                self._absorb(self.log.insert(operation), None)
            except RemoteViolation as violation:
                self._emit(ev.Rejected(None, f"store_{violation.reason}"))
        self._fresh.clear()
        self._touch(*self.view.open)

    # ------------------------------------------------------------ sync

    def _sync(self, peer: PeerId, payload: bytes) -> None:
        try:
            message = decode_message(payload)
        except CodecError:
            self._emit(ev.Rejected(peer, "bad_sync_message"))
            return
        now_ms = self._now.mono_ms
        match message:
            case Digest():
                self._sessions.on_digest(peer, message, now_ms)
            case FrontierPage():
                self._sessions.on_frontier(peer, message, now_ms)
            case Want():
                self._sessions.on_want(peer, message)
            case Operations(operations):
                self._receive(operations, peer)
                self._sessions.on_operations(peer, message, now_ms)
            case GenesisWanted():
                if self.view.creator is not None:
                    self._sessions.on_genesis_wanted(peer, self.view.creator)
            case _:
                assert_never(message)

    def _digest_soon(self) -> None:
        soon = self._now.mono_ms + DIGEST_SOON_MS
        if self._digest_at is None or self._digest_at > soon + DIGEST_SOON_MS:
            self._set_digest_timer(DIGEST_SOON_MS)

    def _set_digest_timer(self, interval_ms: int) -> None:
        self._digest_at = self._now.mono_ms + interval_ms + self._jitter(interval_ms // 4)
        self._effects.append(SetTimer(TimerKey(TimerKind.DIGEST), self._digest_at))

    # ------------------------------------------------------------ own operations

    def _sign(self, body: Body) -> Operation:
        hlc = next_hlc(self._now.wall_ms, self._tip.hlc)
        operation = sign_operation(
            self.identity, self.pool, body, seq=self._tip.seq, prev=self._tip.head, epoch=EPOCH, hlc=hlc
        )
        self._tip.seq, self._tip.head, self._tip.hlc = operation.seq + 1, operation.id, hlc
        self._remember(EPOCH, body)
        self._own.append(operation)
        return operation

    def _persisted(self, token: int) -> None:
        operations = self._in_flight.pop(token, None)
        if operations is None:
            return
        for operation in operations:
            body = operation.body
            if isinstance(body, VoteBody):
                self._votes_in_flight -= 1
                self._touch(*(ballot.task for ballot in body.ballots))
            elif isinstance(body, SubmitBody):
                self._submitting.pop(task_id(self.pool, operation.author, body.spec.key), None)
            inserted = self.log.insert(operation)
            self._absorb(inserted, None)
            self._emit(ev.Acknowledged(operation.id))
        own = {operation.signed for operation in operations}
        self._fresh = [signed for signed in self._fresh if signed not in own]
        self._effects.append(ev.Publish(tuple(operation.signed for operation in operations)))

    def _vote(self, elector: Elector) -> None:
        """Cast every ballot that is due, under as few signatures as possible.

        While an own vote is being written the next ones collect (group commit): `_undecided` keeps their tasks.
        """
        tasks, self._undecided = self._undecided, {}
        ballots: list[Ballot] = []
        for task in tasks:
            register = self.view.registers.get(task)
            if register is None or register.settled is not None:
                elector.forget(task)
                continue
            patience = self._local.setdefault(task, _Local()).patience
            due = elector.consider(register, patience, functools.partial(self._wait, task))
            elector.note_own(EPOCH, tuple(due))
            ballots.extend(due)
        for part in _vote_parts(ballots):
            self._sign(VoteBody(part))
            self._votes_in_flight += 1

    def _wait(self, task: TaskId, wait: Wait) -> None:
        kind = TimerKind.HOLD_OFF if wait.what == "hold_off" else TimerKind.GRANT
        self._effects.append(SetTimer(TimerKey(kind, task), self._now.mono_ms + wait.delay_ms))

    def _propose(self, register: TaskRegister) -> None:
        report = self._proposer.consider(register)
        if report is not None:
            self._sign(report)

    # ------------------------------------------------------------ time

    def _timer(self, key: TimerKey) -> None:
        if key.kind is TimerKind.DIGEST:
            self._digest_at = None
            if self.ready:
                self._sessions.digests(self._some_peers())
            else:
                self._sessions.want_genesis()
            return
        task = key.task
        local = None if task is None else self._local.get(task)
        register = None if task is None else self.view.registers.get(task)
        if task is None or local is None or register is None or register.settled is not None:
            return
        patience = local.patience
        match key.kind:
            case TimerKind.HOLD_OFF:
                patience.hold_off_over, patience.holding_off = True, False
            case TimerKind.GRANT:
                token = patience.grant_timer
                if token is not None and register.certified_id(token) is None:
                    _open(patience, token)
            case TimerKind.CLAIM:
                if patience.claim_timer is not None and patience.claim_timer == register.top:
                    local.expired = patience.claim_timer
                    _open(patience, patience.claim_timer)
            case TimerKind.CLOSE:
                local.close_timer = False
                if self._needs_closing(register) and not self._proposer.stands(task, Purpose.FAIL):
                    self._sign(ClaimBody(task, Purpose.FAIL, 0, "every attempt failed or ran out of time"))
        self._touch(task)

    def _some_peers(self) -> list[PeerId]:
        peers = list(self._sessions.peers)
        if len(peers) <= DIGEST_PEERS_MAX:
            return peers
        start = self._jitter(len(peers))
        return [peers[(start + index) % len(peers)] for index in range(DIGEST_PEERS_MAX)]

    def _watch_claim(self, register: TaskRegister) -> None:
        """Measure the holder's time on the local clock, from when its certificate was first seen."""
        if register.settled is not None:
            return
        top = register.top
        if top is None or register.certified_id(top) is None or register.submitted is None:
            return
        patience = self._local.setdefault(register.id, _Local()).patience
        if patience.claim_timer == top:
            return
        patience.claim_timer = top
        assert self.view.spec is not None
        base = register.submitted.spec.claim_ttl_ms or self.view.spec.policy.claim_ttl_ms
        ttl = min(base << min(top.round, limits.CLAIM_TTL_DOUBLINGS_MAX), limits.CLAIM_TTL_MS_MAX)
        self._effects.append(SetTimer(TimerKey(TimerKind.CLAIM, register.id), self._now.mono_ms + ttl))

    def _watch_failure(self, register: TaskRegister) -> None:
        """When no retry is left, somebody has to stand for settling the failure: one after the other."""
        if register.settled is not None or register.submitted is None or not self._needs_closing(register):
            return
        me = self.identity.public_key
        local = self._local.setdefault(register.id, _Local())
        if local.close_timer or (me != register.submitted.author and me not in self.view.electors):
            return
        local.close_timer = True
        others = sorted(self.view.electors - {register.submitted.author}, key=lambda key: _close_rank(register.id, key))
        turn = 0 if me == register.submitted.author else 1 + others.index(me)
        assert self.view.spec is not None
        delay = turn * 2 * self.view.spec.policy.grant_timer_ms
        self._effects.append(SetTimer(TimerKey(TimerKind.CLOSE, register.id), self._now.mono_ms + delay))

    def _needs_closing(self, register: TaskRegister) -> bool:
        assert self.view.spec is not None
        if not register.exhausted(self.view.spec.policy.max_retries):
            return False
        superseded = {claim.operation for token, claim in register.held_rounds() if token != register.top}
        return not any(
            claim.purpose is Purpose.FAIL and register.stands(claim) and claim.operation not in superseded
            for claim in register.claims.values()
        )

    def _show(self, register: TaskRegister) -> None:
        """Tell the application when a task looks different."""
        if register.submitted is None:
            return
        local = self._local.setdefault(register.id, _Local())
        top, state = register.top, register.state
        expired = local.expired is not None and local.expired == top and not state.terminal
        shown = (state, top if state is TaskState.ASSIGNED else None, expired)
        if shown == local.shown:
            return
        local.shown = shown
        token = register.settled_token if state.terminal else top
        number, epoch = (-1, EPOCH) if token is None else (token.round, token.epoch)
        self._emit(ev.TaskChanged(register.id, state, epoch, number))
        if state.terminal:
            self._closed.add(register.id)
            del self._local[register.id]

    def claimable(self, task: TaskId) -> bool:
        """Whether the holder's time is over on the local clock, or nobody holds the task."""
        register, local = self.view.registers.get(task), self._local.get(task)
        if register is None or register.state.terminal:
            return False
        expired = local is not None and local.expired is not None and local.expired == register.top
        return expired or register.state is TaskState.PENDING

    # ------------------------------------------------------------ commands

    def _command(self, command: ev.Command) -> None:
        if isinstance(command, ev.Found):
            self._found(command)
            return
        if not self.ready:
            raise NotFound("the pool's founding terms are not known here yet", hint="wait until a member is connected")
        if not isinstance(command, ev.Join) and not self.view.members.active(self.identity.public_key):
            raise NotAuthorised("this node is not an active member of the pool", hint="join the pool first")
        match command:
            case ev.Submit():
                self._submit(command)
            case ev.Claim():
                self._claim(command)
            case ev.Release():
                self._release(command)
            case ev.Report():
                self._report(command)
            case ev.Cancel():
                self._cancel(command)
            case ev.Join(capabilities, proof):
                self._join(JoinBody(tuple(sorted(set(capabilities))), proof))
            case ev.Leave():
                self._sign(LeaveBody())
            case _:
                assert_never(command)

    def _found(self, command: ev.Found) -> None:
        if self.ready or self._tip.seq:
            raise Conflict("the pool is founded already")
        if pool_id(self.identity.public_key, command.spec) != self.pool:
            raise LocalError("the pool's id does not commit to these founding terms and this creator")
        try:
            command.spec.check()
            compile_rules(command.spec)
        except CodecError as error:
            raise LocalError(str(error)) from error
        self._sign(Genesis(command.spec))

    def _join(self, body: JoinBody) -> None:
        me = self.identity.public_key
        assert self.view.spec is not None
        if me not in self.view.electors and not admits(self.view.spec, me):
            raise NotAuthorised("the pool does not admit this agent", hint="ask its creator for admission")
        if self.view.members.has(me) and set(body.capabilities) <= set(self.view.members.capabilities(me)):
            return
        self._sign(body)

    def _submit(self, command: ev.Submit) -> None:
        command.spec.check()
        task = task_id(self.pool, self.identity.public_key, command.spec.key)
        register = self.view.registers.get(task)
        before = register.submitted.spec if register is not None and register.submitted is not None else None
        if before is None and task in self._submitting:
            before = self._submitting[task].spec
        if before is not None:
            if before != command.spec:
                raise Conflict(
                    "a different task was submitted with this key", hint="use another key, or submit the same task"
                )
            return
        self._submitting[task] = SubmitBody(command.spec)
        self._sign(self._submitting[task])

    def _open_register(self, task: TaskId) -> TaskRegister:
        register = self.view.registers.get(task)
        if register is None or register.submitted is None:
            raise NotFound(f"no task {task.hex()[:12]} in this pool")
        if register.settled is not None:
            raise Conflict(f"task {task.hex()[:12]} is settled as {register.state.value}")
        return register

    def _claim(self, command: ev.Claim) -> None:
        register = self._open_register(command.task)
        assert register.submitted is not None
        if self._proposer.stands(command.task, Purpose.WORK):
            return
        lacking = set(register.submitted.spec.required_capabilities) - set(
            self.view.members.capabilities(self.identity.public_key)
        )
        if lacking:
            raise NotAuthorised(
                f"the task requires {', '.join(sorted(lacking))}", hint="join the pool with these capabilities"
            )
        if len(register.claims) >= limits.CLAIMS_PER_TASK_MAX:
            raise LimitExceeded("CLAIMS_PER_TASK_MAX", "too many stand for this task already")
        self._sign(ClaimBody(command.task, Purpose.WORK, command.bid))

    def _release(self, command: ev.Release) -> None:
        register = self._open_register(command.task)
        if not self._proposer.stands(command.task, Purpose.WORK):
            raise Conflict("this node has no claim on the task")
        token = self._proposer.holds(register)
        self._proposer.finished.pop(command.task, None)
        number = -1 if token is None else token.round
        self._sign(ReleaseBody(command.task, number, command.failed and token is not None, _cut(command.reason)))

    def _report(self, command: ev.Report) -> None:
        register = self._open_register(command.task)
        if command.outcome.state is TaskState.CANCELLED:
            raise LocalError("a worker reports that a task is completed or failed; cancel is the submitter's")
        if len(command.result) > limits.RESULT_BYTES_MAX:
            raise LimitExceeded(
                "RESULT_BYTES_MAX",
                f"the result has {len(command.result)} bytes, at most {limits.RESULT_BYTES_MAX} allowed",
                hint="store the content elsewhere and report a reference to it",
            )
        if not self._proposer.stands(command.task, Purpose.WORK):
            raise Conflict("this node has no claim on the task", hint="claim it first")
        self._proposer.finished[command.task] = TaskValue(command.outcome, self.identity.public_key, command.result)
        self._touch(register.id)

    def _cancel(self, command: ev.Cancel) -> None:
        register = self._open_register(command.task)
        assert register.submitted is not None
        if register.submitted.author != self.identity.public_key:
            raise NotAuthorised("only the submitter can cancel a task")
        if not self._proposer.stands(command.task, Purpose.CANCEL):
            self._sign(ClaimBody(command.task, Purpose.CANCEL, 0, _cut(command.reason)))


def _open(patience: Patience, token: Token) -> None:
    patience.open_round = token if patience.open_round is None else max(patience.open_round, token)


def _cut(text: str) -> str:
    return text.encode()[: limits.TEXT_BYTES_MAX].decode(errors="ignore")


def _close_rank(task: TaskId, key: PublicKey) -> bytes:
    return tagged_hash("close-rank", task, key)


def _vote_parts(ballots: list[Ballot]) -> list[tuple[Ballot, ...]]:
    size = limits.BALLOTS_PER_VOTE_MAX
    return [tuple(ballots[start : start + size]) for start in range(0, len(ballots), size)]
