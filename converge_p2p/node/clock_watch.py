"""Whether the wall clock was set, while the node ran or since it last did.

Knows: two clocks, and what the wall clock showed last. Must not know: who uses the time for what.
Source: clock_gettime(2): CLOCK_BOOTTIME goes on while a machine sleeps, so that a sleep is no jump.

No operation, claim or vote rests on the wall clock. What does: messages, descriptors, invitations, terms with a date.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import trio

from converge_p2p.core.codec import decode, encode
from converge_p2p.core.errors import CodecError, StoreError
from converge_p2p.store.api import Store

_logger = logging.getLogger(__name__)

CLOCK_KEY: Final = "clock/last"
TICK_S: Final = 60.0
JUMP_S: Final = 30.0
"""Less is what a time service may correct at once."""
BEHIND_S: Final = 300.0
"""So far a start may lie before what the clock showed last; nobody refuses anything for less."""
SHOWN_S: Final = 3600.0


def steady_s() -> float:
    """Return seconds of a clock that nobody sets, and that goes on while the machine sleeps where there is one."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


@dataclass(frozen=True, slots=True)
class Jump:
    """The clock was set.

    Attributes:
        by_s: seconds; negative is back.
        at_s: when, by the steady clock.
        running: while the node ran.
    """

    by_s: float
    at_s: float
    running: bool

    @property
    def text(self) -> str:
        """One sentence for people."""
        if not self.running:
            return f"the clock is {-self.by_s:.0f} s behind what it showed when the node last ran"
        if self.by_s < 0:
            return f"the clock was set back by {-self.by_s:.0f} s"
        return f"the clock was set forward by {self.by_s:.0f} s, or the machine stood still"


class ClockWatch:
    """Compares the wall clock with a steady one. The methods that end in `_now` block."""

    def __init__(
        self,
        store: Store,
        counters: Counter[str],
        *,
        wall: Callable[[], float] = time.time,
        steady: Callable[[], float] = steady_s,
    ) -> None:
        """Begin to watch.

        Args:
            store: keeps what the clock showed last.
            counters: `clock_jumps` is counted there.
            wall: Unix time, seconds.
            steady: seconds of a clock that nobody sets.
        """
        self._store = store
        self._counters = counters
        self._wall = wall
        self._steady = steady
        self._seen = wall(), steady()
        self._jump: Jump | None = None

    def open_now(self) -> None:
        """Compare with what the clock showed when the node last ran. Raises `StoreError` if the store fails."""
        data = self._store.get(CLOCK_KEY)
        try:
            last = None if data is None else decode(data)
        except CodecError:
            # it is of use for a warning only
            last = None
        wall, steady = self._seen
        if isinstance(last, int) and wall < last - BEHIND_S:
            self._note(Jump(wall - last, steady, running=False))

    def look(self) -> Jump | None:
        """Compare the clocks; return the last jump if it is not longer ago than `SHOWN_S`."""
        wall, steady = self._wall(), self._steady()
        by_s = (wall - self._seen[0]) - (steady - self._seen[1])
        self._seen = wall, steady
        if abs(by_s) >= JUMP_S:
            self._note(Jump(by_s, steady, running=True))
        if self._jump is not None and steady > self._jump.at_s + SHOWN_S:
            self._jump = None
        return self._jump

    def keep_now(self) -> None:
        """Remember what the clock shows. Raises `StoreError` if the store fails."""
        self._store.put(CLOCK_KEY, encode(max(0, int(self._wall()))))

    async def run(self) -> None:
        """Compare from time to time, until cancelled."""
        # what is wrong with the store shows where something rests on it; a warning may be missed
        with suppress(StoreError):
            await trio.to_thread.run_sync(self.open_now)
        while True:
            self.look()
            with suppress(StoreError):
                await trio.to_thread.run_sync(self.keep_now)
            await trio.sleep(TICK_S)

    def _note(self, jump: Jump) -> None:
        self._jump = jump
        self._counters["clock_jumps"] += 1
        _logger.warning("%s: others may refuse messages for their time", jump.text)
