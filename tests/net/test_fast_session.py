"""The encrypted session alone: reading, writing, and a writer or reader that is cancelled in the middle."""

from __future__ import annotations

import pytest
import trio
from fast_rig import KEY, pipe, session
from libp2p.io.exceptions import ConnectionClosedError

from converge_p2p.core.errors import RemoteViolation
from converge_p2p.net.fast.records import Sealer


async def test_reading_an_exact_number_of_bytes_and_what_there_is():
    one, two = map(session, pipe())
    await one.write(b"abc")
    await one.write(b"defgh")
    assert await two.read(4) == b"abcd"
    assert await two.read(None) == b"efgh"
    one.cut("enough")
    with pytest.raises(ConnectionClosedError):
        await two.read(1)


async def test_a_cancelled_reader_loses_nothing(autojump_clock):
    one, two = map(session, pipe())
    await one.write(b"abc")
    with trio.move_on_after(1) as scope:
        await two.read(5)
    assert scope.cancelled_caught
    await one.write(b"de")
    assert await two.read(5) == b"abcde"


async def test_the_end_in_the_middle_gives_what_came():
    one, two = map(session, pipe())
    await one.write(b"abc")
    one.cut("enough")
    assert await two.read(5) == b"abc"
    with pytest.raises(ConnectionClosedError, match="the peer closed"):
        await two.read(5)


async def test_the_end_in_the_middle_of_a_record_is_told():
    one, two = pipe()
    one.send_now(Sealer(KEY, 0).seal(b"abc")[:9])
    one.cut()
    with pytest.raises(ConnectionClosedError, match="middle of a record"):
        await session(two).receive()


async def test_bytes_that_the_peer_did_not_seal_are_a_violation():
    one, two = pipe()
    one.send_now(b"\x00\x20" + bytes(32))
    with pytest.raises(RemoteViolation):
        await session(two).receive()


async def test_a_writer_cancelled_in_the_middle_of_a_record_leaves_no_half_of_it(autojump_clock):
    one, two = pipe(room=100)
    sender, receiver = session(one), session(two)
    with trio.move_on_after(1) as scope:
        await sender.write(b"a" * 1000)
    assert scope.cancelled_caught
    assert len(two.inbox) == 100
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sender.write, b"b" * 10)
        assert await receiver.read(1010) == b"a" * 1000 + b"b" * 10


async def test_frames_that_wait_go_out_together(autojump_clock):
    one, two = pipe(room=10)
    sender, receiver = session(one), session(two)
    for _ in range(100):
        sender.send(b"frame")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sender.flush)
        assert await receiver.read(500) == b"frame" * 100
    # the first one alone, for it did not wait; then all the others in one record
    assert receiver._opener._nonce == 2
