"""How many requests to the network one agent may make: a bucket that fills again with time.

Knows: numbers and the monotonic clock. Must not know: what a request is (see `charged` for which decisions are one).
Source: `docs/policy.md`; the token bucket of traffic shaping.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import trio

from converge_p2p.core.errors import LimitExceeded, LocalError
from converge_p2p.core.model.decision import Decision, InvokeTool, ReleaseTask, ReportTask

_FREE: frozenset[type[Decision]] = frozenset({InvokeTool, ReportTask, ReleaseTask})
"""Stays on the machine; or ends work that was paid for when it was claimed, and would be lost otherwise."""


def charged(decision: Decision) -> bool:
    """Whether a decision is a request to the network. Every kind of the application's own is."""
    return type(decision) not in _FREE


class RequestBudget:
    """So many requests in so many seconds, evenly refilled. Used from one task.

    Attributes:
        spent, refused: counts since the start.
    """

    def __init__(
        self, requests: int | None, period_s: float = 60.0, *, clock: Callable[[], float] = trio.current_time
    ) -> None:
        """Begin with a full bucket.

        Args:
            requests: how many at once, and in each period. None: no bound. 0: none at all.
            period_s: after so many seconds an empty bucket is full again, above 0.
            clock: monotonic, in seconds.

        Raises:
            LocalError: a number that is out of its range, or none.
        """
        if requests is not None and (type(requests) is not int or requests < 0):
            raise LocalError(f"requests is {requests!r}; expected an integer of 0 or more")
        if isinstance(period_s, bool) or not isinstance(period_s, int | float) or not 0 < period_s < math.inf:
            raise LocalError(f"period_s is {period_s!r}; expected a finite number of seconds above 0")
        self._requests = requests
        self._period_s = float(period_s)
        self._clock = clock
        self._left = float(requests or 0)
        self._at = -math.inf
        self.spent = 0
        self.refused = 0

    def spend(self) -> None:
        """Count one request.

        Raises:
            LimitExceeded: nothing is left; the message says when there is.
        """
        if self._requests == 0:
            self.refused += 1
            raise LimitExceeded("network_requests", "requests to the network are not allowed")
        if self._requests is not None:
            now = self._clock()
            if self._at > -math.inf:
                grown = max(0.0, now - self._at) * self._requests / self._period_s
                self._left = min(float(self._requests), self._left + grown)
            self._at = now
            if self._left < 1:
                self.refused += 1
                raise LimitExceeded("network_requests", self._refusal())
            self._left -= 1
        self.spent += 1

    def _refusal(self) -> str:
        assert self._requests, "nothing is refused otherwise"
        wait_s = (1 - self._left) * self._period_s / self._requests
        return f"{self._requests} requests in {self._period_s:g} s are allowed; the next one in {wait_s:.1f} s"
