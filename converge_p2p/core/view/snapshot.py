"""A snapshot: the state of a pool at a cut of its log, as bytes, and the root that commits to them.

Knows: the shape and the bounds. Must not know: how a state is folded (see `summary`), or who attests it.
Source: `docs/protocol.md`, checkpoints. The bytes are a function of the operations inside the cut, and of nothing else:
not of the order in which they came, and not of earlier checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from converge_p2p.core import limits
from converge_p2p.core.codec import decode, encode, tagged_hash
from converge_p2p.core.errors import CodecError
from converge_p2p.core.model.task import Outcome, TaskValue
from converge_p2p.core.oplog.chain import Row
from converge_p2p.core.types import OperationId, PoolId, PublicKey
from converge_p2p.core.view.settled import SettledTable

VERSION = 1
SNAPSHOT_BYTES_MAX = limits.SNAPSHOT_CHUNKS_MAX * limits.SNAPSHOT_CHUNK_BYTES
_HASH = 32


class Manifest(NamedTuple):
    """What a root commits to.

    Attributes:
        size: bytes of the snapshot.
        hashes: 32 bytes for each of its chunks.
    """

    size: int
    hashes: tuple[bytes, ...]

    @property
    def root(self) -> bytes:
        """32 bytes."""
        return tagged_hash("snapshot", self.size.to_bytes(8, "big"), *self.hashes)

    def check(self) -> None:
        """Check the bounds.

        Raises:
            CodecError: too large, or not one hash for each chunk.
        """
        chunks = -(-self.size // limits.SNAPSHOT_CHUNK_BYTES)
        if not 1 <= chunks <= limits.SNAPSHOT_CHUNKS_MAX or len(self.hashes) != chunks:
            raise CodecError(f"a snapshot has 1 to {limits.SNAPSHOT_CHUNKS_MAX} chunks, and a hash for each")


def chunk_hash(chunk: bytes) -> bytes:
    """Return the hash of a chunk."""
    return tagged_hash("snapshot-chunk", chunk)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state at a cut.

    Attributes:
        pool: whose.
        rows: the cut: every author that has operations inside, sorted.
        settled: the tasks of which only the end matters.
        epochs: the values on which the registers of the epochs were settled, from that of epoch 1 on.
        retained: signed operations, sorted by author and number: everything else follows from them.
        last: the signed operation that each chain ends with, by author, where it is not retained: it proves the end.
        data: canonical bytes of all that.
        manifest: what the root commits to.
    """

    pool: PoolId
    rows: tuple[Row, ...]
    settled: SettledTable
    epochs: tuple[TaskValue, ...]
    retained: tuple[bytes, ...]
    last: tuple[bytes, ...]
    data: bytes
    manifest: Manifest

    @property
    def root(self) -> bytes:
        """32 bytes that commit to the snapshot."""
        return self.manifest.root

    def chunk(self, index: int) -> bytes:
        """A part of the bytes; empty beyond the end."""
        return self.data[index * limits.SNAPSHOT_CHUNK_BYTES : (index + 1) * limits.SNAPSHOT_CHUNK_BYTES]

    @classmethod
    def make(
        cls,
        pool: PoolId,
        rows: tuple[Row, ...],
        *,
        settled: SettledTable,
        epochs: tuple[TaskValue, ...],
        retained: tuple[bytes, ...],
        last: tuple[bytes, ...],
    ) -> Snapshot:
        """Write a snapshot.

        Raises:
            CodecError: larger than a snapshot may be.
        """
        values = [[int(value.outcome), value.worker, value.result] for value in epochs]
        plain = [VERSION, pool, [list(row) for row in rows], settled.plain(), values, list(retained), list(last)]
        data = encode(plain)
        return cls(pool, rows, settled, epochs, retained, last, data, _manifest(data))

    @classmethod
    def read(cls, data: bytes, pool: PoolId) -> Snapshot:
        """Read the bytes of a snapshot.

        Raises:
            CodecError: not of that shape, out of bounds, or of another pool.
        """
        match decode(data):
            case [
                int() as version,
                bytes() as its_pool,
                list() as authors,
                settled,
                list() as values,
                list() as kept,
                list() as last,
            ] if (
                type(version) is int
                and version == VERSION
                and its_pool == pool
                and all(type(item) is bytes for item in (*kept, *last))
            ):
                rows = tuple(_row(item) for item in authors)
                names = [row.author for row in rows]
                if names != sorted(set(names)) or len(names) > limits.AUTHORS_PER_POOL_MAX:
                    raise CodecError("the authors of a snapshot rise")
                table, epochs = SettledTable.read(settled), tuple(_value(item) for item in values)
                return cls(pool, rows, table, epochs, tuple(kept), tuple(last), data, _manifest(data))
        raise CodecError("a snapshot is an array of version, pool, authors, tasks, epochs, operations and last ones")


def _manifest(data: bytes) -> Manifest:
    size = limits.SNAPSHOT_CHUNK_BYTES
    manifest = Manifest(len(data), tuple(chunk_hash(data[at : at + size]) for at in range(0, len(data), size)))
    manifest.check()
    return manifest


def _row(item: Any) -> Row:
    match item:
        case [bytes() as author, int() as length, bytes() as head, int() as hlc, int() as epoch] if (
            len(author) == len(head) == _HASH
            and type(length) is type(hlc) is type(epoch) is int
            and 1 <= length <= limits.SEQ_MAX
            and 0 <= hlc < 2**63
            and 0 <= epoch <= limits.EPOCH_MAX
        ):
            return Row(PublicKey(author), length, OperationId(head), hlc, epoch)
    raise CodecError("an author of a snapshot is an array of key, length, head, clock and epoch")


def _value(item: Any) -> TaskValue:
    match item:
        case [int() as outcome, bytes() as worker, bytes() as result] if (
            type(outcome) is int and outcome in tuple(Outcome) and len(worker) == _HASH
        ):
            return TaskValue(Outcome(outcome), PublicKey(worker), result)
    raise CodecError("the value of an epoch is an array of outcome, worker and result")
