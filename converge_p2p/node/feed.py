"""Messages for several readers of different speed, each sender's share kept for it.

Knows: bounded queues, and that a reader may be slow or gone. Must not know: which messages a reader asked for.
Source: design rule "every queue is bounded, and what is dropped is counted"; fairness as in `core.model.fair_queue`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from converge_p2p.core import limits
from converge_p2p.core.errors import LimitExceeded
from converge_p2p.core.model.fair_queue import FairQueue
from converge_p2p.core.model.message import Message


class MessageFeed:
    """What one reader has not read yet: read it with `async for`, or one by one."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._queue: FairQueue[Message] = FairQueue(limits.INBOX_MESSAGES_MAX)
        self._lot = trio.lowlevel.ParkingLot()

    def __len__(self) -> int:
        """Return how many messages wait."""
        return len(self._queue)

    def push(self, message: Message) -> int:
        """Add a message; return how many were dropped for want of room (0 or 1)."""
        dropped = self._queue.push(message.sender, message)
        self._lot.unpark()
        return len(dropped)

    def receive_nowait(self) -> Message:
        """Return the next message.

        Raises:
            trio.WouldBlock: none waits.
        """
        taken = self._queue.poll(1)
        if not taken:
            raise trio.WouldBlock
        return taken[0]

    async def receive(self) -> Message:
        """Wait for a message and return it. Senders are served in turn; the order of one sender is kept."""
        await trio.lowlevel.checkpoint_if_cancelled()
        while not self._queue:
            await self._lot.park()
        message = self.receive_nowait()
        await trio.lowlevel.cancel_shielded_checkpoint()
        return message

    def __aiter__(self) -> MessageFeed:
        return self

    async def __anext__(self) -> Message:
        return await self.receive()


class Feeds:
    """The readers of one topic."""

    def __init__(self) -> None:
        """Begin with none."""
        self._feeds: set[MessageFeed] = set()

    def __len__(self) -> int:
        """Return how many read."""
        return len(self._feeds)

    def send(self, message: Message) -> int:
        """Hand a message to all readers; return how many messages were dropped for want of room."""
        return sum(feed.push(message) for feed in tuple(self._feeds))

    @asynccontextmanager
    async def open(self) -> AsyncIterator[MessageFeed]:
        """Give a feed of the messages sent from now on.

        Raises:
            LimitExceeded: `limits.READERS_MAX` read already.
        """
        if len(self._feeds) >= limits.READERS_MAX:
            raise LimitExceeded("READERS_MAX", f"at most {limits.READERS_MAX} can read this at once")
        feed = MessageFeed()
        self._feeds.add(feed)
        try:
            yield feed
        finally:
            self._feeds.discard(feed)
