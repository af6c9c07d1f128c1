"""Worker threads for code that blocks: bounded, and honest about threads that were given up on.

Knows: that a thread cannot be stopped, so an abandoned one still counts until it ends. Must not know: what it runs.
Source: trio's threads (`abandon_on_cancel`, and any object with the limiter's interface); the bulkhead pattern.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, cast

import trio


class BoundedThreads:
    """Runs synchronous functions in at most `threads_max` threads at a time.

    Attributes:
        abandoned: threads that still run although nobody waits for them any more.
        abandoned_total: how many were ever abandoned.
    """

    def __init__(self, threads_max: int, on_end: Callable[[], None] | None = None) -> None:
        """Make the bound.

        Args:
            threads_max: how many threads may run, abandoned ones included.
            on_end: called in the trio thread when an abandoned thread has ended.
        """
        self.limiter = trio.CapacityLimiter(threads_max)
        self.abandoned = 0
        self.abandoned_total = 0
        self._on_end = on_end

    @property
    def free(self) -> int:
        """How many more threads may start now."""
        return int(self.limiter.total_tokens) - self.limiter.borrowed_tokens

    async def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run `function(*args)` in a thread and return what it returns.

        Cancellation: the caller goes on at once; the thread is abandoned and keeps its place until it ends.
        """
        place = _Place(self)

        def call() -> tuple[Any]:
            # in a tuple, because trio refuses a coroutine as the result of a thread
            return (function(*args),)

        try:
            limiter = cast("trio.CapacityLimiter", place)
            boxed = await trio.to_thread.run_sync(call, abandon_on_cancel=True, limiter=limiter)
        except trio.Cancelled:
            place.abandon()
            raise
        return boxed[0]

    async def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function of the application, plain or async, and return what comes of it. A plain one has a thread.

        Cancellation: as in `run`; an async one is cancelled.
        """
        if inspect.iscoroutinefunction(function):
            return await function(*args)
        value = await self.run(function, *args)
        return await value if inspect.isawaitable(value) else value

    def note_abandoned(self) -> None:
        """Count a thread nobody waits for."""
        self.abandoned += 1
        self.abandoned_total += 1

    def note_ended(self) -> None:
        """Count the end of a thread nobody waited for."""
        self.abandoned -= 1
        if self._on_end is not None:
            self._on_end()


class _Place:
    """One place under the limit. It stands where a limiter is expected, to learn when the thread really ended."""

    def __init__(self, threads: BoundedThreads) -> None:
        self._threads = threads
        self._held = False
        self._abandoned = False

    async def acquire_on_behalf_of(self, borrower: object) -> None:
        await self._threads.limiter.acquire_on_behalf_of(borrower)
        self._held = True

    def release_on_behalf_of(self, borrower: object) -> None:
        self._threads.limiter.release_on_behalf_of(borrower)
        self._held = False
        if self._abandoned:
            self._threads.note_ended()

    def abandon(self) -> None:
        # cancelled while it waited for a place, or after the thread ended: then there is nothing to count
        if self._held:
            self._abandoned = True
            self._threads.note_abandoned()
