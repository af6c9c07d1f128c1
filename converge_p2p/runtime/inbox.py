"""The inbox of an agent: messages that wait for its next turn.

Knows: order, bounds and fairness. Must not know: what a message means, or who reads it when.
Source: fair queueing by sender, after RFC 970; the longest queue pays when there is no room.

It drops and counts; it never blocks whoever delivers. A sender that floods loses its own messages first.
"""

from __future__ import annotations

from converge_p2p.core import limits
from converge_p2p.core.errors import LocalError
from converge_p2p.core.model.fair_queue import FairQueue
from converge_p2p.core.model.message import Message


class Inbox:
    """A bounded queue that serves senders in turn. Used from the trio thread only.

    Attributes:
        dropped: how many messages were thrown away for want of room.
        accepted: how many messages were taken in.
    """

    def __init__(self, messages_max: int = limits.INBOX_MESSAGES_MAX) -> None:
        """Make an empty inbox.

        Args:
            messages_max: bound of waiting messages, 1 to `limits.INBOX_MESSAGES_MAX`.

        Raises:
            LocalError: a bound outside that range.
        """
        if not 1 <= messages_max <= limits.INBOX_MESSAGES_MAX:
            raise LocalError(f"messages_max is {messages_max}; expected 1 to {limits.INBOX_MESSAGES_MAX}")
        self._queue: FairQueue[Message] = FairQueue(messages_max)
        self.dropped = 0
        self.accepted = 0

    def __len__(self) -> int:
        return len(self._queue)

    def push(self, message: Message) -> bool:
        """Take a message in, and say whether it was kept.

        Without room the newest message of the longest queue goes, which is the pushed one if its sender has the
        longest queue.
        """
        dropped = self._queue.push(message.sender, message)
        self.dropped += len(dropped)
        kept = not any(item is message for item in dropped)
        self.accepted += kept
        return kept

    def poll(self, batch: int = limits.INBOX_MESSAGES_MAX) -> tuple[Message, ...]:
        """Take out up to `batch` messages, one sender after the other; the order of one sender is kept."""
        return self._queue.poll(batch)
