"""When an elector's ballots are cast, and how many stand under one signature.

Knows: which subjects are to be looked at, and which own votes are still being written. Must not know: what to vote (see
`elector`), or how operations are signed and stored.
Source: `docs/protocol.md`, timers.

While an own vote is being written the next ones collect (group commit). So they do for a moment after a vote on several
tasks: under load a signature then carries many ballots, and a single task is never kept waiting.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

from converge_p2p.core import limits
from converge_p2p.core.oplog.bodies import Ballot, VoteBody
from converge_p2p.core.replica.elector import Elector, Wait
from converge_p2p.core.replica.events import TimerKey, TimerKind
from converge_p2p.core.replica.watch import TaskWatch
from converge_p2p.core.types import TaskId
from converge_p2p.core.view.changes import EpochRegister
from converge_p2p.core.view.fold import View
from converge_p2p.core.view.register import Register
from converge_p2p.core.view.vetoes import VetoRegister

VOTE_PAUSE_MS = 20

_TIMERS = {"hold_off": TimerKind.HOLD_OFF, "grant": TimerKind.GRANT, "window": TimerKind.WINDOW}


class Voting:
    """The votes of the local identity in one pool."""

    def __init__(
        self, elector: Elector, view: View, watch: TaskWatch, set_timer: Callable[[TimerKey, int], None]
    ) -> None:
        """Begin with nothing to vote on.

        Args:
            elector: says what to vote.
            view: the fold.
            watch: keeps the timers of each subject.
            set_timer: called with a key and a delay in milliseconds.
        """
        self._elector = elector
        self._view = view
        self._watch = watch
        self._set_timer = set_timer
        self._undecided: dict[TaskId, None] = {}
        self._being_written = 0
        self._next_ms = 0
        self._paused = False

    def look_at(self, name: TaskId) -> None:
        """Something about a subject changed."""
        self._undecided[name] = None

    def written(self) -> None:
        """An own vote is durable."""
        self._being_written -= 1

    def pause_over(self) -> None:
        """The timer of a pause fired."""
        self._paused = False

    def cast(self, now_ms: int) -> Iterator[VoteBody]:
        """Every ballot that is due, under as few signatures as possible; empty while own votes are being written."""
        if not self._undecided or self._being_written:
            return
        if now_ms < self._next_ms:
            if not self._paused:
                self._paused = True
                self._set_timer(TimerKey(TimerKind.VOTE), self._next_ms - now_ms)
            return
        subjects, self._undecided = self._undecided, {}
        ballots: list[Ballot] = []
        for name in subjects:
            register = self._view.subject(name)
            if not isinstance(register, EpochRegister):
                ballots.extend(self._due(name, register, now_ms))
        if len({ballot.task for ballot in ballots}) > 1:
            self._next_ms = now_ms + VOTE_PAUSE_MS
        yield from self._parts(ballots)
        # a promise for the next epoch ends the votes in this one, so it stands behind them in the chain
        for name in subjects:
            register = self._view.subject(name)
            if isinstance(register, EpochRegister):
                yield from self._parts(self._due(name, register, now_ms))

    def _parts(self, ballots: list[Ballot]) -> Iterator[VoteBody]:
        size = limits.BALLOTS_PER_VOTE_MAX
        for start in range(0, len(ballots), size):
            self._being_written += 1
            yield VoteBody(tuple(ballots[start : start + size]))

    def _due(self, name: TaskId, register: Register | None, now_ms: int) -> list[Ballot]:
        if register is None or register.settled is not None:
            if not isinstance(register, EpochRegister):
                # that of an epoch is kept until the epoch is in force: till then the elector stays sealed
                self._elector.forget(name)
            if isinstance(register, VetoRegister):
                self._watch.forget(name)
            return []
        wait = functools.partial(self._wait, name)
        due = self._elector.consider(register, self._watch.patience(name), now_ms, wait)
        self._elector.note_own(self._view.epochs.number, tuple(due))
        return due

    def _wait(self, name: TaskId, wait: Wait) -> None:
        self._set_timer(TimerKey(_TIMERS[wait.what], name), wait.delay_ms)
