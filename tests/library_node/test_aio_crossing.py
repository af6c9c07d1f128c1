"""Calls between asyncio and trio in one thread: results, errors and cancellation go both ways, and nothing is left."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import sniffio
import trio
import trio.lowlevel
import trio.testing

from converge_p2p.aio.crossing import Call, NodeClosed, TrioRun, in_asyncio, into_asyncio
from converge_p2p.core.errors import LocalError

Cross = Callable[[Callable[[], Awaitable[Any]]], Awaitable[Any]]


@asynccontextmanager
async def crossing() -> AsyncIterator[Cross]:
    run = await TrioRun.enter()
    try:
        yield lambda function: Call(run.nursery, function).wait()
    finally:
        await run.leave()


def test_results_and_errors_come_over_and_either_side_knows_which_library_runs_it() -> None:
    async def in_loop() -> str:
        await asyncio.sleep(0)
        return sniffio.current_async_library()

    async def in_trio() -> tuple[str, str, str]:
        await trio.lowlevel.checkpoint()
        before = sniffio.current_async_library()
        return before, await into_asyncio(in_loop()), sniffio.current_async_library()

    async def raise_in_loop() -> None:
        await asyncio.sleep(0)
        raise KeyError("lost")

    async def main() -> None:
        async with crossing() as cross:
            assert await cross(in_trio) == ("trio", "asyncio", "trio")
            assert sniffio.current_async_library() == "asyncio"
            with pytest.raises(KeyError, match="lost"):
                await cross(lambda: into_asyncio(raise_in_loop()))

    asyncio.run(main())


def test_who_is_cancelled_in_asyncio_cancels_in_trio_and_waits_for_its_end() -> None:
    said: list[str] = []

    async def in_trio(begun: Callable[[], None], cleaning: asyncio.Event, go_on: trio.Event) -> None:
        try:
            begun()
            await trio.sleep_forever()
        finally:
            cleaning.set()
            with trio.CancelScope(shield=True):
                await go_on.wait()
            said.append("cleaned up")

    async def main() -> None:
        async with crossing() as cross:
            begun, cleaning, go_on = asyncio.Event(), asyncio.Event(), trio.Event()
            task = asyncio.ensure_future(cross(functools.partial(in_trio, begun.set, cleaning, go_on)))
            await begun.wait()
            task.cancel()
            await cleaning.wait()
            assert not task.done()
            go_on.set()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert said == ["cleaned up"]
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(None) as patience:
                    await cross(functools.partial(in_trio, lambda: patience.reschedule(0), cleaning, go_on))

    asyncio.run(main())


def test_who_is_cancelled_in_trio_cancels_in_asyncio_and_waits_for_its_end() -> None:
    said: list[str] = []

    async def in_loop(scope: trio.CancelScope, cleaning: asyncio.Event, go_on: asyncio.Event) -> None:
        try:
            scope.cancel()
            await asyncio.sleep(3600)
        finally:
            cleaning.set()
            await go_on.wait()
            said.append("cleaned up")

    async def in_trio(cleaning: asyncio.Event, go_on: asyncio.Event) -> bool:
        with trio.CancelScope() as scope:
            await into_asyncio(in_loop(scope, cleaning, go_on))
        return scope.cancelled_caught

    async def main() -> None:
        async with crossing() as cross:
            cleaning, go_on = asyncio.Event(), asyncio.Event()
            task = asyncio.ensure_future(cross(functools.partial(in_trio, cleaning, go_on)))
            await cleaning.wait()
            assert not task.done()
            go_on.set()
            assert await task
            assert said == ["cleaned up"]

    asyncio.run(main())


def test_a_cancellation_that_comes_through_both_is_one_cancellation() -> None:
    async def in_loop(begun: asyncio.Event) -> None:
        begun.set()
        await asyncio.sleep(3600)

    async def main() -> None:
        async with crossing() as cross:
            begun = asyncio.Event()
            task = asyncio.ensure_future(cross(lambda: into_asyncio(in_loop(begun))))
            await begun.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


def test_a_coroutine_that_is_cancelled_from_elsewhere_is_an_error_in_trio_and_ends_nobody_else() -> None:
    async def cancels_itself() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(3600)

    async def main() -> None:
        async with crossing() as cross:
            with pytest.raises(LocalError, match="cancelled in asyncio"):
                await cross(lambda: into_asyncio(cancels_itself()))

    asyncio.run(main())


def test_users_of_one_loop_share_a_run_which_ends_with_the_last_and_begins_again() -> None:
    async def main() -> None:
        async with crossing() as first:
            first_run = await first(_trio_token)
            async with crossing() as second:
                assert await second(_trio_token) is first_run
            assert await first(_trio_token) is first_run
        assert not trio.lowlevel.in_trio_run()
        async with crossing() as third:
            assert await third(_trio_token) is not first_run
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


async def _trio_token() -> trio.lowlevel.TrioToken:
    return trio.lowlevel.current_trio_token()


def test_a_call_whose_nursery_ends_is_told_so() -> None:
    async def main() -> None:
        async with crossing() as cross:

            async def end_of_a_node() -> asyncio.Future[Any]:
                async with trio.open_nursery() as nursery:
                    call = Call(nursery, trio.sleep_forever)
                    await trio.testing.wait_all_tasks_blocked()
                    nursery.cancel_scope.cancel()
                return call.done

            ended = await cross(end_of_a_node)
            with pytest.raises(NodeClosed):
                ended.result()

    asyncio.run(main())


def test_a_loop_that_is_missing_or_a_thread_that_runs_trio_itself_is_a_clear_error() -> None:
    async def answer() -> int:
        return 1

    async def main() -> None:
        with pytest.raises(LocalError, match="asyncio does not run here"):
            await TrioRun.enter()
        with pytest.raises(LocalError, match="for asyncio, which does not run here"):
            await in_asyncio(answer)()

    trio.run(main)
    assert asyncio.run(in_asyncio(answer)()) == 1


def test_a_plain_function_stays_plain_and_what_it_gives_to_await_is_awaited_in_asyncio() -> None:
    async def in_loop() -> str:
        await asyncio.sleep(0)
        return sniffio.current_async_library()

    def give(value: Any) -> Any:
        return value

    async def in_trio() -> tuple[int, str]:
        return in_asyncio(give)(1), await in_asyncio(give)(in_loop())

    async def main() -> None:
        async with crossing() as cross:
            assert await cross(in_trio) == (1, "asyncio")

    asyncio.run(main())
