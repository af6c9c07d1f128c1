"""What follows in a replica when an epoch comes into force, or the place of a key changes.

Knows: in which order log, fold and memory follow. Must not know: how an epoch was certified (see `view`).
Source: `docs/protocol.md`, epochs and succession.
"""

from __future__ import annotations

from collections.abc import Callable

from converge_p2p.core.identity import Identity
from converge_p2p.core.oplog.log import OperationLog
from converge_p2p.core.oplog.operation import Operation
from converge_p2p.core.replica import events as ev
from converge_p2p.core.replica.elector import Elector
from converge_p2p.core.replica.private import PrivateContents
from converge_p2p.core.replica.watch import TaskWatch
from converge_p2p.core.types import PublicKey
from converge_p2p.core.view.epochs import Epoch
from converge_p2p.core.view.fold import View


def out_of_chain(view: View, log: OperationLog) -> list[bytes]:
    """The votes and reports that opened epochs, and that no chain here holds: none can be asked for by its number."""
    early = [(name, signed) for change in view.changes.values() for name, signed in change.early.items()]
    return [signed for name, signed in early if not log.holds(name)]


class Installer:
    """Puts epochs in force on one replica, and folds chains anew."""

    def __init__(
        self,
        key: PublicKey,
        log: OperationLog,
        view: View,
        watch: TaskWatch,
        elector: Elector,
        contents: PrivateContents,
        *,
        emit: Callable[[ev.Notice], None],
        touch: Callable[..., None],
        touch_open: Callable[[], None],
    ) -> None:
        """Make one; `touch` and `touch_open` have subjects looked at."""
        self._key = key
        self._log = log
        self._view = view
        self._watch = watch
        self._elector = elector
        self._contents = contents
        self._emit = emit
        self._touch = touch
        self._touch_open = touch_open
        self._came: set[int] = set()
        """Epochs that came into force, of which what waits was not looked at yet."""

    def refold(self) -> None:
        """Fold the chains of keys anew that took another's place, or whose own was taken."""
        while (key := self._view.successions.take_stale()) is not None:
            chain = self._log.decoded(key)
            self._touch(*self._view.refold(key, chain, self._log.base(key)))
            self._contents.applied(*chain)
            self._contents.changed()
            # no join or leave says it: who works here learns from this what it may do now
            self._emit(ev.MembersChanged(Identity.from_public_key(key).id, self._view.members.has(key)))

    def install(self) -> None:
        """Put every epoch in force that is certified by now, one after the other."""
        while (epoch := self._view.try_install()) is not None:
            before = self._view.changes_at(epoch.number).id
            self._watch.forget(before)
            self._elector.forget(before)
            self._cut(epoch)
            self._log.know_epoch(epoch.number)
            self._came.add(epoch.number)
            self._contents.changed()
            self._touch_open()
            self._emit(ev.EpochInstalled(epoch.number, self._key in self._view.electors))

    def count_early(self, operation: Operation, *, trusted: bool) -> list[bytes]:
        """Count what an operation that was parked says of the next epoch.

        Args:
            operation: the operation.
            trusted: it comes from this node's own store, where only what was counted is kept.

        Returns:
            The signed operations that were counted by this.
        """
        counted = self._view.apply_early(operation, trusted=trusted)
        if counted is None:
            return []
        if not counted:
            # it may be needed yet, and is only looked at when it comes: let it come again
            self._log.parking.turn_out(operation)
            return []
        self._touch(self._view.changes_at(operation.epoch + 1).id)
        self.install()
        return [each.signed for each in counted]

    @property
    def has_waiting(self) -> bool:
        """Whether `count_waiting` may count something."""
        return bool(self._came)

    def count_waiting(self) -> list[bytes]:
        """Count what waits for predecessors and came before the epoch that it names; see `count_early`.

        Once all that no longer waits for the epoch was taken out: what waits still may wait for what nobody has.
        """
        came, self._came = self._came, set()
        waiting = self._log.parking.naming(came)
        counted = [signed for operation in waiting for signed in self.count_early(operation, trusted=False)]
        self.refold()
        return counted

    def _cut(self, epoch: Epoch) -> None:
        for cut in epoch.cuts:
            was_member = self._view.members.has(cut.author)
            voided = self._log.cut(cut.author, cut.length)
            forked = self._log.forked(cut.author)
            self._touch(*self._view.cut(cut, voided, forked=forked))
            if forked:
                seq = self._log.frozen_at(cut.author)
                assert seq is not None
                self._touch(*self._view.void(cut.author, seq, []))
            if was_member:
                self._emit(ev.MembersChanged(Identity.from_public_key(cut.author).id, joined=False))
