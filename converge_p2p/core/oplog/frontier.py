"""The frontier of a log, author by author, and digests of it and of its ranges that are updated, not recomputed.

Knows: entries, their order and their sums. Must not know: operations.
Source: range-based set reconciliation (negentropy, Willow): a sum modulo 2**256 of entry hashes and their count.
A sum, never an exclusive or: with the latter an adversary can choose entries that cancel out.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

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
        return _hashed("frontier", self._total, self._count)


def _hashed(tag: str, total: int, count: int) -> bytes:
    return tagged_hash(tag, (total % _MODULUS).to_bytes(32, "big"), count.to_bytes(8, "big"))


FINGERPRINT_BYTES: Final = 16
"""Of a range. No chance brings two together; whoever makes two hides what was made for it, until an entry moves."""

_BUCKET_AUTHORS: Final = 64
"""Authors in a bucket, up to twice as many: a change costs one bucket and a query one, besides a sum over buckets."""


class FrontierIndex:
    """The authors of a frontier in order, with the hash of each one's entry, and sums over any range of them.

    Buckets of authors, each with its sum, and the running sums over the buckets, which are brought up to date when they
    are asked for. So a change costs O(sqrt n) at most, and so does a query after a change; queries in a row, as
    in one message about many ranges, cost O(log n) each and a part of one bucket.
    """

    __slots__ = ("_before", "_clean", "_count", "_firsts", "_hashes", "_keys", "_ranks", "_sums", "_total")

    def __init__(self) -> None:
        self._keys: list[list[PublicKey]] = []
        self._hashes: list[list[int]] = []
        self._sums: list[int] = []
        self._firsts: list[PublicKey] = []
        # authors in front of each bucket, and the sum of their hashes: right up to the bucket `_clean`
        self._ranks: list[int] = []
        self._before: list[int] = []
        self._clean = 0
        self._total = 0
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def put(self, author: PublicKey, hashed: bytes) -> None:
        """Add an author, or replace the hash of its entry."""
        value = int.from_bytes(hashed, "big")
        if not self._keys:
            self._insert_bucket(0, [author], [value])
        else:
            bucket = max(0, bisect_right(self._firsts, author) - 1)
            keys, hashes = self._keys[bucket], self._hashes[bucket]
            at = bisect_left(keys, author)
            if at < len(keys) and keys[at] == author:
                value, hashes[at] = value - hashes[at], value
                self._sums[bucket] += value
                self._total += value
                # running sums in front of the bucket stay as they are
                self._clean = min(self._clean, bucket + 1)
                return
            keys.insert(at, author)
            hashes.insert(at, value)
            self._sums[bucket] += value
            self._firsts[bucket] = keys[0]
            self._clean = min(self._clean, bucket + 1)
            if len(keys) > 2 * _BUCKET_AUTHORS:
                self._insert_bucket(bucket + 1, keys[_BUCKET_AUTHORS:], hashes[_BUCKET_AUTHORS:])
                del keys[_BUCKET_AUTHORS:], hashes[_BUCKET_AUTHORS:]
                self._sums[bucket] -= self._sums[bucket + 1]
        self._total += value
        self._count += 1

    def drop(self, author: PublicKey) -> None:
        """Take an author out, if it is there."""
        bucket = bisect_right(self._firsts, author) - 1
        if bucket < 0:
            return
        keys, hashes = self._keys[bucket], self._hashes[bucket]
        at = bisect_left(keys, author)
        if at == len(keys) or keys[at] != author:
            return
        value = hashes.pop(at)
        del keys[at]
        self._sums[bucket] -= value
        self._total -= value
        self._count -= 1
        self._clean = min(self._clean, bucket)
        if keys:
            self._firsts[bucket] = keys[0]
        else:
            for column in (self._keys, self._hashes, self._sums, self._firsts, self._ranks, self._before):
                del column[bucket]

    def _insert_bucket(self, at: int, keys: list[PublicKey], hashes: list[int]) -> None:
        self._keys.insert(at, keys)
        self._hashes.insert(at, hashes)
        self._sums.insert(at, sum(hashes))
        self._firsts.insert(at, keys[0])
        self._ranks.insert(at, 0)
        self._before.insert(at, 0)
        self._clean = min(self._clean, at)

    def _tidy(self) -> None:
        """Bring the running sums up to date."""
        if self._clean == len(self._keys):
            return
        for bucket in range(self._clean, len(self._keys)):
            if bucket:
                self._ranks[bucket] = self._ranks[bucket - 1] + len(self._keys[bucket - 1])
                self._before[bucket] = self._before[bucket - 1] + self._sums[bucket - 1]
        self._clean = len(self._keys)

    def rank(self, bound: bytes) -> int:
        """How many authors stand below a bound."""
        self._tidy()
        bucket = bisect_right(self._firsts, bound) - 1
        return 0 if bucket < 0 else self._ranks[bucket] + bisect_left(self._keys[bucket], bound)

    def span(self, low: bytes, high: bytes) -> tuple[int, int]:
        """Ranks of the first author from `low` on, and of the first not below `high`; an empty `high` is the end."""
        start = self.rank(low)
        return start, max(start, self.rank(high)) if high else self._count

    def author(self, rank: int) -> PublicKey:
        """The author of a rank from 0 to the count, exclusive."""
        self._tidy()
        bucket = bisect_right(self._ranks, rank) - 1
        return self._keys[bucket][rank - self._ranks[bucket]]

    def authors(self, start: int, stop: int) -> Iterator[PublicKey]:
        """Authors of the ranks `start` to `stop`, exclusive. Nothing may change meanwhile."""
        self._tidy()
        if start >= stop:
            return
        bucket = bisect_right(self._ranks, start) - 1
        while start < stop:
            keys, first = self._keys[bucket], self._ranks[bucket]
            yield from keys[start - first : stop - first]
            start, bucket = first + len(keys), bucket + 1

    def _sum_before(self, rank: int) -> int:
        if rank >= self._count:
            return self._total
        bucket = bisect_right(self._ranks, rank) - 1
        return self._before[bucket] + sum(self._hashes[bucket][: rank - self._ranks[bucket]])

    def fingerprint(self, start: int, stop: int) -> bytes:
        """16 bytes for the entries of the ranks `start` to `stop`, exclusive."""
        self._tidy()
        total = 0
        if start < stop:
            bucket = bisect_right(self._ranks, start) - 1
            first, hashes = self._ranks[bucket], self._hashes[bucket]
            if stop - first <= len(hashes):
                total = sum(hashes[start - first : stop - first])
            else:
                total = self._sum_before(stop) - self._sum_before(start)
        return _hashed("frontier-range", total, max(0, stop - start))[:FINGERPRINT_BYTES]

    def digest(self) -> bytes:
        """32 bytes for all of it."""
        return _hashed("frontier", self._total, self._count)
