"""How a class for asyncio is made of one for trio: method by method, with the same arguments and results.

Knows: how a method is called in trio and its result wrapped. Must not know: which classes there are.
Source: `docs/decisions/0024-asyncio.md`. A method that does not await is called directly: trio runs in the same thread.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar

import trio

from converge_p2p.aio.crossing import Call, NodeClosed
from converge_p2p.node.main import Node

_T = TypeVar("_T")
_U = TypeVar("_U")
_I = TypeVar("_I")
_P = ParamSpec("_P")
_T_co = TypeVar("_T_co", covariant=True)


class Calls:
    """Where the calls of one node run in trio: when the node ends, they do.

    Attributes:
        node: the node, for trio.
    """

    def __init__(self, nursery: trio.Nursery, node: Node) -> None:
        """Made by the node."""
        self._nursery = nursery
        self.node = node

    async def run(self, function: Callable[..., Awaitable[_T]], *args: Any, **kwargs: Any) -> _T:
        """Call an async function of trio, and return or raise what it does.

        Raises:
            LocalError: the node was closed meanwhile.

        Cancellation: it is cancelled in trio, and waited for.
        """
        value: _T = await Call(self._nursery, functools.partial(function, *args, **kwargs)).wait()
        return value

    @asynccontextmanager
    async def hold(self, opened: Callable[[], AbstractAsyncContextManager[_T]]) -> AsyncIterator[_T]:
        """Enter a context manager of trio, and leave it in the same task of trio."""
        entered: list[_T] = []
        ready, end = trio.Event(), trio.Event()

        async def hold() -> None:
            async with opened() as value:
                entered.append(value)
                ready.set()
                await end.wait()

        async def wait() -> None:
            await ready.wait()

        holding = Call(self._nursery, hold)
        holding.done.add_done_callback(lambda _: ready.set())
        try:
            await self.run(wait)
            if not entered:
                await holding.wait()
            yield entered[0]
        finally:
            end.set()
            if not entered:
                holding.cancel()
            with suppress(NodeClosed):
                await holding.wait()


class Facade(Generic[_I]):
    """Something of a node, for asyncio.

    Attributes:
        inner: the same for trio.
    """

    def __init__(self, calls: Calls, inner: _I) -> None:
        """Made by the node."""
        self._calls = calls
        self.inner = inner

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.inner is self.inner

    def __hash__(self) -> int:
        return hash(self.inner)


def bridged(
    method: Callable[Concatenate[Any, _P], Awaitable[_T]],
) -> Callable[Concatenate[Any, _P], Coroutine[Any, Any, _T]]:
    """Make an async method of one for trio."""

    @functools.wraps(method)
    async def call(facade: Facade[Any], /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return await facade._calls.run(method, facade.inner, *args, **kwargs)

    return call


def giving(
    wrap: Callable[[Calls, _T], _U], method: Callable[Concatenate[Any, _P], Awaitable[_T]]
) -> Callable[Concatenate[Any, _P], Coroutine[Any, Any, _U]]:
    """Make an async method of one for trio whose result is for trio, too: `wrap` makes one for asyncio of it."""

    @functools.wraps(method)
    async def call(facade: Facade[Any], /, *args: _P.args, **kwargs: _P.kwargs) -> _U:
        return wrap(facade._calls, await facade._calls.run(method, facade.inner, *args, **kwargs))

    return call


def direct(method: Callable[Concatenate[Any, _P], _T]) -> Callable[Concatenate[Any, _P], _T]:
    """Make a method of one that does not await."""

    @functools.wraps(method)
    def call(facade: Facade[Any], /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return method(facade.inner, *args, **kwargs)

    return call


class Source(Protocol[_T_co]):
    """What is read in trio: a channel, or a feed of messages."""

    def receive_nowait(self) -> _T_co:
        """Return what waits, or raise `trio.WouldBlock`, or `trio.EndOfChannel`."""
        ...

    async def receive(self) -> _T_co:
        """Wait for the next one."""
        ...


class Stream(Generic[_T]):
    """What a node tells, one after the other: read it with `async for`, or `anext`."""

    def __init__(self, calls: Calls, source: Source[_T]) -> None:
        """Made by the node."""
        self._calls = calls
        self._source = source

    def __aiter__(self) -> Stream[_T]:
        return self

    async def __anext__(self) -> _T:
        try:
            try:
                return self._source.receive_nowait()
            except trio.WouldBlock:
                return await self._calls.run(self._source.receive)
        except trio.EndOfChannel:
            raise StopAsyncIteration from None


def streamed(
    method: Callable[Concatenate[Any, _P], AbstractAsyncContextManager[Source[_T]]],
) -> Callable[Concatenate[Any, _P], AbstractAsyncContextManager[Stream[_T]]]:
    """Make a method that gives a stream of one that gives what can be read in trio, as long as the block lasts."""

    @functools.wraps(method)
    @asynccontextmanager
    async def call(facade: Facade[Any], /, *args: _P.args, **kwargs: _P.kwargs) -> AsyncIterator[Stream[_T]]:
        async with facade._calls.hold(functools.partial(method, facade.inner, *args, **kwargs)) as source:
            yield Stream(facade._calls, source)

    return call
