"""Frames on a byte stream: a length and the payload. The length has four bytes (own streams) or is a varint (gossip).

Knows: how bytes are cut into frames, and how fast a peer may send them. Must not know: streams, and what frames mean.
Source: docs/protocol.md, "Replication streams"; protobuf encoding, "Base 128 varints".
"""

from __future__ import annotations

from converge_p2p.core.errors import LimitExceeded, RemoteViolation

LENGTH_BYTES = 4

_VARINT_BITS_MAX = 35


def encode_frame(payload: bytes, bytes_max: int) -> bytes:
    """Return a payload behind its length.

    Args:
        payload: may be empty.
        bytes_max: largest payload that the other side takes.

    Raises:
        LimitExceeded: the payload is longer.
    """
    if len(payload) > bytes_max:
        raise LimitExceeded("frame_bytes_max", f"frame of {len(payload)} bytes; at most {bytes_max} fit")
    return len(payload).to_bytes(LENGTH_BYTES, "big") + payload


class FrameDecoder:
    """Cuts received bytes into frames. Holds at most one incomplete frame."""

    __slots__ = ("_buffer", "_bytes_max")

    def __init__(self, bytes_max: int) -> None:
        self._buffer = bytearray()
        self._bytes_max = bytes_max

    def feed(self, data: bytes) -> list[bytes]:
        """Take received bytes and return the frames they complete, in order.

        Raises:
            RemoteViolation: a length is over the limit. The stream cannot be read on: no frame boundary is known.
        """
        buffer = self._buffer
        buffer += data
        frames: list[bytes] = []
        start = 0
        while len(buffer) - start >= LENGTH_BYTES:
            length = int.from_bytes(buffer[start : start + LENGTH_BYTES], "big")
            if length > self._bytes_max:
                raise RemoteViolation("frame_too_long", f"frame of {length} bytes; at most {self._bytes_max} allowed")
            end = start + LENGTH_BYTES + length
            if len(buffer) < end:
                break
            frames.append(bytes(buffer[start + LENGTH_BYTES : end]))
            start = end
        if start:
            del buffer[:start]
        return frames

    @property
    def pending_bytes(self) -> int:
        """Bytes of the incomplete frame that are held."""
        return len(self._buffer)


def encode_varint(number: int) -> bytes:
    """Encode an unsigned integer as protobuf does."""
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


class VarintFrameDecoder:
    """Cuts received bytes into frames with a varint length. Holds at most one incomplete frame."""

    __slots__ = ("_buffer", "_bytes_max")

    def __init__(self, bytes_max: int) -> None:
        self._buffer = bytearray()
        self._bytes_max = bytes_max

    def feed(self, data: bytes) -> list[bytes]:
        """Take received bytes and return the frames they complete, in order.

        Raises:
            RemoteViolation: a length is over the limit.
        """
        self._buffer += data
        frames = []
        start = 0
        while (header := self._read_length(start)) is not None:
            length, body = header
            if len(self._buffer) - body < length:
                break
            frames.append(bytes(self._buffer[body : body + length]))
            start = body + length
        if start:
            del self._buffer[:start]
        return frames

    def _read_length(self, start: int) -> tuple[int, int] | None:
        """Return the length and where the body starts, or None if the length is not complete."""
        length = shift = 0
        for position in range(start, len(self._buffer)):
            byte = self._buffer[position]
            length |= (byte & 0x7F) << shift
            shift += 7
            if length > self._bytes_max or shift > _VARINT_BITS_MAX:
                raise RemoteViolation("gossip_too_long", f"gossip frame of {length} bytes or more")
            if byte < 0x80:
                return length, position + 1
        return None


class TokenBucket:
    """A rate limit. Takes the time as an argument, so that it needs no clock."""

    __slots__ = ("_burst", "_rate", "_tokens", "_updated")

    def __init__(self, rate_per_second: float, *, burst: float | None = None) -> None:
        """Begin with a full bucket.

        Args:
            rate_per_second: tokens that come back.
            burst: tokens that fit; None is what comes back in a second.
        """
        self._rate = rate_per_second
        self._burst = rate_per_second if burst is None else burst
        self._tokens = self._burst
        self._updated: float | None = None

    def take(self, amount: float, now: float) -> float:
        """Use up tokens, into debt if need be.

        Args:
            amount: tokens.
            now: any monotonic clock, seconds.

        Returns:
            Seconds to wait until the debt is paid; 0 when there is none.
        """
        if self._updated is not None:
            self._tokens = min(self._burst, self._tokens + (now - self._updated) * self._rate)
        self._updated = now
        self._tokens -= amount
        return max(0.0, -self._tokens / self._rate)

    def try_take(self, amount: float, now: float) -> bool:
        """Use up tokens only if they are there."""
        if self.take(0, now) > 0 or self._tokens < amount:
            return False
        self._tokens -= amount
        return True
