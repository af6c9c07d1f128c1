"""Fan-out: a reader that is slow, gone or one too many never disturbs the sender."""

from __future__ import annotations

import pytest
import trio

from converge_p2p.core import limits
from converge_p2p.core.errors import LimitExceeded
from converge_p2p.node.fanout import Fanout


async def test_each_reader_gets_every_value_in_order_and_the_first_ones_before() -> None:
    fanout: Fanout[int] = Fanout()
    async with fanout.open([1]) as one, fanout.open() as two:
        fanout.send(2)
        fanout.send(3)
        fanout.close()
        assert [value async for value in one] == [1, 2, 3]
        assert [value async for value in two] == [2, 3]


async def test_a_slow_reader_misses_what_it_has_no_room_for_and_that_is_counted() -> None:
    fanout: Fanout[int] = Fanout(room=2)
    async with fanout.open() as slow, fanout.open() as quick:
        for value in range(4):
            fanout.send(value)
            assert await quick.receive() == value
        assert fanout.dropped == 2
        assert [slow.receive_nowait(), slow.receive_nowait()] == [0, 1]


async def test_a_reader_that_closed_its_channel_and_is_still_in_the_block_does_not_break_the_sender() -> None:
    fanout: Fanout[int] = Fanout()
    async with fanout.open() as gone, fanout.open() as here:
        await gone.aclose()
        fanout.send(1)
        assert here.receive_nowait() == 1
        assert len(fanout) == 1


async def test_a_reader_that_ends_while_values_are_sent_does_not_break_the_sender() -> None:
    fanout: Fanout[int] = Fanout()

    async def read() -> None:
        async with fanout.open() as channel, channel:
            await channel.receive()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        for value in range(50):
            fanout.send(value)
            await trio.lowlevel.checkpoint()
    assert len(fanout) == 0


async def test_readers_are_bounded_and_a_place_is_free_again_when_one_leaves() -> None:
    fanout: Fanout[int] = Fanout()
    async with trio.open_nursery() as nursery:
        for _ in range(limits.READERS_MAX):
            nursery.start_soon(_read, fanout)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(LimitExceeded):
            await _read(fanout)
        nursery.cancel_scope.cancel()
    async with fanout.open():
        assert len(fanout) == 1


async def test_who_comes_after_the_end_sees_the_end() -> None:
    fanout: Fanout[int] = Fanout()
    fanout.close()
    async with fanout.open([7]) as channel:
        assert [value async for value in channel] == [7]


async def _read(fanout: Fanout[int]) -> None:
    async with fanout.open() as channel:
        await channel.receive()
