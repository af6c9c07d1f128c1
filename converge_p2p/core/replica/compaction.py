"""Checkpoints and snapshots on one replica: what is voted on them, sent of them, and let go because of them.

Knows: in which order fold, log and memory let go of what a checkpoint covers. Must not know: when one is due (see
`checkpointer`), or what an operation leads to (see `machine`).
Source: `docs/protocol.md`, checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from converge_p2p.core import limits
from converge_p2p.core.errors import RemoteViolation
from converge_p2p.core.oplog.bodies import Body, VoteBody
from converge_p2p.core.oplog.log import OperationLog
from converge_p2p.core.oplog.operation import Operation, decode_operation
from converge_p2p.core.replica import events as ev
from converge_p2p.core.replica.checkpointer import Aim, Checkpointer
from converge_p2p.core.replica.elector import Elector
from converge_p2p.core.replica.events import Notice, TimerKey, TimerKind
from converge_p2p.core.replica.forward import Forward, Taken
from converge_p2p.core.replica.pen import Pen
from converge_p2p.core.replica.private import PrivateContents
from converge_p2p.core.replica.proposer import Proposer
from converge_p2p.core.replica.session import Sessions
from converge_p2p.core.replica.watch import TaskWatch
from converge_p2p.core.replica.wire import Chunk, ChunkWanted, Offer, SnapshotWanted, SyncMessage, Want
from converge_p2p.core.types import OperationId, PeerId, PublicKey, TaskId
from converge_p2p.core.view.compacting import become, compact
from converge_p2p.core.view.ended import Ended
from converge_p2p.core.view.fold import View
from converge_p2p.core.view.snapshot import Snapshot
from converge_p2p.core.view.summary import Summary

ASK_MS = 5000
"""So often another peer is asked for a checkpoint that can only be had from others."""

OFFER_PAUSE_MS = 1000
"""A peer is offered the checkpoint at most so often, however much it asks for that was pruned."""


@dataclass(frozen=True, slots=True)
class Means:
    """What a replica lends for this.

    Attributes:
        put: takes an effect.
        send: sends a message to a peer.
        set_timer: sets a timer, in milliseconds from now.
        may_sign: whether the own chain is known, and no own vote may have been forgotten.
        sign: signs an own operation.
        insert: puts an operation into log and fold. Raises RemoteViolation.
        touch: has subjects looked at.
        note_own: notes an own operation that is read back.
        remember: notes the body of an own operation, with its epoch, as it was when it was signed.
    """

    put: Callable[[ev.Effect], None]
    send: Callable[[PeerId, SyncMessage], None]
    set_timer: Callable[[TimerKey, int], None]
    may_sign: Callable[[], bool]
    sign: Callable[[Body], Operation]
    insert: Callable[[Operation], None]
    touch: Callable[..., None]
    note_own: Callable[[Operation], None]
    remember: Callable[[int, Body], None]

    def emit(self, notice: Notice) -> None:
        """Tell the application something."""
        self.put(ev.Emit(notice))


class Compaction:
    """The checkpoints of one replica.

    Attributes:
        checkpointer: what is proposed, attested and in force.
        forward: snapshots of others.
    """

    def __init__(
        self,
        key: PublicKey,
        log: OperationLog,
        view: View,
        *,
        watch: TaskWatch,
        proposer: Proposer,
        elector: Elector,
        sessions: Sessions,
        pen: Pen,
        contents: PrivateContents,
        means: Means,
        every: int,
    ) -> None:
        """Begin without a checkpoint. See `Checkpointer` for `every`."""
        self._key = key
        self._log = log
        self._view = view
        self._watch = watch
        self._proposer = proposer
        self._elector = elector
        self._sessions = sessions
        self._pen = pen
        self._contents = contents
        self._means = means
        self.checkpointer = Checkpointer(
            key,
            log,
            view,
            every=every,
            wake=lambda delay_ms: means.set_timer(TimerKey(TimerKind.CHECKPOINT), delay_ms),
            may_vote=lambda: means.may_sign() and key in view.electors and not elector.sealed,
        )
        self.forward = Forward(
            log,
            view,
            send=means.send,
            wake=lambda delay_ms: means.set_timer(TimerKey(TimerKind.FORWARD), delay_ms),
            refuse=lambda peer, reason: means.emit(ev.Rejected(peer, reason)),
        )
        self._offered_ms: dict[PeerId, int] = {}
        self._asked: PeerId | None = None
        self._asking = False
        self._compact: ev.Compact | None = None

    @property
    def number(self) -> int:
        """Number of the checkpoint in force, 0 if there is none or it is not known."""
        return self.checkpointer.number or 0

    def finish_turn(self) -> None:
        """Say what the store has to do; after whatever it takes out was written."""
        if self._compact is not None:
            self._means.put(self._compact)
            self._compact = None

    def peer_down(self, peer: PeerId, now_ms: int) -> None:
        """A peer can no longer be reached."""
        self.forward.peer_down(peer, now_ms)
        self._offered_ms.pop(peer, None)

    def timer_fired(self, kind: TimerKind, now_ms: int) -> None:
        """A timer of this is due."""
        if kind is TimerKind.ASK:
            self._asking = False
            self._ask()
        elif kind is TimerKind.FORWARD:
            self.forward.on_timer(now_ms)
        else:
            self._turn(now_ms)
            self._ask()

    def _ask(self) -> None:
        """Ask one peer after the other for a checkpoint that can only be had from others."""
        root = None if self._asking else self.checkpointer.wanted()
        if root is None:
            return
        self._asking = True
        self._means.set_timer(TimerKey(TimerKind.ASK), ASK_MS)
        peers = sorted(self._sessions.peers)
        if peers and not self.forward.under_way:
            later = [peer for peer in peers if self._asked is not None and peer > self._asked]
            self._asked = (later or peers)[0]
            self._means.send(self._asked, SnapshotWanted(root))

    def _turn(self, now_ms: int) -> None:
        job = self.checkpointer.turn(now_ms)
        if job is None:
            return
        match job.aim:
            case Aim.PROPOSE:
                body = self.checkpointer.propose(job)
                if body is not None:
                    self._means.sign(self.checkpointer.proposed(self._means.sign(body), body))
            case Aim.ATTEST:
                attest = self.checkpointer.attest(job, now_ms)
                if attest is not None:
                    self._means.sign(attest)
            case Aim.ADOPT:
                adopted = self.checkpointer.adopt(job)
                if adopted is not None:
                    snapshot, gone = adopted
                    kept = self.own_results(snapshot)
                    self.ended(compact(self._view, snapshot.settled))
                    self.compacted(snapshot, gone, kept, forwarded=False)

    # ------------------------------------------------------------ letting go

    def own_results(self, snapshot: Snapshot) -> tuple[tuple[TaskId, bytes], ...]:
        """What is kept of the own tasks that a snapshot says no more about than how they ended."""
        kept = []
        for task, register in self._view.registers.items():
            submitted, value = register.submitted, register.final
            if value is None or submitted is None or submitted.author != self._key:
                continue
            if task in snapshot.settled:
                kept.append((task, Ended(submitted.author, submitted.spec, value).to_bytes()))
        return tuple(kept)

    def ended(self, tasks: list[TaskId]) -> None:
        """Tasks are kept no longer: tell of those that were not known to be settled, and forget what was remembered."""
        for task in tasks:
            ended = self._view.compacted.get(task)
            if ended is not None and not self._watch.closed(task):
                self._means.emit(ev.TaskChanged(task, ended.ended.state, 0, -1))
            self._proposer.ended(task)
            self._elector.forget(task)
            self._watch.forget(task)

    def compacted(
        self, snapshot: Snapshot, gone: list[OperationId], kept: tuple[tuple[TaskId, bytes], ...], *, forwarded: bool
    ) -> None:
        """A checkpoint is in force: the store is to follow, and the application hears of it."""
        self._compact = ev.Compact(snapshot.data, tuple(gone), kept)
        self._means.emit(ev.Compacted(self.number, len(snapshot.settled), len(self._log), forwarded))

    # ------------------------------------------------------------ beginning anew

    def restore(self, data: bytes | None, operations: tuple[bytes, ...]) -> None:
        """Begin with what was read from the own store.

        Raises:
            CodecError: the snapshot is damaged.
        """
        if data is not None:
            snapshot = Snapshot.read(data, self._log.pool)
            self._begin_from(snapshot, Summary.restore(snapshot, self._view.epochs.protocol))
            self._means.emit(ev.PoolReady())
        self.put_back(operations)

    def _take(self, taken: Taken, now_ms: int) -> None:
        """Begin anew from a checkpoint of others, and put back whatever is held beyond it."""
        log, view, was_ready = self._log, self._view, len(self._view.epochs) > 0
        held = [signed for author in log.chains for signed in log.read(author, 0, limits.SEQ_MAX)]
        held += [signed for author in log.chains for signed in log.read_loose(author)]
        held += log.below.values()
        held += [signed for change in view.changes.values() for signed in change.early.values()]
        known, kept = list(view.registers), self.own_results(taken.snapshot)
        self._sessions.restart()
        self._begin_from(taken.snapshot, taken.summary)
        gone = self.put_back(tuple(held))
        for operation in taken.certificate:
            view.attested.add(operation)
        self.ended([task for task in known if task not in view.registers])
        self._means.touch(*view.open, view.next_change.id)
        self.checkpointer.look(now_ms)
        self.compacted(taken.snapshot, gone, kept, forwarded=True)
        if not was_ready:
            self._means.emit(ev.PoolReady())

    def _begin_from(self, snapshot: Snapshot, summary: Summary) -> None:
        """Let log and fold be what a snapshot says, and nothing more."""
        self._log.reset(snapshot.rows, summary.retained(), summary.ends())
        become(self._view, summary.view)
        epochs = self._view.epochs
        for number in range(1, len(epochs)):
            for cut in epochs[number].cuts:
                self._log.cut(cut.author, cut.length)
        self._log.know_epoch(epochs.number)
        self.checkpointer.begin_from(snapshot)
        for row in snapshot.rows:
            if row.author == self._key:
                self._pen.resume(row.length, row.head, row.hlc)
        for operation in summary.operations():
            if operation.author == self._key:
                self._means.remember(operation.epoch, operation.body)
            self._contents.applied(operation)
        self._contents.changed()

    def put_back(self, operations: tuple[bytes, ...]) -> list[OperationId]:
        """Insert what was held before; returns what a checkpoint covers, which is not held any more."""
        gone = []
        for signed in operations:
            try:
                operation = decode_operation(signed, self._log.pool, trusted=True)
                if operation.author == self._key:
                    # whether or not it can be placed already: its number is taken, and its votes are cast
                    self._means.note_own(operation)
                if operation.seq >= self._log.base(operation.author):
                    self._means.insert(operation)
                elif not self._count_below(operation):
                    gone.append(operation.id)
            except RemoteViolation as violation:
                self._means.emit(ev.Rejected(None, f"store_{violation.reason}"))
        return gone

    def _count_below(self, operation: Operation) -> bool:
        """Go on counting a vote that a checkpoint does not cover, of an author that forked below it.

        What was settled with it stays settled here; whoever never saw it settles the same value in another round.
        """
        if not isinstance(operation.body, VoteBody) or self._log.holds(operation.id):
            return False
        closed = self._view.vetoes.closed
        if all(ballot.task in self._view.compacted or ballot.task in closed for ballot in operation.body.ballots):
            return False
        touched = self._view.apply(operation, judged=True)
        if not touched:
            return False
        self._log.keep_aside(operation)
        self._means.touch(*touched)
        return True

    # ------------------------------------------------------------ others

    def offer(self, peer: PeerId, message: Want, now_ms: int) -> None:
        """Somebody asks for operations: if they were pruned here, offer the checkpoint that covers them."""
        if any(item.start < self._log.base(item.author) for item in message.ranges):
            self._offer(peer, now_ms)

    def _offer(self, peer: PeerId, now_ms: int) -> None:
        snapshot, certificate = self.checkpointer.snapshot, self.checkpointer.certificate()
        if snapshot is None or certificate is None or now_ms < self._offered_ms.get(peer, now_ms):
            return
        if peer in self._offered_ms or len(self._offered_ms) < limits.PEERS_MAX:
            self._offered_ms[peer] = now_ms + OFFER_PAUSE_MS
        self._means.send(peer, Offer(*certificate, snapshot.manifest))

    def handle(self, peer: PeerId, message: Offer | SnapshotWanted | ChunkWanted | Chunk, now_ms: int) -> bool:
        """Take a message about snapshots. Says whether the replica began anew from one that is certified."""
        match message:
            case Offer():
                # whoever is asked for one may have put a later one in force, which builds on it
                number = -1 if self.checkpointer.wanted() is not None else self.number
                if message.manifest.root != self.checkpointer.root:
                    self.forward.on_offer(peer, message, number=number, now_ms=now_ms)
            case SnapshotWanted():
                # whoever put a later one in force offers that
                self._offer(peer, now_ms)
            case ChunkWanted(root, index):
                snapshot = self.checkpointer.snapshot
                if snapshot is not None and snapshot.root == root and snapshot.chunk(index):
                    self._means.send(peer, Chunk(root, index, snapshot.chunk(index)))
            case Chunk():
                bases = {author: chain.base for author, chain in self._log.chains.items() if chain.base}
                taken = self.forward.on_chunk(peer, message, bases=bases, now_ms=now_ms)
                if taken is not None:
                    self._take(taken, now_ms)
                    return True
        return False
