"""News for several readers of different speed.

Knows: bounded channels, and that a reader may be slow or gone. Must not know: what the news is about.
Source: design rule "every channel is bounded, and what is dropped is counted".
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

import trio

from converge_p2p.core import limits
from converge_p2p.core.errors import LimitExceeded

_T = TypeVar("_T")


class Fanout(Generic[_T]):
    """Hands each value to every reader that has room for it. Sending never blocks and never fails.

    Attributes:
        dropped: values that a slow reader did not get.
    """

    def __init__(self, room: int = limits.EVENT_QUEUE_MAX) -> None:
        """Make one without readers.

        Args:
            room: how many values wait for one reader.
        """
        self.dropped = 0
        self._room = room
        self._channels: set[trio.MemorySendChannel[_T]] = set()
        self._closed = False

    def __len__(self) -> int:
        """Return how many read."""
        return len(self._channels)

    def send(self, value: _T) -> None:
        """Hand a value to all readers."""
        for channel in tuple(self._channels):
            try:
                channel.send_nowait(value)
            except trio.WouldBlock:
                self.dropped += 1
            except trio.BrokenResourceError:
                # the reader closed its end and has not left its block yet
                self._channels.discard(channel)

    @asynccontextmanager
    async def open(self, first: Iterable[_T] = ()) -> AsyncIterator[trio.MemoryReceiveChannel[_T]]:
        """Give a channel of the values sent from now on. It ends when the fan-out is closed.

        Args:
            first: values that are put in front.

        Raises:
            LimitExceeded: `limits.READERS_MAX` read already.
        """
        if len(self._channels) >= limits.READERS_MAX:
            raise LimitExceeded("READERS_MAX", f"at most {limits.READERS_MAX} can watch this at once")
        send, receive = trio.open_memory_channel[_T](self._room)
        with send, receive:
            for value in first:
                try:
                    send.send_nowait(value)
                except trio.WouldBlock:
                    self.dropped += 1
            if self._closed:
                send.close()
            else:
                self._channels.add(send)
            try:
                yield receive
            finally:
                self._channels.discard(send)

    def close(self) -> None:
        """Send nothing more: readers see the end after what waits for them."""
        self._closed = True
        for channel in self._channels:
            channel.close()
        self._channels.clear()
