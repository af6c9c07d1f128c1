"""Whose turn it is to claim a task: one worker at a time, so that not every one of them claims every task.

Knows: who was seen working, and how long a claim takes to be granted. Must not know: handlers, slots. Pure: time comes
in as a value.
Source: rendezvous hashing (Thaler and Ravishankar, 1998); `docs/decisions/0030-claims-in-turn.md`.

A claim that loses costs every member of the pool a verification and a place in the log. So a worker lets those claim
first who would win against it, for as long as a claim takes to be granted. It only decides when to claim: somebody who
claims out of turn is as welcome, and one whose turn it is and who does nothing costs the task that little while.
"""

from __future__ import annotations

from collections import OrderedDict

from converge_p2p.core import limits
from converge_p2p.core.replica.ranking import claim_rank
from converge_p2p.core.types import PublicKey, TaskId

TURN_S_MIN, TURN_S_MAX = 0.02, 0.5
"""How long one turn lasts at least and at most, seconds."""

TURNS_WAITED_MAX = 3
"""Whoever comes later than this claims together with the others that do: most of those before are gone, then."""

SEEN_S = 60.0
"""So long after it was last seen to hold a task somebody is taken for a worker that goes on."""

_TURN_OF_LATENCY = 1.5
_SMOOTHING = 8


class Turns:
    """The workers of one objective, as one of them sees them."""

    def __init__(self, worker: PublicKey) -> None:
        """Begin alone.

        Args:
            worker: who waits here.
        """
        self._worker = worker
        self._seen: OrderedDict[PublicKey, float] = OrderedDict()
        self._latency_s = 0.0

    def __len__(self) -> int:
        """Return how many others are known, at most `limits.WORKERS_SEEN_MAX`."""
        return len(self._seen)

    @property
    def turn_s(self) -> float:
        """How long one turn lasts now, seconds."""
        return min(TURN_S_MAX, max(TURN_S_MIN, _TURN_OF_LATENCY * self._latency_s))

    def saw(self, worker: PublicKey, now: float) -> None:
        """Note that somebody holds a task. The one that was not seen for the longest time is forgotten for it."""
        if worker == self._worker:
            return
        self._seen[worker] = now
        self._seen.move_to_end(worker)
        if len(self._seen) > limits.WORKERS_SEEN_MAX:
            self._seen.popitem(last=False)

    def granted(self, took_s: float) -> None:
        """Note how long an own claim took to be granted, seconds."""
        # one that waited for electors that were away says nothing of those to come
        took_s = min(took_s, TURN_S_MAX)
        if not self._latency_s:
            self._latency_s = took_s
        self._latency_s += (took_s - self._latency_s) / _SMOOTHING

    def wait_s(self, task: TaskId, now: float) -> float:
        """Return how long to leave a task that nobody claimed yet to others, seconds."""
        while self._seen and next(iter(self._seen.values())) <= now - SEEN_S:
            self._seen.popitem(last=False)
        if not self._seen:
            return 0.0
        own, before = claim_rank(task, 0, self._worker), 0
        for other in self._seen:
            before += claim_rank(task, 0, other) < own
            if before == TURNS_WAITED_MAX:
                break
        return before * self.turn_s
