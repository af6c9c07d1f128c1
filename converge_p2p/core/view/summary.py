"""The fold of exactly the operations inside a cut: from a snapshot, plus what the cut advances by, to a snapshot.

Knows: in which order operations are folded, and what makes the next epoch. Must not know: chains beyond the cut, votes
on checkpoints, what has to be retained (see `retention`), or time.
Source: `docs/protocol.md`, checkpoints.

Whether an operation had an effect was decided when its author's chain was folded up to it, and is not asked again when
a snapshot is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from converge_p2p.core.errors import CodecError, RemoteViolation
from converge_p2p.core.governance.models import ALL_RULES, ProtocolRules
from converge_p2p.core.identity import SIGNATURE_BYTES, verify
from converge_p2p.core.model.task import TaskValue
from converge_p2p.core.oplog.bodies import Genesis, VoteBody
from converge_p2p.core.oplog.chain import Row
from converge_p2p.core.oplog.motions import MotionBody, OpinionBody
from converge_p2p.core.oplog.operation import OPERATION_TAG, Operation, decode_operation
from converge_p2p.core.types import OperationId, PoolId, PublicKey
from converge_p2p.core.view.compacting import begin_from, stand_in, table_of
from converge_p2p.core.view.epochs import Epoch
from converge_p2p.core.view.fold import View
from converge_p2p.core.view.retention import Retention, is_effective, subjects_of
from converge_p2p.core.view.snapshot import Snapshot


class Summary:
    """A state, and how much of each author it comes from.

    Attributes:
        view: the state.
        rows: the cut.
        votes: votes on epochs that are inside beside the chains inside: their authors forked or were removed.
        value_of: what an epoch was settled on, where its report is not inside; its hash says whether it is right.
    """

    def __init__(self, pool: PoolId, protocol: ProtocolRules = ALL_RULES) -> None:
        """Begin with nothing."""
        self.pool = pool
        self.view = View(pool, protocol)
        self.rows: dict[PublicKey, Row] = {}
        self.votes: set[OperationId] = set()
        self.value_of: Callable[[int], TaskValue | None] = lambda _: None
        self._kept: dict[PublicKey, list[Operation]] = {}
        """What had an effect in the chains inside, in order."""
        self._beside: dict[OperationId, Operation] = {}
        self._last: dict[PublicKey, bytes] = {}
        self._delta: set[OperationId] = set()

    @classmethod
    def restore(cls, snapshot: Snapshot, protocol: ProtocolRules = ALL_RULES) -> Summary:
        """Make the state of a snapshot. Its signatures are not verified: see `check_signatures`.

        Raises:
            CodecError: an operation in it is not one, or stands where it cannot.
        """
        self = cls(snapshot.pool, protocol)
        stand_in(self.view, snapshot.settled, [])
        self.value_of = dict(enumerate(snapshot.epochs, 1)).get
        self.rows = {row.author: row for row in snapshot.rows}
        waiting = self._decoded(snapshot.retained)
        for operation in self._decoded(snapshot.last):
            self._last[operation.author] = operation.signed
        for operation in waiting:
            row = self.rows.get(operation.author)
            if row is None or operation.seq >= row.length:
                if not isinstance(operation.body, VoteBody):
                    raise CodecError("a snapshot holds an operation that is not inside its cut")
                self.votes.add(operation.id)
            elif operation.id == row.head:
                self._last[operation.author] = operation.signed
        if self._last.keys() != self.rows.keys():
            raise CodecError("a snapshot holds the last operation of each chain")
        for row in snapshot.rows:
            last = decode_operation(self._last[row.author], snapshot.pool, trusted=True)
            if row != (last.author, last.seq + 1, last.id, last.hlc, last.epoch):
                raise CodecError("the last operation of a chain is another than its row says")
        self._apply_retained(waiting)
        if not len(self.view.epochs):
            raise CodecError("a snapshot holds the founding of its pool")
        if snapshot.settled.last_epoch > self.view.epochs.number:
            raise CodecError("a settled task names an epoch that the snapshot does not make")
        begin_from(self.view, snapshot.settled, [])
        return self

    def _decoded(self, signed: Iterable[bytes]) -> list[Operation]:
        try:
            operations = [decode_operation(item, self.pool, trusted=True) for item in signed]
        except RemoteViolation as violation:
            raise CodecError(f"a snapshot holds something that is no operation: {violation}") from violation
        places = [(operation.author, operation.seq, operation.id) for operation in operations]
        if places != sorted(set(places)):
            raise CodecError("the operations of a snapshot rise by author and number")
        return operations

    def _apply_retained(self, waiting: list[Operation]) -> None:
        # as in the log: who names an epoch that is not made yet waits, and so does whatever stands behind it
        waiting.sort(key=lambda operation: not self.view.is_genesis(operation))
        while waiting:
            later: list[Operation] = []
            blocked: set[PublicKey] = set()
            for operation in waiting:
                early = operation.author in blocked or operation.epoch > self.view.epochs.number
                if operation.id in self.votes:
                    if operation.epoch > self.view.epochs.number:
                        later.append(operation)
                    else:
                        self._count(operation, judged=True)
                elif early and not self.view.is_genesis(operation):
                    blocked.add(operation.author)
                    later.append(operation)
                else:
                    self._apply(operation, judged=True)
            if len(later) == len(waiting):
                raise CodecError("an operation of a snapshot names an epoch that the snapshot does not make")
            waiting = later

    def add(self, operation: Operation, *, known: Callable[[OperationId], bool]) -> bool:
        """Fold the next operation of its author, if everything it builds on is inside.

        Args:
            operation: the one after the author's row.
            known: whether an operation is held outside of this; one that is not was pruned, and is inside.

        Returns:
            False if something is missing: its epoch, what it names in deps, or the founding; or if its author was
            removed before it.
        """
        row = self.rows.get(operation.author)
        if operation.seq != (0 if row is None else row.length) or operation.prev != (None if row is None else row.head):
            return False
        if not self.view.is_genesis(operation):
            if operation.epoch > self.view.epochs.number:
                return False
            if operation.seq >= self.view.members.expelled().get(operation.author, operation.seq + 1):
                return False
            if any(known(dep) and dep not in self._delta for dep in operation.deps):
                return False
        author = operation.author
        self.rows[author] = Row(author, operation.seq + 1, operation.id, operation.hlc, operation.epoch)
        self._last[author] = operation.signed
        self._delta.add(operation.id)
        self._apply(operation, judged=False)
        return True

    def add_vote(self, operation: Operation) -> bool:
        """Count a vote on an epoch that stands in no chain inside. Says whether it was one, and new."""
        if operation.epoch > self.view.epochs.number or operation.id in self.votes | self._delta:
            return False
        if not isinstance(operation.body, VoteBody) or not self._is_on_epochs(operation):
            return False
        self.votes.add(operation.id)
        self._count(operation, judged=False)
        return True

    def _is_on_epochs(self, operation: Operation) -> bool:
        subjects = subjects_of(self.pool, operation)
        return subjects is not None and any(name in self.view.changes for name in subjects)

    def _count(self, operation: Operation, *, judged: bool) -> None:
        # votes count in the same way wherever they stand
        self.view.apply(operation, judged=judged)
        self._beside[operation.id] = operation
        self._install()

    def _apply(self, operation: Operation, *, judged: bool) -> None:
        author = operation.author
        if judged or is_effective(self.view, operation):
            self._kept.setdefault(author, []).append(operation)
        self.view.apply(operation, judged=judged)
        while (key := self.view.successions.take_stale()) is not None:
            kept = self._kept.get(key, [])
            self.view.refold(key, kept, base=kept[-1].seq + 1 if kept else 0)
        self._install()

    def _install(self) -> None:
        while (epoch := self._next_epoch()) is not None:
            for cut in epoch.cuts:
                self.view.cut(cut, [])

    def _next_epoch(self) -> Epoch | None:
        if not len(self.view.epochs):
            return None
        change = self.view.next_change
        if change.settled is not None and change.value is None:
            # whoever is removed by an epoch may have reported it, beyond its own end
            value = self.value_of(change.number)
            if value is not None:
                change.add_value(value)
        return self.view.try_install()

    @property
    def sound(self) -> bool:
        """Whether no author is inside beyond the end that an epoch inside sets for it."""
        ends = self.view.members.expelled()
        return len(self.view.epochs) > 0 and all(
            author not in self.rows or self.rows[author].length <= end for author, end in ends.items()
        )

    def snapshot(self) -> Snapshot:
        """Write down the state.

        Raises:
            CodecError: it is larger than a snapshot may be.
        """
        view, table = self.view, table_of(self.view)
        retention = Retention(view, table)
        # a vote beside the chains may have come to stand in one
        needed = {item.id: item for item in (*self._beside.values(), *self.operations()) if retention.needs(item)}
        retained = sorted(needed.values(), key=lambda operation: (operation.author, operation.seq, operation.id))
        rows = tuple(self.rows[author] for author in sorted(self.rows))
        values = [view.epochs[number].value for number in range(1, len(view.epochs))]
        return Snapshot.make(
            self.pool,
            rows,
            settled=table,
            epochs=tuple(value for value in values if value is not None),
            retained=tuple(item.signed for item in retained),
            last=tuple(self._last[row.author] for row in rows if row.head not in needed),
        )

    def retained(self) -> dict[OperationId, bytes]:
        """What was kept of the chains inside. The votes beside them are for the log to hold as what they are: loose."""
        return {operation.id: operation.signed for operation in self.operations()}

    def ends(self) -> dict[OperationId, bytes]:
        """The last operation of each chain inside."""
        return {self.rows[author].head: signed for author, signed in self._last.items()}

    def operations(self) -> Iterator[Operation]:
        """What was kept of the chains inside, decoded, each chain in order."""
        for author in sorted(self._kept):
            yield from self._kept[author]

    def check_signatures(self) -> bool:
        """Whether the chain of epochs was signed by those it names: everything else rests on the certificate.

        The operations that concern it are verified; it begins with the founding terms, to which the pool's id commits.
        """
        for operation in (*self._beside.values(), *self.operations()):
            if isinstance(operation.body, Genesis | MotionBody | OpinionBody) or self._is_on_epochs(operation):
                payload = operation.signed[SIGNATURE_BYTES:]
                if not verify(operation.author, OPERATION_TAG, payload, operation.signed[:SIGNATURE_BYTES]):
                    return False
        return True
