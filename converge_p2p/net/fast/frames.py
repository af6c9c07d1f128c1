"""Frames of the yamux protocol: bytes to headers and pieces of data, and back.

Knows: the twelve bytes of a header and which values they may have. Must not know: streams, windows, input or output.
Source: yamux specification (hashicorp), version 0, as libp2p uses it.
"""

from __future__ import annotations

import struct
from typing import Final

from converge_p2p.core import limits
from converge_p2p.core.errors import RemoteViolation

DATA: Final = 0
WINDOW_UPDATE: Final = 1
PING: Final = 2
GO_AWAY: Final = 3

SYN: Final = 1
ACK: Final = 2
FIN: Final = 4
RST: Final = 8

NORMAL: Final = 0
PROTOCOL_ERROR: Final = 1
INTERNAL_ERROR: Final = 2

HEADER_BYTES: Final = 12
WINDOW_FIRST_BYTES: Final = 256 * 1024
"""What either side may send on a new stream before it is allowed more."""

Header = tuple[int, int, int, int, int]
"""Version, kind, flags, number of the stream, and length: of the data, the credit, the ping's value, or the code."""

_HEADER = struct.Struct("!BBHII")
_pack = _HEADER.pack
_unpack_from = _HEADER.unpack_from


def encode_header(kind: int, flags: int, stream: int, length: int) -> bytes:
    """Encode a header; of a data frame, `length` bytes must follow."""
    return _pack(0, kind, flags, stream, length)


def encode_data(stream: int, payload: bytes | memoryview) -> bytes:
    """Encode a whole data frame."""
    return b"".join((_pack(0, DATA, 0, stream, len(payload)), payload))


class FrameDecoder:
    """Cuts received bytes into headers and pieces of data. Holds at most eleven bytes, as data is not kept."""

    __slots__ = ("_body_left", "_partial")

    def __init__(self) -> None:
        self._partial = b""
        self._body_left = 0

    @property
    def body_left(self) -> int:
        """Bytes of the last data frame that have not come yet."""
        return self._body_left

    @property
    def in_frame(self) -> bool:
        """Whether a frame has begun and not ended."""
        return bool(self._partial) or self._body_left > 0

    def feed(self, data: bytes) -> list[Header | bytes]:
        """Take received bytes; return headers, and after the header of a data frame the pieces of its data.

        Raises:
            RemoteViolation: not version 0, an unknown kind, a kind with a stream it cannot have, or too long.
        """
        out: list[Header | bytes] = []
        if self._partial:
            data = self._partial + data
            self._partial = b""
        position, end = 0, len(data)
        while position < end:
            if self._body_left:
                piece = data[position : position + self._body_left]
                self._body_left -= len(piece)
                position += len(piece)
                out.append(piece)
                continue
            if end - position < HEADER_BYTES:
                self._partial = data[position:]
                break
            header = _unpack_from(data, position)
            position += HEADER_BYTES
            _check(header)
            if header[1] == DATA:
                self._body_left = header[4]
            out.append(header)
        return out


def _check(header: Header) -> None:
    version, kind, _flags, stream, length = header
    if version != 0 or kind > GO_AWAY:
        raise RemoteViolation(
            "yamux_bad_header", f"frame of version {version} and kind {kind}; expected 0 and at most 3"
        )
    if (stream == 0) != (kind >= PING):
        raise RemoteViolation("yamux_bad_header", f"frame of kind {kind} cannot be about stream {stream}")
    if kind == DATA and length > limits.STREAM_FRAME_BYTES_MAX:
        raise RemoteViolation(
            "yamux_frame_too_long", f"data frame of {length} bytes; at most {limits.STREAM_FRAME_BYTES_MAX} allowed"
        )
