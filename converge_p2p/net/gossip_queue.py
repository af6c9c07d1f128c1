"""What gossip remembers and what waits to be written, both bounded.

Knows: bytes of messages and their ids. Must not know: topics and peers.
Source: fault B5 of `hardening`.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from libp2p.pubsub.rpc_queue import RpcQueue

from converge_p2p.core import limits
from converge_p2p.net.framing import encode_varint

_SEEN_TTL_S = 120.0
_WRITE_BYTES = 65_536


class SeenCache:
    """Ids of messages of the last two minutes, at most `limits.GOSSIP_SEEN_MAX`.

    Replaces the library's cache, which has no bound and an operating system thread of its own.
    """

    def __init__(self) -> None:
        self._expiry: OrderedDict[bytes, float] = OrderedDict()

    def has(self, key: bytes) -> bool:
        """Whether the id was added within the last two minutes."""
        expiry = self._expiry.get(key)
        return expiry is not None and expiry > time.monotonic()

    def add(self, key: bytes) -> bool:
        """Remember an id; return whether it was new."""
        now = time.monotonic()
        new = not self.has(key)
        self._expiry[key] = now + _SEEN_TTL_S
        self._expiry.move_to_end(key)
        while self._expiry:
            oldest, expiry = next(iter(self._expiry.items()))
            if expiry > now and len(self._expiry) <= limits.GOSSIP_SEEN_MAX:
                break
            del self._expiry[oldest]
        return new


class BoundedRpcQueue(RpcQueue):  # type: ignore[misc]
    """What waits to be written to one peer, encoded already, and bounded in messages and in bytes.

    B5: the library's queue holds 32 entries of any size, so that a burst of 200 messages arrives as 32.
    """

    def __init__(self, visible: Callable[[Any], Any | None] = lambda rpc: rpc) -> None:
        """Args:
        visible: returns what of an RPC may be sent to this peer, or None for nothing. Encoded frames pass it.
        """
        super().__init__(max_size=limits.GOSSIP_QUEUE_MESSAGES_MAX, max_message_size=limits.GOSSIP_RPC_BYTES_MAX)
        self._bytes = 0
        self._visible = visible

    def push(self, rpc: Any, priority: bool = False) -> bool:
        """Queue an RPC, or its encoded frame; return False if the queue is full or closed."""
        if not isinstance(rpc, bytes) and (rpc := self._visible(rpc)) is None:
            # there is nothing to say that this peer may hear, which is no failure
            return True
        frame = rpc if isinstance(rpc, bytes) else encode_rpc(rpc)
        if self._bytes + len(frame) > limits.OUTBOUND_QUEUE_BYTES_MAX or not super().push(frame, priority):
            return False
        self._bytes += len(frame)
        return True

    async def pop(self) -> bytes | None:
        """Wait for frames and return as many as fit one write, or None when the queue is closed."""
        first: bytes | None = await super().pop()
        if first is None:
            return None
        parts, size = [first], len(first)
        while size < _WRITE_BYTES and (frame := self._queue.pop()) is not None:
            parts.append(frame)
            size += len(frame)
        self._bytes -= size
        return b"".join(parts)


def encode_rpc(rpc: Any) -> bytes:
    """Encode an RPC behind its length."""
    data: bytes = rpc.SerializeToString()
    return encode_varint(len(data)) + data
