"""The frontier of a log, author by author, and a digest of it that is updated, not recomputed.

Knows: entries and their sum. Must not know: operations.
Source: range-based set reconciliation (negentropy, Willow): a sum modulo 2**256 of entry hashes and their count.
A sum, never an exclusive or: with the latter an adversary can choose entries that cancel out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from converge_p2p.core.codec import encode, tagged_hash
from converge_p2p.core.types import OperationId, PublicKey

_MODULUS = 2**256


@dataclass(frozen=True, slots=True)
class FrontierEntry:
    """How much of an author is held.

    Attributes:
        author: public key.
        length: operations in the common prefix; the next seq.
        head: id of the last of them, None if there is none.
        loose: hash over the loose operations of a frozen author, else None.
    """

    author: PublicKey
    length: int
    head: OperationId | None
    loose: bytes | None = None

    @property
    def hash(self) -> bytes:
        """32 bytes that commit to the entry."""
        return tagged_hash("frontier-entry", encode(self.to_plain()))

    def to_plain(self) -> list[Any]:
        """Array form, for the wire."""
        return [self.author, self.length, self.head, self.loose]


class FrontierSum:
    """Sum and count of entry hashes."""

    __slots__ = ("_count", "_total")

    def __init__(self) -> None:
        self._total = 0
        self._count = 0

    def replace(self, old: bytes | None, new: bytes | None) -> None:
        """Exchange one entry's hash; None stands for no entry."""
        if old is not None:
            self._total -= int.from_bytes(old, "big")
            self._count -= 1
        if new is not None:
            self._total += int.from_bytes(new, "big")
            self._count += 1
        self._total %= _MODULUS

    def digest(self) -> bytes:
        """32 bytes."""
        return tagged_hash("frontier", self._total.to_bytes(32, "big"), self._count.to_bytes(8, "big"))
