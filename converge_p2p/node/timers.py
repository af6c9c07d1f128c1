"""All timers of a node's replicas, waited for by one task.

Knows: due times. Must not know: what a timer is for.
Source: a heap with lazy deletion; a timer that was set anew or cancelled leaves a stale entry behind, which is skipped,
and swept out once stale entries are the most.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Hashable

import trio

FIRED_IN_A_ROW = 64
"""After so many due timers other tasks get their turn."""
STALE_MIN = 64
"""So few stale entries are not worth a sweep."""


class Timers:
    """Set, replace and cancel timers; `run` fires them."""

    def __init__(self) -> None:
        """Make it without timers."""
        self._due: dict[Hashable, tuple[float, Callable[[], None]]] = {}
        self._heap: list[tuple[float, int, Hashable]] = []
        self._order = itertools.count()
        self._wake = trio.Event()

    def __len__(self) -> int:
        """Return how many timers are set."""
        return len(self._due)

    @property
    def entries(self) -> int:
        """How many entries are held, stale ones included: at most twice the timers and a few."""
        return len(self._heap)

    def set(self, key: Hashable, at: float, fire: Callable[[], None]) -> None:
        """Call `fire` at `at` on trio's clock; an earlier setting of the key is replaced."""
        self._due[key] = (at, fire)
        heapq.heappush(self._heap, (at, next(self._order), key))
        if self._heap[0][2] == key:
            self._wake.set()
        self._sweep()

    def cancel(self, key: Hashable) -> None:
        """Forget a timer."""
        if self._due.pop(key, None) is not None:
            self._sweep()

    def cancel_all(self, owner: Hashable) -> None:
        """Forget every timer whose key is a tuple that begins with `owner`."""
        for key in [key for key in self._due if isinstance(key, tuple) and key[0] == owner]:
            del self._due[key]
        self._sweep()

    async def run(self) -> None:
        """Fire timers until cancelled."""
        while True:
            self._wake = trio.Event()
            with trio.move_on_at(self._next()):
                await self._wake.wait()
            now, fired = trio.current_time(), 0
            while fired < FIRED_IN_A_ROW and self._heap and self._heap[0][0] <= now:
                at, _, key = heapq.heappop(self._heap)
                due = self._due.get(key)
                if due is not None and due[0] == at:
                    del self._due[key]
                    fired += 1
                    due[1]()
            await trio.lowlevel.checkpoint()

    def _next(self) -> float:
        while self._heap:
            at, _, key = self._heap[0]
            due = self._due.get(key)
            if due is not None and due[0] == at:
                return at
            heapq.heappop(self._heap)
        return math.inf

    def _sweep(self) -> None:
        """Drop stale entries once they are the most, so that each costs a constant share of a sweep."""
        if len(self._heap) <= 2 * len(self._due) + STALE_MIN:
            return
        self._heap = [(at, next(self._order), key) for key, (at, _) in self._due.items()]
        heapq.heapify(self._heap)
