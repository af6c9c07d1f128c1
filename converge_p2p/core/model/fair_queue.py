"""A bounded queue that serves senders in turn.

Knows: order, bounds and fairness. Must not know: what waits in it, or who reads it when.
Source: fair queueing by sender, after RFC 970; the longest queue pays when there is no room.

It drops; it never blocks whoever puts something in. A sender that floods loses its own things first.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Generic, TypeVar

from converge_p2p.core.errors import LocalError

_T = TypeVar("_T")


class FairQueue(Generic[_T]):
    """Things of several senders, each sender's in order."""

    def __init__(self, items_max: int) -> None:
        """Make an empty queue.

        Args:
            items_max: how much may wait in all, at least 1.

        Raises:
            LocalError: a bound below 1.
        """
        if items_max < 1:
            raise LocalError("a queue has room for at least one")
        self._items_max = items_max
        # the order of the senders is the order of service: whoever was served goes to the end
        self._queues: OrderedDict[str, deque[_T]] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        """Return how much waits."""
        return self._count

    @property
    def senders(self) -> int:
        """Return of how many senders something waits."""
        return len(self._queues)

    def waiting(self, sender: str) -> int:
        """Return how much of one sender waits."""
        queue = self._queues.get(sender)
        return 0 if queue is None else len(queue)

    def push(self, sender: str, item: _T) -> tuple[_T, ...]:
        """Put something in, and return what was dropped for want of room: `item` itself, something else, or nothing.

        Without room the newest of the longest queue goes, which is `item` if its sender has the longest queue.
        """
        queue = self._queues.get(sender)
        dropped: tuple[_T, ...] = ()
        if self._count >= self._items_max:
            waiting = 0 if queue is None else len(queue)
            share = max(1, self._items_max // (len(self._queues) + (queue is None)))
            if waiting >= share:
                return (item,)
            longest = max(self._queues.values(), key=len)
            if len(longest) <= waiting + 1:
                return (item,)
            dropped = (longest.pop(),)
            self._count -= 1
        if queue is None:
            queue = self._queues[sender] = deque()
        queue.append(item)
        self._count += 1
        return dropped

    def poll(self, items_max: int) -> tuple[_T, ...]:
        """Take out up to `items_max` things, one sender after the other; the order of one sender is kept."""
        taken: list[_T] = []
        while self._count and len(taken) < items_max:
            sender, queue = self._queues.popitem(last=False)
            taken.append(queue.popleft())
            self._count -= 1
            if queue:
                self._queues[sender] = queue
        return tuple(taken)
