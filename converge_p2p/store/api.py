"""What a store is. Every store passes the one contract suite in `tests/store`.

Knows: the two protocols, and the bounds of keys and values. Must not know: files, databases, or what the bytes mean.
Source: the concepts page (put, get, delete, list); `put_if_absent` and the operation log are what replication needs.

All methods are synchronous and thread-safe: a node calls them from worker threads. Every method raises `StoreError` if
the store is damaged, locked for too long, full, or closed; a write that raised has changed nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, runtime_checkable

from converge_p2p.core import limits
from converge_p2p.core.errors import LimitExceeded, LocalError
from converge_p2p.core.types import OperationId, PoolId

Batch = tuple[PoolId, Sequence[tuple[OperationId, bytes]]]
"""Operations of one pool, each with its id."""

PoolIds = list[PoolId]
"""In classes that have a method `list`, the type needs another name."""


class Store(Protocol):
    """Keys and values.

    A key is text of 1 to `limits.STORE_KEY_BYTES_MAX` bytes of UTF-8, a value is at most `limits.STORE_VALUE_BYTES_MAX`
    bytes; otherwise `LocalError` or `LimitExceeded` is raised. What a write returned from is there after power loss, if
    the store is one that lasts.
    """

    def put(self, key: str, value: bytes) -> None:
        """Set a value, whether or not there was one."""

    def get(self, key: str) -> bytes | None:
        """Return the value, or None if there is none."""

    def delete(self, key: str) -> bool:
        """Remove a value; say whether there was one."""

    def list(self, prefix: str = "") -> list[str]:
        """Return the keys that begin with `prefix`, sorted by code points."""

    def put_if_absent(self, key: str, value: bytes) -> bool:
        """Set a value if there is none, and say whether this call set it.

        Of all calls for one key, by all threads and processes on one store, one returns True until it is deleted.
        """

    def close(self) -> None:
        """Release the store. Closing twice is harmless; every other call afterwards raises."""


class OperationStore(Protocol):
    """The operations of each pool, in the order they came, and what they build on. Nothing is decoded here."""

    def append(self, pool: PoolId, operations: Sequence[tuple[OperationId, bytes]], *, durable: bool) -> None:
        """Add operations of one pool: all of them, or none.

        Args:
            pool: the pool.
            operations: each with its id. An id that is there already is skipped, and keeps its place and its bytes.
            durable: return only when they would outlive a loss of power. Without, they outlive a crash of the process.
        """

    def append_many(self, batches: Sequence[Batch], *, durable: bool) -> None:
        """Add operations of several pools: all of them, or none. See `append`."""

    def load(self, pool: PoolId) -> Iterator[bytes]:
        """Yield the operations of a pool in the order they were added.

        Operations added while it runs may or may not be among them.
        """

    def compact(self, pool: PoolId, snapshot: bytes, drop: Sequence[OperationId], entries: Mapping[str, bytes]) -> None:
        """Replace operations by a snapshot: all of this, or nothing, and durably.

        Args:
            pool: the pool.
            snapshot: replaces the one that is there.
            drop: operations to remove; those that are not there do not matter.
            entries: keys and values to put, see `Store.put`.
        """

    def snapshot(self, pool: PoolId) -> bytes | None:
        """Return the snapshot of a pool, or None if it was never compacted."""

    def pools(self) -> PoolIds:
        """Return the pools that have operations or a snapshot, sorted."""

    def count(self, pool: PoolId) -> int:
        """Return how many operations of a pool there are."""

    def delete_pool(self, pool: PoolId) -> int:
        """Remove all operations of a pool, and its snapshot; return how many operations there were."""


class NodeStore(Store, OperationStore, Protocol):
    """Both in one: what a node is given."""


@runtime_checkable
class KeptStore(Protocol):
    """What a store has beside that if it can be looked after: bounded in size, and rid of what nobody needs."""

    def held_bytes(self) -> int:
        """Return how many bytes it holds, as it lies on the disk; room that is free for more is not counted."""

    def delete_many(self, keys: Sequence[str]) -> int:
        """Remove values: all of them, or none. Return how many there were."""


def check_key(key: object) -> str:
    """Return the key if a store may take it.

    Raises:
        LocalError: not text, empty, or without a UTF-8 form.
        LimitExceeded: longer than `limits.STORE_KEY_BYTES_MAX`.
    """
    if not isinstance(key, str) or not key:
        raise LocalError(f"store key is {key!r}; expected text that is not empty")
    check_prefix(key)
    size = len(key.encode())
    if size > limits.STORE_KEY_BYTES_MAX:
        raise LimitExceeded(
            "STORE_KEY_BYTES_MAX", f"store key has {size} bytes, at most {limits.STORE_KEY_BYTES_MAX} allowed"
        )
    return key


def check_prefix(prefix: str) -> None:
    """Check that a prefix of keys has a UTF-8 form.

    Raises:
        LocalError: it has none (a lone surrogate).
    """
    try:
        prefix.encode()
    except UnicodeEncodeError as error:
        raise LocalError(f"store key {prefix!r} cannot be written as UTF-8: {error.reason}") from error


def check_value(value: object) -> bytes:
    """Return the value if a store may take it.

    Raises:
        LocalError: not bytes. (A mutable buffer would change under a store that keeps it.)
        LimitExceeded: longer than `limits.STORE_VALUE_BYTES_MAX`.
    """
    if not isinstance(value, bytes):
        raise LocalError(f"store value is of type {type(value).__name__}; expected bytes")
    if len(value) > limits.STORE_VALUE_BYTES_MAX:
        raise LimitExceeded(
            "STORE_VALUE_BYTES_MAX",
            f"store value has {len(value)} bytes, at most {limits.STORE_VALUE_BYTES_MAX} allowed",
        )
    return value


def check_batches(batches: Sequence[Batch]) -> None:
    """Check that pools, ids and operations are byte strings, before anything is written.

    Raises:
        LocalError: something else.
        LimitExceeded: an operation longer than `limits.STORE_VALUE_BYTES_MAX`.
    """
    for pool, operations in batches:
        if not isinstance(pool, bytes) or not pool:
            raise LocalError(f"pool id is {pool!r}; expected bytes")
        for operation_id, data in operations:
            if not isinstance(operation_id, bytes) or not operation_id:
                raise LocalError(f"operation id is {operation_id!r}; expected bytes")
            check_value(data)


def check_compaction(pool: PoolId, snapshot: bytes, entries: Mapping[str, bytes]) -> None:
    """Check what replaces operations, before anything is written.

    Raises:
        LocalError: something that is no byte string, or a key that is none.
        LimitExceeded: too large.
    """
    check_batches([(pool, [])])
    if not isinstance(snapshot, bytes):
        raise LocalError(f"a snapshot is of type {type(snapshot).__name__}; expected bytes")
    most = limits.SNAPSHOT_CHUNKS_MAX * limits.SNAPSHOT_CHUNK_BYTES
    if len(snapshot) > most:
        raise LimitExceeded("SNAPSHOT_CHUNKS_MAX", f"the snapshot has {len(snapshot)} bytes, at most {most} allowed")
    for key, value in entries.items():
        check_key(key)
        check_value(value)
