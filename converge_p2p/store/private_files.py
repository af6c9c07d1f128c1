"""Folders and files that only their owner can read.

Knows: modes and the order of writes that survives a crash. Must not know: what is in the files.
Source: open(2), link(2), rename(2), fsync(2): a new name is on disk only after its folder was synced.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from pathlib import Path

from converge_p2p.core.errors import Conflict, StoreError

_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


def make_private_folder(folder: Path) -> None:
    """Make a folder and those above it, readable by the owner only. Folders that exist are left as they are.

    Raises:
        StoreError: it cannot be made.
    """
    try:
        for path in [*reversed(folder.parents), folder]:
            if not path.exists():
                path.mkdir(mode=0o700, exist_ok=True)
        if not folder.is_dir():
            raise StoreError(f"{folder} is not a folder", hint="choose another path, or move that file away")
    except OSError as error:
        raise StoreError(f"cannot make folder {folder}: {error.strerror}") from error


def write_private_file(path: Path, data: bytes, *, replace: bool = False, sync: bool = True) -> None:
    """Write a file with mode 0600 so that at every moment, also after a crash, it is whole or absent.

    Args:
        path: its folder must exist.
        data: all of it.
        replace: whether an existing file is replaced.
        sync: whether its name is to outlive a loss of power when this returns; otherwise `sync_folder` sees to that.

    Raises:
        Conflict: the file exists and `replace` is False; it is not touched.
        StoreError: it cannot be written.
    """
    # in the same folder, because a rename across file systems is a copy
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.new")
    try:
        _write_new(temporary, data)
        try:
            if replace:
                temporary.replace(path)
            else:
                _publish_new(temporary, path, data)
        finally:
            temporary.unlink(missing_ok=True)
        if sync:
            sync_folder(path.parent)
    except FileExistsError:
        raise Conflict(f"{path} exists already", hint="choose another path; it was not changed") from None
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror}", hint="check the folder's owner and space") from error


def remove_left_overs(path: Path) -> None:
    """Remove what writing a file, or a folder, left beside it when the process was killed; a key may stand in it.

    To be called while nobody else writes that file.

    Raises:
        StoreError: it cannot be removed.
    """
    left_over = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{16}}\.new(-journal|-wal|-shm)?")
    try:
        for each in path.parent.iterdir() if path.parent.is_dir() else ():
            if not left_over.fullmatch(each.name):
                continue
            if each.is_dir() and not each.is_symlink():
                shutil.rmtree(each)
            else:
                each.unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(
            f"cannot remove what is left of writing {path}: {error.strerror}", hint="check the folder's owner"
        ) from error


def _publish_new(temporary: Path, path: Path, data: bytes) -> None:
    try:
        # unlike a rename, a link never replaces what somebody else made in between
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        _write_new(path, data)


def _write_new(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            # a umask can only take rights away, but one that takes the owner's would leave a useless file
            os.fchmod(file.fileno(), 0o600)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    """Return when the names in a folder would outlive a loss of power. Raises `OSError`."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
