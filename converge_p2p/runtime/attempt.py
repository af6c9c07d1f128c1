"""One attempt at a task: run the handler, and say what its end means for the task.

Knows: handlers, their time limit, and how a result is encoded. Must not know: claims, rounds of other workers, ports.
Source: `docs/concepts.md`, workers; a handler's error fails the task, never the node.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import trio

from converge_p2p.core.codec import encode_value
from converge_p2p.core.errors import CodecError, ConvergeError, LimitExceeded
from converge_p2p.core.limits import RENEWAL_NOTE_BYTES_MAX, TEXT_BYTES_MAX
from converge_p2p.core.model.task import Outcome, TaskView
from converge_p2p.core.model.trace import context_of
from converge_p2p.core.types import TaskId
from converge_p2p.runtime.executor import encode_result
from converge_p2p.runtime.fencing import Fence
from converge_p2p.runtime.ports import ContentPort
from converge_p2p.runtime.threads import BoundedThreads
from converge_p2p.runtime.tracing import entered

_logger = logging.getLogger(__name__)

HandlerFunction = Callable[[TaskView, "WorkContext"], Any]
"""Takes the task and its context; plain or async; returns the result of the task."""


_ROOM = ("BLOB_STORE_BYTES_MAX", "BLOBS_KEPT_MAX")


class PermanentFailure(ConvergeError):
    """Raised by a handler: the task cannot be done, and trying again would not help. The message is the reason."""

    code = "permanent_failure"


class WorkContext:
    """What a handler knows about its attempt.

    Attributes:
        task_id: the task.
        token: (epoch, round), the fencing token. A side effect outside must carry it with the task id: the same
            task may be worked on again, always with a greater token.
        done: the last progress that was given, 0 to 1.
        note: what was said with it.
        news: set when something was said, until it was passed on.
        blobs: contents too large for a task: those that references in the inputs name, and those for the result. None
            where there is no node.
    """

    __slots__ = ("_cancelled", "_trio", "blobs", "done", "news", "note", "task_id", "token")

    def __init__(self, task_id: TaskId, token: tuple[int, int]) -> None:
        """Made by the worker pool."""
        self.task_id = task_id
        self.token = token
        self.done = 0.0
        self.note = ""
        self.news = trio.Event()
        self.blobs: ContentPort | None = None
        self._cancelled = False
        self._trio: trio.lowlevel.TrioToken | None = None
        if trio.lowlevel.in_trio_run():
            self._trio = trio.lowlevel.current_trio_token()

    @property
    def fence(self) -> Fence:
        """What a tool with side effects is called with: `tools.call(name, params, fence=context.fence)`."""
        return Fence(self.task_id, *self.token)

    @property
    def cancelled(self) -> bool:
        """Whether the attempt was given up. For plain handlers, whose thread cannot be stopped: look and return."""
        return self._cancelled

    def set_progress(self, fraction: float, note: str = "") -> None:
        """Say how much is done. For plain handlers; may be called from their thread.

        Args:
            fraction: what is out of 0 to 1, or not a number, is brought into it.
            note: for people; cut to `limits.RENEWAL_NOTE_BYTES_MAX` bytes.
        """
        self.done = 0.0 if math.isnan(fraction) else min(1.0, max(0.0, float(fraction)))
        self.note = clip(note, RENEWAL_NOTE_BYTES_MAX)
        if self._trio is not None:
            try:
                self._trio.run_sync_soon(self.wake, idempotent=True)
            except trio.RunFinishedError:
                # a thread that outlived the node: nobody listens any more
                self._trio = None

    def wake(self) -> None:
        """Let what was said be passed on soon. Called in the trio thread."""
        self.news.set()

    async def progress(self, fraction: float, note: str = "") -> None:
        """Say how much is done, 0 to 1, and give way to others. Everybody in the pool can see it.

        Cancellation: raised here when the claim is lost or the time is up.
        """
        self.set_progress(fraction, note)
        await trio.lowlevel.checkpoint()

    def mark_cancelled(self) -> None:
        """Called when nobody waits for the handler any more."""
        self._cancelled = True


@dataclass(frozen=True, slots=True)
class Finished:
    """The attempt settles the task: report it.

    Attributes:
        outcome: COMPLETED, or FAILED for good.
        result: encoded; for FAILED the reason, a text.
    """

    outcome: Outcome
    result: bytes


@dataclass(frozen=True, slots=True)
class TryAgain:
    """The attempt failed in a way that another attempt may not: release the claim as failed."""

    reason: str


async def run_attempt(
    function: HandlerFunction,
    view: TaskView,
    context: WorkContext,
    *,
    timeout_s: float,
    threads: BoundedThreads,
    contents: ContentPort | None = None,
) -> Finished | TryAgain:
    """Run a handler once and say what its end means.

    Args:
        function: the handler; a plain one runs in a thread.
        view: the task.
        context: handed to the handler.
        timeout_s: the attempt is stopped after this time; `math.inf` for no limit.
        threads: for plain handlers.
        contents: where large inputs come from, and large results go. The time of both counts.

    Cancellation: the handler is cancelled; the thread of a plain one is abandoned.
    """
    try:
        # what the handler sends belongs to the trace of its task
        with entered(context_of(view)), trio.fail_after(timeout_s) as scope:
            if contents is not None:
                context.blobs = contents
                view = await contents.bring(view)
            if inspect.iscoroutinefunction(function):
                value = await function(view, context)
            else:
                try:
                    value = await threads.run(function, view, context)
                except trio.Cancelled:
                    context.mark_cancelled()
                    raise
                if inspect.isawaitable(value):
                    value = await value
            if contents is not None:
                return await _kept(value, contents)
    except trio.TooSlowError as error:
        if scope.cancelled_caught:
            return TryAgain(f"stopped after {timeout_s:g} s")
        return _failed(view, error)
    except Exception as error:  # noqa: BLE001 - a handler is foreign code; `_failed` logs what it raised
        return _failed(view, error)
    try:
        return Finished(Outcome.COMPLETED, encode_result(value))
    except (CodecError, LimitExceeded) as error:
        # the next attempt would very likely give such a value again
        return _permanent(f"the result cannot be reported: {error}")


async def _kept(value: Any, contents: ContentPort) -> Finished:
    try:
        return Finished(Outcome.COMPLETED, await contents.keep_result(encode_value(value)))
    except (CodecError, LimitExceeded) as error:
        if isinstance(error, LimitExceeded) and error.limit in _ROOM:
            # another worker, or another time, may have room
            raise
        return _permanent(f"the result cannot be reported: {error}")


def _failed(view: TaskView, error: Exception) -> Finished | TryAgain:
    permanent = _find_permanent(error)
    if permanent is not None:
        return _permanent(str(permanent) or "permanent failure")
    _logger.warning(
        "handler of %r failed on task %s",
        view.objective,
        view.id.hex()[:12],
        exc_info=error,
        extra={"task": view.id.hex()},
    )
    return TryAgain(clip(f"{type(error).__name__}: {error}"))


def _find_permanent(error: BaseException) -> PermanentFailure | None:
    if isinstance(error, PermanentFailure):
        return error
    if isinstance(error, BaseExceptionGroup):
        # a handler that works in its own nursery raises groups
        return next((found for inner in error.exceptions if (found := _find_permanent(inner)) is not None), None)
    return None


def _permanent(reason: str) -> Finished:
    return Finished(Outcome.FAILED, encode_value(clip(reason)))


def clip(text: str, bytes_max: int = TEXT_BYTES_MAX) -> str:
    """Shorten a text for people to `bytes_max` bytes of UTF-8, by default `limits.TEXT_BYTES_MAX`."""
    raw = text.encode("utf-8", "replace")
    return raw.decode() if len(raw) <= bytes_max else raw[: bytes_max - 3].decode("utf-8", "ignore") + "…"
