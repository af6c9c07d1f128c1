"""Blobs in a backup: copied while a node may use them, checked, and put into a home.

Knows: which files a blob has, and what a list of blobs says. Must not know: what else is in a backup (see `archive`).
Source: `docs/operations.md`, back-up. Everything blocks.

A blob proves itself: its id is the hash of its manifest, which names the hash of every chunk. So a list needs no
hashes, and what somebody puts into a backup beside what it lists is never looked at.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from converge_p2p.core import limits
from converge_p2p.core.errors import CodecError, StoreError
from converge_p2p.core.model.blob import MANIFEST_BYTES_MAX, Manifest
from converge_p2p.core.types import BlobId
from converge_p2p.store.blob_files import DiskFiles
from converge_p2p.store.blobs import BlobStore, Hold

BLOB_LIST_FILE: Final = "blobs.json"
_LIST_BYTES_MAX: Final = limits.BLOBS_KEPT_MAX * 256
_ID: Final = re.compile(r"[0-9a-f]{64}")
_ROOM: Final = 2**62
"""No bound: what a home may keep is asked for when its node runs."""


class BlobItem(msgspec.Struct, frozen=True):
    """A blob of a backup.

    Attributes:
        id: hexadecimal.
        hold: see `Hold`.
        held_bytes: of it, how many are in the backup.
        used_s: Unix time when it was used last.
    """

    id: str
    hold: int
    held_bytes: int
    used_s: int


def copy_blobs(source: Path, target: Path) -> list[BlobItem]:
    """Copy the blobs of a home, which a node may use, into a folder that is new.

    Fetched ones that are not whole are left out, as is what was damaged, and what was removed meanwhile.

    Raises:
        StoreError: something cannot be read or written, or there is no room for it.
    """
    _need_room(source, target.parent)
    copies = BlobStore(DiskFiles(target), bytes_max=_ROOM, blobs_max=limits.BLOBS_KEPT_MAX)
    items = []
    for folder in _folders(source):
        manifest = _manifest(folder)
        if manifest is None:
            continue
        hold = max((hold for hold in Hold if os.path.lexists(folder / hold.name.lower())), default=Hold.CACHED)
        copies.begin(manifest)
        held = _copy(folder, manifest, copies)
        used_s = _used_s(folder)
        if used_s is None or (hold is Hold.CACHED and held < manifest.size):
            copies.remove(manifest.id)
            continue
        copies.finish(manifest.id, hold)
        copies.release(manifest.id)
        items.append(BlobItem(manifest.id.hex(), int(hold), held, used_s))
    return items


def read_blob_list(path: Path) -> list[BlobItem]:
    """Return what a backup says of its blobs.

    Raises:
        StoreError: it cannot be read, or names what no backup has.
    """
    try:
        items = msgspec.json.decode(read_plain(path, _LIST_BYTES_MAX), type=list[BlobItem])
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from error
    except msgspec.MsgspecError as error:
        raise StoreError(f"{path} is damaged: {error}", hint="use another backup") from error
    known = {item.id for item in items if _ID.fullmatch(item.id) and item.hold in list(Hold)}
    if len(known) != len(items) or len(items) > limits.BLOBS_KEPT_MAX:
        raise StoreError(f"{path} names blobs that no backup has", hint="use another backup")
    return items


def examine_blobs(backup: Path, items: list[BlobItem], wrong: Callable[[str], None]) -> None:
    """Check every chunk of every blob that a list names; tell what is wrong."""
    for item in items:
        folder, name = backup / item.id, item.id[:12]
        if not _is_folder(backup) or not _is_folder(folder):
            wrong(f"blob {name} is missing, or no folder")
            continue
        manifest = _manifest(folder)
        if manifest is None:
            wrong(f"blob {name} was changed or damaged: its manifest cannot be used")
            continue
        held = sum(len(chunk) for _, chunk in _chunks(folder, manifest))
        if held < item.held_bytes:
            wrong(f"blob {name} was changed or damaged: {item.held_bytes - held} bytes of it cannot be used")


def put_blobs(backup: Path, items: list[BlobItem], target: Path) -> None:
    """Put the blobs of a checked backup into a home that no node uses; what is there already stays.

    It can be done again if it was cut off.

    Raises:
        StoreError: something cannot be read or written, or there is no room for it.
    """
    _need_room(backup, target.parent)
    files = DiskFiles(target)
    blobs = BlobStore(files, bytes_max=_ROOM, blobs_max=2 * limits.BLOBS_KEPT_MAX)
    blobs.open_now()
    for item in items:
        folder = backup / item.id
        manifest = _manifest(folder)
        if manifest is None:
            raise _changed(item)
        blobs.begin(manifest)
        # it was checked before, but a disk may fail now
        if _copy(folder, manifest, blobs, missing=frozenset(blobs.missing(manifest.id))) < item.held_bytes:
            raise _changed(item)
        blobs.finish(manifest.id, Hold(item.hold))
        # what a list says is no reason to keep a blob longer than one that was used now
        used_s = min(max(item.used_s, 0), int(time.time()))
        os.utime(target / item.id, (used_s, used_s))


def _changed(item: BlobItem) -> StoreError:
    return StoreError(
        f"blob {item.id[:12]} of the backup was changed, or cannot be read any more, while it was put back",
        hint="copy the backup to a disk that is sound, or use another one; then restore again",
    )


def _copy(folder: Path, manifest: Manifest, to: BlobStore, missing: frozenset[int] | None = None) -> int:
    """Copy the chunks that are right; return how many bytes that was."""
    held = 0
    for index, chunk in _chunks(folder, manifest):
        held += len(chunk)
        if missing is None or index in missing:
            to.add(manifest.id, index, chunk)
    return held


def _chunks(folder: Path, manifest: Manifest) -> Iterator[tuple[int, bytes]]:
    """Yield the chunks that are there and right."""
    for index, name in enumerate(manifest.hashes):
        try:
            chunk = read_plain(folder / name.hex(), limits.BLOB_CHUNK_BYTES)
            manifest.check_chunk(index, chunk)
        except (FileNotFoundError, CodecError):
            continue
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EINVAL, errno.EIO):
                # a link, nothing plain, or a bad place on the disk
                continue
            raise StoreError(f"cannot read {folder / name.hex()}: {error.strerror}") from error
        yield index, chunk


def _folders(root: Path) -> list[Path]:
    try:
        return sorted(root / each.name for each in os.scandir(root) if _ID.fullmatch(each.name) and _is_folder(each))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StoreError(f"cannot read {root}: {error.strerror}") from error


def _is_folder(path: os.PathLike[str]) -> bool:
    """Whether it is a folder, and no link to one."""
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except OSError:
        return False


def _manifest(folder: Path) -> Manifest | None:
    try:
        return Manifest.from_bytes(
            BlobId(bytes.fromhex(folder.name)), read_plain(folder / "manifest", MANIFEST_BYTES_MAX)
        )
    except (OSError, CodecError):
        return None


def _used_s(folder: Path) -> int | None:
    """When a blob was used last; None if it was removed meanwhile."""
    try:
        return int(folder.stat().st_mtime) if (folder / "manifest").exists() else None
    except OSError:
        return None


def read_plain(path: Path, bytes_max: int) -> bytes:
    """Read at most one byte more than a bound. Raises `OSError` also for a link, a pipe, and what is nothing plain."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "it is no plain file", str(path))
        return file.read(bytes_max + 1)


def _need_room(source: Path, folder: Path) -> None:
    """Check that what lies in the blobs of one folder fits into another."""
    needed = 0
    for each in _folders(source):
        try:
            needed += sum(entry.stat(follow_symlinks=False).st_size for entry in os.scandir(each))
        except OSError:
            # removed meanwhile
            continue
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise StoreError(
            f"{folder} has {free} bytes free, and blobs need {needed}",
            hint="free space on the disk, or leave blobs out of the backup (--no-blobs); what was there is unchanged",
        )
