"""What the program uses of keys that take each other's place, as protocols.

Knows: names and types. Must not know: who has them.
Source: docs/control.md.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, Protocol

from converge_p2p.core.oplog.succession import SucceedBody
from converge_p2p.core.types import PoolId, PublicKey


class BequestLike(Protocol):
    """What the node of a new key begins with in a pool."""

    @property
    def content_keys(self) -> bytes: ...


class PoolKeysLike(Protocol):
    """How this node's key in a pool is handed over."""

    async def pass_on(
        self, successor: PublicKey, signature: bytes, /, *, timeout_s: float | None = None
    ) -> BequestLike: ...


class HeirLike(Protocol):
    """Whose key can take the place of another one; gives the pool."""

    def take_place(
        self, pool: PoolId, word: SucceedBody, /, *, keys: bytes = b"", timeout_s: float | None = ...
    ) -> Awaitable[Any]: ...
