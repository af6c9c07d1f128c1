"""Local patience with every open task: how long a holder may take, and when the application is told.

Knows: local timers and what was shown. Must not know: votes to cast (see `elector`), or what is right.
Source: `docs/protocol.md`, liveness. A bad clock here costs time or duplicated work, never two results.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from converge_p2p.core.codec import tagged_hash
from converge_p2p.core.model.pool import PoolPolicy
from converge_p2p.core.model.task import TaskState
from converge_p2p.core.oplog.bodies import Purpose, Token
from converge_p2p.core.replica.elector import Patience
from converge_p2p.core.replica.events import Notice, TaskChanged, TaskProgress, TimerKey, TimerKind
from converge_p2p.core.replica.ranking import eligible
from converge_p2p.core.replica.renewal import Hold, Renewal, round_ttl_ms
from converge_p2p.core.types import PublicKey, TaskId
from converge_p2p.core.view.fold import View
from converge_p2p.core.view.register import Register, StandingClaim
from converge_p2p.core.view.tasks import TaskRegister

FOUNDING_PATIENCE = 4
"""Whoever may found the next epoch has so many grant timers' time for it, doubled with each round."""


@dataclass(slots=True)
class _Local:
    """What is known here and now about an open task, beside the fold.

    Attributes:
        hold: the time of whoever holds it.
        closing: the timer runs after which this node stands for what somebody has to: to settle a failure, to found an
            epoch, to let a result pass or to deny it.
        shown: what the application was told last.
    """

    patience: Patience = field(default_factory=Patience)
    hold: Hold | None = None
    closing: bool = False
    shown: tuple[TaskState, Token | None, bool, bool] | None = None


class TaskWatch:
    """Timers and notices of the open tasks of one pool."""

    def __init__(
        self,
        key: PublicKey,
        view: View,
        set_timer: Callable[[TimerKey, int], None],
        emit: Callable[[Notice], None],
        now_ms: Callable[[], int],
    ) -> None:
        """Make a watch.

        Args:
            key: the local identity.
            view: the fold.
            set_timer: called with a key and a delay in milliseconds.
            emit: called with each notice.
            now_ms: returns the local monotonic clock.
        """
        self._key = key
        self._view = view
        self._set_timer = set_timer
        self._emit = emit
        self._now_ms = now_ms
        self._local: dict[TaskId, _Local] = {}
        self._closed: set[TaskId] = set()

    def patience(self, task: TaskId) -> Patience:
        """The elector's timers of a task."""
        return self._of(task).patience

    def closed(self, task: TaskId) -> bool:
        """Whether the task is settled and the application was told."""
        return task in self._closed

    def look(self, register: Register, *, idle: bool) -> None:
        """Set the timers a changed subject needs, and tell the application if a task looks different.

        Args:
            register: the subject.
            idle: whether this node has nothing to do when its turn comes to settle a task's failure, or to found the
                next epoch: it stands for that already, or may not sign.
        """
        if register.is_open:
            self._watch_holder(register)
            if not idle:
                self._watch_turn(register)
        if isinstance(register, TaskRegister) and register.submitted is not None:
            self._show(register)

    def fired(self, kind: TimerKind, register: Register) -> bool:
        """A timer of a subject is due. Returns whether this node should now stand: see `look`."""
        local = self._local.get(register.id)
        if local is None or not register.is_open:
            return False
        patience = local.patience
        if kind is TimerKind.HOLD_OFF:
            patience.hold_off_over, patience.holding_off = True, False
        elif kind is TimerKind.GRANT:
            if patience.grant_timer is not None and register.certified_id(patience.grant_timer) is None:
                patience.stalled = patience.grant_timer
        elif kind is TimerKind.CLAIM:
            if patience.claim_timer is not None and patience.claim_timer == register.top:
                patience.expired = patience.claim_timer
        elif kind is TimerKind.WINDOW:
            patience.window_over = True
        elif kind is TimerKind.CLOSE:
            local.closing = False
            return self._needs_somebody(register)
        return False

    def forget(self, subject: TaskId) -> None:
        """An epoch was installed, a veto decided, or a task is below a checkpoint: it needs no timers any more."""
        self._local.pop(subject, None)
        self._closed.discard(subject)

    def expired(self, task: TaskId) -> bool:
        """Whether the time of whoever holds the task is over on the local clock."""
        register, local = self._view.registers.get(task), self._local.get(task)
        return register is not None and local is not None and _is_expired(local, register)

    # ------------------------------------------------------------ renewals

    def said(self, task: TaskId) -> Renewal | None:
        """What the holder of the top round said last, if anything."""
        hold = self._hold(task)
        return None if hold is None else hold.renewal

    def heard(self, task: TaskId, signed: bytes) -> bool:
        """Whether this is, to the byte, what the holder said last."""
        hold = self._hold(task)
        return hold is not None and hold.signed == signed

    def takes(self, renewal: Renewal) -> bool:
        """Whether a statement would be news, if its signature holds."""
        hold = self._hold(renewal.task)
        return hold is not None and hold.takes(renewal, self._now_ms())

    def renewed(self, register: TaskRegister, renewal: Renewal, signed: bytes) -> None:
        """The holder of the top round said something, and its signature was verified."""
        hold = self._hold(register.id)
        if hold is None or hold.token != renewal.token:
            return
        patience = self._of(register.id).patience
        left_ms = hold.renew(renewal, signed, self._now_ms())
        if left_ms is not None:
            # impatience that nobody acted on yet is taken back, too
            patience.expired = None if patience.expired == hold.token else patience.expired
            self._set_timer(TimerKey(TimerKind.CLAIM, register.id), left_ms)
        self._show(register)
        epoch, number = renewal.token
        self._emit(TaskProgress(register.id, epoch, number, renewal.fraction, renewal.note))

    def pass_on(self, task: TaskId) -> bool:
        """Whether what the holder said last is to be passed on. Once each: a replay would be multiplied."""
        hold = self._hold(task)
        if hold is None or hold.passed_on:
            return False
        hold.passed_on = True
        return True

    def _hold(self, task: TaskId) -> Hold | None:
        register, local = self._view.registers.get(task), self._local.get(task)
        if register is None or local is None or local.hold is None or local.hold.token != register.top:
            return None
        return local.hold

    # ------------------------------------------------------------ inside

    def _of(self, task: TaskId) -> _Local:
        local = self._local.get(task)
        if local is None:
            local = self._local[task] = _Local()
        return local

    def _policy(self) -> PoolPolicy:
        assert self._view.spec is not None
        return self._view.spec.policy

    def _watch_holder(self, register: Register) -> None:
        """Measure the holder's time on the local clock, from when its certificate was first seen."""
        top = register.top
        if top is None or register.certified_id(top) is None:
            return
        local = self._of(register.id)
        if local.patience.claim_timer == top:
            return
        local.patience.claim_timer = top
        ttl_ms = round_ttl_ms(self._base_ttl_ms(register), top.round)
        local.hold = Hold(top, ttl_ms, self._now_ms())
        self._set_timer(TimerKey(TimerKind.CLAIM, register.id), ttl_ms)

    def _base_ttl_ms(self, register: Register) -> int:
        policy = self._policy()
        if isinstance(register, TaskRegister) and register.submitted is not None:
            return register.submitted.spec.claim_ttl_ms or policy.claim_ttl_ms
        return FOUNDING_PATIENCE * policy.grant_timer_ms

    def _watch_turn(self, register: Register) -> None:
        """When a failure is to be settled or an epoch to be founded, somebody has to stand: one after the other."""
        if not self._needs_somebody(register):
            return
        electors, me, first = self._view.electors, self._key, None
        if isinstance(register, TaskRegister) and register.submitted is not None:
            first = register.submitted.author
        local = self._of(register.id)
        if local.closing or (me != first and me not in electors):
            return
        local.closing = True
        others = sorted(
            (elector for elector in electors if elector != first),
            key=lambda key: tagged_hash("close-rank", register.id, key),
        )
        turn = 0 if me == first else (first is not None) + others.index(me)
        self._set_timer(TimerKey(TimerKind.CLOSE, register.id), turn * 2 * self._policy().grant_timer_ms)

    def _needs_somebody(self, register: Register) -> bool:
        if isinstance(register, TaskRegister) and not register.exhausted():
            return False
        superseded = {claim.operation for token, claim in register.held_rounds() if token != register.top}
        return not any(
            self._may_stand(register, claim) and claim.operation not in superseded for claim in register.claims.values()
        )

    def _may_stand(self, register: Register, claim: StandingClaim) -> bool:
        """Whether a claim does what is needed, and is of somebody entitled: a stranger may not keep others off."""
        if not isinstance(register, TaskRegister):
            return eligible(self._view, register, claim)
        return claim.purpose is Purpose.FAIL and eligible(self._view, register, claim)

    def _show(self, register: TaskRegister) -> None:
        local = self._of(register.id)
        top, state = register.top, register.state
        expired = not state.terminal and _is_expired(local, register)
        shown = (state, top if state is TaskState.ASSIGNED else None, expired, register.awaiting is not None)
        if shown == local.shown:
            return
        local.shown = shown
        token = register.settled_token if state.terminal else top
        epoch, number = (0, -1) if token is None else token
        self._emit(TaskChanged(register.id, state, epoch, number))
        if state.terminal:
            self._closed.add(register.id)
            del self._local[register.id]


def _is_expired(local: _Local, register: TaskRegister) -> bool:
    expired = local.patience.expired
    return expired is not None and expired == register.top
