"""Sync messages between two replicas of one pool: their bytes.

Knows: shapes and bounds. Must not know: when to send one (see `session`).
Source: `docs/protocol.md`, sync. Canonical CBOR arrays; the first element names the kind.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from converge_p2p.core import limits
from converge_p2p.core.codec import decode, encode
from converge_p2p.core.errors import CodecError
from converge_p2p.core.oplog.frontier import FrontierEntry
from converge_p2p.core.oplog.log import Missing
from converge_p2p.core.types import OperationId, PublicKey

_HASH = 32


@dataclass(frozen=True, slots=True)
class Digest:
    """The sender's frontier, as 32 bytes."""

    digest: bytes


@dataclass(frozen=True, slots=True)
class FrontierPage:
    """All entries of authors from `low` (inclusive) to `high` (exclusive; empty: to the end).

    Attributes:
        answer: the receiver should send back its own page of the range where the sender lacks something.
    """

    entries: tuple[FrontierEntry, ...]
    low: bytes
    high: bytes
    answer: bool


class LooseWanted(NamedTuple):
    """The loose operations of a frozen author are wanted.

    Attributes:
        author: whose.
        start: 32 bytes: the answer begins with the first id not below it, and goes round.
    """

    author: PublicKey
    start: bytes


@dataclass(frozen=True, slots=True)
class Want:
    """Ranges of chains that the sender lacks, and frozen authors whose loose operations it lacks."""

    ranges: tuple[Missing, ...]
    loose: tuple[LooseWanted, ...] = ()


@dataclass(frozen=True, slots=True)
class Operations:
    """Signed operations. `last`: this ends the answer to a Want; more may be asked for."""

    operations: tuple[bytes, ...]
    last: bool = False


@dataclass(frozen=True, slots=True)
class GenesisWanted:
    """The sender knows only the pool's id."""


SyncMessage = Digest | FrontierPage | Want | Operations | GenesisWanted


def encode_message(message: SyncMessage) -> bytes:
    """Return the bytes of a sync message."""
    match message:
        case Digest(digest):
            return encode([0, digest])
        case FrontierPage(entries, low, high, answer):
            return encode([1, [entry.to_plain() for entry in entries], low, high, answer])
        case Want(ranges, loose):
            return encode([2, [[item.author, item.start, item.stop] for item in ranges], list(map(list, loose))])
        case Operations(operations, last):
            return encode([3, list(operations), last])
        case GenesisWanted():
            return encode([4])


def decode_message(payload: bytes) -> SyncMessage:
    """Read a sync message.

    Raises:
        CodecError: not of a known shape, or out of bounds.
    """
    if len(payload) > limits.SYNC_FRAME_BYTES_MAX:
        raise CodecError(f"a sync message of {len(payload)} bytes; at most {limits.SYNC_FRAME_BYTES_MAX}")
    plain = decode(payload)
    if type(plain) is not list or not plain:
        raise CodecError("a sync message is an array that begins with its kind")
    match plain:
        case [0, bytes() as digest] if len(digest) == _HASH:
            return Digest(digest)
        case [1, list() as entries, bytes() as low, bytes() as high, bool() as answer]:
            if len(entries) > limits.FRONTIER_PAGE_AUTHORS_MAX:
                raise CodecError("a frontier page has too many entries")
            return FrontierPage(tuple(_entry(item) for item in entries), low, high, answer)
        case [2, list() as ranges, list() as loose]:
            if len(ranges) + len(loose) > limits.WANTS_PER_MESSAGE_MAX:
                raise CodecError("a sync message wants too many ranges")
            return Want(tuple(_missing(item) for item in ranges), tuple(_loose(item) for item in loose))
        case [3, list() as operations, bool() as last]:
            if any(type(item) is not bytes for item in operations):
                raise CodecError("operations are byte strings")
            return Operations(tuple(operations), last)
        case [4]:
            return GenesisWanted()
    raise CodecError("a sync message of unknown shape")


def batches(operations: Iterable[bytes], bytes_max: int) -> Iterator[tuple[bytes, ...]]:
    """Cut operations into batches of at most `bytes_max` bytes, at least one operation each."""
    batch: list[bytes] = []
    size = 0
    for operation in operations:
        if batch and size + len(operation) > bytes_max:
            yield tuple(batch)
            batch, size = [], 0
        batch.append(operation)
        size += len(operation)
    if batch:
        yield tuple(batch)


def _hash(value: Any) -> bytes:
    if type(value) is not bytes or len(value) != _HASH:
        raise CodecError("expected a byte string of 32")
    return value


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= limits.SEQ_MAX:
        raise CodecError("expected a sequence number")
    return value


def _entry(item: Any) -> FrontierEntry:
    if type(item) is not list or len(item) != 4:
        raise CodecError("a frontier entry is an array of four")
    author, length, head, loose = item
    return FrontierEntry(
        PublicKey(_hash(author)),
        _count(length),
        None if head is None else OperationId(_hash(head)),
        None if loose is None else _hash(loose),
    )


def _loose(item: Any) -> LooseWanted:
    if type(item) is not list or len(item) != 2:
        raise CodecError("a request for loose operations is an array of two")
    return LooseWanted(PublicKey(_hash(item[0])), _hash(item[1]))


def _missing(item: Any) -> Missing:
    if type(item) is not list or len(item) != 3:
        raise CodecError("a range is an array of three")
    author, start, stop = item
    start, stop = _count(start), _count(stop)
    if not start < stop:
        raise CodecError("a range is empty")
    return Missing(PublicKey(_hash(author)), start, stop)
