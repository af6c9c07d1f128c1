"""Identifiers used everywhere in the core.

Knows: the shapes of ids. Must not know: how they are made (see `codec` and `identity`).
Source: the ids of `docs/protocol.md`.
"""

from __future__ import annotations

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
