"""The folder of a node: which file is what, and that only one node uses it.

Knows: a lock, and the names of files and of a few values that who looks after a home has to find. Must not know: what
they mean.
Source: `docs/operations.md`, files. Two nodes on one database would both go on from its last operation, sign the same
number twice, and be shut out of every pool for it. Hence a lock, which the kernel frees however a process ends.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from converge_p2p.core.errors import StoreError
from converge_p2p.store.private_files import make_private_folder

KEY_FILE = "node.key"
DATABASE_FILE = "node.sqlite"
BLOB_FOLDER = "blobs"
LOCK_FILE = "node.sqlite.lock"
AGE_FILE = "node.age"

POOL_KEY = "pool/"
"""Of each pool that the node takes part in."""

AGE_KEY = "age/number"
RESTORED_KEY = "age/restored"
LEARNED_KEY = "age/learned/"
FORGOTTEN_KEY = "age/forgotten/"
"""Of a pool whose operations were removed after the node left it. What these mean is said in `node.restored`."""


@contextmanager
def only_node_in(home: Path) -> Iterator[None]:
    """Hold a home, made if it is missing, while the block runs.

    Raises:
        StoreError: another node holds it, or the folder cannot be used.
    """
    path = home / LOCK_FILE
    try:
        make_private_folder(home)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StoreError(
            f"cannot use the folder {home}: {error.strerror}", hint="choose a folder that you may write to"
        ) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise StoreError(f"another node runs in {home}", hint="stop it, or give this one a home of its own") from error
    try:
        yield
    finally:
        os.close(handle)
