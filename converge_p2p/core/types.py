"""Identifiers used everywhere in the core.

Knows: the shapes of ids. Must not know: how they are made (see `codec` and `identity`).
Source: the ids of `docs/protocol.md`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import NewType

PublicKey = NewType("PublicKey", bytes)
"""Raw Ed25519 public key, 32 bytes."""

AgentId = NewType("AgentId", str)
"""Fingerprint of a public key: lowercase hexadecimal SHA-256 of its 32 bytes (64 characters)."""

OperationId = NewType("OperationId", bytes)
"""SHA-256 over the domain-tagged bytes of an operation, 32 bytes."""

PoolId = NewType("PoolId", bytes)
"""SHA-256 that commits to the creator's key and the genesis body, 32 bytes."""

TaskId = NewType("TaskId", bytes)
"""SHA-256 over pool, author and idempotency key, 32 bytes."""

ValueHash = NewType("ValueHash", bytes)
"""SHA-256 over the canonical bytes of an outcome of a task, 32 bytes."""

PeerId = NewType("PeerId", str)
"""Name of a transport peer (a libp2p peer id in base58). Not an agent id."""

BlobId = NewType("BlobId", bytes)
"""Hash of the manifest of a blob, 32 bytes. Whoever knows it may ask for the blob."""


class BlobForm(IntEnum):
    """What a reference to a blob stands for. The number is its type in an encoded value."""

    HANDLE = 1
    """Itself: the reader fetches the content if it wants it."""
    BYTES = 2
    """A byte string, which is put in its place for the reader."""
    VALUE = 3
    """An encoded value, which is put in its place for the reader."""


@dataclass(frozen=True, slots=True)
class BlobRef:
    """A reference to a content that is kept outside of operations. It may stand anywhere in a user's value.

    Attributes:
        id: of the blob.
        size: of the content in bytes, at most `limits.BLOB_BYTES_MAX`.
        source: public key of whoever made it, and is asked for it first.
        key: 32 bytes that open a sealed blob, or empty.
        form: what it stands for.
    """

    id: BlobId
    size: int
    source: PublicKey
    key: bytes = field(default=b"", repr=False)
    form: BlobForm = BlobForm.HANDLE
