"""The scheduler: wakes an agent's loop when there is something to do.

Knows: that something happened. Must not know: what. Event-driven: nothing is polled, so nothing waits for a poll.
Source: the level-triggered wake-up of condition variables; a notification is kept until it was answered.
"""

from __future__ import annotations

import math

import trio


class Scheduler:
    """One consumer waits; anybody in the trio thread notifies. Notifications merge and are never lost."""

    def __init__(self) -> None:
        self._notified = False
        self._event = trio.Event()

    def notify(self) -> None:
        """Say that there is work. Wakes the waiter at once, or the next call of `wait_for_work`."""
        self._notified = True
        self._event.set()

    async def wait_for_work(self, timeout: float | None = None) -> bool:
        """Wait until somebody notified, and say whether that was so.

        Args:
            timeout: seconds, or None to wait without end.

        Returns:
            True if there was a notification since the last call that returned True; False if the time ran out.

        Cancellation: the notification stays, for the next call.
        """
        with trio.move_on_after(math.inf if timeout is None else max(0.0, timeout)):
            await self._event.wait()
        # an event that is set lets the wait above return after a checkpoint, so this is the only place that consumes
        notified = self._notified
        if notified:
            self._notified = False
            self._event = trio.Event()
        return notified
