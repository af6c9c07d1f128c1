"""The scheduler: wakes an agent's loop when there is something to do.

Knows: that something happened, or that it is time. Must not know: what. Event-driven: nothing is polled, so nothing
waits for a poll, and a thousand idle agents cost nothing.
Source: the level-triggered wake-up of condition variables; a notification is kept until it was answered.
"""

from __future__ import annotations

import math
from typing import Protocol

import trio


class SchedulerLike(Protocol):
    """What a runtime needs of a scheduler."""

    def notify(self) -> None: ...
    def wake_at(self, when: float) -> None: ...
    async def wait_for_work(self, timeout: float | None = None) -> bool: ...


class Scheduler:
    """One consumer waits; anybody in the trio thread notifies. Notifications merge and are never lost."""

    def __init__(self) -> None:
        self._notified = False
        self._due = math.inf
        self._event = trio.Event()

    def notify(self) -> None:
        """Say that there is work. Wakes the waiter at once, or the next call of `wait_for_work`."""
        self._notified = True
        self._event.set()

    def wake_at(self, when: float) -> None:
        """Say that there is work at a time of trio's clock. Of several times the earliest counts, then no other."""
        if when < self._due:
            self._due = when
            # whoever waits already has to look at the clock anew
            self._event.set()

    async def wait_for_work(self, timeout: float | None = None) -> bool:
        """Wait until somebody notified or a time came, and say whether that was so.

        Args:
            timeout: seconds, or None to wait without end.

        Returns:
            True if there was a notification since the last call that returned True; False if the time ran out.

        Cancellation: the notification stays, for the next call.
        """
        until = math.inf if timeout is None else trio.current_time() + max(0.0, timeout)
        while True:
            with trio.move_on_at(min(until, self._due)):
                await self._event.wait()
            # an event that is set lets the wait above return after a checkpoint, so this is where it is consumed
            looked_at = self._event.is_set()
            if looked_at:
                self._event = trio.Event()
            notified, self._notified = self._notified, False
            now = trio.current_time()
            if now >= self._due:
                self._due, notified = math.inf, True
            if notified or not looked_at or now >= until:
                return notified
