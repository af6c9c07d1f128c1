"""The inbox of an agent: messages that wait for its next turn.

Knows: order, bounds and fairness. Must not know: what a message means, or who reads it when.
Source: fair queueing by sender, after RFC 970; the longest queue pays when there is no room.

What happens when it is full is a policy. `DROP`: the newest message of the longest queue goes, and is counted, so a
sender that floods loses its own messages first. `BLOCK`: nothing that was taken is ever dropped; who delivers asks
`room` first and keeps the message, or waits in `put`. A node tells the sender that it is busy, and the sender tries
again until its deadline.
"""

from __future__ import annotations

from enum import Enum
from typing import Protocol

import trio

from converge_p2p.core import limits
from converge_p2p.core.errors import LocalError
from converge_p2p.core.model.fair_queue import FairQueue
from converge_p2p.core.model.message import Message
from converge_p2p.core.types import AgentId


class WhenFull(Enum):
    """What happens to a message for which there is no room."""

    DROP = "drop"
    BLOCK = "block"


class InboxLike(Protocol):
    """What a runtime needs of an inbox."""

    dropped: int
    accepted: int
    blocked: int

    def __len__(self) -> int: ...
    def room(self, sender: AgentId) -> bool: ...
    def push(self, message: Message) -> bool: ...
    def poll(self, batch: int) -> tuple[Message, ...]: ...


class Inbox:
    """A bounded queue that serves senders in turn. Used from the trio thread only.

    Attributes:
        when_full: what happens when there is no room.
        dropped: how many messages were thrown away for want of room.
        accepted: how many messages were taken in.
        blocked: how many messages had to wait outside, or were sent back to wait with their sender.
    """

    def __init__(self, messages_max: int = limits.INBOX_MESSAGES_MAX, *, when_full: WhenFull = WhenFull.DROP) -> None:
        """Make an empty inbox.

        Args:
            messages_max: bound of waiting messages, 1 to `limits.INBOX_MESSAGES_MAX`. With `BLOCK` a sender that has
                less than its share may go beyond it, up to twice as many in all, and so does what the node took in
                before the inbox was full (`limits.MAIL_WAITING_MAX`).
            when_full: what happens when there is no room.

        Raises:
            LocalError: a bound outside that range.
        """
        if not 1 <= messages_max <= limits.INBOX_MESSAGES_MAX:
            raise LocalError(f"messages_max is {messages_max}; expected 1 to {limits.INBOX_MESSAGES_MAX}")
        self._soft_max = messages_max
        self.when_full = when_full
        hard_max = messages_max if when_full is WhenFull.DROP else 2 * messages_max + limits.MAIL_WAITING_MAX
        self._queue: FairQueue[Message] = FairQueue(hard_max)
        self._outside = trio.lowlevel.ParkingLot()
        self.dropped = 0
        self.accepted = 0
        self.blocked = 0

    def __len__(self) -> int:
        return len(self._queue)

    def room(self, sender: AgentId) -> bool:
        """Whether a message of this sender should be delivered now. Always true for an inbox that drops."""
        if self.when_full is WhenFull.DROP or len(self._queue) < self._soft_max:
            return True
        waiting = self._queue.waiting(sender)
        share = max(1, self._soft_max // (self._queue.senders + (waiting == 0)))
        if waiting < share and len(self._queue) < 2 * self._soft_max:
            return True
        self.blocked += 1
        return False

    def push(self, message: Message) -> bool:
        """Take a message in, and say whether it was kept.

        Without room the newest message of the longest queue goes, which is the pushed one if its sender has the
        longest queue. An inbox that blocks has room for more than it asks for, see the constructor.
        """
        dropped = self._queue.push(message.sender, message)
        self.dropped += len(dropped)
        kept = not any(item is message for item in dropped)
        self.accepted += kept
        return kept

    async def put(self, message: Message) -> bool:
        """Take a message in as soon as there is room for its sender, and say whether it was kept.

        Cancellation: it was not taken.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        while not self.room(message.sender):
            await self._outside.park()
        return self.push(message)

    def poll(self, batch: int = limits.INBOX_MESSAGES_MAX) -> tuple[Message, ...]:
        """Take out up to `batch` messages, one sender after the other; the order of one sender is kept."""
        taken = self._queue.poll(batch)
        self._outside.unpark_all()
        return taken
