"""The key file: an identity on disk.

Knows: how a key file is created, protected and read. Must not know: its format (see `core.identity`).
Source: `docs/operations.md`, keys. Like a private key of OpenSSH: a file that others can read is refused.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from converge_p2p.core import limits
from converge_p2p.core.errors import CodecError, Conflict, LocalError, NotFound, StoreError
from converge_p2p.core.identity import Identity
from converge_p2p.store.private_files import make_private_folder, remove_left_overs, write_private_file


def save_identity(
    identity: Identity, path: str | Path, passphrase: str | None = None, *, replace: bool = False
) -> None:
    """Write a new key file with mode 0600, in one step that a crash cannot tear.

    Args:
        identity: one that can sign.
        path: where; missing folders are made with mode 0700.
        passphrase: seals the file; None leaves the key in clear.
        replace: whether an existing file is replaced: its key is gone then.

    Raises:
        Conflict: the file exists and `replace` is False.
        LocalError: the identity is verify-only, or the passphrase is empty.
        StoreError: it cannot be written.
    """
    path = Path(path)
    data = identity.to_key_file(passphrase)
    make_private_folder(path.absolute().parent)
    write_private_file(path.absolute(), data, replace=replace)
    if replace:
        # a key that is replaced is to be gone, also where a killed process left a second copy of it
        remove_left_overs(path.absolute())


def load_identity(path: str | Path, passphrase: str | None = None) -> Identity:
    """Read a key file.

    Args:
        path: where.
        passphrase: needed if the file is sealed.

    Raises:
        NotFound: there is no such file.
        StoreError: it cannot be read, is no key file, or others than its owner may read or write it.
        LocalError: it is sealed and no passphrase was given.
        SignatureError: the passphrase is wrong.
    """
    path = Path(path)
    try:
        # non-blocking, or a pipe in its place would hold the start for ever
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise NotFound(f"no key file at {path}", hint="make one, or give the path of an existing one") from None
    except OSError as error:
        raise StoreError(f"cannot read key file {path}: {error.strerror}") from error
    try:
        # what was opened is looked at, not the path: it could be another file by now
        _check_protected(path, os.fstat(descriptor))
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            data = file.read(limits.KEY_FILE_BYTES_MAX + 1)
    except OSError as error:
        raise StoreError(f"cannot read key file {path}: {error.strerror}") from error
    finally:
        os.close(descriptor)
    if len(data) > limits.KEY_FILE_BYTES_MAX:
        raise StoreError(f"{path} is no key file: it has more than {limits.KEY_FILE_BYTES_MAX} bytes")
    try:
        return Identity.from_key_file(data, passphrase)
    except CodecError as error:
        raise StoreError(f"key file {path}: {error}", hint="restore it from a backup; it was not changed") from error
    except LocalError as error:
        hint = "name the file that holds the passphrase: --passphrase-file, or identity.passphrase_file in the settings"
        raise LocalError(f"key file {path}: {error}", hint=hint) from error


def load_or_create_identity(path: str | Path, passphrase: str | None = None) -> Identity:
    """Read the key file, or write one with a new identity if there is none.

    Two processes that do so at once get the same identity.

    Raises:
        StoreError, LocalError, SignatureError: as `load_identity` and `save_identity`.
    """
    try:
        return load_identity(path, passphrase)
    except NotFound:
        pass
    identity = Identity.generate()
    try:
        save_identity(identity, path, passphrase)
    except Conflict:
        # somebody was faster; theirs is the identity now
        return load_identity(path, passphrase)
    return identity


def _check_protected(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise StoreError(f"{path} is not a regular file")
    if status.st_mode & 0o077:
        raise StoreError(
            f"key file {path} has mode {stat.S_IMODE(status.st_mode):04o}: others may read or write it",
            hint=f"if nobody copied it: chmod 600 {path}; otherwise make a new key",
        )
    if status.st_uid not in (0, os.geteuid()):
        raise StoreError(
            f"key file {path} belongs to user {status.st_uid}, who could read and change it",
            hint="copy it to a file of the user that runs the node",
        )
