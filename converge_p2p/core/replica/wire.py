"""Sync messages between two replicas of one pool: their bytes.

Knows: shapes and bounds. Must not know: when to send one (see `session`).
Source: `docs/protocol.md`, sync. Canonical CBOR arrays; the first element names the kind.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from converge_p2p.core import limits
from converge_p2p.core.codec import decode, encode
from converge_p2p.core.errors import CodecError
from converge_p2p.core.oplog.frontier import FINGERPRINT_BYTES, FrontierEntry
from converge_p2p.core.oplog.log import Missing
from converge_p2p.core.types import OperationId, PublicKey
from converge_p2p.core.view.snapshot import Manifest

_HASH = 32


@dataclass(frozen=True, slots=True)
class Digest:
    """The sender's frontier, as 32 bytes."""

    digest: bytes


class Part(NamedTuple):
    """What the sender says of one range of authors; it begins where the part before it ends.

    Attributes:
        bound: where the range ends, exclusive; empty: with the last author.
        content: None, nothing is said of it; 16 bytes, the fingerprint of the sender's entries; or all of them.
    """

    bound: bytes
    content: bytes | tuple[FrontierEntry, ...] | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Ranges of the sender's frontier, without a gap, from `low` on. What differs is to be answered."""

    low: bytes
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Entries:
    """Entries that the receiver was found to lack. `more`: others were left out; ask again when these are here."""

    entries: tuple[FrontierEntry, ...]
    more: bool = False


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


@dataclass(frozen=True, slots=True)
class TipWanted:
    """The sender may have forgotten operations: how far does the chain of this author go?"""

    author: PublicKey


@dataclass(frozen=True, slots=True)
class Tip:
    """How far a chain goes at the sender.

    Attributes:
        author: whose.
        epoch: the epoch in force at the sender.
        last: the signed operation it ends with, or a loose one if the author is frozen; empty if nothing is held.
    """

    author: PublicKey
    epoch: int
    last: bytes


@dataclass(frozen=True, slots=True)
class Offer:
    """What was asked for was pruned: here is the checkpoint that covers it.

    Attributes:
        checkpoint: the signed operation that proposed it.
        attests: the signed operations that certify it.
        manifest: of its snapshot.
    """

    checkpoint: bytes
    attests: tuple[bytes, ...]
    manifest: Manifest


@dataclass(frozen=True, slots=True)
class SnapshotWanted:
    """The sender knows that the checkpoint with this root is certified, and cannot make its snapshot itself."""

    root: bytes


@dataclass(frozen=True, slots=True)
class ChunkWanted:
    """A chunk of the snapshot with this root is wanted."""

    root: bytes
    index: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """A chunk of a snapshot."""

    root: bytes
    index: int
    data: bytes


SyncMessage = (
    Digest
    | Comparison
    | Want
    | Operations
    | GenesisWanted
    | Entries
    | TipWanted
    | Tip
    | Offer
    | ChunkWanted
    | Chunk
    | SnapshotWanted
)


def encode_message(message: SyncMessage) -> bytes:
    """Return the bytes of a sync message."""
    match message:
        case Digest(digest):
            return encode([0, digest])
        case Comparison(low, parts):
            return encode([1, low, [[part.bound, _plain_content(part.content)] for part in parts]])
        case Want(ranges, loose):
            return encode([2, [[item.author, item.start, item.stop] for item in ranges], list(map(list, loose))])
        case Operations(operations, last):
            return encode([3, list(operations), last])
        case GenesisWanted():
            return encode([4])
        case Entries(entries, more):
            return encode([5, [entry.to_plain() for entry in entries], more])
        case TipWanted(author):
            return encode([6, author])
        case Tip(author, epoch, last):
            return encode([7, author, epoch, last])
        case Offer(checkpoint, attests, manifest):
            return encode([8, checkpoint, list(attests), manifest.size, list(manifest.hashes)])
        case ChunkWanted(root, index):
            return encode([9, root, index])
        case Chunk(root, index, data):
            return encode([10, root, index, data])
        case SnapshotWanted(root):
            return encode([11, root])


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
        case [1, bytes() as low, list() as parts]:
            return _comparison(low, parts)
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
        case [5, list() as entries, bool() as more]:
            return Entries(_entries(entries), more)
        case [6, bytes() as author]:
            return TipWanted(PublicKey(_hash(author)))
        case [7, bytes() as author, int() as epoch, bytes() as last]:
            if len(last) > limits.OPERATION_BYTES_MAX:
                raise CodecError("an operation is too large")
            return Tip(PublicKey(_hash(author)), _count(epoch), last)
        case [8, bytes() as checkpoint, list() as attests, int() as size, list() as hashes]:
            return _offer(checkpoint, attests, size, hashes)
        case [9, bytes() as root, int() as index] if _is_chunk(root, index):
            return ChunkWanted(root, index)
        case [10, bytes() as root, int() as index, bytes() as data] if _is_chunk(root, index):
            if not 0 < len(data) <= limits.SNAPSHOT_CHUNK_BYTES:
                raise CodecError(f"a chunk has 1 to {limits.SNAPSHOT_CHUNK_BYTES} bytes")
            return Chunk(root, index, data)
        case [11, bytes() as root]:
            return SnapshotWanted(_hash(root))
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


def _is_chunk(root: bytes, index: int) -> bool:
    return len(root) == _HASH and type(index) is int and 0 <= index < limits.SNAPSHOT_CHUNKS_MAX


def _offer(checkpoint: bytes, attests: list[Any], size: int, hashes: list[Any]) -> Offer:
    if len(attests) > limits.ELECTORS_MAX or any(type(item) is not bytes for item in attests):
        raise CodecError(f"an offer holds at most {limits.ELECTORS_MAX} attestations")
    if type(size) is not int:
        raise CodecError("the size of a snapshot is an integer")
    manifest = Manifest(size, tuple(_hash(item) for item in hashes))
    manifest.check()
    return Offer(checkpoint, tuple(attests), manifest)


def _plain_content(content: bytes | tuple[FrontierEntry, ...] | None) -> Any:
    return [entry.to_plain() for entry in content] if isinstance(content, tuple) else content


def _comparison(low: bytes, items: list[Any]) -> Comparison:
    """Read ranges: bounds rise, only the last may be open, and entries stand in theirs."""
    if not 0 < len(items) <= limits.RANGE_PARTS_PER_MESSAGE_MAX or len(low) > _HASH:
        raise CodecError("a comparison has no parts, too many, or begins nowhere")
    parts: list[Part] = []
    start, entries = low, 0
    for index, item in enumerate(items):
        if type(item) is not list or len(item) != 2 or type(item[0]) is not bytes:
            raise CodecError("a part is a bound and a content")
        bound, content = item
        if len(bound) > _HASH or not (start < bound or (not bound and index == len(items) - 1)):
            raise CodecError("bounds are at most 32 bytes and rise; only the last may be empty")
        if type(content) is list:
            content = _entries(content)
            entries += len(content)
            if content and (content[0].author < start or (bound and content[-1].author >= bound)):
                raise CodecError("an entry stands outside its range")
        elif content is not None and (type(content) is not bytes or len(content) != FINGERPRINT_BYTES):
            raise CodecError("a content is null, a fingerprint or entries")
        parts.append(Part(bound, content))
        start = bound
    if entries > limits.FRONTIER_ENTRIES_PER_MESSAGE_MAX:
        raise CodecError("a comparison has too many entries")
    return Comparison(low, tuple(parts))


def _entries(items: list[Any]) -> tuple[FrontierEntry, ...]:
    if len(items) > limits.FRONTIER_ENTRIES_PER_MESSAGE_MAX:
        raise CodecError("too many frontier entries")
    entries = tuple(_entry(item) for item in items)
    if any(one.author >= other.author for one, other in itertools.pairwise(entries)):
        raise CodecError("frontier entries are sorted by author, without repeats")
    return entries


def _entry(item: Any) -> FrontierEntry:
    if type(item) is not list or len(item) != 4:
        raise CodecError("a frontier entry is an array of four")
    author, length, head, loose = item
    if (head is None) != (length == 0) or (head is None and loose is None):
        raise CodecError("a frontier entry has a head exactly if it has a length, or else loose operations")
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
