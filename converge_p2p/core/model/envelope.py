"""The envelope of a signed thing: msgpack `[1, signed bytes, signature]`.

Knows: the envelope's one encoding. Must not know: what is inside the signed bytes.
Source: `docs/protocol.md`, envelope. The signed bytes travel as they were signed, so a reader verifies what it received
and never what it would have written itself.
"""

from __future__ import annotations

from typing import Any

import msgpack

from converge_p2p.core.errors import CodecError
from converge_p2p.core.identity import SIGNATURE_BYTES

ENVELOPE_VERSION = 1


def pack_envelope(signed: bytes, signature: bytes) -> bytes:
    """Return the envelope around signed bytes and their signature."""
    packed: bytes = msgpack.packb([ENVELOPE_VERSION, signed, signature], use_bin_type=True)
    return packed


def unpack_envelope(what: str, data: bytes, bytes_max: int) -> tuple[bytes, bytes]:
    """Return signed bytes and signature. The signature is not verified here.

    Args:
        what: what is expected inside, for the message.
        data: bytes from the network.
        bytes_max: refused unread above this size.

    Raises:
        CodecError: too large, another version, or any other encoding than the one `pack_envelope` writes.
    """
    if len(data) > bytes_max:
        raise CodecError(f"{what} has {len(data)} bytes, at most {bytes_max} allowed")
    try:
        fields: Any = msgpack.unpackb(data, raw=False, max_array_len=3, max_map_len=0, max_ext_len=0)
    except (ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException) as error:
        raise CodecError(f"{what} is not a msgpack envelope: {error}") from error
    if not isinstance(fields, list) or len(fields) != 3 or type(fields[0]) is not int:
        raise CodecError(f"{what} is not an envelope of version, signed bytes and signature")
    version, signed, signature = fields
    if version != ENVELOPE_VERSION:
        raise CodecError(f"{what} has envelope version {version}; this node reads version {ENVELOPE_VERSION}")
    if type(signed) is not bytes or type(signature) is not bytes or len(signature) != SIGNATURE_BYTES:
        raise CodecError(f"{what} needs signed bytes and a signature of {SIGNATURE_BYTES} bytes")
    # msgpack has several encodings of one length; two envelopes of one message would pass a filter of known bytes
    if pack_envelope(signed, signature) != data:
        raise CodecError(f"{what} is not in the shortest msgpack encoding")
    return signed, signature
