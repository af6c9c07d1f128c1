"""How the process ends: gracefully within a bound, or at once when asked twice.

Knows: signals, deadlines, and the names of what hangs. Must not know: what is being closed.
Source: docs/operations.md, signals. A thread keeps the deadline, because a program that hangs may hang its loop.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Final

import trio

from converge_node.errors import ExitCode

SOFT_SHARE: Final = 0.8
"""The part of the time-out after which what still runs is cancelled; the rest is for that to take effect."""

_log = logging.getLogger("converge_node.shutdown")


class Shutdown:
    """One request to stop, however often and from wherever it comes.

    Attributes:
        requested: set by the first request.
        reason: of it.
        timeout_s: how long a graceful end may take.
    """

    def __init__(self, timeout_s: float, *, on_stage: Callable[[str], None] = lambda _stage: None) -> None:
        """Prepare; nothing runs yet.

        Args:
            timeout_s: how long a graceful end may take.
            on_stage: told the name of each stage as it begins.
        """
        self.requested = trio.Event()
        self.reason = ""
        self.timeout_s = timeout_s
        self._on_stage = on_stage
        self._stage = "starting"
        self._timer: threading.Timer | None = None

    def request(self, reason: str) -> None:
        """Begin to stop; only the first call counts. To be called in the trio thread."""
        if self.requested.is_set():
            return
        self.reason = reason
        _log.info("stopping", extra={"reason": reason, "timeout_s": self.timeout_s})
        self._start_timer(self.timeout_s, ExitCode.FAILURE)
        self.requested.set()

    def stage(self, name: str) -> None:
        """Note what is being done now, to be named if it hangs."""
        self._stage = name
        self._on_stage(name)

    def finish_within(self, seconds: float) -> None:
        """What matters is done: from now on a hang ends the process after `seconds`, as a success."""
        self._start_timer(seconds, ExitCode.OK)

    def done(self) -> None:
        """Everything is closed: the process ends by itself."""
        if self._timer is not None:
            self._timer.cancel()

    async def watch_signals(self) -> None:
        """Turn the first SIGTERM or SIGINT into a request, and the next into the end of the process."""
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            received = await anext(aiter(signals))
            # installed inside the receiver's block, which puts the old handlers back when it ends: so it never ends
            for each in (signal.SIGTERM, signal.SIGINT):
                signal.signal(each, _end_at_once)
            self.request(signal.Signals(received).name)
            await trio.sleep_forever()

    async def enforce(self, scope: trio.CancelScope) -> None:
        """Cancel `scope` when most of the time-out has passed, naming what still runs."""
        await self.requested.wait()
        await trio.sleep(self.timeout_s * SOFT_SHARE)
        _log.error("shutdown takes too long: cancelling", extra={"stage": self._stage, "tasks": list(_waiting_tasks())})
        scope.cancel()

    def _start_timer(self, seconds: float, code: ExitCode) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = threading.Timer(seconds, self._end_hard, (seconds, code))
        self._timer.daemon = True
        self._timer.start()

    def _end_hard(self, seconds: float, code: ExitCode) -> None:
        sys.stderr.write(f"shutdown did not end within {seconds:g} s; it hangs in: {self._stage}\n")
        sys.stderr.flush()
        os._exit(code)


def _end_at_once(_number: int, _frame: FrameType | None) -> None:
    os._exit(ExitCode.FORCED)


def _waiting_tasks() -> Iterator[str]:
    """Yield what the tasks of the running loop wait in, at most 32, outermost first."""
    root = trio.lowlevel.current_root_task()
    pending = [] if root is None else [root]
    count = 0
    while pending and count < 32:
        task = pending.pop(0)
        pending += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
        own = [frame for frame, _ in task.iter_await_frames() if not frame.f_globals["__name__"].startswith("trio.")]
        # the system's own tasks have no frame outside trio
        if own and task is not trio.lowlevel.current_task():
            count += 1
            yield f"{task.name} in {own[-1].f_code.co_qualname}, line {own[-1].f_lineno}"
