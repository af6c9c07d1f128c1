"""Where the parts of blobs lie: one folder for each blob, with a file for each chunk, or the same in memory.

Knows: names, sizes, and the order of writes that survives a crash. Must not know: which names there are and what they
mean (see `store.blobs`). Everything blocks.
Source: `docs/decisions/0022-blobs.md`; `store.private_files`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from converge_p2p.core.errors import StoreError
from converge_p2p.store.private_files import make_private_folder, sync_folder, write_private_file


class BlobFiles(Protocol):
    """Small files in folders, by name. Every method raises `StoreError` if the disk fails."""

    def folders(self) -> list[str]:
        """Return the names of all folders."""

    def files(self, folder: str) -> dict[str, int]:
        """Return the files of a folder with their sizes; none if there is no such folder."""

    def used_s(self, folder: str) -> float:
        """Return the Unix time when a folder was last used."""

    def touch(self, folder: str) -> None:
        """Note that a folder is used now."""

    def write(self, folder: str, name: str, data: bytes) -> None:
        """Write a file, or replace it, so that at every moment it is whole or absent."""

    def sync(self, folder: str) -> None:
        """Return when the names of all files of a folder would outlive a loss of power."""

    def read(self, folder: str, name: str, bytes_max: int) -> bytes | None:
        """Return at most `bytes_max + 1` bytes of a file, or None if it is not there."""

    def remove(self, folder: str, name: str) -> None:
        """Remove a file, if it is there."""

    def remove_folder(self, folder: str) -> None:
        """Remove a folder with all that is in it."""


class DiskFiles:
    """Implements `BlobFiles` in a folder of the disk, readable by its owner only."""

    def __init__(self, root: Path) -> None:
        """Use a folder; it is made when something is written."""
        self._root = root

    def folders(self) -> list[str]:
        """See `BlobFiles`."""
        try:
            return [entry.name for entry in os.scandir(self._root) if entry.is_dir(follow_symlinks=False)]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise _failure("read", self._root, error) from error

    def files(self, folder: str) -> dict[str, int]:
        """See `BlobFiles`."""
        try:
            found = os.scandir(self._root / folder)
            return {entry.name: entry.stat(follow_symlinks=False).st_size for entry in found}
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise _failure("read", self._root / folder, error) from error

    def used_s(self, folder: str) -> float:
        """See `BlobFiles`."""
        try:
            return os.stat(self._root / folder).st_mtime
        except OSError as error:
            raise _failure("read", self._root / folder, error) from error

    def touch(self, folder: str) -> None:
        """See `BlobFiles`."""
        try:
            os.utime(self._root / folder)
        except OSError as error:
            raise _failure("use", self._root / folder, error) from error

    def write(self, folder: str, name: str, data: bytes) -> None:
        """See `BlobFiles`."""
        make_private_folder(self._root / folder)
        write_private_file(self._root / folder / name, data, replace=True, sync=False)

    def sync(self, folder: str) -> None:
        """See `BlobFiles`."""
        try:
            sync_folder(self._root / folder)
            sync_folder(self._root)
        except OSError as error:
            raise _failure("write", self._root / folder, error) from error

    def read(self, folder: str, name: str, bytes_max: int) -> bytes | None:
        """See `BlobFiles`."""
        try:
            with open(self._root / folder / name, "rb") as file:
                return file.read(bytes_max + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _failure("read", self._root / folder / name, error) from error

    def remove(self, folder: str, name: str) -> None:
        """See `BlobFiles`."""
        try:
            (self._root / folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise _failure("remove", self._root / folder / name, error) from error

    def remove_folder(self, folder: str) -> None:
        """See `BlobFiles`."""
        for name in self.files(folder):
            self.remove(folder, name)
        try:
            (self._root / folder).rmdir()
        except FileNotFoundError:
            pass
        except OSError as error:
            raise _failure("remove", self._root / folder, error) from error


class MemoryFiles:
    """Implements `BlobFiles` for a node without a home. What it holds ends with the process."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._folders: dict[str, dict[str, bytes]] = {}
        self._used: dict[str, float] = {}

    def folders(self) -> list[str]:
        """See `BlobFiles`."""
        return list(self._folders)

    def files(self, folder: str) -> dict[str, int]:
        """See `BlobFiles`."""
        return {name: len(data) for name, data in self._folders.get(folder, {}).items()}

    def used_s(self, folder: str) -> float:
        """See `BlobFiles`."""
        return self._used[folder]

    def touch(self, folder: str) -> None:
        """See `BlobFiles`."""
        self._used[folder] = self._clock()

    def write(self, folder: str, name: str, data: bytes) -> None:
        """See `BlobFiles`."""
        self._folders.setdefault(folder, {})[name] = data
        self.touch(folder)

    def sync(self, folder: str) -> None:
        """See `BlobFiles`."""

    def read(self, folder: str, name: str, bytes_max: int) -> bytes | None:
        """See `BlobFiles`."""
        data = self._folders.get(folder, {}).get(name)
        return None if data is None else data[: bytes_max + 1]

    def remove(self, folder: str, name: str) -> None:
        """See `BlobFiles`."""
        self._folders.get(folder, {}).pop(name, None)

    def remove_folder(self, folder: str) -> None:
        """See `BlobFiles`."""
        self._folders.pop(folder, None)
        self._used.pop(folder, None)


def _failure(what: str, path: Path, error: OSError) -> StoreError:
    return StoreError(f"cannot {what} {path}: {error.strerror}", hint="check the folder's owner and space")
