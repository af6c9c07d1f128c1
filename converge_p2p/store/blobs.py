"""The blobs a node keeps: which chunks are there, how much room they take, and what makes room for others.

Knows: manifests, holds and quotas. Must not know: how a chunk lies on the disk (see `store.blob_files`), or where it
comes from. Everything blocks and is thread-safe.
Source: `docs/decisions/0022-blobs.md`.

There is no table beside the files: a blob is a folder with its manifest, its chunks, and a mark if it is held. So a
crash leaves nothing that contradicts itself, at worst a blob with chunks missing, which are fetched.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from converge_p2p.core import limits
from converge_p2p.core.errors import CodecError, LimitExceeded, NotFound
from converge_p2p.core.model.blob import MANIFEST_BYTES_MAX, Manifest
from converge_p2p.core.types import BlobId
from converge_p2p.store.blob_files import BlobFiles

_MANIFEST: Final = "manifest"
_BlobIds = list[BlobId]
"""In a class that has a method `list`, the type needs another name."""


class Hold(IntEnum):
    """How firmly a blob is kept when others need the room."""

    CACHED = 0
    """Fetched from others: it goes first, the one that was used the longest ago before the others."""
    KEPT = 1
    """Made for a task: it goes after these, and not before it was unused for `limits.BLOB_KEEP_S`."""
    PINNED = 2
    """Put by a user: it stays until it is removed."""


@dataclass(frozen=True, slots=True)
class BlobInfo:
    """A blob that is kept, as a whole or in part.

    Attributes:
        size: bytes of all its chunks.
        held_bytes: of them, how many are here.
        used_s: Unix time when it was last used.
    """

    id: BlobId
    size: int
    held_bytes: int
    hold: Hold
    used_s: float

    @property
    def complete(self) -> bool:
        """Whether all of it is here."""
        return self.held_bytes == self.size


@dataclass(slots=True)
class _Entry:
    manifest: Manifest
    present: set[int]
    hold: Hold
    used_s: float
    users: int = 0
    used: bool = False
    """It was used since the disk was told when."""


class BlobStore:
    """Keeps blobs within a quota.

    Attributes:
        corrupt_chunks: how many chunks were found damaged, and dropped.
        evicted: how many blobs made room for others.
    """

    def __init__(
        self,
        files: BlobFiles,
        *,
        bytes_max: int = limits.BLOB_STORE_BYTES_MAX,
        blobs_max: int = limits.BLOBS_KEPT_MAX,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Look at nothing yet; `open_now` does.

        Args:
            files: where they lie.
            bytes_max: of all chunks together, those not there yet included.
            blobs_max: how many.
            clock: Unix time in seconds.
        """
        self._files = files
        self._bytes_max = bytes_max
        self._blobs_max = blobs_max
        self._clock = clock
        self._lock = threading.RLock()
        """For the index. Never held while the disk is waited for: the event loop reads the index, too."""
        self._changing = threading.Lock()
        """Whoever makes or removes a folder holds it, from the change of the index to that of the disk."""
        self._entries: dict[BlobId, _Entry] = {}
        self._bytes = 0
        self.corrupt_chunks = 0
        self.evicted = 0

    def open_now(self) -> None:
        """Read what an earlier run left. What is no blob, and what a crash left unfinished, is removed.

        Raises:
            StoreError: the disk fails.
        """
        for folder in self._files.folders():
            entry = self._read_entry(folder)
            if entry is None:
                self._files.remove_folder(folder)
            else:
                self._entries[entry.manifest.id] = entry
                self._bytes += entry.manifest.size

    def _read_entry(self, folder: str) -> _Entry | None:
        files = self._files.files(folder)
        data = self._files.read(folder, _MANIFEST, MANIFEST_BYTES_MAX)
        try:
            manifest = Manifest.from_bytes(BlobId(bytes.fromhex(folder)), data or b"")
        except (CodecError, ValueError):
            return None
        if _folder(manifest.id) != folder:
            return None
        present = {
            index
            for index, name in enumerate(manifest.hashes)
            # what a chunk holds is checked when it is read
            if files.get(name.hex()) == manifest.chunk_bytes(index)
        }
        hold = max((hold for hold in Hold if _mark(hold) in files), default=Hold.CACHED)
        whole = {manifest.hashes[index].hex() for index in present}
        for name in files.keys() - whole - {_MANIFEST, *map(_mark, Hold)}:
            # what was being written when the process ended, or was cut off
            self._files.remove(folder, name)
        return _Entry(manifest, present, hold, self._files.used_s(folder))

    # ------------------------------------------------------------ reading

    def manifest(self, blob: BlobId) -> Manifest | None:
        """Return the manifest of a blob that is kept, in part at least."""
        with self._lock:
            entry = self._entries.get(blob)
            return None if entry is None else entry.manifest

    def missing(self, blob: BlobId) -> list[int]:
        """Return the chunks of a blob that are not here.

        Raises:
            NotFound: the blob was never begun, or made room for another.
        """
        with self._lock:
            entry = self._entry(blob)
            return [index for index in range(len(entry.manifest.hashes)) if index not in entry.present]

    def chunk(self, blob: BlobId, index: int) -> bytes | None:
        """Return a verified chunk, or None if it is not here. One that is damaged is dropped, to be fetched again.

        Raises:
            StoreError: the disk fails.
        """
        with self._lock:
            entry = self._entries.get(blob)
            if entry is None or index not in entry.present:
                return None
            manifest = entry.manifest
        name = manifest.hashes[index].hex()
        data = self._files.read(_folder(blob), name, limits.BLOB_CHUNK_BYTES)
        try:
            if data is not None:
                manifest.check_chunk(index, data)
                return data
        except CodecError:
            self._files.remove(_folder(blob), name)
        with self._lock:
            self.corrupt_chunks += 1
            # several chunks of one content lie in one file
            entry.present -= {each for each in entry.present if manifest.hashes[each] == manifest.hashes[index]}
        return None

    def list(self) -> list[BlobInfo]:
        """Return all blobs, the one used last first."""
        with self._lock:
            found = [_info(entry) for entry in self._entries.values()]
        return sorted(found, key=lambda info: -info.used_s)

    def totals(self) -> tuple[int, int]:
        """Return how many blobs there are, and how many bytes they have when they are complete."""
        return len(self._entries), self._bytes

    # ------------------------------------------------------------ writing

    def begin(self, manifest: Manifest) -> None:
        """Make room for a blob, note what it consists of, and let it not make room for others until `release`.

        Raises:
            LimitExceeded: there is no room, and nothing that may be removed for it.
            StoreError: the disk fails.
        """
        with self._changing:
            with self._lock:
                if self.use(manifest.id):
                    return
                victims = self._make_room(manifest.size)
                self._entries[manifest.id] = _Entry(manifest, set(), Hold.CACHED, self._clock(), users=1)
                self._bytes += manifest.size
            try:
                for victim in victims:
                    self._remove_files(victim)
                self._files.write(_folder(manifest.id), _MANIFEST, manifest.to_bytes())
            except BaseException:
                with self._lock:
                    self._forget(manifest.id)
                raise

    def add(self, blob: BlobId, index: int, data: bytes) -> None:
        """Keep a chunk of a blob that was begun.

        Raises:
            CodecError: it is not that chunk. Nothing was kept.
            NotFound: the blob was not begun, or made room for another.
            StoreError: the disk fails.
        """
        with self._lock:
            manifest = self._entry(blob).manifest
        manifest.check_chunk(index, data)
        self._files.write(_folder(blob), manifest.hashes[index].hex(), data)
        try:
            with self._lock:
                self._entry(blob).present.add(index)
        except NotFound:
            self._sweep(blob)
            raise

    def finish(self, blob: BlobId, hold: Hold) -> None:
        """Let a blob outlive a loss of power, and hold it at least so firmly.

        Raises:
            NotFound, StoreError: see `add`.
        """
        with self._lock:
            raised = hold > self._entry(blob).hold
        if raised:
            self._files.write(_folder(blob), _mark(hold), b"")
        self._files.touch(_folder(blob))
        self._files.sync(_folder(blob))
        try:
            with self._lock:
                entry = self._entry(blob)
                entry.hold = max(hold, entry.hold)
                entry.used_s = self._clock()
        except NotFound:
            self._sweep(blob)
            raise

    def remove(self, blob: BlobId) -> bool:
        """Remove a blob, however firmly it is held; say whether it was there.

        Raises:
            StoreError: the disk fails.
        """
        with self._changing:
            with self._lock:
                known = self._forget(blob)
            if known:
                self._remove_files(blob)
        return known

    def expire(self, before_s: float, needed: frozenset[BlobId]) -> int:
        """Remove blobs that are not pinned, not needed and not in use, and were used last before a Unix time.

        Returns:
            How many.

        Raises:
            StoreError: the disk fails.
        """
        removed = 0
        self.note_uses()
        with self._lock:
            old = [blob for blob, entry in self._entries.items() if self._expires(entry, before_s)]
        for blob in old:
            with self._changing:
                with self._lock:
                    entry = self._entries.get(blob)
                    # it may have been used, pinned or removed in the meantime
                    expires = blob not in needed and entry is not None and self._expires(entry, before_s)
                    if expires:
                        self._forget(blob)
                if expires:
                    self._remove_files(blob)
                    removed += 1
        return removed

    def note_uses(self) -> None:
        """Let the next run know what was used, too; to the disk goes the time of this call.

        Raises:
            StoreError: the disk fails.
        """
        with self._changing:
            with self._lock:
                used = [blob for blob, entry in self._entries.items() if entry.used]
                for blob in used:
                    self._entries[blob].used = False
            for blob in used:
                self._files.touch(_folder(blob))

    @staticmethod
    def _expires(entry: _Entry, before_s: float) -> bool:
        return not entry.users and entry.hold is not Hold.PINNED and entry.used_s < before_s

    def abandon(self, blob: BlobId) -> None:
        """End what `begin` began, and drop what came of it, unless somebody else uses the blob or has finished it.

        Raises:
            StoreError: the disk fails.
        """
        with self._changing:
            with self._lock:
                self.release(blob)
                entry = self._entries.get(blob)
                drops = entry is not None and not entry.users and entry.hold is Hold.CACHED
                if drops:
                    self._forget(blob)
            if drops:
                self._remove_files(blob)

    def _sweep(self, blob: BlobId) -> None:
        """Remove what was written of a blob while somebody removed it."""
        with self._changing:
            with self._lock:
                gone = blob not in self._entries
            if gone:
                self._files.remove_folder(_folder(blob))

    def _forget(self, blob: BlobId) -> bool:
        entry = self._entries.pop(blob, None)
        if entry is not None:
            self._bytes -= entry.manifest.size
        return entry is not None

    def _remove_files(self, blob: BlobId) -> None:
        # without its manifest the rest is no blob, should this end in the middle
        self._files.remove(_folder(blob), _MANIFEST)
        self._files.remove_folder(_folder(blob))

    def use(self, blob: BlobId) -> bool:
        """Let a blob not make room for others until `release`; say whether it is here."""
        with self._lock:
            entry = self._entries.get(blob)
            if entry is not None:
                entry.users += 1
                entry.used_s = self._clock()
                entry.used = True
        return entry is not None

    def release(self, blob: BlobId) -> None:
        """End what `begin` or `use` began. Does nothing if the blob was removed meanwhile."""
        with self._lock:
            entry = self._entries.get(blob)
            if entry is not None:
                entry.users = max(0, entry.users - 1)

    def _make_room(self, size: int) -> _BlobIds:
        """Forget blobs until there is room for one more; return them, for their files to be removed.

        Raises:
            LimitExceeded: that would not be enough. Nothing was forgotten.
        """
        bytes_left, blobs_left = self._bytes + size - self._bytes_max, len(self._entries) + 1 - self._blobs_max
        victims: _BlobIds = []
        for victim in self._removable():
            if bytes_left <= 0 and blobs_left <= 0:
                break
            victims.append(victim)
            bytes_left -= self._entries[victim].manifest.size
            blobs_left -= 1
        if bytes_left <= 0 and blobs_left <= 0:
            for victim in victims:
                self._forget(victim)
            self.evicted += len(victims)
            return victims
        raise LimitExceeded(
            "BLOBS_KEPT_MAX" if blobs_left > 0 else "BLOB_STORE_BYTES_MAX",
            f"no room for a blob of {size} bytes: {len(self._entries)} with {self._bytes} bytes are kept, at most "
            f"{self._blobs_max} with {self._bytes_max} are allowed",
            hint="remove some: converge-node blob ls, blob rm",
        )

    def _removable(self) -> _BlobIds:
        """The blobs that may make room, what is missed the least first."""
        kept_since = self._clock() - limits.BLOB_KEEP_S
        free = [
            (entry.hold, entry.used_s, blob)
            for blob, entry in self._entries.items()
            if not entry.users
            and (entry.hold is Hold.CACHED or (entry.hold is Hold.KEPT and entry.used_s < kept_since))
        ]
        return [blob for *_, blob in sorted(free)]

    def _entry(self, blob: BlobId) -> _Entry:
        entry = self._entries.get(blob)
        if entry is None:
            raise NotFound(f"no blob {blob.hex()[:12]} is kept here")
        return entry


def _folder(blob: BlobId) -> str:
    return blob.hex()


def _mark(hold: Hold) -> str:
    return hold.name.lower()


def _info(entry: _Entry) -> BlobInfo:
    held = sum(entry.manifest.chunk_bytes(index) for index in entry.present)
    return BlobInfo(entry.manifest.id, entry.manifest.size, held, entry.hold, entry.used_s)
