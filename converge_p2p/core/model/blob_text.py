"""The text of a reference to a blob, which people copy.

Knows: its one form. Must not know: contents, or ciphers, so that a client of the control interface needs none.
Source: `docs/protocol.md`, blobs.
"""

from __future__ import annotations

import binascii
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Final

from converge_p2p.core.codec import decode_reference, encode_reference
from converge_p2p.core.errors import CodecError, LocalError
from converge_p2p.core.types import BlobRef

TEXT_PREFIX: Final = "blob:"
_TEXT_CHARS_MAX: Final = 512


def reference_text(reference: BlobRef) -> str:
    """Return a reference as text. It contains the key of a sealed blob."""
    data = bytes([reference.form]) + encode_reference(reference)
    return TEXT_PREFIX + urlsafe_b64encode(data).rstrip(b"=").decode()


def parse_reference(text: str) -> BlobRef:
    """Read a reference.

    Raises:
        LocalError: it is none.
    """
    raw = text.strip()
    try:
        if not raw.startswith(TEXT_PREFIX) or len(raw) > _TEXT_CHARS_MAX:
            raise CodecError("no reference")
        coded = raw.removeprefix(TEXT_PREFIX)
        data = urlsafe_b64decode(coded + "=" * (-len(coded) % 4))
        reference = decode_reference(data[0], data[1:])
        if reference_text(reference) != raw:
            raise CodecError("not in its one form")
    except (CodecError, binascii.Error, ValueError, IndexError):
        raise LocalError(
            f"{text[:24]!r} is no reference to a blob", hint=f"one begins with {TEXT_PREFIX!r}, see `blob put`"
        ) from None
    return reference
