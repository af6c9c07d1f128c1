"""Between asyncio and trio in one thread: one trio run for each asyncio loop, and calls that cross over both ways.

Knows: trio's guest mode, and how either library cancels. Must not know: nodes.
Source: trio's reference, guest mode; `docs/decisions/0024-asyncio.md`. The trio run shares the thread of the loop, so
that whatever does not await may be called from either side.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn, ParamSpec, Protocol, TypeVar
from weakref import WeakKeyDictionary

import sniffio
import trio

from converge_p2p.core.errors import LocalError

_T = TypeVar("_T")
_P = ParamSpec("_P")


class NodeClosed(LocalError):
    """The node ended while something of it was waited for."""


class _Ended(Protocol):
    def unwrap(self) -> object: ...


class TrioRun:
    """The trio run inside an asyncio loop. It begins with the first `enter` and ends with the last `leave`."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Made by `enter`."""
        self._loop = loop
        self._users = 0
        self._end = trio.Event()
        self._ready: asyncio.Future[trio.Nursery] = loop.create_future()
        self._ended: asyncio.Future[None] = loop.create_future()

    @property
    def nursery(self) -> trio.Nursery:
        """Where calls into trio may run."""
        return self._ready.result()

    def _start(self) -> None:
        try:
            trio.lowlevel.start_guest_run(
                self._main,
                run_sync_soon_threadsafe=self._loop.call_soon_threadsafe,
                run_sync_soon_not_threadsafe=self._loop.call_soon,
                done_callback=self._done,
                host_uses_signal_set_wakeup_fd=True,
            )
        except RuntimeError as error:
            raise LocalError(
                "this thread runs trio already", hint="in a trio program use converge_p2p.Node, without asyncio"
            ) from error
        _runs[self._loop] = self

    async def _main(self) -> None:
        async with trio.open_nursery() as nursery:
            self._ready.set_result(nursery)
            await self._end.wait()

    def _done(self, ended: _Ended) -> None:
        del _runs[self._loop]
        self._ended.set_result(None)
        # every call keeps its errors to itself: what comes out here is a fault of the crossing
        ended.unwrap()

    async def leave(self) -> None:
        """Use it no more; the last one waits until it has ended."""
        self._users -= 1
        if not self._users:
            self._end.set()
            await unbroken(self._ended)

    @classmethod
    async def enter(cls) -> TrioRun:
        """Begin the run of the running loop, or use it too.

        Raises:
            LocalError: asyncio does not run, or the thread runs trio already.
        """
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError as error:
            raise LocalError("asyncio does not run here", hint="in a trio program use converge_p2p.Node") from error
        while (run := _runs.get(loop)) is not None and run._end.is_set():
            await asyncio.wait((run._ended,))
        if run is None:
            run = cls(loop)
            run._start()
        run._users += 1
        try:
            await asyncio.wait((run._ready,))
        except asyncio.CancelledError:
            await run.leave()
            raise
        return run


_runs: WeakKeyDictionary[asyncio.AbstractEventLoop, TrioRun] = WeakKeyDictionary()


async def unbroken(future: asyncio.Future[Any], when_cancelled: Callable[[], object] = lambda: None) -> None:
    """Wait until a future is done, whatever happens meanwhile.

    Args:
        future: its result is not looked at.
        when_cancelled: called each time the waiting task is cancelled.

    Raises:
        asyncio.CancelledError: the task was cancelled meanwhile.
    """
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait((future,))
        except asyncio.CancelledError as error:
            cancelled = error
            when_cancelled()
    if cancelled is not None:
        raise cancelled


class Call:
    """Something async that runs in trio for somebody in asyncio.

    Attributes:
        done: its result.
    """

    def __init__(self, nursery: trio.Nursery, function: Callable[[], Awaitable[Any]]) -> None:
        """Begin it, in a nursery of trio."""
        self.done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._function = function
        self._scope = trio.CancelScope()
        nursery.start_soon(self._run)

    async def _run(self) -> None:
        value: Any = None
        error: Exception | None = NodeClosed("the node was closed")
        try:
            with self._scope:
                value, error = await self._function(), None
        except Exception as raised:  # noqa: BLE001 - handed to whoever called
            error = raised
        finally:
            if error is None:
                self.done.set_result(value)
            else:
                self.done.set_exception(error)
                # whoever called may be gone, and then nobody looks
                self.done.exception()

    def cancel(self) -> None:
        """Cancel it."""
        self._scope.cancel()

    async def wait(self) -> Any:
        """Return its result, or raise what it raised.

        Cancellation: it is cancelled in trio, and waited for.
        """
        await unbroken(self.done, self.cancel)
        return self.done.result()


async def into_asyncio(awaitable: Awaitable[_T]) -> _T:
    """Await something of asyncio from a trio task; in asyncio, just await it.

    Raises:
        LocalError: it was cancelled in asyncio; or it was to run in trio without asyncio around.

    Cancellation: it is cancelled in asyncio, and waited for.
    """
    if not trio.lowlevel.in_trio_task():
        return await awaitable
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError as error:
        if inspect.iscoroutine(awaitable):
            awaitable.close()
        raise LocalError(
            "this is for asyncio, which does not run here", hint="host it in a converge_p2p.aio.Node"
        ) from error
    waiter = trio.lowlevel.current_task()
    context = contextvars.copy_context()
    # else libraries that work with both would take the task for one of trio
    context.run(sniffio.current_async_library_cvar.set, None)
    task: asyncio.Task[_T] = loop.create_task(_awaited(awaitable), context=context)
    give_up: Callable[[], NoReturn] | None = None

    def abort(raise_cancel: Callable[[], NoReturn]) -> trio.lowlevel.Abort:
        nonlocal give_up
        give_up = raise_cancel
        task.cancel()
        return trio.lowlevel.Abort.FAILED

    task.add_done_callback(lambda _: trio.lowlevel.reschedule(waiter))
    await trio.lowlevel.wait_task_rescheduled(abort)
    if task.cancelled():
        if give_up is not None:
            give_up()
        raise LocalError("what the node waited for was cancelled in asyncio")
    return task.result()


async def _awaited(awaitable: Awaitable[_T]) -> _T:
    return await awaitable


def in_asyncio(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Let a node call a function that is written for asyncio: a hook, a tool, a handler of decisions.

    Handlers, evaluators and opinions of an `aio.PoolHandle` and the methods of an `aio.Agent` need no such mark.
    A plain function stays one.
    """
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def call(*args: _P.args, **kwargs: _P.kwargs) -> Any:
            return await into_asyncio(function(*args, **kwargs))

        return call  # type: ignore[return-value]

    @functools.wraps(function)
    def plain(*args: _P.args, **kwargs: _P.kwargs) -> Any:
        value = function(*args, **kwargs)
        return into_asyncio(value) if inspect.isawaitable(value) else value

    return plain
