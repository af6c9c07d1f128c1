"""Backups of a node's home: made while it runs or not, checked, and put back without harm to its agent.

Knows: what belongs into a backup, and the order in which things become visible. Must not know: how a node runs.
Source: `docs/operations.md`, back-up; `docs/protocol.md`, restored stores. Everything blocks.

A backup is a folder with mode 0700: `manifest.json`, `node.sqlite`, and if asked for the files that are secret on their
own: `node.key`, `network.key`. The manifest holds the hash of each. It guards against damage, not against people: the
operations bear their authors' signatures, the rest is as trustworthy as the place where the backup lay.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from converge_p2p.core import limits
from converge_p2p.core.codec import encode
from converge_p2p.core.errors import Conflict, NotFound, StoreError
from converge_p2p.core.identity import Identity
from converge_p2p.store.copies import Edit, copy_database, edit_database, reading, salvage_database
from converge_p2p.store.home import (
    AGE_FILE,
    BLOB_FOLDER,
    DATABASE_FILE,
    KEY_FILE,
    LEARNED_KEY,
    LOCK_FILE,
    RESTORED_KEY,
    only_node_in,
)
from converge_p2p.store.private_files import make_private_folder, remove_left_overs, sync_folder, write_private_file
from converge_p2p.store.upkeep import Examination, age_of, examine_database, held_if_free

FORMAT: Final = 1
MANIFEST_FILE: Final = "manifest.json"
NETWORK_KEY_FILE: Final = "network.key"
SECRET_FILES: Final = (KEY_FILE, NETWORK_KEY_FILE)
"""What a backup holds only if asked for: whoever has it is the agent, or gets into the private network."""

_MANIFEST_BYTES_MAX: Final = 64 * 1024
_TEMPORARY: Final = f".{DATABASE_FILE}."
_JOURNALS: Final = tuple(f"{DATABASE_FILE}{suffix}" for suffix in ("-journal", "-wal", "-shm"))
_CHUNK: Final = 1 << 20
_ALLOWED: Final = frozenset({KEY_FILE, NETWORK_KEY_FILE, AGE_FILE, LOCK_FILE, BLOB_FOLDER})


class FileItem(msgspec.Struct, frozen=True):
    """One file of a backup."""

    size: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True):
    """What a backup holds.

    Attributes:
        format: of the backup.
        made: UTC time, RFC 3339.
        program: what made it, and its version; only shown.
        schema: version of the database's schema.
        stopped: no node ran in the home while it was made.
        agent: id of the key, hex; empty if it was not known.
        operations, pools: how many the database holds.
        lost: rows of a damaged database that could not be saved; 0 in a plain backup.
        files: by name.
    """

    format: int
    made: str
    program: str
    schema: int
    stopped: bool
    agent: str
    operations: int
    pools: int
    lost: int
    files: dict[str, FileItem]


def backup_home(
    home: Path,
    target: Path,
    *,
    agent: Identity | None = None,
    secret_files: Mapping[str, Path] | None = None,
    salvage: bool = False,
    program: str = "",
) -> Manifest:
    """Make a backup. A node may run there: the copy is of one moment.

    Args:
        home: the folder of the node.
        target: the folder that is made; a crash leaves it whole or absent.
        agent: whose home it is, if known; only its id is written.
        secret_files: which of `SECRET_FILES` go in, and where they lie; those that do not exist are left out.
        salvage: of a damaged database, take what can still be read and whose signatures are right.
        program: what makes it, and its version.

    Raises:
        Conflict: the target exists.
        NotFound: there is no database.
        StoreError: the database is damaged (without `salvage`), or something cannot be read or written.
    """
    if target.exists():
        raise Conflict(f"{target} exists already", hint="name a folder that is not there yet; it was not changed")
    target = target.absolute()
    make_private_folder(target.parent)
    remove_left_overs(target)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.new")
    try:
        temporary.mkdir(mode=0o700)
        database = temporary / DATABASE_FILE
        with held_if_free(home) as stopped:
            if salvage:
                lost = _salvage(home / DATABASE_FILE, database)
            else:
                lost = 0
                copy_database(home / DATABASE_FILE, database)
        for name, path in (secret_files or {}).items():
            assert name in SECRET_FILES, name
            if path.exists():
                write_private_file(temporary / name, path.read_bytes())
        with reading(database) as copied:
            if wrong := copied.check():
                raise StoreError(
                    f"{home / DATABASE_FILE} is damaged: {wrong[0]}",
                    hint="a copy would be damaged too; --salvage saves what can still be read",
                )
            counts = copied.counts()
            manifest = Manifest(
                format=FORMAT,
                made=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
                program=program,
                schema=copied.version,
                stopped=stopped and not salvage,
                agent="" if agent is None else agent.id,
                operations=sum(counts.values()),
                pools=len(counts),
                lost=lost,
                files={each.name: _describe(each) for each in sorted(temporary.iterdir())},
            )
        write_private_file(temporary / MANIFEST_FILE, msgspec.json.format(msgspec.json.encode(manifest), indent=1))
        temporary.rename(target)
        sync_folder(target.parent)
    except OSError as error:
        raise StoreError(
            f"cannot write the backup {target}: {error.strerror}", hint="check the folder's owner and space"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return manifest


def read_manifest(backup: Path) -> Manifest:
    """Return what a backup says of itself.

    Raises:
        NotFound: there is none.
        StoreError: it cannot be read, or is of a newer format.
    """
    path = backup / MANIFEST_FILE
    try:
        with path.open("rb") as file:
            data = file.read(_MANIFEST_BYTES_MAX)
        manifest = msgspec.json.decode(data, type=Manifest)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(
            f"{backup} is no backup: it has no {MANIFEST_FILE}", hint="name the folder that `store backup` made"
        ) from None
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from error
    except msgspec.MsgspecError as error:
        raise StoreError(f"{path} is damaged: {error}", hint="use another backup") from error
    if manifest.format != FORMAT:
        raise StoreError(
            f"{backup} has format {manifest.format}; this program knows format {FORMAT}",
            hint="use the program that made it",
        )
    if DATABASE_FILE not in manifest.files or not set(manifest.files) <= {DATABASE_FILE, *SECRET_FILES}:
        raise StoreError(f"{path} names files that no backup has", hint="use another backup")
    if any(manifest.files[name].size > limits.KEY_FILE_BYTES_MAX for name in SECRET_FILES if name in manifest.files):
        raise StoreError(f"{path} names a key file that is too long to be one", hint="use another backup")
    return manifest


def examine_backup(backup: Path) -> tuple[Manifest, Examination]:
    """Check a backup: every hash, the structure of the database, and every operation in it.

    Raises:
        NotFound, StoreError: it is no backup, or none that this program knows.
    """
    manifest = read_manifest(backup)
    wrong = Examination()
    for name in _JOURNALS:
        # SQLite would carry it out before the first row is read, whatever the hash of the database says
        if os.path.lexists(backup / name):
            wrong.add(f"{name} is there, and no backup has it")
    for name, item in manifest.files.items():
        try:
            if _describe(backup / name) != item:
                wrong.add(f"{name} is not what the manifest says: it was changed or damaged")
        except FileNotFoundError:
            wrong.add(f"{name} is missing")
        except OSError as error:
            wrong.add(f"cannot read {name}: {error.strerror}")
    if wrong.wrong:
        return manifest, wrong
    found = examine_database(backup / DATABASE_FILE)
    if found.operations != manifest.operations:
        found.add(f"{found.operations} operations are there; the manifest says {manifest.operations}")
    return manifest, found


def restore_home(
    backup: Path,
    home: Path,
    *,
    agent: Identity | None = None,
    moved: bool = False,
    beside: Collection[str] = (),
    places: Mapping[str, Path] | None = None,
) -> Manifest:
    """Put a backup back into a home without a database.

    The node that starts there signs nothing in a pool before its electors said how far its own operations go, as it may
    have signed more than the backup holds. A crash leaves a home without a database, for which this can be done again.

    Args:
        backup: the folder that `backup_home` made.
        home: the folder; made if it is missing.
        agent: whose key is used there, if it is there already.
        moved: the node did not run anywhere since the backup, which was made while it was stopped: then it holds all
            that was ever signed, and the node goes on at once. If that is not true, the agent is shut out of its pools.
        beside: names of other files that may be in the home.
        places: where secret files go, if not into the home.

    Raises:
        NotFound: there is no backup.
        Conflict: the home is not empty or is another agent's, or `moved` is set and the backup is of a running node.
        StoreError: the backup is damaged or of a newer version, or something cannot be written.
    """
    manifest, found = examine_backup(backup)
    if found.wrong:
        raise StoreError(
            f"the backup {backup} is damaged ({found.wrong} findings): {found.findings[0]}",
            hint="use another backup, or start with the key alone and let the peers tell; nothing was changed",
        )
    if agent is not None and manifest.agent not in ("", agent.id):
        raise Conflict(
            f"the backup is of agent {manifest.agent[:12]}, and the key in {home} of {agent.id[:12]}",
            hint="put back the key that belongs to the backup",
        )
    if moved and not manifest.stopped:
        raise Conflict(
            f"the backup {backup} was made while the node ran, or rescued from damage: it may have signed more since",
            hint="put it back without --moved: the node asks the electors then",
        )
    home = home.absolute()
    make_private_folder(home)
    with only_node_in(home):
        secret_places = {name: home / name for name in SECRET_FILES} | dict(places or {})
        for path in (*secret_places.values(), home / AGE_FILE):
            remove_left_overs(path)
        _check_empty(home, {*_ALLOWED, *beside})
        _put_secrets(backup, manifest, secret_places)
        for left_over in home.glob(f"{_TEMPORARY}*"):
            left_over.unlink()
        temporary = home / f"{_TEMPORARY}restored"
        with reading(backup / DATABASE_FILE) as database:
            learned, age = database.keys(LEARNED_KEY), age_of(database)
            database.copy_to(temporary)
        if moved:
            write_private_file(home / AGE_FILE, b"%d\n" % age, replace=True)
        else:
            # in the database itself, so that no file that is left in the home, or lost, can make the node forget it
            edit_database(temporary, Edit(put={RESTORED_KEY: encode(1)}, drop_keys=learned))
        try:
            # last: a home with a database is one that was put back
            temporary.rename(home / DATABASE_FILE)
            sync_folder(home)
        except OSError as error:
            raise StoreError(f"cannot write {home}: {error.strerror}") from error
    return manifest


def _salvage(source: Path, target: Path) -> int:
    """Save what can be read, and of that what can be used; return how many rows were not saved."""
    lost = salvage_database(source, target)
    found = examine_database(target)
    edit_database(target, Edit(drop_operations=found.bad_operations, drop_snapshots=found.bad_snapshots))
    return lost + len(found.bad_operations) + len(found.bad_snapshots)


def _check_empty(home: Path, allowed: Collection[str]) -> None:
    for each in sorted(home.iterdir()):
        if each.name.startswith((_TEMPORARY, f"{DATABASE_FILE}.v")) or each.name in allowed:
            continue
        raise Conflict(
            f"{home} is not empty: it holds {each.name}",
            hint="name an empty folder with --home DIR, or move what is there away; nothing was changed",
        )


def _put_secrets(backup: Path, manifest: Manifest, places: Mapping[str, Path]) -> None:
    wanted = {places[name]: (backup / name).read_bytes() for name in SECRET_FILES if name in manifest.files}
    for path, data in wanted.items():
        if path.exists() and path.read_bytes() != data:
            raise Conflict(
                f"{path} is there already, and is not that of the backup",
                hint="move it away, or use another folder; nothing was changed",
            )
    for path, data in wanted.items():
        if not path.exists():
            make_private_folder(path.absolute().parent)
            write_private_file(path, data)


def _describe(path: Path) -> FileItem:
    """Return size and hash of a file. Raises `OSError` also if it is a link, a pipe, or nothing plain."""
    hashed, size = hashlib.sha256(), 0
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "it is no plain file", str(path))
        while chunk := file.read(_CHUNK):
            hashed.update(chunk)
            size += len(chunk)
    return FileItem(size, hashed.hexdigest())
