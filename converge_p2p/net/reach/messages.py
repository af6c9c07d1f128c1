"""One protobuf message on a stream, behind its length as a varint: how the protocols of this room speak.

Knows: the encoding. Must not know: what a message means.
Source: libp2p specifications, relay/circuit-v2.md and autonat/autonat-v1.md.
"""

from __future__ import annotations

from typing import Final, TypeVar

from google.protobuf.message import DecodeError, Message
from libp2p.abc import INetStream
from libp2p.exceptions import ParseError
from libp2p.io.exceptions import IOException, MessageTooLarge
from libp2p.utils.varint import read_varint_prefixed_bytes_limited

from converge_p2p.core import limits
from converge_p2p.core.errors import NetworkError, RemoteViolation
from converge_p2p.net.framing import encode_varint

BAD_MESSAGE: Final = "bad_reach_message"

_M = TypeVar("_M", bound=Message)


async def read_message(stream: INetStream, kind: type[_M]) -> _M:
    """Read one message, and not a byte behind it.

    Raises:
        RemoteViolation: it is too long, or no such message.
        NetworkError: the stream ended before it was complete.
    """
    try:
        data = await read_varint_prefixed_bytes_limited(stream, limits.REACH_MESSAGE_BYTES_MAX)
    except (IOException, ParseError) as error:
        if isinstance(error, (MessageTooLarge, ParseError)):
            raise RemoteViolation(BAD_MESSAGE, str(error)) from error
        raise NetworkError(f"the stream ended early: {type(error).__name__}") from error
    message = kind()
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise RemoteViolation(BAD_MESSAGE, f"not a message of the protocol ({kind.__name__})") from error
    return message


def encode_message(message: Message) -> bytes:
    """Return a message behind its length."""
    body = message.SerializeToString()
    return encode_varint(len(body)) + body
