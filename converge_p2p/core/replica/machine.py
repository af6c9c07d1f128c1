"""The replica of one pool: events in, effects out, no clock, randomness or I/O inside.

Knows: the order in which things must happen (sign, persist, then send). Must not know: trio, sockets, files.
Source: sans-IO; `docs/protocol.md`. Production, tests and the simulator run this same code.

An own operation joins the log and the fold only when it is durable (`Persisted`). What must be remembered earlier, so
that two operations of one turn do not contradict each other, is noted when it is signed (`Elector`, `Proposer`, tip).
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from converge_p2p.core import limits
from converge_p2p.core.errors import CodecError, RemoteViolation
from converge_p2p.core.governance.models import ALL_RULES, ProtocolRules
from converge_p2p.core.identity import Identity
from converge_p2p.core.oplog.bodies import Body, Genesis, JoinBody, LeaveBody, SubmitBody, VoteBody
from converge_p2p.core.oplog.log import Inserted, OperationLog
from converge_p2p.core.oplog.motions import YES, MotionBody, MotionKind, OpinionBody
from converge_p2p.core.oplog.operation import Operation, decode_operation, operation_id
from converge_p2p.core.replica import events as ev, wire
from converge_p2p.core.replica.checkpointer import Checkpointer
from converge_p2p.core.replica.commands import Commands
from converge_p2p.core.replica.compaction import Compaction, Means
from converge_p2p.core.replica.coordination import CoordinationCommand
from converge_p2p.core.replica.coordination_notices import changed_by
from converge_p2p.core.replica.digests import Digests
from converge_p2p.core.replica.doorkeeper import check_author
from converge_p2p.core.replica.duty import claim_of_duty, duty_of
from converge_p2p.core.replica.elector import Elector
from converge_p2p.core.replica.events import Effect, Emit, Event, Notice, Now, SetTimer, TimerKey, TimerKind
from converge_p2p.core.replica.holdings import Holdings
from converge_p2p.core.replica.installing import Installer, out_of_chain
from converge_p2p.core.replica.judging import Judging
from converge_p2p.core.replica.own_tip import OwnTip
from converge_p2p.core.replica.pen import Pen
from converge_p2p.core.replica.private import PrivateContents
from converge_p2p.core.replica.proposer import Proposer
from converge_p2p.core.replica.renewal import Renewal
from converge_p2p.core.replica.renewing import Renewals
from converge_p2p.core.replica.session import Sessions
from converge_p2p.core.replica.voting import Voting
from converge_p2p.core.replica.watch import TaskWatch
from converge_p2p.core.types import OperationId, PeerId, PoolId, PublicKey, TaskId
from converge_p2p.core.view.fold import View
from converge_p2p.core.view.register import Register


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
        entropy: bytes = b"",
        first: Body | None = None,
        checkpoint_operations: int = limits.CHECKPOINT_OPERATIONS,
        read: Callable[[bytes, PoolId], Operation] = decode_operation,
    ) -> None:
        """Make a replica that knows nothing but the pool's id.

        Args:
            identity: who signs here; must hold its private key.
            pool: id of the pool.
            protocol: only the simulator changes it.
            seed: spreads the timers of different nodes.
            digest_interval_ms: how often the frontier's digest is sent when nothing happens.
            entropy: 32 random bytes, fresh at every start, that the keys of a private pool are made of; without, such a
                pool can only be followed.
            first: by what this key takes another's place, if it is to: signed before anything else is.
            checkpoint_operations: after so many this replica, if an elector, proposes a checkpoint; 0: never.
            read: does what `decode_operation` does; the shell measures what that costs.
        """
        self.identity, self.pool, self._read = identity, pool, read
        self.log = OperationLog(pool)
        self.view = View(pool, protocol)
        self.contents = PrivateContents(identity, self.view, entropy, self._put, self._set_timer)
        self._holdings = Holdings(self.log)
        self._elector = Elector(identity.public_key, self.view, self.log.prefix, self._holdings)
        self._proposer = Proposer(identity.public_key, self._emit, self.contents, self._holdings)
        self.sessions = Sessions(self.log, self._send, self._wake_sync, lambda: out_of_chain(self.view, self.log))
        self._watch = TaskWatch(identity.public_key, self.view, self._set_timer, self._emit, lambda: self._now.mono_ms)
        self._judging = Judging(identity.public_key, self.view, self._emit)
        self._renewals = Renewals(identity, pool, self.view, self._watch, self._put)
        set_timer = functools.partial(self._set_timer, TimerKey(TimerKind.DIGEST))
        self._digests = Digests(seed, digest_interval_ms, set_timer)
        ask_tip = functools.partial(self._set_timer, TimerKey(TimerKind.TIP))
        self._tip = OwnTip(identity.public_key, self.log, self.view, self.sessions, self._put, ask_tip)
        self._pen = Pen(identity, pool, first)
        self._voting = Voting(self._elector, self.view, self._watch, self._set_timer)
        self._commands = Commands(identity.public_key, self.view, self._proposer, self.contents, self._length_of)
        self._installer = Installer(
            identity.public_key, self.log, self.view, self._watch, self._elector, self.contents,
            emit=self._emit, touch=self._touch, touch_open=self._touch_open)  # fmt: skip
        self._compaction = Compaction(
            identity.public_key, self.log, self.view,
            watch=self._watch, proposer=self._proposer, elector=self._elector, sessions=self.sessions,
            pen=self._pen, contents=self.contents,
            means=Means(
                self._put, self._send, self._set_timer, self._tip.may_vote_now, self._sign,
                self._insert_own, self._touch, self._note_own, self._remember),
            every=checkpoint_operations)  # fmt: skip
        self._in_flight: dict[int, list[Operation]] = {}
        self._next_token = 0
        self._dirty: dict[TaskId, None] = {}
        self._echoes: dict[OperationId, None] = {}
        self._now = Now(0, 0)  # this and the next line: of one turn
        self._effects, self._fresh, self._own = list[Effect](), list[bytes](), list[Operation]()

    # ------------------------------------------------------------ reading

    @property
    def ready(self) -> bool:
        """Whether the founding terms are known."""
        return self.view.spec is not None

    @property
    def epoch(self) -> int:
        """The number of the epoch whose rules hold here; 0 before the founding is known."""
        return max(0, self.view.epochs.number)

    @property
    def is_elector(self) -> bool:
        """Whether the local identity votes now."""
        return self.identity.public_key in self.view.electors

    @property
    def peers(self) -> list[PeerId]:
        """Peers this replica synchronises with."""
        return list(self.sessions.peers)

    @property
    def checkpointer(self) -> Checkpointer:
        """The checkpoint in force, and what is under way about the next; only to be read."""
        return self._compaction.checkpointer

    def expired(self, task: TaskId) -> bool:
        """Whether the time of whoever holds the task is over on the local clock."""
        return self._watch.expired(task)

    def progress(self, task: TaskId) -> Renewal | None:
        """What the holder of a task said last, if anything."""
        return self._watch.said(task)

    def has_peer(self, peer: PeerId) -> bool:
        """Whether this replica synchronises with a peer."""
        return peer in self.sessions.peers

    @property
    def caught_up(self) -> bool:
        """Whether a peer was once found to have nothing that is missing here."""
        return self.sessions.caught_up

    @property
    def unsure(self) -> str:
        """Why nothing is signed here: the store may be an old copy, and this is lacking. Empty if all is well."""
        return self._tip.reason(self._now.mono_ms)

    # ------------------------------------------------------------ the one entrance

    def handle(self, event: Event | CoordinationCommand, now: Now) -> list[Effect]:
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

    def _dispatch(self, event: Event | CoordinationCommand) -> None:
        match event:
            case ev.Received(operations, peer):
                self._receive(operations, peer)
            case ev.SyncReceived(peer, payload):
                self._sync(peer, payload)
            case ev.Persisted(tokens):
                self._persisted([operation for token in tokens for operation in self._in_flight.pop(token, ())])
            case ev.TimerFired(key):
                self._timer(key)
            case ev.PeerUp(peer, key):
                self.sessions.peer_up(peer)
                self._tip.peer_up(peer, key)
                if not self.ready:
                    self._send(peer, wire.GenesisWanted())
            case ev.PeerDown(peer):
                self.sessions.peer_down(peer, self._now.mono_ms)
                self._tip.peer_down(peer)
                self._compaction.peer_down(peer, self._now.mono_ms)
            case ev.Restored(operations, unsure, secrets, silent_through, snapshot):
                self.contents.restore(secrets)
                self._tip.silent_through = silent_through
                if unsure:
                    self._tip.doubt()
                self._restore(operations, snapshot)
            case ev.TrustStore():
                self._tip.trust()
            case ev.RenewalReceived():
                self._renewals.hear(event)
            case ev.Renew():
                self._renewals.say(event, self._now.wall_ms)
            case _:
                self._command(event)

    def _finish_turn(self) -> None:
        """Let proposer and elector act on what changed, then hand out what is to be stored."""
        # an own vote may have brought an epoch into force, for which operations were waiting
        while (parked := self.log.has_parked()) or self._installer.has_waiting:
            if parked:
                self._absorb(self.log.unpark(), None)
            else:
                self._fresh += self._installer.count_waiting()
        if self._tip.learned(self._now.mono_ms):
            self._emit(ev.OwnChainLearned(self._pen.length, self._tip.silent_through))
            self._touch_open()
        if self.contents.has_news() or self._holdings.arrived():
            self._touch_open()
        dirty, self._dirty = self._dirty, {}
        votes = self.is_elector
        for name in dirty:
            register = self.view.subject(name)
            if register is not None and not self._watch.closed(name):
                if not self._tip.unsure:
                    self._propose(register)
                self._judging.look(register)
                self._watch.look(register, idle=self._tip.unsure or self._proposer.stands(name, duty_of(register)))
                if votes:
                    self._voting.look_at(name)
        if not self._tip.unsure:
            if (first := self._pen.take_first(ready=self.ready)) is not None:
                self._sign(first)
            for vote in self._voting.cast(self._now.mono_ms) if self._tip.may_vote() else ():
                self._sign(vote)
            self._echo()
            for duty in self.contents.duties(may_begin=self.caught_up or self._pen.length > 0):
                self._sign(duty)
        self.contents.keep()
        if self._fresh:
            self._persist(self._fresh, durable=False)
        if self._own:
            self._in_flight[self._persist([each.signed for each in self._own], durable=True)] = list(self._own)
        self._compaction.finish_turn()
        self._digests.keep_going(self._now.mono_ms, ready=self.ready)

    def _echo(self) -> None:
        """A witness records what a decider wants; where every elector judges, the application speaks."""
        motions, self._echoes = self._echoes, {}
        for motion in motions if self.is_elector else ():
            choice = self._commands.echo(motion)
            if choice is not None:
                self._sign(choice)

    def _persist(self, operations: list[bytes], *, durable: bool) -> int:
        self._next_token += 1
        self._effects.append(ev.Persist(self._next_token, tuple(operations), durable))
        return self._next_token

    def _put(self, effect: Effect) -> None:
        self._effects.append(effect)

    def _emit(self, notice: Notice) -> None:
        self._effects.append(Emit(notice))

    def _send(self, peer: PeerId, message: wire.SyncMessage) -> None:
        self._effects.append(ev.Send(peer, wire.encode_message(message)))

    # ------------------------------------------------------------ receiving

    def _receive(self, operations: tuple[bytes, ...], peer: PeerId | None) -> None:
        for signed in operations:
            if self.log.knows(operation_id(signed)):
                continue
            try:
                operation = self._read(signed, self.pool)
                known = self.log.held(operation.author) > 0
                check_author(self.view, operation, known=known, predecessor_known=self.log.chains.__contains__)
                self._insert(operation, peer)
            except RemoteViolation as violation:
                self._emit(ev.Rejected(peer, violation.reason))
                if violation.reason in ev.NEVER_HONEST:
                    # a liar sent this; what else it sent is not worth a verification, and can be had from others
                    break
        while self.log.has_parked():
            self._absorb(self.log.unpark(), peer)

    def _insert(self, operation: Operation, peer: PeerId | None) -> None:
        if operation.author == self.identity.public_key and self._in_flight:
            raise RemoteViolation("own_chain", "an operation in our name while our own are being written")
        self._absorb(self.log.insert(operation), peer)
        self._pen.saw(operation.hlc, self._now.wall_ms)

    def _insert_own(self, operation: Operation) -> None:
        self._absorb(self.log.insert(operation), None, trusted=True)

    def _absorb(self, inserted: Inserted, peer: PeerId | None, *, trusted: bool = False) -> None:
        for operation in inserted.accepted:
            self._apply(operation)
        if inserted.forked is not None:
            seq = self.log.frozen_at(inserted.forked)
            assert seq is not None
            self._touch(*self.view.void(inserted.forked, seq, inserted.voided))
            self.contents.changed()
            self._emit(ev.ForkDetected(inserted.forked, seq))
        for operation in inserted.loose:
            self._touch(*self.view.apply_loose(operation))
        self._installer.refold()
        self._fresh.extend(operation.signed for operation in inserted.kept)
        early: list[bytes] = []
        if inserted.accepted or inserted.loose:
            self._digests.soon(self._now.mono_ms)
            self._installer.install()
            self._compaction.checkpointer.grown(self._now.mono_ms)
        elif inserted.parked is not None:
            # an epoch may come into force by it, and must be known again after a restart: own operations name it
            early = self._installer.count_early(inserted.parked, trusted=trusted)
            self._fresh += early
        if inserted.missing is not None and not early:
            # what counts already was perhaps sent because nobody has what it follows
            self.sessions.on_gap(peer, inserted.missing, self._now.mono_ms)
        self._installer.refold()

    def _apply(self, operation: Operation) -> None:
        """Fold an operation that became part of a chain."""
        body, author = operation.body, operation.author
        if author == self.identity.public_key:
            self._note_own(operation)
        was_member = self.view.members.has(author) if isinstance(body, (JoinBody, LeaveBody)) else False
        self._touch(*self.view.apply(operation))
        self.contents.applied(operation)
        match body:
            case Genesis() if self.ready:
                self._emit(ev.PoolReady())
            case JoinBody() | LeaveBody():
                if self.view.members.has(author) != was_member:
                    self._emit(ev.MembersChanged(Identity.from_public_key(author).id, not was_member))
            case MotionBody() if self.view.motions.get(operation.id) is not None:
                self._emit(ev.MotionMoved(operation.id))
            case OpinionBody(motion, choice) if choice == YES:
                self._echoes[motion] = None
            case _ if (changed := changed_by(operation)) is not None:
                self._emit(changed)

    def _length_of(self, author: PublicKey) -> int:
        return self._pen.length if author == self.identity.public_key else self.log.length(author)

    def _touch(self, *tasks: TaskId) -> None:
        for task in tasks:
            self._dirty[task] = None
            twin = self.view.vetoes.twin(task)
            if twin is not None:
                self._dirty[twin] = None

    def _touch_open(self) -> None:
        self._touch(*self.view.open)
        if self.ready:
            self._touch(self.view.next_change.id)

    def _note_own(self, operation: Operation) -> None:
        """An own operation that did not come through `_sign`: read back, or learned from others after a loss."""
        if self._pen.note(operation):
            self._remember(operation.epoch, operation.body)

    def _remember(self, epoch: int, body: Body) -> None:
        if isinstance(body, VoteBody):
            self._elector.note_own(epoch, body.ballots)
        else:
            self._proposer.note_own(epoch, body)
            self.contents.note_own(epoch, body)

    def _restore(self, operations: tuple[bytes, ...], snapshot: bytes | None) -> None:
        assert not len(self.log), "Restored comes first"
        self._compaction.restore(snapshot, operations)
        while self.log.has_parked():
            self._absorb(self.log.unpark(), None)
        self._fresh.clear()
        self._touch_open()

    # ------------------------------------------------------------ sync

    def _sync(self, peer: PeerId, payload: bytes) -> None:
        try:
            message = wire.decode_message(payload)
        except CodecError:
            self._emit(ev.Rejected(peer, "bad_sync_message"))
            return
        match message:
            case wire.Operations(operations):
                self._receive(operations, peer)
                self.sessions.on_operations(peer, message, self._now.mono_ms)
            case wire.GenesisWanted():
                if self.view.genesis:
                    self._send(peer, wire.Operations((self.view.genesis,)))
            case wire.TipWanted() | wire.Tip():
                self._tip.on_message(peer, message, self._now.mono_ms)
            case wire.Offer() | wire.SnapshotWanted() | wire.ChunkWanted() | wire.Chunk():
                if self._compaction.handle(peer, message, self._now.mono_ms):
                    self._fresh.clear()
            case _:
                if isinstance(message, wire.Want):
                    self._compaction.offer(peer, message, self._now.mono_ms)
                self.sessions.on_message(peer, message, self._now.mono_ms)

    def _wake_sync(self, at_ms: int) -> None:
        self._set_timer(TimerKey(TimerKind.SYNC), max(0, at_ms - self._now.mono_ms))

    # ------------------------------------------------------------ own operations

    def _command(self, command: ev.Command | CoordinationCommand) -> None:
        self._tip.check_sure(self._now.mono_ms)
        if (body := self._commands.body_for(command, self._now.wall_ms)) is not None:
            self._sign(body)
        match command:
            case ev.Report(task):
                self._touch(task)
            case ev.Join() if body is not None:
                self.contents.joining()
            case ev.Move(motion) if motion.motion is MotionKind.CHANGE and self.is_elector:
                self._sign(OpinionBody(self._own[-1].id, YES))

    def _sign(self, body: Body) -> Operation:
        body = self.contents.seal(body, self._pen.length)
        operation = self._pen.sign(body, self.epoch, self._now.wall_ms)
        self._remember(self.epoch, body)
        self._own.append(operation)
        return operation

    def _persisted(self, operations: list[Operation]) -> None:
        if not operations:
            return
        for operation in operations:
            body = operation.body
            if isinstance(body, VoteBody):
                self._voting.written()
                self._touch(*(ballot.task for ballot in body.ballots))
            elif isinstance(body, SubmitBody):
                self._commands.submitted(body)
            try:
                self._insert_own(operation)
            except RemoteViolation as violation:
                # the key is used elsewhere too and its forks fill their bound; what is written stays written
                self._emit(ev.Rejected(None, f"own_{violation.reason}"))
            self.contents.written(body)
            self._emit(ev.Acknowledged(operation.id))
        own = {operation.signed for operation in operations}
        self._fresh = [signed for signed in self._fresh if signed not in own]
        self._effects.append(ev.Publish(tuple(operation.signed for operation in operations)))

    def _set_timer(self, key: TimerKey, delay_ms: int) -> None:
        self._effects.append(SetTimer(key, self._now.mono_ms + delay_ms))

    def _propose(self, register: Register) -> None:
        report = self._proposer.consider(register)
        if report is not None:
            self._sign(report)

    # ------------------------------------------------------------ time

    def _timer(self, key: TimerKey) -> None:
        if key.kind is TimerKind.DIGEST:
            peers = self._digests.fired(list(self.sessions.peers))
            if self.ready:
                self.sessions.digests(peers)
            else:
                self.sessions.want_genesis()
            return
        if key.kind is TimerKind.SYNC:
            self.sessions.on_timer(self._now.mono_ms)
            return
        if key.kind is TimerKind.TIP:
            self._tip.ask()
            return
        if key.kind in ev.CHECKPOINT_TIMERS:
            self._compaction.timer_fired(key.kind, self._now.mono_ms)
            return
        if key.kind is TimerKind.VOTE:
            self._voting.pause_over()
            return
        if key.kind is TimerKind.OFFER:
            self.contents.timer_fired()
            return
        register = None if key.task is None else self.view.subject(key.task)
        if register is None:
            return
        due = self._watch.fired(key.kind, register) and not self._tip.unsure
        if due and not self._proposer.stands(register.id, duty_of(register)):
            self._sign(claim_of_duty(register))
        self._touch(register.id)
