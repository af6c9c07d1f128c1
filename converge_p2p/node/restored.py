"""Whether the store is the newest there is, or an old copy that somebody put back.

Knows: a number that stands in the store and in a file beside it, and which pools' own chains were learned since a store
was found to be old. Must not know: how a chain is learned (see `core.replica.own_tip`).
Source: `docs/protocol.md`, restored stores; `docs/operations.md`, back-up.

The number grows at the start, at the end, and every minute in between: in the store first, then in the file. So a store
with a lesser number than the file's is an old copy, and a crash alone never looks like one. A copy of store *and* file
cannot be told from the original; whoever puts one back says so.
"""

from __future__ import annotations

import logging
from pathlib import Path

import trio

from converge_p2p.core.codec import decode, encode
from converge_p2p.core.errors import CodecError, StoreError
from converge_p2p.core.types import PoolId
from converge_p2p.store.api import Store
from converge_p2p.store.home import AGE_FILE, AGE_KEY, FORGOTTEN_KEY, LEARNED_KEY, RESTORED_KEY
from converge_p2p.store.private_files import remove_left_overs, write_private_file

_logger = logging.getLogger(__name__)

TICK_S = 60.0


class StoreAge:
    """Compares store and file, and remembers what is in doubt. The methods that end in `_now` block."""

    def __init__(self, store: Store, home: Path | None) -> None:
        """Nothing is read yet.

        Args:
            store: the node's store.
            home: the folder of the file; None: there is none, and only the operator can say that a store is old.
        """
        self._store = store
        self._file = None if home is None else home / AGE_FILE
        self._number = 0
        self._restored = False
        self._learned: dict[PoolId, int] = {}
        self._forgotten: set[PoolId] = set()

    def open_now(self, *, restored: bool) -> None:
        """Look whether the store is old, and begin a new age.

        Args:
            restored: the operator says that it is an old copy.

        Raises:
            StoreError: store or file cannot be read or written.
        """
        if self._file is not None:
            remove_left_overs(self._file)
        store, file = self._read_store(), self._read_file()
        if self._file is not None and store is None and file is None:
            # the first start: with the file there, a crash before the store's number is written changes nothing
            file = 0
            write_private_file(self._file, b"0\n", replace=True)
        # a store that has a number was beside a file; a file with one was beside another store than an empty one
        alone = self._file is not None and store is not None and file is None
        old = restored or alone or (store or 0) < (file or 0)
        if old:
            _logger.warning("the store is an old copy: nothing is signed in a pool before its electors were heard")
            for key in self._store.list(LEARNED_KEY):
                self._store.delete(key)
            self._store.put(RESTORED_KEY, encode(1))
        self._restored = self._store.get(RESTORED_KEY) is not None
        for key in self._store.list(LEARNED_KEY):
            self._learned[PoolId(bytes.fromhex(key.removeprefix(LEARNED_KEY)))] = self._read_number(key) or 0
        self._forgotten = {
            PoolId(bytes.fromhex(key.removeprefix(FORGOTTEN_KEY))) for key in self._store.list(FORGOTTEN_KEY)
        }
        self._number = max(store or 0, file or 0)
        self.grow_now()

    def grow_now(self) -> None:
        """Count on.

        Raises:
            StoreError: store or file cannot be written.
        """
        if self._file is None:
            return
        self._number += 1
        self._store.put(AGE_KEY, encode(self._number))
        write_private_file(self._file, b"%d\n" % self._number, replace=True)

    async def run(self) -> None:
        """Count on from time to time, until cancelled."""
        while self._file is not None:
            await trio.sleep(TICK_S)
            await trio.to_thread.run_sync(self.grow_now)

    def doubts(self, pool: PoolId) -> bool:
        """Whether operations of this node in a pool may have been forgotten."""
        return (self._restored and pool not in self._learned) or pool in self._forgotten

    def silent_through(self, pool: PoolId) -> int:
        """Up to which epoch of a pool this node casts no votes, for it may have forgotten some; -1: it votes."""
        return self._learned.get(pool, -1)

    @property
    def restored(self) -> bool:
        """Whether the store is an old copy, or was one when it was put back."""
        return self._restored

    async def learned(self, pool: PoolId, silent_through: int = -1) -> None:
        """The own chain of a pool is known again, or nothing was ever signed in it.

        Raises:
            StoreError: the store cannot be written.
        """
        if self.doubts(pool):
            self._learned[pool] = silent_through
            self._forgotten.discard(pool)
            await trio.to_thread.run_sync(self._store.put, LEARNED_KEY + pool.hex(), encode(silent_through))
            await trio.to_thread.run_sync(self._store.delete, FORGOTTEN_KEY + pool.hex())

    async def forget(self, pool: PoolId) -> None:
        """The own operations of a pool are about to be removed: nothing is signed there before electors were heard.

        Raises:
            StoreError: the store cannot be written.
        """
        await trio.to_thread.run_sync(self._store.put, FORGOTTEN_KEY + pool.hex(), encode(1))
        self._forgotten.add(pool)

    def _read_store(self) -> int | None:
        return self._read_number(AGE_KEY)

    def _read_number(self, key: str) -> int | None:
        data = self._store.get(key)
        try:
            number = None if data is None else decode(data)
        except CodecError as error:
            raise StoreError(f"the store's age is damaged: {error}") from error
        return number if isinstance(number, int) else None

    def _read_file(self) -> int | None:
        if self._file is None:
            return None
        try:
            text = self._file.read_bytes()[:32]
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"cannot read {self._file}: {error.strerror}") from error
        # a damaged file proves nothing, so the store counts as old
        return int(text) if text.strip().isdigit() else 2**62
