"""What the control interface says and hears of blobs.

Knows: the shape of requests and answers in JSON. Must not know: HTTP, or the node.
Source: docs/control.md. Contents are not JSON: they are bodies of their own.
"""

from __future__ import annotations

import msgspec


class BlobItem(msgspec.Struct, frozen=True, kw_only=True):
    """A blob that is kept.

    Attributes:
        size: bytes of its chunks.
        held_bytes: of them, how many are here.
        hold: pinned, kept or cached.
    """

    id: str
    size: int
    held_bytes: int
    hold: str
    used_at: str


class PutItem(msgspec.Struct, frozen=True, kw_only=True):
    """A content that was put.

    Attributes:
        reference: what others fetch it with. It contains the key of a sealed blob.
        size: bytes of the content.
    """

    reference: str
    id: str
    size: int


class RemoveBlob(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keep a blob no longer. `blob` is an id, its first digits (six or more), or a reference."""

    blob: str


class RemovedBlob(msgspec.Struct, frozen=True, kw_only=True):
    """A blob that was removed."""

    id: str
