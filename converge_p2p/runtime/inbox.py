"""The inbox of an agent: messages that wait for its next turn.

Knows: order, bounds and fairness. Must not know: what a message means, or who reads it when.
Source: fair queueing by sender, after RFC 970; the longest queue pays when there is no room.

It drops and counts; it never blocks whoever delivers. A sender that floods loses its own messages first.
"""

from __future__ import annotations

from collections import OrderedDict, deque

from converge_p2p.core import limits
from converge_p2p.core.errors import LocalError
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
        self._messages_max = messages_max
        # the order of the senders is the order of service: whoever was served goes to the end
        self._queues: OrderedDict[str, deque[Message]] = OrderedDict()
        self._count = 0
        self.dropped = 0
        self.accepted = 0

    def __len__(self) -> int:
        return self._count

    def push(self, message: Message) -> bool:
        """Take a message in, and say whether it was kept.

        Without room the newest message of the longest queue goes, which is the pushed one if its sender has the
        longest queue.
        """
        queue = self._queues.get(message.sender)
        if self._count >= self._messages_max:
            self.dropped += 1
            waiting = 0 if queue is None else len(queue)
            share = max(1, self._messages_max // (len(self._queues) + (queue is None)))
            if waiting >= share:
                return False
            longest = max(self._queues.values(), key=len)
            if len(longest) <= waiting + 1:
                return False
            longest.pop()
            self._count -= 1
        if queue is None:
            queue = self._queues[message.sender] = deque()
        queue.append(message)
        self._count += 1
        self.accepted += 1
        return True

    def poll(self, batch: int = limits.INBOX_MESSAGES_MAX) -> tuple[Message, ...]:
        """Take out up to `batch` messages, one sender after the other; the order of one sender is kept."""
        taken: list[Message] = []
        while self._count and len(taken) < batch:
            sender, queue = self._queues.popitem(last=False)
            taken.append(queue.popleft())
            self._count -= 1
            if queue:
                self._queues[sender] = queue
        return tuple(taken)
