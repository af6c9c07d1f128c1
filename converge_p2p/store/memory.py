"""A store that lasts as long as the process: for tests, and for nodes that want to be forgotten.

Knows: dictionaries and a lock. Must not know: files.
Source: the contract in `store.api`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence

from converge_p2p.core.errors import StoreError
from converge_p2p.core.types import OperationId, PoolId
from converge_p2p.store.api import Batch, PoolIds, check_batches, check_compaction, check_key, check_prefix, check_value


class MemoryStore:
    """Implements `Store` and `OperationStore`. `durable` has no meaning here."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[str, bytes] = {}
        self._operations: dict[PoolId, dict[OperationId, bytes]] = {}
        self._snapshots: dict[PoolId, bytes] = {}
        self._closed = False

    def put(self, key: str, value: bytes) -> None:
        """See `Store.put`."""
        check_key(key)
        check_value(value)
        with self._lock:
            self._check_open()
            self._values[key] = value

    def get(self, key: str) -> bytes | None:
        """See `Store.get`."""
        check_key(key)
        with self._lock:
            self._check_open()
            return self._values.get(key)

    def delete(self, key: str) -> bool:
        """See `Store.delete`."""
        check_key(key)
        with self._lock:
            self._check_open()
            return self._values.pop(key, None) is not None

    def delete_many(self, keys: Sequence[str]) -> int:
        """See `KeptStore.delete_many`."""
        for key in keys:
            check_key(key)
        with self._lock:
            self._check_open()
            return sum(self._values.pop(key, None) is not None for key in keys)

    def list(self, prefix: str = "") -> list[str]:
        """See `Store.list`."""
        check_prefix(prefix)
        with self._lock:
            self._check_open()
            return sorted(key for key in self._values if key.startswith(prefix))

    def put_if_absent(self, key: str, value: bytes) -> bool:
        """See `Store.put_if_absent`."""
        check_key(key)
        check_value(value)
        with self._lock:
            self._check_open()
            if key in self._values:
                return False
            self._values[key] = value
            return True

    def append(self, pool: PoolId, operations: Sequence[tuple[OperationId, bytes]], *, durable: bool) -> None:
        """See `OperationStore.append`."""
        self.append_many([(pool, operations)], durable=durable)

    def append_many(self, batches: Sequence[Batch], *, durable: bool) -> None:  # noqa: ARG002 - part of the contract
        """See `OperationStore.append_many`."""
        check_batches(batches)
        with self._lock:
            self._check_open()
            for pool, operations in batches:
                if operations:
                    known = self._operations.setdefault(pool, {})
                    for operation_id, data in operations:
                        known.setdefault(operation_id, data)

    def load(self, pool: PoolId) -> Iterator[bytes]:
        """See `OperationStore.load`."""
        with self._lock:
            self._check_open()
            return iter(list(self._operations.get(pool, {}).values()))

    def compact(self, pool: PoolId, snapshot: bytes, drop: Sequence[OperationId], entries: Mapping[str, bytes]) -> None:
        """See `OperationStore.compact`."""
        check_compaction(pool, snapshot, entries)
        with self._lock:
            self._check_open()
            self._snapshots[pool] = snapshot
            known = self._operations.get(pool, {})
            for operation_id in drop:
                known.pop(operation_id, None)
            if not known:
                self._operations.pop(pool, None)
            self._values.update(entries)

    def snapshot(self, pool: PoolId) -> bytes | None:
        """See `OperationStore.snapshot`."""
        with self._lock:
            self._check_open()
            return self._snapshots.get(pool)

    def pools(self) -> PoolIds:
        """See `OperationStore.pools`."""
        with self._lock:
            self._check_open()
            return sorted(self._operations.keys() | self._snapshots.keys())

    def count(self, pool: PoolId) -> int:
        """See `OperationStore.count`."""
        with self._lock:
            self._check_open()
            return len(self._operations.get(pool, {}))

    def delete_pool(self, pool: PoolId) -> int:
        """See `OperationStore.delete_pool`."""
        with self._lock:
            self._check_open()
            self._snapshots.pop(pool, None)
            return len(self._operations.pop(pool, {}))

    def held_bytes(self) -> int:
        """See `KeptStore.held_bytes`. It reads through everything."""
        with self._lock:
            self._check_open()
            held = sum(len(key) + len(value) for key, value in self._values.items())
            held += sum(len(data) for data in self._snapshots.values())
            return held + sum(len(data) for known in self._operations.values() for data in known.values())

    def close(self) -> None:
        """See `Store.close`. Everything is forgotten."""
        with self._lock:
            self._closed = True
            self._values.clear()
            self._operations.clear()
            self._snapshots.clear()

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError("the store is closed")
